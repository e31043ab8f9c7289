//! What the device tells about itself.

use std::net::IpAddr;

use skeg_protocol::message::NodeInfo;

use crate::agent::boot_id;
use crate::apply::Host;

/// Cuts a text to what fits.
fn fit<const N: usize>(text: &str) -> heapless::String<N> {
    let mut out = heapless::String::new();
    text.chars().take_while(|c| out.push(*c).is_ok()).for_each(drop);
    out
}

/// Facts that do not change while the device runs; `address` is the one by which it reaches the controller.
///
/// # Errors
/// The kernel does not tell the boot's id, or the node's name is too long.
pub fn node_info(host: &Host, address: Option<IpAddr>) -> anyhow::Result<NodeInfo> {
    let name = host.folders.node_name.as_str();
    let uname = rustix::system::uname();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let memory = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(NodeInfo {
        name: name.try_into().map_err(|_| anyhow::anyhow!("node name {name:?} is too long"))?,
        arch: fit(&skeg_images::Platform::host().architecture),
        kernel: fit(&uname.release().to_string_lossy()),
        os: fit(os.trim_matches('"')),
        agent: fit(env!("CARGO_PKG_VERSION")),
        cpus: u16::try_from(cpus).unwrap_or(u16::MAX),
        memory_bytes: memory.totalram * u64::from(memory.mem_unit),
        boot: boot_id()?,
        address,
        user_namespaces: host.ranges.is_some(),
    })
}
