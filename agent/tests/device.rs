//! The whole agent under its init: real containers, a real link, real kills. Needs root and busybox-static.

#![allow(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

#[allow(dead_code, reason = "what the tests of devices share")]
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use skeg_protocol::manifest::{
    EmptyDir, Handler, HostPathKind, HttpGet, Port, Probe, Probes, RestartPolicy, Volume, VolumeMount, VolumeSource,
};
use skeg_protocol::status::ConditionKind;
use skeg_protocol::{ContainerState, Manifest, Phase, Pod};
use support::needs::{self, needs_root};
use support::{Device, err, out, runs, uid, until, waits};

#[test]
fn a_pod_runs_answers_and_leaves_nothing_behind() {
    needs_root!();
    let mut device = Device::start("answers");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = "echo page > /data/index.html; echo begun; echo wrong >&2; exec httpd -f -p 8080 -h /data";
    let mut pod = device.pod(1, "web", script);
    pod.containers[0].ports = vec![Port {
        container_port: 8080,
        host_port: Some(free),
        host_ip: Some(Ipv4Addr::LOCALHOST.into()),
        ..Port::default()
    }];
    pod.volumes = vec![Volume {
        name: "data".try_into().unwrap(),
        source: VolumeSource::EmptyDir(EmptyDir { memory: true, ..EmptyDir::default() }),
    }];
    pod.containers[0].mounts =
        vec![VolumeMount { volume: "data".try_into().unwrap(), path: "/data".to_owned(), ..VolumeMount::default() }];
    device.controller.want(vec![pod]);
    device.controller.wait("the pod to run", |told| told.pods.get(&uid(1)).is_some_and(runs));

    let table = out(&device.skegd(&["ps"]));
    assert!(table.contains("web") && table.contains("Running"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&out(&device.skegd(&["ps", "-o", "json"]))).unwrap();
    assert_eq!((&json["pods"][0]["phase"], &json["node"]), (&"Running".into(), &"answers".into()));

    let log = until("both lines", || {
        let text = out(&device.skegd(&["logs", "web"]));
        (text.contains("begun") && text.contains("wrong")).then_some(text)
    });
    assert_eq!(log.lines().count(), 2, "{log}");
    assert_eq!(out(&device.skegd(&["logs", "--tail", "1", "default/web"])).lines().count(), 1);

    let page = until("the page", || {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, free)).ok()?;
        client.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        client.read_to_string(&mut page).ok()?;
        page.contains("page").then_some(page)
    });
    assert!(page.starts_with("HTTP/1.1 200") || page.starts_with("HTTP/1.0 200"), "{page}");

    let done = device.skegd(&["exec", "web", "--", "sh", "-c", "echo $HOSTNAME; cat /etc/hostname; exit 7"]);
    assert_eq!((out(&done).as_str(), done.status.code()), ("web\nweb\n", Some(7)), "{}", err(&done));
    let mut counting = device.command(&["exec", "-i", "web", "--", "wc", "-c"]);
    let mut counting = counting.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    counting.stdin.take().unwrap().write_all(&vec![b'x'; 300_000]).unwrap();
    let counted = counting.wait_with_output().unwrap();
    assert_eq!((out(&counted).trim(), counted.status.code()), ("300000", Some(0)));
    let tty = device.skegd(&["exec", "-t", "web", "--", "sh", "-c", "test -t 1 && echo terminal"]);
    assert_eq!(out(&tty), "terminal\r\n", "{}", err(&tty));
    let missing = device.skegd(&["exec", "web", "--", "nothing-like-it"]);
    assert!(!missing.status.success() && err(&missing).contains("nothing-like-it"), "{}", err(&missing));
    let missing = device.skegd(&["logs", "nobody"]);
    assert!(!missing.status.success() && err(&missing).starts_with("error: "), "{}", err(&missing));

    device.controller.want(Vec::new());
    device.controller.wait("the pod to be gone", |told| told.pods.is_empty());
    assert_eq!(device.mounts(), Vec::<String>::new());
    for cgroup in device.cgroups() {
        let below = fs::read_dir(&cgroup).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
        assert_eq!(below, 0, "{}", cgroup.display());
    }
    let left = |folder: &str| fs::read_dir(device.folder.path().join(folder)).map_or(0, Iterator::count);
    assert_eq!((left("state/pods"), left("state/logs"), left("run/pods"), left("state/state/pods")), (0, 0, 0, 0));
    device.power_off();
    assert_eq!(device.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn every_failure_says_why_and_leaves_the_others_alone() {
    needs_root!();
    let mut device = Device::start("failures");
    let good = device.pod(1, "good", "exec sleep 1000");
    let mut no_image = device.pod(2, "no-image", "true");
    no_image.containers[0].image.digest = skeg_protocol::Digest([9; 32]);
    let mut no_command = device.pod(3, "no-command", "true");
    no_command.containers[0].command = vec!["/bin/nothing-like-it".to_owned()];
    let crashing = device.pod(4, "crashing", "echo attempt; exit 3");
    let mut greedy = device.pod(5, "greedy", "exec tail /dev/zero");
    greedy.containers[0].limits.memory_bytes = Some(16 * 1024 * 1024);
    greedy.restart_policy = RestartPolicy::Never;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut port_taken = device.pod(6, "port-taken", "true");
    port_taken.containers[0].ports = vec![Port {
        container_port: 80,
        host_port: Some(port),
        host_ip: Some(Ipv4Addr::LOCALHOST.into()),
        ..Port::default()
    }];
    let mut no_path = device.pod(7, "no-path", "true");
    no_path.volumes = vec![Volume {
        name: "gone".try_into().unwrap(),
        source: VolumeSource::HostPath { path: "/nothing/like/it".to_owned(), kind: HostPathKind::Any },
    }];
    let mut done = device.pod(8, "done", "exit 0");
    done.restart_policy = RestartPolicy::OnFailure;
    let mut root = device.pod(9, "root", "true");
    root.containers[0].security.run_as_non_root = true;
    device.controller.want(vec![good, no_image, no_command, crashing, greedy, port_taken, no_path, done, root]);

    let says = |number: u8, reason: &str, words: &[&str]| {
        device.controller.wait(&format!("pod {number} to say {reason}"), |told| {
            let waiting = told.pods.get(&uid(number)).and_then(waits);
            waiting.is_some_and(|(why, message)| why == reason && words.iter().all(|word| message.contains(word)))
        });
    };
    says(2, "ErrImagePull", &["demo:1"]);
    says(3, "RunContainerError", &["/bin/nothing-like-it"]);
    says(4, "CrashLoopBackOff", &["code 3"]);
    says(6, "HostPortConflict", &[&port.to_string()]);
    says(7, "FailedMount", &["/nothing/like/it", "hostPath"]);
    says(9, "CreateContainerConfigError", &["runAsNonRoot"]);
    device.controller.wait("the greedy pod's end", |told| {
        told.pods.get(&uid(5)).is_some_and(|pod| match &pod.containers[0].state {
            ContainerState::Terminated(end) => end.reason == "OOMKilled" && end.exit_code == 137,
            _ => false,
        })
    });
    device
        .controller
        .wait("the done pod's success", |told| told.pods.get(&uid(8)).is_some_and(|pod| pod.phase == Phase::Succeeded));
    let crashed = device.controller.pod(uid(4)).unwrap();
    assert_eq!(crashed.containers[0].last.as_ref().map(|end| end.exit_code), Some(3));
    assert!(crashed.containers[0].restarts >= 1, "the first restart is at once");
    assert_eq!(device.controller.pod(uid(3)).unwrap().containers[0].last.as_ref().map(|end| end.exit_code), Some(127));
    assert_eq!(out(&device.skegd(&["logs", "--previous", "crashing"])), "attempt\n");
    assert_eq!(device.controller.pod(uid(6)).map(|pod| pod.phase), Some(Phase::Pending));
    let good = device.controller.pod(uid(1)).unwrap();
    assert!(runs(&good) && good.containers[0].restarts == 0);
    let table = out(&device.skegd(&["ps"]));
    assert!(table.contains("OOMKilled") && table.contains("CrashLoopBackOff"), "{table}");
    drop(taken);
    device.power_off();
    assert_eq!((device.mounts(), device.cgroups()), (vec![], vec![]));
}

/// A volume and where it is mounted: below the root, by its name.
fn volume(name: &str, source: VolumeSource) -> (Volume, VolumeMount) {
    let mount = VolumeMount { volume: name.try_into().unwrap(), path: format!("/{name}"), ..VolumeMount::default() };
    (Volume { name: name.try_into().unwrap(), source }, mount)
}

/// What a command in a container writes.
fn inside(device: &Device, pod: &str, script: &str) -> String {
    let done = device.skegd(&["exec", pod, "--", "sh", "-c", script]);
    assert!(done.status.success(), "{script}: {}", err(&done));
    out(&done)
}

/// The host's id of a pod's root.
fn root_of(device: &Device, pod: &str) -> u32 {
    let map = inside(device, pod, "cat /proc/self/uid_map");
    let [0, root, 65_536] = map.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<u32>>()[..] else {
        panic!("{pod}: {map}")
    };
    root
}

/// Starts the pods of the test below: two alike, one with the host's users, one of user 33, and one that can't be.
fn start_pods_with_users(device: &Device, host: &Path) {
    fs::create_dir(host).unwrap();
    fs::write(host.join("secret"), "kept").unwrap();
    fs::set_permissions(host.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(host, fs::Permissions::from_mode(0o777)).unwrap();
    let volumes = [
        volume("disk", VolumeSource::EmptyDir(EmptyDir::default())),
        volume("memory", VolumeSource::EmptyDir(EmptyDir { memory: true, ..EmptyDir::default() })),
        volume("host", VolumeSource::HostPath { path: host.to_str().unwrap().to_owned(), kind: HostPathKind::Any }),
    ];
    let script = "echo begun; echo by name > /dev/stdout; echo error > /dev/stderr; > /host/$HOSTNAME; > /disk/file; \
                  > /memory/file; exec sleep 1000";
    let mut pods: Vec<_> = [(1, "one"), (2, "two"), (3, "opted-out"), (4, "web")]
        .map(|(number, name)| device.pod(number, name, script))
        .into();
    for pod in &mut pods {
        (pod.volumes, pod.containers[0].mounts) = volumes.iter().cloned().unzip();
    }
    pods[2].host_users = true;
    pods[3].containers[0].security.user = Some(33);
    // The kernel's own filesystems can't show other owners.
    let (system, mount) =
        volume("host-proc", VolumeSource::HostPath { path: "/proc".to_owned(), kind: HostPathKind::Any });
    let mut refused = device.pod(5, "refused", "true");
    (refused.volumes, refused.containers[0].mounts) = (vec![system], vec![mount]);
    pods.push(refused);
    device.controller.want(pods);
    device.controller.wait("four pods to run", |told| (1..=4).all(|n| told.pods.get(&uid(n)).is_some_and(runs)));
    device.controller.wait("the fifth to be refused", |told| {
        told.pods.get(&uid(5)).and_then(waits).is_some_and(|(_, why)| why.ends_with("set hostUsers: true in the spec"))
    });
}

#[test]
fn pods_have_users_of_their_own() {
    needs_root!();
    let mut device = Device::start("users");
    let able = std::cell::Cell::new(false);
    device.controller.wait("the first hello", |told| {
        told.hello.as_ref().map(|hello| able.set(hello.node.user_namespaces)).is_some()
    });
    if !able.get() {
        println!("skipped: {} can't be mounted with other ids", device.folder.path().display());
        return;
    }
    let host = device.folder.path().join("host");
    start_pods_with_users(&device, &host);

    let roots = ["one", "two", "web"].map(|pod| root_of(&device, pod));
    assert!(roots.iter().all(|root| *root >= 1 << 20), "{roots:?}");
    assert!(roots[0] != roots[1] && roots[1] != roots[2] && roots[0] != roots[2], "{roots:?}");
    let all = inside(&device, "opted-out", "cat /proc/self/uid_map");
    assert_eq!(all, fs::read_to_string("/proc/self/uid_map").unwrap());
    for pod in ["one", "two", "opted-out", "web"] {
        let log = until("the log of three lines", || {
            let log = out(&device.skegd(&["logs", pod]));
            (log.lines().count() == 3).then_some(log)
        });
        assert!(["begun", "by name", "error"].iter().all(|line| log.contains(line)), "{pod}: {log}");
        let streams = inside(&device, pod, "echo out > /dev/stdout; cat /sys/class/net/lo/flags");
        assert_eq!(streams, "out\n0x9\n", "{pod}");
        let (user, mapped) = if pod == "web" { (33, "33") } else { (0, "0") };
        let files = "stat -c %u /disk/file /memory/file /host/$HOSTNAME /proc/self/; stat -c %u / /bin /etc/hosts";
        assert_eq!(inside(&device, pod, files), format!("{mapped}\n").repeat(4) + "0\n0\n0\n", "{pod}");
        assert_eq!(fs::metadata(host.join(pod)).unwrap().uid(), user, "files of the host have the host's owners");
    }
    let tty = device.skegd(&["exec", "-t", "one", "--", "sh", "-c", "stat -c %u $(readlink /proc/self/fd/0)"]);
    assert_eq!(out(&tty), "0\r\n", "{}", err(&tty));
    let secret = device.skegd(&["exec", "web", "--", "cat", "/host/secret"]);
    assert!(!secret.status.success() && err(&secret).contains("Permission denied"), "{}", err(&secret));

    inside(&device, "one", "echo mine > /made; chown 33:34 /made; chown 33 /disk");
    let made = device.folder.path().join(format!("state/pods/{}/containers/main/0/upper/made", uid(1)));
    let made = fs::metadata(made).unwrap();
    assert_eq!((made.uid(), made.gid()), (roots[0] + 33, roots[0] + 34));
    device.kill_agent();
    assert_eq!(["one", "two", "web"].map(|pod| root_of(&device, pod)), roots);
    assert_eq!(inside(&device, "one", "stat -c %u /disk"), "33\n", "a new agent leaves owners alone");
    device.power_off();
    device.power_on();
    let after = |pod| {
        until("the pod after the boot", || {
            let ready = device.skegd(&["exec", pod, "--", "cat", "/disk/file"]).status.success();
            ready.then(|| root_of(&device, pod))
        })
    };
    assert_eq!(["one", "two", "web"].map(after), roots);
    device.power_off();
    assert_eq!((device.mounts(), device.cgroups()), (vec![], vec![]));
}

/// Lines `line 0`, `line 1`, … without a gap or a repetition; says how many.
fn count_lines(log: &str) -> usize {
    for (number, line) in log.lines().enumerate() {
        assert_eq!(line, format!("line {number}"), "line {number} of the log");
    }
    log.lines().count()
}

#[test]
fn killing_the_agent_again_and_again_loses_nothing() {
    needs_root!();
    let device = Device::start("kills");
    let script = "i=0; while :; do echo line $i; i=$((i+1)); usleep 500; done";
    let signal = device.folder.path().join("signal");
    fs::create_dir(&signal).unwrap();
    let mut pods: Vec<_> = (1..=5).map(|number| device.pod(number, &format!("pod{number}"), script)).collect();
    let mut ending =
        device.pod(6, "ending", "while [ ! -e /signal/now ]; do usleep 1000; done; echo last words; exit 7");
    ending.restart_policy = RestartPolicy::Never;
    ending.volumes = vec![Volume {
        name: "signal".try_into().unwrap(),
        source: VolumeSource::HostPath { path: signal.to_str().unwrap().to_owned(), kind: HostPathKind::Any },
    }];
    ending.containers[0].mounts = vec![VolumeMount {
        volume: "signal".try_into().unwrap(),
        path: "/signal".to_owned(),
        read_only: true,
        sub_path: None,
    }];
    pods.push(ending);
    device.controller.want(pods);
    device.controller.wait("six pods to run", |told| (1..=6).all(|n| told.pods.get(&uid(n)).is_some_and(runs)));
    for round in 0..12 {
        if round == 6 {
            fs::write(signal.join("now"), "").unwrap();
        }
        device.kill_agent();
    }
    device.controller.wait("the ending pod's end", |told| {
        told.pods.get(&uid(6)).is_some_and(|pod| match &pod.containers[0].state {
            ContainerState::Terminated(end) => end.exit_code == 7,
            _ => false,
        })
    });
    assert_eq!(out(&device.skegd(&["logs", "ending"])), "last words\n");
    for number in 1..=5 {
        let pod = format!("pod{number}");
        let lines = count_lines(&out(&device.skegd(&["logs", &pod])));
        assert!(lines > 20, "{pod} has only {lines} lines");
        let status = device.controller.pod(uid(number)).unwrap();
        assert!(runs(&status) && status.containers[0].restarts == 0, "{status:?}");
    }
}

#[test]
fn pods_come_back_without_a_controller() {
    needs_root!();
    let mut device = Device::start("returns");
    let mut pod = device.pod(1, "keeper", "echo one >> /data/file; exec sleep 1000");
    pod.volumes =
        vec![Volume { name: "data".try_into().unwrap(), source: VolumeSource::EmptyDir(EmptyDir::default()) }];
    pod.containers[0].mounts =
        vec![VolumeMount { volume: "data".try_into().unwrap(), path: "/data".to_owned(), ..VolumeMount::default() }];
    device.controller.want(vec![pod]);
    device.controller.wait("the pod to run", |told| told.pods.get(&uid(1)).is_some_and(runs));
    device.power_off();
    assert_eq!(device.mounts(), Vec::<String>::new());
    // Nothing but what is on the disk: the address of the controller leads nowhere now.
    let config = device.folder.path().join("skegd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let address = device.controller.address.to_string();
    fs::write(&config, text.replace(&address, "127.0.0.1:1")).unwrap();
    device.power_on();
    until("the volume's second line", || {
        let done = device.skegd(&["exec", "keeper", "--", "cat", "/data/file"]);
        (out(&done) == "one\none\n").then_some(())
    });
    let json: serde_json::Value = serde_json::from_str(&out(&device.skegd(&["ps", "-o", "json"]))).unwrap();
    let container = &json["pods"][0]["containers"][0];
    assert_eq!(container["restartCount"], 1, "{json:#}");
    assert!(json["link"].as_str().unwrap().contains("not connected"), "{json:#}");
}

fn probe(action: Handler, failures: u32) -> Probe {
    Probe {
        action,
        initial_delay_ms: 0,
        period_ms: 200,
        timeout_ms: 1_000,
        success_threshold: 1,
        failure_threshold: failures,
        termination_grace_seconds: None,
    }
}

fn shell(script: &str) -> Handler {
    Handler::Exec { command: ["sh", "-c", script].map(str::to_owned).to_vec() }
}

/// A pod with an init container, a sidecar, probes and hooks, all of which leave a mark in its volume.
fn whole_pod(device: &Device) -> Pod {
    let mut pod = device.pod(1, "web", "rm -f /data/sick; exec httpd -f -p 8080 -h /data");
    let (data, mount) = volume("data", VolumeSource::EmptyDir(EmptyDir::default()));
    pod.volumes = vec![data];
    pod.containers[0].mounts = vec![mount];
    pod.containers[0].probes = Probes {
        readiness: Some(probe(
            Handler::HttpGet(HttpGet { port: 8080, path: "/page".to_owned(), ..HttpGet::default() }),
            1,
        )),
        liveness: Some(probe(shell("if test -e /data/sick; then echo a cold; exit 1; fi"), 1)),
        startup: Some(probe(Handler::TcpSocket { host: None, port: 8080 }, 100)),
        ignore_image: false,
    };
    pod.containers[0].lifecycle.post_start = Some(shell("echo hook >> /data/order"));
    pod.containers[0].lifecycle.pre_stop = Some(shell("echo stop >> /data/order"));
    let mut first = pod.containers[0].clone();
    (first.probes, first.lifecycle) = Default::default();
    (first.name, first.args) = ("first".try_into().unwrap(), vec!["echo first >> /data/order".to_owned()]);
    let mut side = first.clone();
    side.name = "side".try_into().unwrap();
    side.args = vec!["echo side >> /data/order; exec sleep 1000".to_owned()];
    side.restart_policy = Some(RestartPolicy::Always);
    pod.init_containers = vec![first, side];
    pod
}

#[test]
fn a_whole_pod_starts_in_order_is_asked_how_it_is_and_is_mended() {
    needs_root!();
    let mut device = Device::start("whole");
    device.controller.want(vec![whole_pod(&device)]);
    let started = |told: &support::controller::Told| {
        told.pods.get(&uid(1)).is_some_and(|pod| pod.containers[0].started && pod.init_containers[1].ready)
    };
    device.controller.wait("the pod to be started", started);
    let pod = device.controller.pod(uid(1)).unwrap();
    assert!(!pod.is(ConditionKind::Ready) && pod.is(ConditionKind::Initialized), "there is no page yet: {pod:?}");
    inside(&device, "web", "echo well > /data/page");
    let ready =
        |told: &support::controller::Told| told.pods.get(&uid(1)).is_some_and(|pod| pod.is(ConditionKind::Ready));
    device.controller.wait("the pod to be ready", ready);
    assert_eq!(inside(&device, "web", "cat /data/order"), "first\nside\nhook\n");
    device.kill_agent();
    device.controller.wait("the pod to be ready under a new agent", ready);
    let before = device.controller.pod(uid(1)).unwrap();
    assert_eq!((before.containers[0].restarts, before.containers[0].started), (0, true));

    inside(&device, "web", "> /data/sick");
    device
        .controller
        .wait("the restart", |told| told.pods.get(&uid(1)).is_some_and(|pod| pod.containers[0].restarts == 1));
    device.controller.wait("the pod to be ready again", ready);
    let pod = device.controller.pod(uid(1)).unwrap();
    let last = pod.containers[0].last.clone().unwrap();
    assert!(last.message.contains("its liveness probe failed 1 times: it exited with code 1: a cold"), "{last:?}");
    assert_eq!(pod.init_containers[1].restarts, 0, "the sidecar runs on");
    assert_eq!(inside(&device, "web", "cat /data/order"), "first\nside\nhook\nstop\nhook\n");

    device.controller.want(Vec::new());
    device.controller.wait("the pod to be gone", |told| told.pods.is_empty());
    device.power_off();
    let events = out(&device.skegd(&["events"]));
    for words in ["liveness probe failed", "Killing", "AgentStarted", "Exited", "it is no longer wanted", "Shutdown"] {
        assert!(events.contains(words), "{words}: {events}");
    }
}

#[test]
fn a_probe_that_hangs_leaves_nothing_and_holds_nobody_up() {
    needs_root!();
    let mut device = Device::start("hangs");
    let mut hanging: Vec<Pod> =
        (1..=8).map(|number| device.pod(number, &format!("p{number}"), "exec sleep 1000")).collect();
    for pod in &mut hanging {
        // It leaves a process that does not care for signals, and never answers.
        let script = "(trap '' TERM HUP INT; exec sleep 77777) & exec sleep 77777";
        pod.containers[0].probes.readiness = Some(Probe { period_ms: 60_000, ..probe(shell(script), 1) });
    }
    let mut good = device.pod(9, "good", "exec sleep 1000");
    good.containers[0].probes.readiness = Some(probe(shell("exit 0"), 1));
    hanging.push(good);
    device.controller.want(hanging);
    device
        .controller
        .wait("the good pod", |told| told.pods.get(&uid(9)).is_some_and(|pod| pod.is(ConditionKind::Ready)));
    let unhealthy = || out(&device.skegd(&["events", "-o", "json"])).matches("no answer within 1 s").count();
    until("every hanging probe to have failed", || (unhealthy() == 8).then_some(()));
    let sleeping = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x0077777\0"))
            .count()
    };
    until("their processes to be gone", || (sleeping() == 0).then_some(()));
    assert!((1..=8).all(|number| device.controller.pod(uid(number)).is_some_and(|pod| runs(&pod))));
    device.power_off();
}

#[test]
fn a_revision_that_does_not_become_ready_is_rolled_back_and_stays_so() {
    needs_root!();
    let mut device = Device::start("trial");
    let kept = device.pod(1, "kept", "exec sleep 1000");
    device.controller.want(vec![kept.clone()]);
    device.controller.wait("the pod to run", |told| told.pods.get(&uid(1)).is_some_and(runs));
    let mut bad = device.pod(1, "kept", "exec sleep 1000");
    bad.containers[0].probes.readiness = Some(probe(shell("exit 1"), 1));
    device.controller.want_all(Manifest { pods: vec![bad], trial_seconds: 3, ..Manifest::default() });
    until("the roll-back", || out(&device.skegd(&["history"])).contains("rolled back").then_some(()));
    let is_old = |told: &support::controller::Told| {
        told.pods.get(&uid(1)).is_some_and(|pod| runs(pod) && pod.is(ConditionKind::Ready))
    };
    device.controller.wait("the old pod", is_old);
    let history = out(&device.skegd(&["history"]));
    assert!(history.contains("not ready in time: default/kept") && history.contains("followed again"), "{history}");
    device.power_off();
    device.power_on();
    device.controller.wait("the old pod after a restart", is_old);
    assert!(out(&device.skegd(&["events"])).contains("RolledBack"));
    device.power_off();
}

#[test]
fn pods_find_each_other_by_name_while_the_agent_is_replaced() {
    needs_root!();
    let device = Device::start("names");
    let pods = vec![device.pod(1, "db", "exec sleep 1000"), device.pod(2, "web", "exec sleep 1000")];
    device.controller.want(pods);
    device
        .controller
        .wait("both pods to run", |told| [1, 2].iter().all(|number| told.pods.get(&uid(*number)).is_some_and(runs)));
    let hosts = inside(&device, "db", "cat /etc/hosts");
    assert!(hosts.contains("10.223.0.") && hosts.contains("\tdb\n"), "{hosts}");
    let resolver = inside(&device, "web", "cat /etc/resolv.conf");
    assert!(resolver.starts_with("nameserver 10.223.0.1\nsearch default.svc.cluster.local "), "{resolver}");
    let mut addresses = hosts.lines().filter_map(|line| line.strip_suffix("\tdb"));
    let address = addresses.find(|line| line.starts_with("10.")).unwrap_or_else(|| panic!("{hosts}"));
    for _ in 0..3 {
        // It also asks for what the other search domains make of the name, and fails for those.
        let said = inside(&device, "web", "busybox nslookup db 2>&1; true");
        assert!(said.contains(address), "{address}: {said}");
        device.kill_agent();
    }
}
