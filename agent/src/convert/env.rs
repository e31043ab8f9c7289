//! A container's environment: what the image, the runtime and the pod say, the pod's word last, and Kubernetes'
//! `$(NAME)` in values and arguments.

use skeg_protocol::manifest::{DataKind, DataSource, EnvValue, EnvVar};
use skeg_protocol::{Container, Pod};

use super::ConvertError;
use crate::volumes::facts::{Facts, kind_name};

/// Where programs are looked for when nobody says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names and values.
pub(crate) type Variables = Vec<(String, String)>;

fn set(variables: &mut Variables, name: &str, value: String) {
    match variables.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => variables.push((name.to_owned(), value)),
    }
}

/// The pod's own variables: whole config maps and secrets first, then each by itself; the order of first mention is kept.
/// These alone are what `$(NAME)` can mean, as in Kubernetes.
///
/// # Errors
/// What is missing, in Kubernetes' words, or is no text.
pub(crate) fn own(pod: &Pod, container: &Container, facts: &Facts) -> Result<Variables, ConvertError> {
    let mut variables = Variables::new();
    for from in &container.env_from {
        let Some(data) = facts.source(pod, &from.source).map_err(ConvertError::Missing)? else { continue };
        for (key, bytes) in &data.entries {
            let name = format!("{}{key}", from.prefix);
            // What is no text of a config map is its binaryData, which is for files only.
            let binary = data.kind == DataKind::ConfigMap && std::str::from_utf8(bytes).is_err();
            if is_variable(&name) && !binary {
                set(&mut variables, &name, text(&from.source, key, bytes)?);
            } else {
                log::debug!("key {key:?} of {} is no variable and is passed over", from.source.name);
            }
        }
    }
    for variable in &container.env {
        if let Some(value) = value(pod, container, facts, variable, &variables)? {
            set(&mut variables, &variable.name, value);
        }
    }
    Ok(variables)
}

/// `None`: what it refers to is missing, and that is allowed.
fn value(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    variable: &EnvVar,
    before: &Variables,
) -> Result<Option<String>, ConvertError> {
    Ok(Some(match &variable.value {
        EnvValue::Text(text) => expand(text, before),
        EnvValue::Key { source, key } => match facts.key(pod, source, key).map_err(ConvertError::Missing)? {
            Some(bytes) => text(source, key, bytes)?,
            None => return Ok(None),
        },
        EnvValue::Field(field) => facts.field(pod, field),
        EnvValue::Resource(resource) => facts.resource(pod, Some(container), resource),
    }))
}

fn text(source: &DataSource, key: &str, bytes: &[u8]) -> Result<String, ConvertError> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let not_text = || {
        let kind = kind_name(source.kind);
        ConvertError::Missing(format!("key {key} in {kind} {} is no text: mount it as a file", source.name))
    };
    text.map(str::to_owned).ok_or_else(not_text)
}

/// Kubernetes' `IsEnvVarName`.
fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let begins = name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
    begins && name.bytes().all(plain) && name != "." && !name.starts_with("..")
}

/// Puts the pod's own variables over those of the image and the runtime; the order of first mention is kept.
pub(crate) fn merge(image: &[String], own: &Variables, hostname: &str, home: &str) -> Variables {
    let mut variables = Variables::new();
    for (name, value) in [("PATH", PATH), ("HOSTNAME", hostname), ("HOME", home)] {
        set(&mut variables, name, value.to_owned());
    }
    for entry in image {
        if let Some((name, value)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) {
            set(&mut variables, name, value.replace('\0', ""));
        }
    }
    for (name, value) in own {
        set(&mut variables, name, value.clone());
    }
    variables
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a `$`; what names nothing stays as it is.
pub(crate) fn expand(text: &str, variables: &Variables) -> String {
    expand_all(text, variables).0
}

/// The same, and the first name that names nothing.
pub(crate) fn expand_all(text: &str, variables: &Variables) -> (String, Option<String>) {
    let (mut out, mut unknown) = (String::with_capacity(text.len()), None);
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let named = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')'));
        let known = named.and_then(|(name, after)| Some((variables.iter().find(|(known, _)| known == name)?, after)));
        match known {
            Some(((_, value), after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                unknown = unknown.or_else(|| named.map(|(name, _)| name.to_owned()));
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    (out, unknown)
}

#[cfg(test)]
mod tests {
    use skeg_protocol::manifest::{EnvFrom, PodField, ResourceField, ResourceName};

    use super::*;
    use crate::core::tests::pod;
    use crate::volumes::facts::tests::{data, facts};

    fn variable(name: &str, value: impl Into<EnvValue>) -> EnvVar {
        EnvVar { name: name.to_owned(), value: value.into() }
    }

    fn pairs(expected: &[(&str, &str)]) -> Variables {
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn source(kind: DataKind, name: &str, optional: bool) -> DataSource {
        DataSource { kind, name: name.to_owned(), optional }
    }

    #[test]
    fn the_pods_word_comes_last_and_sees_its_own_before_it() {
        let image = ["PATH=/opt".to_owned(), "A=image".to_owned(), "broken".to_owned(), "=x".to_owned()];
        let mut pod = pod(1, "web", &["main"]);
        pod.containers[0].env = vec![variable("A", "pod"), variable("B", "$(A)-$(C)-$(PATH)"), variable("C", "late")];
        let own = own(&pod, &pod.containers[0], &facts(Vec::new())).unwrap();
        let merged = merge(&image, &own, "web-0", "/root");
        let expected = [
            ("PATH", "/opt"),
            ("HOSTNAME", "web-0"),
            ("HOME", "/root"),
            ("A", "pod"),
            ("B", "pod-$(C)-$(PATH)"),
            ("C", "late"),
        ];
        assert_eq!(merged, pairs(&expected));
    }

    #[test]
    fn values_from_config_maps_secrets_and_the_pod_as_in_kubernetes() {
        let mut pod = pod(1, "web", &["main"]);
        let entries: [(&str, &[u8]); 4] =
            [("1st", b"no name"), ("MODE", b"$(NOT_EXPANDED)"), ("a.b", b"dots"), ("pixel.bin", b"\xff\0")];
        let facts = facts(vec![
            data(DataKind::ConfigMap, "app", &entries),
            data(DataKind::Secret, "login", &[("password", b"hush"), ("raw", b"\xff")]),
        ]);
        let container = &mut pod.containers[0];
        container.env_from = vec![
            EnvFrom { prefix: String::new(), source: source(DataKind::ConfigMap, "app", false) },
            EnvFrom { prefix: "P_".to_owned(), source: source(DataKind::ConfigMap, "app", false) },
            EnvFrom { prefix: String::new(), source: source(DataKind::Secret, "none", true) },
        ];
        let key = |name, key: &str, optional| EnvValue::Key {
            source: source(DataKind::Secret, name, optional),
            key: key.to_owned(),
        };
        let cpu = ResourceField { container: None, resource: ResourceName::LimitsCpu, divisor_millis: 1000 };
        container.env = vec![
            variable("PASSWORD", key("login", "password", false)),
            variable("NONE", key("login", "none", true)),
            variable("NODE", EnvValue::Field(PodField::NodeName)),
            variable("CPUS", EnvValue::Resource(cpu)),
            variable("URL", "$(MODE)/$(PASSWORD)@$(NODE)/$(NONE)"),
            variable("MODE", "over"),
        ];
        let expected = [
            ("MODE", "over"),
            ("a.b", "dots"),
            ("P_1st", "no name"),
            ("P_MODE", "$(NOT_EXPANDED)"),
            ("P_a.b", "dots"),
            ("PASSWORD", "hush"),
            ("NODE", "kiln-7"),
            ("CPUS", "2"),
            ("URL", "$(NOT_EXPANDED)/hush@kiln-7/$(NONE)"),
        ];
        assert_eq!(own(&pod, &pod.containers[0], &facts), Ok(pairs(&expected)));

        let refused = |pod: &Pod| own(pod, &pod.containers[0], &facts).unwrap_err().to_string();
        pod.containers[0].env = vec![variable("X", key("login", "none", false))];
        assert_eq!(refused(&pod), format!("couldn't find key none in Secret {}/login", pod.namespace));
        pod.containers[0].env = vec![variable("X", key("login", "raw", false))];
        assert!(refused(&pod).contains("is no text"));
        pod.containers[0].env_from[0].source.name = "gone".to_owned();
        assert_eq!(refused(&pod), "configmap \"gone\" not found");
    }

    #[test]
    fn references_expand_as_in_kubernetes() {
        let variables = pairs(&[("A", "1"), ("B", "$(A)")]);
        for (text, expected) in [
            ("", ""),
            ("$(A)", "1"),
            ("x$(A)y$(B)z", "x1y$(A)z"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(NOPE) $(A", "$(NOPE) $(A"),
            ("$A $", "$A $"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
        assert_eq!(expand_all("$(A)/$(C)/$(D)", &variables).1.as_deref(), Some("C"));
    }
}
