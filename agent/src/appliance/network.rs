//! The board's own network, set up by the agent: a fixed address or DHCP.
//!
//! Owns the address, the default route and `/etc/resolv.conf`. Never ends, never gives up, and nothing waits for it:
//! pods start without a network. A new agent finds the address of the old one and keeps it.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use crate::config::{Appliance, FixedNetwork, Network};

use super::dhcp::{self, Setting};
use super::netlink;

/// Where name servers are written.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Between two looks for an interface that is not there yet, such as a USB card.
const INTERFACE_PERIOD: Duration = Duration::from_secs(2);

/// Tells, in the agent, whether its init is the first process: only then is the network skeg's.
pub fn is_board() -> bool {
    rustix::process::getppid().is_some_and(rustix::process::Pid::is_init)
}

/// Keeps the board's network set up for as long as the agent runs. `hostname` is told to DHCP servers.
pub async fn network(board: Appliance, hostname: String) {
    match board.network {
        Network::None => std::future::pending().await,
        Network::Fixed(fixed) => {
            let interface = interface(fixed.interface.clone().or(board.interface)).await;
            while let Err(error) = set_fixed(&interface, &fixed) {
                log::error!("network: {interface} can't get {}: {error}", fixed.address.address);
                tokio::time::sleep(INTERFACE_PERIOD).await;
            }
            std::future::pending().await
        }
        Network::Dhcp => {
            let interface = interface(board.interface).await;
            while let Err(error) = netlink::set_up(&interface) {
                log::error!("network: {interface} can't be brought up: {error}");
                tokio::time::sleep(INTERFACE_PERIOD).await;
            }
            dhcp::run(&interface, &hostname, &|setting| apply(&interface, Path::new(RESOLV_CONF), setting)).await
        }
    }
}

/// Waits for the named interface, or for the first that is not the loopback.
async fn interface(name: Option<String>) -> String {
    let mut told = false;
    loop {
        let found = match &name {
            Some(name) => netlink::index(name).map(|_| Some(name.clone())),
            None => netlink::first_interface(),
        };
        match found {
            Ok(Some(name)) => return name,
            _ if told => {}
            _ => {
                log::warn!("network: waiting for {}", name.as_deref().unwrap_or("an interface"));
                told = true;
            }
        }
        tokio::time::sleep(INTERFACE_PERIOD).await;
    }
}

fn set_fixed(interface: &str, fixed: &FixedNetwork) -> io::Result<()> {
    netlink::set_up(interface)?;
    netlink::add_address(interface, fixed.address)?;
    if let Some(gateway) = fixed.gateway {
        netlink::set_default_route(interface, gateway)?;
    }
    if !fixed.nameservers.is_empty() {
        write_resolv_conf(Path::new(RESOLV_CONF), &fixed.nameservers)?;
    }
    log::info!("network: {interface} has {}/{}", fixed.address.address, fixed.address.length);
    Ok(())
}

/// Makes the interface what a lease says, or takes an address away when its lease is over.
pub(super) fn apply(interface: &str, resolv_conf: &Path, setting: Setting<'_>) {
    let result = match setting {
        Setting::Take(lease) => take(interface, resolv_conf, lease),
        Setting::Drop(prefix) => netlink::remove_address(interface, prefix),
    };
    if let Err(error) = result {
        log::error!("network: {interface} can't be set up: {error}");
    }
}

fn take(interface: &str, resolv_conf: &Path, lease: &dhcp::Lease) -> io::Result<()> {
    for old in netlink::addresses(interface)?.into_iter().filter(|old| *old != lease.prefix) {
        netlink::remove_address(interface, old)?;
    }
    netlink::add_address(interface, lease.prefix)?;
    if let Some(gateway) = lease.gateway {
        netlink::set_default_route(interface, gateway)?;
    }
    if !lease.nameservers.is_empty() {
        write_resolv_conf(resolv_conf, &lease.nameservers)?;
    }
    Ok(())
}

/// Replaces the file as a whole: a resolver that reads it at the same time sees the old or the new one.
fn write_resolv_conf(path: &Path, nameservers: &[Ipv4Addr]) -> io::Result<()> {
    let text: String = nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
