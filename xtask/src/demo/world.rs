//! A controller and a device on this machine, each in a folder, process group and cgroup of its own, and everything
//! taken away again when dropped, whatever happened. The demo shows it; the benches measure it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{capture, shown};
use crate::ui::Ui;
use crate::{build, interrupt, machine};

/// How long the parts may take to start, and a pod to run, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// How long a stopped device may take to end its pods.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const PACE: Duration = Duration::from_millis(25);

/// The device's name.
pub(crate) const NODE: &str = "demo-board";

/// A controller and perhaps a device.
pub(crate) struct World {
    /// Bears the folder's, the cgroup's and thereby everybody's name.
    name: String,
    folder: TempDir,
    target: String,
    controller: Option<(Child, ChildStdout)>,
    init: Option<Child>,
    /// Host and port of the controller.
    pub(crate) address: String,
}

/// Waits until `probe` gives a value; `what` is said when it does not.
pub(crate) fn until<T>(
    ui: &mut Ui,
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        interrupt::check()?;
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if began.elapsed() > patience {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        ui.detail(&format!("waits for {what}: {:.0} s", began.elapsed().as_secs_f64()));
        std::thread::sleep(PACE);
    }
}

/// Reads a line of a child that may never say one.
fn first_line(stdout: ChildStdout) -> Result<(String, ChildStdout)> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut reader, mut line) = (BufReader::new(stdout), String::new());
        let result = reader.read_line(&mut line).map(|_| (line, reader.into_inner()));
        // Nobody listens any more after the timeout below.
        let _ = sender.send(result);
    });
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        interrupt::check()?;
        if let Ok(result) = receiver.recv_timeout(Duration::from_millis(100)) {
            return Ok(result?);
        }
    }
    bail!("it said nothing for {} s", PATIENCE.as_secs())
}

impl World {
    /// Makes the folder; starts nothing. Its name begins with `prefix` and holds this process' number.
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        // Of fixed width, so that no name begins with another.
        let name = format!("{prefix}{:07}", std::process::id());
        let folder = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir().context("temp folder")?;
        let target = build::host_target();
        Ok(World { name, folder, target, controller: None, init: None, address: String::new() })
    }

    /// A path in the world's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spawn(&self, name: &str, arguments: &[&str], stdout: impl Into<Stdio>) -> Result<Child> {
        let log = self.path(&format!("{name}.log"));
        let log = fs::File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(build::binary(&self.target, name));
        command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(log);
        // A group of its own, so that Ctrl-C reaches us alone and we stop things in their order.
        command.process_group(0);
        command.spawn().with_context(|| format!("{} does not start", shown(&command)))
    }

    /// Starts `skeg serve` on a free port of the loopback interface.
    pub(crate) fn start_controller(&mut self) -> Result<()> {
        let data = self.path("controller").display().to_string();
        let mut child = self.spawn("skeg", &["serve", "--listen", "127.0.0.1:0", "--data", &data], Stdio::piped())?;
        let said = child.stdout.take().context("stdout was piped").and_then(first_line);
        let (line, stdout) = match said {
            Ok(said) => said,
            Err(error) => {
                end(child, Signal::SIGKILL);
                return Err(error.context(format!("skeg serve:\n{}", self.log("skeg"))));
            }
        };
        let address = line.trim().strip_prefix("listening on ").map(str::to_owned);
        self.controller = Some((child, stdout));
        self.address = address.ok_or_else(|| anyhow!("skeg serve said {line:?}:\n{}", self.log("skeg")))?;
        Ok(())
    }

    /// Starts `skegd init`, which starts the agent.
    pub(crate) fn start_device(&mut self, token: &str) -> Result<()> {
        let config = self.path("skegd.toml");
        let text = format!(
            "node_name = {NODE:?}\nstate_dir = {:?}\nrun_dir = {:?}\ncgroup = {:?}\n\n[controller]\naddress = {:?}\njoin_token = {token:?}\n",
            self.path("state"),
            self.path("run"),
            self.name,
            self.address,
        );
        fs::write(&config, text).with_context(|| config.display().to_string())?;
        let config = config.display().to_string();
        let output = self.path("skegd.out");
        let output = fs::File::create(&output).with_context(|| output.display().to_string())?;
        self.init = Some(self.spawn("skegd", &["init", "--config", &config], output)?);
        Ok(())
    }

    /// The process number of `skegd init`.
    pub(crate) fn init_pid(&self) -> Option<i32> {
        self.init.as_ref().map(|child| child.id() as i32)
    }

    /// Fails when one of the two has ended, with its log.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let mut ended = None;
        if let Some((child, _)) = &mut self.controller {
            ended = child.try_wait()?.map(|status| ("skeg", status));
        }
        if let Some(child) = &mut self.init {
            ended = ended.or(child.try_wait()?.map(|status| ("skegd", status)));
        }
        match ended {
            Some((name, status)) => bail!("{name} ended by itself ({status}):\n{}", self.log(name)),
            None => Ok(()),
        }
    }

    /// The end of a program's own log.
    pub(crate) fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The operator's command.
    pub(crate) fn skeg(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(build::binary(&self.target, "skeg"));
        command.arg("--kubeconfig").arg(self.path("controller/admin.kubeconfig")).args(arguments);
        capture(&mut command)
    }

    /// The device's local command.
    pub(crate) fn skegd(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(build::binary(&self.target, "skegd"));
        command.args(arguments).arg("--config").arg(self.path("skegd.toml"));
        capture(&mut command)
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        self.skeg(&["apply", "-f", &path.display().to_string()])
    }

    /// Waits until the controller calls the device Ready.
    pub(crate) fn wait_for_node(&mut self, ui: &mut Ui) -> Result<()> {
        let result = until(ui, "the device to be Ready", PATIENCE, || {
            self.check_alive()?;
            let nodes = self.skeg(&["get", "nodes"])?;
            Ok(nodes.lines().any(|line| line.starts_with(NODE) && line.contains(" Ready")).then_some(()))
        });
        result.map_err(|error| error.context(format!("the device's log:\n{}", self.log("skegd"))))
    }

    /// A pod as the controller sees it.
    pub(crate) fn pod(&self, name: &str) -> Result<Value> {
        serde_json::from_str(&self.skeg(&["get", "pod", name, "-o", "json"])?).context("skeg get -o json gives JSON")
    }

    /// Waits until a pod is as it should be; gives it.
    pub(crate) fn wait_for_pod(
        &mut self,
        ui: &mut Ui,
        name: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let result = until(ui, &format!("pod {name}: {what}"), PATIENCE, || {
            self.check_alive()?;
            let pod = self.pod(name)?;
            Ok(holds(&pod).then_some(pod))
        });
        result.map_err(|error| {
            let seen = self.skeg(&["describe", "pod", name]).unwrap_or_else(|error| error.to_string());
            error.context(format!("{seen}\nthe device's log:\n{}", self.log("skegd")))
        })
    }

    /// The processes of a pod, by its uid.
    pub(crate) fn processes(&self, uid: &str) -> Vec<i32> {
        let mut found: Vec<i32> = machine::cgroups(&self.name)
            .into_iter()
            .flat_map(|folder| machine::walk(&folder.join(uid)))
            .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Pushes an OCI layout's tag `1` into the controller's registry with skopeo; gives the command as typed.
    pub(crate) fn push(&self, ui: &mut Ui, layout: &Path, name: &str) -> Result<String> {
        let certificates = self.path("certificates");
        fs::create_dir_all(&certificates).with_context(|| certificates.display().to_string())?;
        fs::copy(self.path("controller/tls/ca.pem"), certificates.join("ca.crt")).context("the controller's CA")?;
        let kubeconfig = fs::read_to_string(self.path("controller/admin.kubeconfig")).context("admin.kubeconfig")?;
        let token = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("token: "));
        let token = token.context("admin.kubeconfig holds no token")?.trim_matches('"');
        let (source, target) = (format!("oci:{}:1", layout.display()), format!("docker://{}/{name}:1", self.address));
        let mut command = Command::new("skopeo");
        // Debian's package may come without a policy file; the image is our own.
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-cert-dir"]).arg(&certificates);
        command.args(["--dest-creds", &format!("admin:{token}"), &source, &target]);
        crate::process::succeed(ui, &mut command, |line| Some(line.to_owned()))?;
        Ok(format!(
            "skopeo copy --dest-cert-dir {} --dest-creds admin:$TOKEN {source} {target}",
            certificates.display()
        ))
    }

    /// Stops the device, then the controller, and takes away what they should have: fails, naming it, when there
    /// was anything.
    pub(crate) fn stop(&mut self) -> Result<()> {
        // The device first: it reports the end of its pods to a controller that still listens.
        let mut forced = Vec::new();
        let children = [self.init.take(), self.controller.take().map(|(child, _)| child)];
        for (child, name) in children.into_iter().zip(["skegd init", "skeg serve"]) {
            if child.is_some_and(|child| !end(child, Signal::SIGTERM)) {
                forced.push(format!("{name} did not stop within {} s", STOP_PATIENCE.as_secs()));
            }
        }
        for (pid, command) in machine::processes(&self.name) {
            forced.push(format!("process {pid} {command}"));
            // It may just have ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let mut mounts = machine::mounts(&self.name)?;
        // The last mounted first.
        mounts.reverse();
        for mount in mounts {
            forced.push(format!("mount {}", mount.display()));
            nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH)
                .with_context(|| format!("umount {}", mount.display()))?;
        }
        for cgroup in machine::cgroups(&self.name) {
            forced.push(format!("cgroup {}", cgroup.display()));
            machine::remove_cgroup(&cgroup)?;
        }
        if !forced.is_empty() {
            bail!("left behind, and taken away by force:\n{}\n{}", forced.join("\n"), self.log("skegd"));
        }
        Ok(())
    }
}

/// Ends a child and waits for it; says whether it ended by this signal alone.
fn end(mut child: Child, signal: Signal) -> bool {
    // It may have ended already.
    let _ = kill(Pid::from_raw(child.id() as i32), signal);
    let began = Instant::now();
    while began.elapsed() < STOP_PATIENCE {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(PACE);
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

impl Drop for World {
    fn drop(&mut self) {
        // After a stop there is nothing left to do; without one, somebody failed and says so already.
        if let Err(error) = self.stop() {
            let _ = writeln!(std::io::stderr(), "clean-up: {error:#}");
        }
    }
}
