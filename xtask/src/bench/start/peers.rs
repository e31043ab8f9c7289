//! Whole runs of command lines over one bundle: `crun run`, `runc run` and `skegd oci run`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use super::helper::Answers;
use super::microseconds;
use crate::build;

/// Answers a runtime's name with the microseconds of one `run` from spawn to reaped exit.
pub(super) fn answers(bundle: &Path, cgroup: &str) -> Answers {
    let (bundle, cgroup) = (bundle.to_owned(), cgroup.to_owned());
    let mut count = 0;
    Box::new(move |name| {
        count += 1;
        let mut command = match name {
            "crun" | "runc" => Command::new(name),
            "skegd" => {
                let mut command = Command::new(build::binary(&build::host_target(), "skegd"));
                command.arg("oci");
                command
            }
            _ => bail!("{name:?} is no peer"),
        };
        command.arg("--root").arg(bundle.join("state").join(name)).args(["run", "--bundle"]).arg(&bundle);
        command.arg(format!("{cgroup}-{count}")).stdin(Stdio::null());
        let began = Instant::now();
        let output = command.output().with_context(|| format!("{name} does not start"))?;
        let time = began.elapsed();
        if !output.status.success() {
            bail!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(vec![microseconds(time)])
    })
}
