//! Who a container runs as: numbers, or names looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The files are the image's and hostile: they are opened inside the layer's folder and nowhere else, read up
//! to a bound, and parsed line by line; what is odd in them is passed over.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::ConvertError;

/// Largest passwd or group file that is read, in bytes.
const MOST_BYTES: u64 = 1024 * 1024;
/// Most supplementary groups of one user (NGROUPS_MAX is 65536; nobody means that).
const MOST_GROUPS: usize = 64;

/// A user as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, sorted.
    pub(crate) groups: Vec<u32>,
    /// Home folder, where passwd names one.
    pub(crate) home: Option<String>,
}

/// The text of a file of the image, from the topmost layer that has it; empty where none has.
pub(crate) fn read(layers: &[PathBuf], path: &str) -> String {
    layers.iter().rev().find_map(|layer| read_in(layer, path)).unwrap_or_default()
}

/// `None`: this layer does not say; look further down.
fn read_in(layer: &Path, path: &str) -> Option<String> {
    let root = OpenOptions::new().read(true).custom_flags((OFlags::DIRECTORY | OFlags::PATH).bits() as i32).open(layer);
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Only looked at: opening a FIFO would stop the agent, and opening a device, such as a watchdog, acts on the host.
    let found = rustix::fs::openat2(root.ok()?, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside);
    let found = File::from(found.ok()?);
    let kind = found.metadata().ok()?.file_type();
    // A whiteout is a device 0:0: the file was deleted here, whatever lies below.
    if kind.is_char_device() {
        return Some(String::new());
    }
    let mut bytes = Vec::new();
    if kind.is_file() {
        // The very file that was looked at.
        let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
        file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// One line of passwd(5).
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(User { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// The home of the first user of that number, where passwd names an absolute one.
pub(crate) fn home(passwd: &str, uid: u32) -> Option<&str> {
    users(passwd).find(|entry| entry.uid == uid).map(|entry| entry.home).filter(|home| home.starts_with('/'))
}

/// Lines of group(5): name, number, members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

/// Resolves `user[:group]` of an image (OCI image-spec, config.md), each overridden by a number where given.
pub(crate) fn resolve(
    image_user: &str,
    user: Option<u32>,
    group: Option<u32>,
    passwd: &str,
    group_file: &str,
) -> Result<Identity, ConvertError> {
    // A user given by number takes the place of the image's user and group together.
    let number;
    let image_user = match user {
        Some(user) => {
            number = user.to_string();
            &number
        }
        None => image_user,
    };
    let (name, group_name) = match image_user.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name).filter(|name| !name.is_empty())),
        None => (image_user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let entry = users(passwd)
        .find(|entry| entry.name == name)
        .or_else(|| name.parse().ok().and_then(|uid: u32| users(passwd).find(|entry| entry.uid == uid)));
    let uid = match (&entry, name.parse()) {
        (Some(entry), _) => entry.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => {
            return Err(ConvertError::new(
                "image config.User",
                format!("the image's /etc/passwd has no user {name:?}"),
            ));
        }
    };
    let gid = match (group, group_name) {
        (Some(gid), _) => gid,
        (None, Some(name)) => groups(group_file)
            .find(|(known, ..)| *known == name)
            .map(|(_, gid, _)| gid)
            .or_else(|| name.parse().ok())
            .ok_or_else(|| {
                ConvertError::new("image config.User", format!("the image's /etc/group has no group {name:?}"))
            })?,
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut supplementary: Vec<u32> = match &entry {
        Some(entry) => groups(group_file)
            .filter(|(_, _, members)| members.split(',').any(|member| member == entry.name))
            .map(|(_, gid, _)| gid)
            .take(MOST_GROUPS)
            .collect(),
        None => Vec::new(),
    };
    supplementary.sort_unstable();
    supplementary.dedup();
    let home = entry.map(|entry| entry.home.to_owned()).filter(|home| home.starts_with('/'));
    Ok(Identity { uid, gid, groups: supplementary, home })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv:/bin/false\n:x:7:7::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nssl:x:90:web,other\nlog:x:80:other,web\n";

    fn numbers(image_user: &str, user: Option<u32>, group: Option<u32>) -> Result<(u32, u32, Vec<u32>), String> {
        let found = resolve(image_user, user, group, PASSWD, GROUP).map_err(|error| error.to_string())?;
        Ok((found.uid, found.gid, found.groups))
    }

    #[test]
    fn names_and_numbers_become_numbers() {
        assert_eq!(numbers("", None, None), Ok((0, 0, vec![])));
        assert_eq!(numbers("web", None, None), Ok((33, 34, vec![80, 90])));
        assert_eq!(numbers("33", None, None), Ok((33, 34, vec![80, 90])));
        assert_eq!(numbers("web:ssl", None, None), Ok((33, 90, vec![80, 90])));
        assert_eq!(numbers("1000", None, None), Ok((1000, 0, vec![])));
        assert_eq!(numbers("1000:1001", None, None), Ok((1000, 1001, vec![])));
        assert_eq!(numbers("web:ssl", Some(7000), None), Ok((7000, 0, vec![])));
        assert_eq!(numbers("web", None, Some(5)), Ok((33, 5, vec![80, 90])));
        assert!(numbers("nobody", None, None).unwrap_err().contains("\"nobody\""));
        assert!(numbers("web:nope", None, None).unwrap_err().contains("\"nope\""));
        assert!(numbers("-1", None, None).is_err() && numbers("4294967296", None, None).is_err());
        assert_eq!(resolve("web", None, None, PASSWD, GROUP).unwrap().home.as_deref(), Some("/srv"));
    }

    #[test]
    fn files_are_read_from_the_topmost_layer_and_never_from_outside() {
        let folder = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = ["lower", "upper"].iter().map(|name| folder.path().join(name)).collect();
        for layer in &layers {
            fs::create_dir_all(layer.join("etc")).unwrap();
        }
        fs::write(folder.path().join("secret"), "outside").unwrap();
        fs::write(layers[0].join("etc/passwd"), "lower").unwrap();
        assert_eq!(read(&layers, "etc/passwd"), "lower");
        symlink("../../secret", layers[1].join("etc/passwd")).unwrap();
        assert_eq!(read(&layers, "etc/passwd"), "lower");
        symlink(folder.path().join("secret"), layers[1].join("etc/group")).unwrap();
        assert_eq!(read(&layers, "etc/group"), "");
        fs::remove_file(layers[1].join("etc/passwd")).unwrap();
        fs::create_dir(layers[1].join("etc/passwd")).unwrap();
        assert_eq!(read(&layers, "etc/passwd"), "");
    }

    /// A container with the right to make nodes could have the agent open a watchdog, which restarts the board.
    #[test]
    fn what_is_no_file_is_never_opened() {
        use rustix::fs::inotify;
        let layer = tempfile::tempdir().unwrap();
        let path = layer.path().join("passwd");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, &path, inotify::WatchFlags::OPEN).unwrap();
        assert_eq!(read(&[layer.path().to_owned()], "passwd"), "");
        assert_eq!(rustix::io::read(&watch, &mut [0_u8; 64]), Err(rustix::io::Errno::AGAIN));
    }
}
