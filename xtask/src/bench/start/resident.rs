//! Starts in a resident process, as the agent makes them: containers of ours, and the floor beside them.
//!
//! A time begins with the request and an image's folder; it holds the overlay's folders, the cgroup, the plan and the
//! start. What is taken away afterwards is not in it.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use skeg_runtime::{
    Cgroup, CgroupError, CgroupPath, Exit, Extras, Floor, Handed, HostCgroups, Limits, Plan, Reaper, Request, Root,
    Started, Stdio, host_cgroups, new_network, oci,
};

use super::helper::Answers;
use super::microseconds;

/// What the process keeps between questions.
struct Resident {
    folder: PathBuf,
    cgroup: String,
    spec: oci::Spec,
    floor: Floor,
    host: HostCgroups,
    count: usize,
}

/// What was made ahead of a request.
#[derive(Default)]
struct Pool {
    cgroup: Option<Cgroup>,
    network: Option<OwnedFd>,
}

/// One container of ours, and what must be taken away after it.
struct Container {
    started: Started,
    cgroup: Cgroup,
    folders: [PathBuf; 2],
}

impl Container {
    /// Waits for its end, or brings it about, and takes everything away.
    fn remove(self, kill: bool) -> Result<Exit> {
        if kill {
            self.cgroup.kill()?;
        }
        let exit = skeg_runtime::wait(&self.started)?;
        self.cgroup.remove()?;
        self.folders.iter().try_for_each(fs::remove_dir_all)?;
        Ok(exit)
    }
}

/// Answers `floor fresh|pooled` and `skeg fresh|pooled` with the microseconds to the running program and to the reaped
/// exit; `sequence N CALLERS` with those of N containers that stay, and the bytes of memory that each of them costs
/// this process; `pool N` with the kernel's bytes for a network namespace and a cgroup held ready.
pub(super) fn answers(folder: &Path, cgroup: &str) -> Result<Answers> {
    let spec = super::spec(folder)?;
    let floor = Floor::new(&folder.join("rootfs"), &folder.join("upper-floor"), &folder.join("work-floor"))?;
    let mut resident =
        Resident { folder: folder.to_owned(), cgroup: cgroup.to_owned(), spec, floor, host: host_cgroups()?, count: 0 };
    Ok(Box::new(move |question| {
        let words: Vec<&str> = question.split(' ').collect();
        match words[..] {
            ["floor", kind] => resident.floor(kind == "pooled"),
            ["skeg", kind] => resident.one(kind == "pooled"),
            ["sequence", count, callers] => resident.sequence(count.parse()?, callers.parse()?),
            ["pool", count] => resident.pool_memory(count.parse()?),
            _ => bail!("no such question"),
        }
    }))
}

impl Resident {
    fn name(&mut self) -> String {
        self.count += 1;
        format!("{}/{}", self.cgroup, self.count)
    }

    fn floor(&mut self, pooled: bool) -> Result<Vec<f64>> {
        let folder = Path::new("/sys/fs/cgroup").join(self.name());
        let folders = ["upper-floor", "work-floor"].map(|name| self.folder.join(name));
        fs::create_dir_all(folder.parent().context("it has a parent")?)?;
        let network = if pooled { Some(new_network()?) } else { None };
        let made = if pooled { Some(self.floor.make_cgroup(&folder)?) } else { None };
        let began = Instant::now();
        folders.iter().try_for_each(fs::create_dir)?;
        let cgroup = made.map_or_else(|| self.floor.make_cgroup(&folder), Ok)?;
        let handed = Handed { cgroup: cgroup.as_fd(), network: network.as_ref().map(AsFd::as_fd) };
        let started = self.floor.start(handed).context("the floor")?;
        let running = began.elapsed();
        let exit = skeg_runtime::wait(&started)?;
        let reaped = began.elapsed();
        fs::remove_dir(&folder)?;
        folders.iter().try_for_each(fs::remove_dir_all)?;
        succeeded(exit)?;
        Ok(vec![microseconds(running), microseconds(reaped)])
    }

    fn one(&mut self, pooled: bool) -> Result<Vec<f64>> {
        let name = self.name();
        let pool = if pooled {
            Pool { cgroup: Some(make_cgroup(&self.host, &name)?), network: Some(new_network()?) }
        } else {
            Pool::default()
        };
        let began = Instant::now();
        let container = start(&self.folder, &self.host, &self.spec, &name, pool)?;
        let running = began.elapsed();
        let exit = skeg_runtime::wait(&container.started)?;
        let reaped = began.elapsed();
        container.cgroup.remove()?;
        container.folders.iter().try_for_each(fs::remove_dir_all)?;
        succeeded(exit)?;
        Ok(vec![microseconds(running), microseconds(reaped)])
    }

    fn sequence(&mut self, count: usize, callers: usize) -> Result<Vec<f64>> {
        let mut spec = self.spec.clone();
        let process = spec.process_mut().as_mut().context("the default specification has a process")?;
        process.set_args(Some(vec!["/bin/sleep".into(), "1000".into()]));
        let names: Vec<String> = (0..count).map(|_| self.name()).collect();
        let (folder, host, spec) = (&self.folder, &self.host, &spec);
        let before = resident_bytes()?;
        let began = Instant::now();
        let containers: Vec<Container> = std::thread::scope(|scope| {
            let shares = names.chunks(count.div_ceil(callers));
            let all =
                |share: &[String]| share.iter().map(|name| start(folder, host, spec, name, Pool::default())).collect();
            let threads: Vec<_> = shares.map(|share| scope.spawn(move || all(share))).collect();
            let joined =
                threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a caller broke"))?);
            joined.collect::<Result<Vec<Vec<Container>>>>().map(|lists| lists.into_iter().flatten().collect())
        })?;
        let time = began.elapsed();
        let each = (resident_bytes()? - before) / count as f64;
        for container in containers {
            container.remove(true)?;
        }
        Ok(vec![microseconds(time), each])
    }

    fn pool_memory(&mut self, count: usize) -> Result<Vec<f64>> {
        let before = kernel_bytes()?;
        let networks = (0..count).map(|_| new_network()).collect::<Result<Vec<_>, _>>()?;
        let between = kernel_bytes()?;
        let names: Vec<String> = (0..count).map(|_| self.name()).collect();
        let cgroups = names.iter().map(|name| make_cgroup(&self.host, name)).collect::<Result<Vec<_>, _>>()?;
        let after = kernel_bytes()?;
        drop(networks);
        cgroups.iter().try_for_each(Cgroup::remove)?;
        Ok(vec![(between - before) / count as f64, (after - between) / count as f64])
    }
}

/// Starts one container.
fn start(folder: &Path, host: &HostCgroups, spec: &oci::Spec, name: &str, pool: Pool) -> Result<Container> {
    let number = name.rsplit('/').next().unwrap_or(name);
    let (upper, work) = (folder.join(format!("upper-{number}")), folder.join(format!("work-{number}")));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let cgroup = pool.cgroup.map_or_else(|| make_cgroup(host, name), Ok)?;
    let root = Root::Overlay { lower: vec![folder.join("rootfs")], upper: upper.clone(), work: work.clone() };
    let request = Request {
        spec,
        root: &root,
        cgroup: Some(&cgroup),
        network: pool.network.as_ref().map(AsFd::as_fd),
        user: None,
        stdio: null()?,
        reaper: Reaper::Caller,
        extras: Extras::default(),
    };
    let started = Plan::compile(request)?.start()?;
    Ok(Container { started, cgroup, folders: [upper, work] })
}

/// A container's cgroup, without bounds: what version 2 could bound is not there where version 1 has the controllers.
fn make_cgroup(host: &HostCgroups, name: &str) -> Result<Cgroup, CgroupError> {
    Cgroup::create(host, &CgroupPath::below_root(name)?, &Limits::default().resources())
}

fn null() -> Result<Stdio> {
    let open = || File::options().read(true).write(true).open("/dev/null").map(Into::into);
    Ok(Stdio { stdin: open()?, stdout: open()?, stderr: open()? })
}

fn succeeded(exit: Exit) -> Result<()> {
    if exit != Exit::Code(0) {
        bail!("/bin/true ended with {exit:?}");
    }
    Ok(())
}

/// A `NAME: N kB` field of a file in proc(5), in bytes.
fn field(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let rest =
        text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{path} has no {name}"))?;
    let kibibytes: f64 = rest.trim_matches([':', ' ', '\t', 'k', 'B']).parse()?;
    Ok(kibibytes * 1024.0)
}

/// This process's resident memory.
fn resident_bytes() -> Result<f64> {
    field("/proc/self/status", "VmRSS")
}

/// What the whole kernel holds in its allocators.
fn kernel_bytes() -> Result<f64> {
    Ok(field("/proc/meminfo", "Slab")? + field("/proc/meminfo", "Percpu")?)
}
