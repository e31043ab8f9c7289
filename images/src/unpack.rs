//! Unpacks one layer's tar stream into a folder that serves as an overlay's lower directory.
//!
//! Owns the safety of that: every name is resolved below the layer's folder with `openat2` and without symlinks,
//! so that nothing outside of it is ever touched, and every kind of excess has a limit with a name. Whiteouts become
//! overlay's (a 0:0 character device; `trusted.overlay.opaque`). What a layer means: OCI image-spec, layer.md;
//! what overlay wants: kernel, filesystems/overlayfs.rst. It knows no digest and no compression.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::tar::{Archive, Entry, Kind, TarError};

/// Longest path in bytes (PATH_MAX with its NUL).
pub const MAX_PATH: usize = 4095;
/// Longest file name in bytes (NAME_MAX).
pub const MAX_COMPONENT: usize = 255;
/// Most components of a path.
pub const MAX_DEPTH: usize = 128;
/// Longest value of an extended attribute in bytes (XATTR_SIZE_MAX).
pub const MAX_XATTR: usize = 65_536;

pub(crate) const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Why a layer cannot be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The stream is broken or no archive.
    #[error("{0}")]
    Archive(String, #[source] Option<io::Error>),
    /// An entry is refused.
    #[error("entry {entry:?}: {problem}")]
    Entry {
        /// The entry's name in the archive, cut to 200 characters.
        entry: String,
        /// Why it is refused.
        problem: Problem,
    },
    /// The file system refused.
    #[error("entry {entry:?}: cannot {operation}")]
    Io {
        /// The entry's name in the archive, cut to 200 characters.
        entry: String,
        /// What was tried.
        operation: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No space is left.
    #[error("entry {entry:?}: no space left on the disk of {}", folder.display())]
    Full {
        /// The entry that did not fit any more.
        entry: String,
        /// The folder that was being written.
        folder: PathBuf,
    },
    /// More entries than allowed.
    #[error("more than {0} entries (the limit layer_entries)")]
    TooManyEntries(u64),
    /// More folders than allowed.
    #[error("more than {0} folders (the limit layer_folders)")]
    TooManyFolders(u64),
    /// The files have more bytes than allowed.
    #[error("more than {0} bytes unpacked (the limits layer_ratio and layer_gib)")]
    TooLarge(u64),
}

/// How much one layer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) entries: u64,
    /// Their times are kept in memory until the end.
    pub(crate) folders: u64,
    /// Bytes of all files together.
    pub(crate) bytes: u64,
}

/// Why an entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// `..` in a name.
    #[error("its name leads upwards (\"..\")")]
    Upwards,
    /// A NUL byte or a bad length in a name.
    #[error(
        "its name is empty, has a NUL byte, a part of more than {MAX_COMPONENT} bytes, more than {MAX_DEPTH} parts or {MAX_PATH} bytes"
    )]
    Name,
    /// The name goes through a symlink.
    #[error("its name goes through a symlink")]
    ThroughSymlink,
    /// The name goes through something that is no folder.
    #[error("its name goes through a file")]
    ThroughFile,
    /// A hard link to nothing in this layer.
    #[error("it is a hard link to {0:?}, which is not in the same layer")]
    LinkTarget(String),
    /// A hard link to a folder.
    #[error("it is a hard link to the folder {0:?}")]
    LinkToFolder(String),
    /// A symlink's target is empty or too long.
    #[error("it is a symlink whose target is empty, has a NUL byte or is too long")]
    SymlinkTarget,
    /// A device node outside of /dev.
    #[error("it is a device node ({major}:{minor}); layers may have none outside of /dev")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An attribute of the overlay itself.
    #[error("it sets the extended attribute {0:?}, which is the overlay's own")]
    OverlayXattr(String),
    /// An attribute that is too long.
    #[error("its extended attribute {0:?} has a bad name or more than {MAX_XATTR} bytes")]
    Xattr(String),
    /// An owner beyond 32 bits.
    #[error("its owner {uid}:{gid} is out of range")]
    Owner {
        /// User id.
        uid: u64,
        /// Group id.
        gid: u64,
    },
    /// A whiteout of nothing.
    #[error("it is a whiteout without a name")]
    Whiteout,
    /// The root itself as something else than a folder, or opaque.
    #[error("it makes the root folder something that it cannot be")]
    Root,
}

/// What is left to do when a layer is unpacked and its parents are known.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Folders that the archive uses without naming them: they look like those of the layers below.
    pub(crate) implied: Vec<PathBuf>,
    /// An entry has replaced an earlier one: what the earlier one had is nowhere any more.
    pub(crate) replaced: bool,
}

/// A folder's modification time, or that the archive never said one.
#[derive(Debug, Clone, Copy)]
enum Folder {
    Implied,
    Named { seconds: i64, nanos: u32 },
}

struct Unpacker<'a> {
    folder: &'a Path,
    root: OwnedFd,
    bounds: Bounds,
    bytes: u64,
    folders: BTreeMap<Vec<u8>, Folder>,
    /// The folder of the entry before, which is mostly that of the next one.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    replaced: bool,
    buffer: Vec<u8>,
}

type Result<T> = std::result::Result<T, UnpackError>;

/// Unpacks the whole archive into an empty folder, within bounds.
///
/// Reads up to the archive's end mark, not further. On an error the folder is left half full for the caller to remove.
pub(crate) fn unpack<R: Read>(archive: &mut Archive<R>, folder: &Path, bounds: Bounds) -> Result<Unpacked> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty()).map_err(|errno| UnpackError::Io {
        entry: folder.display().to_string(),
        operation: "open the layer's folder",
        source: errno.into(),
    })?;
    let mut unpacker = Unpacker {
        folder,
        root,
        bounds,
        bytes: 0,
        folders: BTreeMap::from([(Vec::new(), Folder::Implied)]),
        last_parent: None,
        replaced: false,
        buffer: vec![0; 128 << 10],
    };
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > bounds.entries {
            return Err(UnpackError::TooManyEntries(bounds.entries));
        }
        unpacker.place(&entry, archive)?;
    }
    unpacker.finish()
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> UnpackError {
        let text = error.to_string();
        match error {
            TarError::Read { source, .. } => UnpackError::Archive(text, Some(source)),
            TarError::Malformed { .. } => UnpackError::Archive(text, None),
        }
    }
}

/// Takes a name apart: `./a//b/` is `a`, `b`; a leading slash means the layer's root, as for every unpacker.
pub(crate) fn components(name: &[u8]) -> std::result::Result<Vec<&[u8]>, Problem> {
    let parts: Vec<_> = name.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && part != b".").collect();
    if parts.iter().any(|part| *part == b"..") {
        return Err(Problem::Upwards);
    }
    let long = name.len() > MAX_PATH || parts.len() > MAX_DEPTH || parts.iter().any(|part| part.len() > MAX_COMPONENT);
    if long || name.is_empty() || name.contains(&0) { Err(Problem::Name) } else { Ok(parts) }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}

fn refuse<T>(entry: &Entry, problem: Problem) -> Result<T> {
    Err(UnpackError::Entry { entry: shown(&entry.path), problem })
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn open_folder(parent: impl AsFd, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens a folder below `root`: no `..`, no symlink, no other file system on the way.
pub(crate) fn open_beneath(root: impl AsFd, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    // NO_SYMLINKS refuses the last part, too, and says so; with O_NOFOLLOW it would be "not a directory".
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

impl Unpacker<'_> {
    /// Names the entry and the step in an error of the file system.
    fn io<'e>(&'e self, entry: &'e Entry, operation: &'static str) -> impl Fn(Errno) -> UnpackError + 'e {
        move |errno| {
            let name = shown(&entry.path);
            match errno {
                Errno::NOSPC | Errno::DQUOT => UnpackError::Full { entry: name, folder: self.folder.to_owned() },
                Errno::LOOP => UnpackError::Entry { entry: name, problem: Problem::ThroughSymlink },
                Errno::NOTDIR => UnpackError::Entry { entry: name, problem: Problem::ThroughFile },
                _ => UnpackError::Io { entry: name, operation, source: errno.into() },
            }
        }
    }

    /// Places one entry. Later entries replace earlier ones of the same name.
    fn place<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        let parts = match components(&entry.path) {
            Ok(parts) => parts,
            Err(problem) => return refuse(entry, problem),
        };
        let Some((name, parents)) = parts.split_last() else { return self.place_root(entry) };
        if let Some(mark) = parents.iter().find(|part| part.starts_with(WHITEOUT)) {
            // `.wh..wh.plnk/…` is aufs' own bookkeeping; below any other mark nothing can be.
            return if mark[WHITEOUT.len()..].starts_with(WHITEOUT) {
                Ok(())
            } else {
                refuse(entry, Problem::Whiteout)
            };
        }
        let parent_path = parents.join(&b'/');
        // The parent is taken out of the cache while it is used, and put back when all went well.
        let parent = self.parent(entry, &parent_path)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.whiteout(entry, &parent, &parent_path, name, hidden)?;
        } else if entry.kind == Kind::CharacterDevice && entry.device == (0, 0) {
            // Overlay's own form of a whiteout, as some builders pack it.
            self.whiteout(entry, &parent, &parent_path, name, name)?;
        } else {
            self.place_named(entry, archive, &parent, &parent_path, name)?;
        }
        self.last_parent = Some((parent_path, parent));
        Ok(())
    }

    fn place_root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Folder {
            return refuse(entry, Problem::Root);
        }
        let root = open_beneath(&self.root, b"").map_err(self.io(entry, "open the root folder"))?;
        self.dress(entry, &root)?;
        self.note_folder(Vec::new(), entry)
    }

    fn place_named<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
        parent: &OwnedFd,
        parent_path: &[u8],
        name: &[u8],
    ) -> Result<()> {
        match entry.kind {
            Kind::Folder => return self.folder(entry, parent, parent_path, name),
            Kind::HardLink => return self.hard_link(entry, parent, parent_path, name),
            Kind::CharacterDevice | Kind::BlockDevice => {
                // A container's /dev is mounted over the image's, so nothing is lost there.
                let (major, minor) = entry.device;
                return if parent_path == b"dev" { Ok(()) } else { refuse(entry, Problem::Device { major, minor }) };
            }
            Kind::File | Kind::Symlink | Kind::Fifo => {}
        }
        if entry.kind == Kind::Symlink
            && (entry.link.is_empty() || entry.link.len() > MAX_PATH || entry.link.contains(&0))
        {
            return refuse(entry, Problem::SymlinkTarget);
        }
        self.clear(entry, parent, parent_path, name)?;
        match entry.kind {
            Kind::File => self.file(entry, archive, parent, name),
            Kind::Symlink => {
                let target: &[u8] = &entry.link;
                rustix::fs::symlinkat(target, parent, name).map_err(self.io(entry, "make the symlink"))?;
                self.dress_by_name(entry, parent, name)
            }
            _ => {
                rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                    .map_err(self.io(entry, "make the fifo"))?;
                self.dress_by_name(entry, parent, name)
            }
        }
    }

    /// Opens the folder of an entry; folders that the archive has not named are made.
    fn parent(&mut self, entry: &Entry, path: &[u8]) -> Result<OwnedFd> {
        if let Some((last, folder)) = self.last_parent.take()
            && last == path
        {
            return Ok(folder);
        }
        match open_beneath(&self.root, path) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(self.io(entry, "open its folder")(errno)),
        }
        let mut here = open_beneath(&self.root, b"").map_err(self.io(entry, "open the root folder"))?;
        let mut so_far = Vec::new();
        for part in path.split(|&byte| byte == b'/') {
            so_far = join(&so_far, part);
            match rustix::fs::mkdirat(&here, part, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    self.check_folders()?;
                    self.folders.insert(so_far.clone(), Folder::Implied);
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.io(entry, "make its folder")(errno)),
            }
            here = open_folder(&here, part).map_err(self.io(entry, "open its folder"))?;
        }
        Ok(here)
    }

    fn check_folders(&self) -> Result<()> {
        let most = self.bounds.folders;
        if self.folders.len() as u64 >= most { Err(UnpackError::TooManyFolders(most)) } else { Ok(()) }
    }

    fn note_folder(&mut self, path: Vec<u8>, entry: &Entry) -> Result<()> {
        self.check_folders()?;
        let (seconds, nanos) = entry.mtime;
        self.folders.insert(path, Folder::Named { seconds, nanos });
        Ok(())
    }

    fn stat(&self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> Result<Option<Stat>> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.io(entry, "look at what is there")(errno)),
        }
    }

    /// Removes what an earlier entry has put under this name; tells whether there was anything.
    fn clear(&mut self, entry: &Entry, parent: &OwnedFd, parent_path: &[u8], name: &[u8]) -> Result<bool> {
        let Some(stat) = self.stat(entry, parent, name)? else { return Ok(false) };
        // A whiteout has nothing to lose.
        self.replaced |= FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice;
        if !is_folder(&stat) {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(self.io(entry, "replace what is there"))?;
            return Ok(true);
        }
        remove_folder(parent, name).map_err(self.io(entry, "replace the folder that is there"))?;
        let path = join(parent_path, name);
        let below = join(&path, b"");
        self.folders.retain(|folder, _| *folder != path && !folder.starts_with(&below));
        Ok(true)
    }

    fn folder(&mut self, entry: &Entry, parent: &OwnedFd, parent_path: &[u8], name: &[u8]) -> Result<()> {
        let there = self.stat(entry, parent, name)?;
        let mut replaced = false;
        if !there.as_ref().is_some_and(is_folder) {
            replaced = self.clear(entry, parent, parent_path, name)?;
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(self.io(entry, "make the folder"))?;
        }
        let folder = open_folder(parent, name).map_err(self.io(entry, "open the folder"))?;
        self.dress(entry, &folder)?;
        if replaced {
            // A file or whiteout in this layer had hidden what lower layers have here; the folder does so, too.
            self.make_opaque(entry, &folder)?;
        }
        self.note_folder(join(parent_path, name), entry)
    }

    fn make_opaque(&self, entry: &Entry, folder: &OwnedFd) -> Result<()> {
        rustix::fs::fsetxattr(folder, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(self.io(entry, "mark the folder as opaque"))
    }

    /// A mark hides what lower layers have; what this layer itself has under that name stays.
    fn whiteout(&mut self, entry: &Entry, parent: &OwnedFd, path: &[u8], name: &[u8], hidden: &[u8]) -> Result<()> {
        if name == OPAQUE_MARK {
            // Overlay does not look for the mark on the root of a lower layer.
            return if path.is_empty() { refuse(entry, Problem::Root) } else { self.make_opaque(entry, parent) };
        }
        if hidden.starts_with(WHITEOUT) && name != hidden {
            // Other `.wh..wh.` names are aufs' own bookkeeping, which every unpacker skips.
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return refuse(entry, Problem::Whiteout);
        }
        match self.stat(entry, parent, hidden)? {
            Some(stat) if is_folder(&stat) => {
                let folder = open_folder(parent, hidden).map_err(self.io(entry, "open the folder"))?;
                self.make_opaque(entry, &folder)
            }
            Some(_) => Ok(()),
            None => rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(self.io(entry, "make the whiteout")),
        }
    }

    fn hard_link(&mut self, entry: &Entry, parent: &OwnedFd, parent_path: &[u8], name: &[u8]) -> Result<()> {
        let parts = match components(&entry.link) {
            Ok(parts) => parts,
            Err(problem) => return refuse(entry, problem),
        };
        let missing = || refuse(entry, Problem::LinkTarget(shown(&entry.link)));
        let Some((target, parents)) = parts.split_last() else { return missing() };
        let folder = match open_beneath(&self.root, &parents.join(&b'/')) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return missing(),
            Err(errno) => return Err(self.io(entry, "open the folder of the link's target")(errno)),
        };
        let Some(stat) = self.stat(entry, &folder, target)? else { return missing() };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return refuse(entry, Problem::LinkToFolder(shown(&entry.link))),
            // A whiteout says that the target is not there.
            FileType::CharacterDevice => return missing(),
            _ => {}
        }
        let there = self.stat(entry, parent, name)?;
        if there.is_some_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        self.clear(entry, parent, parent_path, name)?;
        // Without AT_SYMLINK_FOLLOW a symlink is linked, not what it points to.
        rustix::fs::linkat(&folder, *target, parent, name, AtFlags::empty())
            .map_err(self.io(entry, "make the hard link"))
    }

    fn file<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(self.io(entry, "create the file"))?;
        let file = File::from(file);
        let stored = match &entry.pieces {
            Some(pieces) => pieces.iter().map(|(_, length)| length).sum(),
            None => entry.size,
        };
        self.bytes = self.bytes.saturating_add(stored);
        let most = self.bounds.bytes;
        if self.bytes > most || entry.size > most {
            return Err(UnpackError::TooLarge(most));
        }
        match &entry.pieces {
            None => self.fill(entry, archive, &file)?,
            Some(pieces) => self.fill_sparse(entry, archive, &file, pieces)?,
        }
        self.dress(entry, &file)?;
        self.set_time(entry, &file)
    }

    fn fill<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>, mut file: &File) -> Result<()> {
        loop {
            let count = archive.read_data(&mut self.buffer)?;
            if count == 0 {
                return Ok(());
            }
            let written = file.write_all(&self.buffer[..count]);
            written.map_err(|error| self.write_error(entry, error))?;
        }
    }

    /// Writes each piece at its offset; the holes stay holes.
    fn fill_sparse<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
        file: &File,
        pieces: &[(u64, u64)],
    ) -> Result<()> {
        file.set_len(entry.size).map_err(|error| self.write_error(entry, error))?;
        for &(offset, length) in pieces {
            let mut done = 0;
            while done < length {
                let room = usize::try_from(length - done).unwrap_or(usize::MAX).min(self.buffer.len());
                let count = archive.read_data(&mut self.buffer[..room])?;
                let written = file.write_all_at(&self.buffer[..count], offset + done);
                written.map_err(|error| self.write_error(entry, error))?;
                done += count as u64;
            }
        }
        Ok(())
    }

    fn write_error(&self, entry: &Entry, error: io::Error) -> UnpackError {
        match Errno::from_io_error(&error) {
            Some(errno) => self.io(entry, "write the file")(errno),
            None => UnpackError::Io { entry: shown(&entry.path), operation: "write the file", source: error },
        }
    }

    fn owner(&self, entry: &Entry) -> Result<(Uid, Gid)> {
        // The last number means "leave it as it is" to chown.
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        match (id(entry.uid), id(entry.gid)) {
            (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
            _ => refuse(entry, Problem::Owner { uid: entry.uid, gid: entry.gid }),
        }
    }

    /// Gives an open file or folder its owner, mode and attributes.
    fn dress(&self, entry: &Entry, file: impl AsFd) -> Result<()> {
        let (uid, gid) = self.owner(entry)?;
        // The owner first: chown clears the setuid bits and file capabilities that are set next.
        rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(self.io(entry, "set the owner"))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(self.io(entry, "set the mode"))?;
        for (name, value) in &entry.xattrs {
            let Some(name) = self.wanted_xattr(entry, name, value)? else { continue };
            match rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP) if name != "security.capability" => {
                    log::debug!("{}: this file system keeps no {name}", shown(&entry.path));
                }
                result => result.map_err(self.io(entry, "set an extended attribute"))?,
            }
        }
        Ok(())
    }

    /// Gives a symlink or fifo its owner, mode and time; such files have no attributes that a container needs.
    fn dress_by_name(&self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let (uid, gid) = self.owner(entry)?;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.io(entry, "set the owner"))?;
        if entry.kind != Kind::Symlink {
            // This follows symlinks, but the name is the fifo that was made two calls ago in a private folder.
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(self.io(entry, "set the mode"))?;
        }
        let times = times(entry.mtime.0, entry.mtime.1);
        rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(self.io(entry, "set the time"))
    }

    fn set_time(&self, entry: &Entry, file: &File) -> Result<()> {
        rustix::fs::futimens(file, &times(entry.mtime.0, entry.mtime.1)).map_err(self.io(entry, "set the time"))
    }

    /// Decides on an attribute: set it (the name), leave it out (`None`), or refuse the layer.
    fn wanted_xattr<'n>(&self, entry: &Entry, name: &'n [u8], value: &[u8]) -> Result<Option<&'n str>> {
        let text = match std::str::from_utf8(name) {
            Ok(text) if text.len() <= MAX_COMPONENT && !text.contains('\0') && value.len() <= MAX_XATTR => text,
            _ => return refuse(entry, Problem::Xattr(shown(name))),
        };
        if text.starts_with("trusted.overlay.") || text.starts_with("user.overlay.") {
            return refuse(entry, Problem::OverlayXattr(shown(name)));
        }
        let wanted = text == "security.capability"
            || text.starts_with("user.")
            || text.starts_with("trusted.")
            || text.starts_with("system.posix_acl_");
        // Labels of the builder's security module mean nothing here.
        Ok(wanted.then_some(text))
    }

    /// Sets the folders' times, which unpacking into them has changed, and tells which folders were only implied.
    fn finish(self) -> Result<Unpacked> {
        let mut implied = Vec::new();
        for (path, folder) in &self.folders {
            let named = Path::new(std::ffi::OsStr::from_bytes(path));
            let Folder::Named { seconds, nanos } = *folder else {
                implied.push(named.to_owned());
                continue;
            };
            let set = open_beneath(&self.root, path).and_then(|fd| rustix::fs::futimens(fd, &times(seconds, nanos)));
            set.map_err(|errno| UnpackError::Io {
                entry: shown(path),
                operation: "set the folder's time",
                source: errno.into(),
            })?;
        }
        Ok(Unpacked { implied, replaced: self.replaced })
    }
}

fn times(seconds: i64, nanos: u32) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes a folder with all that is in it, by descriptors, following nothing. Depth is bounded by [`MAX_DEPTH`].
fn remove_folder(parent: &OwnedFd, name: &[u8]) -> std::result::Result<(), Errno> {
    let folder = open_folder(parent, name)?;
    for item in rustix::fs::Dir::read_from(&folder)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_folder(&folder, name)?,
            result => result?,
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Gives the implied folders of a layer the owner, mode and time that the nearest layer below has for them.
///
/// Overlay shows a folder as its topmost layer has it, so that a layer that only adds `tmp/x` would else take
/// `/tmp` its sticky bit. `lower` is top first.
pub(crate) fn imitate(layer: &Path, implied: &[PathBuf], lower: &[PathBuf]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &PathBuf| rustix::fs::open(path, flags, Mode::empty());
    let root = open(&layer.to_owned())?;
    let lower = lower.iter().map(open).collect::<std::result::Result<Vec<_>, _>>()?;
    for path in implied {
        let path = path.as_os_str().as_bytes();
        let folder = open_beneath(&root, path)?;
        let below = lower.iter().map(|root| open_beneath(root, path)).find(|found| !matches!(found, Err(Errno::NOENT)));
        match below {
            Some(Ok(below)) => {
                let stat = rustix::fs::fstat(below)?;
                rustix::fs::fchown(&folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
                rustix::fs::fchmod(&folder, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
                let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
                rustix::fs::futimens(&folder, &times(stat.st_mtime, nanos))?;
            }
            // New here, or hidden by something that is no folder: a folder like any other, at a fixed time. The
            // mode is set once more, as the process's umask may have taken some of it.
            _ => {
                rustix::fs::fchmod(&folder, Mode::from_raw_mode(0o755))?;
                rustix::fs::futimens(&folder, &times(0, 0))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
