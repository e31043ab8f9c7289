//! Where images are fetched: what the device's configuration says of registries, turned into the sources of a pull.
//!
//! Owns the order: mirrors as they are listed, then the registry itself, with each login that is for the image. Files
//! are read anew for each pull, so that a password or a certificate can be changed at any time. It fetches nothing.

use std::io::Read;
use std::path::{Path, PathBuf};

use skeg_images::{Client, Endpoint, Login, Logins, Reference, Sources};

use super::chain;
use crate::config::{Config, Registry};

/// Largest file of certificate authorities and of credentials that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How this device reaches registries.
pub struct Registries {
    settings: Vec<Registry>,
    docker_config: Option<PathBuf>,
}

impl Registries {
    /// Takes what the configuration says.
    pub fn new(config: &Config) -> Registries {
        Registries { settings: config.registry.clone(), docker_config: config.docker_config.clone() }
    }

    /// Lists where an image can be fetched.
    ///
    /// # Errors
    /// A file that the configuration names cannot be used: which, and why.
    pub fn sources(&self, reference: &Reference) -> Result<Sources, String> {
        let logins = self.logins()?;
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

    fn logins(&self) -> Result<Logins, String> {
        let Some(path) = &self.docker_config else { return Ok(Logins::default()) };
        Logins::parse(&read(path)?).map_err(|error| format!("docker_config {}: {}", path.display(), chain(&error)))
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
    use super::*;

    fn registries(text: &str) -> Registries {
        Registries::new(&Config::parse(Path::new("skegd.toml"), text).unwrap())
    }

    fn names(text: &str, image: &str) -> Result<Vec<String>, String> {
        let sources = registries(text).sources(&image.parse().unwrap())?;
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
