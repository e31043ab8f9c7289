//! The namespaces of a container: made or joined, by whom, and in which order.
//!
//! Owns the choice between one clone and two. Must not know what happens inside the namespaces.
//!
//! Most containers need one clone: it makes the new namespaces, and the child joins those that are given. That does not
//! do for a pid namespace that is given, a time namespace, and any user namespace: the first two count for future children
//! only, and whatever is made must belong to the user namespace, so that must be entered first. Such a plan begins with
//! an *entrance*: a process that joins what is given, with the caller's full rights and the user namespace last of all,
//! and clones the child, as its sibling.

use super::{Compiler, PlanError, Root, enter_cgroup};
use crate::cgroup::Cgroup;
use crate::oci;
use crate::plan::{StartError, above_standard};
use crate::step::Step;
use crate::sys::{self, CloneRequest};
use crate::user_namespace::new_user_namespace;
use oci::LinuxNamespaceType as Kind;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Each kind's name and flag, in the order in which given ones are joined: paths mean something else after the mount
/// namespace, and rights are gone after the user namespace.
const KINDS: [(Kind, &str, i32); 8] = [
    (Kind::Time, "time", libc::CLONE_NEWTIME),
    (Kind::Ipc, "ipc", libc::CLONE_NEWIPC),
    (Kind::Uts, "uts", libc::CLONE_NEWUTS),
    (Kind::Network, "network", libc::CLONE_NEWNET),
    (Kind::Pid, "pid", libc::CLONE_NEWPID),
    (Kind::Cgroup, "cgroup", libc::CLONE_NEWCGROUP),
    (Kind::Mount, "mount", libc::CLONE_NEWNS),
    (Kind::User, "user", libc::CLONE_NEWUSER),
];

/// The name of a namespace by its flag.
pub(crate) fn name_of(flag: i32) -> &'static str {
    KINDS.iter().find(|(.., known)| *known == flag).map_or("unknown", |(_, name, _)| name)
}

/// Namespaces that the caller hands over ready-made.
pub(super) struct Given<'a> {
    pub(super) network: Option<BorrowedFd<'a>>,
    pub(super) user: Option<BorrowedFd<'a>>,
}

/// What a plan does about namespaces, sorted.
#[derive(Default)]
struct Sorted {
    /// Flags of those to make in the clone.
    made: u64,
    /// Those to join, in order.
    joined: Vec<(i32, i32)>,
    entrance: bool,
}

impl Compiler<'_> {
    /// Tells whether the specification lists a namespace of this kind, new or given.
    pub(super) fn lists(&self, kind: Kind) -> bool {
        let list = self.linux().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        list.iter().any(|namespace| namespace.typ() == kind)
    }

    /// Tells whether the namespace of this kind is another than the caller's, even if it is given.
    pub(super) fn has_own(&self, kind: Kind) -> Result<bool, PlanError> {
        let list = self.linux().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        let Some(index) = list.iter().position(|namespace| namespace.typ() == kind) else { return Ok(false) };
        let Some(path) = list[index].path() else { return Ok(true) };
        let identity = |path: &Path| {
            let at = format!("linux.namespaces[{index}].path");
            let metadata = std::fs::metadata(path);
            let metadata = metadata.map_err(|source| PlanError::Path { at, path: path.into(), source })?;
            Ok::<_, PlanError>((metadata.dev(), metadata.ino()))
        };
        // The names in /proc are those of the manual, namespaces(7), but for two.
        let file = match kind {
            Kind::Network => "net",
            Kind::Mount => "mnt",
            _ => KINDS.iter().find(|(known, ..)| *known == kind).map_or("", |(_, name, _)| name),
        };
        Ok(identity(path)? != identity(&Path::new("/proc/thread-self/ns").join(file))?)
    }

    /// Adds the clone or clones, and everything up to a child that is in its namespaces and its cgroup.
    pub(super) fn namespaces(
        &mut self,
        cgroup: Option<&Cgroup>,
        given: &Given<'_>,
        root: &Root,
    ) -> Result<(), PlanError> {
        let sorted = self.sort(given)?;
        let mut clone = CloneRequest { namespaces: sorted.made, sibling: self.clone.sibling, cgroup: None };
        let mut cgroup_steps = Vec::new();
        if let Some(cgroup) = cgroup {
            enter_cgroup(cgroup, &mut clone, &mut cgroup_steps, &mut self.held)?;
        }
        let joins: Vec<_> = sorted.joined.iter().map(|(fd, kinds)| join(*fd, *kinds)).collect();
        if sorted.entrance {
            if sorted.made & libc::CLONE_NEWTIME as u64 != 0 {
                clone.namespaces &= !(libc::CLONE_NEWTIME as u64);
                self.time_namespace()?;
            }
            if let Some(user_namespace) = self.user_namespace {
                self.overlay_with_ids(root, user_namespace)?;
            }
            self.steps.extend(joins);
            self.steps.push(Step::Clone { request: CloneRequest { sibling: true, ..clone } });
            self.steps.append(&mut cgroup_steps);
        } else {
            self.clone = clone;
            self.steps.append(&mut cgroup_steps);
            self.steps.extend(joins);
        }
        if self.lists(Kind::Cgroup) && !sorted.joined.iter().any(|(_, kind)| *kind == libc::CLONE_NEWCGROUP) {
            // A cgroup namespace is rooted where its maker is: it is made after the child has joined its cgroup.
            self.steps.push(Step::Unshare { kinds: libc::CLONE_NEWCGROUP, name: "cgroup" });
        }
        if sorted.made & libc::CLONE_NEWNET as u64 != 0 {
            self.steps.push(Step::LoopbackUp);
        }
        Ok(())
    }

    fn sort(&mut self, given: &Given<'_>) -> Result<Sorted, PlanError> {
        let mut sorted = Sorted::default();
        let list = self.linux().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
        for (kind, name, flag) in KINDS {
            let Some(index) = list.iter().position(|namespace| namespace.typ() == kind) else { continue };
            let at = format!("linux.namespaces[{index}].path");
            let handed = match kind {
                Kind::Network => given.network,
                Kind::User => given.user,
                _ => None,
            };
            let handle = match (handed, list[index].path()) {
                (Some(fd), _) => {
                    let copy = fd.try_clone_to_owned();
                    Some(copy.map_err(|source| PlanError::Path {
                        at: name.into(),
                        path: "its descriptor".into(),
                        source,
                    })?)
                }
                (None, Some(path)) => Some(open(&at, path, name, flag)?),
                (None, None) if kind == Kind::User => Some(self.new_user_namespace()?),
                (None, None) => None,
            };
            sorted.entrance |= kind == Kind::User || kind == Kind::Time || (kind == Kind::Pid && handle.is_some());
            if let Some(handle) = handle {
                let handle = above_standard(handle).map_err(|error| PlanError::Descriptor(Box::new(error)))?;
                sorted.joined.push((handle.as_raw_fd(), flag));
                if kind == Kind::User {
                    self.user_namespace = Some(handle.as_raw_fd());
                }
                self.held.push(handle);
            } else if kind != Kind::Cgroup {
                sorted.made |= flag as u64;
            }
        }
        Ok(sorted)
    }

    fn new_user_namespace(&self) -> Result<OwnedFd, PlanError> {
        let maps = |list: Option<&Vec<oci::LinuxIdMapping>>| list.cloned().unwrap_or_default();
        let linux = self.linux();
        let users = maps(linux.and_then(|linux| linux.uid_mappings().as_ref()));
        let groups = maps(linux.and_then(|linux| linux.gid_mappings().as_ref()));
        Ok(new_user_namespace(&users, &groups)?)
    }

    /// A new time namespace belongs to the caller's user namespace: its offsets are not the container's to change.
    fn time_namespace(&mut self) -> Result<(), PlanError> {
        self.steps.push(Step::Unshare { kinds: libc::CLONE_NEWTIME, name: "time" });
        let offsets = self.linux().and_then(|linux| linux.time_offsets().clone()).unwrap_or_default();
        let mut offsets: Vec<_> = offsets.into_iter().collect();
        offsets.sort_by(|one, other| one.0.cmp(&other.0));
        let line = |(clock, offset): &(String, oci::LinuxTimeOffset)| {
            format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
        };
        let value: String = offsets.iter().map(line).collect();
        if !value.is_empty() {
            self.steps.push(Step::TimeOffsets { value });
        }
        Ok(())
    }
}

fn join(fd: i32, kinds: i32) -> Step {
    Step::JoinNamespace { fd, kinds, name: format!("the given {} namespace", name_of(kinds)) }
}

/// Opens a namespace and makes sure that it is one, of the right kind; ioctl_ns(2).
fn open(at: &str, path: &Path, name: &str, flag: i32) -> Result<OwnedFd, PlanError> {
    let refused = |source| PlanError::Path { at: at.into(), path: path.to_path_buf(), source };
    // A fifo must not stop whoever opens it.
    let handle = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(refused)?;
    match sys::namespace_kind(handle.as_raw_fd()) {
        Ok(kind) if kind == flag => Ok(handle.into()),
        Ok(other) => {
            let reason = std::io::Error::other(format!("it is a {} namespace, not a {name} namespace", name_of(other)));
            Err(refused(reason))
        }
        Err(_) => Err(refused(std::io::Error::other("it is not a namespace"))),
    }
}

impl From<crate::UserNamespaceError> for PlanError {
    fn from(error: crate::UserNamespaceError) -> PlanError {
        PlanError::UserNamespace(error)
    }
}

impl From<StartError> for PlanError {
    fn from(error: StartError) -> PlanError {
        PlanError::Descriptor(Box::new(error))
    }
}
