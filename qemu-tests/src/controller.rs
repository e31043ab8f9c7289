//! A controller on this machine's loopback and the operator's commands. It ends with the value.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::machine::PATIENCE;
use crate::succeed;

/// A running `skeg serve`.
pub struct Controller {
    process: Child,
    program: PathBuf,
    folder: PathBuf,
    address: String,
}

impl Controller {
    /// Starts `program` with its data in `folder`.
    pub fn start(program: &Path, folder: &Path) -> Result<Controller> {
        fs::create_dir_all(folder)?;
        let mut process = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("log"))?)
            .spawn()
            .with_context(|| format!("{} does not start", program.display()))?;
        let stdout = process.stdout.take();
        let mut controller =
            Controller { process, program: program.to_owned(), folder: folder.to_owned(), address: String::new() };
        let mut line = String::new();
        BufReader::new(stdout.context("its output is piped")?).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on ");
        let address = address.with_context(|| format!("the controller said {line:?}\n{}", controller.log()))?;
        controller.address = address.to_owned();
        Ok(controller)
    }

    /// Returns the address that it listens on, with its port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the port that it listens on.
    pub fn port(&self) -> Result<u16> {
        let port = self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.with_context(|| format!("{} names no port", self.address))
    }

    /// Returns what it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.join("data/admin.kubeconfig")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// Runs an operator's command; returns what it printed.
    pub fn skeg(&self, arguments: &[&str]) -> Result<String> {
        succeed(self.command().args(arguments)).with_context(|| format!("---- log of the controller\n{}", self.log()))
    }

    /// Applies an object.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let mut child = self
            .command()
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("its input is piped")?.write_all(object.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("apply: {}\n{object:#}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Reads a pod.
    pub fn pod(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.skeg(&["get", "pod", name, "-o", "json"])?)?)
    }

    /// Waits until a command succeeds and what it prints `holds`; returns it.
    pub fn wait_for(&self, arguments: &[&str], holds: impl Fn(&str) -> bool) -> Result<String> {
        let begin = Instant::now();
        loop {
            let last = match succeed(self.command().args(arguments)) {
                Ok(text) if holds(&text) => return Ok(text),
                Ok(text) => text,
                // A node may be out of reach for a moment.
                Err(error) => format!("{error:#}"),
            };
            if begin.elapsed() > PATIENCE {
                bail!("skeg {arguments:?} never showed what was expected; last:\n{last}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a pod `holds`; returns it.
    pub fn wait_for_pod(&self, name: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let text = self.wait_for(&["get", "pod", name, "-o", "json"], |text| {
            serde_json::from_str(text).is_ok_and(|pod| holds(&pod))
        })?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Returns the folder that holds all of its data.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Pushes an image, with all its architectures, into the controller's registry by Debian's skopeo. `source` is
    /// what skopeo calls it, such as `oci:FOLDER:TAG`.
    pub fn push(&self, source: &str, name: &str) -> Result<()> {
        let certificates = self.folder.join("certificates");
        fs::create_dir_all(&certificates)?;
        fs::copy(self.folder.join("data/tls/ca.pem"), certificates.join("ca.crt"))?;
        let kubeconfig = fs::read_to_string(self.kubeconfig())?;
        let token = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("token: "));
        let token = token.context("the kubeconfig holds no token")?.trim_matches('"');
        succeed(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--all", "--dest-cert-dir"])
                .arg(&certificates)
                .arg(format!("--dest-creds=admin:{token}"))
                .arg(source)
                .arg(format!("docker://{}/{name}", self.address)),
        )?;
        Ok(())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
