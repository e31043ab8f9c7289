//! Init as it runs: a real process tree below a real subreaper, with an agent made for the test.
//!
//! Init is this test program started again. Its agent is a shell script in a temporary folder, which starts the
//! test program a third time, as [`scripted_agent`].

use std::cell::RefCell;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Signal, kill_process, test_kill_process};

use super::*;
use crate::hold::Holder;

const INIT: &str = "SKEG_TEST_INIT";
const AGENT: &str = "SKEG_TEST_AGENT";

/// Not a test by itself: init, in a thread whose process has the signals blocked.
#[test]
fn init_to_be_driven() {
    let Some(folder) = std::env::var_os(INIT) else { return };
    let folder = Path::new(&folder);
    run_with(&folder.join("skegd.toml"), folder.join("skegd")).unwrap();
}

/// Not a test by itself: writes what it gets from init and does what the folder's `orders` say, line by line.
#[test]
fn scripted_agent() {
    let Some(folder) = std::env::var_os(AGENT) else { return };
    take_signals_back().unwrap();
    let folder = PathBuf::from(folder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (holder, held) = Holder::from_env().unwrap();
        let mut report = format!("started {}\n", held.len());
        for item in held {
            report += &format!("{} {:?}\n", item.key, item.exited.map(|exited| exited.exit));
            if let Some(pipe) = item.fds.into_iter().next() {
                writeln!(std::fs::File::from(pipe), "{}", item.key).unwrap();
            }
        }
        say(&folder, &report);
        let orders = std::fs::read_to_string(folder.join("orders")).unwrap();
        for order in orders.lines() {
            match order.split_once(' ').unwrap_or((order, "")) {
                ("hold", command) => {
                    let pipe = std::fs::OpenOptions::new().append(true).open(folder.join("out")).unwrap();
                    // Becomes init's child when the shell has left, as a container is from the start.
                    let shell = Command::new("sh")
                        .arg("-c")
                        .arg(format!("( {command} ) > /dev/null 2>&1 & echo $!"))
                        .output()
                        .unwrap();
                    let pid = String::from_utf8(shell.stdout).unwrap().trim().parse().unwrap();
                    holder.hold(command, Some(pid), &[pipe.as_fd()], b"").await.unwrap();
                    say(&folder, &format!("holding {pid}\n"));
                }
                ("exit", _) => {
                    let exited = holder.next_exit().await.unwrap();
                    say(&folder, &format!("exit {} {:?}\n", exited.key, exited.exit));
                }
                ("forget", key) => {
                    holder.forget(key).await.unwrap();
                    say(&folder, "forgotten\n");
                }
                _ => panic!("unknown order {order}"),
            }
        }
        // Until init ends this agent.
        assert!(holder.next_exit().await.is_err());
    });
}

fn say(folder: &Path, text: &str) {
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(folder.join("said"))
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}

struct Stage {
    folder: tempfile::TempDir,
    init: Child,
    /// Lines of the agents that a test has waited for.
    heard: RefCell<Vec<usize>>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Stopped, not killed: it takes everything that it has started with it. Stopped already is fine.
        let _ = kill_process(Pid::from_child(&self.init), Signal::TERM);
        let _ = self.init.wait();
    }
}

impl Stage {
    fn new(orders: &str) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let test = std::env::current_exe().unwrap();
        std::fs::write(path.join("skegd.toml"), "").unwrap();
        std::fs::write(path.join("out"), "").unwrap();
        std::fs::write(path.join("orders"), orders).unwrap();
        let script = format!(
            "#!/bin/sh\n[ \"$1 $2 $3\" = \"agent --config {folder}/skegd.toml\" ] || exit 9\n\
             echo $$ > {folder}/pid.new; mv {folder}/pid.new {folder}/pid\n\
             unset {INIT}; export {AGENT}={folder}\n\
             exec {test} init::tests::scripted_agent --exact --test-threads=1 > {folder}/agent.log 2>&1\n",
            folder = path.display(),
            test = test.display(),
        );
        std::fs::write(path.join("skegd"), script).unwrap();
        std::fs::set_permissions(path.join("skegd"), std::fs::Permissions::from_mode(0o755)).unwrap();
        // env(1) blocks the signals for the whole process: the test harness has threads before init can.
        let init = Command::new("env")
            .args(["--block-signal=CHLD", "--block-signal=TERM", "--block-signal=INT", "--block-signal=HUP"])
            .arg(&test)
            .args(["init::tests::init_to_be_driven", "--exact", "--test-threads=1", "--nocapture"])
            .env(INIT, path)
            .spawn()
            .unwrap();
        Stage { folder, init, heard: RefCell::default() }
    }

    fn orders(&self, orders: &str) {
        std::fs::write(self.folder.path().join("orders"), orders).unwrap();
    }

    /// Waits for a line of an agent that was not heard yet, and gives its rest.
    fn hear(&self, beginning: &str) -> String {
        loop {
            let said = std::fs::read_to_string(self.folder.path().join("said")).unwrap_or_default();
            let mut heard = self.heard.borrow_mut();
            let lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).enumerate();
            let mut new = lines.filter(|(number, _)| !heard.contains(number));
            if let Some((number, rest)) = new.find_map(|(number, line)| Some((number, line.strip_prefix(beginning)?))) {
                heard.push(number);
                return rest.into();
            }
            drop(heard);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn agent(&self) -> Pid {
        let text = std::fs::read_to_string(self.folder.path().join("pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    fn signal_init(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.init), signal).unwrap();
    }
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

#[test]
fn a_killed_agent_is_started_again_and_gets_descriptors_and_exits_back() {
    let stage = Stage::new("hold sleep 1000\nhold sleep 1001\n");
    assert_eq!(stage.hear("started "), "0");
    let sleepers = [pid(&stage.hear("holding ")), pid(&stage.hear("holding "))];
    let agent = stage.agent();
    stage.orders("exit\nforget sleep 1000\n");
    kill_process(agent, Signal::KILL).unwrap();

    assert_eq!(stage.hear("started "), "2");
    assert_eq!(stage.hear("sleep 1000 "), "None");
    assert_ne!(stage.agent(), agent);
    kill_process(sleepers[0], Signal::KILL).unwrap();
    assert_eq!(stage.hear("exit sleep 1000 "), "Signal(9)");
    stage.hear("forgotten");
    assert!(std::fs::read_to_string(stage.folder.path().join("out")).unwrap().contains("sleep 1000\n"));

    // Nobody is connected when the second one ends: its exit waits for the next agent.
    stage.orders("");
    kill_process(stage.agent(), Signal::KILL).unwrap();
    kill_process(sleepers[1], Signal::TERM).unwrap();
    assert_eq!(stage.hear("started "), "1");
    let told = stage.hear("sleep 1001 ");
    // Its end may come before or after the agent's; both ways it is known.
    assert!(told == "Some(Signal(15))" || told == "None", "{told}");
}

#[test]
fn hup_starts_the_program_that_lies_on_disk_now() {
    let stage = Stage::new("hold sleep 1000\n");
    let sleeper = pid(&stage.hear("holding "));
    let program = stage.folder.path().join("skegd");
    let script = std::fs::read_to_string(&program).unwrap();
    let new = script.replacen("\n", &format!("\necho upgraded >> {}/said\n", stage.folder.path().display()), 1);
    std::fs::write(stage.folder.path().join("skegd.new"), new).unwrap();
    std::fs::set_permissions(stage.folder.path().join("skegd.new"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(stage.folder.path().join("skegd.new"), &program).unwrap();
    stage.orders("");
    stage.signal_init(Signal::HUP);
    stage.hear("upgraded");
    assert_eq!(stage.hear("sleep 1000 "), "None");
    test_kill_process(sleeper).expect("a container survives an upgrade");
}

#[test]
fn term_leaves_nothing_behind() {
    // The second one ignores TERM, and its child is known to nobody.
    let mut stage = Stage::new("hold sleep 1000\nhold trap '' TERM; sleep 1001 & sleep 1002\n");
    let held = [pid(&stage.hear("holding ")), pid(&stage.hear("holding "))];
    let agent = stage.agent();
    stage.signal_init(Signal::TERM);
    // Once more skips the wait for those that ignore the first; at the last step it changes nothing.
    while stage.init.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(200));
        if stage.init.try_wait().unwrap().is_none() {
            stage.signal_init(Signal::TERM);
        }
    }
    for pid in held.into_iter().chain([agent]) {
        assert!(test_kill_process(pid).is_err(), "{pid:?} is left");
    }
    assert!(stage.init.wait().unwrap().success());
}

#[test]
fn an_agent_that_fails_at_once_is_started_again_and_again() {
    let stage = Stage::new("nonsense\n");
    for _ in 0..4 {
        assert_eq!(stage.hear("started "), "0");
    }
}

#[test]
fn the_agent_hears_signals_although_init_has_them_blocked() {
    let signals = SigSet::all();
    let blocked = std::thread::spawn(move || {
        signals.thread_block().unwrap();
        take_signals_back().unwrap();
        SigSet::thread_get_mask().unwrap()
    });
    assert_eq!(blocked.join().unwrap().iter().count(), 0);
}
