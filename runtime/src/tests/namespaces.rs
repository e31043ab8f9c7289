//! Namespaces of every kind, made and given.

use super::entering::enter;
use super::support::{Ground, cannot_map_ids, cannot_run, change_linux, shell};
use crate::{Exit, Limits, PlanError, StartError, Started, new_user_namespace, oci, sys, wait};
use oci::LinuxNamespaceType as Kind;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Asks for one namespace more, or for another in place of the default one.
fn with_namespace(spec: oci::Spec, kind: Kind, path: Option<PathBuf>) -> oci::Spec {
    change_linux(spec, |linux| {
        let mut list = linux.namespaces().clone().unwrap();
        list.retain(|namespace| namespace.typ() != kind);
        let mut namespace = oci::LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        list.push(namespace);
        linux.set_namespaces(Some(list));
    })
}

fn without_namespace(spec: oci::Spec, kind: Kind) -> oci::Spec {
    change_linux(spec, |linux| {
        let mut list = linux.namespaces().clone().unwrap();
        list.retain(|namespace| namespace.typ() != kind);
        linux.set_namespaces(Some(list));
    })
}

fn map(inside: u32, outside: u32, size: u32) -> oci::LinuxIdMapping {
    oci::LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(size).build().unwrap()
}

/// A specification with a user namespace of ids from 100,000 on.
pub(super) fn in_user_namespace(line: &str) -> oci::Spec {
    change_linux(with_namespace(shell(line), Kind::User, None), |linux| {
        linux.set_uid_mappings(Some(vec![map(0, 100_000, 65_536)]));
        linux.set_gid_mappings(Some(vec![map(0, 200_000, 65_536)]));
    })
}

/// A container that sleeps, whose namespaces others join.
fn sleeper(ground: &Ground) -> Started {
    ground.start(&shell("exec busybox sleep 1000")).unwrap().0
}

fn namespace(started: &Started, kind: &str) -> PathBuf {
    format!("/proc/{}/ns/{kind}", started.pid).into()
}

/// Lets everybody into the folders above the ground: the ids of a user namespace own nothing on the host.
pub(super) fn open(ground: &Ground) {
    use std::os::unix::fs::{PermissionsExt, chown};
    fs::set_permissions(ground.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(ground.path("upper"), Some(100_000), Some(200_000)).unwrap();
}

#[test]
fn a_user_namespace_has_its_own_ids_and_owns_the_rest() {
    if cannot_map_ids() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    open(&ground);
    let spec = in_user_namespace(
        "busybox id -u; busybox cat /proc/self/uid_map /proc/self/gid_map | busybox tr -s ' '; echo new > /etc/made; \
         busybox stat -c %u:%g /etc/made /bin/busybox; busybox stat -c %t:%T /dev/null; echo lost > /dev/null; \
         busybox grep -E '^(CapEff|Seccomp:)' /proc/self/status; busybox cat /proc/1/comm; busybox cat /sys/class/net/lo/flags",
    );
    let outcome = ground.run_spec(&spec).unwrap();
    let lines: Vec<_> = outcome.output.lines().collect();
    let ids = ["0", " 0 100000 65536", " 0 200000 65536", "0:0", "0:0", "1:3", "CapEff:\t00000000a00425fb"];
    assert_eq!(lines[..7], ids);
    assert_eq!(lines[7..], ["Seccomp:\t2", "busybox", "0x9"], "{}", outcome.output);
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(ground.path("upper/etc/made")).unwrap();
    assert_eq!((outcome.exit, made.uid(), made.gid()), (Exit::Code(0), 100_000, 200_000));
}

#[test]
fn a_second_process_enters_the_user_namespace_too() {
    if cannot_map_ids() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    open(&ground);
    let spec = in_user_namespace("exec busybox sleep 1000");
    let (target, _output) = ground.start(&spec).unwrap();
    let line = "busybox id -u; for kind in user pid net mnt; do \
                test $(busybox readlink /proc/self/ns/$kind) = $(busybox readlink /proc/1/ns/$kind) && echo $kind; done; \
                busybox grep CapEff /proc/self/status";
    let (exit, output) = enter(&ground, &target, &spec, shell(line).process().as_ref().unwrap()).unwrap();
    assert_eq!((exit, output.as_str()), (Exit::Code(0), "0\nuser\npid\nnet\nmnt\nCapEff:\t00000000a00425fb\n"));
    ground.cgroup.as_ref().unwrap().kill().unwrap();
    wait(&target).unwrap();
    let gone = enter(&ground, &target, &spec, shell("true").process().as_ref().unwrap()).unwrap_err();
    assert_eq!(gone.to_string(), "the container has ended: there is nothing to enter");
}

#[test]
fn a_user_namespace_is_shared_by_descriptor() {
    if cannot_map_ids() {
        return;
    }
    let mut ground = Ground::with_cgroup(&Limits::default());
    open(&ground);
    let ids = [map(0, 100_000, 1000)];
    let user = new_user_namespace(&ids, &[map(0, 200_000, 1000)]).unwrap();
    use std::os::unix::fs::MetadataExt;
    let wanted = format!("user:[{}]\n", File::from(user.try_clone().unwrap()).metadata().unwrap().ino());
    ground.user = Some(user);
    for _ in 0..2 {
        let spec = with_namespace(shell("busybox readlink /proc/self/ns/user"), Kind::User, None);
        assert_eq!(ground.run_spec(&spec).unwrap().output, wanted);
    }
}

#[test]
fn a_network_keeps_the_user_namespace_that_it_belongs_to() {
    if cannot_map_ids() {
        return;
    }
    let mut ground = Ground::with_cgroup(&Limits::default());
    open(&ground);
    // Where an agent keeps its containers nobody else gets.
    fs::set_permissions(ground.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let network = crate::new_network_with_users(100_000, 65_536).unwrap();
    ground.user = crate::user_namespace_of(network.as_fd()).unwrap();
    assert!(ground.user.is_some());
    ground.network = Some(network);
    // Only the owner of a network may mount its sysfs.
    let line = "busybox cat /proc/self/uid_map /sys/class/net/lo/flags";
    let output = ground.run_spec(&with_namespace(shell(line), Kind::User, None)).unwrap().output;
    let words: Vec<_> = output.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0x9"], "{output}");
    let own = crate::new_network().unwrap();
    assert!(crate::user_namespace_of(own.as_fd()).unwrap().is_none());
}

#[test]
fn a_map_that_the_kernel_refuses_is_told() {
    if cannot_run() {
        return;
    }
    let error = new_user_namespace(&[map(0, 1, 5), map(3, 100, 5)], &[]).unwrap_err().to_string();
    assert_eq!(error, "cannot write \"0 1 5\\n3 100 5\\n\" to /proc/PID/uid_map");
}

/// A map whose length wrapped round in 16 bits became another one, of the attacker's; it is never cut or wrapped.
#[test]
fn cve_2021_43784_a_map_of_any_length_is_taken_whole_or_refused() {
    if cannot_map_ids() {
        return;
    }
    // More than 64 KiB of text, whose last lines map the host's root.
    let mut maps: Vec<_> = (1..4000).map(|id| map(id, 100_000 + id, 1)).collect();
    maps.push(map(0, 0, 1));
    match new_user_namespace(&maps, &maps) {
        Err(crate::UserNamespaceError::Map { file, source, .. }) => {
            assert_eq!((file, source.raw_os_error()), ("uid_map", Some(libc::EINVAL)));
        }
        other => panic!("{other:?}"),
    }
    let spec = change_linux(in_user_namespace("true"), |linux| {
        linux.set_uid_mappings(Some(maps.clone()));
    });
    let error = Ground::new().run_spec(&spec).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("linux.uidMappings: \"4000 entries\" must have at most 340 entries"), "{error}");
    // As many as the kernel takes arrive, the last one too.
    let most: Vec<_> = (0..300).map(|id| map(id, 100_000 + 2 * id, 1)).collect();
    let namespace = new_user_namespace(&most, &most).unwrap();
    let mut ground = Ground::new();
    ground.user = Some(namespace);
    open(&ground);
    let spec = change_linux(in_user_namespace("busybox tail -n 1 /proc/self/uid_map"), |linux| {
        linux.set_uid_mappings(None).set_gid_mappings(None);
    });
    let output = ground.run_spec(&spec).unwrap().output;
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["299", "100598", "1"]);
}

#[test]
fn every_namespace_of_another_container_can_be_joined_by_path() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let other = sleeper(&ground);
    let kinds = [
        (Kind::Ipc, "ipc"),
        (Kind::Uts, "uts"),
        (Kind::Network, "net"),
        (Kind::Pid, "pid"),
        (Kind::Cgroup, "cgroup"),
        (Kind::Time, "time"),
    ];
    for (kind, name) in kinds {
        let spec = with_namespace(shell("busybox readlink /proc/self/ns/$KIND"), kind, Some(namespace(&other, name)));
        let spec = super::support::change_process(spec, |process| {
            process.set_env(Some(vec![format!("KIND={name}"), "PATH=/bin".into()]));
        });
        let wanted = fs::read_link(namespace(&other, name)).unwrap().display().to_string();
        let guest = Ground::new();
        assert_eq!(guest.run_spec(&spec).unwrap().output.trim_end(), wanted);
    }
    ground.cgroup.as_ref().unwrap().kill().unwrap();
    wait(&other).unwrap();
}

#[test]
fn the_mount_namespace_of_another_process_can_be_joined() {
    if cannot_run() {
        return;
    }
    // A process with a mount namespace of its own and nothing else, as an engine would prepare it.
    let mut host = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", "echo ready; exec sleep 1000"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    host.stdout.as_mut().unwrap().read_exact(&mut [0_u8; 6]).unwrap();
    let path = PathBuf::from(format!("/proc/{}/ns/mnt", host.id()));
    let wanted = fs::read_link(&path).unwrap().display().to_string();
    let spec = with_namespace(shell("busybox readlink /proc/self/ns/mnt; busybox ls /etc"), Kind::Mount, Some(path));
    assert_eq!(Ground::new().run_spec(&spec).unwrap().output.trim_end(), wanted);
    host.kill().unwrap();
    host.wait().unwrap();
}

#[test]
fn a_path_to_something_else_is_told() {
    let ground = Ground::new();
    let told = |path: &str| {
        let spec = with_namespace(shell("true"), Kind::Uts, Some(path.into()));
        match ground.plan(&spec) {
            Err(StartError::Plan(PlanError::Path { at, source, .. })) => {
                assert_eq!(at, "linux.namespaces[5].path");
                source.to_string()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told("/proc/self/ns/net"), "it is a network namespace, not a uts namespace");
    assert_eq!(told("/dev/null"), "it is not a namespace");
    assert!(told("/no/such").contains("No such file"));
    // Nobody ever writes to it: whoever opened it as a file waited for ever.
    let fifo = ground.path("fifo");
    sys::make_node(libc::AT_FDCWD, &CString::new(fifo.to_str().unwrap()).unwrap(), libc::S_IFIFO | 0o600, 0).unwrap();
    assert_eq!(told(fifo.to_str().unwrap()), "it is not a namespace");
}

/// A namespace that is given may be the host's, whose name and limits are not a container's to set.
#[test]
fn a_given_namespace_of_the_host_is_not_written_to() {
    let ground = Ground::new();
    let told = |spec: &oci::Spec| ground.plan(spec).map(drop).unwrap_err().to_string();
    let given =
        |kind, name: &str| with_namespace(shell("true"), kind, Some(format!("/proc/thread-self/ns/{name}").into()));
    let mut spec = given(Kind::Uts, "uts");
    spec.set_hostname(Some("kiln".into()));
    assert_eq!(told(&spec), "hostname: \"kiln\" needs a uts namespace of the container's own");
    for (kind, namespace, sysctl) in [
        (Kind::Ipc, "ipc", "kernel.shmmax"),
        (Kind::Uts, "uts", "kernel.domainname"),
        (Kind::Network, "net", "net.ipv4.ip_forward"),
    ] {
        let mut spec = change_linux(given(kind, namespace), |linux| {
            linux.set_sysctl(Some([(sysctl.to_string(), "1".to_string())].into()));
        });
        spec.set_hostname(None);
        let told = told(&spec);
        assert!(told.ends_with("namespace that is not the host's"), "{told}");
    }
}

#[test]
fn clocks_of_a_time_namespace_are_off() {
    if cannot_run() || !Path::new("/proc/self/ns/time").exists() {
        return;
    }
    let spec = change_linux(with_namespace(shell("busybox cat /proc/uptime"), Kind::Time, None), |linux| {
        let mut offset = oci::LinuxTimeOffset::default();
        offset.set_secs(Some(50_000_000)).set_nanosecs(Some(5));
        linux.set_time_offsets(Some([("boottime".to_string(), offset.clone()), ("monotonic".into(), offset)].into()));
    });
    let output = Ground::new().run_spec(&spec).unwrap().output;
    let uptime: f64 = output.split(' ').next().unwrap().parse().unwrap();
    assert!(uptime > 50_000_000.0, "{output}");
}

/// What shares the host's process table must still not see more of the mounts, and dies like any other.
#[test]
fn the_caller_s_namespaces_are_kept_where_none_is_asked_for() {
    if cannot_run() {
        return;
    }
    let kinds =
        [(Kind::Pid, "pid"), (Kind::Ipc, "ipc"), (Kind::Uts, "uts"), (Kind::Network, "net"), (Kind::Cgroup, "cgroup")];
    for (kind, name) in kinds {
        let spec = without_namespace(shell("busybox readlink /proc/self/ns/$KIND"), kind);
        let spec = super::support::change_process(spec, |process| {
            process.set_env(Some(vec![format!("KIND={name}"), "PATH=/bin".into()]));
        });
        let wanted = fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
        assert_eq!(Ground::new().run_spec(&spec).unwrap().output.trim_end(), wanted);
    }
}

/// setns(2) into the mount namespace that a container shares with its caller leads to the host's root.
#[test]
fn an_exec_stays_in_a_root_without_a_mount_namespace() {
    if cannot_run() {
        return;
    }
    // The mounts of such a container stay: they are those of a thread that ends.
    let thread = std::thread::spawn(|| {
        sys::unshare(libc::CLONE_NEWNS).unwrap();
        sys::mount(None, c"/", None, libc::MS_PRIVATE | libc::MS_REC, None).unwrap();
        let mut ground = Ground::with_cgroup(&Limits::default());
        ground.folder_root = true;
        fs::write(ground.path("root/etc/inside"), "inside\n").unwrap();
        let mut spec = without_namespace(shell("exec busybox sleep 1000"), Kind::Mount);
        spec.set_mounts(None);
        let (target, _) = ground.start(&spec).unwrap();
        let process = shell("busybox cat /etc/inside; busybox ls /").process().clone().unwrap();
        let outcome = enter(&ground, &target, &spec, &process).unwrap();
        assert_eq!(outcome, (Exit::Code(0), "inside\nbin\ndev\netc\n".into()));
        ground.cgroup.as_ref().unwrap().kill().unwrap();
        wait(&target).unwrap();
        assert!(matches!(enter(&ground, &target, &spec, &process), Err(StartError::Gone)));
        // The temporary folder is a mount point here.
        sys::unmount(&CString::new(ground.path("root").to_str().unwrap()).unwrap(), libc::MNT_DETACH).unwrap();
    });
    thread.join().unwrap();
}

/// Each helper process holds copies of the other's pipe: whoever waited for a pipe's end waited for ever.
#[test]
fn two_user_namespaces_made_at_once_do_not_wait_for_each_other() {
    if cannot_run() {
        return;
    }
    let make = || {
        for _ in 0..100 {
            new_user_namespace(&[map(0, 100_000, 1)], &[map(0, 100_000, 1)]).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(make);
        scope.spawn(make);
    });
}
