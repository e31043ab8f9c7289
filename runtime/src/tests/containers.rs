//! Whole containers: what a process inside sees, and how it ends.

use super::support::{Ground, cannot_run, change_linux, change_process, mount, shell, with_mounts};
use crate::{Exit, Limits, Root, oci};
use std::fs;
use std::os::unix::fs::symlink;

#[test]
fn a_command_runs_and_its_exit_code_is_told() {
    if cannot_run() {
        return;
    }
    let outcome = Ground::new().run("echo hello; exit 7");
    assert_eq!((outcome.exit, outcome.output.as_str()), (Exit::Code(7), "hello\n"));
}

#[test]
fn a_death_by_signal_is_told() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (started, _output) = ground.start(&shell("exec busybox sleep 1000")).unwrap();
    ground.cgroup.as_ref().unwrap().kill().unwrap();
    assert_eq!(crate::wait(&started).unwrap(), Exit::Signal(libc::SIGKILL));
}

#[test]
fn namespaces_are_its_own() {
    if cannot_run() {
        return;
    }
    let mut spec = shell(
        "echo $$; busybox hostname; busybox cat /sys/class/net/lo/flags; busybox ls /sys/class/net; \
         busybox cat /proc/self/cgroup | busybox grep -vc ':/$'",
    );
    spec.set_hostname(Some("kiln".into()));
    let ground = Ground::with_cgroup(&Limits::default());
    let output = ground.run_spec(&spec).unwrap().output;
    // 0x9 is up and loopback. A hierarchy that skeg does not use may still show another cgroup.
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..4], ["1", "kiln", "0x9", "lo"], "{output}");
    let outside = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(lines[4].parse::<usize>().unwrap() <= outside.lines().count(), "{output}");
}

#[test]
fn the_host_network_is_kept_when_no_network_namespace_is_asked_for() {
    if cannot_run() {
        return;
    }
    let spec = change_linux(shell("busybox readlink /proc/self/ns/net"), |linux| {
        let namespaces = linux.namespaces().clone().unwrap();
        let kept = namespaces.into_iter().filter(|it| it.typ() != oci::LinuxNamespaceType::Network).collect();
        linux.set_namespaces(Some(kept));
    });
    let output = Ground::new().run_spec(&spec).unwrap().output;
    assert_eq!(output.trim(), fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
}

#[test]
fn a_given_network_namespace_is_joined() {
    if cannot_run() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let mut ground = Ground::new();
    let network = fs::File::from(crate::new_network().unwrap());
    let wanted = format!("net:[{}]", network.metadata().unwrap().ino());
    ground.network = Some(network.into());
    let output = ground.run("busybox readlink /proc/self/ns/net; busybox cat /sys/class/net/lo/flags").output;
    assert_eq!(output, format!("{wanted}\n0x9\n"));
}

#[test]
fn the_kernel_s_secrets_are_masked() {
    if cannot_run() {
        return;
    }
    // Not every kernel has every secret; these two files and the folder are everywhere.
    let spec = change_linux(
        shell(
            "busybox wc -c < /proc/interrupts; busybox wc -c < /proc/uptime; busybox ls /sys/firmware | busybox wc -l; \
             (echo x > /proc/sys/kernel/hostname) 2>&1; (echo x > /proc/irq/x) 2>&1; busybox mkdir /sys/x 2>&1",
        ),
        |linux| {
            let mut masked = linux.masked_paths().clone().unwrap();
            masked.extend(["/proc/uptime".to_string(), "/proc/no/such/secret".to_string()]);
            linux.set_masked_paths(Some(masked));
        },
    );
    let output = Ground::new().run_spec(&spec).unwrap().output;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..3], ["0", "0", "0"], "{output}");
    assert_eq!(lines[3], "sh: can't create /proc/sys/kernel/hostname: Read-only file system");
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[5], "mkdir: can't create directory '/sys/x': Read-only file system");
}

#[test]
fn default_devices_and_links_are_there() {
    if cannot_run() {
        return;
    }
    let outcome = Ground::new().run(
        "busybox stat -c %t:%T:%a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; \
         busybox readlink /dev/fd; busybox readlink /dev/ptmx; busybox head -c 3 /dev/zero | busybox wc -c; echo lost > /dev/null; \
         busybox stat -f -c %t /dev/shm /dev/mqueue /dev/pts; busybox touch /dev/shm/x",
    );
    let expected = "1:3:666\n1:5:666\n1:7:666\n1:8:666\n1:9:666\n5:0:666\n/proc/self/fd\npts/ptmx\n3\n";
    assert_eq!(outcome.output, format!("{expected}1021994\n19800202\n1cd1\n"));
    assert_eq!(outcome.exit, Exit::Code(0));
}

#[test]
fn an_overlay_s_writes_go_to_its_upper_folder_only() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    assert_eq!(ground.run("echo new > /etc/made").exit, Exit::Code(0));
    assert_eq!(fs::read_to_string(ground.path("upper/etc/made")).unwrap(), "new\n");
    assert!(!ground.path("root/etc/made").exists());
}

#[test]
fn a_read_only_root_takes_no_write() {
    if cannot_run() {
        return;
    }
    let mut spec = shell("busybox touch /x 2>&1; busybox touch /dev/shm/x && echo shm");
    spec.set_root(Some(oci::RootBuilder::default().path("rootfs").readonly(true).build().unwrap()));
    let output = Ground::new().run_spec(&spec).unwrap().output;
    assert_eq!(output, "touch: /x: Read-only file system\nshm\n");
}

#[test]
fn a_folder_can_be_the_root() {
    if cannot_run() {
        return;
    }
    let mut ground = Ground::new();
    ground.folder_root = true;
    assert!(matches!(ground.root(), Root::Folder(_)));
    assert_eq!(ground.run("echo there > /etc/made; busybox ls /").exit, Exit::Code(0));
    assert_eq!(fs::read_to_string(ground.path("root/etc/made")).unwrap(), "there\n");
}

#[test]
fn a_hundred_and_twenty_layers_fit() {
    if cannot_run() {
        return;
    }
    let mut ground = Ground::new();
    for layer in 0..120 {
        let folder = ground.path(&format!("a-layer-with-a-rather-long-name:and,strange\\characters-{layer:03}"));
        fs::create_dir_all(folder.join("etc")).unwrap();
        fs::write(folder.join("etc/top"), format!("{layer}\n")).unwrap();
        fs::write(folder.join(format!("etc/{layer}")), "").unwrap();
        ground.extra_lower.push(folder);
    }
    // The first is the top one.
    assert_eq!(ground.run("busybox cat /etc/top; busybox ls /etc | busybox wc -l").output, "0\n121\n");
}

#[test]
fn mounts_are_made_with_their_options() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir(ground.path("data")).unwrap();
    fs::write(ground.path("data/file"), "content\n").unwrap();
    let (data, file) = (ground.path("data"), ground.path("data/file"));
    let spec = with_mounts(
        shell(
            "busybox cat /var/deep/data/file /etc/one; busybox touch /var/deep/data/x 2>&1; echo w > /rw/written; \
             busybox touch /scratch/x; busybox grep -c 'nosuid,nodev,noexec.* - tmpfs' /proc/self/mountinfo > /dev/null && \
             busybox grep ' /scratch ' /proc/self/mountinfo | busybox grep -c 'size=1024k'",
        ),
        vec![
            mount("/var/deep/data", "bind", data.to_str().unwrap(), "rbind,ro,nosuid"),
            mount("/etc/one", "bind", file.to_str().unwrap(), "bind,ro"),
            mount("/rw", "bind", data.to_str().unwrap(), "bind,rw"),
            mount("/scratch", "tmpfs", "tmpfs", "nosuid,nodev,noexec,size=1024k"),
        ],
    );
    let output = ground.run_spec(&spec).unwrap().output;
    assert_eq!(output, "content\ncontent\ntouch: /var/deep/data/x: Read-only file system\n1\n");
    assert_eq!(fs::read_to_string(ground.path("data/written")).unwrap(), "w\n");
}

/// CVE-2021-30465 and its kin: a link in the image must not move a mount, nor what is created for it, to the host.
#[test]
fn a_mount_target_behind_a_symlink_stays_inside() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir(ground.path("outside")).unwrap();
    fs::create_dir(ground.path("data")).unwrap();
    fs::write(ground.path("data/file"), "inside\n").unwrap();
    let outside = ground.path("outside");
    // What the image says about its own folders is followed inside it: there it leads to a folder of the same name.
    fs::create_dir_all(ground.path("root").join(outside.strip_prefix("/").unwrap())).unwrap();
    symlink(&outside, ground.path("root/absolute")).unwrap();
    symlink("../../../../../../..", ground.path("root/upwards")).unwrap();
    let data = ground.path("data");
    let spec = with_mounts(
        shell("busybox cat /absolute/deep/file /upwards/up/file /up/file"),
        vec![
            mount("/absolute/deep", "bind", data.to_str().unwrap(), "bind"),
            mount("/upwards/up", "bind", data.to_str().unwrap(), "bind"),
        ],
    );
    assert_eq!(ground.run_spec(&spec).unwrap().output, "inside\ninside\ninside\n");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/up").exists());
}

#[test]
fn no_descriptor_of_the_caller_leaks() {
    if cannot_run() {
        return;
    }
    // A descriptor without close-on-exec, as a careless library would leave it.
    let careless = fs::File::open("/etc").unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let output = Ground::new().run("exec busybox ls /proc/self/fd").output;
    assert_eq!(output, "0\n1\n2\n3\n", "3 is the listing itself");
}

#[test]
fn the_environment_the_user_and_the_limits_are_as_asked() {
    if cannot_run() {
        return;
    }
    let spec = change_process(
        shell("echo $COLOUR; busybox id -u; busybox id -g; busybox id -G; ulimit -n; umask; busybox pwd"),
        |process| {
            process.set_env(Some(vec!["PATH=/bin".into(), "COLOUR=red".into()]));
            process.set_cwd("/made/on/the/way".into());
            let user = oci::UserBuilder::default().uid(1234_u32).gid(77_u32).additional_gids([5, 6]).umask(0o27_u32);
            process.set_user(user.build().unwrap());
            let limit = oci::PosixRlimitBuilder::default().typ(oci::PosixRlimitType::RlimitNofile);
            process.set_rlimits(Some(vec![limit.soft(99_u64).hard(100_u64).build().unwrap()]));
        },
    );
    let output = Ground::new().run_spec(&spec).unwrap().output;
    assert_eq!(output, "red\n1234\n77\n77 5 6\n99\n0027\n/made/on/the/way\n");
}

#[test]
fn sysctls_of_its_own_namespaces_are_set() {
    if cannot_run() {
        return;
    }
    let spec = change_linux(shell("busybox cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), |linux| {
        linux.set_sysctl(Some([("net.ipv4.ip_unprivileged_port_start".into(), "80".into())].into()));
    });
    assert_eq!(Ground::new().run_spec(&spec).unwrap().output, "80\n");
}
