//! A fleet on this very machine: the static binaries as a user runs them, one controller and one node, real
//! images built by Debian's umoci and pushed by Debian's skopeo. What needs a kernel of its own is in the QEMU
//! tests; what needs no board is here, because it is ten times faster.

mod harness;

use harness::{Fleet, Image, pod, pod_with};

/// Containers that log numbered lines while the agent is killed under them.
const LOGGING_PODS: usize = 4;
/// How often the agent is killed.
const KILLS: usize = 100;

#[test]
fn killing_the_agent_restarts_nothing_and_loses_neither_line_nor_exit_code() {
    let Some(mut fleet) = Fleet::start() else { return };
    fleet.push(&Image::busybox("tools:1"));
    // Busybox' `usleep` paces the lines, so that the log stays small while the agent dies a hundred times.
    let count = r#"i=0; while :; do i=$((i+1)); echo "line $i"; usleep 2000; done"#;
    for index in 0..LOGGING_PODS {
        fleet.apply(&pod(&format!("count-{index}"), "tools:1", &["sh", "-c", count]));
    }
    // The fifth ends, with an exit code of its own, when the test removes its file: while no agent lives.
    let gate = fleet.path("gate");
    std::fs::create_dir(&gate).expect("the folder is ours");
    std::fs::write(gate.join("closed"), "").expect("the folder is ours");
    let wait = "while [ -e /gate/closed ]; do usleep 10000; done; exit 7";
    fleet.apply(&pod_with("ends", "tools:1", &["sh", "-c", wait], |spec| {
        spec["restartPolicy"] = "Never".into();
        spec["volumes"] = serde_json::json!([{ "name": "gate", "hostPath": { "path": gate } }]);
        spec["containers"][0]["volumeMounts"] = serde_json::json!([{ "name": "gate", "mountPath": "/gate" }]);
    }));
    let names: Vec<String> = (0..LOGGING_PODS).map(|index| format!("count-{index}")).collect();
    for name in names.iter().map(String::as_str).chain(["ends"]) {
        fleet.wait_for(name, "Running", |pod| pod["status"]["phase"] == "Running");
    }
    let processes: Vec<i32> = names.iter().map(|name| fleet.process_of(name)).collect();

    for kill in 0..KILLS {
        fleet.kill_agent();
        if kill == KILLS / 2 {
            std::fs::remove_file(gate.join("closed")).expect("it was made above");
        }
        fleet.wait_for_new_agent();
    }

    let ended = fleet.wait_for("ends", "Failed", |pod| pod["status"]["phase"] == "Failed");
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["exitCode"], 7, "{state}");
    for (name, process) in names.iter().zip(&processes) {
        assert_eq!(fleet.process_of(name), *process, "{name} was restarted");
        let pod = fleet.get(name);
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{name}");
        let log = fleet.node_log(name);
        let numbers: Vec<u64> = log
            .lines()
            .map(|line| line.strip_prefix("line ").unwrap_or_else(|| panic!("{name} logged {line:?}")))
            .map(|number| number.parse().unwrap_or_else(|_| panic!("{name} logged line {number:?}")))
            .collect();
        assert!(numbers.len() > KILLS, "{name} logged only {} lines", numbers.len());
        for (index, number) in numbers.iter().enumerate() {
            assert_eq!(*number, index as u64 + 1, "{name}: a line is missing or stands twice");
        }
    }
}

#[test]
fn skopeo_pushes_a_debian_root_of_several_layers_and_its_pod_runs() {
    let Some(mut fleet) = Fleet::start() else { return };
    fleet.push(&Image::debian("debian-tools:12"));
    fleet.apply(&pod_with("debian", "debian-tools:12", &["sh", "-c", "cat /etc/layer-2; test ! -e /etc/issue && . /etc/os-release; echo $ID; dpkg-query -W -f '${Status}\\n' bash; id -u"], |spec| {
        spec["restartPolicy"] = "Never".into();
    }));
    fleet.wait_for("debian", "Succeeded", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(fleet.skeg(&["logs", "debian"]), "second layer\ndebian\ninstall ok installed\n0\n");
}

#[test]
fn bad_input_is_named_and_leaves_every_other_pod_running() {
    let Some(mut fleet) = Fleet::start() else { return };
    fleet.push(&Image::busybox("tools:1"));
    let broken = Image::busybox("broken:1").with_own_layer("broken");
    fleet.push(&broken);
    fleet.push(&Image::escaping("escape:1"));
    let forever = ["sh", "-c", "while :; do usleep 100000; done"];
    fleet.apply(&pod("bystander", "tools:1", &forever));
    fleet.wait_for("bystander", "Running", |pod| pod["status"]["phase"] == "Running");
    let process = fleet.process_of("bystander");

    let mut wrong = pod("wrong", "tools:1", &forever);
    wrong["spec"]["containers"][0]["imagee"] = "x".into();
    let refused = fleet.apply_fails(&wrong);
    assert!(refused.contains("spec.containers[0].imagee"), "{refused}");

    fleet.apply(&pod("no-image", "not-there:9", &forever));
    fleet.wait_for_waiting("no-image", &["ErrImagePull", "ImagePullBackOff"], "not-there:9");

    fleet.corrupt_last_layer(&broken);
    fleet.apply(&pod("bad-digest", "broken:1", &forever));
    fleet.wait_for_waiting("bad-digest", &["ErrImagePull", "ImagePullBackOff"], "sha256:");

    fleet.apply(&pod("escapes", "escape:1", &forever));
    fleet.wait_for_waiting("escapes", &["ErrImagePull", "ImagePullBackOff"], "..");
    assert!(!std::path::Path::new("/tmp/skeg-escaped").exists());

    fleet.apply(&pod("no-command", "tools:1", &["/no/such/program"]));
    fleet.wait_for_message("no-command", "/no/such/program");

    fleet.apply(&pod_with("bad-limit", "tools:1", &forever, |spec| {
        // One more than the kernel's own bound of process numbers (PID_MAX_LIMIT).
        spec["containers"][0]["resources"] = serde_json::json!({ "limits": { "skeg.dev/pids": "4194306" } });
    }));
    fleet.wait_for_message("bad-limit", "pids.max");

    fleet.apply(&pod_with("greedy", "tools:1", &["sh", "-c", "x=x; while :; do x=$x$x; done"], |spec| {
        spec["containers"][0]["resources"] = serde_json::json!({ "limits": { "memory": "16Mi" } });
        spec["restartPolicy"] = "Never".into();
    }));
    let killed = fleet.wait_for("greedy", "Failed", |pod| pod["status"]["phase"] == "Failed");
    let state = &killed["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((state["reason"].as_str(), state["exitCode"].as_i64()), (Some("OOMKilled"), Some(137)), "{state}");

    for (name, word) in [("no-image", "not-there:9"), ("no-command", "/no/such/program"), ("escapes", "..")] {
        let described = fleet.skeg(&["describe", "pod", name]);
        assert!(described.contains(word), "describe does not name {word}:\n{described}");
        let listed = fleet.skegd(&["ps"]);
        assert!(name == "no-image" || listed.contains(name), "skegd ps does not list {name}:\n{listed}");
    }
    assert_eq!(fleet.process_of("bystander"), process, "the bystander was restarted");
    assert_eq!(fleet.get("bystander")["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn a_join_token_is_refused_when_used_twice_or_expired() {
    let Some(fleet) = Fleet::start() else { return };
    let used = fleet.token.clone();
    let second = fleet.start_node("second", &used);
    second.wait_for_log("token");
    let expired = fleet.skeg(&["token", "create", "--ttl", "1s"]).trim().to_owned();
    // The controller's clock has whole seconds; its own list says when the token is past.
    fleet.wait_for_token_list("expired");
    let third = fleet.start_node("third", &expired);
    third.wait_for_log("expired");
    let nodes = fleet.skeg(&["get", "nodes"]);
    assert!(!nodes.contains("second") && !nodes.contains("third"), "{nodes}");
}

#[test]
fn a_full_disk_is_an_error_with_a_name_and_harms_no_other_pod() {
    // There is room for the small image and for what pulls leave free, a twentieth; not for the large one.
    let Some(mut fleet) = Fleet::start_with_state_of(24 * 1024 * 1024) else { return };
    fleet.push(&Image::busybox("tools:1"));
    fleet.push(&Image::busybox("large:1").with_random_layer(40 * 1024 * 1024));
    let forever = ["sh", "-c", "while :; do usleep 100000; done"];
    fleet.apply(&pod("small", "tools:1", &forever));
    fleet.wait_for("small", "Running", |pod| pod["status"]["phase"] == "Running");
    let process = fleet.process_of("small");
    fleet.apply(&pod("large", "large:1", &forever));
    fleet.wait_for_waiting("large", &["ErrImagePull", "ImagePullBackOff"], "space");
    assert_eq!(fleet.process_of("small"), process, "the small pod was restarted");
    fleet.skeg(&["delete", "pod", "large"]);
    fleet.apply(&pod("small-2", "tools:1", &forever));
    fleet.wait_for("small-2", "Running", |pod| pod["status"]["phase"] == "Running");
}
