//! `crun run` and `runc run` of the benchmark's root, in a mount namespace of their own: crun refuses a machine that
//! mounts both cgroup versions, so the second is taken out of its sight there. A helper process lives in that
//! namespace and runs one of them at each line that it reads; no other cost is in the measured time.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skeg_runtime::oci;

/// Takes the second cgroup version out of sight, where both are mounted, and becomes the helper.
const ENTER: &str = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"";

/// The helper, seen from the benchmark.
pub(super) struct Peers {
    helper: Child,
    answers: BufReader<ChildStdout>,
}

impl Peers {
    /// Writes the bundle and starts the helper.
    pub(super) fn start(bundle: &Path, spec: &oci::Spec, cgroup: &str) -> Result<Self> {
        let mut spec = spec.clone();
        // Debian's crun knows no newer one; nothing newer is in it.
        spec.set_version("1.0.2".to_owned());
        let linux = spec.linux_mut().as_mut().context("the default specification has a linux part")?;
        linux.set_cgroups_path(Some(format!("/{cgroup}-peer").into()));
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?).context("config.json")?;
        let own = std::env::current_exe()?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
        command.arg(own).arg("bench-peers").arg(bundle).arg(cgroup);
        let mut helper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("unshare")?;
        let answers = BufReader::new(helper.stdout.take().context("stdout was piped")?);
        Ok(Peers { helper, answers })
    }

    /// One whole run of a peer.
    pub(super) fn run(&mut self, name: &str) -> Result<Duration> {
        let questions = self.helper.stdin.as_mut().context("stdin was piped")?;
        writeln!(questions, "{name}").context("the peers' helper ended")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.trim().parse() {
            Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
            Err(_) => bail!("{name} run failed: {}", line.trim()),
        }
    }

    /// Ends the helper.
    pub(super) fn stop(mut self) -> Result<()> {
        drop(self.helper.stdin.take());
        let status = self.helper.wait()?;
        if !status.success() {
            bail!("the peers' helper: {status}");
        }
        Ok(())
    }
}

/// The helper: for each line with a peer's name, one run and one line with its nanoseconds or its error.
pub(crate) fn serve(bundle: &Path, cgroup: &str) -> Result<ExitCode> {
    let state = bundle.join("state");
    for (index, name) in std::io::stdin().lines().enumerate() {
        let name = name?;
        if !matches!(name.as_str(), "crun" | "runc") {
            bail!("{name:?} is no peer");
        }
        let mut command = Command::new(&name);
        command.arg("--root").arg(state.join(&name)).args(["run", "--bundle"]).arg(bundle);
        command.arg(format!("{cgroup}-{index}")).stdin(Stdio::null());
        let began = Instant::now();
        let output = command.output().with_context(|| format!("{name} does not start"))?;
        let time = began.elapsed();
        if output.status.success() {
            println!("{}", time.as_nanos());
        } else {
            println!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "));
        }
    }
    Ok(ExitCode::SUCCESS)
}
