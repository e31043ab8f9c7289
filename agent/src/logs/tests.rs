//! Logs against real pipes, real files and a real `kill -9`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

/// Two lines fill a log, and two parts are kept.
const LIMITS: Limits = Limits { size: 200, parts: 2, rate: u64::MAX, burst: u64::MAX };

async fn text(log: &Path, options: Options) -> String {
    let mut reader = read(log, options).await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        assert!(!piece.is_empty() && piece.len() <= 16 * 1024);
        text.extend(piece);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn both_streams_reach_the_log_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (log, intent) = (folder.path().join("logs/web/0.log"), folder.path().join("run/web.intent"));
    let (pipes, writers) = Pipes::new().unwrap();
    let scratch = Scratch::new(Limits::default()).unwrap();
    let task = Log::start(pipes, &log, &intent, &scratch).await.unwrap();
    File::from(writers.stdout).write_all(b"one\ntwo\n").unwrap();
    File::from(writers.stderr).write_all(b"no newline").unwrap();
    task.finish().await;

    let written = std::fs::read_to_string(&log).unwrap();
    assert!(written.contains("Z stdout F one\n") && written.contains("Z stdout F two\n"), "{written}");
    assert!(written.contains("Z stderr P no newline\n"), "{written}");
    let shown = text(&log, Options::default()).await;
    assert!(shown.contains("one\ntwo\n") && shown.contains("no newline"), "{shown}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&log).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn tail_and_timestamps() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("0.log");
    std::fs::write(rotated::plain(&log, 1), "T1 stdout F a\nT2 stdout F b\n").unwrap();
    std::fs::write(&log, "T3 stdout P c\nT4 stdout F d\nT5 stdout F e\n").unwrap();
    assert_eq!(text(&log, Options::default()).await, "a\nb\ncd\ne\n");
    assert_eq!(text(&log, Options { tail: Some(1), ..Options::default() }).await, "e\n");
    assert_eq!(text(&log, Options { tail: Some(0), ..Options::default() }).await, "");
    let options = Options { tail: Some(4), timestamps: true, ..Options::default() };
    assert_eq!(text(&log, options).await, "T2 b\nT3 cd\nT5 e\n");
    std::fs::write(&log, "torn\n\0\0\0").unwrap();
    assert_eq!(text(&log, Options::default()).await, "a\nb\ntorn\n");
    assert!(read(&folder.path().join("none"), Options::default()).await.is_err());
}

#[tokio::test]
async fn since_and_tail_reach_into_compressed_parts() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("0.log");
    let line = |second: u64| {
        let time = std::time::UNIX_EPOCH + Duration::from_secs(second);
        format!("{} stdout F line {second}\n", timestamp(time))
    };
    for (number, seconds) in [(1, 0..10), (2, 10..20), (3, 20..30)] {
        std::fs::write(rotated::plain(&log, number), seconds.map(line).collect::<String>()).unwrap();
    }
    std::fs::write(&log, (30..35).map(line).collect::<String>()).unwrap();
    rotated::tidy(&log, 2).unwrap();
    let shown = |from: u64| (from..35).map(|second| format!("line {second}\n")).collect::<String>();
    assert_eq!(text(&log, Options::default()).await, shown(10), "the oldest part is gone");
    for (tail, from) in [(0, 35), (1, 34), (5, 30), (6, 29), (15, 20), (16, 19), (100, 10)] {
        assert_eq!(text(&log, Options { tail: Some(tail), ..Options::default() }).await, shown(from), "tail {tail}");
    }
    let since = |second| Some(std::time::UNIX_EPOCH + Duration::from_secs(second));
    for second in [0, 10, 15, 34, 40] {
        let options = Options { since: since(second), ..Options::default() };
        assert_eq!(text(&log, options).await, shown(second.clamp(10, 35)), "since {second}");
    }
    let both = Options { since: since(33), tail: Some(5), ..Options::default() };
    assert_eq!(text(&log, both).await, shown(33));
}

/// A container that writes as fast as it can is held to its rate and loses nothing; another one goes on meanwhile.
#[tokio::test]
async fn a_flood_is_slowed_down_and_does_not_stop_others() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { rate: 256 << 10, burst: 256 << 10, ..Limits::default() };
    let scratch = Scratch::new(limits).unwrap();
    let start = async |name: &str| {
        let (pipes, writers) = Pipes::new().unwrap();
        let (log, intent) = (folder.path().join(name), folder.path().join(format!("{name}.intent")));
        (Log::start(pipes, &log, &intent, &scratch).await.unwrap(), log, writers)
    };
    let (flood, flooded, writers) = start("flood").await;
    const LINES: usize = 80_000;
    let writer = std::thread::spawn(move || {
        let mut out = File::from(writers.stdout);
        (0..LINES).for_each(|_| out.write_all(b"0123456\n").unwrap());
    });
    let (quiet, quiet_log, writers) = start("quiet").await;
    let mut reader = read(&quiet_log, Options { follow: Some(quiet.progress()), ..Options::default() }).await.unwrap();
    let mut out = File::from(writers.stdout);
    let mut turns = 0;
    while !writer.is_finished() {
        let line = format!("turn {turns}\n");
        out.write_all(line.as_bytes()).unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), line.as_bytes());
        turns += 1;
    }
    writer.join().unwrap();
    assert!(turns > 3, "the other came to {turns} turns");
    flood.finish().await;
    assert_eq!(std::fs::read_to_string(&flooded).unwrap().lines().count(), LINES, "nothing is lost");
    drop((out, writers.stderr));
    quiet.finish().await;
}

#[tokio::test]
async fn following_shows_each_line_as_it_comes_until_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (log, intent) = (folder.path().join("0.log"), folder.path().join("intent"));
    let (pipes, writers) = Pipes::new().unwrap();
    let task = Log::start(pipes, &log, &intent, &Scratch::new(Limits::default()).unwrap()).await.unwrap();
    let mut reader = read(&log, Options { follow: Some(task.progress()), ..Options::default() }).await.unwrap();
    let mut stdout = File::from(writers.stdout);
    for number in 0..3 {
        writeln!(stdout, "line {number}").unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), format!("line {number}\n").as_bytes());
    }
    drop((stdout, writers.stderr));
    assert_eq!(reader.next().await.unwrap(), None);
    task.finish().await;
}

#[tokio::test]
async fn a_reader_follows_over_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let (log, intent) = (folder.path().join("0.log"), folder.path().join("intent"));
    let scratch = Scratch::new(Limits::default()).unwrap();
    let mut buffers = scratch.buffers.lock().await;
    let (pipes, writers) = Pipes::new().unwrap();
    let (mut copier, sources) = copy::Copier::open(pipes, &log, &intent, LIMITS, &mut buffers).unwrap();
    let (progress, follow) = tokio::sync::watch::channel(0);
    let mut reader = read(&log, Options { follow: Some(follow), ..Options::default() }).await.unwrap();
    let mut stdout = File::from(writers.stdout);
    for number in 0..50 {
        let line = format!("line {number} {}\n", "x".repeat(90));
        stdout.write_all(line.as_bytes()).unwrap();
        let step = copier.step(&sources.stdout, format::Stream::Stdout, &mut buffers).unwrap();
        assert_eq!(step, copy::Step::Moved(line.len()));
        progress.send_modify(|count| *count += 1);
        assert_eq!(reader.next().await.unwrap().unwrap(), line.as_bytes());
    }
    copier.tidy();
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["0.log", "0.log.23.gz", "0.log.24.gz", "intent"], "only so many parts are kept");
}

#[tokio::test]
async fn a_full_disk_drops_and_tells_and_never_stops_the_container() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("small");
    std::fs::create_dir(&target).unwrap();
    let mounted =
        nix::mount::mount(Some("tmpfs"), &target, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=64k"));
    if let Err(error) = mounted {
        println!("skipped: mounting a tmpfs needs root: {error}");
        return;
    }
    let (log, intent) = (target.join("0.log"), folder.path().join("intent"));
    let scratch = Scratch::new(Limits::default()).unwrap();
    let mut buffers = scratch.buffers.lock().await;
    let (pipes, writers) = Pipes::new().unwrap();
    let (mut copier, sources) = copy::Copier::open(pipes, &log, &intent, Limits::default(), &mut buffers).unwrap();
    let mut stdout = File::from(writers.stdout);
    let lines = format!("{}\n", "x".repeat(99)).repeat(300);
    let mut write_and_step = |text: &str| {
        stdout.write_all(text.as_bytes()).unwrap();
        let step = copier.step(&sources.stdout, format::Stream::Stdout, &mut buffers).unwrap();
        assert_eq!(step, copy::Step::Moved(text.len()));
    };
    // The first batch fits on the disk, the second and third do not.
    (0..3).for_each(|_| write_and_step(&lines));
    assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 300, "no batch is kept in part");
    std::fs::write(&log, "").unwrap();
    write_and_step("room again\n");
    let kept = std::fs::read_to_string(&log).unwrap();
    assert!(kept.contains(" stderr F skegd: 60000 bytes of output are lost: No space left on device"), "{kept}");
    assert!(kept.ends_with(" stdout F room again\n"), "{kept}");
    drop(copier);
    nix::mount::umount(&target).unwrap();
}

const WRITER: &str = "SKEG_TEST_LOG_WRITER";

/// Not a test by itself: the process that [`no_line_is_lost_or_doubled_by_kill_9`] kills. Its pipes are its
/// descriptors 0 (a socket over which they come), its folder is in the environment.
#[test]
fn writer_to_be_killed() {
    let Some(folder) = std::env::var_os(WRITER) else { return };
    let folder = Path::new(&folder);
    let socket = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(&socket, &mut [std::io::IoSliceMut::new(&mut byte)], &mut control, flags).unwrap();
    let fds = control.drain().flat_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let pipes = Pipes::from_fds(fds).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let scratch = Scratch::new(Limits::default()).unwrap();
        let log = Log::start(pipes, &folder.join("0.log"), &folder.join("intent"), &scratch).await.unwrap();
        log.task_for_test().await;
    });
}

fn start_writer(pipes: &Pipes, folder: &Path) -> std::process::Child {
    use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let fds = pipes.fds();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(&ours, &[std::io::IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["logs::tests::writer_to_be_killed", "--exact", "--test-threads=1"])
        .env(WRITER, folder)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A small generator of its own, so that the seed that is printed repeats the run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Numbers every line, in bursts of random length, on one stream.
fn produce(pipe: OwnedFd, seed: u64, lines: u32) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut pipe = File::from(pipe);
        let mut random = Random(seed);
        let mut next = 0;
        while next < lines {
            let burst = 1 + random.below(200) as u32;
            let text: String = (next..(next + burst).min(lines)).map(|number| format!("{number}\n")).collect();
            pipe.write_all(text.as_bytes()).unwrap();
            next += burst;
        }
    })
}

/// Joins the records of one stream. The lines of the test fill more than one file.
fn stream_of(log: &Path, stream: &str) -> String {
    let mut text = String::new();
    let full = rotated::numbers(log).unwrap().into_iter().map(|number| rotated::open(log, number).unwrap().unwrap());
    let last: rotated::Part = Box::new(File::open(log).unwrap());
    for line in full.chain([last]).flat_map(|part| BufReader::new(part).lines()) {
        let line = line.unwrap();
        let record = format::parse(line.as_bytes()).unwrap_or_else(|| panic!("no record: {line:?}"));
        if record.stream == stream.as_bytes() {
            text.push_str(std::str::from_utf8(record.text).unwrap());
            if record.full {
                text.push('\n');
            }
        }
    }
    text
}

#[test]
fn no_line_is_lost_or_doubled_by_kill_9() {
    const LINES: u32 = 150_000;
    let seed = std::env::var("SKEG_TEST_SEED").map_or(0x5eed_0001, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let (pipes, writers) = Pipes::new().unwrap();
    let stdout = produce(writers.stdout, seed + 1, LINES);
    let stderr = produce(writers.stderr, seed + 2, LINES);
    let (log, intent) = (folder.path().join("0.log"), folder.path().join("intent"));
    let mut kills = 0;
    while !(stdout.is_finished() && stderr.is_finished()) {
        let before = std::fs::metadata(&log).map_or(0, |log| log.len());
        let mut child = start_writer(&pipes, folder.path());
        // Waits for progress, not for time; only the point of the kill within a batch is random.
        while std::fs::metadata(&log).map_or(0, |log| log.len()) <= before
            && !(stdout.is_finished() && stderr.is_finished())
        {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(random.below(2000)));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    stdout.join().unwrap();
    stderr.join().unwrap();
    start_writer(&pipes, folder.path()).wait().unwrap();
    println!("{kills} kills");
    assert!(kills > 3, "the writer was killed only {kills} times");
    assert!(intent.exists());
    for stream in ["stdout", "stderr"] {
        let text = stream_of(&log, stream);
        for (expected, line) in text.lines().enumerate() {
            assert_eq!(line, expected.to_string(), "{stream}, seed {seed}, {kills} kills");
        }
        assert_eq!(text.lines().count(), LINES as usize, "{stream}, seed {seed}");
    }
}
