//! An unpacked Debian kernel package: its kernel image and its modules in the order of loading.
//!
//! Reads only. Must not load anything into the running kernel.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::board::{Architecture, is_module_name};
use crate::modinfo;

pub use crate::modinfo::ModinfoError;

/// Largest kernel module that is read, in bytes.
const MAXIMUM_MODULE: u64 = 64 << 20;
/// How deep folders of modules may be nested.
const MAXIMUM_DEPTH: usize = 16;

/// The folder into which a kernel package was unpacked (`dpkg-deb -x`).
#[derive(Debug)]
pub struct KernelPackage {
    image: PathBuf,
    release: String,
    architecture: Architecture,
    modules: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
}

/// A module with its contents.
#[derive(Clone, PartialEq, Eq)]
pub struct Module {
    /// Name as the kernel spells it: with underscores.
    pub name: String,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

/// Why a kernel package could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file or folder cannot be read.
    #[error("kernel package: {path}: cannot be read")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// There is not exactly one of what there should be one of.
    #[error("kernel package {folder}: {found} entries {what}, expected one: unpack one kernel package there")]
    NotOne {
        /// The folder of the package.
        folder: PathBuf,
        /// Which entry.
        what: &'static str,
        /// How many there are.
        found: usize,
    },
    /// A module that is neither in the package nor built into the kernel.
    #[error("kernel {release} has no module {name}{needed_by}")]
    NoModule {
        /// Version of the kernel.
        release: String,
        /// The module.
        name: String,
        /// Who needs it, as words to append; empty if the board does.
        needed_by: String,
    },
    /// Modules that depend on each other.
    #[error("kernel {release}: module {name} depends on itself")]
    Cycle {
        /// Version of the kernel.
        release: String,
        /// One of the modules.
        name: String,
    },
    /// A file that is not a module, or damaged.
    #[error("kernel module {path}: cannot be used")]
    Module {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ModinfoError,
    },
}

impl KernelPackage {
    /// Looks at the package unpacked in `folder`, for `architecture`.
    pub fn open(folder: &Path, architecture: Architecture) -> Result<KernelPackage, KernelError> {
        let image = only(folder, "boot", "boot/vmlinuz-*", |name| name.starts_with("vmlinuz-"))?;
        let tree = only(folder, "lib/modules", "lib/modules/*", |_| true)?;
        let release = tree.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let list = tree.join("modules.builtin");
        let built_in =
            std::fs::read_to_string(&list).map_err(|source| KernelError::Read { path: list.clone(), source })?;
        let built_in = built_in.lines().filter_map(|line| module_name(Path::new(line))).collect();
        let mut modules = HashMap::new();
        collect(&tree.join("kernel"), MAXIMUM_DEPTH, &mut modules)?;
        Ok(KernelPackage { image, release, architecture, modules, built_in })
    }

    /// Returns the path of the kernel image.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Returns the kernel's version, as `uname -r` says it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Reads `wanted` and all that they depend on, each after what it depends on.
    ///
    /// What is built into the kernel is left out. Soft dependencies are not followed: a board names them.
    pub fn modules(&self, wanted: &[String]) -> Result<Vec<Module>, KernelError> {
        let mut order = Vec::new();
        let mut path = Vec::new();
        for name in wanted {
            self.add(&normal(name), &mut path, &mut order)?;
        }
        Ok(order)
    }

    /// Adds `name` to `order` behind its dependencies; `path` holds those that are waiting for it.
    fn add(&self, name: &str, path: &mut Vec<String>, order: &mut Vec<Module>) -> Result<(), KernelError> {
        if self.built_in.contains(name) || order.iter().any(|module| module.name == name) {
            return Ok(());
        }
        if path.iter().any(|waiting| waiting == name) {
            return Err(KernelError::Cycle { release: self.release.clone(), name: name.to_owned() });
        }
        let Some(file) = self.modules.get(name) else {
            let needed_by = path.last().map_or(String::new(), |parent| format!(", which {parent} depends on"));
            return Err(KernelError::NoModule { release: self.release.clone(), name: name.to_owned(), needed_by });
        };
        let bytes = read(file)?;
        let dependencies = modinfo::dependencies(&bytes, self.architecture.elf_machine())
            .map_err(|source| KernelError::Module { path: file.clone(), source })?;
        path.push(name.to_owned());
        for dependency in &dependencies {
            self.add(&normal(dependency), path, order)?;
        }
        path.pop();
        order.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

/// The kernel takes `-` and `_` in names of modules for the same; files have either.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the name of the module that `path` holds, compressed or not; none if it holds no module.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, ending) = name.split_once(".ko")?;
    (["", ".xz", ".zst", ".gz"].contains(&ending) && is_module_name(stem)).then(|| normal(stem))
}

/// Finds the one entry of `folder`/`below` that `matches`.
fn only(
    folder: &Path,
    below: &str,
    what: &'static str,
    matches: impl Fn(&str) -> bool,
) -> Result<PathBuf, KernelError> {
    let mut found = entries(&folder.join(below))?;
    found.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&matches));
    match found.as_slice() {
        [path] => Ok(path.clone()),
        _ => Err(KernelError::NotOne { folder: folder.to_owned(), what, found: found.len() }),
    }
}

/// Lists a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let failed = |source| KernelError::Read { path: folder.to_owned(), source };
    let list: Result<Vec<_>, _> = std::fs::read_dir(folder).map_err(failed)?.collect();
    let mut paths: Vec<_> = list.map_err(failed)?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// Notes every module below `folder`. Symbolic links are not followed: a package has none there.
fn collect(folder: &Path, depth: usize, into: &mut HashMap<String, PathBuf>) -> Result<(), KernelError> {
    for path in entries(folder)? {
        let kind =
            path.symlink_metadata().map_err(|source| KernelError::Read { path: path.clone(), source })?.file_type();
        if kind.is_dir() && depth > 0 {
            collect(&path, depth - 1, into)?;
        } else if let Some(name) = kind.is_file().then(|| module_name(&path)).flatten() {
            into.insert(name, path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    let failed = |source| KernelError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // A longer file is cut, and then refused as damaged.
    std::fs::File::open(path).map_err(failed)?.take(MAXIMUM_MODULE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// A package as Debian lays it out, with modules of the given names and dependencies.
    fn package(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("lib/modules/6.1.0-1-cloud-amd64");
        std::fs::create_dir_all(tree.join("kernel/drivers/net")).unwrap();
        std::fs::create_dir_all(folder.path().join("boot")).unwrap();
        std::fs::write(folder.path().join("boot/vmlinuz-6.1.0-1-cloud-amd64"), b"kernel").unwrap();
        std::fs::write(tree.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        for (name, depends) in modules {
            std::fs::write(tree.join("kernel/drivers/net").join(name), modinfo::sample(62, depends)).unwrap();
        }
        folder
    }

    fn names(folder: &Path, wanted: &[&str]) -> Result<Vec<String>, KernelError> {
        let kernel = KernelPackage::open(folder, Architecture::X86_64)?;
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        Ok(kernel.modules(&wanted)?.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn each_module_comes_once_and_after_what_it_needs() {
        let folder = package(&[
            ("virtio-net.ko", "virtio,net-failover"),
            ("net_failover.ko", "failover"),
            ("failover.ko", ""),
            ("virtio.ko", ""),
        ]);
        let order = names(folder.path(), &["virtio_net", "virtio", "ext4"]).unwrap();
        assert_eq!(order, ["virtio", "failover", "net_failover", "virtio_net"]);
    }

    #[test]
    fn a_missing_module_is_named_with_who_needs_it() {
        let folder = package(&[("virtio_net.ko", "virtio")]);
        let message = names(folder.path(), &["virtio_net"]).unwrap_err().to_string();
        assert_eq!(message, "kernel 6.1.0-1-cloud-amd64 has no module virtio, which virtio_net depends on");
        let message = names(folder.path(), &["i6300esb"]).unwrap_err().to_string();
        assert_eq!(message, "kernel 6.1.0-1-cloud-amd64 has no module i6300esb");
    }

    #[test]
    fn modules_in_a_circle_are_refused() {
        let folder = package(&[("a.ko", "b"), ("b.ko", "a")]);
        let message = names(folder.path(), &["a"]).unwrap_err().to_string();
        assert_eq!(message, "kernel 6.1.0-1-cloud-amd64: module a depends on itself");
    }

    #[test]
    fn a_compressed_module_is_refused_with_what_to_do() {
        let folder = package(&[]);
        let path = folder.path().join("lib/modules/6.1.0-1-cloud-amd64/kernel/overlay.ko.xz");
        std::fs::write(&path, b"\xfd7zXZ\0\0\x04").unwrap();
        let error = names(folder.path(), &["overlay"]).unwrap_err();
        assert!(error.to_string().contains("overlay.ko.xz"), "{error}");
        assert!(error.source().unwrap().to_string().contains("xz -d"));
    }

    #[test]
    fn a_folder_with_two_kernels_is_refused() {
        let folder = package(&[]);
        std::fs::write(folder.path().join("boot/vmlinuz-6.12"), b"").unwrap();
        let message = names(folder.path(), &[]).unwrap_err().to_string();
        assert!(message.contains("2 entries boot/vmlinuz-*"), "{message}");
    }
}
