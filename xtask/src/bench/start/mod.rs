//! Start of a container, three ways, interleaved so that the machine's moods hit all alike:
//!
//! - through skeg-runtime in a resident process, as the agent does it, with and without a pool of ready-made network
//!   namespaces and cgroups;
//! - the floor: the same container as nothing but its system calls (`skeg_runtime::Floor`), in the same process;
//! - whole runs of `skegd oci run`, `crun run` and `runc run` over the same root and config.json.
//!
//! The times of the resident process begin with a request and an image's folder. What is taken away after a
//! container's end is not in them; the command lines take theirs away before they end.

mod helper;
mod peers;
mod resident;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skeg_runtime::{default_spec, oci};

use super::Done;
use super::report::Figure;
use crate::ui::Ui;
use crate::{build, interrupt, machine, needs};
use helper::{Helper, View};
pub(crate) use helper::{Kind, serve};

/// Rounds that are measured; medians are shown.
const ROUNDS: usize = 40;
/// Rounds before, to warm caches.
const WARM_UP: usize = 3;
/// Rounds that begin after a rest.
const COLD_ROUNDS: usize = 10;
/// How long the machine rests before each of them.
const REST: Duration = Duration::from_millis(400);
/// Containers that are started one after the other and stay.
const SEQUENCE: usize = 100;
/// Promised: request to running program, against the floor that makes its own network namespace and cgroup.
const GOAL_FRESH: f64 = 1.2;
/// The same with a pool.
const GOAL_POOLED: f64 = 1.0;
/// Promised on cgroups of version 1, in milliseconds.
const GOAL_VERSION_ONE: f64 = 2.0;
/// A whole run of crun is to take at least so many times a start-to-exit in the resident process.
const GOAL_CRUN: f64 = 6.0;
/// `skegd oci run` against `crun run`.
const GOAL_COMMAND: f64 = 0.8;
/// Promised of the resident process's memory for a further container, in KiB.
const GOAL_CONTAINER_KIB: f64 = 64.0;
/// No worse than linear, and the noise of a busy machine.
const GOAL_LINEAR: f64 = 1.1;
/// Set for the release build that measures.
const RESIDENT: &str = "SKEG_BENCH_RESIDENT";

/// The times of one kind of start, in microseconds.
#[derive(Default)]
struct Times {
    running: Vec<f64>,
    reaped: Vec<f64>,
}

impl Times {
    fn add(&mut self, [running, reaped]: [f64; 2]) {
        self.running.push(running);
        self.reaped.push(reaped);
    }
}

/// Everything that is measured in rounds.
#[derive(Default)]
struct Rounds {
    floor: Times,
    floor_pooled: Times,
    fresh: Times,
    pooled: Times,
    version_one: Times,
    bare: Vec<f64>,
    crun: Vec<f64>,
    crun_version_two: Vec<f64>,
    runc: Vec<f64>,
    skegd: Vec<f64>,
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures; a build that is not for speed builds one that is, and becomes it.
pub(super) fn run(ui: &mut Ui, json: bool) -> Result<Done> {
    if !needs::is_root() {
        bail!("this bench starts containers and needs root: sudo env \"PATH=$PATH\" cargo xtask bench start");
    }
    if std::env::var_os(RESIDENT).is_none() {
        let target = build::host_target();
        ui.step("Installs what is missing");
        needs::packages(ui, &[needs::BUILD, needs::PEERS])?;
        needs::targets(ui, &[&target])?;
        ui.done("all there");
        ui.step("Builds the bench and skegd: static, release");
        build::release(ui, &target, &["skeg-agent"])?;
        build::release(ui, &target, &["xtask"])?;
        ui.done("built");
        let mut command = Command::new(build::binary(&target, "xtask"));
        command.args(["bench", "start"]).args(json.then_some("--json")).env(RESIDENT, "1");
        let status = command.status().context("the release build of this bench")?;
        return Ok(Done::Elsewhere(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }));
    }
    measure(ui).map(Done::Figures)
}

/// A root with static busybox, and a place for overlays and the peers' bundle beside it.
fn root(folder: &Path) -> Result<()> {
    let rootfs = folder.join("rootfs");
    for name in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir_all(rootfs.join(name))?;
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("/bin/busybox")?;
    for name in ["true", "sleep"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name))?;
    }
    Ok(())
}

/// The specification that all of them run.
fn spec(folder: &Path) -> Result<oci::Spec> {
    let mut spec = default_spec();
    let process = spec.process_mut().as_mut().context("the default specification has a process")?;
    process.set_args(Some(vec!["/bin/true".to_owned()]));
    let root = spec.root_mut().as_mut().context("the default specification has a root")?;
    root.set_path(folder.join("rootfs"));
    Ok(spec)
}

/// Writes the config.json of the command lines.
fn bundle(folder: &Path, cgroup: &str) -> Result<()> {
    let mut spec = spec(folder)?;
    // Debian's crun knows no newer one; nothing newer is in it.
    spec.set_version("1.0.2".to_owned());
    let linux = spec.linux_mut().as_mut().context("the default specification has a linux part")?;
    linux.set_cgroups_path(Some(format!("/{cgroup}-peer").into()));
    fs::write(folder.join("config.json"), serde_json::to_vec(&spec)?).context("config.json")
}

/// The same program as a plain process: what no runtime can undercut.
fn bare(folder: &Path) -> Result<f64> {
    let began = Instant::now();
    let mut command = Command::new(folder.join("rootfs/bin/busybox"));
    let status = command.arg0("true").status().context("busybox")?;
    let time = began.elapsed();
    if !status.success() {
        bail!("busybox true: {status}");
    }
    Ok(microseconds(time))
}

/// The cgroups whose name begins so: removed in any case, the peers' too.
struct Parent<'a>(&'a str);

impl Drop for Parent<'_> {
    fn drop(&mut self) {
        for folder in machine::cgroups(self.0) {
            if let Err(error) = machine::remove_cgroup(&folder) {
                eprintln!("clean-up: {error:#}");
            }
        }
    }
}

/// The helpers of one measurement.
struct Helpers {
    resident: Helper,
    resident_version_one: Helper,
    peers: Helper,
    peers_version_two: Helper,
}

impl Helpers {
    fn start(folder: &Path, cgroup: &str) -> Result<Self> {
        let start = |kind, view| Helper::start(kind, view, folder, cgroup);
        Ok(Helpers {
            resident: start(Kind::Resident, View::Two)?,
            resident_version_one: start(Kind::Resident, View::One)?,
            peers: start(Kind::Peers, View::One)?,
            peers_version_two: start(Kind::Peers, View::Two)?,
        })
    }

    /// One round of everything.
    fn round(&mut self, folder: &Path, rounds: &mut Rounds) -> Result<()> {
        rounds.floor.add(self.resident.ask("floor fresh")?);
        rounds.fresh.add(self.resident.ask("skeg fresh")?);
        rounds.floor_pooled.add(self.resident.ask("floor pooled")?);
        rounds.pooled.add(self.resident.ask("skeg pooled")?);
        rounds.version_one.add(self.resident_version_one.ask("skeg fresh")?);
        rounds.bare.push(bare(folder)?);
        for (times, name) in [(&mut rounds.crun, "crun"), (&mut rounds.runc, "runc"), (&mut rounds.skegd, "skegd")] {
            let [time] = self.peers.ask(name)?;
            times.push(time);
        }
        let [time] = self.peers_version_two.ask("crun")?;
        rounds.crun_version_two.push(time);
        Ok(())
    }

    fn stop(self) -> Result<()> {
        let Helpers { resident, resident_version_one, peers, peers_version_two } = self;
        [resident, resident_version_one, peers, peers_version_two].into_iter().try_for_each(Helper::stop)
    }
}

fn measure(ui: &mut Ui) -> Result<Vec<Figure>> {
    // In memory: the machine's disk must not take part.
    let shared = Path::new("/dev/shm");
    let place = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    let name = format!("skeg-bench-{:07}", std::process::id());
    let folder = tempfile::Builder::new().prefix(&name).tempdir_in(place).context("temp folder")?;
    root(folder.path())?;
    bundle(folder.path(), &name)?;
    let _parent = Parent(&name);
    let mut helpers = Helpers::start(folder.path(), &name)?;
    let (mut warm, mut cold) = (Rounds::default(), Rounds::default());
    ui.step(&format!("Runs {ROUNDS} rounds: the floor, skeg, a bare process, crun, skegd oci, runc"));
    for round in 0..ROUNDS + WARM_UP {
        interrupt::check()?;
        ui.detail(&format!("round {} of {}", round + 1, ROUNDS + WARM_UP));
        let mut unused = Rounds::default();
        helpers.round(folder.path(), if round < WARM_UP { &mut unused } else { &mut warm })?;
    }
    ui.done("measured");
    ui.step(&format!("Runs {COLD_ROUNDS} rounds after a rest each"));
    for _ in 0..COLD_ROUNDS {
        interrupt::check()?;
        std::thread::sleep(REST);
        cold.floor.add(helpers.resident.ask("floor fresh")?);
        std::thread::sleep(REST);
        cold.fresh.add(helpers.resident.ask("skeg fresh")?);
        std::thread::sleep(REST);
        cold.pooled.add(helpers.resident.ask("skeg pooled")?);
    }
    ui.done("measured");
    ui.step(&format!("Starts {SEQUENCE} containers that stay"));
    let [tenth, _] = helpers.resident.ask(&format!("sequence {} 1", SEQUENCE / 10))?;
    let [whole, memory] = helpers.resident.ask(&format!("sequence {SEQUENCE} 1"))?;
    let [by_two, _] = helpers.resident.ask(&format!("sequence {SEQUENCE} 2"))?;
    let pool: [f64; 2] = helpers.resident.ask(&format!("pool {SEQUENCE}"))?;
    ui.done("measured");
    helpers.stop()?;
    let mut figures = ratios(&mut warm, &mut cold);
    figures.extend([
        Figure::at_most("100 containers / 10 × 10 containers", whole / (tenth * 10.0), "x", GOAL_LINEAR),
        Figure::at_most("100 containers by two callers / by one", by_two / whole, "x", GOAL_LINEAR),
        Figure::at_most(
            "memory of the resident process, a further container",
            memory / 1024.0,
            "KiB",
            GOAL_CONTAINER_KIB,
        ),
        Figure::plain("kernel memory of a pooled network namespace", pool[0] / 1024.0, "KiB"),
        Figure::plain("kernel memory of a pooled cgroup", pool[1] / 1024.0, "KiB"),
        Figure::plain("100 containers in sequence, each", whole / SEQUENCE as f64 / 1000.0, "ms"),
    ]);
    figures.extend(times(&mut warm, &mut cold));
    Ok(figures)
}

/// Ours against the floor and the peers.
fn ratios(warm: &mut Rounds, cold: &mut Rounds) -> Vec<Figure> {
    let floor = median(&mut warm.floor.running);
    let against_floor =
        |name: &str, time: f64, goal| Figure::at_most(format!("{name} / floor, to execve"), time / floor, "x", goal);
    let (fresh, pooled) = (median(&mut warm.fresh.running), median(&mut warm.pooled.running));
    let cold_floor = median(&mut cold.floor.running);
    let (reaped, crun) = (median(&mut warm.fresh.reaped), median(&mut warm.crun));
    vec![
        against_floor("skeg", fresh, GOAL_FRESH),
        against_floor("skeg with a pool", pooled, GOAL_POOLED),
        Figure::at_most("skeg / floor, to execve, cold", median(&mut cold.fresh.running) / cold_floor, "x", GOAL_FRESH),
        Figure::at_most(
            "skeg with a pool / floor, to execve, cold",
            median(&mut cold.pooled.running) / cold_floor,
            "x",
            GOAL_POOLED,
        ),
        Figure::plain(
            "skeg with a pool / floor with a pool, to execve",
            pooled / median(&mut warm.floor_pooled.running),
            "x",
        ),
        Figure::at_least("crun run / skeg, to reaped exit", crun / reaped, "x", GOAL_CRUN),
        Figure::at_least(
            "crun run, cgroups v2 / skeg, to reaped exit",
            median(&mut warm.crun_version_two) / reaped,
            "x",
            GOAL_CRUN,
        ),
        Figure::at_least("runc run / skeg, to reaped exit", median(&mut warm.runc) / reaped, "x", GOAL_CRUN),
        Figure::at_most("skegd oci run / crun run", median(&mut warm.skegd) / crun, "x", GOAL_COMMAND),
    ]
}

/// The times themselves.
fn times(warm: &mut Rounds, cold: &mut Rounds) -> Vec<Figure> {
    let plain = |name: &str, times: &mut [f64]| Figure::plain(name, median(times) / 1000.0, "ms");
    vec![
        Figure::at_most(
            "skeg, cgroups v1, to execve",
            median(&mut warm.version_one.running) / 1000.0,
            "ms",
            GOAL_VERSION_ONE,
        ),
        plain("floor, to execve", &mut warm.floor.running),
        plain("floor with a pool, to execve", &mut warm.floor_pooled.running),
        plain("skeg, to execve", &mut warm.fresh.running),
        plain("skeg with a pool, to execve", &mut warm.pooled.running),
        plain("floor, to execve, cold", &mut cold.floor.running),
        plain("skeg, to execve, cold", &mut cold.fresh.running),
        plain("skeg with a pool, to execve, cold", &mut cold.pooled.running),
        plain("floor, to reaped exit", &mut warm.floor.reaped),
        plain("skeg, to reaped exit", &mut warm.fresh.reaped),
        plain("skeg with a pool, to reaped exit", &mut warm.pooled.reaped),
        plain("bare process, spawn to reaped exit", &mut warm.bare),
        plain("skegd oci run", &mut warm.skegd),
        plain("crun run", &mut warm.crun),
        plain("crun run, cgroups v2", &mut warm.crun_version_two),
        plain("runc run", &mut warm.runc),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&mut [5.0, 1.0, 3.0]) - 3.0).abs() < 1e-9);
        assert!(median(&mut []).is_nan());
    }
}
