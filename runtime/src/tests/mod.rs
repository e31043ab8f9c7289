//! Tests on the real kernel: containers of busybox, started, looked at from inside, and gone without a trace.
//!
//! They need root, cgroups and `/bin/busybox` (Debian's busybox-static); without them each says `skipped: why`.

mod attacks;
mod attributes;
mod bounds;
mod containers;
mod entering;
mod extras;
mod failures;
mod golden;
mod life;
mod mounts;
mod namespaces;
mod rights;
mod seccomp_agent;
pub(crate) mod support;
