//! kubeconfig files: written for the admin, read by the commands. Only what skeg's own files hold is understood:
//! a CA, a server and a bearer token.

use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// How to reach a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// `https://host:port`.
    pub(super) server: String,
    /// PEM.
    pub(super) ca: String,
    pub(super) token: String,
    /// Namespace of the context.
    pub(super) namespace: Option<String>,
}

/// Writes a user's kubeconfig.
pub(super) fn render(server: &str, ca_pem: &str, user: &str, token: &str) -> String {
    let ca = STANDARD.encode(ca_pem);
    // A JSON text is a YAML text, whatever the name holds.
    let user = serde_json::Value::from(user);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: skeg\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    token: {token}\ncontexts:\n\
         - name: skeg\n  context:\n    cluster: skeg\n    user: {user}\ncurrent-context: skeg\n"
    )
}

fn named<'a>(config: &'a Value, list: &str, name: &str, inner: &str) -> Result<&'a Value> {
    let items = config[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = items.iter().find(|item| item["name"] == name).map(|item| &item[inner]);
    found.with_context(|| format!("{list} has no entry named {name:?}"))
}

/// Reads the current context of a kubeconfig.
pub(super) fn load(path: &Path) -> Result<Access> {
    let text = std::fs::read_to_string(path)?;
    let config = skeg_kube::yaml::parse_one(&text)?;
    let current = config["current-context"].as_str().context("current-context is missing")?;
    let context = named(&config, "contexts", current, "context")?;
    let cluster = named(&config, "clusters", context["cluster"].as_str().unwrap_or_default(), "cluster")?;
    let user = named(&config, "users", context["user"].as_str().unwrap_or_default(), "user")?;
    let ca = match (cluster["certificate-authority-data"].as_str(), cluster["certificate-authority"].as_str()) {
        (Some(data), _) => {
            String::from_utf8(STANDARD.decode(data.trim()).context("certificate-authority-data is no base64")?)?
        }
        (None, Some(file)) => std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?,
        (None, None) => bail!("the cluster has no certificate-authority-data"),
    };
    Ok(Access {
        server: cluster["server"].as_str().context("the cluster has no server")?.to_owned(),
        ca,
        token: user["token"].as_str().context("the user has no token")?.to_owned(),
        namespace: context["namespace"].as_str().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), render("https://[::1]:7443", "-----BEGIN", "ada: x", "t0k")).unwrap();
        let access = load(file.path()).unwrap();
        let expected = Access {
            server: "https://[::1]:7443".into(),
            ca: "-----BEGIN".into(),
            token: "t0k".into(),
            namespace: None,
        };
        assert_eq!(access, expected);
    }
}
