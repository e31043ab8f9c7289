//! One controller and its nodes on this machine: starts the binaries, runs the commands that a user would run,
//! waits for conditions, and takes everything away again when dropped, whatever happened.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skeg_qemu_tests::controller::Controller;
use tempfile::TempDir;

/// How long a condition may take on a machine with two busy cores. Only a failure ever waits that long.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `probe` gives a value.
fn until<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if begin.elapsed() > PATIENCE => {
                panic!("{what} did not come true in {PATIENCE:?}; last seen: {last}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn run(program: impl AsRef<OsStr>, args: &[&str]) -> Output {
    let program = program.as_ref();
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()))
}

fn succeed(program: impl AsRef<OsStr>, args: &[&str]) -> String {
    let program = program.as_ref();
    let output = run(program, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {args:?}: {}\n{errors}", program.display(), output.status);
    String::from_utf8(output.stdout).expect("our commands print UTF-8")
}

/// A pod named `name` with one container `main`.
pub fn pod(name: &str, image: &str, command: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": image, "command": command }],
        },
    })
}

/// The same, changed by `change`, which gets the pod's `spec`.
pub fn pod_with(name: &str, image: &str, command: &[&str], change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod(name, image, command);
    change(&mut pod["spec"]);
    pod
}

/// An image in an OCI layout, built by umoci.
pub struct Image {
    layout: TempDir,
    name: String,
}

impl Image {
    fn new(name: &str) -> Self {
        let this = Image { layout: TempDir::new().expect("the temp folder is writable"), name: name.to_owned() };
        succeed("umoci", &["init", "--layout", &this.folder()]);
        succeed("umoci", &["new", "--image", &this.tagged()]);
        this
    }

    fn folder(&self) -> String {
        self.layout.path().join("layout").display().to_string()
    }

    fn tagged(&self) -> String {
        format!("{}:latest", self.folder())
    }

    fn insert(self, source: &Path, target: &str) -> Self {
        succeed("umoci", &["insert", "--image", &self.tagged(), &source.display().to_string(), target]);
        self
    }

    /// Debian's static busybox with its applets, which are links to where Debian installs it.
    pub fn busybox(name: &str) -> Self {
        let root = TempDir::new().expect("the temp folder is writable");
        let applets = root.path().join("bin");
        fs::create_dir_all(root.path().join("usr/bin")).expect("the folder is ours");
        fs::create_dir(&applets).expect("the folder is ours");
        fs::copy("/usr/bin/busybox", root.path().join("usr/bin/busybox")).expect("busybox-static is installed");
        succeed("/usr/bin/busybox", &["--install", "-s", &applets.display().to_string()]);
        Self::new(name).insert(root.path(), "/")
    }

    /// A Debian root in three layers: mmdebstrap's, one file more, one file less.
    pub fn debian(name: &str) -> Self {
        let work = TempDir::new().expect("the temp folder is writable");
        let root = work.path().join("root");
        // The test's own network has no way out; this program's first thread is still in the machine's.
        let outside = format!("--net=/proc/{}/ns/net", std::process::id());
        let root_name = root.display().to_string();
        succeed("nsenter", &[&outside, "mmdebstrap", "-q", "--variant=minbase", "bookworm", &root_name]);
        fs::remove_dir_all(root.join("dev")).expect("the folder is ours");
        let file = work.path().join("layer-2");
        fs::write(&file, "second layer\n").expect("the folder is ours");
        let image = Self::new(name).insert(&root, "/").insert(&file, "/etc/layer-2");
        succeed("umoci", &["insert", "--image", &image.tagged(), "--whiteout", "/etc/issue"]);
        image
    }

    /// Busybox under a layer with a file that climbs out of the root.
    pub fn escaping(name: &str) -> Self {
        let image = Self::busybox(name);
        let work = image.layout.path();
        fs::write(work.join("skeg-escaped"), "out").expect("the folder is ours");
        let archive = work.join("escape.tar").display().to_string();
        let rename = "--transform=s,^,../../../../../../../tmp/,";
        succeed("tar", &["-P", "-cf", &archive, "-C", &work.display().to_string(), rename, "skeg-escaped"]);
        succeed("umoci", &["raw", "add-layer", "--image", &image.tagged(), &archive]);
        image
    }

    /// A further layer that no other image has.
    pub fn with_own_layer(self, content: &str) -> Self {
        let file = self.layout.path().join("own");
        fs::write(&file, content).expect("the folder is ours");
        self.insert(&file, "/own")
    }

    /// A further layer of so many bytes that do not compress.
    pub fn with_random_layer(self, bytes: u64) -> Self {
        let file = self.layout.path().join("random");
        let mut source = std::io::Read::take(fs::File::open("/dev/urandom").expect("it always exists"), bytes);
        std::io::copy(&mut source, &mut fs::File::create(&file).expect("the folder is ours"))
            .expect("the disk has room");
        self.insert(&file, "/random")
    }

    /// Hex digest of the last layer.
    fn last_layer(&self) -> String {
        let blob = |digest: &str| {
            let path = format!("{}/blobs/sha256/{}", self.folder(), digest.trim_start_matches("sha256:"));
            serde_json::from_slice::<Value>(&fs::read(path).expect("umoci wrote it")).expect("umoci wrote JSON")
        };
        let index: Value =
            serde_json::from_slice(&fs::read(format!("{}/index.json", self.folder())).expect("umoci wrote it"))
                .expect("umoci wrote JSON");
        let manifest = blob(index["manifests"][0]["digest"].as_str().expect("a digest is a string"));
        let layers = manifest["layers"].as_array().expect("layers are a list");
        let digest = layers.last().expect("there is one")["digest"].as_str().expect("a digest is a string");
        digest.trim_start_matches("sha256:").to_owned()
    }
}

/// A node: `skegd init` with its agent and its pods.
pub struct Node {
    init: Child,
    folder: PathBuf,
    cgroup: String,
}

impl Node {
    fn start(folder: PathBuf, name: &str, controller: &str, token: &str) -> Self {
        fs::create_dir_all(&folder).expect("the folder is ours");
        // Fleets of several tests run side by side; the temp folder's name is each one's own.
        let fleet = folder.parent().and_then(Path::file_name).expect("a node's folder lies in its fleet's");
        let cgroup = format!("skeg-test{}-{name}", fleet.display());
        let config = format!(
            "node_name = {name:?}\nstate_dir = {:?}\nrun_dir = {:?}\ncgroup = {cgroup:?}\n[controller]\naddress = {controller:?}\njoin_token = {token:?}\n",
            folder.join("state"),
            folder.join("run"),
        );
        fs::write(folder.join("skegd.toml"), config).expect("the folder is ours");
        let log = fs::File::create(folder.join("log")).expect("the folder is ours");
        let init = Command::new(binary("skegd"))
            .args(["init", "--config"])
            .arg(folder.join("skegd.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be copied"))
            .stderr(log)
            // A group of its own, so that an interrupt at the terminal reaches the test and not the node.
            .process_group(0)
            .spawn()
            .expect("the binary was checked to exist");
        Node { init, folder, cgroup }
    }

    /// The agent's process, if one runs.
    fn agent(&self) -> Option<i32> {
        let init = self.init.id();
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).nth(1) == Some(b"agent")
        })
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until the node's own log holds a word.
    pub fn wait_for_log(&self, word: &str) {
        until(&format!("{word:?} in the node's log"), || {
            let log = self.log();
            if log.contains(word) { Ok(()) } else { Err(log) }
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the node {}\n{}", self.cgroup, self.log());
        }
        succeed("kill", &["-TERM", &self.init.id().to_string()]);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && matches!(self.init.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Only a node that failed to stop is still there; its pods would outlive the test otherwise.
        let _ = self.init.kill();
        let _ = self.init.wait();
        let left = leftovers(&self.folder, &self.cgroup);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "the node left behind: {left:?}; its log:\n{}", self.log());
        }
    }
}

/// Mounts and cgroups that a stopped node should have taken away.
fn leftovers(folder: &Path, cgroup: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let below = format!("{}/", folder.display());
    let mut left: Vec<String> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        // The state folder itself may be a mount that the test made.
        .filter(|target| target.starts_with(&below) && !target.ends_with("/state"))
        .map(str::to_owned)
        .collect();
    for folder in cgroup_folders(cgroup) {
        left.push(succeed("find", &[&folder.display().to_string(), "-type", "d"]));
    }
    left
}

/// The folders of a cgroup in every hierarchy of this machine.
fn cgroup_folders(cgroup: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).expect("cgroups are mounted").filter_map(|entry| Some(entry.ok()?.path()));
    [root.to_owned()]
        .into_iter()
        .chain(hierarchies)
        .map(|path| path.join(cgroup))
        .filter(|path| path.is_dir())
        .collect()
}

/// A static binary that `cargo xtask test` builds first.
fn binary(name: &str) -> PathBuf {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(target).join("release").join(name)
}

/// Says why these tests cannot run here, if so.
fn obstacle() -> Option<String> {
    let missing = ["skeg", "skegd"].into_iter().find(|name| !binary(name).exists());
    if let Some(name) = missing {
        return Some(format!("{} is missing; `cargo xtask test` builds it", binary(name).display()));
    }
    let tool =
        ["umoci", "skopeo", "mmdebstrap", "busybox"].into_iter().find(|tool| !run("which", &[tool]).status.success());
    if let Some(tool) = tool {
        return Some(format!("{tool} is missing; `cargo xtask test` installs it"));
    }
    (succeed("id", &["-u"]).trim() != "0").then(|| "containers need root".to_owned())
}

/// Gives this test a network of its own: a node owns its network's bridges and packet rules.
fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("containers need root, too");
    succeed("busybox", &["ip", "link", "set", "lo", "up"]);
}

/// A controller and its first node.
pub struct Fleet {
    // Dropped in this order: a node reports the end of its pods to a controller that still listens.
    node: Option<Node>,
    controller: Controller,
    _state: Option<Memory>,
    /// The token that the first node used.
    pub token: String,
    dir: TempDir,
}

/// A file system in memory of bounded size.
struct Memory(PathBuf);

impl Memory {
    fn mount(folder: PathBuf, bytes: u64) -> Self {
        fs::create_dir_all(&folder).expect("the folder is ours");
        let (options, target) = (format!("size={bytes}"), folder.display().to_string());
        succeed("mount", &["-t", "tmpfs", "-o", &options, "skeg-test", &target]);
        Memory(folder)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        succeed("umount", &[&self.0.display().to_string()]);
    }
}

impl Fleet {
    /// Starts both; `None`, said aloud, where the machine cannot.
    pub fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// The same with a node whose state lies on a file system of so many bytes.
    pub fn start_with_state_of(bytes: u64) -> Option<Self> {
        Self::start_with(Some(bytes))
    }

    fn start_with(state_bytes: Option<u64>) -> Option<Self> {
        if let Some(obstacle) = obstacle() {
            assert!(std::env::var_os("CI").is_none(), "{obstacle}");
            println!("skipped: {obstacle}");
            return None;
        }
        own_network();
        let dir = TempDir::new().expect("the temp folder is writable");
        let controller = Controller::start(&binary("skeg"), &dir.path().join("controller"));
        let controller = controller.unwrap_or_else(|error| panic!("{error:#}"));
        let state = state_bytes.map(|bytes| Memory::mount(dir.path().join("node/state"), bytes));
        let mut fleet = Fleet { node: None, controller, _state: state, token: String::new(), dir };
        fleet.token = fleet.skeg(&["token", "create"]).trim().to_owned();
        fleet.node = Some(fleet.start_node_in("node", "first", &fleet.token));
        until("the node is Ready", || {
            let nodes = fleet.skeg(&["get", "nodes"]);
            if nodes.lines().any(|line| line.starts_with("first") && line.contains(" Ready")) {
                Ok(())
            } else {
                Err(nodes)
            }
        });
        Some(fleet)
    }

    fn start_node_in(&self, folder: &str, name: &str, token: &str) -> Node {
        Node::start(self.path(folder), name, self.controller.address(), token)
    }

    /// Starts a further node.
    pub fn start_node(&self, name: &str, token: &str) -> Node {
        self.start_node_in(name, name, token)
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("it runs as long as the fleet")
    }

    /// A path in the fleet's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs an operator's command.
    pub fn skeg(&self, args: &[&str]) -> String {
        self.controller.skeg(args).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs a command on the node.
    pub fn skegd(&self, args: &[&str]) -> String {
        let config = self.node().folder.join("skegd.toml").display().to_string();
        let (command, rest) = args.split_first().expect("a command has a name");
        succeed(binary("skegd"), &[&[command, "--config", &config], rest].concat())
    }

    pub fn apply(&self, object: &Value) {
        self.controller.apply(object).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Applies what must be refused; gives the error.
    pub fn apply_fails(&self, object: &Value) -> String {
        match self.controller.apply(object) {
            Ok(()) => panic!("this was taken:\n{object:#}"),
            Err(error) => format!("{error:#}"),
        }
    }

    pub fn get(&self, name: &str) -> Value {
        self.controller.pod(name).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits until a pod is as it should be; gives it.
    pub fn wait_for(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(&format!("pod {name}: {what}"), || {
            let pod = self.get(name);
            if holds(&pod) { Ok(pod) } else { Err(format!("{:#}", pod["status"])) }
        })
    }

    /// Waits until a pod's container waits for one of these reasons with a message that names `word`.
    pub fn wait_for_waiting(&self, name: &str, reasons: &[&str], word: &str) {
        self.wait_for(name, &format!("waiting for one of {reasons:?}, naming {word:?}"), |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"].as_str().is_some_and(|reason| reasons.contains(&reason))
                && waiting["message"].as_str().is_some_and(|message| message.contains(word))
        });
    }

    /// Waits until a pod's status names `word` anywhere.
    pub fn wait_for_message(&self, name: &str, word: &str) {
        self.wait_for(name, &format!("a status that names {word:?}"), |pod| {
            pod["status"]["containerStatuses"].to_string().contains(word)
        });
    }

    /// Waits until the controller's list of join tokens holds a word.
    pub fn wait_for_token_list(&self, word: &str) {
        until(&format!("{word:?} in the list of tokens"), || {
            let list = self.skeg(&["token", "list"]);
            if list.contains(word) { Ok(()) } else { Err(list) }
        });
    }

    /// The process on this machine that is number 1 of the pod's container.
    pub fn process_of(&self, name: &str) -> i32 {
        let pod = self.get(name);
        let uid = pod["metadata"]["uid"].as_str().expect("every object has one").to_owned();
        let cgroup = format!("{}/{uid}/main", self.node().cgroup);
        let processes = cgroup_folders(&cgroup)
            .into_iter()
            .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
            .find(|process| {
                let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
                status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
            });
        processes.unwrap_or_else(|| panic!("{name} has no process in the cgroup {cgroup}"))
    }

    /// Everything that a pod logged, as the node's own command shows it.
    pub fn node_log(&self, name: &str) -> String {
        self.skegd(&["logs", name])
    }

    pub fn kill_agent(&mut self) {
        let agent = until("an agent runs", || self.node().agent().ok_or_else(|| "none".to_owned()));
        succeed("kill", &["-KILL", &agent.to_string()]);
        until("the agent is gone", || {
            if self.node().agent() == Some(agent) { Err(format!("{agent} lives")) } else { Ok(()) }
        });
    }

    /// Waits until the agent that init started anew answers.
    pub fn wait_for_new_agent(&self) {
        let config = self.node().folder.join("skegd.toml").display().to_string();
        until("the new agent answers", || {
            let output = run(binary("skegd"), &["ps", "--config", &config]);
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
    }

    /// Pushes an image into the controller's registry as a user would.
    pub fn push(&mut self, image: &Image) {
        let pushed = self.controller.push(&format!("oci:{}", image.tagged()), &image.name);
        pushed.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Changes one byte of a layer in the registry: the time in gzip's header, which unpacking does not read.
    pub fn corrupt_last_layer(&self, image: &Image) {
        let digest = image.last_layer();
        let found = succeed("find", &[&self.controller.data().display().to_string(), "-type", "f", "-name", &digest]);
        let path = found.trim();
        assert!(!path.is_empty(), "the registry holds no file {digest}");
        let mut bytes = fs::read(path).expect("find found it");
        bytes[4] ^= 0xff;
        fs::write(path, bytes).expect("the folder is ours");
    }
}
