//! A controller in a process of its own, with a folder of its own, and what the kernel says about it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A running controller; dropped, it is killed.
pub(super) struct Controller {
    child: Child,
    /// Where it listens.
    pub(super) address: SocketAddr,
}

impl Controller {
    /// Starts this very program as a controller.
    pub(super) fn start(data: &Path, listen: &str, heartbeat: u16) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command.args(["serve", "--listen", listen, "--heartbeat", &heartbeat.to_string(), "--data"]).arg(data);
        command.env("RUST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting a controller")?;
        let output = child.stdout.take().context("the controller has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("listening to the controller")?;
        let address = line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok());
        Ok(Controller { address: address.with_context(|| format!("the controller said {line:?}"))?, child })
    }

    /// Kills it, as a power cut does.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing the controller")?;
        self.child.wait().context("waiting for the controller")?;
        Ok(())
    }

    /// Private memory in KiB (`Private_Dirty` of /proc/PID/smaps_rollup): what nobody else pays for.
    pub(super) fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
        let number = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok());
        number.with_context(|| format!("{path} has no Private_Dirty"))
    }

    /// Processor time so far in milliseconds (utime and stime of /proc/PID/stat, 10 ms a tick).
    pub(super) fn processor(&self) -> Result<u64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = (ticks(11), ticks(12));
        Ok((user.context("no utime")? + system.context("no stime")?) * 10)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.kill();
    }
}
