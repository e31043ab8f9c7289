//! Helper processes of the start benchmark, each in a mount namespace that shows one version of cgroups only: crun
//! refuses a machine that mounts both, and what a version costs is a figure of its own. A helper answers each line
//! that it reads with one line of numbers; no cost of the benchmark itself is in a measured time.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{peers, resident};

/// The version of cgroups that a helper sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// The hierarchies of version 1, where this machine has them; everything else as it is.
    One,
    /// Nothing but the hierarchy of version 2.
    Two,
}

impl View {
    /// What the helper's mount namespace runs before the helper.
    fn enter(self) -> &'static str {
        match self {
            View::One => "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"",
            View::Two => {
                "set -e; if ! [ -e /sys/fs/cgroup/cgroup.controllers ]; then umount --recursive /sys/fs/cgroup; \
                 mount -t cgroup2 none /sys/fs/cgroup; fi; exec \"$@\""
            }
        }
    }
}

/// Turns a question into numbers.
pub(super) type Answers = Box<dyn FnMut(&str) -> Result<Vec<f64>>>;

/// What a helper does.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// Starts containers in its own process, as the agent does.
    Resident,
    /// Runs whole command lines of runtimes.
    Peers,
}

/// A helper, seen from the benchmark.
pub(super) struct Helper {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts a helper over the benchmark's folder.
    pub(super) fn start(kind: Kind, view: View, folder: &Path, cgroup: &str) -> Result<Self> {
        let kind = kind.to_possible_value().context("every kind has a name")?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", view.enter(), "sh"]);
        command.arg(std::env::current_exe()?).args(["bench-helper", kind.get_name()]).arg(folder).arg(cgroup);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("unshare")?;
        let answers = BufReader::new(process.stdout.take().context("stdout was piped")?);
        Ok(Helper { process, answers })
    }

    /// Asks, and waits for the numbers.
    pub(super) fn ask<const COUNT: usize>(&mut self, question: &str) -> Result<[f64; COUNT]> {
        let questions = self.process.stdin.as_mut().context("stdin was piped")?;
        writeln!(questions, "{question}").context("the helper ended")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let numbers: Option<Vec<f64>> = line.split_whitespace().map(|word| word.parse().ok()).collect();
        match numbers.map(<[f64; COUNT]>::try_from) {
            Some(Ok(numbers)) => Ok(numbers),
            _ => bail!("{question}: {}", line.trim()),
        }
    }

    /// Ends the helper.
    pub(super) fn stop(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        if !status.success() {
            bail!("a helper of the benchmark: {status}");
        }
        Ok(())
    }
}

/// The helper's side: a line of numbers, or of the error, for each question.
pub(crate) fn serve(kind: Kind, folder: &Path, cgroup: &str) -> Result<ExitCode> {
    let mut answer: Answers = match kind {
        Kind::Resident => resident::answers(folder, cgroup)?,
        Kind::Peers => peers::answers(folder, cgroup),
    };
    for question in std::io::stdin().lines() {
        match answer(&question?) {
            Ok(numbers) => println!("{}", numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")),
            Err(error) => println!("{}", format!("{error:#}").replace('\n', "; ")),
        }
    }
    Ok(ExitCode::SUCCESS)
}
