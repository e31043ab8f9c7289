//! What is on the disk: seals, the quick and the deep check, room, and removal beside pulls.

use std::os::unix::fs::PermissionsExt;

use super::tests::{chain, pull, store, two_layers};
use super::*;
use crate::testing::*;

/// An archive with one of each kind of entry that a layer may have.
pub(super) fn every_kind() -> Vec<u8> {
    TarFile::new()
        .folder("./", 0o755)
        .folder("bin", 0o755)
        .file("bin/tool", &[1; 70_000])
        .raw(b'0', "bin/set", "", 0o4755, b"x")
        .hard_link("bin/same", "bin/tool")
        .symlink("bin/link", "tool")
        .raw(b'6', "queue", "", 0o600, b"")
        .raw(b'3', "dev/null", "", 0o666, b"")
        .file("gone/.wh.file", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("empty", b"")
        .pax(&[("path", &[&b"long/".repeat(50)[..], b"name"].concat()), ("SCHILY.xattr.user.note", b"hello")])
        .file("long", b"data")
        .bytes()
}

async fn pulled(layers: &[(Vec<u8>, Vec<u8>)]) -> (tempfile::TempDir, Store, Registry, Digest) {
    let registry = Registry::start().await;
    let digest = registry.add_image("demo/web", "1", layers);
    let (folder, store) = store();
    pull(&store, &registry, &digest).await.unwrap();
    (folder, store, registry, digest)
}

/// What is done to a layer's files, and its name.
type Damage = (&'static str, fn(&Path));

/// The store as it is after the power failed: open in another boot.
fn after_power_cut(folder: &Path, store: Store) -> Store {
    drop(store);
    fs::write(folder.join(OPEN), "another boot").unwrap();
    let store = Store::open(folder, Limits::default()).unwrap();
    assert!(store.0.doubtful);
    store
}

#[tokio::test]
async fn the_archive_of_a_layer_is_made_again_to_the_byte() {
    let mut tars = vec![every_kind()];
    // More zeros than an end mark has, and none at all.
    tars.push([every_kind(), vec![0; 9216]].concat());
    tars.push(every_kind()[..every_kind().len() - 1024].to_vec());
    for tar in tars {
        let (_folder, store, _registry, digest) = pulled(&[(gzip(&tar), tar.clone())]).await;
        let (_, parts, seals) = store.sealed(&digest).unwrap().unwrap();
        assert_eq!(seals[0].archive_size, Some(tar.len() as u64));
        let mut made = Vec::new();
        let layer = store.layer_path(&parts.layers[0].chain_id);
        let (diff_id, size) = verify::remake(&layer, &mut made).unwrap();
        assert!(made == tar);
        assert_eq!((diff_id, size), (Digest::of(&tar), tar.len() as u64));
    }
}

#[tokio::test]
async fn a_layer_that_names_a_file_twice_is_checked_by_names_only() {
    let tar = TarFile::new().file("twice", b"first").file("twice", b"second").bytes();
    let (folder, store, _registry, digest) = pulled(&[(gzip(&tar), tar)]).await;
    let verified = store.verify(&|_, _| ()).unwrap();
    assert_eq!((verified.layers, verified.shallow, &verified.images[..]), (0, 1, &[digest][..]));
    drop((store, folder));
}

#[tokio::test]
async fn the_deep_check_finds_every_kind_of_damage_and_the_next_pull_mends_it() {
    let tar = every_kind();
    let registry = Registry::start().await;
    let digest = registry.add_image("demo/web", "1", &[(gzip(&tar), tar.clone()), two_layers()[0].clone()]);
    let (_folder, store) = store();
    let clean = |store: &Store| {
        let verified = store.verify(&|_, _| ()).unwrap();
        assert_eq!((verified.broken, verified.layers, verified.images), (vec![], 2, vec![digest]));
    };
    let damages: [Damage; 8] = [
        ("another byte", |tree| fs::write(tree.join("bin/tool"), [2; 70_000]).unwrap()),
        ("another length", |tree| fs::write(tree.join("empty"), "x").unwrap()),
        ("another mode", |tree| fs::set_permissions(tree.join("bin/set"), fs::Permissions::from_mode(0o755)).unwrap()),
        ("another target", |tree| {
            fs::remove_file(tree.join("bin/link")).unwrap();
            std::os::unix::fs::symlink("other", tree.join("bin/link")).unwrap();
        }),
        ("no link", |tree| {
            fs::remove_file(tree.join("bin/same")).unwrap();
            fs::copy(tree.join("bin/tool"), tree.join("bin/same")).unwrap();
        }),
        ("a file less", |tree| fs::remove_file(tree.join("queue")).unwrap()),
        ("a file more", |tree| fs::write(tree.join("more"), "").unwrap()),
        ("a broken record", |tree| fs::write(tree.parent().unwrap().join("archive.gz"), "no gzip").unwrap()),
    ];
    for (what, damage) in damages {
        let image = pull(&store, &registry, &digest).await.unwrap();
        clean(&store);
        damage(&image.layers[0]);
        let verified = store.verify(&|_, _| ()).unwrap();
        assert_eq!((verified.broken.len(), &verified.incomplete[..]), (1, &[digest][..]), "{what}: {verified:?}");
        assert!(store.image(&digest).unwrap().is_none(), "{what}");
    }
    pull(&store, &registry, &digest).await.unwrap();
    clean(&store);
    let other = format!("/v2/demo/web/blobs/{}", Digest::of(&two_layers()[0].0));
    assert_eq!(registry.count(&other), 1, "only what was broken is fetched again");
}

#[tokio::test]
async fn after_a_power_cut_a_lost_file_is_found_without_reading_content() {
    let (folder, store, registry, digest) = pulled(&two_layers()).await;
    let image = store.image(&digest).unwrap().unwrap();
    fs::write(image.layers[1].join("new"), "").unwrap();
    // In the same boot nothing was lost, so nothing is checked.
    assert!(store.image(&digest).unwrap().is_some());
    let store = after_power_cut(folder.path(), store);
    assert!(store.image(&digest).unwrap().is_none());
    assert_eq!(store.names("broken").unwrap().len(), 1);
    pull(&store, &registry, &digest).await.unwrap();
    let counts: Vec<_> = two_layers()
        .iter()
        .map(|(blob, _)| registry.count(&format!("/v2/demo/web/blobs/{}", Digest::of(blob))))
        .collect();
    assert_eq!(counts, [1, 2]);
    // A container may have run from it until then.
    let store = after_power_cut(folder.path(), store);
    assert_eq!(store.names("broken").unwrap().len(), 0);
}

#[tokio::test]
async fn a_layer_without_its_seal_is_set_aside() {
    let (_folder, store, registry, digest) = pulled(&two_layers()).await;
    let image = store.image(&digest).unwrap().unwrap();
    fs::write(image.layers[0].parent().unwrap().join("seal"), "").unwrap();
    assert!(store.image(&digest).unwrap().is_none());
    pull(&store, &registry, &digest).await.unwrap();
}

#[tokio::test]
async fn what_no_image_has_is_removed_with_the_last_image_that_had_it() {
    let registry = Registry::start().await;
    let layers = two_layers();
    let both = registry.add_image("demo/web", "1", &layers);
    let base = registry.add_image("demo/web", "2", &layers[..1]);
    let (folder, store) = store();
    pull(&store, &registry, &both).await.unwrap();
    pull(&store, &registry, &base).await.unwrap();
    store.want([both, base]);
    assert_eq!(store.collect(Goal::Everything).await.unwrap(), []);
    assert!(!store.remove(&both).await.unwrap());
    store.want([base]);
    // Nothing needs it, but there is room and it is young.
    assert_eq!(store.collect(Goal::Limits).await.unwrap(), []);
    assert_eq!(store.collect(Goal::Everything).await.unwrap(), [both]);
    assert!(store.image(&both).unwrap().is_none() && store.image(&base).unwrap().is_some());
    assert_eq!(store.names("layers").unwrap().len(), 1);
    assert_eq!(store.names("blobs/sha256").unwrap().len(), 2);
    store.want([]);
    assert!(store.remove(&base).await.unwrap());
    for name in ["blobs/sha256", "layers", "images", "tmp"] {
        assert_eq!(fs::read_dir(folder.path().join(name)).unwrap().count(), 0, "{name}");
    }
}

#[tokio::test]
async fn an_image_that_nothing_needs_goes_after_its_time() {
    let (folder, store, _registry, digest) = pulled(&two_layers()).await;
    let record = File::open(folder.path().join("images").join(digest.hex())).unwrap();
    record.set_modified(std::time::SystemTime::now() - Limits::default().unused * 2).unwrap();
    store.touch(&digest).unwrap();
    assert_eq!(store.collect(Goal::Limits).await.unwrap(), []);
    record.set_modified(std::time::SystemTime::now() - Limits::default().unused * 2).unwrap();
    assert_eq!(store.collect(Goal::Limits).await.unwrap(), [digest]);
}

#[tokio::test]
async fn regression_an_image_wanted_while_others_are_removed_stays() {
    // The list of what to keep was once made before the removal ran: a manifest that came in between lost its image.
    let (_folder, store, _registry, digest) = pulled(&two_layers()).await;
    assert_eq!(store.unneeded().unwrap().len(), 1);
    store.want([digest]);
    assert!(!store.remove_record(&digest).unwrap());
    assert!(store.image(&digest).unwrap().is_some());
}

/// A file system of its own size, unmounted when it is dropped.
pub(super) struct SmallDisk(pub(super) tempfile::TempDir);

impl SmallDisk {
    /// `None`, with a word why, where this process may not mount.
    pub(super) fn new(options: &str) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, Some(options.as_c_str())) {
            Ok(()) => Some(SmallDisk(folder)),
            Err(errno) => {
                println!("skipped: cannot mount a tmpfs (needs root): {errno}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// An image of one layer that has a file of so many bytes which do not compress.
fn image_of(registry: &Registry, tag: &str, bytes: u32) -> Digest {
    let mut word = u32::from(tag.as_bytes()[0]);
    let noise = (0..bytes / 4).flat_map(|_| {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (word >> 8).to_le_bytes()
    });
    let tar = TarFile::new().file(tag, &noise.collect::<Vec<_>>()).bytes();
    registry.add_image("demo/web", tag, &[(tar.clone(), tar)])
}

#[tokio::test]
async fn a_pull_makes_room_by_removing_the_longest_unused() {
    let Some(disk) = SmallDisk::new("size=8m") else { return };
    let registry = Registry::start().await;
    let limits = Limits { reserve: Some(5_000_000), ..Limits::default() };
    let store = Store::open(disk.0.path(), limits).unwrap();
    let images = ["a", "b", "c"].map(|tag| image_of(&registry, tag, 1_500_000));
    for (age, digest) in [(2, images[0]), (1, images[1])] {
        pull(&store, &registry, &digest).await.unwrap();
        let record = File::open(disk.0.path().join("images").join(digest.hex())).unwrap();
        record.set_modified(std::time::SystemTime::now() - Duration::from_secs(age * 3600)).unwrap();
    }
    // 8 MiB less two images leaves less than an image and the reserve.
    pull(&store, &registry, &images[2]).await.unwrap();
    assert!(store.image(&images[0]).unwrap().is_none());
    assert!(store.image(&images[1]).unwrap().is_some() && store.image(&images[2]).unwrap().is_some());
    store.want([images[1], images[2]]);
    let error = pull(&store, &registry, &images[0]).await.unwrap_err();
    assert!(matches!(error, PullError::Space { what: "bytes", .. }), "{error:?}");
    assert!(store.image(&images[1]).unwrap().is_some() && store.image(&images[2]).unwrap().is_some());
}

/// Whatever write it is for which there is no room: the error says so, nothing is half there, and with room it goes on.
#[tokio::test]
async fn a_disk_that_is_full_at_any_write_loses_nothing() {
    let registry = Registry::start().await;
    let layers: Vec<_> = (0..3u8)
        .map(|layer| {
            let file = |tar: TarFile, name: u8| tar.file(&format!("{layer}/{name}/file"), &vec![name; 9000]);
            let tar = (0..4).fold(TarFile::new(), file).bytes();
            // It takes more room than its compressed size lets expect.
            (gzip(&tar), tar)
        })
        .collect();
    let digest = registry.add_image("demo/web", "1", &layers);
    let (mut whole, mut full) = (0, 0);
    for kib in (4..400).step_by(12) {
        let Some(disk) = SmallDisk::new(&format!("size={kib}k")) else { return };
        let limits = Limits { reserve: Some(0), high_percent: 100, low_percent: 100, ..Limits::default() };
        let tried = match Store::open(disk.0.path(), limits) {
            Ok(store) => pull(&store, &registry, &digest).await.map(drop).map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        match &tried {
            Ok(()) => whole += 1,
            Err(error) => {
                assert!(error.to_lowercase().contains("space"), "{kib} KiB: {error}");
                full += 1;
            }
        }
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount_remount(disk.0.path(), flags, "size=4m").unwrap();
        // What other layers were about ends off this thread, and holds the store until then.
        let root = disk.0.path().to_owned();
        let store = tokio::task::spawn_blocking(move || Store::open(&root, limits)).await.unwrap().unwrap();
        let verified = store.verify(&|_, _| ()).unwrap();
        assert_eq!((&verified.broken[..], &verified.incomplete[..]), (&[][..], &[][..]), "{kib} KiB");
        assert_eq!(tried.is_ok(), store.image(&digest).unwrap().is_some(), "{kib} KiB");
        pull(&store, &registry, &digest).await.unwrap();
        assert_eq!(store.verify(&|_, _| ()).unwrap().images, [digest], "{kib} KiB");
    }
    assert!(whole > 3 && full > 3, "{whole} whole, {full} full");
}

#[tokio::test]
async fn a_store_may_lie_behind_a_symlink() {
    let registry = Registry::start().await;
    let digest = registry.add_image("demo/web", "1", &two_layers());
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("large-disk")).unwrap();
    std::os::unix::fs::symlink("large-disk", folder.path().join("store")).unwrap();
    let store = Store::open(&folder.path().join("store"), Limits::default()).unwrap();
    pull(&store, &registry, &digest).await.unwrap();
    assert_eq!(store.verify(&|_, _| ()).unwrap().images, [digest]);
    assert!(folder.path().join("large-disk/images").join(digest.hex()).exists());
}

#[tokio::test]
async fn inodes_are_counted_too() {
    let Some(disk) = SmallDisk::new("size=64m,nr_inodes=500") else { return };
    let registry = Registry::start().await;
    let store = Store::open(disk.0.path(), Limits { reserve: Some(0), ..Limits::default() }).unwrap();
    let digest = image_of(&registry, "a", 1000);
    let error = pull(&store, &registry, &digest).await.unwrap_err().to_string();
    assert!(error.contains("inodes are needed"), "{error}");
}

#[tokio::test]
async fn a_full_disk_gives_up_images_down_to_the_low_mark() {
    let Some(disk) = SmallDisk::new("size=8m") else { return };
    let registry = Registry::start().await;
    let limits = Limits { reserve: Some(0), high_percent: 60, low_percent: 30, ..Limits::default() };
    let store = Store::open(disk.0.path(), limits).unwrap();
    let images = ["a", "b", "c"].map(|tag| image_of(&registry, tag, 1_300_000));
    for (age, digest) in [(3, images[0]), (2, images[1]), (1, images[2])] {
        pull(&store, &registry, &digest).await.unwrap();
        let record = File::open(disk.0.path().join("images").join(digest.hex())).unwrap();
        record.set_modified(std::time::SystemTime::now() - Duration::from_secs(age * 60)).unwrap();
    }
    assert_eq!(store.collect(Goal::Limits).await.unwrap(), []);
    fs::write(disk.0.path().join("somebody else's"), vec![1; 1_500_000]).unwrap();
    store.want([images[0]]);
    assert_eq!(store.collect(Goal::Limits).await.unwrap(), images[1..]);
    assert!(store.image(&images[0]).unwrap().is_some());
}

#[tokio::test]
async fn a_name_moves_and_finds_its_image() {
    let registry = Registry::start().await;
    let [one, two] = ["1", "2"].map(|tag| image_of(&registry, tag, 100));
    let (_folder, store) = store();
    assert!(matches!(store.name(&one, "nginx"), Err(NameError::NoImage(_))));
    for digest in [&one, &two] {
        pull(&store, &registry, digest).await.unwrap();
    }
    store.name(&one, "nginx").unwrap();
    store.name(&one, "ghcr.io/a/b:3").unwrap();
    assert_eq!(store.find("docker.io/library/nginx:latest").unwrap(), [one]);
    store.name(&two, "nginx").unwrap();
    assert_eq!(store.find("nginx").unwrap(), [two]);
    assert_eq!(store.find(&two.hex()[..12]).unwrap(), [two]);
    assert_eq!(store.find("").unwrap(), []);
    assert_eq!(store.unname("ghcr.io/a/b:3").unwrap(), Some((one, 0)));
    assert_eq!(store.unname("ghcr.io/a/b:3").unwrap(), None);
}

#[tokio::test]
async fn shared_layers_are_counted_once() {
    let registry = Registry::start().await;
    let layers = two_layers();
    let both = registry.add_image("demo/web", "1", &layers);
    let base = registry.add_image("demo/web", "2", &layers[..1]);
    let (_folder, store) = store();
    pull(&store, &registry, &both).await.unwrap();
    pull(&store, &registry, &base).await.unwrap();
    store.name(&base, "base").unwrap();
    store.want([base]);
    let usage = store.usage().unwrap();
    assert_eq!((usage.images, usage.layers, usage.files, usage.reclaimable), (2, 2, 100_007, 100_003));
    let listed = store.list().unwrap();
    let [base, both] = [base, both].map(|digest| listed.iter().find(|image| image.digest == digest).unwrap());
    assert_eq!((base.size, both.size, base.needed, both.needed, both.whole), (4, 100_007, true, false, true));
    assert_eq!(base.names, ["docker.io/library/base:latest"]);
}
