//! Configurations as other hands write them: whole ones, broken ones, and ones broken at random.

use super::{ConfigError, InvalidConfig, parse_config, parse_process, read_config};
use crate::{Extras, HostCgroups, Plan, Reaper, Request, Root, Stdio, default_spec, oci};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs::File;

/// A configuration with every property that has rules of its own.
fn whole() -> Value {
    let mut value = serde_json::to_value(default_spec()).unwrap();
    let process = &mut value["process"];
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]);
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 4});
    process["execCPUAffinity"] = json!({"initial": "0", "final": "0-3,7"});
    process["oomScoreAdj"] = json!(100);
    process["user"] = json!({"uid": 1, "gid": 2, "umask": 18, "additionalGids": [5]});
    let linux = &mut value["linux"];
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.extend([json!({"type": "user"}), json!({"type": "time", "path": "/proc/self/ns/time"})]);
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    linux["timeOffsets"] = json!({"monotonic": {"secs": -5, "nanosecs": 7}});
    linux["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    linux["netDevices"] = json!({"eth7": {"name": "eth0"}});
    linux["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    linux["intelRdt"] = json!({"closID": "one", "memBwSchema": "MB:0=20"});
    linux["personality"] = json!({"domain": "LINUX32"});
    linux["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    linux["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 1 << 20, "swap": 2 << 20, "swappiness": 60},
        "cpu": {"quota": 50000, "period": 100_000, "burst": 100, "cpus": "0"},
        "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "rdma": {"mlx5_1": {"hcaHandles": 3}},
        "unified": {"memory.high": "1000000"},
        "pids": {"limit": 5},
    });
    value["hooks"] = json!({"createRuntime": [{"path": "/bin/true", "timeout": 3, "env": ["A=b"]}]});
    value["annotations"] = json!({"org.example.key": ""});
    value
}

/// What is told about the whole configuration with one value changed.
fn told(pointer: &str, changed: Value) -> String {
    let mut value = whole();
    match pointer.rsplit_once('/').unwrap() {
        (parent, key) if value.pointer(pointer).is_none() => value.pointer_mut(parent).unwrap()[key] = changed,
        _ => *value.pointer_mut(pointer).unwrap() = changed,
    }
    let error = parse_config(&serde_json::to_vec(&value).unwrap()).map(drop).expect_err(pointer);
    error.to_string()
}

#[test]
fn a_whole_configuration_is_read_as_it_stands() {
    let spec = parse_config(&serde_json::to_vec(&whole()).unwrap()).unwrap();
    let process = spec.process().as_ref().unwrap();
    let flags = process.scheduler().as_ref().unwrap().flags().as_ref().unwrap();
    assert_eq!(flags[..], [oci::LinuxSchedulerFlag::SchedResetOnFork]);
    assert_eq!(process.exec_cpu_affinity().as_ref().unwrap().cpu_affinity_final().as_deref(), Some("0-3,7"));
}

#[test]
fn unknown_properties_and_capabilities_are_left_out() {
    let mut value = whole();
    value["linux"]["tomorrow"] = json!({"deep": [1, 2]});
    value["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_OF_TOMORROW"]);
    value["process"]["execCPUAffinity"] = json!({"initial": ""});
    value["process"]["consoleSize"] = json!("ignored without a terminal");
    let spec = parse_config(&serde_json::to_vec(&value).unwrap()).unwrap();
    let capabilities = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
    assert_eq!(capabilities.bounding(), &Some([oci::Capability::Kill].into()));
}

#[test]
fn a_broken_rule_is_told_with_place_value_and_section() {
    let section = "(runtime-spec, config.md, Process)";
    assert_eq!(told("/process/cwd", json!("x")), format!("process.cwd: \"x\" must be an absolute path {section}"));
    for (pointer, value, expected) in [
        ("/ociVersion", json!("2.0.0"), "ociVersion: \"2.0.0\" must be a version 1"),
        ("/ociVersion", json!("1.0"), "ociVersion: \"1.0\" must be a version as 1.2.0"),
        ("/ociVersion", Value::Null, "ociVersion: \"nothing\" must be given"),
        ("/root", Value::Null, "root: \"nothing\" must be given"),
        ("/root/path", json!(""), "root.path: \"\" must name a folder"),
        ("/process/args", json!([]), "process.args: \"\" must begin with the program"),
        ("/process/args", json!(["a\0b"]), "process.args[0]: \"a\\0b\" must not contain a NUL byte"),
        ("/process/env", json!(["A"]), "process.env[0]: \"A\" must have the form name=value"),
        ("/process/rlimits/0/type", json!("RLIMIT_X"), "process.rlimits[0].type: unknown variant `RLIMIT_X`"),
        ("/process/rlimits/0/soft", json!(129), "process.rlimits[0].soft: \"129\" must not be above"),
        ("/process/rlimits/0/hard", Value::Null, "process.rlimits[0].hard: \"nothing\" must be given"),
        ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj: \"1001\" must be between -1000 and 1000"),
        ("/process/user/uid", json!(u32::MAX), "process.user.uid: \"4294967295\" must be an id"),
        ("/process/user/uid", json!(-1), "process.user.uid: invalid value: integer `-1`"),
        ("/process/user/additionalGids/0", json!(u32::MAX), "process.user.additionalGids[0]: \"4294967295\" must"),
        ("/process/ioPriority/priority", json!(8), "process.ioPriority.priority: \"8\" must be between 0 and 7"),
        ("/process/execCPUAffinity/final", json!("3-1"), "process.execCPUAffinity.final: \"3-1\" must be a list"),
        ("/process/scheduler/nice", json!(20), "process.scheduler.nice: \"20\" must be between -20 and 19"),
        ("/process/scheduler/priority", json!(1), "process.scheduler.priority: \"1\" must be 0 but for"),
        ("/process/scheduler/runtime", json!(1), "process.scheduler.runtime: \"1\" must be left out but for"),
        ("/linux/namespaces/1/type", json!("mount"), "linux.namespaces[1].type: \"mnt\" must not be there twice"),
        ("/linux/namespaces/1/type", json!("x"), "linux.namespaces[1].type: unknown variant `x`"),
        ("/linux/namespaces/1/path", json!("x"), "linux.namespaces[1].path: \"x\" must be an absolute path"),
        ("/linux/namespaces/6/type", json!("time"), "linux.namespaces[7].type: \"time\" must not be there twice"),
        ("/linux/namespaces/6", json!({"type": "time"}), "linux.namespaces[7].type: \"time\" must not"),
        ("/linux/uidMappings/0/size", json!(0), "linux.uidMappings[0].size: \"0\" must be at least 1"),
        ("/linux/uidMappings/0/hostID", json!(u32::MAX), "linux.uidMappings[0].hostID: \"4294967295\" must leave"),
        ("/linux/timeOffsets/realtime", json!({}), "linux.timeOffsets.realtime: \"realtime\" must be monotonic"),
        ("/linux/devices/0/major", Value::Null, "linux.devices[0].major: \"nothing\" must be given"),
        ("/linux/netDevices/eth7/name", json!("a/b"), "linux.netDevices.eth7.name: \"a/b\" must be the name"),
        ("/linux/memoryPolicy/nodes", json!(""), "linux.memoryPolicy.nodes: \"\" must name a node"),
        ("/linux/personality/flags", json!(["X"]), "linux.personality.flags[0]: \"X\" is a flag"),
        ("/linux/intelRdt/memBwSchema", json!("MB:\n"), "linux.intelRdt.memBwSchema: \"MB:\\n\" must not contain"),
        ("/linux/resources/memory/limit", json!(-2), "linux.resources.memory.limit: \"-2\" must be a number"),
        ("/linux/resources/memory/swappiness", json!(101), "linux.resources.memory.swappiness: \"101\" must"),
        ("/linux/resources/cpu/burst", json!(50001), "linux.resources.cpu.burst: \"50001\" must not be above"),
        ("/linux/resources/devices/0/access", json!("x"), "linux.resources.devices[0].access: \"x\" must be made"),
        ("/linux/resources/blockIO/weight", json!(5), "linux.resources.blockIO.weight: \"5\" must be between"),
        ("/linux/resources/hugepageLimits/0/pageSize", json!("2M"), "linux.resources.hugepageLimits[0].pageSize"),
        ("/linux/resources/rdma/mlx5_1", json!({}), "linux.resources.rdma.mlx5_1: \"nothing\" must have"),
        ("/linux/resources/unified", json!({"a/b": "1"}), "linux.resources.unified.a/b: \"1\" must have the name"),
        ("/linux/seccomp/syscalls/0/names", json!([]), "linux.seccomp.syscalls[0].names: \"nothing\" must name"),
        ("/linux/seccomp/syscalls/0/errnoRet", json!(1), "linux.seccomp.syscalls[0].errnoRet: \"1\" does not fit"),
        ("/linux/seccomp/syscalls/0/action", json!("SCMP_ACT_NOTIFY"), "linux.seccomp.listenerPath: \"\" must be"),
        ("/linux/seccomp/defaultAction", json!("X"), "linux.seccomp.defaultAction: unknown variant `X`"),
        ("/linux/seccomp/listenerMetadata", json!("x"), "linux.seccomp.listenerMetadata: \"x\" must not be set"),
        ("/mounts/0/destination", json!(""), "mounts[0].destination: \"\" must be a path"),
        ("/mounts/0/options", json!("ro"), "mounts[0].options: invalid type: string \"ro\""),
        ("/mounts/0/uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "mounts[0]: \"/proc\" must"),
        ("/hooks/createRuntime/0/path", json!("true"), "hooks.createRuntime[0].path: \"true\" must be an absolute"),
        ("/hooks/createRuntime/0/timeout", json!(0), "hooks.createRuntime[0].timeout: \"0\" must be above zero"),
        ("/annotations", json!({"": "x"}), "annotations: \"\" must not have an empty key"),
    ] {
        let told = told(pointer, value);
        assert!(told.starts_with(expected), "{pointer}: {told}");
    }
}

#[test]
fn maps_and_offsets_need_their_namespaces() {
    for (property, kind) in
        [("uidMappings", "user"), ("gidMappings", "user"), ("timeOffsets", "time"), ("netDevices", "network")]
    {
        let mut value = whole();
        if property == "gidMappings" {
            value["linux"].as_object_mut().unwrap().remove("uidMappings");
        }
        value["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != kind);
        let error = parse_config(&serde_json::to_vec(&value).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("linux.{property}: \"1 entries\" needs a {kind} namespace")), "{error}");
    }
}

#[test]
fn files_are_bounded_in_length_and_depth() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, " ".repeat((4 << 20) + 1)).unwrap();
    assert!(matches!(read_config(&path), Err(ConfigError::TooLong { .. })));
    std::fs::write(&path, "[".repeat(100_000)).unwrap();
    let Err(ConfigError::Invalid { source: InvalidConfig::Json(source), .. }) = read_config(&path) else { panic!() };
    assert!(source.to_string().starts_with("recursion limit exceeded"), "{source}");
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(parse_config(deep.as_bytes()), Err(InvalidConfig::Json(_))));
    assert!(matches!(read_config(&folder.path().join("none")), Err(ConfigError::Read { .. })));
}

#[test]
fn a_process_is_read_by_the_same_rules() {
    let parse = |value: Value| parse_process(&serde_json::to_vec(&value).unwrap());
    let process = parse(json!({"cwd": "/", "args": ["true"]})).unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
    let told = |value| parse(value).unwrap_err().to_string();
    assert!(told(json!({"cwd": "x", "args": ["true"]})).starts_with("cwd: \"x\" must be an absolute path"));
    assert!(told(json!({"args": ["true"]})).starts_with("cwd: \"nothing\" must be given"));
    let limits = json!({"cwd": "/", "args": ["true"], "rlimits": [{"type": "RLIMIT_CPU", "soft": 1}]});
    assert!(told(limits).starts_with("rlimits[0].hard: \"nothing\" must be given"));
}

/// Every place of a JSON tree.
fn places(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| places(value, format!("{at}/{index}"), found));
        }
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            places(value, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), found);
        }),
        _ => {}
    }
    found.push(at);
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[-/.:,a-z0-9A-Z_=\\x00\u{e9}]{0,40}".prop_map(Value::from),
        prop::collection::vec("[a-z=/.,]{0,9}", 0..4).prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn any_mutated_configuration_is_an_error_or_a_plan(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4),
    ) {
        let mut value = whole();
        for (index, changed) in changes {
            let mut found = Vec::new();
            places(&value, String::new(), &mut found);
            *value.pointer_mut(index.get::<String>(&found)).unwrap() = changed;
        }
        if let Ok(spec) = parse_config(&serde_json::to_vec(&value).unwrap()) {
            let null = || File::open("/dev/null").unwrap().into();
            let stdio = Stdio { stdin: null(), stdout: null(), stderr: null() };
            let root = Root::Folder("/".into());
            let request = Request { spec: &spec, root: &root, cgroup: None, network: None, user: None, stdio, reaper: Reaper::Caller, extras: Extras::default() };
            let host = HostCgroups::from_mount_table("1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap();
            if let Ok(plan) = Plan::compile_on(request, Some(host)) {
                prop_assert!(!plan.to_string().is_empty());
            }
        }
    }
}
