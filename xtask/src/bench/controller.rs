//! What the controller measures itself (`skeg bench`), from its static binary: a fleet on the loopback, and the bytes of one
//! device in a network namespace where nothing else is heard.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::report::Figure;
use crate::build::{self, host_target};
use crate::process;
use crate::ui::Ui;

/// Builds the controller.
fn binary(ui: &mut Ui) -> Result<std::path::PathBuf> {
    ui.step("Builds the controller");
    build::release(ui, &host_target(), &["skeg-controller"])?;
    ui.done("built");
    Ok(build::binary(&host_target(), "skeg"))
}

/// Reads the figures of one JSON object.
fn figures(text: &str) -> Result<Vec<Figure>> {
    let report: Value = serde_json::from_str(text.trim()).with_context(|| format!("it printed {text:?}"))?;
    let list = report["figures"].as_array().context("it printed no figures")?;
    let figure = |one: &Value| {
        let (name, unit) = (one["name"].as_str()?.to_owned(), one["unit"].as_str()?);
        // Units are few, and a figure's is for the program's whole life.
        let unit = ["KiB", "B", "MB", "s", "% of one"].into_iter().find(|known| *known == unit)?;
        Some(Figure::at_most(name, one["value"].as_f64()?, unit, one["goal"].as_f64()?))
    };
    list.iter().map(|one| figure(one).with_context(|| format!("{one} is no figure"))).collect()
}

/// Ten thousand devices.
pub(super) fn fleet(ui: &mut Ui) -> Result<Vec<Figure>> {
    let program = binary(ui)?;
    ui.step("Connects a fleet, watches it idle, and kills its controller");
    let told = process::capture(Command::new(program).args(["bench", "fleet", "--json"]))?;
    ui.done("measured");
    figures(&told)
}

/// One device's bytes.
pub(super) fn link(ui: &mut Ui) -> Result<Vec<Figure>> {
    let program = binary(ui)?;
    ui.step("Counts the bytes of one device");
    let script = "ip link set lo mtu 1500 up && exec \"$0\" bench link --json";
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", script]).arg(program);
    let told = process::capture(&mut command)?;
    ui.done("measured");
    figures(&told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_anything_else_is_an_error() {
        let good = r#"{"bench":"link","figures":[{"name":"heartbeat","value":130.5,"unit":"B","goal":170.0}]}"#;
        assert_eq!(figures(good).unwrap(), [Figure::at_most("heartbeat", 130.5, "B", 170.0)]);
        for bad in
            ["", "{}", r#"{"figures":[{"name":"x"}]}"#, r#"{"figures":[{"name":"x","value":1,"unit":"?","goal":1}]}"#]
        {
            assert!(figures(bad).is_err(), "{bad}");
        }
    }
}
