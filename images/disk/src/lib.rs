//! Bootable images for boards: reads a board's description, picks the kernel modules that it needs out
//! of an unpacked kernel package and writes the initramfs in which `skegd` is PID 1.
//!
//! It takes paths and bytes. It fetches nothing, runs no program, and knows neither the agent's code
//! nor the controller: what `skegd` reads at boot is written here as plain data ([`config`]).

#![forbid(unsafe_code)]

pub mod board;
pub mod config;
pub mod initramfs;
pub mod kernel;
mod modinfo;
