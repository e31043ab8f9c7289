//! Debian's registry for tests, on a port of the kernel's choice, with its data in a temporary folder.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running registry; ended when it is dropped.
pub struct RealRegistry {
    process: Child,
    /// `127.0.0.1:port`.
    pub address: String,
    _folder: tempfile::TempDir,
}

impl RealRegistry {
    /// Starts one; `more` is added to the `http` part of its configuration and after it, indented by the caller.
    pub fn start(more: &str) -> Result<RealRegistry, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let config = folder.path().join("config.yml");
        let data: &Path = &folder.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{more}",
            data.display()
        );
        fs::write(&config, text).map_err(|error| error.to_string())?;
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("docker-registry cannot be started: {error}"))?;
        let stderr = process.stderr.take().ok_or("stderr was piped")?;
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let address = lines.by_ref().find_map(|line| {
            let rest = line.split("listening on ").nth(1)?;
            Some(rest.chars().take_while(|character| !matches!(character, '"' | ' ' | ',')).collect())
        });
        // The pipe is read to its end, so that the registry never waits for it.
        std::thread::spawn(move || lines.for_each(drop));
        let mut registry = RealRegistry { process, address: String::new(), _folder: folder };
        registry.address = address.ok_or("docker-registry ended before it listened")?;
        Ok(registry)
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
