//! The words of the OCI command line, as users and engines of runc and crun write them.
//!
//! Owns names, short forms and defaults of options. Must not act on them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// What this program was built from; `cargo xtask` tells it to the compiler.
const COMMIT: &str = match option_env!("SKEG_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Engines take these lines apart; see runc's `printVersion`.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    format!("version {version}\ncommit: {COMMIT}\nspec: 1.2.1\n+SELINUX +APPARMOR +CAP +SECCOMP +EBPF")
});

/// Runs containers as the OCI runtime specification says
#[derive(Debug, Parser)]
#[command(name = "skeg-oci", display_name = "skeg-oci", version = VERSION.as_str(), about)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options before the command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Folder of the containers' states; should be in memory
    #[arg(long, default_value = "/run/skeg/oci")]
    pub(crate) root: PathBuf,
    /// File to append messages to, besides standard error
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// Form of the messages in the log file
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Logs what is done, too
    #[arg(long)]
    pub(crate) debug: bool,
    /// Who manages cgroups; only cgroupfs is there
    #[arg(long, value_name = "NAME", default_value = "cgroupfs")]
    pub(crate) cgroup_manager: String,
    /// Asks for cgroups by systemd, which is refused
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Accepted for engines that pass it; nothing depends on it
    #[arg(long, value_name = "BOOL", hide = true)]
    pub(crate) rootless: Option<String>,
}

/// How a line of the log file looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// `time="…" level=error msg="…"`
    Text,
    /// One JSON object a line.
    Json,
}

/// What `list` and `ps` print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a container that waits to be started
    Create(Create),
    /// Starts the program of a container that was created
    Start {
        /// The container
        id: String,
    },
    /// Makes a container, starts it, waits for its end and removes it
    Run(Run),
    /// Prints the state of a container as JSON
    State {
        /// The container
        id: String,
    },
    /// Sends a signal to a container's first process
    Kill {
        /// To all processes of the container
        #[arg(short, long)]
        all: bool,
        /// The container
        id: String,
        /// Name or number
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Removes a container that has stopped
    Delete {
        /// Kills it first, and is content if it does not exist
        #[arg(short, long)]
        force: bool,
        /// Takes the name for a regular expression and removes all containers that it fits
        #[arg(long)]
        regex: bool,
        /// The container
        id: String,
    },
    /// Runs another process in a container
    Exec(Exec),
    /// Lists the containers
    List {
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Only their names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Lists the processes of a container
    Ps {
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// The container
        id: String,
        /// Options of ps(1) for the table
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        ps: Vec<OsString>,
    },
    /// Freezes all processes of a container
    Pause {
        /// The container
        id: String,
    },
    /// Lets a paused container go on
    Resume {
        /// The container
        id: String,
    },
    /// Changes the limits of a container
    Update(Box<Update>),
    /// Prints what happens to a container: statistics at intervals, and when memory runs out
    Events {
        /// Prints the statistics once and ends
        #[arg(long)]
        stats: bool,
        /// Time between statistics, as 500ms, 5s or 1m
        #[arg(long, default_value = "5s", value_parser = super::resources::interval)]
        interval: std::time::Duration,
        /// The container
        id: String,
    },
    /// Prints what this runtime can do, as JSON (features.md of the runtime specification)
    Features,
    /// Writes an example config.json
    Spec {
        /// Folder to write it to
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
        /// Asks for an example that needs no root, which is refused
        #[arg(long, hide = true)]
        rootless: bool,
    },
    /// Prints the plan of a container's start, one line a system call or a few
    Plan {
        /// Folder with config.json
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
    },
}

/// Options of `create`, which `run` has too.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Folder with config.json
    #[arg(short, long, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Another file in place of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Unix socket to which the terminal's master is sent
    #[arg(long, value_name = "PATH")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File to write the number of the first process to
    #[arg(long, value_name = "PATH")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Moves the root instead of pivot_root(2), for roots on a ramdisk
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keeps the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Passes up to N more descriptors after the standard streams and those of LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// The name of the new container
    pub(crate) id: String,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Returns when the program has started
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keeps the container after its end
    #[arg(long)]
    pub(crate) keep: bool,
    /// Leaves orphans of the container to whom they fall
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Unix socket to which the terminal's master is sent
    #[arg(long, value_name = "PATH")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Working folder in the container
    #[arg(long)]
    pub(crate) cwd: Option<PathBuf>,
    /// NAME=VALUE for the environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Gives the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// UID or UID:GID
    #[arg(short, long, value_name = "UID[:GID]", value_parser = super::exec::user)]
    pub(crate) user: Option<(u32, Option<u32>)>,
    /// One more group
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// File with the whole process as JSON, in place of the options
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Returns when the process runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File to write the process's number to
    #[arg(long, value_name = "PATH")]
    pub(crate) pid_file: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Sets no_new_privs, or not
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) no_new_privs: Option<bool>,
    /// One more capability
    #[arg(short, long, value_name = "CAP_NAME")]
    pub(crate) cap: Vec<String>,
    /// Passes up to N more descriptors after the standard streams and those of LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// An existing cgroup below the container's
    #[arg(long, value_name = "[CONTROLLER:]PATH")]
    pub(crate) cgroup: Vec<String>,
    /// Enters a paused container, too
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// The container
    pub(crate) id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// Options of `update`: sizes in bytes, with k, m, g or t behind if wanted; -1 is unlimited.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// File with linux.resources as JSON, in place of the options; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "N")]
    pub(crate) blkio_weight: Option<u16>,
    /// Microseconds
    #[arg(long, value_name = "N")]
    pub(crate) cpu_period: Option<u64>,
    /// Microseconds in a period
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Microseconds saved for later
    #[arg(long, value_name = "N")]
    pub(crate) cpu_burst: Option<u64>,
    /// Relative to other containers
    #[arg(long, value_name = "N")]
    pub(crate) cpu_share: Option<u64>,
    /// Microseconds
    #[arg(long, value_name = "N")]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Microseconds in a realtime period
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// 1 runs only when nobody else wants the processor
    #[arg(long, value_name = "0|1")]
    pub(crate) cpu_idle: Option<i64>,
    /// Processors, as 0-2,4
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes, as 0-1
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Memory
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = super::resources::size)]
    pub(crate) memory: Option<i64>,
    /// Memory to be left with when others need it
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = super::resources::size)]
    pub(crate) memory_reservation: Option<i64>,
    /// Memory and swap together
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = super::resources::size)]
    pub(crate) memory_swap: Option<i64>,
    /// Memory of the kernel: accepted and ignored, kernels no longer have it
    #[arg(long, value_name = "SIZE", hide = true, allow_negative_numbers = true, value_parser = super::resources::size)]
    pub(crate) kernel_memory: Option<i64>,
    /// The same for TCP buffers
    #[arg(long, value_name = "SIZE", hide = true, allow_negative_numbers = true, value_parser = super::resources::size)]
    pub(crate) kernel_memory_tcp: Option<i64>,
    /// Processes and threads
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) pids_limit: Option<i64>,
    /// The container
    pub(crate) id: String,
}
