//! Pulls images that Debian's tools have built and pushed, from Debian's registry, and runs one from an overlay.
//!
//! Needs root, docker-registry, skopeo and `shared/real-images/make.sh` beside the checkout; says so when they are
//! missing. The torture image checks its own unpacked tree: one line per thing that a layer store can get wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use skeg_images::{Client, Endpoint, Image, Limits, Platform, Reference, Sources, Store};
use support::RealRegistry;

/// An overlay of an image's layers, unmounted when it is dropped.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn mount(image: &Image) -> Result<Root, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        // An overlay cannot have its upper folder on another overlay: a tmpfs works everywhere.
        let mount = |source: &str, target: &Path, kind: &str, options: String| {
            let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
            rustix::mount::mount(source, target, kind, MountFlags::empty(), Some(options.as_c_str()))
                .map_err(|errno| format!("cannot mount {kind} (needs root): {errno}"))
        };
        mount("tmpfs", folder.path(), "tmpfs", "size=64m".to_owned())?;
        let root = Root { folder };
        for name in ["upper", "work", "root"] {
            fs::create_dir(root.path(name)).map_err(|error| error.to_string())?;
        }
        let lower: Vec<_> = image.layers.iter().rev().map(|layer| layer.display().to_string()).collect();
        let (upper, work) = (root.path("upper"), root.path("work"));
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        mount("overlay", &root.path("root"), "overlay", options)?;
        mount("proc", &root.path("root/proc"), "proc", String::new())?;
        Ok(root)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, command: &[&str]) -> std::process::Output {
        Command::new("/usr/sbin/chroot")
            .arg(self.path("root"))
            .args(command)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for name in ["root/proc", "root", ""] {
            let _ = rustix::mount::unmount(self.path(name), UnmountFlags::DETACH);
        }
    }
}

/// Builds the images once into the target folder and pushes them.
fn push_images(registry: &RealRegistry) -> Result<(), String> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let script = ["../shared", "../../shared"].map(|shared| checkout.join(shared).join("real-images/make.sh"));
    let Some(script) = script.iter().find(|script| script.exists()) else {
        return Err(format!("{} is not there", script[0].display()));
    };
    let output = Command::new(script)
        .args(["--push", &registry.address])
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-images"))
        .args(["torture:1", "busybox:1"])
        .output()
        .map_err(|error| format!("{}: {error}", script.display()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{} failed: {}", script.display(), String::from_utf8_lossy(&output.stderr))),
    }
}

async fn pull(store: &Store, registry: &RealRegistry, name: &str) -> Image {
    let reference: Reference = format!("{}/{name}", registry.address).parse().unwrap();
    let client = Client::new(Endpoint::for_registry(reference.registry(), true).unwrap());
    let digest = client.resolve(reference.repository(), reference.tag().unwrap()).await.unwrap();
    let sources = Sources::one(client, reference.repository());
    store.pull(&sources, &digest, &Platform::host(), &|_| ()).await.unwrap()
}

#[tokio::test]
async fn real_images_are_unpacked_as_their_own_check_wants_it() {
    let registry = match RealRegistry::start("") {
        Ok(registry) => registry,
        Err(why) => return println!("skipped: {why}"),
    };
    if let Err(why) = push_images(&registry) {
        return println!("skipped: {why}");
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let (torture, busybox) = tokio::join!(pull(&store, &registry, "torture:1"), pull(&store, &registry, "busybox:1"));
    assert_eq!((torture.layers.len(), busybox.layers.len()), (4, 1));
    let root = match Root::mount(&torture) {
        Ok(root) => root,
        Err(why) => return println!("skipped: {why}"),
    };
    let output = root.run(&["/torture/check.sh"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("ok    file capability at work"), "{text}");
    let root = Root::mount(&busybox).unwrap();
    let output = root.run(&["/bin/echo", "hello"]);
    assert_eq!(output.stdout, b"hello\n");
}
