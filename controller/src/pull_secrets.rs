//! Secrets that pods name for their pulls: which there are, what they hold, and which of them a node needs.
//!
//! Owns the way from a Secret object to logins and to what a device is sent. It checks no object (the API does) and
//! shows nothing of a secret but its name.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use skeg_images::Logins;
use skeg_protocol::Pod;
use skeg_protocol::limits::{MAX_FRAME, MAX_PULL_SECRET};
use skeg_protocol::message::{PullSecret, PullSecrets};

use crate::store::{Database, Key, Store, StoreError};

/// Kind of the objects.
pub(crate) const KIND: &str = "Secret";
/// Bytes of a frame that are left for what is not a secret's text.
const FRAME_ROOM: usize = 1024;

/// The Docker `config.json` that a Secret of one of the two types for registries holds.
///
/// # Errors
/// Why there is none: a field, and what is wrong with it; never its content.
pub(crate) fn config(secret: &Value) -> Result<String, (&'static str, String)> {
    let (field, key) = match secret["type"].as_str() {
        Some("kubernetes.io/dockerconfigjson") => ("data[.dockerconfigjson]", ".dockerconfigjson"),
        Some("kubernetes.io/dockercfg") => ("data[.dockercfg]", ".dockercfg"),
        _ => return Err(("type", "is neither kubernetes.io/dockerconfigjson nor kubernetes.io/dockercfg".to_owned())),
    };
    let bad = |problem: String| (field, problem);
    let text = secret["data"][key].as_str().ok_or_else(|| bad("is required".to_owned()))?;
    let bytes = STANDARD.decode(text).map_err(|_| bad("must be base64".to_owned()))?;
    let mut config = String::from_utf8(bytes).map_err(|_| bad("must be text".to_owned()))?;
    if key == ".dockercfg" {
        // The older form is what the newer one has in "auths".
        config = format!("{{\"auths\":{config}}}");
    }
    if config.len() > MAX_PULL_SECRET {
        return Err(bad(format!("has {} bytes, at most {MAX_PULL_SECRET} are possible", config.len())));
    }
    Logins::parse(config.as_bytes()).map_err(|error| bad(error.to_string()))?;
    Ok(config)
}

/// The logins of some secrets of a namespace, and for each secret that gives none the reason.
pub(crate) fn logins<'a>(
    store: &Database,
    namespace: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(Logins, Vec<String>), StoreError> {
    let (mut logins, mut missing) = (Logins::default(), Vec::new());
    for name in names {
        let Some(secret) = store.get(&Key::new(KIND, namespace, name))? else {
            missing.push(format!("pull secret {name:?} does not exist in namespace {namespace:?}"));
            continue;
        };
        let parsed = config(&secret)
            .and_then(|config| Logins::parse(config.as_bytes()).map_err(|error| ("data", error.to_string())));
        match parsed {
            Ok(parsed) => logins.extend(parsed),
            Err((field, problem)) => missing.push(format!("pull secret {name:?} is of no use: {field} {problem}")),
        }
    }
    Ok((logins, missing))
}

/// What a node's device is to know: of the secrets that its pods name, those that exist and are usable, as many as fit
/// into one frame.
pub(crate) fn of_node(store: &Database, node: &str, pods: &[Pod]) -> Result<PullSecrets, StoreError> {
    let names = pods.iter().flat_map(|pod| pod.image_pull_secrets.iter().map(|name| (&pod.namespace, name)));
    let (mut secrets, mut room) = (Vec::new(), MAX_FRAME - FRAME_ROOM);
    for (namespace, name) in names.collect::<BTreeSet<_>>() {
        let Some(secret) = store.get(&Key::new(KIND, namespace, name))? else { continue };
        let Ok(config) = config(&secret) else { continue };
        // Lengths of three texts take at most 3 bytes each.
        match room.checked_sub(config.len() + namespace.len() + name.len() + 9) {
            Some(rest) => room = rest,
            None => {
                log::warn!("node {node}: its pods name more pull secrets than fit; {namespace}/{name} is left out");
                continue;
            }
        }
        secrets.push(PullSecret { namespace: namespace.clone(), name: name.clone(), config });
    }
    Ok(PullSecrets { secrets })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(kind: &str, key: &str, text: &str) -> Value {
        json!({"type": kind, "data": {key: STANDARD.encode(text)}})
    }

    #[test]
    fn both_forms_give_the_same_config_and_others_say_why_they_give_none() {
        let auths = r#"{"a.io":{"auth":"dXNlcjpodXNo"}}"#;
        let whole = format!("{{\"auths\":{auths}}}");
        let (new, old) = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg");
        assert_eq!(config(&secret(new, ".dockerconfigjson", &whole)).as_ref(), Ok(&whole));
        assert_eq!(config(&secret(old, ".dockercfg", auths)).as_ref(), Ok(&whole));
        let long = format!("{{\"auths\":{{}},\"x\":\"{}\"}}", "x".repeat(MAX_PULL_SECRET));
        for (secret, part) in [
            (secret("Opaque", ".dockerconfigjson", &whole), "neither"),
            (secret(new, "config.json", &whole), "is required"),
            (secret(new, ".dockerconfigjson", "hush"), "line 1"),
            (secret(new, ".dockerconfigjson", &long), "at most 65536"),
            (json!({"type": new, "data": {".dockerconfigjson": "hush!"}}), "must be base64"),
        ] {
            let (_, problem) = config(&secret).unwrap_err();
            assert!(problem.contains(part) && !problem.contains("hush"), "{problem}");
        }
    }
}
