//! Volumes, environment and resources of pods, with real containers. Needs root and busybox-static.

#![allow(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

#[allow(dead_code, reason = "what the tests of devices share")]
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use skeg_protocol::manifest::{
    Data, DataKind, DataSource, Device as HostDevice, EmptyDir, EnvFrom, EnvValue, EnvVar, HostPathKind, PodField,
    Projection, RestartPolicy, Ulimit, Volume, VolumeMount, VolumeSource,
};
use skeg_protocol::{ContainerState, Manifest, Pod};
use support::needs::{self, needs_root};
use support::{Device, err, out, runs, uid, until, waits};

fn volume(name: &str, source: VolumeSource) -> Volume {
    Volume { name: name.try_into().unwrap(), source }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { volume: name.try_into().unwrap(), path: path.to_owned(), ..VolumeMount::default() }
}

fn persistent(name: &str) -> VolumeSource {
    VolumeSource::Persistent { name: name.to_owned(), read_only: false, like_image: false }
}

/// What a command in a container writes.
fn inside(device: &Device, pod: &str, script: &str) -> String {
    let done = device.skegd(&["exec", pod, "--", "sh", "-c", script]);
    assert!(done.status.success(), "{script}: {}", err(&done));
    out(&done)
}

/// A command in a container that must fail, and what it complains about.
fn refused(device: &Device, pod: &str, script: &str) -> String {
    let done = device.skegd(&["exec", pod, "--", "sh", "-c", script]);
    assert!(!done.status.success(), "{script}: {}", out(&done));
    err(&done)
}

/// A pod that asks for one of everything.
fn demanding(device: &Device) -> Pod {
    let mut pod = device.pod(1, "all", "ulimit -n > /disk/files; ulimit -n; exec sleep 1000");
    let made = device.folder.path().join("made/for/it").to_str().unwrap().to_owned();
    pod.volumes = vec![
        volume("db", persistent("db")),
        volume("host", VolumeSource::HostPath { path: made, kind: HostPathKind::DirectoryOrCreate }),
        volume("disk", VolumeSource::EmptyDir(EmptyDir { mode: Some(0o750), ..EmptyDir::default() })),
        volume("memory", VolumeSource::EmptyDir(EmptyDir { memory: true, size_limit: Some(1 << 20), mode: None })),
    ];
    pod.fs_group = Some(2000);
    pod.supplemental_groups = vec![3000];
    pod.sysctls = vec![("net.core.somaxconn".to_owned(), "77".to_owned())];
    let container = &mut pod.containers[0];
    container.env = vec![EnvVar { name: "POD".to_owned(), value: EnvValue::Field(PodField::Name) }];
    container.mounts = vec![
        mount("db", "/db"),
        VolumeMount { sub_path: Some("a/$(POD)".to_owned()), ..mount("db", "/sub") },
        VolumeMount { read_only: true, ..mount("host", "/host") },
        mount("disk", "/disk"),
        mount("memory", "/memory"),
    ];
    // Zero is everybody's; the loop device is not, and is to be read only.
    container.devices = [("/dev/zero", "/dev/mine"), ("/dev/loop0", "/dev/disk0")]
        .map(|(path, inside)| HostDevice {
            path: path.to_owned(),
            container_path: inside.to_owned(),
            read: true,
            ..HostDevice::default()
        })
        .into();
    container.limits.shm_bytes = Some(1 << 20);
    container.limits.ulimits = vec![Ulimit { name: "nofile".try_into().unwrap(), soft: 60, hard: 64 }];
    container.requests.cpu_millis = Some(500);
    pod
}

#[test]
fn volumes_devices_and_limits_are_what_the_pod_asks_for() {
    needs_root!();
    let mut device = Device::start("demanding");
    let state = device.folder.path().join("state");
    device.controller.want(vec![demanding(&device)]);
    device.controller.wait("the pod to run", |told| told.pods.get(&uid(1)).is_some_and(runs));

    // Volumes.
    let all = "> /db/file; > /sub/file; > /disk/file; stat -c '%a %g' /db /sub /disk /memory; stat -c %g /db/file";
    assert_eq!(inside(&device, "all", all), "2777 2000\n2777 2000\n2750 2000\n2777 2000\n2000\n");
    let db = state.join("volumes/default/db");
    assert!(db.join("a/all/file").is_file(), "the sub path");
    assert_eq!((fs::metadata(db.join("file")).unwrap().uid(), fs::metadata(&db).unwrap().gid()), (0, 2000));
    assert_eq!(fs::metadata(state.join("volumes")).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(refused(&device, "all", "> /host/file").contains("Read-only"));
    for folder in ["/memory", "/dev/shm"] {
        refused(&device, "all", &format!("busybox head -c 2m /dev/zero > {folder}/file"));
        assert_eq!(inside(&device, "all", &format!("stat -c %s {folder}/file")), "1048576\n", "{folder}");
    }

    // Devices and limits.
    assert_eq!(inside(&device, "all", "busybox head -c 5 /dev/mine | wc -c").trim(), "5");
    inside(&device, "all", "busybox head -c 1 /dev/disk0");
    assert!(refused(&device, "all", "echo > /dev/disk0").contains("not permitted"));
    assert_eq!(inside(&device, "all", "cat /disk/files /proc/sys/net/core/somaxconn"), "60\n77\n");
    assert_eq!(inside(&device, "all", "cat /proc/1/oom_score_adj"), "999\n", "Burstable");
    let groups = inside(&device, "all", "id -G");
    assert!(groups.contains("2000") && groups.contains("3000"), "{groups}");
    for cgroup in device.cgroups() {
        let pod = cgroup.join(uid(1).to_string());
        let read = |file: &str| fs::read_to_string(pod.join(file)).ok();
        let share = [("cpu.shares", "512"), ("cpu.weight", "59"), ("main/pids.max", "2048")];
        for (file, expected) in share {
            assert!(read(file).is_none_or(|text| text.trim() == expected), "{file}: {:?}", read(file));
        }
    }

    // Another pod with other ids finds the volume as it was.
    let mut next = device.pod(2, "next", "exec sleep 1000");
    next.volumes =
        vec![volume("db", VolumeSource::Persistent { name: "db".to_owned(), read_only: true, like_image: false })];
    next.containers[0].mounts = vec![mount("db", "/db")];
    device.controller.want(vec![next]);
    device.controller.wait("the next pod", |told| !told.pods.contains_key(&uid(1)));
    device.controller.wait("the next pod", |told| told.pods.get(&uid(2)).is_some_and(runs));
    assert_eq!(inside(&device, "next", "stat -c '%u %g' /db/file /db/a/all/file"), "0 2000\n0 2000\n");
    assert!(refused(&device, "next", "> /db/more").contains("Read-only"));

    let usage = out(&device.skegd(&["volume", "usage"]));
    assert!(usage.lines().any(|line| line.starts_with("default    db") && line.ends_with("next")), "{usage}");
    let shown: serde_json::Value = serde_json::from_str(&out(&device.skegd(&["volume", "inspect", "db"]))).unwrap();
    assert_eq!((shown[0]["path"].as_str(), shown[0]["files"].as_u64()), (db.to_str(), Some(4)));
    let used = device.skegd(&["volume", "rm", "db"]);
    assert!(!used.status.success() && err(&used).contains("is used by next"), "{}", err(&used));
    fs::create_dir_all(state.join("volumes/default/old/data")).unwrap();
    assert_eq!(out(&device.skegd(&["volume", "rm", "old"])), "removed: default/old\n");
    assert_eq!(out(&device.skegd(&["volume", "ls"])), "NAMESPACE  VOLUME  PODS\ndefault    db      next\n");
    device.power_off();
    assert_eq!((device.mounts(), device.cgroups()), (vec![], vec![]));
    assert!(db.join("file").is_file(), "it outlives every pod");
}

fn data(kind: DataKind, name: &str, entries: &[(&str, &str)]) -> Data {
    Data {
        kind,
        namespace: "default".try_into().unwrap(),
        name: name.try_into().unwrap(),
        immutable: false,
        entries: entries.iter().map(|(key, text)| ((*key).to_owned(), text.as_bytes().to_vec())).collect(),
    }
}

/// Three pods: one reads "app" and "login", the others wait for "late", in their environment and in a volume.
fn pods_with_data(device: &Device) -> Vec<Pod> {
    let source = |kind, name: &str| DataSource { kind, name: name.to_owned(), optional: false };
    let projection = |kind, name: &str| Projection::Data { source: source(kind, name), items: Vec::new() };
    let projected = |sources| volume("conf", VolumeSource::Projected { sources, default_mode: 0o640 });
    let mut pods = ["reader", "waits", "mounts"].map(|name| device.pod(1, name, "exec sleep 1000"));
    for (pod, (number, name)) in pods.iter_mut().zip([(1, "app"), (2, "late"), (3, "late")]) {
        pod.uid = uid(number);
        if number != 2 {
            pod.volumes = vec![projected(vec![projection(DataKind::ConfigMap, name)])];
            pod.containers[0].mounts = vec![mount("conf", "/conf")];
        }
        if number != 3 {
            let source = source(DataKind::ConfigMap, name);
            pod.containers[0].env_from = vec![EnvFrom { prefix: "X_".to_owned(), source }];
        }
    }
    let login = projection(DataKind::Secret, "login");
    pods[0].volumes = vec![projected(vec![projection(DataKind::ConfigMap, "app"), login])];
    let password = EnvValue::Key { source: source(DataKind::Secret, "login"), key: "password".to_owned() };
    pods[0].containers[0].env = vec![EnvVar { name: "PASSWORD".to_owned(), value: password }];
    pods[0].fs_group = Some(1234);
    pods.into()
}

/// Whether a file below a folder holds these bytes.
fn holds(folder: &Path, word: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => holds(&entry.path(), word),
        Ok(kind) if kind.is_file() => {
            fs::read(entry.path()).is_ok_and(|bytes| bytes.windows(word.len()).any(|one| one == word))
        }
        _ => false,
    })
}

#[test]
fn config_maps_and_secrets_reach_environment_and_files_and_are_waited_for() {
    needs_root!();
    let mut device = Device::start("data");
    let login = data(DataKind::Secret, "login", &[("password", "hush-hush-hush")]);
    let app = data(DataKind::ConfigMap, "app", &[("a.conf", "one"), ("mode", "slow")]);
    let mut manifest =
        Manifest { pods: pods_with_data(&device), data: vec![app, login.clone()], ..Manifest::default() };
    device.controller.want_all(manifest.clone());
    device.controller.wait("the reader", |told| told.pods.get(&uid(1)).is_some_and(runs));
    let says = |number: u8, reason: &str, words: &str| {
        device.controller.wait(&format!("pod {number} to say {reason}"), |told| {
            told.pods.get(&uid(number)).and_then(waits) == Some((reason, words))
        });
    };
    says(2, "CreateContainerConfigError", "configmap \"late\" not found");
    says(3, "FailedMount", "MountVolume.SetUp failed for volume \"conf\" : configmap \"late\" not found");
    let look = "echo $X_mode $PASSWORD; cat /conf/a.conf; stat -L -c '%u %g %a' /conf/a.conf /conf/password";
    assert_eq!(inside(&device, "reader", look), "slow hush-hush-hush\none0 1234 640\n0 1234 640\n");
    assert!(refused(&device, "reader", "> /conf/more").contains("Read-only"));
    let kind = inside(&device, "reader", "busybox grep ' /conf ' /proc/self/mountinfo");
    assert!(kind.contains("- tmpfs"), "never on the disk: {kind}");
    let state = device.folder.path().join("state");
    assert!(holds(&state, b"slow") && !holds(&state, b"hush-hush-hush"), "encrypted on the disk");

    // New content comes without a restart, and those that waited start.
    let (app, late) = (&[("b.conf", "two")], &[("late", "now")]);
    manifest.data = vec![data(DataKind::ConfigMap, "app", app), data(DataKind::ConfigMap, "late", late), login];
    device.controller.want_all(manifest);
    until("the new file", || {
        let there = device.skegd(&["exec", "reader", "--", "sh", "-c", "cat /conf/b.conf; test ! -e /conf/a.conf"]);
        there.status.success().then_some(())
    });
    device.controller.wait("both that waited", |told| [2, 3].iter().all(|n| told.pods.get(&uid(*n)).is_some_and(runs)));
    assert_eq!(inside(&device, "waits", "echo $X_late"), "now\n");
    assert_eq!(inside(&device, "mounts", "cat /conf/late"), "now");

    // A new agent and a reboot have the secret from the disk.
    device.kill_agent();
    assert_eq!(inside(&device, "reader", "cat /conf/password"), "hush-hush-hush");
    assert_eq!(device.controller.pod(uid(1)).unwrap().containers[0].restarts, 0, "without a restart");
    device.power_off();
    device.power_on();
    until("the reader after the boot", || {
        device.skegd(&["exec", "reader", "--", "cat", "/conf/password"]).status.success().then_some(())
    });
    device.power_off();
    assert_eq!((device.mounts(), device.cgroups()), (vec![], vec![]));
}

/// What a container wrote to its init would run as the agent.
#[test]
fn cve_2019_5736_a_small_init_reaps_hands_signals_on_and_cant_be_written_to() {
    needs_root!();
    let mut device = Device::start("small-init");
    let script = "trap 'exit 3' TERM; echo begun; while :; do usleep 20000; done";
    let mut pods = [device.pod(1, "own", script), device.pod(2, "host", script)];
    for pod in &mut pods {
        pod.containers[0].init = true;
        // The program of the test is no static one, as that of a board is: it needs the host's libraries.
        for (name, path) in [("loader", "/lib64"), ("libraries", "/lib/x86_64-linux-gnu")] {
            if Path::new(path).exists() {
                let kind = HostPathKind::Directory;
                pod.volumes.push(volume(name, VolumeSource::HostPath { path: path.to_owned(), kind }));
                pod.containers[0].mounts.push(mount(name, path));
            }
        }
        pod.restart_policy = RestartPolicy::Never;
    }
    pods[1].host_users = true;
    let mut open = device.pod(3, "open", "cat; echo ended; exec sleep 1000");
    open.containers[0].stdin = true;
    let mut closed = device.pod(4, "closed", "cat; echo ended; exec sleep 1000");
    closed.containers[0].stdin = false;
    device.controller.want(pods.into_iter().chain([open, closed]).collect());
    device.controller.wait("all pods", |told| (1..=4).all(|n| told.pods.get(&uid(n)).is_some_and(runs)));
    for (number, pod) in [(1, "own"), (2, "host")] {
        until("the program", || out(&device.skegd(&["logs", pod])).contains("begun").then_some(()));
        let words = inside(&device, pod, "cat /proc/1/cmdline");
        assert!(words.starts_with("/dev/init\0reap\0--\0"), "{words:?}");
        for path in ["/dev/init", "/proc/1/exe"] {
            refused(&device, pod, &format!("echo evil > {path}"));
        }
        // Whatever exec leaves behind is the small init's to reap.
        inside(&device, pod, "(usleep 1000; exit 0) & exit 0");
        until("no zombie", || {
            let states = "for one in /proc/[0-9]*; do cat $one/stat; done";
            (!inside(&device, pod, states).contains(") Z ")).then_some(())
        });
        inside(&device, pod, "busybox kill -TERM 1");
        device.controller.wait("the program's own exit code", |told| {
            let state = told.pods.get(&uid(number)).map(|pod| &pod.containers[0].state);
            matches!(state, Some(ContainerState::Terminated(end)) if end.exit_code == 3)
        });
    }
    until("the end of no input", || out(&device.skegd(&["logs", "closed"])).contains("ended").then_some(()));
    assert_eq!(out(&device.skegd(&["logs", "open"])), "", "its input stays open");
    device.power_off();
    assert_eq!((device.mounts(), device.cgroups()), (vec![], vec![]));
}
