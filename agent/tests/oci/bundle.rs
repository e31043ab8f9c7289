//! A bundle for tests of the OCI command line: busybox as its root, and the real `skegd oci`.

use std::fs;
use std::io::{IoSliceMut, Read, Seek};
use std::mem::MaybeUninit;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

pub const SKEGD: &str = env!("CARGO_BIN_EXE_skegd");
/// Where the kernel shows cgroups, by both versions and in the hybrid form.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A bundle, with a folder of its own for states and a cgroup of its own.
pub struct Bundle {
    pub folder: tempfile::TempDir,
    pub cgroup: String,
}

impl Bundle {
    /// Makes the bundle of a program. `name` must be its own in this test program.
    pub fn new(name: &str, arguments: &[&str]) -> Bundle {
        let folder = tempfile::Builder::new().prefix("skeg-oci-").tempdir().unwrap();
        fill(&folder.path().join("rootfs"));
        let bundle = Bundle { folder, cgroup: format!("skeg-oci-{name}-{}", std::process::id()) };
        bundle.works(&["spec"]);
        bundle.change(|config| {
            config["process"]["args"] = json!(arguments);
            config["process"]["terminal"] = json!(false);
            config["root"]["readonly"] = json!(false);
            config["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.cgroup));
        });
        bundle
    }

    /// The container's root.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    /// What is given as `--root`.
    pub fn state_folder(&self) -> PathBuf {
        self.folder.path().join("states")
    }

    /// Changes config.json.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.folder.path().join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    }

    /// `skegd oci` with arguments, in the bundle.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SKEGD);
        command.args(["oci", "--root"]).arg(self.state_folder()).args(arguments);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs it.
    pub fn oci(&self, arguments: &[&str]) -> Output {
        Running::spawn(self.command(arguments)).wait()
    }

    /// Runs it and expects success; gives the output.
    pub fn works(&self, arguments: &[&str]) -> String {
        let output = self.oci(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", err(&output));
        out(&output)
    }

    /// The container's state.
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.works(&["state", id])).unwrap()
    }

    /// Every folder of the cgroup in any hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir(CGROUPS).unwrap().map(|entry| entry.unwrap().path());
        let folders = hierarchies.chain([PathBuf::from(CGROUPS)]).map(|hierarchy| hierarchy.join(&self.cgroup));
        folders.filter(|folder| folder.exists()).collect()
    }

    /// Removes the folder above several containers' cgroups.
    pub fn remove_cgroups(&self) {
        self.cgroups().iter().for_each(|folder| fs::remove_dir(folder).unwrap());
    }

    /// Checks that no container left anything: no state, no cgroup and so no process.
    pub fn nothing_is_left(&self) {
        let states = fs::read_dir(self.state_folder()).into_iter().flatten();
        assert_eq!(states.map(|entry| entry.unwrap().path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
    }
}

/// A command that runs. Its output goes to files: a container that stays would hold a pipe open.
pub struct Running {
    pub child: Child,
    files: [fs::File; 2],
}

impl Running {
    /// Starts a command.
    pub fn spawn(mut command: Command) -> Running {
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let [stdout, stderr] = files.each_ref().map(|file| file.try_clone().unwrap());
        Running { child: command.stdout(stdout).stderr(stderr).spawn().unwrap(), files }
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        let status = self.child.wait().unwrap();
        let [stdout, stderr] = self.files.each_mut().map(|file| {
            let mut bytes = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        });
        Output { status, stdout, stderr }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // A test that failed must not leave processes; one that did not has checked that nothing is left.
        let ids = self.oci(&["list", "-q"]);
        for id in out(&ids).lines() {
            self.oci(&["delete", "--force", id]);
        }
    }
}

/// Makes a root of busybox.
pub fn fill(root: &Path) {
    let bin = root.join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in ["cat", "echo", "id", "ls", "sed", "sh", "sleep", "tail", "test", "tr", "true", "tty"] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
}

/// Takes a namespace out of a configuration.
pub fn without(config: &mut Value, kind: &str) {
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != kind);
}

/// Receives a descriptor.
pub fn receive_file(socket: &UnixStream) -> fs::File {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut buffer = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0; 256])], &mut buffer, RecvFlags::empty()).unwrap();
    let received = buffer.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.unwrap().into()
}

/// What a command wrote to its standard output.
pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command wrote to its standard error.
pub fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Waits for something that the kernel or a container will do.
pub fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
