//! What the specification says about mounts, devices, masks and sysctls, seen from inside.

use super::support::{Ground, cannot_map_ids, cannot_run, change_linux, mount, shell, with_mounts};
use crate::{StartError, oci};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// Runs a line under the default specification with one more mount, and returns what it prints.
fn output_with(ground: &Ground, mounts: Vec<oci::Mount>, line: &str) -> String {
    ground.run_spec(&with_mounts(shell(line), mounts)).unwrap().output
}

/// The options of a mount as /proc/self/mountinfo shows them, then its optional fields.
const SHOW: &str = "busybox awk '$5 == \"/place\" { printf \"%s\", $6; for (i = 7; $i != \"-\"; i++) printf \" %s\", $i; \
                    printf \" %s %s\\n\", $(i + 1), $NF }' /proc/self/mountinfo";

#[test]
fn a_filesystem_gets_attributes_options_and_propagation() {
    if cannot_run() {
        return;
    }
    let shown = |options| output_with(&Ground::new(), vec![mount("/place", "tmpfs", "tmpfs", options)], SHOW);
    // Some kernels number files by 64 bits and say so.
    let told = shown("nosuid,nodev,noexec,noatime,size=64k,mode=700").replace(",inode64", "");
    assert_eq!(told, "rw,nosuid,nodev,noexec,noatime tmpfs rw,size=64k,mode=700\n");
    assert!(shown("ro,nosymfollow").starts_with("ro,relatime,nosymfollow tmpfs rw"), "{}", shown("ro,nosymfollow"));
    assert!(shown("rnosuid,strictatime,nodiratime").starts_with("rw,nosuid,nodiratime tmpfs"));
    assert!(shown("sync,dirsync,lazytime,silent,iversion,defaults").contains("rw,sync,dirsync,lazytime"));
    assert!(shown("shared").contains(" shared:"));
    assert!(shown("unbindable").contains(" unbindable"));
    assert!(!shown("rprivate").contains(':'));
}

#[test]
fn an_option_that_the_filesystem_does_not_know_is_an_error_that_names_it() {
    if cannot_run() {
        return;
    }
    let spec = with_mounts(shell("true"), vec![mount("/place", "tmpfs", "tmpfs", "colour=red")]);
    let Err(StartError::Step { step, source, .. }) = Ground::new().run_spec(&spec) else { panic!("it runs") };
    assert_eq!(
        (step.as_str(), source.raw_os_error()),
        ("mount tmpfs options colour=red on /place", Some(libc::EINVAL))
    );
}

#[test]
fn a_tmpfs_takes_the_mode_of_what_it_covers() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir(ground.path("root/place")).unwrap();
    fs::set_permissions(ground.path("root/place"), fs::Permissions::from_mode(0o1777)).unwrap();
    let told = output_with(&ground, vec![mount("/place", "tmpfs", "tmpfs", "nodev")], "busybox stat -c %a /place");
    assert_eq!(told, "1777\n");
}

#[test]
fn a_read_only_tmpfs_takes_mount_points_first() {
    if cannot_run() {
        return;
    }
    let mounts =
        vec![mount("/place", "tmpfs", "tmpfs", "ro"), mount("/place/deep/below", "tmpfs", "tmpfs", "mode=700")];
    let told =
        output_with(&Ground::new(), mounts, "busybox touch /place/deep/below/x /place/x 2>&1; busybox ls /place");
    assert_eq!(told, "touch: /place/x: Read-only file system\ndeep\n");
}

#[test]
fn tmpcopyup_keeps_content_modes_owners_and_links() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir_all(ground.path("root/place/a/b")).unwrap();
    fs::write(ground.path("root/place/a/b/file"), "content\n").unwrap();
    std::os::unix::fs::chown(ground.path("root/place/a/b/file"), Some(7), Some(8)).unwrap();
    fs::set_permissions(ground.path("root/place/a/b/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("../b/file", ground.path("root/place/a/link")).unwrap();
    // More names than one reading of a folder returns.
    (0..500).for_each(|number| fs::write(ground.path(&format!("root/place/with-a-long-name-{number}")), "").unwrap());
    let line = "busybox cat /place/a/b/file; busybox stat -c '%a %u %g' /place/a/b/file; busybox readlink /place/a/link; \
                busybox ls /place | busybox wc -l; echo new > /place/a/b/file; busybox stat -f -c %T /place";
    let told = output_with(&ground, vec![mount("/place", "tmpfs", "tmpfs", "tmpcopyup")], line);
    assert_eq!(told, "content\n4751 7 8\n../b/file\n501\ntmpfs\n");
    assert_eq!(fs::read_to_string(ground.path("root/place/a/b/file")).unwrap(), "content\n");
}

#[test]
fn a_bind_mount_gets_attributes_of_its_own_and_below() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    let source = "/dev";
    let line = format!("{SHOW}; busybox awk '$5 == \"/place/pts\" {{ print $6 }}' /proc/self/mountinfo");
    let told = output_with(&ground, vec![mount("/place", "none", source, "rbind,rro,rnosuid,noexec")], &line);
    let lines: Vec<_> = told.lines().collect();
    assert!(lines[0].starts_with("ro,nosuid,noexec"), "{told}");
    assert!(lines[1].starts_with("ro,nosuid"), "{told}");
    // A flat bind has nothing below it.
    assert_eq!(output_with(&ground, vec![mount("/place", "", source, "bind")], &line).lines().count(), 1);
}

#[test]
fn a_bind_mount_of_a_shared_folder_spreads_as_asked() {
    if cannot_run() {
        return;
    }
    let shown = |options| output_with(&Ground::new(), vec![mount("/place", "bind", "/etc", options)], SHOW);
    assert!(shown("bind,shared").contains("shared:"));
    assert!(shown("bind,unbindable").contains("unbindable"));
    assert!(!shown("bind").contains(':') && !shown("bind,private").contains(':'));
}

#[test]
fn a_mount_can_be_changed_by_remounting() {
    if cannot_run() {
        return;
    }
    let first = mount("/place", "tmpfs", "tmpfs", "size=64k");
    let again = |options| mount("/place", "tmpfs", "tmpfs", options);
    let told = output_with(&Ground::new(), vec![first.clone(), again("remount,size=128k,nosuid")], SHOW);
    assert!(told.starts_with("rw,nosuid,relatime tmpfs rw,size=128k"), "{told}");
    let told = output_with(&Ground::new(), vec![first, again("bind,remount,ro,noexec")], SHOW);
    assert!(told.starts_with("ro,noexec,relatime tmpfs rw,size=64k"), "{told}");
}

#[test]
fn destinations_may_be_relative_and_climb_no_higher_than_the_root() {
    if cannot_run() {
        return;
    }
    for destination in ["place", "../../place", "/a/../place", "/./place/"] {
        let told = output_with(&Ground::new(), vec![mount(destination, "tmpfs", "tmpfs", "size=64k")], SHOW);
        assert!(told.contains("size=64k"), "{destination}: {told}");
    }
}

/// Images link `/etc/resolv.conf` to a place that only a running system has.
#[test]
fn a_file_is_bound_where_a_dangling_link_leads() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::write(ground.path("file"), "bound\n").unwrap();
    symlink("../run/./deep/resolv.conf", ground.path("root/etc/resolv.conf")).unwrap();
    symlink("/var/run", ground.path("root/run")).unwrap();
    fs::create_dir(ground.path("root/var")).unwrap();
    let mounts = vec![mount("/etc/resolv.conf", "bind", ground.path("file").to_str().unwrap(), "bind,ro")];
    let told = output_with(&ground, mounts, "busybox cat /etc/resolv.conf /var/run/deep/resolv.conf");
    assert_eq!(told, "bound\nbound\n");
    let ground = Ground::new();
    fs::write(ground.path("file"), "bound\n").unwrap();
    symlink("b", ground.path("root/a")).unwrap();
    symlink("a", ground.path("root/b")).unwrap();
    let spec = with_mounts(shell("true"), vec![mount("/a/c", "bind", ground.path("file").to_str().unwrap(), "bind")]);
    let Err(StartError::Step { source, .. }) = ground.run_spec(&spec) else { panic!("it runs") };
    assert_eq!(source.raw_os_error(), Some(libc::ELOOP));
}

#[test]
fn the_root_spreads_as_asked() {
    if cannot_run() {
        return;
    }
    let mut ground = Ground::new();
    ground.folder_root = true;
    let told = |word: &str| {
        let line = SHOW.replace("/place", "/");
        let spec = change_linux(shell(&line), |linux| {
            linux.set_rootfs_propagation(Some(word.into()));
        });
        ground.run_spec(&spec).unwrap().output
    };
    assert!(told("shared").contains(" shared:") && told("rshared").contains(" shared:"));
    assert!(told("unbindable").contains(" unbindable"));
    assert!(!told("private").contains(':') && !told("rprivate").contains(':'));
    // There is nobody to be a slave of unless the host shares its mounts.
    assert!(!told("rslave").contains("shared:"));
}

fn device(path: &str, kind: oci::LinuxDeviceType, numbers: (i64, i64)) -> oci::LinuxDevice {
    let builder = oci::LinuxDeviceBuilder::default().path(path).typ(kind).major(numbers.0).minor(numbers.1);
    builder.file_mode(0o640_u32).uid(3_u32).gid(4_u32).build().unwrap()
}

fn with_devices(line: &str, devices: Vec<oci::LinuxDevice>) -> oci::Spec {
    change_linux(shell(line), |linux| {
        linux.set_devices(Some(devices));
    })
}

#[test]
fn devices_are_made_anywhere_with_mode_and_owner() {
    if cannot_run() {
        return;
    }
    use oci::LinuxDeviceType as Kind;
    let mut ground = Ground::new();
    ground.folder_root = true;
    let devices = vec![
        device("/dev/net/tun", Kind::C, (10, 200)),
        device("/deep/folder/loop", Kind::B, (7, 0)),
        device("/pipe", Kind::P, (0, 0)),
        device("/dev/null", Kind::U, (1, 3)),
    ];
    let line = "busybox stat -c '%F %t:%T %a %u:%g' /dev/net/tun /deep/folder/loop /pipe /dev/null /dev/zero";
    let told = ground.run_spec(&with_devices(line, devices)).unwrap().output;
    let expected = "character special file a:c8 640 3:4\nblock special file 7:0 640 3:4\nfifo 0:0 640 3:4\n\
                    character special file 1:3 640 3:4\ncharacter special file 1:5 666 0:0\n";
    assert_eq!(told, expected);
}

/// The host has no `/dev/no-such-device`: in a user namespace it is the caller who makes it.
#[test]
fn devices_of_a_user_namespace_have_their_mode_and_owner() {
    if cannot_map_ids() {
        return;
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).filter_map(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(15)) {
        println!("skipped: needs Linux 6.15, which clones mounts that nobody sees");
        return;
    }
    let ground = Ground::new();
    super::namespaces::open(&ground);
    let line = "busybox stat -c '%F %t:%T %a %u:%g' /dev/no-such-device /dev/null; echo lost > /dev/null; \
                busybox awk '$5 == \"/dev/null\" { print $6 }' /proc/self/mountinfo";
    let spec = change_linux(super::namespaces::in_user_namespace(line), |linux| {
        linux.set_devices(Some(vec![device("/dev/no-such-device", oci::LinuxDeviceType::C, (1, 5))]));
    });
    let told = ground.run_spec(&spec).unwrap().output;
    let expected = "character special file 1:5 640 3:4\ncharacter special file 1:3 666 0:0\nrw,nosuid,noexec,relatime";
    assert!(told.starts_with(expected), "{told}");
}

#[test]
fn a_file_in_the_place_of_a_device_is_an_error_unless_it_is_that_device() {
    if cannot_run() {
        return;
    }
    use oci::LinuxDeviceType as Kind;
    let ground = Ground::new();
    fs::write(ground.path("root/false"), "").unwrap();
    let spec = with_devices("true", vec![device("/false", Kind::C, (1, 3))]);
    let Err(StartError::Step { step, source, .. }) = ground.run_spec(&spec) else { panic!("it runs") };
    assert_eq!(
        (step.as_str(), source.raw_os_error()),
        ("make device /false 1:3 mode 640 owner 3:4", Some(libc::EEXIST))
    );
    let twice = vec![device("/pipe", Kind::P, (0, 0)), device("/pipe", Kind::P, (0, 0))];
    assert_eq!(ground.run_spec(&with_devices("echo fine", twice)).unwrap().output, "fine\n");
}

#[test]
fn a_bound_dev_is_left_as_it_is() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir(ground.path("dev")).unwrap();
    let mut spec = shell("busybox ls /dev");
    let mut mounts = spec.mounts().clone().unwrap();
    mounts.retain(|mount| !mount.destination().starts_with("/dev"));
    mounts.push(mount("/dev/", "bind", ground.path("dev").to_str().unwrap(), "rbind"));
    spec.set_mounts(Some(mounts));
    assert_eq!(ground.run_spec(&spec).unwrap().output, "");
}

#[test]
fn masks_and_read_only_paths_cover_files_folders_and_links() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    for folder in ["one", "two", "open"] {
        fs::create_dir(ground.path("root").join(folder)).unwrap();
        fs::write(ground.path("root").join(folder).join("secret"), "secret\n").unwrap();
    }
    fs::write(ground.path("root/file"), "secret\n").unwrap();
    symlink("/two", ground.path("root/link")).unwrap();
    let line =
        "busybox ls -A /one /two; busybox cat /file; for p in /one/x /two/x /open/x; do busybox touch $p 2>&1; done";
    let spec = change_linux(shell(line), |linux| {
        linux.set_masked_paths(Some(["/one", "/link", "/file", "/missing", "/file/below"].map(String::from).into()));
        linux.set_readonly_paths(Some(["/open", "/missing"].map(String::from).into()));
    });
    let told = ground.run_spec(&spec).unwrap().output;
    let read_only = |path| format!("touch: {path}: Read-only file system\n");
    let expected = format!("/one:\n\n/two:\n{}{}{}", read_only("/one/x"), read_only("/two/x"), read_only("/open/x"));
    assert_eq!(told, expected);
}

#[test]
fn sysctls_are_those_of_the_container_s_namespaces() {
    if cannot_run() {
        return;
    }
    let with = |name: &str, without: Option<oci::LinuxNamespaceType>| {
        change_linux(shell("busybox cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl"), |linux| {
            linux.set_sysctl(Some([(name.to_string(), "1".to_string())].into()));
            let mut namespaces = linux.namespaces().clone().unwrap();
            namespaces.retain(|namespace| Some(namespace.typ()) != without);
            linux.set_namespaces(Some(namespaces));
        })
    };
    let ground = Ground::new();
    assert_eq!(ground.run_spec(&with("kernel.msgmax", None)).unwrap().output, "1\n64\n");
    assert_eq!(ground.run_spec(&with("net/ipv4/ip_default_ttl", None)).unwrap().output, "8192\n1\n");
    let refused = |name: &str, without| ground.plan(&with(name, without)).unwrap_err().to_string();
    use oci::LinuxNamespaceType as Kind;
    let table = [
        ("kernel.msgmax", Some(Kind::Ipc), "needs an ipc namespace that is not the host's"),
        ("fs.mqueue.msg_max", Some(Kind::Ipc), "needs an ipc namespace that is not the host's"),
        ("net.ipv4.ip_forward", Some(Kind::Network), "needs a network namespace that is not the host's"),
        ("kernel.domainname", Some(Kind::Uts), "needs a uts namespace that is not the host's"),
        ("kernel.hostname", None, "is what the field \"hostname\" is for"),
        ("user.max_user_namespaces", None, "needs a user namespace that is not the host's"),
        ("kernel.shmmnifoo", None, "does not belong to a namespace of this container"),
        ("net.ipv4/../../kernel.panic", None, "is not the name of a sysctl"),
    ];
    for (name, without, reason) in table {
        assert_eq!(refused(name, without), format!("linux.sysctl.{name}: \"1\" {reason}"));
    }
    let host = change_linux(with("net.ipv4.ip_forward", None), |linux| {
        let mut namespaces = linux.namespaces().clone().unwrap();
        let network = namespaces.iter_mut().find(|namespace| namespace.typ() == Kind::Network).unwrap();
        network.set_path(Some("/proc/self/ns/net".into()));
        linux.set_namespaces(Some(namespaces));
    });
    let told = ground.plan(&host).unwrap_err().to_string();
    assert!(told.ends_with("needs a network namespace that is not the host's"), "{told}");
}

#[test]
fn a_mount_label_needs_a_kernel_that_knows_labels() {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        println!("skipped: this kernel runs SELinux");
        return;
    }
    let spec = change_linux(shell("true"), |linux| {
        linux.set_mount_label(Some("system_u:object_r:container_file_t:s0".into()));
    });
    let told = Ground::new().plan(&spec).unwrap_err().to_string();
    assert!(told.starts_with("linux.mountLabel: \"system_u:") && told.contains("needs SELinux"), "{told}");
}

#[test]
fn an_idmapped_bind_shows_the_ids_of_its_map() {
    if cannot_map_ids() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir(ground.path("data")).unwrap();
    fs::write(ground.path("data/file"), "").unwrap();
    std::os::unix::fs::chown(ground.path("data/file"), Some(7), Some(8)).unwrap();
    let source = ground.path("data");
    let map = |from: u32, to: u32| {
        Some(vec![oci::LinuxIdMappingBuilder::default().container_id(from).host_id(to).size(10_u32).build().unwrap()])
    };
    let line = "busybox stat -c %u:%g /data/file; busybox touch /data/made";
    for option in ["idmap", "ridmap", "ro"] {
        let mut mapped = mount("/data", "bind", source.to_str().unwrap(), &format!("rbind,{option}"));
        mapped.set_uid_mappings(map(0, 1000)).set_gid_mappings(map(0, 2000));
        assert!(output_with(&ground, vec![mapped], line).starts_with("1007:2008\n"), "{option}");
    }
    let bare = with_mounts(shell(line), vec![mount("/data", "bind", source.to_str().unwrap(), "bind,idmap")]);
    let told = ground.plan(&bare).unwrap_err().to_string();
    assert!(told.starts_with("mounts[7].options: \"idmap\" needs uidMappings"), "{told}");
    // With a user namespace and no map of its own, the mount has the namespace's.
    super::namespaces::open(&ground);
    let mapped = mount("/data", "bind", source.to_str().unwrap(), "bind,idmap");
    let spec = with_mounts(super::namespaces::in_user_namespace(line), vec![mapped]);
    assert_eq!(ground.run_spec(&spec).unwrap().output, "7:8\n");
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(ground.path("data/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0), "the namespace's root is the owner's on the disk");
}

/// A mount below what is bound once kept the host's ids, and nobody could write there.
#[test]
fn what_is_mounted_below_a_recursively_idmapped_bind_has_the_same_ids() {
    if cannot_map_ids() {
        return;
    }
    let ground = Ground::new();
    let below = ground.path("data/below");
    fs::create_dir_all(&below).unwrap();
    rustix::mount::mount("tmpfs", &below, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let user = rustix::process::geteuid().as_raw();
    std::os::unix::fs::chown(&below, Some(user), Some(8)).unwrap();
    super::namespaces::open(&ground);
    let mapped = mount("/data", "bind", ground.path("data").to_str().unwrap(), "rbind,ridmap");
    let line = "busybox stat -c %u:%g /data/below; busybox touch /data/below/made";
    let spec = with_mounts(super::namespaces::in_user_namespace(line), vec![mapped]);
    let outcome = ground.run_spec(&spec);
    let made = below.join("made").exists();
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH).unwrap();
    match outcome {
        Err(crate::StartError::Plan(crate::PlanError::Ids { .. })) => {
            println!("skipped: needs a tmpfs that can be mounted with other ids");
        }
        outcome => assert_eq!((outcome.unwrap().output.as_str(), made), ("0:8\n", true)),
    }
}

/// The kernel lists them by age, and a bind mount was once made before all others.
#[test]
fn mounts_are_listed_in_the_order_of_the_specification() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    let source = ground.path("data");
    fs::create_dir(&source).unwrap();
    let source = source.to_str().unwrap();
    let mounts = || {
        vec![
            mount("/one", "tmpfs", "tmpfs", "rw"),
            mount("/two", "bind", source, "bind"),
            mount("/three", "tmpfs", "tmpfs", "rw"),
            mount("/four", "bind", source, "rbind,ro"),
        ]
    };
    let line = "busybox grep -oE ' /(one|two|three|four) ' /proc/self/mountinfo";
    let expected = " /one \n /two \n /three \n /four \n";
    assert_eq!(output_with(&ground, mounts(), line), expected);
    if cannot_map_ids() {
        return;
    }
    super::namespaces::open(&ground);
    let spec = with_mounts(super::namespaces::in_user_namespace(line), mounts());
    assert_eq!(ground.run_spec(&spec).unwrap().output, expected);
}

/// Engines ask for no cgroup namespace on version 1, and programs look for their own limit.
#[test]
fn without_a_cgroup_namespace_version_one_shows_the_container_s_own_folders() {
    if cannot_run() {
        return;
    }
    if crate::host_cgroups().unwrap().version_one().all(|controllers| controllers != "pids") {
        println!("skipped: needs the pids controller of version 1");
        return;
    }
    let ground = Ground::with_cgroup(&crate::Limits { pids: Some(77), ..crate::Limits::default() });
    let spec = change_linux(shell("busybox cat /sys/fs/cgroup/pids/pids.max"), |linux| {
        let mut namespaces = linux.namespaces().clone().unwrap();
        namespaces.retain(|namespace| namespace.typ() != oci::LinuxNamespaceType::Cgroup);
        linux.set_namespaces(Some(namespaces));
    });
    assert_eq!(ground.run_spec(&spec).unwrap().output, "77\n");
}
