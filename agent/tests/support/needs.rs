//! What tests of containers need, and how they say that they lack it.

use std::path::Path;

/// Says why containers can't be run here, if so.
pub fn cannot_run() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("containers need root");
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("/bin/busybox is missing (Debian: apt-get install busybox-static)");
    }
    None
}

/// Ends a test that can't run here.
macro_rules! needs_root {
    () => {
        if let Some(why) = $crate::needs::cannot_run() {
            println!("skipped: {why}");
            return;
        }
    };
}
pub(crate) use needs_root;
