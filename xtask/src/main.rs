//! The developer's commands: `cargo xtask demo | test | bench | tidy | sim | fuzz`. This crate owns how skeg is built,
//! shown, tested and measured on a developer's machine; the product never needs it.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod demo;
mod fuzz;
mod interrupt;
mod machine;
mod needs;
mod process;
mod sim;
mod test;
mod tidy;
mod ui;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The developer's commands of skeg.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows the whole way of a pod on this machine, and takes everything away again. Needs root.
    Demo {
        /// Takes the static binaries as an earlier run built them.
        #[arg(long)]
        no_build: bool,
    },
    /// Runs every test, installing what it needs: checks, unit, property, privileged and QEMU tests.
    Test {
        /// Runs only this step; a wrong name lists them.
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Checks what no compiler checks: dependency edges, module docs, links, unsafe, versions, licences.
    Tidy,
    /// Measures beside other runtimes and beside the goals; a missed goal is shown and is no failure.
    Bench {
        /// What to measure.
        name: bench::Name,
        /// Prints one JSON object for machines.
        #[arg(long)]
        json: bool,
    },
    /// Starts containers for the start benchmark, as the benchmark asks on standard input.
    #[command(hide = true)]
    BenchHelper {
        /// Which containers.
        kind: bench::start::Kind,
        /// The benchmark's folder.
        folder: PathBuf,
        /// Below this cgroup.
        cgroup: String,
    },
    /// Pulls one image, as the pull benchmark asks.
    #[command(hide = true)]
    BenchPull {
        /// A folder for the store.
        store: PathBuf,
        /// The image, with a tag, in a registry that speaks plain HTTP.
        reference: String,
    },
    /// Runs the link's two ends through everything that goes wrong, one run a seed.
    Sim {
        /// How many runs.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        first: u64,
    },
    /// Fuzzes a parser of outside bytes on the stable toolchain.
    Fuzz {
        /// The fuzz target.
        target: String,
        /// How long, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    interrupt::install()?;
    match task {
        Task::Demo { no_build } => demo::run(!no_build),
        Task::Test { only } => test::run(only.as_deref()),
        Task::Tidy => tidy::run(),
        Task::Bench { name, json } => bench::run(name, json),
        Task::BenchPull { store, reference } => bench::pull::ours(&store, &reference),
        Task::BenchHelper { kind, folder, cgroup } => bench::start::serve(kind, &folder, &cgroup),
        Task::Sim { seeds, first } => sim::run(first, seeds),
        Task::Fuzz { target, seconds } => fuzz::run(&target, seconds),
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
