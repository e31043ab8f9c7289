//! A virtual board: a QEMU process with its console and a back door into the guest.
//!
//! The back door is a shell on a second serial port that only the tests' initramfs starts. Every wait has a
//! bound. The process is killed when the value is dropped.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skeg_disk::board::{Architecture, Board};
use skeg_disk::initramfs::{Initramfs, InitramfsError};

use crate::succeed;

/// How long anything in a guest may take, with two busy cores and no KVM. Only a failure waits that long.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How many lines of the console an error shows.
const SHOWN: usize = 50;
/// What the back door says when it is open.
const OPEN: &str = "the back door is open";
/// First process of a test's board: opens the back door, then becomes the real init. It leaves nothing mounted
/// where init would mount something.
const TEST_INIT: &str = include_str!("test-init.sh");

/// What a board has plugged in.
#[derive(Debug)]
pub struct Hardware<'a> {
    /// Kernel image.
    pub kernel: &'a Path,
    /// Initramfs, made with [`with_back_door`].
    pub initramfs: &'a Path,
    /// The disk that keeps the state, as QEMU names it: the path of a raw image, or where one is served.
    pub disk: &'a str,
    /// Whether there is a network card. Its network holds this machine's loopback at 10.0.2.2.
    pub network: bool,
    /// What the clock shows at the start (`-rtc base=`): `utc` or a date.
    pub clock: &'a str,
}

/// Adds the tests' back door to an initramfs. The kernel has to be told `rdinit=/test-init`.
pub fn with_back_door(archive: &mut Initramfs, board: &Board, busybox: Vec<u8>) -> Result<(), InitramfsError> {
    archive.file("/bin/busybox", 0o755, busybox)?;
    let script = TEST_INIT.replace("@PORT@", back_door_port(board.architecture)).replace("@OPEN@", OPEN);
    archive.file("/test-init", 0o755, script.into_bytes())
}

/// Name of the guest's second serial port.
fn back_door_port(architecture: Architecture) -> &'static str {
    match architecture {
        // The second of the two that every PC has.
        Architecture::X86_64 => "ttyS1",
        // `virt` has one PL011 (ttyAMA0) only; a serial card on PCI is added.
        Architecture::Aarch64 => "ttyS0",
    }
}

/// Makes a disk image with an empty ext4 file system.
pub fn make_disk(path: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(path).and_then(|file| file.set_len(bytes)).with_context(|| format!("{}", path.display()))?;
    succeed(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(path))?;
    Ok(())
}

/// Lines that a guest printed so far.
#[derive(Default)]
struct Console {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Console {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies what comes out of `source`, line by line, until it ends.
    fn follow(self: &Arc<Self>, source: impl Read + Send + 'static) {
        let console = Arc::clone(self);
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while matches!(source.read_until(b'\n', &mut line), Ok(length) if length > 0) {
                console.lines().push(String::from_utf8_lossy(&line).trim_end().to_owned());
                console.more.notify_all();
                line.clear();
            }
        });
    }

    fn tail(&self) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

/// What a command in the guest did.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// What it printed, errors too.
    pub text: String,
}

/// A running board.
pub struct Machine {
    name: String,
    process: Child,
    console: Arc<Console>,
    back_door: BufReader<UnixStream>,
    commands: u64,
    begin: Instant,
}

impl Machine {
    /// Says which QEMU `architecture` needs.
    pub fn program(architecture: Architecture) -> &'static str {
        match architecture {
            Architecture::X86_64 => "qemu-system-x86_64",
            Architecture::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// Starts a board; `folder` takes its socket. Returns before the guest has booted.
    pub fn start(board: &Board, hardware: &Hardware<'_>, folder: &Path) -> Result<Machine> {
        let mut command = command(board, hardware);
        let socket = folder.join("back-door");
        let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        command.arg("-chardev").arg(format!("socket,id=back-door,path={}", socket.display()));
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} does not start", Machine::program(board.architecture)))?;
        let console = Arc::new(Console::default());
        if let Some(stdout) = process.stdout.take() {
            console.follow(stdout);
        }
        if let Some(stderr) = process.stderr.take() {
            console.follow(stderr);
        }
        let name = board.architecture.kernel_name().to_owned();
        let connection = accept(&listener, &mut process);
        std::fs::remove_file(&socket)?;
        match connection {
            Ok(stream) => {
                let back_door = BufReader::new(stream);
                Ok(Machine { name, process, console, back_door, commands: 0, begin: Instant::now() })
            }
            Err(error) => {
                // It may have ended by itself; either way it is gone afterwards.
                let _ = process.kill();
                let _ = process.wait();
                Err(error.context(format!("{name}: QEMU did not come up:\n{}", console.tail())))
            }
        }
    }

    /// Returns how long the board has been on.
    pub fn age(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Returns the end of what the console showed, for a failure's message.
    pub fn tail(&self) -> String {
        self.console.tail()
    }

    /// Counts the lines of the console that hold `word`.
    pub fn count_on_console(&self, word: &str) -> usize {
        self.console.lines().iter().filter(|line| line.contains(word)).count()
    }

    /// Waits until a line of the console holds `word`; returns that line.
    pub fn wait_for_console(&mut self, word: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            let ended = self.process.try_wait()?;
            let mut lines = self.console.lines();
            if let Some(line) = lines[seen..].iter().find(|line| line.contains(word)) {
                return Ok(line.clone());
            }
            seen = lines.len();
            if ended.is_none() && Instant::now() < deadline {
                // In short turns, so that QEMU's end is noticed.
                let turn = self.console.more.wait_timeout(lines, Duration::from_millis(250));
                lines = turn.unwrap_or_else(PoisonError::into_inner).0;
                drop(lines);
                continue;
            }
            drop(lines);
            return Err(self.failure(&format!("{word:?} did not show on the console (QEMU ended: {ended:?})")));
        }
    }

    /// Waits until the back door is open: the guest's kernel and first process run.
    pub fn wait_for_back_door(&mut self) -> Result<()> {
        self.read_until(|line| line == OPEN).map(|_| ())
    }

    /// Runs one line of shell as root inside the guest's root.
    pub fn run(&mut self, line: &str) -> Result<Answer> {
        assert!(!line.contains('\n'), "the back door takes one line at a time");
        self.commands += 1;
        let number = self.commands;
        let sent = writeln!(self.back_door.get_mut(), "{number} {line}");
        sent.map_err(|error| self.failure(&format!("the back door is shut: {error}")))?;
        let end = format!("#{number} ");
        let mut lines = self.read_until(|line| line.starts_with(&end)).with_context(|| format!("running {line:?}"))?;
        let last = lines.pop().unwrap_or_default();
        let code = last.trim_start_matches(&end).parse();
        let code = code.map_err(|_| self.failure(&format!("the back door ended {line:?} with {last:?}")))?;
        Ok(Answer { code, text: lines.join("\n").trim_end_matches('\n').to_owned() })
    }

    /// Runs one line of shell that has to succeed; returns what it printed.
    pub fn succeed(&mut self, line: &str) -> Result<String> {
        let answer = self.run(line)?;
        if answer.code != 0 {
            return Err(self.failure(&format!("{line:?} ended with {}:\n{}", answer.code, answer.text)));
        }
        Ok(answer.text)
    }

    /// Runs one line of shell again and again until it succeeds; returns what it printed.
    pub fn wait_for(&mut self, line: &str) -> Result<String> {
        let begin = Instant::now();
        loop {
            let answer = self.run(line)?;
            if answer.code == 0 {
                return Ok(answer.text);
            }
            if begin.elapsed() > PATIENCE {
                return Err(self.failure(&format!("{line:?} never succeeded; last:\n{}", answer.text)));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Tells the first process to switch the board off and waits until it has.
    pub fn switch_off(mut self) -> Result<()> {
        // Busybox' way to say it. No answer is waited for: the back door goes down with the board.
        let sent = writeln!(self.back_door.get_mut(), "0 poweroff");
        sent.map_err(|error| self.failure(&format!("the back door is shut: {error}")))?;
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            match self.process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failure(&format!("QEMU ended with {status}"))),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        Err(self.failure("the board did not switch itself off").context(self.tail()))
    }

    /// Pulls the plug.
    pub fn cut_power(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Reads lines from the back door up to the first that `is_last`, which is included. Each may be long in coming.
    fn read_until(&mut self, is_last: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut deadline = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.back_door.get_ref().set_read_timeout(Some(left))?;
            match self.back_door.read_until(b'\n', &mut line) {
                Ok(0) => return Err(self.failure("the back door was shut")),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(self.failure(&format!("the back door stayed silent; it last said {lines:?}")));
                }
                Err(error) => return Err(self.failure(&format!("the back door: {error}"))),
            }
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            let last = is_last(&text);
            lines.push(text);
            deadline = Instant::now() + PATIENCE;
            if last {
                return Ok(lines);
            }
        }
    }

    /// An error that says what went wrong on which board and when.
    fn failure(&self, what: &str) -> anyhow::Error {
        anyhow::anyhow!("{} after {:.1?}: {what}", self.name, self.age())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until QEMU has connected its serial port.
fn accept(listener: &UnixListener, process: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = process.try_wait()? {
            bail!("it ended with {status}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("it did not connect its serial port in {PATIENCE:?}")
}

/// The command that starts QEMU, but for the back door's socket.
fn command(board: &Board, hardware: &Hardware<'_>) -> Command {
    let mut command = Command::new(Machine::program(board.architecture));
    match board.architecture {
        Architecture::X86_64 => command.args(["-M", "q35", "-cpu", "max"]),
        // Under emulation `max` is four times slower than a processor without pointer authentication.
        Architecture::Aarch64 => command.args(["-M", "virt", "-cpu", "cortex-a53"]),
    };
    // A restart of the guest (a panic, a watchdog) ends QEMU, which the tests notice.
    command.args(["-accel", "tcg,thread=multi", "-smp", "1", "-m", "384", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-no-reboot", "-serial", "stdio"]);
    match board.architecture {
        Architecture::X86_64 => command.args(["-serial", "chardev:back-door"]),
        Architecture::Aarch64 => command.args(["-device", "pci-serial,chardev=back-door"]),
    };
    command.arg("-drive").arg(format!("if=none,id=state,format=raw,file={}", hardware.disk));
    command.args(["-device", "virtio-blk-pci,drive=state"]);
    if hardware.network {
        // No boot ROM: nobody boots from the network.
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    } else {
        command.args(["-nic", "none"]);
    }
    command.arg("-rtc").arg(format!("base={}", hardware.clock));
    command.arg("-kernel").arg(hardware.kernel).arg("-initrd").arg(hardware.initramfs);
    command.arg("-append").arg(format!("{} rdinit=/test-init", board.command_line()));
    command
}
