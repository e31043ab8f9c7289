//! Pull and unpack of a six-layer image from Debian's registry on loopback: skeg-images as the agent uses it, podman,
//! containerd, `skopeo copy` (which does not unpack) and a pipeline of plain tools, interleaved, each on a fresh disk.
//!
//! Everything happens in a network and a mount namespace of its own. A time is that of a whole process, from its start
//! to its end; memory is the largest resident size that any process of it had.

mod disk;
mod image;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skeg_images::{Client, Endpoint, Limits, Platform, Reference, Sources, Store};

use super::Done;
use super::report::Figure;
use crate::process::capture;
use crate::ui::Ui;
use crate::{build, interrupt, needs, root};
use disk::Disk;
use image::{Form, Image};

/// Rounds that are measured; medians are shown.
const ROUNDS: usize = 3;
/// At most this part of the faster peer's time: gzip, zstd.
const GOALS: [f64; 2] = [0.6, 0.5];
const GOAL_MIB: f64 = 48.0;
/// Bytes written to the disk, by the unpacked and the compressed bytes together.
const GOAL_WRITTEN: f64 = 1.1;
const ADDRESS: &str = "127.0.0.1:5000";
/// Set for the static release build that measures, in its namespaces.
const RESIDENT: &str = "SKEG_BENCH_PULL";
/// Brings the loopback up and hides what crun-like tools refuse, then becomes the bench.
const ENTER: &str = "ip link set lo up && exec \"$@\"";

/// Who pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Puller {
    Skeg,
    Podman,
    Containerd,
    Skopeo,
    Floor,
}

impl Puller {
    const ALL: [Puller; 5] = [Puller::Skeg, Puller::Podman, Puller::Containerd, Puller::Skopeo, Puller::Floor];

    fn name(self) -> &'static str {
        match self {
            Puller::Skeg => "skeg",
            Puller::Podman => "podman pull",
            Puller::Containerd => "ctr images pull",
            Puller::Skopeo => "skopeo copy (not unpacked)",
            Puller::Floor => "curl | sha256sum | decompress | tar",
        }
    }
}

/// What one pull took.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    seconds: f64,
    mebibytes: f64,
    written: f64,
}

/// Measures; a build that is not for speed builds one that is, and becomes it.
pub(super) fn run(ui: &mut Ui, json: bool) -> Result<Done> {
    if !needs::is_root() {
        bail!("this bench mounts disks and needs root: sudo env \"PATH=$PATH\" cargo xtask bench pull");
    }
    if std::env::var_os(RESIDENT).is_some() {
        return measure(ui).map(Done::Figures);
    }
    let target = build::host_target();
    ui.step("Installs what is missing");
    needs::packages(ui, &[needs::BUILD, needs::PULLERS])?;
    needs::targets(ui, &[&target])?;
    ui.done("all there");
    ui.step("Builds the bench as the agent is built: static, release");
    build::release(ui, &target, &["xtask"])?;
    ui.done("built");
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
    command.arg(build::binary(&target, "xtask")).args(["bench", "pull"]).args(json.then_some("--json"));
    let status = command.env(RESIDENT, "1").status().context("unshare")?;
    Ok(Done::Elsewhere(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// One pull of ours in a process of its own: by the store that the agent uses, on the kind of runtime that it has.
pub(crate) fn ours(store: &Path, reference: &str) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    runtime.block_on(async {
        let reference: Reference = reference.parse()?;
        let client = Client::new(Endpoint::for_registry(reference.registry(), true)?);
        let sources = Sources::one(client, reference.repository());
        let digest = sources.resolve(reference.tag().unwrap_or("latest")).await?;
        let store = Store::open(store, Limits::default())?;
        store.pull(&sources, &digest, &Platform::host(), &|_| {}).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// A server of the bench; ended when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM) {
            eprintln!("clean-up: {error}");
        }
        let _ = self.0.wait();
    }
}

impl Server {
    /// Starts a server and waits until it says on its standard error that it is ready.
    fn start(command: &mut Command, ready: &str) -> Result<Server> {
        let name = command.get_program().to_owned();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("a server")?;
        let lines = BufReader::new(child.stderr.take().context("stderr was piped")?).lines();
        let server = Server(child);
        let mut lines = lines.map_while(Result::ok);
        if !lines.by_ref().any(|line| line.contains(ready)) {
            bail!("{} ended before it was ready", name.display());
        }
        // The pipe is read to its end, so that the server never waits for it.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }

    /// Tells the largest resident size so far, in MiB.
    fn peak(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

fn registry(folder: &Path) -> Result<Server> {
    let config = folder.join("registry.yml");
    let data = folder.join("registry");
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {ADDRESS}}}\n",
        data.display()
    );
    fs::write(&config, text)?;
    Server::start(Command::new("docker-registry").arg("serve").arg(&config), "listening on")
}

fn measure(ui: &mut Ui) -> Result<Vec<Figure>> {
    ui.step("Builds the image, where an earlier run has not");
    let cache = root().join("target/skeg-cache/bench-pull");
    let image = image::build(&cache)?;
    ui.done(&format!("{} MB in {} layers", image.unpacked / 1_000_000, image.layers[0].len()));
    // In memory: the machine's disk must not take part.
    let place = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
    let place = place.map_or_else(std::env::temp_dir, Path::to_owned);
    let folder = tempfile::Builder::new().prefix("skeg-bench-").tempdir_in(place).context("temp folder")?;
    let _registry = registry(folder.path())?;
    ui.step("Pushes it to a registry on loopback");
    for form in Form::ALL {
        let source = format!("oci:{}:1", cache.join(form.name()).display());
        let target = format!("docker://{}", reference(form));
        // Otherwise skopeo knows that the registry has the same layers as gzip, and lists those in the zstd image.
        let options = ["--quiet", "--preserve-digests", "--dest-tls-verify=false"];
        capture(Command::new("skopeo").arg("copy").args(options).args([&source, &target]))?;
    }
    ui.done("pushed");
    let mut taken = vec![[const { Vec::new() }; 5]; 2];
    ui.step(&format!("Pulls {ROUNDS} times: skeg, podman, containerd, skopeo, plain tools; gzip, zstd"));
    for round in 0..ROUNDS {
        for (by_form, form) in taken.iter_mut().zip(Form::ALL) {
            for (by_puller, puller) in by_form.iter_mut().zip(Puller::ALL) {
                interrupt::check()?;
                ui.detail(&format!("round {} of {ROUNDS}, {}, {}", round + 1, form.name(), puller.name()));
                let one = pull(folder.path(), puller, form, &image);
                by_puller.push(one.with_context(|| format!("{}, {}", puller.name(), form.name()))?);
            }
        }
    }
    ui.done("measured");
    Ok(taken.iter().enumerate().flat_map(|(index, by_puller)| figures(&image, index, by_puller)).collect())
}

fn reference(form: Form) -> String {
    format!("{ADDRESS}/bench/{}:1", form.name())
}

/// One pull on a fresh disk.
fn pull(folder: &Path, puller: Puller, form: Form, image: &Image) -> Result<Taken> {
    let disk = Disk::mount(folder)?;
    let (at, reference) = (|name: &str| disk.path.join(name), reference(form));
    let mut daemon = None;
    let mut words: Vec<String> = match puller {
        Puller::Skeg => vec![std::env::current_exe()?.display().to_string(), "bench-pull".to_owned()],
        Puller::Podman => vec!["podman".to_owned(), format!("--root={}", at("root").display())],
        Puller::Containerd => {
            let config = folder.join("containerd.toml");
            let text = format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
                at("root"),
                folder.join("state"),
                folder.join("containerd.sock")
            );
            fs::write(&config, text)?;
            let mut command = Command::new("containerd");
            daemon = Some(Server::start(command.arg("--config").arg(config), "containerd successfully booted")?);
            vec!["ctr".to_owned(), format!("--address={}", folder.join("containerd.sock").display())]
        }
        Puller::Skopeo => ["skopeo", "copy", "--quiet", "--src-tls-verify=false"].map(str::to_owned).to_vec(),
        Puller::Floor => vec!["bash".to_owned(), "-c".to_owned(), floor(&disk.path, form, image)],
    };
    match puller {
        Puller::Skeg => words.extend([at("store").display().to_string(), reference]),
        Puller::Podman => {
            words.push(format!("--runroot={}", at("run").display()));
            words.extend(["--storage-driver=overlay", "pull", "--quiet", "--tls-verify=false"].map(str::to_owned));
            words.push(reference);
        }
        Puller::Containerd => words.extend(["images", "pull", "--plain-http", &reference].map(str::to_owned)),
        Puller::Skopeo => words.extend([format!("docker://{reference}"), format!("oci:{}:1", at("oci").display())]),
        Puller::Floor => {}
    }
    let before = disk.written()?;
    let (seconds, peak) = timed(folder, &words)?;
    let written = (disk.written()? - before) as f64;
    let mebibytes = peak.max(daemon.as_ref().map_or(Ok(0.0), Server::peak)?);
    Ok(Taken { seconds, mebibytes, written })
}

/// Runs a command; gives its seconds and its largest resident size in MiB.
fn timed(folder: &Path, words: &[String]) -> Result<(f64, f64)> {
    let report = folder.join("time");
    let mut command = Command::new("/usr/bin/time");
    command.args(["--format=%M", "--output"]).arg(&report).args(words).env_remove(RESIDENT);
    let began = Instant::now();
    capture(&mut command)?;
    let time: Duration = began.elapsed();
    let kibibytes: f64 = fs::read_to_string(&report)?.trim().parse().context("what /usr/bin/time says")?;
    Ok((time.as_secs_f64(), kibibytes / 1024.0))
}

/// What no puller with these tools can undercut by much: each layer through a pipe, one after the other.
fn floor(disk: &Path, form: Form, image: &Image) -> String {
    let decompress = match form {
        Form::Gzip => "gzip -dc",
        Form::Zstd => "zstd -dc",
    };
    let layers = &image.layers[usize::from(form == Form::Zstd)];
    let one = |(index, digest): (usize, &String)| {
        let folder = disk.join(index.to_string());
        let url = format!("http://{ADDRESS}/v2/bench/{}/blobs/{digest}", form.name());
        format!(
            "mkdir {folder} && curl -sf {url} | tee >(sha256sum >/dev/null) | {decompress} | tar -xf - -C {folder}\n",
            folder = folder.display()
        )
    };
    format!("set -e -o pipefail\n{}", layers.iter().enumerate().map(one).collect::<String>())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn figures(image: &Image, index: usize, taken: &[Vec<Taken>; 5]) -> Vec<Figure> {
    let form = Form::ALL[index].name();
    let seconds = taken.each_ref().map(|taken| median(taken.iter().map(|taken| taken.seconds)));
    let peaks = taken.each_ref().map(|taken| taken.iter().map(|taken| taken.mebibytes).fold(0.0, f64::max));
    let all = (image.unpacked + image.compressed[index]) as f64;
    let written = taken.each_ref().map(|taken| median(taken.iter().map(|taken| taken.written)) / all);
    let [skeg, podman, containerd, _, floor] = seconds;
    let mut figures = vec![
        Figure::at_most(
            format!("{form}: skeg / the faster of podman and ctr"),
            skeg / podman.min(containerd),
            "x",
            GOALS[index],
        ),
        Figure::plain(format!("{form}: skeg / plain tools in a pipe"), skeg / floor, "x"),
        Figure::at_most(format!("{form}: skeg, peak RSS"), peaks[0], "MiB", GOAL_MIB),
        Figure::at_most(format!("{form}: skeg, written / (unpacked + compressed)"), written[0], "x", GOAL_WRITTEN),
    ];
    for (index, puller) in Puller::ALL.into_iter().enumerate() {
        figures.push(Figure::plain(format!("{form}: {}", puller.name()), seconds[index], "s"));
    }
    for (index, puller) in Puller::ALL.into_iter().enumerate().take(3).skip(1) {
        figures.push(Figure::plain(format!("{form}: {}, peak RSS", puller.name()), peaks[index], "MiB"));
        figures.push(Figure::plain(
            format!("{form}: {}, written / (unpacked + compressed)", puller.name()),
            written[index],
            "x",
        ));
    }
    figures.push(Figure::plain(format!("{form}: compressed layers"), image.compressed[index] as f64 / 1e6, "MB"));
    figures.push(Figure::plain(format!("{form}: unpacked"), image.unpacked as f64 / 1e6, "MB"));
    figures
}
