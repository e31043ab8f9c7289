//! The only place with `unsafe`: one thin wrapper a system call, and the clone that starts a child.
//!
//! Owns raw system calls. Must not decide anything: no paths, flags or policy of containers live here. Every wrapper
//! may be called in a freshly cloned child: none allocates, locks or logs.

#![allow(unsafe_code)]

mod bpf;
mod calls;
mod clone;
mod files;

pub(crate) use bpf::*;
pub(crate) use calls::*;
pub(crate) use clone::*;
pub(crate) use files::*;
