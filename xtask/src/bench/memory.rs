//! Memory of `skegd init` and its agent, idle and with pods, in the real thing as the demo starts it.

use anyhow::{Context, Result, bail};

use super::report::Figure;
use crate::demo::world::{PATIENCE, World, until};
use crate::ui::Ui;
use crate::{demo, needs};

/// Pods that run for the second sample.
const PODS: u32 = 20;
/// Promised for init and agent together with that many pods, in MiB.
const GOAL_MIB: f64 = 12.0;
/// Promised of agent memory for a further container, in KiB.
const GOAL_CONTAINER_KIB: f64 = 64.0;

/// Memory of a process in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    resident: u64,
    /// Resident, with shared pages divided among those who share them.
    proportional: u64,
}

/// Reads `/proc/PID/smaps_rollup` (proc(5)).
fn memory(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    parse(&std::fs::read_to_string(&path).context(path.clone())?).with_context(|| format!("{path} lacks a field"))
}

fn parse(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(Memory { resident: field("Rss:")?, proportional: field("Pss:")? })
}

/// The agent's process: the child of init that was started as `skegd agent`.
fn agent(init: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).nth(1) == Some(b"agent")
    })
}

/// Starts a controller and a device, and samples.
pub(super) fn run(ui: &mut Ui) -> Result<Vec<Figure>> {
    if !needs::is_root() {
        bail!("this bench starts containers and needs root: sudo env \"PATH=$PATH\" cargo xtask bench memory");
    }
    demo::prepare(ui)?;
    let mut world = World::new("skeg-bench-")?;
    demo::set_up(ui, &mut world)?;
    let init = world.init_pid().context("the device was started")?;
    let agent_pid = agent(init).context("init has no agent")?;
    ui.step("Samples the idle device");
    let (idle_init, idle_agent) = (memory(init)?, memory(agent_pid)?);
    ui.done(&format!("init {} KiB, agent {} KiB", idle_init.resident, idle_agent.resident));

    ui.step(&format!("Starts {PODS} pods"));
    let manifests: Vec<String> = (0..PODS).map(manifest).collect();
    world.apply("pods.yaml", &manifests.join("---\n"))?;
    until(ui, &format!("{PODS} pods to run"), PATIENCE, || {
        world.check_alive()?;
        let pods = world.skeg(&["get", "pods"])?;
        Ok((pods.lines().filter(|line| line.contains("Running")).count() == PODS as usize).then_some(()))
    })?;
    ui.done("Running");
    ui.step("Samples the device with pods");
    let (full_init, full_agent) = (memory(init)?, memory(agent_pid)?);
    ui.done(&format!("init {} KiB, agent {} KiB", full_init.resident, full_agent.resident));
    ui.step("Stops");
    world.stop()?;
    ui.done("stopped");

    let mebibytes = |kibibytes: u64| kibibytes as f64 / 1024.0;
    let further = full_agent.resident.saturating_sub(idle_agent.resident) as f64 / f64::from(PODS);
    let mut figures = vec![
        Figure::at_most(
            format!("init + agent, {PODS} pods, RSS"),
            mebibytes(full_init.resident + full_agent.resident),
            "MiB",
            GOAL_MIB,
        ),
        Figure::at_most("agent, a further container, RSS", further, "KiB", GOAL_CONTAINER_KIB),
    ];
    let samples = [
        ("init, idle", idle_init),
        ("agent, idle", idle_agent),
        ("init, 20 pods", full_init),
        ("agent, 20 pods", full_agent),
    ];
    for (name, memory) in samples {
        figures.push(Figure::plain(format!("{name}, RSS"), mebibytes(memory.resident), "MiB"));
        figures.push(Figure::plain(format!("{name}, PSS"), mebibytes(memory.proportional), "MiB"));
    }
    Ok(figures)
}

fn manifest(number: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-{number}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - name: web\n    image: demo-web:1\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_sums_are_read() {
        let text = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:    1832 kB\nPss:     913 kB\nPss_Anon: 5 kB\n";
        assert_eq!(parse(text), Some(Memory { resident: 1832, proportional: 913 }));
        assert_eq!(parse("Rss: 12 kB\n"), None);
        assert!(memory(std::process::id() as i32).unwrap().resident > 0);
    }
}
