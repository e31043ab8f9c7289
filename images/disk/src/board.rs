//! Board files: what one kind of board needs to boot, as data.
//!
//! Owns the schema (see `docs/boards.md`) and its errors, which name file and line. Must not know what
//! a particular device is called or whom it talks to: that is [`crate::config`].

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Longest board file that is read, in bytes.
const MAXIMUM_SIZE: u64 = 64 * 1024;

/// A processor architecture that boards have, by the kernel's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Architecture {
    /// Returns the kernel's name (`uname -m`).
    pub fn kernel_name(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        }
    }

    /// Returns Debian's and OCI's name.
    pub fn debian_name(self) -> &'static str {
        match self {
            Architecture::X86_64 => "amd64",
            Architecture::Aarch64 => "arm64",
        }
    }

    /// Returns the ELF machine number (`EM_*` in elf(5)).
    pub(crate) fn elf_machine(self) -> u16 {
        match self {
            Architecture::X86_64 => 62,
            Architecture::Aarch64 => 183,
        }
    }
}

/// One kind of board.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// What it is, in one line.
    pub description: String,
    /// Its processor.
    pub architecture: Architecture,
    /// Its kernel.
    pub kernel: Kernel,
    /// What `skegd` finds and does on it.
    pub appliance: Appliance,
}

/// The kernel of a board.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Debian package; a metapackage stands for the versioned package that it depends on.
    pub package: String,
    /// Words of the command line, in order. None may hold a blank.
    pub command_line: Vec<String>,
}

/// The part of a board that `skegd` meets as PID 1.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// Kernel modules to load. Those that they depend on are found and loaded before them.
    pub modules: Vec<String>,
    /// Block device, ext4, that keeps the state.
    pub state_device: PathBuf,
    /// Watchdog device to pet.
    #[serde(default)]
    pub watchdog: Option<PathBuf>,
    /// Network interface; the first that is not loopback unless named.
    #[serde(default)]
    pub interface: Option<String>,
}

/// Why a board file was refused.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The file cannot be read.
    #[error("board file {path}: cannot be read")]
    Read {
        /// The board file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is longer than any board file would be.
    #[error("board file {path}: {size} bytes, more than the {MAXIMUM_SIZE} that a board file may have")]
    TooLong {
        /// The board file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The text is not TOML, or not what a board file holds.
    #[error("{path}:{line}: {message}", path = path.display())]
    Syntax {
        /// The board file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value has the right type but makes no sense.
    #[error("board file {path}: {field}: {message}")]
    Value {
        /// The board file.
        path: PathBuf,
        /// The field, with the tables that it is in.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

impl Board {
    /// Reads the board file at `path`.
    pub fn load(path: &Path) -> Result<Board, BoardError> {
        let read = |source| BoardError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(read)?.len();
        if size > MAXIMUM_SIZE {
            return Err(BoardError::TooLong { path: path.to_owned(), size });
        }
        Board::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    /// Parses the text of a board file; `path` only names it in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Board, BoardError> {
        let board: Board = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
            BoardError::Syntax { path: path.to_owned(), line, message: error.message().to_owned() }
        })?;
        board.check(path)?;
        Ok(board)
    }

    fn check(&self, path: &Path) -> Result<(), BoardError> {
        let value = |field, message| Err(BoardError::Value { path: path.to_owned(), field, message });
        if !self.kernel.package.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
            || !self.kernel.package.starts_with(|first: char| first.is_ascii_alphanumeric())
        {
            return value("kernel.package", format!("{:?} is not a name of a Debian package", self.kernel.package));
        }
        if let Some(word) = self.kernel.command_line.iter().find(|word| !is_word(word)) {
            return value("kernel.command_line", format!("{word:?} is not one word of printable ASCII"));
        }
        if let Some(name) = self.appliance.modules.iter().find(|name| !is_module_name(name)) {
            return value("appliance.modules", format!("{name:?} is not a name of a kernel module"));
        }
        if !self.appliance.state_device.starts_with("/dev") {
            let message = format!("{} is not below /dev", self.appliance.state_device.display());
            return value("appliance.state_device", message);
        }
        Ok(())
    }

    /// Returns the kernel's command line as one string.
    pub fn command_line(&self) -> String {
        self.kernel.command_line.join(" ")
    }
}

fn is_word(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Says whether `name` can be a kernel module: it becomes a part of a path.
pub(crate) fn is_module_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 56
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
description = "a board"
architecture = "aarch64"
[kernel]
package = "linux-image-cloud-arm64"
command_line = ["console=ttyAMA0", "quiet"]
[appliance]
modules = ["overlay"]
state_device = "/dev/vda"
"#;

    fn refused(text: &str) -> String {
        Board::parse(Path::new("boards/x.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn every_board_file_of_this_repository_is_good() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../board-configs");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            Board::load(&entry.unwrap().path()).unwrap();
            count += 1;
        }
        assert!(count >= 2, "only {count} board files");
    }

    #[test]
    fn reads_a_board() {
        let board = Board::parse(Path::new("x"), GOOD).unwrap();
        assert_eq!(board.architecture, Architecture::Aarch64);
        assert_eq!(board.command_line(), "console=ttyAMA0 quiet");
        assert_eq!(board.appliance.watchdog, None);
    }

    #[test]
    fn an_unknown_field_is_named_with_file_and_line() {
        let text = GOOD.replace("state_device", "sate_device");
        let message = refused(&text);
        assert!(message.starts_with("boards/x.toml:9: unknown field `sate_device`"), "{message}");
    }

    #[test]
    fn an_unknown_architecture_is_named_with_file_and_line() {
        let message = refused(&GOOD.replace("aarch64", "vax"));
        assert!(message.starts_with("boards/x.toml:3: unknown variant `vax`"), "{message}");
    }

    #[test]
    fn values_that_could_leave_their_place_are_refused() {
        for (from, to, part) in [
            ("\"overlay\"", "\"../../etc/shadow\"", "appliance.modules"),
            ("\"quiet\"", "\"quiet init=/bin/sh\"", "kernel.command_line"),
            ("\"linux-image-cloud-arm64\"", "\"-o=x\"", "kernel.package"),
            ("\"/dev/vda\"", "\"vda\"", "appliance.state_device"),
        ] {
            let message = refused(&GOOD.replace(from, to));
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = Board::load(Path::new("/nowhere/board.toml")).unwrap_err().to_string();
        assert_eq!(message, "board file /nowhere/board.toml: cannot be read");
    }
}
