//! Hostile configurations. It owns the promise that reading one and compiling its plan never panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skeg_runtime::{Extras, Plan, Reaper, Request, Root, Stdio, oci, parse_config, parse_process};
use std::fs::File;

/// Tells whether compiling only looks: user namespaces are made ahead, and namespaces by path are opened.
fn only_looks(spec: &oci::Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    namespaces.iter().all(|namespace| namespace.path().is_none() && namespace.typ() != oci::LinuxNamespaceType::User)
}

fn compile(spec: &oci::Spec) {
    let null = || File::open("/dev/null").expect("every host has it").into();
    let stdio = Stdio { stdin: null(), stdout: null(), stderr: null() };
    let root = Root::Folder("/".into());
    let (reaper, extras) = (Reaper::Caller, Extras::default());
    let request = Request { spec, root: &root, cgroup: None, network: None, user: None, stdio, reaper, extras };
    if let Ok(plan) = Plan::compile(request) {
        assert!(!plan.to_string().is_empty());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_process(bytes);
    let Ok(spec) = parse_config(bytes) else { return };
    if only_looks(&spec) {
        compile(&spec);
    }
});
