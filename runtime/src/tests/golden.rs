//! Plans as text, compared with files. `SKEG_GOLDEN=write cargo test -p skeg-runtime golden` writes them anew.

use super::support::{change_linux, change_process, mount, shell, with_mounts};
use crate::{Extras, HostCgroups, Plan, Reaper, Request, Root, Stdio, oci};
use std::fs::{self, File};
use std::path::Path;

const VERSION_TWO: &str = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
const VERSION_ONE: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                           33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                           34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";

fn check(name: &str, spec: &oci::Spec, root: &Root, reaper: Reaper, mounts: &str) {
    let null = || File::open("/dev/null").unwrap().into();
    let stdio = Stdio { stdin: null(), stdout: null(), stderr: null() };
    let request =
        Request { spec, root, cgroup: None, network: None, user: None, stdio, reaper, extras: Extras::default() };
    let host = HostCgroups::from_mount_table(mounts).unwrap();
    let plan = Plan::compile_on(request, Some(host)).unwrap().to_string();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("SKEG_GOLDEN").is_some() {
        fs::write(&path, &plan).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    assert_eq!(plan, golden, "{} differs", path.display());
}

fn overlay() -> Root {
    let layer = |name| format!("/store/layers/{name}").into();
    Root::Overlay { lower: vec![layer("b"), layer("a")], upper: "/pods/1/upper".into(), work: "/pods/1/work".into() }
}

#[test]
fn default_container_on_cgroup_v2() {
    let mut spec = shell("echo hello");
    spec.set_hostname(Some("kiln".into()));
    check("default-v2", &spec, &overlay(), Reaper::CallersParent, VERSION_TWO);
}

#[test]
fn a_user_s_container_with_mounts_on_cgroup_v1() {
    let spec = change_process(shell("id"), |process| {
        let user = oci::UserBuilder::default().uid(1000_u32).gid(1000_u32).additional_gids([20]);
        process.set_user(user.build().unwrap()).set_cwd("/home/me".into()).set_oom_score_adj(Some(500));
    });
    let more = vec![
        mount("/data", "bind", "/dev", "rbind,ro,rslave"),
        mount("/etc/one", "bind", "/dev/null", "bind,ro,noatime"),
        mount("/scratch", "tmpfs", "tmpfs", "nosuid,nodev,size=1m"),
    ];
    let root = Root::Folder("/root-folder".into());
    check("mounts-v1", &with_mounts(spec, more), &root, Reaper::Caller, VERSION_ONE);
}

#[test]
fn a_user_and_a_time_namespace_are_entered_before_the_child_is_born() {
    if super::support::cannot_run() {
        return;
    }
    let spec = change_linux(super::namespaces::in_user_namespace("id"), |linux| {
        let mut list = linux.namespaces().clone().unwrap();
        list.retain(|namespace| namespace.typ() != oci::LinuxNamespaceType::Network);
        for (kind, path) in
            [(oci::LinuxNamespaceType::Time, None), (oci::LinuxNamespaceType::Network, Some("/proc/self/ns/net"))]
        {
            let mut namespace = oci::LinuxNamespace::default();
            namespace.set_typ(kind).set_path(path.map(Into::into));
            list.push(namespace);
        }
        let mut offset = oci::LinuxTimeOffset::default();
        offset.set_secs(Some(-3)).set_nanosecs(Some(500));
        linux.set_namespaces(Some(list)).set_time_offsets(Some([("boottime".to_string(), offset)].into()));
    });
    check("user-v2", &spec, &Root::Folder("/root-folder".into()), Reaper::CallersParent, VERSION_TWO);
}
