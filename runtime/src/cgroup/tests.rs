//! Folders that look like version 2, and whatever this kernel mounts.

use super::*;
use crate::tests::support::{Ground, cannot_run, change_linux, shell};
use serde_json::json;
use std::io::{BufRead, BufReader};

/// A folder that looks like a version 2 hierarchy with these cgroups in it.
fn version_two(names: &[&str]) -> (tempfile::TempDir, HostCgroups) {
    let root = tempfile::tempdir().unwrap();
    for name in [""].iter().chain(names) {
        let folder = root.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        for file in ["cgroup.subtree_control", "cgroup.procs", "cgroup.kill", "memory.max", "memory.oom.group"] {
            fs::write(folder.join(file), "").unwrap();
        }
        fs::write(folder.join("memory.events"), "low 0\noom 9\noom_kill 3\noom_group_kill 1\n").unwrap();
        fs::write(folder.join("pids.max"), "").unwrap();
        fs::write(folder.join("cpu.max"), "max 100000\n").unwrap();
    }
    let table = format!("31 23 0:28 / {} rw,nosuid - cgroup2 cgroup2 rw\n", root.path().display());
    let host = HostCgroups::from_mount_table(&table).unwrap();
    (root, host)
}

fn below_root(name: &str) -> CgroupPath {
    CgroupPath::below_root(name).unwrap()
}

fn resources(json: serde_json::Value) -> oci::LinuxResources {
    serde_json::from_value(json).unwrap()
}

#[test]
fn version_two_hands_controllers_down_and_takes_limits() {
    let (root, host) = version_two(&["skeg", "skeg/pod", "skeg/pod/web"]);
    assert_eq!(host.to_string(), "v2");
    let limits = Limits { memory_bytes: Some(1 << 20), cpu_millis: Some(1500), pids: Some(7) };
    let cgroup = Cgroup::prepare(&host, &below_root("skeg/pod/web")).unwrap();
    cgroup.set(&limits.resources()).unwrap();
    let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
    for folder in ["", "skeg/", "skeg/pod/"] {
        assert_eq!(read(&format!("{folder}cgroup.subtree_control")), "+cpuset +cpu +io +memory +pids");
    }
    assert_eq!(read("skeg/pod/web/cgroup.subtree_control"), "");
    assert_eq!(read("skeg/pod/web/memory.max"), "1048576");
    assert_eq!(read("skeg/pod/web/memory.oom.group"), "", "only who asks gets it");
    assert_eq!(read("skeg/pod/web/pids.max"), "7");
    assert_eq!(read("skeg/pod/web/cpu.max"), "150000 100000");
    cgroup.kill_together_on_oom().unwrap();
    assert_eq!(read("skeg/pod/web/memory.oom.group"), "1");
    assert_eq!(cgroup.oom_kills().unwrap(), 3);
    cgroup.kill().unwrap();
    assert_eq!(read("skeg/pod/web/cgroup.kill"), "1");
    assert!(cgroup.entry().unwrap().born_in.is_some());
}

#[test]
fn a_missing_controller_is_told() {
    let (root, host) = version_two(&["web"]);
    let cgroup = Cgroup::open(&host, &below_root("web")).unwrap();
    let told = |json| cgroup.set(&resources(json)).unwrap_err().to_string();
    let error = told(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}));
    let expected = "linux.resources.hugepageLimits[0] = 5 needs the cgroup controller hugetlb";
    assert!(error.starts_with(expected) && error.contains("CONFIG_CGROUP_HUGETLB"), "{error}");
    // Above, the controller is there; it was not handed down.
    fs::write(root.path().join("web/cgroup.controllers"), "cpu\n").unwrap();
    fs::remove_file(root.path().join("web/pids.max")).unwrap();
    let error = told(json!({"pids": {"limit": 9}}));
    assert!(error.starts_with("linux.resources.pids.limit = 9 needs the cgroup controller pids"), "{error}");
}

#[test]
fn a_limit_that_the_kernel_lacks_is_told_with_its_file() {
    let (root, host) = version_two(&["web"]);
    let cgroup = Cgroup::open(&host, &below_root("web")).unwrap();
    let limits = [
        ("memory.max", json!({"memory": {"limit": 5}})),
        ("pids.max", json!({"pids": {"limit": 5}})),
        ("cpu.max", json!({"cpu": {"quota": 5000}})),
        ("memory.high", json!({"unified": {"memory.high": "5"}})),
    ];
    for (name, limits) in limits {
        let path = root.path().join("web").join(name);
        if path.exists() {
            fs::remove_file(&path).unwrap();
        }
        match cgroup.set(&resources(limits)).unwrap_err() {
            CgroupError::Limit { file, source, .. } => {
                assert_eq!(file, path);
                assert_eq!(source.raw_os_error(), Some(libc::ENOENT));
            }
            error => panic!("{error}"),
        }
    }
}

#[test]
fn hierarchies_are_found_by_filesystem_type() {
    let table = "22 1 0:5 / /proc rw - proc proc rw\n\
                 32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                 33 31 0:30 / /odd\\040place rw - cgroup cgroup rw,memory\n\
                 34 31 0:30 / /again rw - cgroup cgroup rw,memory\n\
                 35 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
                 36 31 0:32 / /nowhere rw - cgroup2 cgroup2 rw,nsdelegate\n";
    let host = HostCgroups::from_mount_table(table).unwrap();
    assert_eq!(host.to_string(), "hybrid");
    let folders = Cgroup::place(&host, &below_root("a/b")).unwrap().folders();
    let expected =
        [("", "/nowhere/a/b"), ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a/b"), ("memory", "/odd place/a/b")];
    assert_eq!(folders, expected.map(|(key, path)| (key.into(), path.into())).into());
    assert!(matches!(HostCgroups::from_mount_table(""), Err(CgroupError::NotMounted)));
}

#[test]
fn a_saved_state_leads_back_to_its_cgroup_and_nowhere_else() {
    let (root, host) = version_two(&["web"]);
    let cgroup = Cgroup::open(&host, &below_root("web")).unwrap();
    let restore = |path: &Path| Cgroup::restore(&host, &[(String::new(), path.to_owned())].into());
    assert_eq!(restore(&root.path().join("web")).unwrap().folders(), cgroup.folders());
    assert_eq!(below_root("web").folders(&host).unwrap(), cgroup.folders());
    // One that is gone already ends as one that was there.
    let gone = restore(&root.path().join("gone")).unwrap();
    assert_eq!(gone.processes().unwrap(), Vec::<i32>::new());
    gone.kill().unwrap();
    gone.remove().unwrap();
    for path in [root.path(), Path::new("/etc"), &root.path().join("web/../..")] {
        assert!(matches!(restore(path), Err(CgroupError::Path { .. })), "{}", path.display());
    }
}

/// A real cgroup of this kernel's with these resources.
fn real(json: serde_json::Value) -> Ground {
    let ground = Ground::with_cgroup(&Limits::default());
    ground.cgroup.as_ref().unwrap().limit(&resources(json)).unwrap();
    ground
}

/// Reads a file of whichever hierarchy has it.
fn read(cgroup: &Cgroup, files: &[&str]) -> String {
    let mut paths = cgroup.folders.iter().flat_map(|folder| files.iter().map(|file| folder.path.join(file)));
    let path = paths.find(|path| path.exists()).unwrap_or_else(|| panic!("{files:?}"));
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn limits_go_up_and_down_together_while_a_container_runs() {
    if cannot_run() {
        return;
    }
    let ground = real(json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}}));
    let cgroup = ground.cgroup.as_ref().unwrap();
    let memory = || read(cgroup, &["memory.max", "memory.limit_in_bytes"]);
    for megabytes in [32_u64, 128, 16] {
        // On version 1 memory may not exceed memory and swap together, in neither direction.
        let bytes = megabytes << 20;
        cgroup.update(&resources(json!({"memory": {"limit": bytes, "swap": bytes}}))).unwrap();
        assert_eq!(memory(), bytes.to_string());
    }
    // The quota may not fall below the burst.
    for (quota, burst) in [(20_000, 10_000), (50_000, 50_000), (10_000, 5_000)] {
        let cpu = json!({"cpu": {"quota": quota, "period": 100_000, "burst": burst}});
        cgroup.update(&resources(cpu)).unwrap();
        assert_eq!(read(cgroup, &["cpu.max.burst", "cpu.cfs_burst_us"]), burst.to_string());
    }
    cgroup.update(&resources(json!({"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}}))).unwrap();
    assert!(["max", "9223372036854771712"].contains(&memory().as_str()));
    assert_eq!(read(cgroup, &["pids.max"]), "max");
}

#[test]
fn every_limit_that_this_kernel_has_is_written() {
    if cannot_run() {
        return;
    }
    let ground = real(json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 20_000, "period": 50_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 0},
    }));
    let cgroup = ground.cgroup.as_ref().unwrap();
    assert_eq!(read(cgroup, &["memory.low", "memory.soft_limit_in_bytes"]), (32 << 20).to_string());
    assert!(["59", "512"].contains(&read(cgroup, &["cpu.weight", "cpu.shares"]).as_str()));
    assert!(["20000 50000", "20000"].contains(&read(cgroup, &["cpu.max", "cpu.cfs_quota_us"]).as_str()));
    assert_eq!((read(cgroup, &["cpuset.cpus"]), read(cgroup, &["pids.max"])), ("0".into(), "1".into()));
    // The program itself is born where only one process may be.
    assert_eq!(ground.run("exec busybox true").exit, crate::Exit::Code(0));
    if cgroup.version_one("memory").is_some() {
        cgroup.update(&resources(json!({"memory": {"swappiness": 10, "disableOOMKiller": true}}))).unwrap();
        assert_eq!(read(cgroup, &["memory.swappiness"]), "10");
        assert!(read(cgroup, &["memory.oom_control"]).starts_with("oom_kill_disable 1"));
    }
}

#[test]
fn a_disk_is_bounded_by_its_numbers() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let cgroup = ground.cgroup.as_ref().unwrap();
    // Any whole disk will do.
    let disk = fs::read_dir("/sys/block")
        .unwrap()
        .find_map(|entry| fs::read_to_string(entry.unwrap().path().join("dev")).ok());
    let Some(disk) = disk else { return println!("skipped: there is no disk") };
    let (major, minor) =
        disk.trim().split_once(':').map(|(one, two)| (one.parse::<i64>(), two.parse::<i64>())).unwrap();
    let device = |rate: u64| json!([{"major": major.clone().unwrap(), "minor": minor.clone().unwrap(), "rate": rate}]);
    cgroup.update(&resources(json!({"blockIO": {"throttleReadBpsDevice": device(1 << 20)}}))).unwrap();
    let told = read(cgroup, &["io.max", "blkio.throttle.read_bps_device"]);
    assert!(told.starts_with(disk.trim()) && told.contains("1048576"), "{told}");
    cgroup.update(&resources(json!({"blockIO": {"throttleReadBpsDevice": device(0)}}))).unwrap();
    assert_eq!(read(cgroup, &["io.max", "blkio.throttle.read_bps_device"]), "");
}

#[test]
fn only_allowed_devices_can_be_opened() {
    if cannot_run() {
        return;
    }
    // Major 60 is nobody's: who may use it hears that there is no such device.
    let spec = |line| {
        let nobody =
            oci::LinuxDeviceBuilder::default().path("/dev/none").typ(oci::LinuxDeviceType::C).major(60).minor(7);
        change_linux(shell(line), |linux| {
            linux.set_devices(Some(vec![nobody.file_mode(0o666_u32).build().unwrap()]));
        })
    };
    let told = |ground: &Ground| {
        let line = "(: < /dev/none) 2>&1; (: > /dev/none) 2>&1; echo x > /dev/null && busybox head -c 0 /dev/zero && echo fine";
        let output = ground.run_spec(&spec(line)).unwrap().output;
        output.replace("sh: can't open /dev/none: ", "read: ").replace("sh: can't create /dev/none: ", "write: ")
    };
    let (absent, refused) = ("No such device or address", "Operation not permitted");
    let expected = |read, write| format!("read: {read}\nwrite: {write}\nfine\n");
    assert_eq!(told(&real(json!({}))), expected(refused, refused));
    let rule = json!({"devices": [{"allow": true, "type": "c", "major": 60, "minor": 7, "access": "r"}]});
    let ground = real(rule.clone());
    assert_eq!(told(&ground), expected(absent, refused));
    // New rules replace the old ones.
    let update = |json| ground.cgroup.as_ref().unwrap().update(&resources(json)).unwrap();
    update(json!({"devices": [{"allow": false, "access": "rwm"}]}));
    assert_eq!(told(&ground), expected(refused, refused));
    update(rule);
    assert_eq!(told(&ground), expected(absent, refused));
    // With everything allowed nothing is in the way.
    update(json!({"devices": [{"allow": true, "access": "rwm"}]}));
    assert_eq!(told(&ground), expected(absent, absent));
}

#[test]
fn a_version_two_device_program_does_what_it_says() {
    if cannot_run() {
        return;
    }
    // Also where version 1 keeps the devices: the program is attached beside it.
    let ground = Ground::with_cgroup(&Limits::default());
    let cgroup = ground.cgroup.as_ref().unwrap();
    let Some(folder) = cgroup.unified() else { return println!("skipped: no version 2 hierarchy is mounted") };
    let attach = |json| {
        let rules = devices::rules(&serde_json::from_value::<Vec<_>>(json).unwrap()).unwrap();
        folder.attach_device_program(devices::program(&rules).as_deref()).unwrap();
        let attached = fs::File::open(&folder.path).unwrap();
        sys::device_programs(attached.as_raw_fd()).unwrap().len()
    };
    assert_eq!(
        attach(json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 5}])),
        1
    );
    let line = "(busybox head -c 0 /dev/zero && echo zero) 2>&1; busybox head -c 0 /dev/null && echo null";
    assert_eq!(ground.run(line).output, "head: /dev/zero: Operation not permitted\nnull\n");
    assert_eq!(attach(json!([])), 1);
    assert_eq!(ground.run(line).output, "zero\nnull\n");
    assert_eq!(attach(json!([{"allow": true, "access": "rwm"}])), 0);
}

#[test]
fn a_frozen_container_stands_still_and_can_be_killed() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let mut cgroups = vec![ground.cgroup.clone().unwrap()];
    // Where there are both, the freezer of version 1 is tried for itself.
    let mut old = cgroups[0].clone();
    old.folders.retain(|folder| folder.hierarchy.version == Version::One);
    if old.find("freezer").is_some() {
        cgroups.push(old);
    }
    for cgroup in cgroups {
        let (started, output) = ground.start(&shell("while :; do echo tick; done")).unwrap();
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        cgroup.freeze().unwrap();
        assert!(cgroup.is_frozen().unwrap());
        // A process that stands still uses no time.
        let used = || cgroup.processes().unwrap().iter().map(|pid| processor_time(*pid)).sum::<u64>();
        let before = used();
        cgroup.freeze().unwrap();
        assert_eq!(used(), before);
        cgroup.thaw().unwrap();
        assert!(!cgroup.is_frozen().unwrap());
        cgroup.freeze().unwrap();
        cgroup.kill_one_by_one().unwrap();
        assert_eq!(crate::wait(&started).unwrap(), crate::Exit::Signal(libc::SIGKILL));
        // A cgroup that was left frozen is taken over all the same.
        cgroup.freeze().unwrap();
        Cgroup::prepare(&host_cgroups().unwrap(), &below_root(&ground.name)).unwrap();
    }
}

/// Each of these processes lives only until it has a successor. Without anybody standing still for it, a list of them is
/// always old.
#[test]
fn processes_that_fork_on_and_on_cannot_outrun_their_end() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits { pids: Some(100), ..Limits::default() });
    let cgroup = ground.cgroup.as_ref().unwrap();
    if cgroup.unified().is_none() && cgroup.find("freezer").is_none() {
        println!("skipped: needs a freezer");
        return;
    }
    // In the caller's pid namespace: one of its own would end with its first process.
    let spec = crate::tests::support::change_linux(
        shell("run() { run & }; for each in 1 2 3 4 5 6 7 8; do run; done; echo running; busybox sleep 1000"),
        |linux| {
            let mut namespaces = linux.namespaces().clone().unwrap();
            namespaces.retain(|namespace| namespace.typ() != oci::LinuxNamespaceType::Pid);
            linux.set_namespaces(Some(namespaces));
        },
    );
    let (started, output) = ground.start(&spec).unwrap();
    BufReader::new(output).read_line(&mut String::new()).unwrap();
    cgroup.kill_one_by_one().unwrap();
    assert_eq!(crate::wait(&started).unwrap(), crate::Exit::Signal(libc::SIGKILL));
    cgroup.remove().unwrap();
}

/// A path has an end at 4096 bytes; a container with a writable cgroup makes folders without one.
#[test]
fn a_cgroup_deeper_than_a_path_is_searched_and_removed() {
    if cannot_run() {
        return;
    }
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let ground = Ground::with_cgroup(&Limits::default());
    let cgroup = ground.cgroup.as_ref().unwrap();
    let name = "n".repeat(200);
    let mut here = openat(CWD, &cgroup.folders[0].path, OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..25 {
        mkdirat(&here, name.as_str(), Mode::RWXU).unwrap();
        here = openat(&here, name.as_str(), OFlags::PATH, Mode::empty()).unwrap();
    }
    assert_eq!(cgroup.processes().unwrap(), Vec::<i32>::new());
    cgroup.end().unwrap();
    assert!(!cgroup.folders[0].path.exists());
}

/// utime and stime of proc_pid_stat(5).
fn processor_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_signal_reaches_everybody_in_the_cgroup_and_below() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let cgroup = ground.cgroup.as_ref().unwrap();
    let line = "trap 'echo told; exit 3' TERM; echo ready; while :; do busybox sleep 1000 & wait; done";
    let (started, output) = ground.start(&shell(line)).unwrap();
    let mut output = BufReader::new(output).lines().map(Result::unwrap);
    assert_eq!(output.next().unwrap(), "ready");
    // A container with a delegated cgroup makes folders of its own.
    for folder in &cgroup.folders {
        fs::create_dir_all(folder.path.join("inner/most")).unwrap();
    }
    let folder = cgroup.unified().or(cgroup.folders.first()).unwrap();
    assert!(cgroup.processes().unwrap().contains(&started.pid));
    if cgroup.find("memory").is_some_and(|memory| memory.hierarchy.version == Version::One) {
        write(&folder.path.join("inner/most/cgroup.procs"), &started.pid.to_string()).unwrap();
        assert!(cgroup.processes().unwrap().contains(&started.pid));
    }
    cgroup.signal(0).unwrap();
    assert!(cgroup.signal(1000).is_err());
    cgroup.signal(libc::SIGTERM).unwrap();
    // The shell may also say how its sleep ended.
    assert!(output.any(|line| line == "told"));
    assert_eq!(crate::wait(&started).unwrap(), crate::Exit::Code(3));
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert!(!folder.path.exists());
}

#[test]
fn memory_that_runs_out_is_told_at_once() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits { memory_bytes: Some(24 << 20), ..Limits::default() });
    let watch = ground.cgroup.as_ref().unwrap().watch_oom().unwrap();
    assert_eq!(watch.kills().unwrap(), Some(0));
    ground.run("exec busybox tail /dev/zero");
    let mut wait = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut wait, None).unwrap();
    assert!(watch.kills().unwrap().unwrap() >= 1);
}

#[test]
fn figures_are_those_of_the_kernel() {
    if cannot_run() {
        return;
    }
    let ground = real(json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 9}}));
    let cgroup = ground.cgroup.as_ref().unwrap();
    ground.run("busybox head -c 4000000 /dev/zero > /x");
    let stats = cgroup.stats().unwrap();
    assert!(stats.cpu.usage.total > 0 && stats.memory.usage.limit == 64 << 20 && stats.memory.usage.max > 0);
    assert_eq!((stats.pids.limit, stats.pids.current), (9, 0));
    assert!(stats.memory.raw.len() > 10 && !stats.memory.raw.contains_key(""));
    let json = serde_json::to_value(&stats).unwrap();
    assert!(json["memory"]["kernelTCP"].is_object() && json["blkio"]["ioServicedRecursive"].is_array());
    cgroup.remove().unwrap();
    assert_eq!(cgroup.stats().unwrap().memory, MemoryStats::default());
}

#[test]
fn a_cgroup_can_be_made_ahead_and_given_away() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let cgroup = ground.cgroup.as_ref().unwrap();
    cgroup.delegate(12_345).unwrap();
    use std::os::unix::fs::MetadataExt;
    for folder in &cgroup.folders {
        let owner = if folder.hierarchy.version == Version::Two { 12_345 } else { 0 };
        for file in ["", "cgroup.procs"] {
            assert_eq!(fs::metadata(folder.path.join(file)).unwrap().uid(), owner);
        }
    }
    if let Some(folder) = cgroup.unified() {
        assert_eq!(fs::metadata(folder.path.join("cgroup.freeze")).unwrap().uid(), 0);
    }
}
