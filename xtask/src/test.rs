//! `cargo xtask test`: every check and every test in order, one line a step, counted at the end. It owns the list
//! of steps and how their outcomes are counted; what is tested stands beside the code.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::build::{self, TARGETS, cargo, cargo_progress};
use crate::machine::Snapshot;
use crate::process::{self, Finished};
use crate::ui::Ui;
use crate::{fuzz, interrupt, needs, root, sim, tidy};

/// Largest static binary in bytes (docs: promises in numbers).
const MAX_BINARY: u64 = 8 << 20;

/// What came out of a step.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// For the step's line.
    note: String,
    /// For the end: what failed, each with what to look at.
    failures: Vec<String>,
}

impl Outcome {
    /// A step that is one check.
    fn check(result: Result<String>) -> Self {
        match result {
            Ok(note) => Outcome { passed: 1, note, ..Outcome::default() },
            Err(error) => Outcome {
                failed: 1,
                note: "failed".to_owned(),
                failures: vec![format!("{error:#}")],
                ..Outcome::default()
            },
        }
    }
}

/// One step.
struct Step {
    name: &'static str,
    what: &'static str,
    /// A step that must have passed, or not have been asked for.
    after: Option<&'static str>,
    run: fn(&mut Ui) -> Outcome,
}

const STEPS: &[Step] = &[
    Step { name: "needs", what: "Installs what the tests need", after: None, run: |ui| Outcome::check(install(ui)) },
    Step {
        name: "tidy",
        what: "Checks edges, module docs, links, versions and licences",
        after: None,
        run: |_| Outcome::check(tidy::check()),
    },
    Step { name: "format", what: "Checks the format", after: None, run: |ui| Outcome::check(format(ui)) },
    Step { name: "clippy", what: "Checks with clippy", after: None, run: |ui| Outcome::check(clippy(ui)) },
    Step { name: "docs", what: "Builds the documentation", after: None, run: |ui| Outcome::check(documentation(ui)) },
    Step { name: "tests", what: "Runs unit, property and privileged tests", after: None, run: workspace_tests },
    Step {
        name: "sim",
        what: "Simulates the link from fixed seeds",
        after: None,
        run: |_| Outcome::check(sim::smoke()),
    },
    Step {
        name: "fuzz",
        what: "Fuzzes the parsers of outside bytes from a fixed seed",
        after: None,
        run: |ui| Outcome::check(fuzz::smoke(ui)),
    },
    Step {
        name: "static",
        what: "Builds static binaries for both architectures",
        after: None,
        run: |ui| Outcome::check(static_binaries(ui)),
    },
    Step {
        name: "demo",
        what: "Runs the demo twice and compares the machine",
        after: Some("static"),
        run: |ui| Outcome::check(demo_twice(ui)),
    },
    Step {
        name: "qemu",
        what: "Boots boards under QEMU and runs whole fleets",
        after: Some("static"),
        run: qemu_tests,
    },
];

fn install(ui: &mut Ui) -> Result<String> {
    let needs = [
        needs::BUILD,
        needs::CROSS,
        needs::DEMO,
        needs::FUZZ,
        needs::ENGINES,
        needs::BOARDS,
        needs::REGISTRY,
        needs::COMPOSE,
    ];
    needs::packages(ui, &needs)?;
    needs::components(ui, &["rustfmt", "clippy"])?;
    needs::targets(ui, &TARGETS)?;
    Ok("all there".to_owned())
}

fn format(ui: &mut Ui) -> Result<String> {
    process::succeed(ui, cargo().args(["fmt", "--all", "--check"]), |_| None)?;
    Ok("formatted".to_owned())
}

fn clippy(ui: &mut Ui) -> Result<String> {
    let mut command = cargo();
    command.args(["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
    process::succeed(ui, &mut command, cargo_progress())?;
    Ok("no warning".to_owned())
}

fn documentation(ui: &mut Ui) -> Result<String> {
    let mut command = cargo();
    command.args(["doc", "--locked", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings");
    process::succeed(ui, &mut command, cargo_progress())?;
    Ok("no warning".to_owned())
}

fn static_binaries(ui: &mut Ui) -> Result<String> {
    let mut sizes = Vec::new();
    for target in TARGETS {
        build::release(ui, target, &["skeg-agent", "skeg-controller", "demo-web"])?;
        for name in ["skegd", "skeg"] {
            let path = build::binary(target, name);
            let kind = process::capture(Command::new("file").arg("--brief").arg(&path))?;
            if !kind.contains("statically linked") && !kind.contains("static-pie linked") {
                bail!("{} is not static: {}", path.display(), kind.trim());
            }
            let size = path.metadata().with_context(|| path.display().to_string())?.len();
            if size > MAX_BINARY {
                bail!("{} has {size} bytes, more than {MAX_BINARY}", path.display());
            }
            let architecture = target.split('-').next().unwrap_or(target);
            sizes.push(format!("{name} {architecture} {:.1} MiB", size as f64 / f64::from(1 << 20)));
        }
    }
    Ok(format!("static: {}", sizes.join(", ")))
}

fn demo_twice(ui: &mut Ui) -> Result<String> {
    let before = Snapshot::take("skeg-demo-")?;
    for _ in 0..2 {
        // As a person would call it; the binary that runs us may have been replaced by a build since.
        let mut command = cargo();
        command.args(["run", "--quiet", "--locked", "--package", "xtask", "--", "demo"]);
        process::succeed(ui, &mut command, |line| Some(line.trim().to_owned()))?;
        before.same_as_now()?;
    }
    Ok("twice, and nothing left behind".to_owned())
}

fn workspace_tests(ui: &mut Ui) -> Outcome {
    let mut command = cargo();
    command.args(["test", "--locked", "--workspace", "--exclude", "skeg-qemu-tests", "--no-fail-fast"]);
    cargo_tests(ui, &mut command)
}

fn qemu_tests(ui: &mut Ui) -> Outcome {
    // A guest runs them where the cgroups are of version 2.
    for target in TARGETS {
        if let Err(error) = build::unit_tests(ui, target, "skeg-runtime", "runtime") {
            return Outcome::check(Err(error));
        }
    }
    let mut command = cargo();
    command.args(["test", "--locked", "--package", "skeg-qemu-tests", "--no-fail-fast"]);
    cargo_tests(ui, &mut command)
}

fn cargo_tests(ui: &mut Ui, command: &mut Command) -> Outcome {
    // Passed tests' output is wanted too: it says which of them were skipped.
    command.args(["--", "--show-output"]);
    match process::run(ui, command, cargo_progress()) {
        Ok(finished) => count(&finished),
        Err(error) => Outcome::check(Err(error)),
    }
}

/// Counts the outcomes that libtest printed. A test that says `skipped: why` has passed for libtest only.
fn count(finished: &Finished) -> Outcome {
    let (mut outcome, mut said) = (Outcome::default(), 0);
    for line in &finished.lines {
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |what: &str| {
                let before = result.split(what).next().unwrap_or_default().trim_end();
                before.rsplit(' ').next().and_then(|word| word.parse::<usize>().ok()).unwrap_or_default()
            };
            outcome.passed += number("passed;");
            outcome.failed += number("failed;");
            outcome.skipped += number("ignored;");
        } else if line.starts_with("test ") && line.ends_with("... FAILED") {
            outcome.failures.push(line.clone());
        } else if line.starts_with("skipped: ") {
            said += 1;
            outcome.note = line.clone();
        }
    }
    outcome.skipped += said;
    outcome.passed = outcome.passed.saturating_sub(said);
    if !finished.status.success() {
        outcome.failures.push(finished.tail());
        // It did not come as far as a test.
        outcome.failed = outcome.failed.max(1);
    }
    let skipped = if outcome.note.is_empty() { String::new() } else { format!("; {}", outcome.note) };
    outcome.note =
        format!("{} passed, {} failed, {} skipped{skipped}", outcome.passed, outcome.failed, outcome.skipped);
    outcome
}

/// Runs the steps; the last line is `N passed, N failed, N skipped`.
pub(crate) fn run(only: Option<&str>) -> Result<ExitCode> {
    let chosen: Vec<&Step> = STEPS.iter().filter(|step| only.is_none_or(|name| step.name == name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!("the steps are: {}", names.join(", "));
    }
    let mut ui = Ui::new();
    let mut total = Outcome::default();
    let mut broken: Vec<&str> = Vec::new();
    for step in chosen {
        ui.step(&format!("{} [{}]", step.what, step.name));
        if let Some(needed) = step.after.filter(|needed| broken.contains(needed)) {
            ui.done(&format!("skipped: {needed} failed"));
            total.skipped += 1;
            broken.push(step.name);
            continue;
        }
        let outcome = (step.run)(&mut ui);
        ui.done(&outcome.note);
        if outcome.failed > 0 {
            broken.push(step.name);
        }
        total.passed += outcome.passed;
        total.failed += outcome.failed;
        total.skipped += outcome.skipped;
        total.failures.extend(outcome.failures.into_iter().map(|failure| format!("[{}] {failure}", step.name)));
        if interrupt::noted() {
            break;
        }
    }
    for failure in &total.failures {
        ui.plain(&format!("\n{failure}"));
    }
    ui.plain(&format!("\n{} in all, below {}", ui.total(), root().display()));
    if interrupt::noted() {
        bail!("interrupted");
    }
    ui.plain(&format!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped));
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn finished(code: i32, text: &str) -> Finished {
        Finished { status: ExitStatus::from_raw(code << 8), lines: text.lines().map(str::to_owned).collect() }
    }

    #[test]
    fn outcomes_are_counted_over_all_test_programs() {
        let outcome = count(&finished(
            101,
            "test a ... ok\ntest b ... FAILED\nskipped: needs root\n\
             test result: FAILED. 11 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
        ));
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (13, 1, 3));
        assert_eq!(outcome.failures[0], "test b ... FAILED");
    }

    #[test]
    fn a_test_that_says_that_it_was_skipped_is_counted_as_skipped() {
        let outcome = count(&finished(
            0,
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             skipped: needs root",
        ));
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (2, 0, 1));
        assert_eq!(outcome.note, "2 passed, 0 failed, 1 skipped; skipped: needs root");
    }

    #[test]
    fn tests_that_do_not_compile_have_failed() {
        let outcome = count(&finished(101, "error: could not compile"));
        assert_eq!((outcome.passed, outcome.failed), (0, 1));
    }

    #[test]
    fn steps_come_after_those_they_need() {
        for (index, step) in STEPS.iter().enumerate() {
            assert!(
                step.after.is_none_or(|name| STEPS[..index].iter().any(|other| other.name == name)),
                "{}",
                step.name
            );
        }
    }
}
