//! Debian's podman with this runtime, by the program's second name and no wrapper.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use super::bundle::{SKEGD, err, fill, out};
use super::needs::cannot_run;

/// Limits that this machine's root may set; podman's own defaults are higher.
const ULIMITS: [&str; 4] = ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=30000:30000"];

/// podman with a storage of its own, in a network namespace of its own, so that its rules never touch the host.
struct Podman(tempfile::TempDir);

impl Podman {
    fn new() -> Podman {
        let folder = tempfile::Builder::new().prefix("skeg-podman-").tempdir().unwrap();
        symlink(SKEGD, folder.path().join("skeg-oci")).unwrap();
        let podman = Podman(folder);
        let root = podman.0.path().join("busybox");
        fill(&root);
        let archive = podman.0.path().join("busybox.tar");
        let mut builder = tar::Builder::new(fs::File::create(&archive).unwrap());
        builder.follow_symlinks(false);
        builder.append_dir_all(".", &root).unwrap();
        builder.finish().unwrap();
        podman.works(&["import", archive.to_str().unwrap(), "busybox"]);
        podman
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let place = |name: &str| self.0.path().join(name);
        let mut command = Command::new("unshare");
        command.args(["--net", "podman", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime"]);
        command.arg(place("skeg-oci")).arg("--root").arg(place("storage")).arg("--runroot").arg(place("run"));
        command.arg("--tmpdir").arg(place("tmp")).args(arguments).output().unwrap()
    }

    fn works(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(output.status.success(), "podman {arguments:?}: {}", err(&output));
        out(&output).trim_end().to_owned()
    }

    /// `podman run` with what every container here is given.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut all = vec!["run", "--network", "none"];
        all.extend(ULIMITS);
        all.extend(arguments);
        self.command(&all)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Containers of a failed test, and podman's mounts of its storage.
        self.command(&["rm", "--all", "--force", "--time", "0"]);
        self.command(&["unmount", "--all"]);
        let _ = rustix::mount::unmount(self.0.path().join("storage/overlay"), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn podman_runs_containers_of_busybox_and_of_debian() {
    if let Some(why) = cannot_run().or_else(|| (!Path::new("/usr/bin/podman").exists()).then_some("podman is missing"))
    {
        println!("skipped: {why} (Debian: apt-get install podman)");
        return;
    }
    let podman = Podman::new();
    assert_eq!(out(&podman.run(&["--rm", "busybox", "echo", "hello"])), "hello\n");
    assert_eq!(podman.run(&["--rm", "busybox", "sh", "-c", "exit 9"]).status.code(), Some(9));
    let missing = podman.run(&["--rm", "busybox", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", err(&missing));
    assert_eq!(
        out(&podman.run(&["--rm", "--tty", "busybox", "sh", "-c", "test -t 0 && echo terminal"])),
        "terminal\r\n"
    );
    if Path::new("/etc/debian_version").exists() {
        // This machine's own root, below an overlay.
        let debian = podman.run(&["--rm", "--rootfs", "/:O", "cat", "/etc/debian_version"]);
        assert_eq!(out(&debian), fs::read_to_string("/etc/debian_version").unwrap(), "{}", err(&debian));
    }

    let started = podman.run(&["--detach", "--name", "one", "busybox", "sleep", "1000"]);
    assert!(started.status.success(), "{}", err(&started));
    let told = podman.works(&[
        "exec",
        "--user",
        "5:6",
        "--workdir",
        "/bin",
        "--env",
        "A=b",
        "one",
        "sh",
        "-c",
        "id; echo $PWD $A",
    ]);
    assert_eq!(told, "uid=5 gid=6\n/bin b");
    assert_eq!(podman.works(&["exec", "--tty", "one", "tty"]), "/dev/pts/0");
    assert_eq!(podman.command(&["exec", "one", "sh", "-c", "exit 3"]).status.code(), Some(3));
    assert!(podman.works(&["top", "one"]).contains("sleep 1000"));
    assert_eq!(podman.works(&["stats", "--no-stream", "--format", "{{.PIDs}}", "one"]), "1");
    let status = || podman.works(&["inspect", "--format", "{{.State.Status}}", "one"]);
    podman.works(&["pause", "one"]);
    assert_eq!(status(), "paused");
    podman.works(&["unpause", "one"]);
    assert_eq!(status(), "running");
    podman.works(&["update", "--memory", "64m", "one"]);
    podman.works(&["kill", "one"]);
    assert_eq!(podman.works(&["wait", "one"]), "137");
    assert_eq!(status(), "exited");
    podman.works(&["rm", "one"]);
    assert_eq!(podman.works(&["ps", "--all", "--quiet"]), "");
}
