//! What a path of the API means.

use super::kinds::{self, Kind};
use crate::store::Key;

/// A kind, and which of its objects or which part of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) kind: &'static Kind,
    /// Empty where the path names none.
    pub(super) namespace: String,
    pub(super) name: Option<String>,
    /// `status`, `scale`, `log` and the like.
    pub(super) part: Option<String>,
}

impl Target {
    /// Reads a path that begins with `/api/` or `/apis/`.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match words.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", _, part] if kinds::of("Namespace").is_some_and(|kind| kind.parts.contains(part)) => {
                ("", rest)
            }
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, part) = match rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some(*name), None),
            [plural, name, part] => (plural, Some(*name), Some(*part)),
            _ => return None,
        };
        let kind = kinds::at(group, version, plural)?;
        let misfit = match kind.namespaced {
            true => namespace.is_empty() && name.is_some(),
            false => !namespace.is_empty(),
        };
        if misfit || part.is_some_and(|part| !kind.parts.contains(&part)) {
            return None;
        }
        let owned = |word: Option<&str>| word.map(str::to_owned);
        Some(Target { kind, namespace: namespace.to_owned(), name: owned(name), part: owned(part) })
    }

    /// The store's key of one of these objects.
    pub(super) fn key(&self, name: &str) -> Key {
        Key::new(self.kind.kind, &self.namespace, name)
    }

    /// The part, or nothing for the object itself.
    pub(super) fn part(&self) -> &str {
        self.part.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_what_kubernetes_means() {
        let parse = |path| {
            let target = Target::parse(path)?;
            Some((target.kind.kind, target.namespace, target.name, target.part))
        };
        let text = |text: &str| Some(text.to_owned());
        let home = |text: &str| text.to_owned();
        assert_eq!(parse("/api/v1/pods"), Some(("Pod", home(""), None, None)));
        assert_eq!(parse("/api/v1/namespaces/a/pods"), Some(("Pod", home("a"), None, None)));
        assert_eq!(parse("/api/v1/namespaces/a/pods/b/log"), Some(("Pod", home("a"), text("b"), text("log"))));
        assert_eq!(parse("/api/v1/namespaces"), Some(("Namespace", home(""), None, None)));
        assert_eq!(parse("/api/v1/namespaces/a"), Some(("Namespace", home(""), text("a"), None)));
        assert_eq!(parse("/api/v1/namespaces/a/finalize"), Some(("Namespace", home(""), text("a"), text("finalize"))));
        assert_eq!(parse("/api/v1/nodes/n"), Some(("Node", home(""), text("n"), None)));
        assert_eq!(
            parse("/apis/apps/v1/namespaces/a/deployments/d/scale"),
            Some(("Deployment", home("a"), text("d"), text("scale")))
        );
        for path in [
            "/api/v1/pods/a",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/things",
            "/api/v1/namespaces/a/pods/b/c/d",
            "/api/v1",
            "/api/v2/pods",
            "/apis/apps/v1/pods",
            "/api/v1/namespaces/a/pods/b/scale",
            "",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
