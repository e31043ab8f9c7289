//! Sizes of what is flashed and shipped.

use anyhow::{Context, Result};

use super::report::Figure;
use crate::build::{self, TARGETS};
use crate::needs;
use crate::ui::Ui;

/// Promised for `skegd`; `skeg` keeps to it too.
const GOAL_MIB: f64 = 8.0;

/// Builds for both architectures and measures.
pub(super) fn run(ui: &mut Ui) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    ui.step("Installs what is missing");
    needs::packages(ui, &[needs::BUILD, needs::CROSS])?;
    needs::targets(ui, &TARGETS)?;
    ui.done("all there");
    for target in TARGETS {
        ui.step(&format!("Builds for {target}"));
        build::release(ui, target, &["skeg-agent", "skeg-controller"])?;
        ui.done("built");
        let architecture = target.split('-').next().unwrap_or(target);
        for name in ["skegd", "skeg"] {
            let path = build::binary(target, name);
            let bytes = path.metadata().with_context(|| path.display().to_string())?.len();
            let mebibytes = bytes as f64 / f64::from(1 << 20);
            figures.push(Figure::at_most(format!("{name}, {architecture}"), mebibytes, "MiB", GOAL_MIB));
        }
    }
    Ok(figures)
}
