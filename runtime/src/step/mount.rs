//! Mounts: made detached, given all their attributes, and only then attached by descriptor.
//!
//! Owns the order of these three. Must not look a path up again once it was mounted on: nobody can put another mount
//! under an attribute that was meant for this one.

use super::copy_up::copy_folder;
use super::target::{Target, move_to_slot};
use super::text;
use crate::sys::{self, MountAttributes};
use std::ffi::{CStr, CString};
use std::fmt;
use std::path::PathBuf;

/// A filesystem to be mounted.
#[derive(Debug)]
pub(crate) struct Filesystem {
    pub(crate) kind: CString,
    pub(crate) source: CString,
    /// What fsconfig(2) is told: a key with its value, or a flag.
    pub(crate) options: Vec<(CString, Option<CString>)>,
    /// Of the mount, not of the filesystem.
    pub(crate) attributes: MountAttributes,
    /// A tmpfs without a mode takes the covered folder's.
    pub(crate) takes_mode: bool,
    /// Starts with a copy of the covered folder.
    pub(crate) copies_up: bool,
    /// Where the mount stays open for [`super::filesystem::FilesystemStep::MakeMountReadOnly`].
    pub(crate) slot: Option<i32>,
}

impl Filesystem {
    /// Mounts it.
    pub(crate) fn mount(&self, root: i32, target: &Target) -> sys::Result<()> {
        let place = target.open_for_mount(root)?;
        let context = sys::open_filesystem(&self.kind)?;
        sys::configure_filesystem(context, c"source", Some(&self.source))?;
        self.configure(context)?;
        if self.takes_mode {
            sys::configure_filesystem(context, c"mode", Some(Octal::new(sys::stat(place)?.mode).as_c_str()))?;
        }
        sys::create_filesystem(context)?;
        let mount = sys::mount_filesystem(context, self.attributes.set as u32)?;
        if self.copies_up {
            copy_folder(place, mount)?;
        }
        if self.attributes.propagation != 0 {
            let propagation =
                MountAttributes { propagation: self.attributes.propagation, ..MountAttributes::default() };
            sys::set_mount_attributes(mount, c"", libc::AT_EMPTY_PATH, &propagation)?;
        }
        sys::attach_mount(mount, place)?;
        sys::close(context);
        sys::close(place);
        match self.slot {
            Some(slot) => move_to_slot(mount, slot)?,
            None => sys::close(mount),
        }
        Ok(())
    }

    /// Gives other options to the filesystem that is mounted there, and to the mount.
    pub(crate) fn remount(&self, root: i32, target: &Target) -> sys::Result<()> {
        let place = target.open_for_mount(root)?;
        let context = sys::pick_filesystem(place)?;
        self.configure(context)?;
        sys::reconfigure_filesystem(context)?;
        sys::set_mount_attributes(place, c"", libc::AT_EMPTY_PATH, &self.attributes)?;
        sys::close(context);
        sys::close(place);
        Ok(())
    }

    fn configure(&self, context: i32) -> sys::Result<()> {
        self.options.iter().try_for_each(|(key, value)| sys::configure_filesystem(context, key, value.as_deref()))
    }
}

/// A bind mount. The caller clones it from its source and hands it over when the child comes to it.
#[derive(Debug)]
pub(crate) struct Bind {
    /// What is bound, open in the caller.
    pub(crate) source: i32,
    /// With all that is mounted below.
    pub(crate) recursive: bool,
    /// Of the mount itself.
    pub(crate) own: MountAttributes,
    /// Of the mount and all below.
    pub(crate) below: MountAttributes,
    /// The source's place in the specification.
    pub(crate) at: String,
    /// The source.
    pub(crate) path: PathBuf,
}

/// Attaches a mount that was handed over.
pub(crate) fn attach(mount: i32, root: i32, target: &Target) -> sys::Result<()> {
    let place = target.open_for_mount(root)?;
    sys::attach_mount(mount, place)?;
    sys::close(place);
    sys::close(mount);
    Ok(())
}

/// The permission bits of a mode in octal digits, built without allocation.
struct Octal([u8; 5]);

impl Octal {
    fn new(mode: u32) -> Octal {
        let digit = |shift: u32| b'0' + (mode >> shift & 7) as u8;
        Octal([digit(9), digit(6), digit(3), digit(0), 0])
    }

    fn as_c_str(&self) -> &CStr {
        // Four digits and the NUL.
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"0755")
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recursively = if self.recursive { " recursively" } else { "" };
        write!(out, "{}{recursively}{}", self.path.display(), self.own)?;
        if self.below == MountAttributes::default() { Ok(()) } else { write!(out, "{} and below", self.below) }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", text(&self.kind))?;
        for (index, (key, value)) in self.options.iter().enumerate() {
            write!(out, "{}{}", if index == 0 { " options " } else { "," }, text(key))?;
            if let Some(value) = value {
                write!(out, "={}", text(value))?;
            }
        }
        write!(out, "{}", self.attributes)?;
        write!(out, "{}", if self.copies_up { ", with a copy of what it covers," } else { "" })
    }
}
