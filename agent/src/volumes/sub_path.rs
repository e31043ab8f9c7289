//! Finds the part of a volume that a container is given, whatever the container does to the volume meanwhile.
//!
//! The volume's content is hostile: every step is taken from a descriptor, links count from the volume's root and
//! lead nowhere else (`RESOLVE_IN_ROOT`), magic links are refused, and what was found is mounted by its descriptor,
//! never looked up again. CVE-2017-1002101 and CVE-2021-25741 were the kubelet's way of not doing so.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

/// Opens what lies at `path` below a volume. What is missing is made where the volume may be written to: folders like
/// the volume's own, with the same owner and mode.
///
/// # Errors
/// As of openat2(2) and mkdirat(2): it is missing, or a link leads to what can't be.
pub fn open(volume: &Path, path: &str, make: bool) -> io::Result<OwnedFd> {
    let root = openat(rustix::fs::CWD, volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match inside(&root, path) {
        Err(Errno::NOENT) if make => {}
        found => return Ok(found?),
    }
    let mut folder = root.try_clone()?;
    let mut walked = String::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        walked = format!("{walked}/{part}");
        folder = match inside(&root, &walked) {
            Err(Errno::NOENT) => make_folder(&root, &folder, part)?,
            found => found?,
        };
    }
    Ok(folder)
}

fn inside(root: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn make_folder(root: &OwnedFd, folder: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let like = std::fs::File::from(root.try_clone()?).metadata()?;
    // A link without an end makes this fail; anything else that came meanwhile is looked at as what was there.
    match mkdirat(folder, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(inside(folder, name)?),
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(folder, name, flags, Mode::empty())?;
    let itself = format!("/proc/self/fd/{}", made.as_raw_fd());
    std::os::unix::fs::chown(&itself, Some(like.uid()), Some(like.gid()))?;
    std::fs::set_permissions(&itself, std::fs::Permissions::from_mode(like.mode() & 0o7777))?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn content(found: &OwnedFd) -> String {
        fs::read_to_string(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap()
    }

    #[test]
    fn what_is_there_is_found_and_what_is_missing_is_made_like_the_volume() {
        let volume = tempfile::tempdir().unwrap();
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o2770)).unwrap();
        fs::write(volume.path().join("file"), "here").unwrap();
        assert_eq!(content(&open(volume.path(), "file", true).unwrap()), "here");
        assert_eq!(open(volume.path(), "a/b", false).unwrap_err().kind(), io::ErrorKind::NotFound);
        let made = fs::File::from(open(volume.path(), "a//./b", true).unwrap()).metadata().unwrap();
        let found = fs::metadata(volume.path().join("a/b")).unwrap();
        assert_eq!((made.ino(), found.mode() & 0o7777), (found.ino(), 0o2770));
        assert!(open(volume.path(), "file/below", true).is_err());
    }

    /// The kubelet followed links that a container had left in the volume, to any file of the host.
    #[test]
    fn cve_2017_1002101_links_do_not_lead_out_of_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(folder.path().join("secret"), "the host's").unwrap();
        symlink("../secret", volume.join("relative")).unwrap();
        symlink(folder.path().join("secret"), volume.join("absolute")).unwrap();
        symlink("..", volume.join("up")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        symlink("/", volume.join("root")).unwrap();
        for path in ["relative", "absolute", "up/secret", "magic/etc/passwd", "root/etc/passwd"] {
            assert!(open(&volume, path, false).is_err(), "{path}");
        }
        // Made where it is missing, it is made inside.
        for path in ["up/made", "root/made"] {
            open(&volume, path, true).unwrap();
        }
        assert!(volume.join("made").is_dir() && !folder.path().join("made").exists());
        assert!(open(&volume, "relative/made", true).is_err(), "a link without an end");
    }

    /// The kubelet looked, a container exchanged folder and link, and the kubelet mounted what it had not looked at.
    #[test]
    fn cve_2021_25741_an_exchange_of_folder_and_link_changes_nothing() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let folder = tempfile::tempdir().unwrap();
        let (volume, host) = (folder.path().join("volume"), folder.path().join("host"));
        for path in [&volume, &host, &volume.join("good")] {
            fs::create_dir(path).unwrap();
        }
        fs::write(host.join("mark"), "host").unwrap();
        fs::write(volume.join("good/mark"), "volume").unwrap();
        symlink(&host, volume.join("bad")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let flags = RenameFlags::EXCHANGE;
                    renameat_with(CWD, volume.join("good"), CWD, volume.join("bad"), flags).unwrap();
                }
            });
            let (mut inside, mut refused) = (0, 0);
            for _ in 0..20_000 {
                match open(&volume, "good/mark", true) {
                    Ok(found) => {
                        let found = fs::File::from(found).metadata().unwrap();
                        assert!(found.is_dir() || found.ino() != fs::metadata(host.join("mark")).unwrap().ino());
                        inside += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            stop.store(true, Ordering::Relaxed);
            println!("{inside} inside, {refused} refused");
        });
        assert_eq!(fs::read_dir(&host).unwrap().count(), 1, "nothing was made outside");
    }
}
