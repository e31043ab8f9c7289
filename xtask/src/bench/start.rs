//! Start of a container through skeg-runtime in a resident process, as the agent does it, beside whole runs of
//! `crun run` and `runc run` over the same root, interleaved so that the machine's moods hit all alike.
//!
//! Our time begins with a request and an image's folder, and holds everything up to the reaped exit of
//! `/bin/true`: folders for the overlay, cgroup with limits, a new network namespace, plan, start, wait. What is
//! taken away afterwards is not in it, ours nor theirs (their own `run` takes theirs away before it ends).

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skeg_runtime::{Cgroup, Exit, Extras, Limits, Plan, Reaper, Request, Root, Stdio, default_spec, new_network, oci};

use super::Done;
use super::peers::Peers;
use super::report::Figure;
use crate::ui::Ui;
use crate::{build, interrupt, machine, needs};

/// Rounds that are measured; medians are shown.
const ROUNDS: usize = 40;
/// Rounds before, to warm caches.
const WARM_UP: usize = 3;
/// `crun run` is to take at least so many times our time.
const GOAL_CRUN: f64 = 6.0;
/// Set for the release build that measures.
const RESIDENT: &str = "SKEG_BENCH_RESIDENT";

/// Medians of one round's parts.
#[derive(Default)]
struct Times {
    running: Vec<Duration>,
    reaped: Vec<Duration>,
    bare: Vec<Duration>,
    crun: Vec<Duration>,
    runc: Vec<Duration>,
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
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
        ui.step("Builds the bench as the agent is built: static, release");
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
    std::os::unix::fs::symlink("busybox", rootfs.join("bin/true"))?;
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

fn null() -> Result<Stdio> {
    let open = || File::options().read(true).write(true).open("/dev/null").map(Into::into);
    Ok(Stdio { stdin: open()?, stdout: open()?, stderr: open()? })
}

/// One container of ours: the times until its program runs, and until it was reaped.
fn ours(folder: &Path, spec: &oci::Spec, cgroup: &str) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    let (upper, work) = (folder.join("upper"), folder.join("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let limits = Limits { memory_bytes: Some(64 << 20), pids: Some(64), ..Limits::default() };
    let cgroup = Cgroup::create(cgroup, &limits)?;
    let network = new_network()?;
    let root = Root::Overlay { lower: vec![folder.join("rootfs")], upper: upper.clone(), work: work.clone() };
    let request = Request {
        spec,
        root: &root,
        cgroup: Some(&cgroup),
        network: Some(network.as_fd()),
        stdio: null()?,
        reaper: Reaper::Caller,
        extras: Extras::default(),
    };
    let started = Plan::compile(request)?.start()?;
    let running = began.elapsed();
    let exit = skeg_runtime::wait(&started)?;
    let reaped = began.elapsed();
    cgroup.remove()?;
    fs::remove_dir_all(&upper)?;
    fs::remove_dir_all(&work)?;
    if exit != Exit::Code(0) {
        bail!("/bin/true ended with {exit:?}");
    }
    Ok((running, reaped))
}

/// The same program as a plain process: what no runtime can undercut.
fn bare(folder: &Path) -> Result<Duration> {
    let began = Instant::now();
    let mut command = Command::new(folder.join("rootfs/bin/busybox"));
    let status = command.arg0("true").status().context("busybox")?;
    let time = began.elapsed();
    if !status.success() {
        bail!("busybox true: {status}");
    }
    Ok(time)
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

fn measure(ui: &mut Ui) -> Result<Vec<Figure>> {
    // In memory: the machine's disk must not take part.
    let shared = Path::new("/dev/shm");
    let place = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    let name = format!("skeg-bench-{:07}", std::process::id());
    let folder = tempfile::Builder::new().prefix(&name).tempdir_in(place).context("temp folder")?;
    root(folder.path())?;
    let spec = spec(folder.path())?;
    let _parent = Parent(&name);
    let mut peers = Peers::start(folder.path(), &spec, &name)?;
    let mut times = Times::default();
    ui.step(&format!("Runs {ROUNDS} rounds: skeg, a bare process, crun, runc"));
    for round in 0..ROUNDS + WARM_UP {
        interrupt::check()?;
        ui.detail(&format!("round {} of {}", round + 1, ROUNDS + WARM_UP));
        let (running, reaped) = ours(folder.path(), &spec, &format!("{name}/ours"))?;
        let (bare, crun, runc) = (bare(folder.path())?, peers.run("crun")?, peers.run("runc")?);
        if round >= WARM_UP {
            times.running.push(running);
            times.reaped.push(reaped);
            times.bare.push(bare);
            times.crun.push(crun);
            times.runc.push(runc);
        }
    }
    peers.stop()?;
    ui.done("measured");
    let [running, reaped, bare, crun, runc] =
        [&mut times.running, &mut times.reaped, &mut times.bare, &mut times.crun, &mut times.runc]
            .map(|times| median(times));
    Ok(vec![
        Figure::at_least("crun run / skeg, request to reaped exit", crun / reaped, "x", GOAL_CRUN),
        Figure::at_least("runc run / skeg, request to reaped exit", runc / reaped, "x", GOAL_CRUN),
        Figure::plain("skeg / bare process", reaped / bare, "x"),
        Figure::plain("skeg, request to running program", running, "ms"),
        Figure::plain("skeg, request to reaped exit", reaped, "ms"),
        Figure::plain("bare process, spawn to reaped exit", bare, "ms"),
        Figure::plain("crun run", crun, "ms"),
        Figure::plain("runc run", runc, "ms"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let mut times = [5, 1, 3].map(Duration::from_millis);
        assert!((median(&mut times) - 3.0).abs() < 1e-9);
    }
}
