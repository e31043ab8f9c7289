//! Layers as honest tools make them, and as attackers do. Needs root: owners, whiteouts and overlay marks are real.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use proptest::prelude::*;

use super::*;
use crate::testing::TarFile;

const BOUNDS: Bounds = Bounds { entries: 1000, folders: 1000, bytes: 64 << 20 };

struct Layer {
    _folder: tempfile::TempDir,
    path: PathBuf,
    /// A file beside the layer that nothing may touch.
    victim: PathBuf,
}

fn layer() -> Layer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer");
    fs::create_dir(&path).unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    Layer { path, victim, _folder: folder }
}

impl Layer {
    fn unpack(&self, tar: TarFile) -> Result<Unpacked> {
        unpack(&mut Archive::new(&tar.bytes()[..]), &self.path, BOUNDS)
    }

    fn refuses(&self, tar: TarFile) -> Problem {
        let result = self.unpack(tar);
        assert_eq!(fs::read(&self.victim).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(self.path.parent().unwrap()).unwrap().count(), 2, "something was put beside the layer");
        match result {
            Err(UnpackError::Entry { problem, .. }) => problem,
            other => panic!("not refused for an entry: {other:?}"),
        }
    }

    fn stat(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path.join(name)).unwrap()
    }

    fn xattr(&self, name: &str, attribute: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let length = rustix::fs::lgetxattr(self.path.join(name), attribute, &mut value[..]).ok()?;
        value.truncate(length);
        Some(value)
    }

    fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, OPAQUE_XATTR).as_deref() == Some(b"y")
    }

    fn is_whiteout(&self, name: &str) -> bool {
        self.stat(name).file_type().is_char_device() && self.stat(name).rdev() == 0
    }
}

#[test]
fn files_folders_links_and_fifos_are_as_the_archive_says() {
    let layer = layer();
    let tar = TarFile::new()
        .folder("./", 0o751)
        .folder("./dir/", 0o1777)
        .file("dir/file", b"content")
        .raw(b'0', "suid", "", 0o4755, b"x")
        .symlink("dir/link", "../../../../etc/passwd")
        .symlink("absolute", "/nowhere")
        .hard_link("hard", "./dir/file")
        .raw(b'6', "fifo", "", 0o622, b"");
    layer.unpack(tar).unwrap();
    assert_eq!(layer.stat("").mode() & 0o7777, 0o751);
    assert_eq!(layer.stat("dir").mode() & 0o7777, 0o1777);
    assert_eq!(layer.stat("suid").permissions().mode() & 0o7777, 0o4755);
    assert_eq!(fs::read_link(layer.path.join("dir/link")).unwrap(), Path::new("../../../../etc/passwd"));
    assert_eq!(fs::read_link(layer.path.join("absolute")).unwrap(), Path::new("/nowhere"));
    assert_eq!(layer.stat("hard").ino(), layer.stat("dir/file").ino());
    assert!(layer.stat("fifo").file_type().is_fifo());
    assert_eq!(layer.stat("fifo").mode() & 0o777, 0o622);
    for name in ["", "dir", "dir/file", "dir/link", "fifo"] {
        assert_eq!(layer.stat(name).mtime(), 1_000_000_000, "{name}");
    }
}

#[test]
fn pax_records_give_long_names_owners_times_and_attributes() {
    let layer = layer();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let capability = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = TarFile::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"100000"),
            ("gid", b"200000"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.security.selinux", b"label"),
        ])
        .file("short", b"content");
    layer.unpack(tar).unwrap();
    let stat = layer.stat(&long);
    assert_eq!((stat.uid(), stat.gid()), (100_000, 200_000));
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (-2, 750_000_000));
    assert_eq!(layer.xattr(&long, "security.capability").unwrap(), capability);
}

#[test]
fn whiteouts_become_overlays_and_hide_only_lower_layers() {
    let layer = layer();
    let tar = TarFile::new()
        .file("dir/.wh.gone", b"")
        .folder("opaque", 0o755)
        .file("opaque/before", b"x")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/after", b"x")
        // The mark before and after what the same layer has under that name.
        .file(".wh.made-again", b"")
        .folder("made-again", 0o755)
        .folder("made-before", 0o755)
        .file(".wh.made-before", b"")
        .file("kept", b"x")
        .file(".wh.kept", b"")
        .file(".wh..wh.aufs", b"");
    layer.unpack(tar).unwrap();
    assert!(layer.is_whiteout("dir/gone"));
    assert!(layer.is_opaque("opaque") && layer.path.join("opaque/before").exists());
    assert!(layer.path.join("opaque/after").exists());
    assert!(layer.is_opaque("made-again") && layer.is_opaque("made-before"));
    assert_eq!(fs::read(layer.path.join("kept")).unwrap(), b"x");
    let marks = fs::read_dir(&layer.path)
        .unwrap()
        .filter(|item| item.as_ref().unwrap().file_name().to_string_lossy().starts_with(".wh."));
    assert_eq!(marks.count(), 0);
}

#[test]
fn a_later_entry_replaces_an_earlier_one_of_another_type() {
    let layer = layer();
    let tar = TarFile::new()
        .file("a", b"x")
        .folder("a", 0o755)
        .folder("b", 0o755)
        .file("b/deep/er", b"x")
        .symlink("b", "a")
        .file("c", b"old")
        .hard_link("d", "c")
        .file("c", b"new")
        .symlink("e", "c")
        .file("e", b"not through the link");
    layer.unpack(tar).unwrap();
    assert!(layer.stat("a").is_dir() && layer.is_opaque("a"));
    assert!(layer.stat("b").is_symlink());
    assert_eq!(fs::read(layer.path.join("c")).unwrap(), b"new");
    assert_eq!(fs::read(layer.path.join("d")).unwrap(), b"old");
    assert_eq!(fs::read(layer.path.join("e")).unwrap(), b"not through the link");
}

#[test]
fn implied_folders_look_like_those_below() {
    let (below, above) = (layer(), layer());
    below.unpack(TarFile::new().folder("./", 0o700).folder("tmp", 0o1777)).unwrap();
    let unpacked = above.unpack(TarFile::new().file("tmp/x", b"").file("new/y", b"")).unwrap();
    assert_eq!(unpacked.implied, [Path::new(""), Path::new("new"), Path::new("tmp")]);
    imitate(&above.path, &unpacked.implied, std::slice::from_ref(&below.path)).unwrap();
    assert_eq!(above.stat("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(above.stat("").mode() & 0o7777, 0o700);
    assert_eq!(above.stat("new").mode() & 0o7777, 0o755);
    assert_eq!(above.stat("tmp").mtime(), 1_000_000_000);
}

#[test]
fn an_absolute_name_means_the_layers_root() {
    let layer = layer();
    let name = layer.victim.to_str().unwrap().to_owned();
    layer.unpack(TarFile::new().pax(&[("path", name.as_bytes())]).file("x", b"mine")).unwrap();
    assert_eq!(fs::read(&layer.victim).unwrap(), b"untouched");
    assert_eq!(fs::read(layer.path.join(&name[1..])).unwrap(), b"mine");
}

#[test]
fn an_archive_that_ends_with_its_last_files_data_is_whole() {
    // As umoci's `insert` writes it: no padding to a block, no end mark.
    let layer = layer();
    let bytes = TarFile::new().file("etc/name", b"x\n").bytes();
    unpack(&mut Archive::new(&bytes[..512 + 2]), &layer.path, BOUNDS).unwrap();
    assert_eq!(fs::read(layer.path.join("etc/name")).unwrap(), b"x\n");
    let cut = unpack(&mut Archive::new(&bytes[..512 + 1]), &layer.path, BOUNDS);
    assert!(matches!(cut, Err(UnpackError::Archive(..))), "{cut:?}");
}

#[test]
fn an_empty_number_is_zero() {
    let layer = layer();
    let mut header = tar::Header::new_ustar();
    header.set_path("plain").unwrap();
    header.set_size(0);
    header.set_cksum();
    let bytes = [header.as_bytes().as_slice(), &[0; 1024]].concat();
    unpack(&mut Archive::new(&bytes[..]), &layer.path, BOUNDS).unwrap();
    assert_eq!((layer.stat("plain").uid(), layer.stat("plain").mtime()), (0, 0));
}

#[test]
fn hostile_name_upwards_is_refused() {
    assert_eq!(layer().refuses(TarFile::new().file("../victim", b"x")), Problem::Upwards);
    assert_eq!(layer().refuses(TarFile::new().file("a/../../victim", b"x")), Problem::Upwards);
    assert_eq!(layer().refuses(TarFile::new().folder("..", 0o777)), Problem::Upwards);
}

#[test]
fn hostile_symlink_out_of_the_layer_is_not_followed() {
    for target in ["..", "/", "/tmp", "."] {
        let tar = TarFile::new().symlink("out", target).file("out/victim", b"x");
        assert_eq!(layer().refuses(tar), Problem::ThroughSymlink, "{target}");
    }
    let tar = TarFile::new().symlink("a", "..").symlink("b", "a").folder("b/victim", 0o777);
    assert_eq!(layer().refuses(tar), Problem::ThroughSymlink);
}

#[test]
fn hostile_hardlink_out_of_the_layer_is_refused() {
    assert_eq!(layer().refuses(TarFile::new().hard_link("x", "../victim")), Problem::Upwards);
    let tar = TarFile::new().symlink("out", "..").hard_link("x", "out/victim");
    assert_eq!(layer().refuses(tar), Problem::ThroughSymlink);
    let absolute = layer();
    let victim = absolute.victim.to_str().unwrap().to_owned();
    let tar = TarFile::new().pax(&[("linkpath", victim.as_bytes())]).hard_link("x", "y");
    assert!(matches!(absolute.refuses(tar), Problem::LinkTarget(_)));
}

#[test]
fn hostile_write_through_a_hardlinked_symlink_stays_inside() {
    let layer = layer();
    let tar = TarFile::new().symlink("a", "../victim").hard_link("b", "a").file("b", b"mine");
    layer.unpack(tar).unwrap();
    assert_eq!(fs::read(&layer.victim).unwrap(), b"untouched");
    assert_eq!(fs::read(layer.path.join("b")).unwrap(), b"mine");
}

#[test]
fn hardlinks_to_nothing_to_folders_and_to_whiteouts_are_refused() {
    assert!(matches!(layer().refuses(TarFile::new().hard_link("x", "nowhere")), Problem::LinkTarget(_)));
    let tar = TarFile::new().folder("dir", 0o755).hard_link("x", "dir");
    assert!(matches!(layer().refuses(tar), Problem::LinkToFolder(_)));
    let tar = TarFile::new().file(".wh.gone", b"").hard_link("x", "gone");
    assert!(matches!(layer().refuses(tar), Problem::LinkTarget(_)));
}

#[test]
fn hostile_whiteouts_are_refused() {
    for name in [".wh.", ".wh...", "dir/.wh..", ".wh.x/y"] {
        assert_eq!(layer().refuses(TarFile::new().file(name, b"")), Problem::Whiteout, "{name}");
    }
    assert_eq!(layer().refuses(TarFile::new().file(".wh..wh..opq", b"")), Problem::Root);
}

#[test]
fn hostile_overlay_attributes_are_refused() {
    for name in ["trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.metacopy"] {
        let key = format!("SCHILY.xattr.{name}");
        let tar = TarFile::new().pax(&[(&key, b"/etc")]).folder("dir", 0o755);
        assert_eq!(layer().refuses(tar), Problem::OverlayXattr(name.to_owned()));
    }
}

#[test]
fn device_nodes_are_refused_outside_of_dev_and_left_out_there() {
    assert_eq!(
        layer().refuses(TarFile::new().raw(b'4', "disk", "", 0o666, b"")),
        Problem::Device { major: 1, minor: 3 }
    );
    let layer = layer();
    layer.unpack(TarFile::new().folder("dev", 0o755).raw(b'3', "dev/null", "", 0o666, b"")).unwrap();
    assert_eq!(fs::read_dir(layer.path.join("dev")).unwrap().count(), 0);
}

#[test]
fn names_that_are_too_long_or_too_deep_are_refused() {
    let deep = "d/".repeat(MAX_DEPTH + 1);
    let long = "l".repeat(MAX_COMPONENT + 1);
    let huge = "component/".repeat(MAX_PATH / 10 + 1);
    for name in [deep.as_str(), &long, &huge, "a\0b"] {
        let tar = TarFile::new().pax(&[("path", name.as_bytes())]).file("x", b"");
        assert_eq!(layer().refuses(tar), Problem::Name);
    }
}

#[test]
fn owners_beyond_32_bits_and_empty_symlinks_are_refused() {
    let tar = TarFile::new().pax(&[("uid", b"4294967295")]).file("x", b"");
    assert!(matches!(layer().refuses(tar), Problem::Owner { .. }));
    assert_eq!(layer().refuses(TarFile::new().symlink("x", "")), Problem::SymlinkTarget);
}

#[test]
fn names_through_files_are_refused() {
    assert_eq!(layer().refuses(TarFile::new().file("a", b"").file("a/b", b"")), Problem::ThroughFile);
}

#[test]
fn a_layer_with_too_many_bytes_is_refused_before_they_are_written() {
    let layer = layer();
    let tar = TarFile::new().file("a", &[0; 600]).file("b", &[0; 600]).bytes();
    let result = unpack(&mut Archive::new(&tar[..]), &layer.path, Bounds { bytes: 1000, ..BOUNDS });
    assert!(matches!(result, Err(UnpackError::TooLarge(1000))), "{result:?}");
    assert_eq!(layer.stat("b").len(), 0);
}

#[test]
fn a_layer_with_too_many_entries_or_folders_names_the_limit() {
    let tar = TarFile::new().file("a/b/c", b"").file("d", b"").bytes();
    let refused = |bounds| unpack(&mut Archive::new(&tar[..]), &layer().path, bounds).unwrap_err().to_string();
    assert_eq!(refused(Bounds { entries: 1, ..BOUNDS }), "more than 1 entries (the limit layer_entries)");
    // The root is one.
    assert_eq!(refused(Bounds { folders: 2, ..BOUNDS }), "more than 2 folders (the limit layer_folders)");
    assert!(unpack(&mut Archive::new(&tar[..]), &layer().path, Bounds { entries: 2, folders: 3, ..BOUNDS }).is_ok());
}

#[test]
fn sparse_files_of_all_formats_keep_their_holes() {
    let size = 10 << 20;
    let map = format!("{:\0<512}", "2\n1048576\n3\n10485760\n0\n");
    let one = [map.as_bytes(), b"one"].concat();
    let layer = layer();
    let tar = TarFile::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"one"),
            ("GNU.sparse.realsize", b"10485760"),
        ])
        .file("GNUSparseFile.0/one", &one)
        .pax(&[("GNU.sparse.size", b"10485760"), ("GNU.sparse.map", b"1048576,4,10485760,0")])
        .file("zero-one", b"zero")
        .pax(&[("GNU.sparse.size", b"10485760"), ("GNU.sparse.offset", b"5"), ("GNU.sparse.numbytes", b"2")])
        .file("zero-zero", b"00");
    layer.unpack(tar).unwrap();
    for (name, offset, data) in [("one", 1 << 20, &b"one"[..]), ("zero-one", 1 << 20, b"zero"), ("zero-zero", 5, b"00")]
    {
        let content = fs::read(layer.path.join(name)).unwrap();
        assert_eq!(content.len(), size, "{name}");
        assert_eq!(&content[offset..offset + data.len()], data, "{name}");
        assert_eq!(content.iter().filter(|byte| **byte != 0).count(), data.len(), "{name}");
        assert!(layer.stat(name).blocks() < 100, "{name} has no holes");
    }
}

#[test]
fn what_gnu_tar_packs_is_unpacked_the_same() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path();
    fs::create_dir_all(path.join("tree").join("x".repeat(120))).unwrap();
    fs::write(path.join("tree").join("x".repeat(120)).join("y".repeat(120)), "long").unwrap();
    let sparse = fs::File::create(path.join("tree/sparse")).unwrap();
    sparse.write_all_at(b"island", 3 << 20).unwrap();
    sparse.write_all_at(b"end", 8 << 20).unwrap();
    std::os::unix::fs::symlink("z".repeat(150), path.join("tree/link")).unwrap();
    for format in ["gnu", "pax"] {
        let run = std::process::Command::new("tar")
            .args(["-C", path.to_str().unwrap(), "-cSf", "-", &format!("--format={format}"), "tree"])
            .output();
        let Ok(output) = run else { return println!("skipped: GNU tar is not there") };
        let layer = layer();
        unpack(&mut Archive::new(&output.stdout[..]), &layer.path, BOUNDS).unwrap();
        let same = std::process::Command::new("diff")
            .args(["-r", "--no-dereference"])
            .args([path.join("tree"), layer.path.join("tree")])
            .output()
            .unwrap();
        assert!(same.status.success(), "{format}: {}", String::from_utf8_lossy(&same.stdout));
        assert!(layer.stat("tree/sparse").blocks() < 200, "{format}");
    }
}

#[test]
fn a_name_of_many_megabytes_is_refused_before_it_is_read() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let bytes = header.as_bytes().to_vec();
    let result = unpack(&mut Archive::new(&bytes[..]), &layer().path, BOUNDS);
    assert!(matches!(&result, Err(UnpackError::Archive(text, None)) if text.contains("1 MiB")), "{result:?}");
}

/// One entry out of hostile parts: any type, names that collide and lead everywhere.
fn entry() -> impl Strategy<Value = (u8, String, String, Vec<u8>)> {
    let part = prop::sample::select(vec!["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", "victim", "dev"]);
    let name = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(b"0123456\0x7LKgS".to_vec());
    (kind, name.clone(), name, prop::collection::vec(any::<u8>(), 0..40))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_sequence_of_entries_stays_inside(entries in prop::collection::vec(entry(), 1..8)) {
        let layer = layer();
        let tar = entries.into_iter().fold(TarFile::new(), |tar, (kind, name, link, data)| {
            tar.raw(kind, &name, &link, 0o777, &data)
        });
        let _ = layer.unpack(tar);
        prop_assert_eq!(fs::read(&layer.victim).unwrap(), b"untouched");
        prop_assert_eq!(layer.stat("../victim").nlink(), 1);
        prop_assert_eq!(fs::read_dir(layer.path.parent().unwrap()).unwrap().count(), 2);
    }

    #[test]
    fn any_damage_to_an_archive_is_survived(flips in prop::collection::vec((any::<u16>(), any::<u8>()), 1..20), fix in any::<bool>()) {
        let layer = layer();
        let mut bytes = TarFile::new()
            .folder("dir", 0o755)
            .pax(&[("path", b"dir/long"), ("mtime", b"1.5"), ("GNU.sparse.size", b"5"), ("GNU.sparse.map", b"0,1")])
            .file("x", b"y")
            .symlink("link", "dir")
            .hard_link("hard", "dir/long")
            .bytes();
        for (at, value) in flips {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        if fix {
            for block in bytes.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        let _ = unpack(&mut Archive::new(&bytes[..]), &layer.path, BOUNDS);
        prop_assert_eq!(fs::read(&layer.victim).unwrap(), b"untouched");
    }

    #[test]
    fn random_bytes_are_no_archive_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let layer = layer();
        let _ = unpack(&mut Archive::new(&bytes[..]), &layer.path, BOUNDS);
        prop_assert_eq!(fs::read(&layer.victim).unwrap(), b"untouched");
    }
}
