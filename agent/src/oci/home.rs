//! `HOME` for a process whose environment has none, as every engine expects it: the home of its user in the
//! container's `/etc/passwd`, else `/`.
//!
//! Owns where that file is looked for. Must not trust it: it is the image's.

use std::path::{Path, PathBuf};

use skeg_runtime::oci;

use crate::convert::users;

/// Gives a process its home. `root` is where the container's root is seen from here; `mounts` what covers it there.
pub(crate) fn add(process: &mut oci::Process, root: &Path, mounts: &[oci::Mount]) {
    if process.env().iter().flatten().any(|entry| entry.starts_with("HOME=")) {
        return;
    }
    let covers = |mount: &&oci::Mount| mount.destination() == Path::new("/etc/passwd");
    let covered = mounts.iter().rev().find(covers).and_then(|mount| mount.source().clone());
    let passwd = match covered.as_deref().and_then(|file| Some((file.parent()?, file.file_name()?.to_str()?))) {
        Some((folder, name)) => users::read(&[folder.to_owned()], name),
        None => users::read(&[PathBuf::from(root)], "etc/passwd"),
    };
    let home = users::home(&passwd, process.user().uid()).unwrap_or("/");
    process.env_mut().get_or_insert_default().push(format!("HOME={home}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(env: &[&str], uid: u32) -> oci::Process {
        let mut process = oci::Process::default();
        process.set_env(Some(env.iter().map(ToString::to_string).collect()));
        process.user_mut().set_uid(uid);
        process
    }

    #[test]
    fn the_home_is_that_of_the_user_in_the_containers_file() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n")
            .unwrap();
        let cover = root.path().join("generated");
        std::fs::write(&cover, "somebody:x:1000:0::/home/somebody:/bin/sh\n").unwrap();
        let mut mount = oci::Mount::default();
        mount.set_destination("/etc/passwd".into()).set_source(Some(cover));
        let cases: [(&[&str], u32, &[oci::Mount], &str); 5] = [
            (&[], 0, &[], "HOME=/root"),
            (&["A=1"], 33, &[], "HOME=/srv"),
            (&[], 4711, &[], "HOME=/"),
            (&["HOME=/mine"], 33, &[], "HOME=/mine"),
            (&[], 1000, &[mount], "HOME=/home/somebody"),
        ];
        for (env, uid, mounts, wanted) in cases {
            let mut process = process(env, uid);
            add(&mut process, root.path(), mounts);
            assert_eq!(process.env().iter().flatten().next_back().map(String::as_str), Some(wanted));
        }
    }
}
