//! Where images are fetched: what the device's configuration says of registries, and the secrets that pods name for
//! their pulls, turned into the sources of a pull.
//!
//! Owns the order: mirrors as they are listed, then the registry itself, with each login that is for the image. Files
//! are read anew for each pull, so that a password or a certificate can be changed at any time. Secrets of pods are kept in memory only. It fetches nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use skeg_images::{Client, Endpoint, Login, Logins, Reference, Sources};
use skeg_protocol::message::PullSecrets;
use skeg_protocol::{Label, Name, Pod};

use super::chain;
use crate::config::{Config, Registry};

/// Largest file of certificate authorities and of credentials that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How this device reaches registries.
pub struct Registries {
    settings: Vec<Registry>,
    docker_config: Option<PathBuf>,
    secrets: RefCell<Option<Secrets>>,
}

/// Logins by the namespace and name of their secret, or what is wrong with it.
type Secrets = BTreeMap<(Label, Name), Result<Logins, String>>;

impl Registries {
    /// Takes what the configuration says.
    pub fn new(config: &Config) -> Registries {
        Registries {
            settings: config.registry.clone(),
            docker_config: config.docker_config.clone(),
            secrets: RefCell::default(),
        }
    }

    /// Takes the secrets of this device's pods in place of those before.
    pub fn learn(&self, told: PullSecrets) {
        let parsed = told.secrets.into_iter().map(|secret| {
            let logins = Logins::parse(secret.config.as_bytes()).map_err(|error| chain(&error));
            ((secret.namespace, secret.name), logins)
        });
        self.secrets.replace(Some(parsed.collect()));
    }

    /// Tells which of a pod's secrets give no logins, and why.
    pub fn missing(&self, pod: &Pod) -> Vec<String> {
        let secrets = self.secrets.borrow();
        let obstacle = |name: &Name| {
            let Some(secrets) = secrets.as_ref() else {
                return Some(format!("pull secret {name:?} has not come from the controller yet"));
            };
            match secrets.get(&(pod.namespace.clone(), name.clone())) {
                Some(Ok(_)) => None,
                Some(Err(problem)) => Some(format!("pull secret {name:?} is of no use: {problem}")),
                None => {
                    Some(format!("the controller has no usable pull secret {name:?} in namespace {:?}", pod.namespace))
                }
            }
        };
        pod.image_pull_secrets.iter().filter_map(obstacle).collect()
    }

    /// Lists where an image can be fetched; for a pod, its secrets are used before equally fitting credentials of the
    /// configuration.
    ///
    /// # Errors
    /// A file that the configuration names cannot be used: which, and why.
    pub fn sources(&self, reference: &Reference, pod: Option<&Pod>) -> Result<Sources, String> {
        let logins = self.logins(pod)?;
        let mut found = Vec::new();
        let mirrors = self.of(reference.registry()).into_iter().flat_map(|registry| &registry.mirrors);
        for mirror in mirrors {
            let there = format!("{mirror}/{}", reference.repository());
            let there: Reference = there.parse().map_err(|error| format!("mirror {mirror:?}: {}", chain(&error)))?;
            found.push(self.source(&there, logins.matching(&there).into_iter().next())?);
        }
        let own = logins.matching(reference);
        let first = self.source(reference, own.first().cloned())?;
        let others = own.into_iter().skip(1).map(|login| self.source(reference, Some(login)));
        let all = found.into_iter().chain([first]).map(Ok).chain(others).collect::<Result<Vec<_>, String>>()?;
        let mut all = all.into_iter();
        let first = all.next().ok_or("no registry is left")?;
        Ok(Sources::new(first, all))
    }

    fn of(&self, host: &str) -> Option<&Registry> {
        self.settings.iter().find(|registry| registry.host == host)
    }

    fn source(&self, reference: &Reference, login: Option<Login>) -> Result<(Client, String), String> {
        let host = reference.registry();
        let settings = self.of(host);
        let plain = settings.is_some_and(|registry| registry.plain_http);
        let mut endpoint = Endpoint::for_registry(host, plain).map_err(|error| chain(&error))?;
        if let Some(path) = settings.and_then(|registry| registry.ca_file.as_deref()) {
            endpoint = endpoint
                .with_authorities(&read(path)?)
                .map_err(|error| format!("registry {host}: ca_file {}: {}", path.display(), chain(&error)))?;
        }
        Ok((Client::with_login(endpoint, login), reference.repository().to_owned()))
    }

    fn logins(&self, pod: Option<&Pod>) -> Result<Logins, String> {
        let mut logins = Logins::default();
        if let (Some(pod), Some(secrets)) = (pod, self.secrets.borrow().as_ref()) {
            for name in &pod.image_pull_secrets {
                if let Some(Ok(found)) = secrets.get(&(pod.namespace.clone(), name.clone())) {
                    logins.extend(found.clone());
                }
            }
        }
        let Some(path) = &self.docker_config else { return Ok(logins) };
        let own = Logins::parse(&read(path)?);
        logins.extend(own.map_err(|error| format!("docker_config {}: {}", path.display(), chain(&error)))?);
        Ok(logins)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let mut bytes = Vec::new();
    // One byte more than is allowed, so that a larger file does not pass as a shorter one.
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(format!("{} has more than {MAX_FILE} bytes", path.display())),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use skeg_protocol::message::PullSecret;

    use super::*;

    fn registries(text: &str) -> Registries {
        Registries::new(&Config::parse(Path::new("skegd.toml"), text).unwrap())
    }

    fn names(text: &str, image: &str) -> Result<Vec<String>, String> {
        let sources = registries(text).sources(&image.parse().unwrap(), None)?;
        let name = |(client, repository): &(Client, String)| format!("{}/{repository}", client.registry());
        Ok(sources.list().iter().map(name).collect())
    }

    #[test]
    fn mirrors_come_before_the_registry_and_each_login_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let json = r#"{"auths": {"docker.io": {"auth": "YTph"}, "docker.io/library": {"auth": "Yjpi"}}}"#;
        std::fs::write(&file, json).unwrap();
        let text = format!(
            "docker_config = {file:?}\n[[registry]]\nhost = \"docker.io\"\nmirrors = [\"cache.lan:5000/hub\", \"mirror.gcr.io\"]\n\
             [[registry]]\nhost = \"cache.lan:5000\"\nplain_http = true\n"
        );
        let wanted = ["cache.lan:5000/hub/library/nginx", "mirror.gcr.io/library/nginx"];
        let own = "docker.io/library/nginx";
        assert_eq!(names(&text, "nginx").unwrap(), [wanted[0], wanted[1], own, own]);
        assert_eq!(names(&text, "ghcr.io/a/b:1").unwrap(), ["ghcr.io/a/b"]);
    }

    #[test]
    fn a_pod_has_the_logins_of_its_own_secrets_and_is_told_which_are_missing() {
        let registries = registries("");
        let mut pod = crate::core::tests::pod(1, "a", &["m"]);
        pod.image_pull_secrets = vec!["one".try_into().unwrap(), "two".try_into().unwrap()];
        let logins = |pod: &Pod| {
            let logins = registries.logins(Some(pod)).unwrap();
            logins.matching(&"a.io/x".parse().unwrap()).len()
        };
        let yet = registries.missing(&pod);
        assert!(yet.len() == 2 && yet[0].contains("\"one\" has not come"), "{yet:?}");
        let secret = |namespace: &str, name: &str, config: &str| PullSecret {
            namespace: namespace.try_into().unwrap(),
            name: name.try_into().unwrap(),
            config: config.to_owned(),
        };
        let good = r#"{"auths": {"a.io": {"auth": "dXNlcjpodXNo"}}}"#;
        let elsewhere = secret("elsewhere", "two", good);
        registries.learn(PullSecrets { secrets: vec![secret(&pod.namespace, "one", good), elsewhere] });
        assert_eq!((logins(&pod), registries.logins(None)), (1, Ok(Logins::default())));
        let gone = registries.missing(&pod);
        assert!(gone.len() == 1 && gone[0].contains("no usable pull secret \"two\""), "{gone:?}");
        registries.learn(PullSecrets { secrets: vec![secret(&pod.namespace, "one", "hush")] });
        let bad = registries.missing(&pod);
        assert!(bad[0].contains("\"one\" is of no use") && !bad[0].contains("hush"), "{bad:?}");
        assert_eq!(logins(&pod), 0);
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, gone) = (folder.path().join("ca.pem"), folder.path().join("gone.json"));
        std::fs::write(&ca, "no certificate").unwrap();
        let text = format!("[[registry]]\nhost = \"a.lan\"\nca_file = {ca:?}\n");
        let error = names(&text, "a.lan/x").unwrap_err();
        assert!(error.starts_with("registry a.lan: ca_file") && error.ends_with("it holds no certificate"), "{error}");
        let error = names(&format!("docker_config = {gone:?}\n"), "nginx").unwrap_err();
        assert!(error.contains("gone.json cannot be read: No such file"), "{error}");
        std::fs::write(&gone, r#"{"credsStore": "desktop"}"#).unwrap();
        let error = names(&format!("docker_config = {gone:?}\n"), "nginx").unwrap_err();
        assert!(error.contains("gone.json: it leaves credentials to the helper program \"desktop\""), "{error}");
    }
}
