//! Attacks that worked on other runtimes, each tried for real: hostile images, races, false files.

use super::support::{Ground, cannot_run, change_linux, mount, shell, with_mounts};
use crate::{PlanError, StartError, oci};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

fn without_mount(mut spec: oci::Spec, below: &str) -> oci::Spec {
    let mut mounts = spec.mounts().clone().unwrap();
    mounts.retain(|mount| !mount.destination().starts_with(below));
    spec.set_mounts(Some(mounts));
    spec
}

fn refused_step(ground: &Ground, spec: &oci::Spec) -> (String, Option<i32>) {
    match ground.run_spec(spec) {
        Err(StartError::Step { step, source, .. }) => (step, source.raw_os_error()),
        Err(error) => panic!("{error}"),
        Ok(outcome) => panic!("it runs: {}", outcome.output),
    }
}

/// An image's volume over `/proc` took the labels that were meant for the kernel.
#[test]
fn cve_2019_16884_nothing_stands_in_for_proc() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir_all(ground.path("false/self/attr")).unwrap();
    let place = ground.path("false");
    for destination in ["/proc", "/bin/../proc", "proc/"] {
        let spec = with_mounts(shell("true"), vec![mount(destination, "bind", place.to_str().unwrap(), "rbind")]);
        let Err(StartError::Plan(PlanError::Invalid { reason, .. })) = ground.plan(&spec) else {
            panic!("it compiles")
        };
        assert_eq!(reason, "must be a procfs: others trust what /proc says");
    }
    // By another name, after the real one is there.
    symlink("/proc", ground.path("root/innocent")).unwrap();
    for destination in ["/innocent", "/innocent/self/attr", "/proc/self/attr", "/proc/sys"] {
        let spec = with_mounts(shell("true"), vec![mount(destination, "bind", place.to_str().unwrap(), "rbind")]);
        let (step, errno) = refused_step(&ground, &spec);
        assert!(matches!(errno, Some(libc::EPERM | libc::ELOOP)), "{step}: {errno:?}");
    }
}

/// The image's `/proc` was a link: what was written there, or read, was another container's.
fn proc_is_a_link(points_to: &str) {
    let ground = Ground::new();
    fs::create_dir_all(ground.path("root/elsewhere/sys")).unwrap();
    symlink(points_to, ground.path("root/proc")).unwrap();
    let (step, errno) = refused_step(&ground, &shell("true"));
    assert_eq!((step.as_str(), errno), ("mount proc set 0xe on /proc", Some(libc::ELOOP)));
    let spec = without_mount(shell("true"), "/proc");
    let masked = change_linux(spec, |linux| {
        linux.set_masked_paths(None).set_readonly_paths(None);
    });
    // Nothing of the runtime's own goes through the image's `/proc`, so without a mount it may be what it likes.
    assert_eq!(ground.run_spec(&masked).unwrap().output, "");
    assert_eq!(fs::read_dir(ground.path("root/elsewhere/sys")).unwrap().count(), 0);
}

#[test]
fn cve_2019_19921_proc_is_no_link_to_a_volume() {
    if !cannot_run() {
        proc_is_a_link("/elsewhere");
    }
}

#[test]
fn cve_2023_27561_proc_is_no_relative_link() {
    if !cannot_run() {
        proc_is_a_link("elsewhere/../elsewhere");
    }
}

#[test]
fn cve_2023_28642_neither_proc_nor_sys_is_a_link() {
    if cannot_run() {
        return;
    }
    proc_is_a_link("/sys");
    let ground = Ground::new();
    symlink("/etc", ground.path("root/sys")).unwrap();
    assert_eq!(refused_step(&ground, &shell("true")).1, Some(libc::ELOOP));
}

/// Files of the image's own in the place of `/proc/sys` took the values, or led them to other files of the kernel.
fn sysctls_go_to_the_kernel(prepare: impl Fn(&Ground)) {
    let mut ground = Ground::new();
    ground.folder_root = true;
    prepare(&ground);
    let spec = without_mount(shell("busybox cat /real/sys/kernel/msgmax"), "/proc");
    let spec = with_mounts(spec, vec![mount("/real", "proc", "proc", "nosuid,nodev,noexec")]);
    let spec = change_linux(spec, |linux| {
        linux.set_sysctl(Some([("kernel.msgmax".to_string(), "4242".to_string())].into()));
        linux.set_masked_paths(None).set_readonly_paths(None);
    });
    assert_eq!(ground.run_spec(&spec).unwrap().output, "4242\n");
    for file in ["proc/sys/kernel/msgmax", "trap"] {
        let text = fs::read_to_string(ground.path("root").join(file)).unwrap_or_default();
        assert!(!text.contains("4242"), "{file}");
    }
}

#[test]
fn cve_2025_52881_a_sysctl_is_not_written_to_a_file_of_the_image() {
    if cannot_run() {
        return;
    }
    sysctls_go_to_the_kernel(|ground| {
        fs::create_dir_all(ground.path("root/proc/sys/kernel")).unwrap();
        fs::write(ground.path("root/proc/sys/kernel/msgmax"), "").unwrap();
    });
}

#[test]
fn cve_2025_62596_a_sysctl_does_not_follow_a_link() {
    if cannot_run() {
        return;
    }
    sysctls_go_to_the_kernel(|ground| {
        fs::create_dir_all(ground.path("root/proc/sys/kernel")).unwrap();
        fs::write(ground.path("root/trap"), "").unwrap();
        symlink("/trap", ground.path("root/proc/sys/kernel/msgmax")).unwrap();
    });
}

#[test]
fn cve_2025_54867_proc_and_sys_of_the_image_are_folders_or_nothing() {
    if cannot_run() {
        return;
    }
    for name in ["proc", "sys"] {
        let ground = Ground::new();
        fs::create_dir(ground.path("root/trap")).unwrap();
        symlink("trap", ground.path("root").join(name)).unwrap();
        let (step, errno) = refused_step(&ground, &shell("true"));
        assert_eq!(errno, Some(libc::ELOOP), "{step}");
    }
}

/// Exchanges two names for as long as the other part runs, and also if that panics.
fn race(one: &std::path::Path, other: &std::path::Path, run: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, swaps) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        run();
    });
    assert!(swaps.load(Ordering::Relaxed) > 0);
}

/// A container that shares a volume exchanges a folder and a link while another's mount point is looked up in there.
fn mount_points_race(kind: &str, make: impl Fn(&Ground) -> oci::Mount) {
    let ground = Ground::new();
    for folder in ["volume/folder", "outside"] {
        fs::create_dir_all(ground.path(folder)).unwrap();
    }
    fs::write(ground.path("outside/mark"), "the host's\n").unwrap();
    fs::write(ground.path("file"), "").unwrap();
    let outside = ground.path("outside");
    symlink(&outside, ground.path("volume/link")).unwrap();
    let volume = mount("/volume", "bind", ground.path("volume").to_str().unwrap(), "rbind");
    let spec = with_mounts(shell("busybox cat /volume/folder/mark 2> /dev/null"), vec![volume, make(&ground)]);
    race(&ground.path("volume/folder"), &ground.path("volume/link"), || {
        for _ in 0..60 {
            // Either it starts, inside, or a step says that it can't.
            match ground.run_spec(&spec) {
                Ok(outcome) => assert_eq!(outcome.output, "", "{kind}"),
                Err(StartError::Step { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["mark"], "{kind}");
}

#[test]
fn cve_2021_30465_a_mount_point_that_changes_never_leads_to_the_host() {
    if cannot_run() {
        return;
    }
    mount_points_race("tmpfs", |_| mount("/volume/folder/a/b", "tmpfs", "tmpfs", "nosuid,size=64k"));
    mount_points_race("bind", |ground| {
        mount("/volume/folder/a/b", "bind", ground.path("root/etc").to_str().unwrap(), "rbind,ro")
    });
}

#[test]
fn cve_2024_45310_no_file_is_made_on_the_host_for_a_mount_point() {
    if cannot_run() {
        return;
    }
    mount_points_race("file", |ground| {
        mount("/volume/folder/made", "bind", ground.path("file").to_str().unwrap(), "bind")
    });
}

/// The false null device of an image covered the secret, or was uncovered by it.
#[test]
fn cve_2025_31133_a_mask_is_the_real_null_device() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir(ground.path("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", ground.path("dev/null")).unwrap();
    fs::write(ground.path("root/secret"), "secret\n").unwrap();
    let spec = without_mount(shell("busybox stat -c '%F %t:%T' /secret; busybox cat /secret"), "/dev");
    let spec = with_mounts(spec, vec![mount("/dev", "bind", ground.path("dev").to_str().unwrap(), "bind")]);
    let spec = change_linux(spec, |linux| {
        linux.set_masked_paths(Some(vec!["/secret".into()]));
    });
    assert_eq!(ground.run_spec(&spec).unwrap().output, "character special file 1:3\n");
}

#[test]
fn cve_2025_62161_a_false_null_device_of_the_image_is_refused() {
    if cannot_run() {
        return;
    }
    for make in [false, true] {
        let ground = Ground::new();
        fs::create_dir(ground.path("root/dev")).unwrap();
        let null = ground.path("root/dev/null");
        if make {
            symlink("/bin/busybox", null).unwrap()
        } else {
            fs::write(null, "").unwrap()
        }
        let (step, errno) = refused_step(&ground, &without_mount(shell("true"), "/dev"));
        assert_eq!((step.as_str(), errno), ("make device /dev/null 1:3 mode 666 owner 0:0", Some(libc::EEXIST)));
    }
}

/// The image's `/dev` was a link: devices and links were made, and files removed, where it led.
fn dev_is_a_link(points_to: &str) {
    let ground = Ground::new();
    fs::write(ground.path("root/etc/null"), "kept\n").unwrap();
    symlink(points_to, ground.path("root/dev")).unwrap();
    let (step, errno) = refused_step(&ground, &without_mount(shell("true"), "/dev"));
    assert_eq!((step.as_str(), errno), ("open folder /dev", Some(libc::ELOOP)));
    assert_eq!(refused_step(&ground, &shell("true")).1, Some(libc::ELOOP));
    assert_eq!(fs::read_dir(ground.path("upper")).unwrap().count(), 2, "the mount points of /proc and /sys");
}

#[test]
fn cve_2026_41579_dev_is_no_link() {
    if !cannot_run() {
        dev_is_a_link("/etc");
    }
}

#[test]
fn cve_2026_47766_dev_is_no_link_upwards() {
    if !cannot_run() {
        dev_is_a_link("../../../../etc");
    }
}

/// Without a cgroup namespace, a writable cgroup filesystem is the host's.
#[test]
fn cve_2023_25809_cgroups_are_read_only_without_a_namespace() {
    if cannot_run() {
        return;
    }
    let line = "busybox awk '$5 ~ \"^/sys/fs/cgroup\" { print $6 }' /proc/self/mountinfo | busybox grep -v ^ro; \
                for folder in $(busybox find /sys/fs/cgroup -maxdepth 1 -type d); do busybox mkdir $folder/x 2>&1; done | \
                busybox grep -v 'Read-only file system'; echo done";
    let spec = without_mount(shell(line), "/sys/fs/cgroup");
    let spec = with_mounts(spec, vec![mount("/sys/fs/cgroup", "cgroup", "cgroup", "rw,nosuid")]);
    let spec = change_linux(spec, |linux| {
        let mut namespaces = linux.namespaces().clone().unwrap();
        namespaces.retain(|namespace| namespace.typ() != oci::LinuxNamespaceType::Cgroup);
        linux.set_namespaces(Some(namespaces));
    });
    assert_eq!(Ground::new().run_spec(&spec).unwrap().output, "done\n");
}
