//! What the tests share: a root folder with busybox, and running a command in a container.
//!
//! Owns temporary folders and cgroups and cleans them up. Must not judge results.

use crate::{
    Cgroup, CgroupPath, Exit, Extras, Limits, Plan, Reaper, Request, Root, StartError, Started, Stdio, default_spec,
    host_cgroups, oci, wait,
};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Says why the test cannot run here, if so.
pub(crate) fn cannot_run() -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "needs root"
    } else if !Path::new("/bin/busybox").exists() {
        "needs /bin/busybox of busybox-static"
    } else if crate::host_cgroups().is_err() {
        "needs a cgroup filesystem"
    } else {
        return false;
    };
    println!("skipped: {reason}");
    true
}

/// Says why a test of mounts with other ids cannot run here, if so: tmpfs takes them since Linux 6.3.
pub(crate) fn cannot_map_ids() -> bool {
    if cannot_run() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    match crate::check_other_ids(folder.path()) {
        Ok(()) => false,
        Err(crate::UserNamespaceError::Unmappable { .. }) => {
            println!("skipped: needs a filesystem in {} that can be mounted with other ids", folder.path().display());
            true
        }
        Err(error) => panic!("{error}"),
    }
}

/// A folder with a busybox root and the folders of an overlay.
pub(crate) struct Ground {
    pub(super) folder: tempfile::TempDir,
    pub(crate) cgroup: Option<Cgroup>,
    /// The cgroup's name below each hierarchy's root.
    pub(crate) name: String,
    pub(super) extra_lower: Vec<PathBuf>,
    pub(super) network: Option<OwnedFd>,
    pub(super) user: Option<OwnedFd>,
    pub(super) reaper: Reaper,
    pub(super) folder_root: bool,
}

/// What a command left: how it ended and what it printed.
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) output: String,
}

impl Ground {
    pub(super) fn new() -> Ground {
        let folder = tempfile::tempdir().unwrap();
        for name in ["root/bin", "root/etc", "upper", "work"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::copy("/bin/busybox", folder.path().join("root/bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", folder.path().join("root/bin/sh")).unwrap();
        Ground {
            folder,
            cgroup: None,
            name: String::new(),
            extra_lower: Vec::new(),
            network: None,
            user: None,
            reaper: Reaper::Caller,
            folder_root: false,
        }
    }

    pub(crate) fn with_cgroup(limits: &Limits) -> Ground {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("skeg-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut ground = Ground::new();
        let path = CgroupPath::below_root(&name).unwrap();
        ground.cgroup = Some(Cgroup::create(&host_cgroups().unwrap(), &path, &limits.resources()).unwrap());
        ground.name = name;
        ground
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn root(&self) -> Root {
        if self.folder_root {
            return Root::Folder(self.path("root"));
        }
        let mut lower = self.extra_lower.clone();
        lower.push(self.path("root"));
        Root::Overlay { lower, upper: self.path("upper"), work: self.path("work") }
    }

    pub(super) fn plan(&self, spec: &oci::Spec) -> Result<(Plan, File), StartError> {
        self.plan_with(spec, Extras::default())
    }

    pub(super) fn plan_with(&self, spec: &oci::Spec, extras: Extras<'_>) -> Result<(Plan, File), StartError> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let stdio =
            Stdio { stdin: File::open("/dev/null").unwrap().into(), stdout: write.try_clone().unwrap(), stderr: write };
        let root = self.root();
        let request = Request {
            spec,
            root: &root,
            cgroup: self.cgroup.as_ref(),
            network: self.network.as_ref().map(std::os::fd::AsFd::as_fd),
            user: self.user.as_ref().map(std::os::fd::AsFd::as_fd),
            stdio,
            reaper: self.reaper,
            extras,
        };
        Ok((Plan::compile(request)?, File::from(read)))
    }

    pub(crate) fn start(&self, spec: &oci::Spec) -> Result<(Started, File), StartError> {
        let (plan, output) = self.plan(spec)?;
        Ok((plan.start()?, output))
    }

    pub(crate) fn run_spec(&self, spec: &oci::Spec) -> Result<Outcome, StartError> {
        let (started, mut output) = self.start(spec)?;
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        Ok(Outcome { exit: wait(&started).unwrap(), output: text })
    }

    /// Runs a shell line under the default specification.
    pub(crate) fn run(&self, line: &str) -> Outcome {
        self.run_spec(&shell(line)).unwrap()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill().unwrap();
            cgroup.remove().unwrap();
        }
    }
}

/// The default specification with a shell line as its program.
pub(crate) fn shell(line: &str) -> oci::Spec {
    with_arguments(&["/bin/busybox", "sh", "-c", line])
}

/// The default specification with these arguments.
pub(super) fn with_arguments(arguments: &[&str]) -> oci::Spec {
    change_process(default_spec(), |process| {
        process.set_args(Some(arguments.iter().map(ToString::to_string).collect()));
    })
}

/// Changes the process section.
pub(super) fn change_process(mut spec: oci::Spec, change: impl FnOnce(&mut oci::Process)) -> oci::Spec {
    let mut process = spec.process().clone().unwrap();
    change(&mut process);
    spec.set_process(Some(process));
    spec
}

/// Changes the Linux section.
pub(crate) fn change_linux(mut spec: oci::Spec, change: impl FnOnce(&mut oci::Linux)) -> oci::Spec {
    let mut linux = spec.linux().clone().unwrap();
    change(&mut linux);
    spec.set_linux(Some(linux));
    spec
}

/// One more mount for a specification.
pub(super) fn mount(destination: &str, kind: &str, source: &str, options: &str) -> oci::Mount {
    let options: Vec<String> = options.split(',').map(String::from).collect();
    let builder = oci::MountBuilder::default().destination(destination).typ(kind).source(source).options(options);
    builder.build().unwrap()
}

/// Adds mounts to a specification.
pub(super) fn with_mounts(mut spec: oci::Spec, more: Vec<oci::Mount>) -> oci::Spec {
    let mut mounts = spec.mounts().clone().unwrap();
    mounts.extend(more);
    spec.set_mounts(Some(mounts));
    spec
}
