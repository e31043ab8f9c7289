//! Ends a process with signal 9 in the middle of a pull, at 50 random points, and cuts the power of its disk at 50
//! more: the store always comes back whole, goes on with what it has, and ends with the right image.
//!
//! The points are bytes on the wire, so that they do not depend on the machine's speed; the seed is printed and can be
//! given in `SKEG_SEED`. The power cut is one of everything but the disk: an ext4 on a loop device, of which only what
//! the kernel has written to the device is kept, and nothing of what it still had in memory. Needs root for that.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::json;
use skeg_images::{Client, Digest, Endpoint, Limits, Platform, Sources, Store};

const ROUNDS: u32 = 50;
const PIECE: usize = 4096;

/// A generator of numbers that repeats for its seed (SplitMix64, Steele and others 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

/// The process that pulls, and how many bytes it may still get before it is killed.
#[derive(Default)]
struct Victim {
    process: Option<Child>,
    left: usize,
    /// Bytes sent in all rounds.
    sent: usize,
}

/// A registry that kills its client after so many bytes.
struct Registry {
    address: String,
    documents: HashMap<String, Vec<u8>>,
    victim: Mutex<Victim>,
}

impl Registry {
    fn start(documents: HashMap<String, Vec<u8>>) -> Arc<Registry> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = Arc::new(Registry { address, documents, victim: Mutex::default() });
        let server = Arc::clone(&registry);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                // A client that is killed breaks its connections off.
                std::thread::spawn(move || server.serve(&stream).unwrap_or_default());
            }
        });
        registry
    }

    fn serve(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        // What waits in the kernel when the client is killed is lost to it: that must be little.
        rustix::net::sockopt::set_socket_send_buffer_size(stream, PIECE)?;
        let mut lines = BufReader::new(stream).lines();
        while let Some(first) = lines.next().transpose()? {
            let mut from = 0;
            for line in lines.by_ref() {
                let line = line?.to_ascii_lowercase();
                if let Some(range) = line.strip_prefix("range: bytes=") {
                    from = range.trim_end_matches('-').parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            let path = first.split(' ').nth(1).unwrap_or_default();
            let body = &self.documents[path][from..];
            let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
            let kind = "application/vnd.oci.image.manifest.v1+json";
            write!(stream, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len())?;
            for piece in body.chunks(PIECE) {
                stream.write_all(piece)?;
                let mut victim = self.victim.lock().unwrap();
                victim.sent += piece.len();
                victim.left = victim.left.saturating_sub(piece.len());
                if victim.left == 0
                    && let Some(process) = &mut victim.process
                {
                    process.kill()?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// An image of three layers with files that do not compress, as the registry's documents.
fn image(random: &mut Random) -> (Digest, HashMap<String, Vec<u8>>) {
    let (mut documents, mut layers, mut diff_ids) = (HashMap::new(), Vec::new(), Vec::new());
    let mut add = |kind: &str, bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        documents.insert(format!("/v2/demo/{kind}/{digest}"), bytes);
        (digest, size)
    };
    for layer in 0..3 {
        let mut tar = tar::Builder::new(Vec::new());
        // The first layers are in their place while the others still come.
        for file in 0..5 + layer * 15 {
            let data: Vec<u8> = (0..20_000 + file * 300).flat_map(|_| random.next().to_le_bytes()).collect();
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("layer{layer}/file{file}"), &data[..]).unwrap();
        }
        let (digest, size) = add("blobs", tar.into_inner().unwrap());
        diff_ids.push(digest.to_string());
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        layers.push(json!({"mediaType": media_type, "digest": digest.to_string(), "size": size}));
    }
    let config = json!({
        "architecture": Platform::host().architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let (config, size) = add("blobs", config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": size},
        "layers": layers,
    });
    let (digest, _) = add("manifests", manifest.to_string().into_bytes());
    (digest, documents)
}

/// What the process that is killed does. Run by the test itself, with its orders in the environment.
#[test]
fn process_to_be_killed() {
    let Ok(orders) = std::env::var("SKEG_CRASH_TEST") else { return };
    let [folder, address, digest] = orders.split('\n').collect::<Vec<_>>()[..] else { panic!("{orders}") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limits = Limits { reserve: Some(0), ..Limits::default() };
    let store = Store::open(Path::new(folder), limits).unwrap();
    let sources = Sources::one(Client::new(Endpoint::for_registry(address, true).unwrap()), "demo");
    let digest = digest.parse().unwrap();
    runtime.block_on(store.pull(&sources, &digest, &Platform::host(), &|_| ())).unwrap();
    store.name(&digest, "demo:1").unwrap();
}

fn start(folder: &Path, registry: &Registry, digest: &Digest) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_to_be_killed"])
        .env("SKEG_CRASH_TEST", format!("{}\n{}\n{digest}", folder.display(), registry.address))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Seed of a test: given, or the kernel's.
fn seed() -> u64 {
    let given = std::env::var("SKEG_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let mut bytes = [0; 8];
        File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    });
    println!("SKEG_SEED={seed}");
    seed
}

/// A registry, an image in it, and how it went.
struct Trial {
    random: Random,
    registry: Arc<Registry>,
    digest: Digest,
    /// Bytes of the whole image.
    total: usize,
    whole: usize,
    cut: usize,
}

impl Trial {
    fn new() -> Trial {
        let mut random = Random(seed());
        let (digest, documents) = image(&mut random);
        let total = documents.values().map(Vec::len).sum();
        Trial { random, registry: Registry::start(documents), digest, total, whole: 0, cut: 0 }
    }

    /// Pulls until the process is killed, or done before that.
    fn pull(&mut self, folder: &Path) -> bool {
        {
            // The registry waits at the lock until it knows whom to kill.
            let mut victim = self.registry.victim.lock().unwrap();
            // One of three pulls comes to its end, and what it has then said to be there must be there.
            victim.left = 1 + self.random.next() as usize % (self.total * 3 / 2);
            victim.process = Some(start(folder, &self.registry, &self.digest));
        }
        let status = wait(&self.registry);
        assert!(status.success() || status.signal() == Some(9), "the pull failed: {status}");
        status.success()
    }

    /// Checks what is left; tells whether it is the whole image.
    fn check(&mut self, folder: &Path, done: bool) -> bool {
        let store = Store::open(folder, Limits::default()).unwrap();
        let verified = store.verify(&|_, _| ()).unwrap();
        assert_eq!((&verified.broken[..], &verified.incomplete[..]), (&[][..], &[][..]));
        let there = store.image(&self.digest).unwrap();
        assert!(!done || there.is_some(), "a pull that was done is not there");
        match there {
            Some(image) => {
                assert_eq!((image.layers.len(), verified.layers), (3, 3));
                self.whole += 1;
                true
            }
            None => {
                self.cut += 1;
                false
            }
        }
    }

    /// Each image was fetched about once: what was there was not fetched again.
    fn end(&self) {
        let sent = self.registry.victim.lock().unwrap().sent;
        println!("{} pulls cut off, {} whole, {sent} bytes sent for images of {}", self.cut, self.whole, self.total);
        assert!(self.whole > 0 && self.cut > 0);
        assert!(sent < (self.whole + 1) * self.total * 2, "what was there was fetched again");
    }
}

#[test]
fn a_store_whose_process_is_killed_at_any_point_comes_back_and_goes_on() {
    let mut trial = Trial::new();
    let mut folder = tempfile::tempdir().unwrap();
    for _ in 0..ROUNDS {
        let done = trial.pull(folder.path());
        if trial.check(folder.path(), done) {
            folder = tempfile::tempdir().unwrap();
        }
    }
    trial.end();
}

/// An ext4 in a file, mounted; unmounted when it is dropped.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    const SIZE: u64 = 96 << 20;

    fn new() -> Result<Disk, String> {
        let disk = Disk { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(disk.root()).unwrap();
        disk.format()?;
        disk.mount()?;
        Ok(disk)
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn format(&self) -> Result<(), String> {
        let file = File::create(self.image()).unwrap();
        file.set_len(Disk::SIZE).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(self.image()))
    }

    fn mount(&self) -> Result<(), String> {
        // The journal is written for a sync only, not every five seconds: what was not synced is lost for certain.
        run(Command::new("mount").args(["-o", "loop,commit=300"]).arg(self.image()).arg(self.root()))
    }

    /// Keeps what the kernel has written to the device, and forgets what it had in memory.
    fn cut_power(&self) {
        let kept = self.folder.path().join("kept");
        std::fs::copy(self.image(), &kept).unwrap();
        run(Command::new("umount").arg(self.root())).unwrap();
        std::fs::rename(kept, self.image()).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // One that was not mounted is no matter.
        let _ = run(Command::new("umount").arg(self.root()));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

#[test]
fn a_store_whose_power_is_cut_at_any_point_comes_back_and_goes_on() {
    let mut disk = match Disk::new() {
        Ok(disk) => disk,
        Err(why) => return println!("skipped: no file system on a loop device (needs root): {why}"),
    };
    let mut trial = Trial::new();
    for _ in 0..ROUNDS {
        let store = disk.root().join("store");
        let done = trial.pull(&store);
        disk.cut_power();
        if store.join("open").exists() {
            // The power came back with another boot.
            std::fs::write(store.join("open"), "the boot before").unwrap();
        }
        if trial.check(&store, done) {
            drop(disk);
            disk = Disk::new().unwrap();
        }
    }
    println!("{} pulls cut off, {} whole", trial.cut, trial.whole);
    assert!(trial.whole > 0 && trial.cut > 0);
}

/// Waits for the process to end, killed or done.
fn wait(registry: &Registry) -> std::process::ExitStatus {
    let pid = rustix::process::Pid::from_child(registry.victim.lock().unwrap().process.as_ref().unwrap());
    // The registry needs the lock to kill, so the end is awaited without it, and the exit left to be reaped.
    let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
    rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
    registry.victim.lock().unwrap().process.take().unwrap().wait().unwrap()
}
