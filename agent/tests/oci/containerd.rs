//! Debian's containerd with this runtime: its shim for runc calls it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::bundle::{SKEGD, err, fill, out};
use super::needs::cannot_run;

/// The daemon and its client, in namespaces that end with it: folder, containerd namespace. Each act tells its exit code.
const SCRIPT: &str = r#"
cd "$1" && ip link set lo up && mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd || exit 1
containerd --config containerd.toml 2>log &
client() { ctr --address "$PWD/sock" --namespace "$namespace" "$@"; }
namespace=$2 patience=200
until client version >/dev/null 2>&1; do
    patience=$((patience - 1)); test $patience -gt 0 || { cat log >&2; exit 1; }; sleep 0.1
done
run="client run --rootfs --runc-binary $PWD/skeg-oci --runc-root $PWD/states"
state() { client task ls | grep one | tr -s ' \t' ' ' | cut -d' ' -f3; }
$run --rm "$PWD/rootfs" hello echo hello
$run --rm "$PWD/rootfs" seven sh -c 'exit 7'; echo run $?
$run --rm "$PWD/rootfs" missing /no/such 2>&1 | grep -o 'cannot run command "/no/such"'
$run --detach --memory-limit 67108864 "$PWD/rootfs" one sleep 1000; echo detach $?
client task exec --exec-id more one sh -c 'ls /; exit 3'; echo exec $?
client task metrics one | grep -c '^memory.usage_in_bytes\|^memory.usage '
client task pause one; state; client task resume one; state
client task kill --signal KILL one
until test "$(state)" = STOPPED; do sleep 0.1; done
client task rm one 2>/dev/null; client container rm one; echo rm $?
ls states/"$namespace"
"#;

#[test]
fn containerd_runs_enters_pauses_and_ends_containers() {
    let there = ["/usr/bin/containerd", "/usr/bin/ctr"].iter().all(|path| Path::new(path).exists());
    if let Some(why) = cannot_run().or_else(|| (!there).then_some("containerd is missing")) {
        println!("skipped: {why} (Debian: apt-get install containerd)");
        return;
    }
    let folder = tempfile::Builder::new().prefix("skeg-containerd-").tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    symlink(SKEGD, place("skeg-oci")).unwrap();
    fill(&place("rootfs"));
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
        place("root"),
        place("state"),
        place("sock"),
    );
    std::fs::write(place("containerd.toml"), config).unwrap();
    let namespace = format!("skeg-containerd-{}", std::process::id());
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", SCRIPT, "sh"]);
    let output = command.arg(folder.path()).arg(&namespace).output().unwrap();
    // What containerd leaves of its own namespace.
    let find = ["/sys/fs/cgroup", "-depth", "-type", "d", "-name", &namespace, "-exec", "rmdir", "{}", ";"];
    Command::new("find").args(find).output().unwrap();
    let expected = "hello\nrun 7\ncannot run command \"/no/such\"\ndetach 0\nbin\ndev\nproc\nrun\nsys\nexec 3\n1\n\
                    PAUSED\nRUNNING\nrm 0\n";
    assert_eq!(out(&output), expected, "{}", err(&output));
}
