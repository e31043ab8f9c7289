//! Kills a process with signal 9 in the middle of a pull, at 50 random points: the store always comes back whole, goes
//! on with what it has, and ends with the right image.
//!
//! The points are bytes on the wire, so that they do not depend on the machine's speed; the seed is printed and can be
//! given in `SKEG_SEED`. What a power cut adds to this (lost writes) is for boards under QEMU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
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
        for file in 0..20 {
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
    let store = Store::open(Path::new(folder), Limits::default()).unwrap();
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

#[test]
fn a_store_whose_process_is_killed_at_any_point_comes_back_and_goes_on() {
    let seed = std::env::var("SKEG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let mut bytes = [0; 8];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    });
    println!("SKEG_SEED={seed}");
    let mut random = Random(seed);
    let (digest, documents) = image(&mut random);
    let total: usize = documents.values().map(Vec::len).sum();
    let registry = Registry::start(documents);
    let mut folder = tempfile::tempdir().unwrap();
    let (mut whole, mut killed) = (0, 0);
    for round in 0..ROUNDS {
        {
            // The registry waits at the lock until it knows whom to kill.
            let mut victim = registry.victim.lock().unwrap();
            victim.left = 1 + random.next() as usize % total;
            victim.process = Some(start(folder.path(), &registry, &digest));
        }
        let status = wait(&registry);
        let store = Store::open(folder.path(), Limits::default()).unwrap();
        let verified = store.verify(&|_, _| ()).unwrap();
        assert_eq!((&verified.broken[..], &verified.incomplete[..]), (&[][..], &[][..]), "round {round}");
        let there = store.image(&digest).unwrap();
        assert!(!status.success() || there.is_some(), "round {round}: {status}");
        match there {
            Some(image) => {
                assert_eq!((image.layers.len(), verified.layers), (3, 3));
                whole += 1;
                drop(store);
                folder = tempfile::tempdir().unwrap();
            }
            None => killed += 1,
        }
    }
    let sent = registry.victim.lock().unwrap().sent;
    println!("{killed} pulls were cut off, {whole} became whole, {sent} bytes were sent for {total}");
    // Each image was fetched about once: what was there was not fetched again.
    assert!(whole > 0 && killed > 0);
    assert!(sent < (whole + 1) * total * 2, "{sent} bytes for {whole} images of {total}");
}

/// Waits for the process to end, killed or done.
fn wait(registry: &Registry) -> std::process::ExitStatus {
    let pid = rustix::process::Pid::from_child(registry.victim.lock().unwrap().process.as_ref().unwrap());
    // The registry needs the lock to kill, so the end is awaited without it, and the exit left to be reaped.
    let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
    rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
    registry.victim.lock().unwrap().process.take().unwrap().wait().unwrap()
}
