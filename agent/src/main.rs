//! `skegd`: init, agent and local commands of a device.

#![forbid(unsafe_code)]

mod agent;
mod alone;
pub mod appliance;
mod apply;
mod ask;
pub mod async_fd;
mod cgroups;
mod commands;
// Public, so that the compiler counts their items as reachable.
#[allow(dead_code)]
pub mod config;
mod convert;
mod core;
mod events;
mod eviction;
mod forward;
#[allow(dead_code)]
pub mod hold;
mod image;
pub mod init;
mod journal;
mod link;
mod local;
#[allow(dead_code)]
pub mod logs;
mod netlink;
mod network;
mod oci;
mod peer;
mod ports;
mod reaper;
mod streams;
mod trial;
mod vault;
mod volumes;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use commands::Target;
use config::Config;

/// Most threads for blocking work at a time: three may unpack layers, the others are for what must not wait for them.
const BLOCKING_THREADS: usize = 6;
/// How long a thread for blocking work waits for more of it.
const BLOCKING_LINGER: std::time::Duration = std::time::Duration::from_secs(2);

/// A container host for one board
#[derive(Debug, Parser)]
#[command(name = "skegd", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts the agent and keeps what it must not lose; the first process of a board
    Init {
        /// Configuration file
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Keeps the device as its manifest says; started by init
    Agent {
        /// Configuration file
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Lists the pods of this device
    Ps {
        #[command(flatten)]
        place: Place,
        /// Form of the output
        #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
        output: String,
    },
    /// Prints the log of a container
    Logs {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        target: Target,
        /// Goes on with what comes
        #[arg(short, long)]
        follow: bool,
        /// Only the last N lines
        #[arg(long, value_name = "N")]
        tail: Option<u32>,
        /// Only what was written since then: 30s, 5m, 2h, 7d
        #[arg(long, value_name = "TIME", value_parser = commands::seconds)]
        since: Option<u64>,
        /// Of the instance before the present one
        #[arg(short, long)]
        previous: bool,
        /// Begins each line with its time
        #[arg(long)]
        timestamps: bool,
    },
    /// Runs a command in a container and exits with its exit code
    Exec {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        target: Target,
        /// Connects standard input
        #[arg(short = 'i', long)]
        stdin: bool,
        /// Gives the command a terminal
        #[arg(short, long)]
        tty: bool,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Shows what happened on this device and why, across reboots
    Events {
        #[command(flatten)]
        place: Place,
        /// Form of the output
        #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
        output: String,
    },
    /// Shows the revisions that this device keeps and how they stand
    History {
        #[command(flatten)]
        place: Place,
    },
    #[command(flatten)]
    Alone(alone::Command),
    /// Shows and changes the images of this device
    Image {
        #[command(flatten)]
        place: Place,
        #[command(subcommand)]
        command: image::Command,
    },
    /// Shows and removes the volumes that outlive pods
    Volume {
        #[command(flatten)]
        place: Place,
        #[command(subcommand)]
        command: volumes::Command,
    },
    /// Runs containers as the OCI runtime specification says, for engines such as podman and containerd
    Oci(Box<oci::Arguments>),
    /// Runs a program as the small init of a container
    #[command(name = reaper::WORD, hide = true)]
    Reap {
        /// Becomes the program instead
        #[arg(long)]
        program: bool,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Prints the version
    Version,
}

/// Where the agent's socket is.
#[derive(Debug, clap::Args)]
struct Place {
    /// Configuration file of the agent
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Folder of the agent's socket, in place of the configuration's
    #[arg(long)]
    run_dir: Option<PathBuf>,
}

impl Place {
    fn run_dir(&self) -> anyhow::Result<PathBuf> {
        match &self.run_dir {
            Some(folder) => Ok(folder.clone()),
            None => Ok(self.config()?.run_dir),
        }
    }

    fn config(&self) -> anyhow::Result<Config> {
        // A device without a file has the defaults; a file that was asked for must be there.
        let none = self.config == Path::new(config::DEFAULT_PATH) && !self.config.exists();
        let mut config = if none { Config::default() } else { Config::load(&self.config)? };
        if let Some(run_dir) = &self.run_dir {
            config.run_dir.clone_from(run_dir);
        }
        Ok(config)
    }
}

fn main() -> ExitCode {
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if oci::starts_something() {
        // It executes this program once more, so before anything is read. A failure is told when it is repeated.
        let _ = skeg_runtime::protect_executable();
    }
    if called.file_name().is_some_and(|name| name == "skeg-oci") {
        return exit_code(oci::main(&mut oci::Arguments::parse()));
    }
    // The kernel starts `/init` with words of its own command line, which are not ours.
    let first = std::process::id() == 1 && called == Path::new("/init");
    let command =
        if first { Command::Init { config: config::DEFAULT_PATH.into() } } else { Arguments::parse().command };
    if !matches!(command, Command::Oci(_)) {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    }
    match run(command) {
        Ok(code) => exit_code(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

fn run(command: Command) -> anyhow::Result<i32> {
    match command {
        Command::Init { config } => init::run(&config).map(|()| 0),
        Command::Agent { config } => {
            skeg_runtime::protect_executable().context("containers can't be kept from this program's file")?;
            // Executing itself once more has left the thread with a number for a name.
            rustix::thread::set_name(c"skegd").context("this process can't be named")?;
            init::take_signals_back()?;
            let config = Config::load(&config)?;
            in_runtime(async { agent::run(config).await.map(|()| 0) })
        }
        Command::Ps { place, output } => {
            let run_dir = place.run_dir()?;
            in_runtime(commands::ps(&run_dir, output == "json"))
        }
        Command::Logs { place, target, follow, tail, since, previous, timestamps } => {
            let run_dir = place.run_dir()?;
            in_runtime(commands::logs(&run_dir, &target, follow, tail, since, previous, timestamps))
        }
        Command::Exec { place, target, stdin, tty, command } => {
            let run_dir = place.run_dir()?;
            in_runtime(commands::exec(&run_dir, &target, command, stdin, tty))
        }
        Command::Events { place, output } => {
            let state = place.config()?.state_dir;
            let text = events::show(&state, output == "json");
            commands::print(text.context("reading the journal of events")?.as_bytes())?;
            Ok(0)
        }
        Command::History { place } => {
            commands::print(commands::history(&place.config()?.state_dir)?.as_bytes())?;
            Ok(0)
        }
        Command::Alone(command) => in_runtime(alone::run(command)),
        Command::Image { place, command } => {
            let config = place.config()?;
            in_runtime(image::run(config, command))
        }
        Command::Volume { place, command } => {
            let config = place.config()?;
            in_runtime(volumes::run(config, command))
        }
        Command::Reap { program: true, command } => Ok(reaper::become_program(&command)),
        Command::Reap { program: false, command } => Ok(reaper::run(&command)),
        Command::Oci(mut arguments) => Ok(oci::main(&mut arguments)),
        Command::Version => {
            println!("skegd {}", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
    }
}

fn in_runtime(work: impl Future<Output = anyhow::Result<i32>>) -> anyhow::Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_LINGER)
        .build()?;
    let code = tokio::task::LocalSet::new().block_on(&runtime, work);
    // A thread that still reads a terminal's input must not hold up the end.
    runtime.shutdown_background();
    code
}
