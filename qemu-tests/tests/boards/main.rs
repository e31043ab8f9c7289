//! Both architectures from power-on: `skegd` as the first process of a Debian kernel, with a controller on this
//! machine. Two boots a board, and much in each, for a boot is what takes long. The boards run side by side.

mod power;
mod site;

use std::net::Ipv4Addr;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use site::Site;
use skeg_disk::config::Network;
use skeg_qemu_tests::controller::Controller;
use skeg_qemu_tests::machine::Machine;

/// A container that says what bounds it, and then counts for ever.
const COUNT: &str = "cd /sys/fs/cgroup && cat memory.max cpu.max pids.max; uname -m; \
                     i=0; while :; do i=$((i+1)); echo line $i; usleep 100000; done";
/// A container that takes memory until it is killed.
const GREEDY: &str = "x=x; while :; do x=$x$x; done";
/// Prints the process id of the agent, which is a child of the first process.
const AGENT: &str = r"for p in $(cat /proc/1/task/1/children); do cat /proc/$p/cmdline 2>/dev/null | tr '\0' ' ' | grep -q '^[^ ]* agent ' && echo $p; done; true";

#[test]
fn an_x86_board_with_dhcp_keeps_its_pods_through_a_killed_agent_and_a_clean_restart() {
    test("qemu-x86_64.toml", Network::Dhcp, "10.0.2.15/24", true);
}

#[test]
fn an_arm_board_with_a_fixed_address_keeps_its_pods_through_a_killed_agent_and_a_power_cut() {
    let address = Ipv4Addr::new(10, 0, 2, 77);
    let gateway = Some(Ipv4Addr::new(10, 0, 2, 2));
    let network = Network::Static { interface: "eth0".to_owned(), address, prefix: 24, gateway };
    test("qemu-aarch64.toml", network, "10.0.2.77/24", false);
}

fn test(board: &str, network: Network, address: &str, clean: bool) {
    if let Some(missing) = skeg_qemu_tests::missing_program() {
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        println!("skipped: {missing}");
        return;
    }
    if let Err(error) = boots(board, network, address, clean) {
        panic!("{board}: {error:#}");
    }
}

fn boots(board: &str, network: Network, address: &str, clean: bool) -> Result<()> {
    let site = Site::new(board, "kiln", network)?;
    let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    site.push_busybox("tools:1")?;

    let mut machine = site.switch_on(true, "utc")?;
    let done = first_boot(&site, &mut machine, address);
    done.with_context(|| site.evidence("first boot", &machine))?;
    println!("{board}: first boot, {:.1?}", machine.age());
    if clean {
        machine.switch_off()?;
    } else {
        machine.cut_power()?;
    }
    site.check_disk()?;

    let mut machine = site.switch_on(false, "1970-01-01")?;
    let done = second_boot(&mut machine, clean, begun);
    done.with_context(|| site.evidence("second boot", &machine))?;
    println!("{board}: second boot, {:.1?}", machine.age());
    machine.cut_power()?;
    site.check_disk()
}

/// Enrols, runs pods within bounds, and loses the agent.
fn first_boot(site: &Site, machine: &mut Machine, address: &str) -> Result<()> {
    let controller = &site.controller;
    controller.wait_for(&["get", "nodes"], |nodes| {
        nodes.lines().any(|line| line.starts_with("kiln ") && line.contains(" Ready"))
    })?;
    let mounts = machine.succeed("cat /proc/mounts")?;
    ensure!(mounts.contains("/dev/vda /var/lib/skeg ext4"), "the state device is not mounted:\n{mounts}");
    let addresses = machine.succeed("ip -4 addr show dev eth0")?;
    ensure!(addresses.contains(address), "eth0 does not have {address}:\n{addresses}");

    let limits = json!({ "memory": "24Mi", "cpu": "500m", "skeg.dev/pids": 20 });
    controller.apply(&pod("count", COUNT, "Always", &limits))?;
    controller.apply(&pod("greedy", GREEDY, "Never", &json!({ "memory": "16Mi" })))?;
    let killed = controller.wait_for_pod("greedy", |pod| pod["status"]["phase"] == "Failed")?;
    let state = &killed["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(state["reason"] == "OOMKilled" && state["exitCode"] == 137, "greedy ended otherwise: {state}");
    for arguments in [["get", "pods"].as_slice(), &["describe", "pod", "greedy"]] {
        let text = controller.skeg(arguments)?;
        ensure!(text.contains("OOMKilled"), "skeg {arguments:?} does not say OOMKilled:\n{text}");
    }

    let before = wait_for_line(controller, 20)?;
    let architecture = site.architecture().kernel_name();
    let expected = format!("{}\n50000 100000\n20\n{architecture}\nline 1\n", 24 << 20);
    ensure!(before.starts_with(&expected), "the container shows other bounds than {expected:?}:\n{before}");
    lose_the_agent(controller, machine)
}

/// Kills the agent; nobody but the agent may notice.
fn lose_the_agent(controller: &Controller, machine: &mut Machine) -> Result<()> {
    let uid = controller.pod("count")?["metadata"]["uid"].as_str().context("a pod has a uid")?.to_owned();
    // The process that is number 1 of its namespace, and when it was started.
    let process = format!(
        "for p in $(cat /sys/fs/cgroup/skeg/{uid}/main/cgroup.procs); do \
         grep -qs 'NSpid:.*[[:space:]]1$' /proc/$p/status && echo $p $(cut -d' ' -f22 /proc/$p/stat); done; true"
    );
    let container = machine.succeed(&process)?;
    ensure!(container.split(' ').count() == 2, "not one first process in the container: {container:?}");
    let agent = machine.succeed(AGENT)?;
    ensure!(agent.parse::<u32>().is_ok(), "not one agent: {agent:?}");

    machine.succeed(&format!("kill -9 {agent}"))?;
    machine.wait_for(&format!("new=$({AGENT}); test -n \"$new\" && test \"$new\" != {agent} && /init ps"))?;

    let last = last_line(&controller.wait_for(&["logs", "count"], |_| true)?);
    let log = wait_for_line(controller, last + 10)?;
    let numbers = log.lines().filter_map(|line| line.strip_prefix("line "));
    for (index, number) in numbers.enumerate() {
        ensure!(number == (index + 1).to_string(), "line {} is missing or stands twice:\n{log}", index + 1);
    }
    let after = machine.succeed(&process)?;
    ensure!(after == container, "the container was {container} and is {after} after the agent's death");
    let status = &controller.pod("count")?["status"]["containerStatuses"][0];
    ensure!(status["restartCount"] == 0, "restarts were counted: {status}");
    Ok(())
}

/// No network, and a clock that begins in 1970: what ran before runs again, and what ended stays ended, with the reason
/// of each. The clock does not fall behind what the controller told before, `begun` at the earliest.
fn second_boot(machine: &mut Machine, clean: bool, begun: u64) -> Result<()> {
    machine.wait_for("/init ps | grep -q 'count.*Running'")?;
    let clock = machine.succeed("date +%s")?;
    ensure!(clock.parse::<u64>()? >= begun, "the clock shows {clock}, which is before {begun}");
    let interfaces = machine.succeed("ls /sys/class/net")?;
    // The pods' own bridge and cables begin with `sk`.
    let outside = interfaces.split_whitespace().find(|name| *name != "lo" && !name.starts_with("sk"));
    ensure!(outside.is_none(), "there is a network: {interfaces}");
    ensure!(interfaces.contains("skeg0"), "the pods have no network: {interfaces}");
    machine.wait_for("/init logs count | grep -q '^line 5$'")?;
    let listed = machine.succeed("/init ps")?;
    let line = |name| listed.lines().find(|line| line.contains(name)).unwrap_or_default();
    ensure!(line("greedy").contains("OOMKilled"), "how greedy ended is forgotten, or it runs again:\n{listed}");
    ensure!(clean || line("count").contains("NodeReboot"), "why count was restarted is not told:\n{listed}");
    Ok(())
}

fn pod(name: &str, script: &str, restart: &str, limits: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": "tools:1",
                "command": ["sh", "-c", script],
                "resources": { "limits": limits },
            }],
        },
    })
}

/// Waits until the counting pod has logged at least so many lines; returns its whole log.
fn wait_for_line(controller: &Controller, count: u64) -> Result<String> {
    controller.wait_for_pod("count", |pod| pod["status"]["phase"] == "Running")?;
    controller.wait_for(&["logs", "count"], |log| last_line(log) >= count)
}

/// Number of the last whole line of the counting pod's log.
fn last_line(log: &str) -> u64 {
    log.lines().rev().find_map(|line| line.strip_prefix("line ")?.parse().ok()).unwrap_or(0)
}
