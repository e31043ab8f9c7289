//! The whole agent under its init: real containers, a real link, real kills. Needs root and busybox-static.

#![allow(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

#[allow(dead_code, reason = "what the tests of devices share")]
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Stdio;

use skeg_protocol::manifest::{Port, Protocol, RestartPolicy, Volume, VolumeMount, VolumeSource};
use skeg_protocol::{ContainerState, Phase};
use support::{Device, cannot_run, err, out, runs, uid, until, waits};

macro_rules! needs_root {
    () => {
        if let Some(why) = cannot_run() {
            println!("skipped: {why}");
            return;
        }
    };
}

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
        host_ip: Some(Ipv4Addr::LOCALHOST),
        protocol: Protocol::Tcp,
    }];
    pod.volumes = vec![Volume { name: "data".try_into().unwrap(), source: VolumeSource::EmptyDir { memory: true } }];
    pod.containers[0].mounts =
        vec![VolumeMount { volume: "data".try_into().unwrap(), path: "/data".to_owned(), read_only: false }];
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
        host_ip: Some(Ipv4Addr::LOCALHOST),
        protocol: Protocol::Tcp,
    }];
    let mut no_path = device.pod(7, "no-path", "true");
    no_path.volumes = vec![Volume {
        name: "gone".try_into().unwrap(),
        source: VolumeSource::HostPath { path: "/nothing/like/it".to_owned() },
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
        source: VolumeSource::HostPath { path: signal.to_str().unwrap().to_owned() },
    }];
    ending.containers[0].mounts =
        vec![VolumeMount { volume: "signal".try_into().unwrap(), path: "/signal".to_owned(), read_only: true }];
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
    pod.volumes = vec![Volume { name: "data".try_into().unwrap(), source: VolumeSource::EmptyDir { memory: false } }];
    pod.containers[0].mounts =
        vec![VolumeMount { volume: "data".try_into().unwrap(), path: "/data".to_owned(), read_only: false }];
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
