//! bpf(2): programs that decide on the devices of a version 2 cgroup.
//!
//! Owns four commands of that call. Must not make programs. Called by the parent only, so it may allocate.

use super::calls::{Errno, Result, check, own};
use crate::cgroup::Instruction;
use std::os::fd::{AsRawFd, OwnedFd};

// Commands, types and flags of linux/bpf.h.
const LOAD: i32 = 5;
const ATTACH: i32 = 8;
const DETACH: i32 = 9;
const DESCRIPTOR_BY_ID: i32 = 13;
const QUERY: i32 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups above and below may be there too; all of them must agree.
const ALLOW_MULTI: u32 = 2;
/// The most programs that the kernel attaches to one cgroup.
const MOST: usize = 64;

/// The part of `union bpf_attr` for loading.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part for attaching and detaching.
#[repr(C)]
struct Attachment {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// The part for a descriptor by id.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// The part for asking what is attached.
#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
}

fn bpf<T>(command: i32, attributes: &mut T) -> Result<usize> {
    // SAFETY: every `T` of this module is laid out as the command's part of union bpf_attr, of which the kernel takes the
    // size and no more; pointers in it lead to memory that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of::<T>()) })
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
pub(crate) fn load_device_program(program: &[Instruction]) -> Result<OwnedFd> {
    let mut load = Load {
        kind: TYPE_CGROUP_DEVICE,
        length: u32::try_from(program.len()).map_err(|_| Errno(libc::E2BIG))?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    Ok(own(bpf(LOAD, &mut load)? as i32))
}

/// Attaches a device program to a cgroup folder.
pub(crate) fn attach_device_program(folder: i32, program: i32) -> Result<()> {
    let (target, program) = (folder.cast_unsigned(), program.cast_unsigned());
    bpf(ATTACH, &mut Attachment { target, program, kind: ATTACH_CGROUP_DEVICE, flags: ALLOW_MULTI }).map(drop)
}

/// Lists the ids of the device programs that are attached to this very cgroup folder.
pub(crate) fn device_programs(folder: i32) -> Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST];
    let mut query = Query {
        target: folder.cast_unsigned(),
        kind: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        programs: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        padding: 0,
    };
    bpf(QUERY, &mut query)?;
    ids.truncate(query.count as usize);
    Ok(ids)
}

/// Detaches a device program from a cgroup folder, by its id.
pub(crate) fn detach_device_program(folder: i32, id: u32) -> Result<()> {
    let program = own(bpf(DESCRIPTOR_BY_ID, &mut ById { id, next: 0, flags: 0 })? as i32);
    let (target, program) = (folder.cast_unsigned(), program.as_raw_fd().cast_unsigned());
    bpf(DETACH, &mut Attachment { target, program, kind: ATTACH_CGROUP_DEVICE, flags: 0 }).map(drop)
}
