//! The OCI command line as engines and people call it: the real binary, real containers. Needs root and
//! busybox-static; podman and containerd for one each.

#![allow(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

mod bundle;
mod containerd;
#[path = "../support/needs.rs"]
mod needs;
mod podman;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use bundle::{Bundle, Running, err, out, until};
use needs::needs_root;
use serde_json::{Value, json};

#[test]
fn a_container_goes_through_its_whole_life() {
    needs_root!();
    let bundle = Bundle::new("life", &["sh", "-c", "echo $GREETING > /said; exec sleep 1000"]);
    bundle.change(|config| {
        config["process"]["env"].as_array_mut().unwrap().push("GREETING=hello".into());
        config["annotations"] = json!({ "org.example.key": "value" });
    });
    let pid_file = bundle.folder.path().join("pid");
    let created = bundle.oci(&["create", "--pid-file", pid_file.to_str().unwrap(), "one"]);
    assert_eq!((out(&created), err(&created)), (String::new(), String::new()), "create says nothing");
    let state = bundle.state("one");
    assert_eq!(
        (&state["status"], &state["id"], &state["annotations"]["org.example.key"]),
        (&json!("created"), &json!("one"), &json!("value"))
    );
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).unwrap());
    assert_eq!(state["bundle"], json!(bundle.folder.path()));
    assert!(!bundle.root().join("said").exists(), "the program runs before start");

    bundle.works(&["start", "one"]);
    until("the program to run", || bundle.root().join("said").exists());
    assert_eq!(fs::read_to_string(bundle.root().join("said")).unwrap(), "hello\n");
    assert_eq!(bundle.state("one")["status"], "running");
    assert!(err(&bundle.oci(&["start", "one"])).contains("running, not created"));

    let listed: Value = serde_json::from_str(&bundle.works(&["list", "--format", "json"])).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["status"]), (1, &json!("running")));
    assert_eq!(bundle.works(&["list", "-q"]), "one\n");
    assert!(bundle.works(&["list"]).starts_with("ID          PID         STATUS      BUNDLE"));
    assert_eq!(bundle.works(&["ps", "--format", "json", "one"]), format!("[{}]\n", state["pid"]));
    assert_eq!(bundle.works(&["ps", "one"]).lines().count(), 2);

    assert_eq!(bundle.works(&["exec", "--env", "A=b", "--cwd", "/bin", "one", "sh", "-c", "echo $A $PWD"]), "b /bin\n");
    bundle.works(&["pause", "one"]);
    assert_eq!(bundle.state("one")["status"], "paused");
    let refused = bundle.oci(&["exec", "one", "true"]);
    assert_eq!(refused.status.code(), Some(255), "{}", err(&refused));
    assert!(err(&bundle.oci(&["pause", "one"])).contains("is paused"));
    bundle.works(&["resume", "one"]);
    assert!(err(&bundle.oci(&["resume", "one"])).contains("not paused"));

    assert!(err(&bundle.oci(&["delete", "one"])).contains("is running"));
    bundle.works(&["kill", "one", "KILL"]);
    until("the end", || bundle.state("one")["status"] == "stopped");
    assert_eq!(bundle.state("one")["pid"], 0);
    assert!(err(&bundle.oci(&["kill", "one"])).contains("container not running"));
    bundle.works(&["delete", "one"]);
    assert!(err(&bundle.oci(&["state", "one"])).contains("does not exist"));
    bundle.nothing_is_left();
}

#[test]
fn a_program_in_the_foreground_gives_its_exit_code() {
    needs_root!();
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$; sleep 9", 143), ("true", 0)] {
        let bundle = Bundle::new("codes", &["sh", "-c", script]);
        // The first process of a pid namespace gets no signal from inside that it does not handle.
        bundle.change(|config| bundle::without(config, "pid"));
        let output = bundle.oci(&["run", "one"]);
        assert_eq!((output.status.code(), err(&output)), (Some(code), String::new()), "{script}");
        bundle.nothing_is_left();
    }
}

#[test]
fn exec_gives_the_exit_code_and_changes_what_it_is_asked_to() {
    needs_root!();
    let bundle = Bundle::new("exec", &["sleep", "1000"]);
    bundle.works(&["run", "--detach", "one"]);
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137)] {
        assert_eq!(bundle.oci(&["exec", "one", "sh", "-c", script]).status.code(), Some(code), "{script}");
    }
    let id = bundle.works(&["exec", "--user", "7:8", "-g", "9", "one", "id"]);
    assert_eq!(id, "uid=7 gid=8 groups=9\n");
    let rights =
        bundle.works(&["exec", "--cap", "CAP_MKNOD", "--no-new-privs=false", "one", "cat", "/proc/self/status"]);
    // CAP_MKNOD, number 27, is not among the default capabilities.
    assert!(rights.contains("CapEff:\t00000000a80425fb\n") && rights.contains("NoNewPrivs:\t0\n"), "{rights}");
    let missing = bundle.oci(&["exec", "one", "/none"]);
    assert_eq!(missing.status.code(), Some(255));
    assert!(err(&missing).to_lowercase().contains("no such file or directory"), "{}", err(&missing));
    assert!(err(&bundle.oci(&["exec", "one"])).contains("no command"));

    let process = json!({ "args": ["sh", "-c", "echo $A; cat /proc/self/status"], "cwd": "/", "user": { "uid": 5, "gid": 6 },
        "env": ["A=from-a-file", "PATH=/bin"], "noNewPrivileges": true });
    let file = bundle.folder.path().join("process.json");
    fs::write(&file, process.to_string()).unwrap();
    let told = bundle.works(&["exec", "--process", file.to_str().unwrap(), "one"]);
    assert!(
        told.starts_with("from-a-file\n") && told.contains("Uid:\t5\t5\t5\t5") && told.contains("NoNewPrivs:\t1"),
        "{told}"
    );

    let pid_file = bundle.folder.path().join("pid");
    bundle.works(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), "one", "sleep", "999"]);
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap(), "sleep\0999\0");
    bundle.works(&["kill", "--all", "one", "KILL"]);
    bundle.works(&["delete", "--force", "one"]);
    bundle.nothing_is_left();
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    needs_root!();
    let bundle = Bundle::new("bad", &["sleep", "1000"]);
    let none = bundle.folder.path().join("none");
    for (arguments, part) in [
        (vec!["create", "--bundle", none.to_str().unwrap(), "one"], "none"),
        (vec!["create", "a/b"], "invalid container id"),
        (vec!["create", ".."], "invalid container id"),
        (vec!["state", "one"], "\"one\" does not exist"),
        (vec!["start", "one"], "\"one\" does not exist"),
        (vec!["kill", "one", "KILL"], "\"one\" does not exist"),
        (vec!["delete", "one"], "\"one\" does not exist"),
        (vec!["exec", "one", "true"], "\"one\" does not exist"),
        (vec!["create", "--console-socket", "/none", "one"], "terminal"),
    ] {
        let output = bundle.oci(&arguments);
        assert!(!output.status.success() && err(&output).contains(part), "{arguments:?}: {}", err(&output));
    }
    bundle.works(&["delete", "--force", "one"]);
    for (global, part) in [(["--systemd-cgroup", "--debug"], "systemd"), (["--cgroup-manager", "systemd"], "systemd")] {
        let mut arguments = global.to_vec();
        arguments.extend(["create", "one"]);
        assert!(err(&bundle.oci(&arguments)).contains(part));
    }
    let config = bundle.folder.path().join("config.json");
    let good = fs::read_to_string(&config).unwrap();
    for (bad, part) in [
        ("", "config.json"),
        ("{", "config.json"),
        ("[]", "config.json"),
        (&good.replace("\"1.2.0\"", "\"9.0.0\""), "ociVersion"),
        (&good.replace("\"rootfs\"", "\"no-such-folder\""), "no-such-folder"),
        (&good.replace("\"type\": \"mount\"", "\"type\": \"mounts\""), "namespaces"),
    ] {
        fs::write(&config, bad).unwrap();
        let output = bundle.oci(&["run", "one"]);
        assert!(!output.status.success() && err(&output).contains(part), "{part}: {}", err(&output));
    }
    fs::write(&config, good).unwrap();
    bundle.change(|config| config["process"]["args"] = json!(["no-such-program"]));
    let output = bundle.oci(&["run", "one"]);
    assert!(err(&output).contains("no-such-program"), "{}", err(&output));
    bundle.nothing_is_left();
}

#[test]
fn containers_can_be_deleted_by_a_pattern() {
    needs_root!();
    let bundle = Bundle::new("pattern", &["sleep", "1000"]);
    for (index, id) in ["web-1", "web-2", "job-1"].into_iter().enumerate() {
        let cgroup = format!("{}/{index}", bundle.cgroup);
        bundle.change(|config| config["linux"]["cgroupsPath"] = json!(format!("/{cgroup}")));
        bundle.works(&["create", id]);
    }
    let refused = bundle.oci(&["delete", "--regex", "^web-"]);
    assert!(!refused.status.success() && err(&refused).contains("2 containers were not deleted"), "{}", err(&refused));
    bundle.works(&["delete", "--force", "--regex", "^web-"]);
    assert_eq!(bundle.works(&["list", "-q"]), "job-1\n");
    assert!(err(&bundle.oci(&["delete", "--regex", "("])).contains("--regex"));
    bundle.works(&["delete", "--force", "--regex", "."]);
    bundle.remove_cgroups();
    bundle.nothing_is_left();
}

/// A caller that was killed after the folder and before `state.json` is made.
#[test]
fn a_container_without_a_record_is_listed() {
    needs_root!();
    let bundle = Bundle::new("unfinished", &["true"]);
    fs::create_dir_all(bundle.state_folder().join("one")).unwrap();
    let listed: Value = serde_json::from_str(&bundle.works(&["list", "--format", "json"])).unwrap();
    assert_eq!(
        (&listed[0]["id"], &listed[0]["status"], &listed[0]["pid"]),
        (&json!("one"), &json!("stopped"), &json!(0))
    );
    bundle.works(&["delete", "one"]);
    bundle.nothing_is_left();
}

/// As systemd does it in its container.
#[test]
fn exec_works_in_a_container_that_has_divided_its_cgroup() {
    needs_root!();
    let bundle = Bundle::new("divided", &["sleep", "1000"]);
    bundle.works(&["run", "-d", "one"]);
    let read = |folder: &std::path::Path, file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    let folders = bundle.cgroups();
    let divisible = folders.iter().find(|folder| !read(folder, "cgroup.controllers").trim().is_empty());
    if let Some(folder) = divisible {
        let inner = folder.join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), bundle.state("one")["pid"].to_string()).unwrap();
        let controllers = read(folder, "cgroup.controllers");
        fs::write(folder.join("cgroup.subtree_control"), format!("+{}", controllers.split(' ').next().unwrap().trim()))
            .unwrap();
        let told = bundle.works(&["exec", "one", "cat", "/proc/self/cgroup"]);
        assert!(told.lines().any(|line| line.starts_with("0::") && line.ends_with("/inner")), "{told}");
    } else {
        println!("skipped: version 2 of cgroups has no controller here");
    }
    bundle.works(&["delete", "--force", "one"]);
    bundle.nothing_is_left();
}

/// "process … is REQUIRED when start is called" (config.md, "Process").
#[test]
fn a_container_without_a_process_is_created_and_never_started() {
    needs_root!();
    let bundle = Bundle::new("nothing", &[]);
    bundle.change(|config| drop(config.as_object_mut().unwrap().remove("process")));
    bundle.works(&["create", "one"]);
    assert_eq!(bundle.state("one")["status"], "created");
    let refused = bundle.oci(&["start", "one"]);
    assert!(
        !refused.status.success() && err(&refused).contains("process: \"nothing\" must be given"),
        "{}",
        err(&refused)
    );
    assert_eq!(bundle.state("one")["status"], "created");
    bundle.works(&["delete", "--force", "one"]);
    assert!(err(&bundle.oci(&["run", "one"])).contains("process"));
    bundle.nothing_is_left();
}

#[test]
fn an_id_is_taken_once() {
    needs_root!();
    let bundle = Bundle::new("once", &["sleep", "1000"]);
    let callers: Vec<_> = (0..20).map(|_| Running::spawn(bundle.command(&["create", "one"]))).collect();
    let outputs: Vec<_> = callers.into_iter().map(Running::wait).collect();
    let (won, lost): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
    assert_eq!((won.len(), lost.len()), (1, 19));
    for output in lost {
        assert!(err(output).contains("exists already"), "{}", err(output));
    }
    assert_eq!(bundle.state("one")["status"], "created");
    bundle.works(&["delete", "--force", "one"]);
    bundle.nothing_is_left();
}

/// A create that is killed at any moment leaves nothing that `delete --force` does not remove.
#[test]
fn a_create_that_was_cut_short_can_be_deleted() {
    needs_root!();
    let bundle = Bundle::new("cut", &["sleep", "1000"]);
    let mut seed = u64::from(std::process::id());
    println!("seed {seed}");
    for _ in 0..40 {
        // Steele and Vigna's constants of a linear congruential generator.
        seed = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        let mut create = Running::spawn(bundle.command(&["create", "one"]));
        std::thread::sleep(std::time::Duration::from_micros(seed >> 32 & 0x7fff));
        create.child.kill().unwrap();
        create.wait();
        bundle.works(&["list"]);
        bundle.works(&["delete", "--force", "one"]);
        bundle.nothing_is_left();
    }
}

#[test]
fn engines_get_errors_in_the_log_file() {
    needs_root!();
    let bundle = Bundle::new("log", &["true"]);
    let log = bundle.folder.path().join("log.json");
    let output = bundle.oci(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "one"]);
    assert_eq!(output.status.code(), Some(1));
    let line: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container \"one\" does not exist")));
}

#[test]
fn the_name_of_the_program_is_enough() {
    let output = std::process::Command::new(bundle::SKEGD).arg0("/usr/bin/skeg-oci").arg("--version").output().unwrap();
    let text = out(&output);
    let heads: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(heads, ["skeg-oci", "commit:", "spec:", "+SELINUX"], "{text}");
    assert!(text.starts_with("skeg-oci version ") && text.contains("\nspec: 1.2."), "{text}");
    let output = std::process::Command::new(bundle::SKEGD).args(["oci", "features"]).output().unwrap();
    let features: Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rro")));
}

#[test]
fn hooks_run_in_their_order_and_know_the_container() {
    needs_root!();
    let bundle = Bundle::new("hooks", &["sleep", "1000"]);
    let log = bundle.folder.path().join("hooks.log");
    bundle.change(|config| {
        let hook = |name: &str| {
            let script = format!(
                "echo {name} $(cat | tr -d ' \\n' | sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') >> {}",
                log.display()
            );
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
        };
        config["hooks"] = json!({ "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "poststart": hook("poststart"), "poststop": hook("poststop") });
    });
    bundle.works(&["create", "one"]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "prestart created\ncreateRuntime created\n");
    bundle.works(&["start", "one"]);
    assert!(fs::read_to_string(&log).unwrap().ends_with("poststart running\n"));
    bundle.works(&["delete", "--force", "one"]);
    assert!(fs::read_to_string(&log).unwrap().ends_with("poststop stopped\n"));

    bundle.change(|config| config["hooks"]["poststart"] = json!([{ "path": "/bin/false" }]));
    bundle.works(&["create", "one"]);
    let output = bundle.oci(&["start", "one"]);
    assert!(!output.status.success() && err(&output).contains("poststart"), "{}", err(&output));
    bundle.nothing_is_left();
}

#[test]
fn readiness_is_passed_on() {
    needs_root!();
    let bundle = Bundle::new("notify", &["sh", "-c", "echo > /begun; while ! test -e /told; do sleep 0.01; done"]);
    let path = bundle.folder.path().join("host.sock");
    let host = UnixDatagram::bind(&path).unwrap();
    let with_socket = |arguments: &[&str]| {
        let mut command = bundle.command(arguments);
        command.env("NOTIFY_SOCKET", &path);
        Running::spawn(command)
    };
    let create = with_socket(&["create", "one"]).wait();
    assert!(create.status.success(), "{}", err(&create));
    let start = with_socket(&["start", "one"]);
    until("the program to run", || bundle.root().join("begun").exists());
    // What busybox cannot write to is reached by its name outside.
    let inside = bundle.state_folder().join("one/notify/notify.sock");
    let program = UnixDatagram::unbound().unwrap();
    program.send_to(b"STATUS=warming up\nMAINPID=1", &inside).unwrap();
    program.send_to(b"READY=1\n", &inside).unwrap();
    let mut buffer = [0; 256];
    let length = host.recv(&mut buffer).unwrap();
    let pid = &bundle.state("one")["pid"];
    assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("READY=1\nMAINPID={pid}\n"));
    let started = start.wait();
    assert!(started.status.success(), "{}", err(&started));
    bundle.works(&["delete", "--force", "one"]);
    bundle.nothing_is_left();
}

#[test]
fn limits_can_be_changed_and_their_use_read() {
    needs_root!();
    let bundle = Bundle::new("limits", &["sleep", "1000"]);
    bundle.works(&["run", "-d", "one"]);
    bundle.works(&["update", "--memory", "64m", "--pids-limit", "20", "one"]);
    let event: Value = serde_json::from_str(&bundle.works(&["events", "--stats", "one"])).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("one")));
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!((&event["data"]["pids"]["limit"], &event["data"]["pids"]["current"]), (&json!(20), &json!(1)));
    let mut update = bundle.command(&["update", "--resources=-", "one"]).stdin(Stdio::piped()).spawn().unwrap();
    update.stdin.take().unwrap().write_all(b"{\"pids\": {\"limit\": 30}}").unwrap();
    assert!(update.wait().unwrap().success());
    let event: Value = serde_json::from_str(&bundle.works(&["events", "--stats", "one"])).unwrap();
    assert_eq!(
        (&event["data"]["pids"]["limit"], &event["data"]["memory"]["usage"]["limit"]),
        (&json!(30), &json!(64 << 20))
    );
    bundle.works(&["delete", "--force", "one"]);
    bundle.nothing_is_left();
}

#[test]
fn memory_that_runs_out_is_an_event() {
    needs_root!();
    let bundle = Bundle::new("memory", &["sleep", "1000"]);
    bundle.change(|config| config["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20, "swap": 32 << 20 }));
    bundle.works(&["run", "-d", "one"]);
    let told = bundle.folder.path().join("events");
    let file = fs::File::create(&told).unwrap();
    let mut events = bundle.command(&["events", "--interval", "10ms", "one"]).stdout(file).spawn().unwrap();
    let tells = |kind: &str| fs::read_to_string(&told).unwrap().contains(&format!("\"type\":\"{kind}\""));
    // It listens before it prints the first.
    until("statistics", || tells("stats"));
    assert!(!tells("oom"));
    assert_eq!(bundle.oci(&["exec", "one", "tail", "/dev/zero"]).status.code(), Some(137));
    until("the event", || tells("oom"));
    bundle.works(&["delete", "--force", "one"]);
    assert!(events.wait().unwrap().success(), "events ends with the container");
    bundle.nothing_is_left();
}

#[test]
fn a_root_can_be_moved_instead_of_pivoted() {
    needs_root!();
    let bundle = Bundle::new("no-pivot", &["sh", "-c", "ls / && cat /proc/self/mountinfo"]);
    let output = bundle.oci(&["run", "--no-pivot", "one"]);
    let text = out(&output);
    let (root, mounts): (Vec<_>, Vec<_>) = text.lines().partition(|line| !line.contains(' '));
    assert_eq!(root, ["bin", "dev", "proc", "sys"], "{}", err(&output));
    // Other mounts of the host are covered; those of procfs and sysfs, which chroot(2) would not keep from root, are gone.
    let kernel = mounts.iter().filter(|line| line.contains(" - proc ") || line.contains(" - sysfs "));
    let places = kernel.map(|line| line.split(' ').nth(4).unwrap());
    assert!(places.clone().all(|place| place.starts_with("/proc") || place.starts_with("/sys")), "{text}");
    bundle.nothing_is_left();
}

#[test]
fn a_terminal_goes_to_the_console_socket_or_through_this_process() {
    needs_root!();
    let bundle = Bundle::new("console", &["sh", "-c", "test -t 0 && tty && read line && echo got $line"]);
    bundle.change(|config| config["process"]["terminal"] = json!(true));
    assert!(err(&bundle.oci(&["create", "one"])).contains("--console-socket"));

    let path = bundle.folder.path().join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.works(&["create", "--console-socket", path.to_str().unwrap(), "one"]);
    let mut master = bundle::receive_file(&listener.accept().unwrap().0);
    bundle.works(&["start", "one"]);
    master.write_all(b"words\n").unwrap();
    let mut shown = Vec::new();
    // EIO ends it: the last process with the terminal open is gone.
    let _ = master.read_to_end(&mut shown);
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("/dev/pts/0\r\n") && shown.ends_with("got words\r\n"), "{shown:?}");
    bundle.works(&["delete", "--force", "one"]);

    let mut run = bundle.command(&["run", "one"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    run.stdin.as_mut().unwrap().write_all(b"more words\n").unwrap();
    let output = run.wait_with_output().unwrap();
    assert!(out(&output).ends_with("got more words\r\n"), "{:?}", out(&output));
    bundle.nothing_is_left();
}

/// Root in a container opens the file of the runtime's process, waits until that runs another program, and writes.
#[test]
fn cve_2019_5736_a_container_never_writes_the_runtime_s_file() {
    needs_root!();
    let bundle = Bundle::new("overwrite", &["sleep", "1000"]);
    // A copy, which nobody else runs: a file that is run cannot be written anyway.
    let copy = bundle.folder.path().join("skegd");
    fs::copy(bundle::SKEGD, &copy).unwrap();
    let with_copy = |arguments: &[&str]| {
        let mut command = Command::new(&copy);
        command.args(["oci", "--root"]).arg(bundle.state_folder()).args(arguments);
        command.current_dir(bundle.folder.path()).stdin(Stdio::null());
        Running::spawn(command)
    };
    let works = |arguments: &[&str]| {
        let output = with_copy(arguments).wait();
        assert!(output.status.success(), "{arguments:?}: {}", err(&output));
    };
    let hook = "echo > /hooked; until test -e /go; do :; done";
    bundle.change(|config| {
        config["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
    });
    works(&["create", "one"]);
    let attack = "exec 9</proc/1/exe; echo > /held; until test -e /started; do :; done; \
                  sh -c 'echo evil > /proc/self/fd/9' 2> /told; echo > /done";
    works(&["exec", "--detach", "--cap", "CAP_SYS_PTRACE", "one", "sh", "-c", attack]);
    let inside = |name: &str| bundle.root().join(name);
    until("the attacker to hold the file", || inside("held").exists());
    let start = with_copy(&["start", "one"]);
    until("the hook", || inside("hooked").exists());
    // Its hooks run in the container, and one that is a link to /proc/self/exe would run the runtime there.
    let own = fs::File::open(format!("/proc/{}/exe", start.child.id())).unwrap();
    assert!(rustix::fs::fstatvfs(&own).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    drop(own);
    fs::write(inside("go"), "").unwrap();
    assert!(start.wait().status.success());
    fs::write(inside("started"), "").unwrap();
    until("the attack", || inside("done").exists());
    let told = fs::read_to_string(inside("told")).unwrap();
    assert!(told.contains("Read-only file system"), "{told}");
    assert!(fs::read(&copy).unwrap() == fs::read(bundle::SKEGD).unwrap());
    bundle.works(&["delete", "--force", "one"]);
    bundle.nothing_is_left();
}

#[test]
fn only_descriptors_that_are_asked_for_are_passed_on() {
    needs_root!();
    let bundle = Bundle::new("descriptors", &["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '; cat <&3"]);
    let run = |options: &str| {
        let script = format!(
            "exec 3<<EOF 4<&0 5<&0\npassed on\nEOF\nexec {} oci --root {} run {options} -b {} one",
            bundle::SKEGD,
            bundle.state_folder().display(),
            bundle.folder.path().display()
        );
        std::process::Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap()
    };
    // The last number is of the folder that ls reads.
    let output = run("--preserve-fds 1");
    assert_eq!(out(&output), "0 1 2 3 4 passed on\n", "{}", err(&output));
    // Never this program's own, which are open behind them.
    let output = run("--preserve-fds 100");
    assert_eq!(out(&output), "0 1 2 3 4 5 6 passed on\n", "{}", err(&output));
    assert!(!run("").status.success());
    bundle.nothing_is_left();
}

/// Sockets of sd_listen_fds(3) reach the first process, which learns that they are its own.
#[test]
fn sockets_of_socket_activation_are_passed_on() {
    needs_root!();
    let bundle = Bundle::new("sockets", &["sh", "-c", "echo $LISTEN_FDS $LISTEN_PID $(ls /proc/self/fd)"]);
    let run = |environment: &str| {
        let script = format!(
            "exec 3</dev/null 4</dev/null; {environment} exec {} oci --root {} run -b {} one",
            bundle::SKEGD,
            bundle.state_folder().display(),
            bundle.folder.path().display()
        );
        out(&std::process::Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap())
    };
    // The last number is of the folder that ls reads.
    assert_eq!(run("LISTEN_FDS=2"), "2 1 0 1 2 3 4 5\n");
    assert_eq!(run("LISTEN_FDS=2 LISTEN_PID=$$"), "2 1 0 1 2 3 4 5\n");
    assert_eq!(run("LISTEN_FDS=2 LISTEN_PID=1"), "0 1 2 3\n", "they are somebody else's");
    bundle.nothing_is_left();
}
