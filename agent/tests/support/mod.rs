//! A device for tests: the real `skegd` under its own init, with a controller of the test beside it.

pub mod controller;
pub mod image;
pub mod needs;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use controller::Controller;
use skeg_protocol::manifest::{Image, ImageSource};
use skeg_protocol::{Container, ContainerState, Digest, Pod, PodStatus, Uid};

const SKEGD: &str = env!("CARGO_BIN_EXE_skegd");

/// Gives this test a network of its own, once: a device owns its network's bridges and packet rules, and there is one
/// device for each. Whatever the test starts afterwards is in it.
pub fn own_network() {
    thread_local!(static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if !DONE.replace(true) {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("/bin/busybox").args(["ip", "link", "set", "lo", "up"]).status().unwrap().success());
    }
}

/// One device.
pub struct Device {
    pub controller: Controller,
    pub image: Digest,
    pub folder: tempfile::TempDir,
    pub cgroup: String,
    config: PathBuf,
    init: Option<Child>,
}

impl Device {
    /// Starts a device that is enrolled and holds nothing. `name` must be its own in this test program.
    pub fn start(name: &str) -> Device {
        Device::start_with(name, "")
    }

    /// The same, with more in its configuration.
    pub fn start_with(name: &str, more: &str) -> Device {
        own_network();
        let (image, served) = image::make();
        let controller = Controller::start(served);
        let folder = tempfile::Builder::new().prefix("skeg-agent-").tempdir().unwrap();
        let cgroup = format!("skeg-test-{name}-{}", std::process::id());
        let config = folder.path().join("skegd.toml");
        let text = format!(
            "node_name = \"{name}\"\nstate_dir = {:?}\nrun_dir = {:?}\ncgroup = {cgroup:?}\n[controller]\naddress = \"{}\"\njoin_token = \"{}\"\n{more}",
            folder.path().join("state"),
            folder.path().join("run"),
            controller.address,
            controller.token,
        );
        fs::write(&config, text).unwrap();
        let mut device = Device { controller, image, folder, cgroup, config, init: None };
        device.power_on();
        device.controller.wait("the first hello", |told| told.hello.is_some());
        device
    }

    /// Starts init.
    pub fn power_on(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(SKEGD);
        command.arg("init").arg("--config").arg(&self.config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.init = Some(command.spawn().unwrap());
    }

    /// Ends init and with it the agent and all pods, as a shutdown does.
    pub fn power_off(&mut self) {
        let Some(mut init) = self.init.take() else { return };
        let pid = rustix::process::Pid::from_child(&init);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = init.wait().unwrap();
        assert!(status.success(), "init ended with {status}\n{}", self.log());
    }

    /// What init and agent wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The agent's process.
    pub fn agent(&self) -> Option<rustix::process::Pid> {
        let init = self.init.as_ref().unwrap().id();
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap_or_default();
        let is_agent = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).nth(1) == Some(b"agent")
        };
        let pid = children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_agent)?;
        rustix::process::Pid::from_raw(pid)
    }

    /// Kills the agent with signal 9 and waits until another one answers.
    pub fn kill_agent(&self) {
        let old = until("an agent", || self.agent());
        rustix::process::kill_process(old, rustix::process::Signal::KILL).unwrap();
        until("a new agent", || self.agent().filter(|new| *new != old));
        until("the new agent's answer", || self.skegd(&["ps"]).status.success().then_some(()));
    }

    /// Runs a local command.
    pub fn skegd(&self, words: &[&str]) -> Output {
        let (command, rest) = words.split_first().unwrap();
        Command::new(SKEGD)
            .arg(command)
            .arg("--config")
            .arg(&self.config)
            .args(rest)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// A command whose standard streams the test gives itself.
    pub fn command(&self, words: &[&str]) -> Command {
        let (command, rest) = words.split_first().unwrap();
        let mut out = Command::new(SKEGD);
        out.arg(command).arg("--config").arg(&self.config).args(rest);
        out
    }

    /// A pod of one container that runs a shell script.
    pub fn pod(&self, number: u8, name: &str, script: &str) -> Pod {
        Pod {
            uid: uid(number),
            namespace: "default".try_into().unwrap(),
            name: name.try_into().unwrap(),
            termination_grace_seconds: 2,
            containers: vec![Container {
                name: "main".try_into().unwrap(),
                image: Image {
                    reference: "demo:1".to_owned(),
                    digest: self.image,
                    source: ImageSource::Controller(image::REPOSITORY.to_owned()),
                },
                args: vec![script.to_owned()],
                ..Container::default()
            }],
            ..Pod::default()
        }
    }

    /// What is mounted below the device's folder.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.folder.path().to_str().unwrap().to_owned();
        table.lines().filter(|line| line.contains(&folder)).map(str::to_owned).collect()
    }

    /// Cgroup folders of the device, in every hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let roots = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        let ours = roots.chain(["/sys/fs/cgroup".into()]).map(|root: PathBuf| root.join(&self.cgroup));
        ours.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the device\n{}", self.log());
        }
        if let Some(mut init) = self.init.take() {
            let pid = rustix::process::Pid::from_child(&init);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
            init.wait().ok();
        }
    }
}

/// The uid of the n-th pod.
pub fn uid(number: u8) -> Uid {
    Uid([number; 16])
}

/// Asks again until there is an answer. For what nobody tells; a broken test takes 90 s.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the pod's first container runs.
pub fn runs(pod: &PodStatus) -> bool {
    matches!(pod.containers[0].state, ContainerState::Running { .. })
}

/// Why the pod's first container waits, in its two words.
pub fn waits(pod: &PodStatus) -> Option<(&str, &str)> {
    match &pod.containers[0].state {
        ContainerState::Waiting { reason, message } => Some((reason, message)),
        _ => None,
    }
}

/// Standard output as text.
pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
