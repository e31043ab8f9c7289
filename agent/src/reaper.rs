//! The small init of a container that asks for one: it starts the program, hands signals on to it, and reaps what others
//! leave behind. It ends with the program's exit code; the kernel then ends what is left.
//!
//! It is this program's own file, bound read-only into the container ([`PATH`]): whoever reaches it through `/proc/1/exe`
//! can't write to it (CVE-2019-5736). It opens nothing and knows nothing of pods.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Where it is in the container.
pub const PATH: &str = "/dev/init";
/// Its word of this program's command line.
pub const WORD: &str = "reap";

/// Runs a program to its end. Says the exit code: 128 + N for a death by signal N, 127 where there is no such program,
/// 126 where it can't be run.
pub fn run(command: &[OsString]) -> i32 {
    // Before the program starts, so that none is lost. It inherits the mask, so this program goes before it once more.
    let all = SigSet::all();
    if let Err(error) = all.thread_block() {
        eprintln!("init: signals can't be taken: {error}");
        return 126;
    }
    let child = match Command::new(PATH).args([WORD, "--program", "--"]).args(command).spawn() {
        Ok(child) => Pid::from_raw(i32::try_from(child.id()).unwrap_or_default()),
        Err(error) => {
            eprintln!("init: {PATH}: {error}");
            return 126;
        }
    };
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(child) {
                    return code;
                }
            }
            // It may have ended just now.
            Ok(signal) => drop(kill(child, signal)),
            Err(_) => {}
        }
    }
}

/// Becomes the program, with no signal blocked. Returns the exit code where that can't be.
pub fn become_program(command: &[OsString]) -> i32 {
    let Some((program, arguments)) = command.split_first() else { return 127 };
    if let Err(error) = SigSet::empty().thread_set_mask() {
        eprintln!("init: signals can't be given back: {error}");
        return 126;
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("init: {}: {error}", program.display());
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// Takes everybody that has ended; the program's exit code where it is among them.
fn reap(child: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => code = Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => code = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}
