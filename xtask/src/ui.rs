//! What a person sees: numbered steps with their time, a spinner on a terminal and plain lines elsewhere, and the
//! commands that a user would type with what they print.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often plain output says that a long step still goes on.
const PLAIN_PACE: Duration = Duration::from_secs(20);

/// Prints steps; one a program.
pub(crate) struct Ui {
    spinner: Option<ProgressBar>,
    /// Standard output belongs to a machine: people read standard error.
    to_error: bool,
    began: Instant,
    step_began: Instant,
    last_plain: Instant,
    number: usize,
}

impl Ui {
    /// A user interface for this terminal or file.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("    {spinner} {wide_msg}");
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Ui { spinner, to_error: false, began: now, step_began: now, last_plain: now, number: 0 }
    }

    /// The same on standard error, where standard output is for a machine.
    pub(crate) fn beside_json() -> Self {
        let mut ui = Ui::new();
        ui.to_error = true;
        ui
    }

    fn print(&self, text: &str) {
        let write = || {
            let mut out: Box<dyn Write> =
                if self.to_error { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) };
            // A closed pipe is the reader's choice, no fault of the step.
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        };
        match &self.spinner {
            Some(spinner) => spinner.suspend(write),
            None => write(),
        }
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, what: &str) {
        self.number += 1;
        self.step_began = Instant::now();
        self.last_plain = self.step_began;
        self.print(&format!("{:>2}. {what}", self.number));
        if let Some(spinner) = &self.spinner {
            spinner.set_message(String::new());
        }
    }

    /// Says how the step ended, with its time.
    pub(crate) fn done(&mut self, how: &str) {
        self.print(&format!("    {how} ({:.1} s)", self.step_began.elapsed().as_secs_f64()));
    }

    /// Time since the step began.
    pub(crate) fn step_time(&self) -> Duration {
        self.step_began.elapsed()
    }

    /// Shows what a long step is at: at once on a terminal, now and then in plain output.
    pub(crate) fn detail(&mut self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(text.to_owned()),
            None if self.last_plain.elapsed() >= PLAIN_PACE => {
                self.last_plain = Instant::now();
                self.print(&format!("    … {text}"));
            }
            None => {}
        }
    }

    /// Prints lines under the step.
    pub(crate) fn lines(&self, text: &str) {
        for line in text.lines() {
            self.print(&format!("    {line}"));
        }
    }

    /// Prints a line at the margin.
    pub(crate) fn plain(&self, text: &str) {
        self.print(text);
    }

    /// Total time so far, for people.
    pub(crate) fn total(&self) -> String {
        let seconds = self.began.elapsed().as_secs();
        if seconds < 60 {
            format!("{:.1} s", self.began.elapsed().as_secs_f64())
        } else {
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
