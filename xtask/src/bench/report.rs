//! Figures and how they are shown: a table for people, JSON for machines. The form of the JSON is a promise.

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use super::Name;

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// What is promised; `None` for a value that stands for comparison.
    goal: Option<f64>,
    lower_is_better: bool,
    /// Whether the promise holds.
    holds: Option<bool>,
}

#[derive(Serialize)]
struct Report<'a> {
    bench: String,
    machine: String,
    figures: &'a [Figure],
}

impl Figure {
    /// A value that stands for comparison; less is better.
    pub(super) fn plain(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Figure { name: name.into(), value, unit, goal: None, lower_is_better: true, holds: None }
    }

    /// A value that is to be at most `goal`.
    pub(super) fn at_most(name: impl Into<String>, value: f64, unit: &'static str, goal: f64) -> Self {
        Figure { goal: Some(goal), holds: Some(value <= goal), ..Figure::plain(name, value, unit) }
    }

    /// A value that is to be at least `goal`.
    pub(super) fn at_least(name: impl Into<String>, value: f64, unit: &'static str, goal: f64) -> Self {
        let holds = Some(value >= goal);
        Figure { goal: Some(goal), holds, lower_is_better: false, ..Figure::plain(name, value, unit) }
    }
}

/// This machine in a line: processors, kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let model = model.trim_start_matches([' ', '\t', ':']).to_owned();
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{count} x {model}, Linux {}, {}", kernel.trim(), std::env::consts::ARCH)
}

/// The figures as one JSON object.
pub(super) fn json(name: Name, figures: &[Figure]) -> Result<String> {
    let report = Report { bench: format!("{name:?}").to_lowercase(), machine: machine(), figures };
    Ok(serde_json::to_string(&report)?)
}

/// A value with as many digits as tell something.
fn shown(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// The figures as a table.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["FIGURE", "VALUE", "UNIT", "GOAL", "HOLDS"]);
    for figure in figures {
        let sign = if figure.lower_is_better { "≤" } else { "≥" };
        let goal = figure.goal.map_or_else(String::new, |goal| format!("{sign} {}", shown(goal)));
        let holds = figure.holds.map_or("", |holds| if holds { "yes" } else { "NO" });
        table.add_row([
            Cell::new(&figure.name),
            Cell::new(shown(figure.value)).set_alignment(CellAlignment::Right),
            Cell::new(figure.unit),
            Cell::new(goal),
            Cell::new(holds),
        ]);
    }
    format!("\n{}\n\n{table}", machine())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_its_promised_form() {
        let figures = [Figure::at_most("size", 3.5, "MiB", 8.0), Figure::at_least("ratio", 4.0, "x", 6.0)];
        let value: serde_json::Value = serde_json::from_str(&json(Name::Size, &figures).unwrap()).unwrap();
        assert_eq!(value["bench"], "size");
        assert!(value["machine"].is_string());
        let wanted = serde_json::json!([
            { "name": "size", "value": 3.5, "unit": "MiB", "goal": 8.0, "lower_is_better": true, "holds": true },
            { "name": "ratio", "value": 4.0, "unit": "x", "goal": 6.0, "lower_is_better": false, "holds": false },
        ]);
        assert_eq!(value["figures"], wanted);
    }
}
