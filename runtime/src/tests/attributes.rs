//! Attributes of processes, as the kernel shows them inside.
//!
//! What a security label does is not tried: no kernel that these tests run on has AppArmor or an SELinux policy. What is
//! tried is that a label is refused there.

use super::support::{Ground, cannot_run, change_linux, change_process, shell};
use crate::{StartError, oci};
use serde_json::json;

/// Runs a line in a process with these attributes.
fn output(line: &str, change: impl FnOnce(&mut oci::Process)) -> String {
    Ground::new().run_spec(&change_process(shell(line), change)).unwrap().output
}

#[test]
fn a_scheduler_and_an_io_priority_are_set() {
    if cannot_run() {
        return;
    }
    let scheduler = |value: serde_json::Value| {
        output("busybox awk '{print $19, $40, $41}' /proc/self/stat", |process| {
            process.set_scheduler(Some(serde_json::from_value(value).unwrap()));
        })
    };
    // proc_pid_stat(5): nice, rt_priority, policy.
    assert_eq!(scheduler(json!({"policy": "SCHED_BATCH", "nice": 7})), "7 0 3\n");
    assert_eq!(scheduler(json!({"policy": "SCHED_OTHER", "nice": -5})), "-5 0 0\n");
    assert_eq!(scheduler(json!({"policy": "SCHED_IDLE"})), "0 0 5\n");
    let told = output("busybox ionice -p $$", |process| {
        let priority = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        process.set_io_priority(Some(serde_json::from_value(priority).unwrap()));
    });
    assert_eq!(told, "best-effort: prio 6\n");
}

#[test]
fn a_policy_that_the_kernel_refuses_is_named() {
    if cannot_run() {
        return;
    }
    // A deadline below the run time.
    let scheduler = json!({"policy": "SCHED_DEADLINE", "runtime": 20_000, "deadline": 10_000, "period": 30_000});
    let spec = change_process(shell("true"), |process| {
        process.set_scheduler(Some(serde_json::from_value(scheduler).unwrap()));
    });
    let Err(StartError::Step { step, source, .. }) = Ground::new().run_spec(&spec) else { panic!("it runs") };
    assert!(step.starts_with("schedule as SCHED_DEADLINE nice 0 priority 0 flags 0x0 runtime 20000"), "{step}");
    assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_personality_and_a_memory_policy_are_set() {
    if cannot_run() {
        return;
    }
    let with = |line: &str, key: &str, value: serde_json::Value| {
        let spec = change_linux(shell(line), |linux| {
            let mut json = serde_json::to_value(&*linux).unwrap();
            json[key] = value;
            *linux = serde_json::from_value(json).unwrap();
        });
        Ground::new().run_spec(&spec).unwrap().output
    };
    let machine = if cfg!(target_arch = "x86_64") { "i686\n" } else { "armv8l\n" };
    assert_eq!(with("busybox uname -m", "personality", json!({"domain": "LINUX32"})), machine);
    let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    if std::path::Path::new("/proc/self/numa_maps").exists() {
        let maps = with("busybox head -n 1 /proc/self/numa_maps", "memoryPolicy", policy);
        assert!(maps.contains(" bind=static:0 "), "{maps}");
    } else {
        println!("skipped in part: this kernel knows no NUMA");
    }
}

#[test]
fn a_limit_that_cannot_be_raised_is_named_with_its_values() {
    if cannot_run() {
        return;
    }
    // More than fs.nr_open, which no right lifts.
    let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 1_u64 << 40}]);
    let spec = change_process(shell("true"), |process| {
        process.set_rlimits(Some(serde_json::from_value(limit).unwrap()));
    });
    let error = Ground::new().run_spec(&spec).map(drop).unwrap_err().to_string();
    assert!(error.ends_with("limit RLIMIT_NOFILE to 5 (hard 1099511627776)"), "{error}");
}

#[test]
fn a_label_without_its_security_module_is_refused() {
    let ground = Ground::new();
    let refused = |change: fn(&mut oci::Process)| {
        ground.plan(&change_process(shell("true"), change)).map(drop).unwrap_err().to_string()
    };
    if !std::path::Path::new("/sys/module/apparmor").exists() {
        let told = refused(|process| {
            process.set_apparmor_profile(Some("strict".into()));
        });
        assert_eq!(told, "process.apparmorProfile: \"strict\" cannot be applied: this kernel runs no AppArmor");
        let unconfined = change_process(shell("true"), |process| {
            process.set_apparmor_profile(Some("unconfined".into())).set_selinux_label(Some(String::new()));
        });
        assert!(ground.plan(&unconfined).is_ok());
    }
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let told = refused(|process| {
            process.set_selinux_label(Some("a:b:c:s0".into()));
        });
        assert_eq!(told, "process.selinuxLabel: \"a:b:c:s0\" cannot be applied: this kernel runs no SELinux policy");
    }
}
