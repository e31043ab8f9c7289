//! `cargo xtask bench NAME`: the promises in numbers, measured on this machine beside the goals and, where there
//! are any, beside peers in the same run. A goal that is missed is shown; only what cannot be measured is a failure.

mod controller;
mod memory;
pub(crate) mod pull;
mod report;
mod size;
pub(crate) mod start;

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::ui::Ui;
use report::Figure;

/// Either figures, or another process has printed them.
enum Done {
    /// To be shown.
    Figures(Vec<Figure>),
    /// Shown already.
    Elsewhere(ExitCode),
}

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Name {
    /// Start of a container in a resident process, beside crun and runc.
    Start,
    /// Sizes of the static binaries, both architectures.
    Size,
    /// Memory of init and agent, idle and with 20 pods.
    Memory,
    /// Memory, processor time and reconnects of 10,000 devices on one controller.
    Fleet,
    /// Bytes of one device on the wire.
    Link,
    /// Pull and unpack of an image, beside podman, containerd and skopeo.
    Pull,
}

/// Measures, and prints a table or one JSON object.
pub(crate) fn run(name: Name, json: bool) -> Result<ExitCode> {
    let mut ui = if json { Ui::beside_json() } else { Ui::new() };
    let done = match name {
        Name::Start => start::run(&mut ui, json)?,
        Name::Pull => pull::run(&mut ui, json)?,
        Name::Size => Done::Figures(size::run(&mut ui)?),
        Name::Fleet => Done::Figures(controller::fleet(&mut ui)?),
        Name::Link => Done::Figures(controller::link(&mut ui)?),
        Name::Memory => Done::Figures(memory::run(&mut ui)?),
    };
    let figures = match done {
        Done::Figures(figures) => figures,
        Done::Elsewhere(code) => return Ok(code),
    };
    let text = if json { report::json(name, &figures)? } else { report::table(&figures) };
    drop(ui);
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}
