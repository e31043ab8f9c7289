//! Keeps containers away from this very program's file.
//!
//! Owns one re-execution at the program's start. Must not be called once threads run.

use crate::sys::{self, MountAttributes, StringList};
use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;

/// Makes sure that this program runs from a read-only mount of its file, by executing itself once more from one.
///
/// An image whose program is `#!/proc/self/exe` makes the kernel run the caller's own file inside the container, where
/// root could then open it by `/proc/PID/exe` and overwrite it (CVE-2019-5736). A read-only mount refuses that write. The
/// mount is seen by nobody else and costs no memory. Call it first in `main`, before any thread: it returns only when
/// the program already runs so. Afterwards `/proc/self/exe` no longer tells where the file lies.
///
/// # Errors
/// The kernel's refusal, with the call's name.
pub fn protect_executable() -> io::Result<()> {
    let named =
        |call: &'static str| move |errno: sys::Errno| io::Error::other(format!("{call}: {}", io::Error::from(errno)));
    let itself = c"/proc/self/exe";
    let opened = sys::own(sys::open(libc::AT_FDCWD, itself, libc::O_PATH).map_err(named("open(/proc/self/exe)"))?);
    if rustix::fs::fstatvfs(&opened)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let mount = sys::open_tree(libc::AT_FDCWD, itself, libc::OPEN_TREE_CLONE);
    let mount = sys::own(mount.map_err(named("open_tree(/proc/self/exe)"))?);
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    sys::set_mount_attributes(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, &attributes)
        .map_err(named("mount_setattr(/proc/self/exe)"))?;
    let arguments = std::env::args_os().map(|argument| CString::new(argument.into_vec()));
    let environment = std::env::vars_os().map(|(name, value)| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        CString::new(entry)
    });
    let arguments = StringList::new(arguments.collect::<Result<_, _>>()?);
    let environment = StringList::new(environment.collect::<Result<_, _>>()?);
    Err(named("execveat(/proc/self/exe)")(sys::execute_file(mount.as_raw_fd(), &arguments, &environment)))
}
