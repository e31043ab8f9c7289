//! The power of a board fails during a pull, and its agent is killed: the store always comes back, goes on, and ends
//! with the right image.
//!
//! A point is a number of bytes: written to the disk for a power cut, received from the network for the end of an
//! agent. It does not depend on the machine's speed. What was not flushed is lost by chance ([`VolatileDisk`]). A cut
//! between two flushes is among the points, for nothing is written then. The seed is printed and can be given in
//! `SKEG_SEED`; `SKEG_POWER_CUTS` is the number of cuts, `SKEG_POWER_BOARD` the board's file (`qemu-aarch64.toml`).

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use serde_json::{Value, json};
use skeg_disk::config::Network;
use skeg_qemu_tests::machine::{Machine, PATIENCE};
use skeg_qemu_tests::succeed;
use skeg_qemu_tests::volatile::{Loss, VolatileDisk};

use crate::AGENT;
use crate::site::Site;

/// The board when `SKEG_POWER_BOARD` does not say which.
const BOARD: &str = "qemu-x86_64.toml";
/// Cuts when `SKEG_POWER_CUTS` does not say how many.
const CUTS: usize = 4;
/// Layers of files that do not compress.
const LAYERS: usize = 3;
/// Files in each layer.
const FILES: usize = 24;
/// Bytes of a file.
const FILE: usize = 320 << 10;
/// Bytes of all layers.
const IMAGE: u64 = (LAYERS * FILES * FILE) as u64;
/// Says on the console that it killed the agent.
const KILLED: &str = "the agent was killed";
/// What the pod does: reads all that the layers brought, and compares.
const COMPARE: &str = "cd /data && sha256sum -c -s sums";

#[test]
fn a_board_whose_power_fails_during_a_pull_comes_back_and_ends_with_the_right_image() {
    if let Some(missing) = skeg_qemu_tests::missing_program() {
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        println!("skipped: {missing}");
        return;
    }
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seed = given("SKEG_SEED").unwrap_or_else(|| fastrand::u64(..));
    let cuts = given("SKEG_POWER_CUTS").map_or(CUTS, |cuts| cuts as usize);
    let board = std::env::var("SKEG_POWER_BOARD").unwrap_or_else(|_| BOARD.to_owned());
    println!("SKEG_SEED={seed} SKEG_POWER_BOARD={board}");
    if let Err(error) = run(&board, cuts, Rng::with_seed(seed)) {
        panic!("SKEG_SEED={seed} SKEG_POWER_BOARD={board}: {error:#}");
    }
}

/// What happened so far.
#[derive(Debug, Default)]
struct Tally {
    cuts: usize,
    killed_agents: usize,
    whole_images: usize,
    sectors: Loss,
}

fn run(board: &str, cuts: usize, mut random: Rng) -> Result<()> {
    let site = Site::new(board, "kiln", Network::Dhcp)?;
    let folders = (0..LAYERS).map(|layer| folder(&site, layer, &mut random)).collect::<Result<Vec<_>>>()?;
    let digest = site.push_with_layers("large:1", &folders)?;
    enrol(&site)?;

    let mut tally = Tally::default();
    while tally.cuts < cuts {
        succeed(Command::new("cp").arg("--sparse=always").arg(site.path("enrolled")).arg(site.disk()))?;
        let name = format!("reader-{}", tally.whole_images);
        site.controller.apply(&pod(&name))?;
        while !boot(&site, &name, &digest, cuts, &mut tally, &mut random)? {}
        site.check_disk()?;
        site.controller.skeg(&["delete", "pod", &name])?;
    }
    println!("{tally:?}");
    ensure!(tally.sectors.lost > 0, "no cut lost anything: the disk was flushed all the time");
    Ok(())
}

/// Makes the files of one layer; the last has the sums of all.
fn folder(site: &Site, layer: usize, random: &mut Rng) -> Result<PathBuf> {
    let folder = site.path(&format!("layer-{layer}"));
    let data = folder.join("data").join(layer.to_string());
    fs::create_dir_all(&data)?;
    for file in 0..FILES {
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(FILE).collect();
        fs::write(data.join(file.to_string()), bytes)?;
    }
    if layer + 1 == LAYERS {
        let mut all = Command::new("sh");
        all.args(["-c", "for layer in layer-*; do (cd $layer/data && sha256sum */[0-9]*); done"]);
        fs::write(folder.join("data/sums"), succeed(all.current_dir(site.path("")))?)?;
    }
    Ok(folder)
}

/// Makes the board known to its controller, and keeps a copy of its disk: every pull begins with that.
fn enrol(site: &Site) -> Result<()> {
    let machine = site.switch_on(true, "utc")?;
    let ready = |nodes: &str| nodes.lines().any(|line| line.starts_with("kiln ") && line.contains(" Ready"));
    let known = site.controller.wait_for(&["get", "nodes"], ready);
    known.with_context(|| site.evidence("enrolment", &machine))?;
    machine.switch_off()?;
    fs::rename(site.disk(), site.path("enrolled"))?;
    Ok(())
}

/// Switches the board on, until the power fails or the image is whole, which is then checked; tells which.
fn boot(site: &Site, pod: &str, digest: &str, cuts: usize, tally: &mut Tally, random: &mut Rng) -> Result<bool> {
    // More than a pull writes, so that some come to their end; what they say to be there must be there.
    let point = if tally.cuts < cuts { random.u64(..IMAGE * 3 / 2) } else { u64::MAX };
    let disk = VolatileDisk::serve(&site.disk(), &site.path("disk-socket"), point)?;
    let mut machine = site.switch_on_with(&disk.address(), true, "utc")?;
    let received = random.u64(..IMAGE);
    kill_agent_at(received, &mut machine, &disk)?;
    let when = format!("cut {} at {point} bytes, agent killed at {received}", tally.cuts + 1);
    let whole = wait(site, pod, &disk).with_context(|| site.evidence(&when, &machine))?;
    if whole {
        check(&mut machine, digest).with_context(|| site.evidence(&when, &machine))?;
        tally.whole_images += 1;
    } else {
        tally.cuts += 1;
    }
    tally.killed_agents += machine.count_on_console(KILLED);
    machine.cut_power()?;
    let loss = disk.settle(random)?;
    println!("{when}: {}, {loss:?}", if whole { "whole" } else { "cut" });
    tally.sectors.lost += loss.lost;
    tally.sectors.kept += loss.kept;
    Ok(whole)
}

/// Leaves a shell in the guest that kills the agent once so many bytes were received.
fn kill_agent_at(received: u64, machine: &mut Machine, disk: &VolatileDisk) -> Result<()> {
    let counter = "/sys/class/net/eth0/statistics/rx_bytes";
    let shell = format!(
        "test -e {counter} && test -n \"$({AGENT})\" || exit 1; \
         (while [ $(cat {counter}) -lt {received} ]; do usleep 20000; done; \
         kill -9 $({AGENT}) && echo '<3>{KILLED}' >/dev/kmsg) >/dev/null 2>&1 &"
    );
    let begin = Instant::now();
    // The power may fail before there is an agent.
    while !disk.failed() && machine.run(&shell)?.code != 0 {
        ensure!(begin.elapsed() < PATIENCE, "no agent was started");
    }
    Ok(())
}

/// Waits until the pod has read the image, or the power fails. The controller is asked: a guest without a disk may not
/// answer.
fn wait(site: &Site, pod: &str, disk: &VolatileDisk) -> Result<bool> {
    let begin = Instant::now();
    while !disk.failed() {
        let status = &site.controller.pod(pod)?["status"];
        match status["phase"].as_str() {
            Some("Succeeded") => return Ok(true),
            Some("Failed") => bail!("what the pod reads is not what was pushed: {status:#}"),
            _ => ensure!(begin.elapsed() < PATIENCE, "the pod never ran: {status:#}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

/// The store finds nothing wrong with itself, and has the image under the digest that was pushed.
fn check(machine: &mut Machine, digest: &str) -> Result<()> {
    machine.wait_for("/init image ls")?;
    println!("{}", machine.succeed("/init image verify")?);
    let listed = machine.succeed("/init image ls -o json")?;
    ensure!(listed.contains(digest), "{digest} is not listed:\n{listed}");
    Ok(())
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{ "name": "main", "image": "large:1", "command": ["sh", "-c", COMPARE] }],
        },
    })
}
