//! Running programs: with their output shown as progress and kept, ended when the person asks to stop. It starts
//! nothing that outlives the call.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::interrupt;
use crate::ui::Ui;

/// Most lines of a program's output that are kept.
const MAX_LINES: usize = 200_000;
/// Lines that are shown of a program that failed.
const TAIL: usize = 60;

/// How a program ended and what it printed, both outputs in the order of arrival.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) lines: Vec<String>,
}

impl Finished {
    /// The end of the output.
    pub(crate) fn tail(&self) -> String {
        self.lines[self.lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// A command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn forward(source: impl Read + Send + 'static, lines: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if lines.send(text).is_err() {
                return;
            }
        }
    });
}

/// Runs a command to its end; `progress` turns a line of output into what is shown, `None` shows nothing new.
pub(crate) fn run(
    ui: &mut Ui,
    command: &mut Command,
    mut progress: impl FnMut(&str) -> Option<String>,
) -> Result<Finished> {
    interrupt::check()?;
    let name = shown(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{name} does not start"))?;
    let (sender, receiver) = mpsc::channel();
    forward(child.stdout.take().context("stdout was piped")?, sender.clone());
    forward(child.stderr.take().context("stderr was piped")?, sender);
    let (mut lines, mut last) = (Vec::new(), String::new());
    loop {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                if let Some(text) = progress(&line) {
                    last = text;
                }
                ui.detail(&last);
                if lines.len() < MAX_LINES {
                    lines.push(line);
                }
            }
            Err(RecvTimeoutError::Timeout) => ui.detail(&format!("{last} {} s", ui.step_time().as_secs())),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if interrupt::noted() {
            // It may have got the signal from the terminal too; a second one does no harm.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
            child.wait()?;
            bail!("interrupted while {name} ran");
        }
    }
    Ok(Finished { status: child.wait()?, lines })
}

/// As [`run`], and fails with the end of the output when the program fails.
pub(crate) fn succeed(
    ui: &mut Ui,
    command: &mut Command,
    progress: impl FnMut(&str) -> Option<String>,
) -> Result<Finished> {
    let finished = run(ui, command, progress)?;
    if !finished.status.success() {
        bail!("{} failed ({}):\n{}", shown(command), finished.status, finished.tail());
    }
    Ok(finished)
}

/// Runs a short command and gives its standard output.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    interrupt::check()?;
    let name = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{name} does not start"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
