//! What `skegd` reads at boot on one device: `/etc/skeg/skegd.toml`.
//!
//! Owns how that file is written. What it means is the agent's business; the fields are its contract.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::board::Board;

/// Where the join token lies on the device.
pub const JOIN_TOKEN_FILE: &str = "/etc/skeg/join-token";
/// Where the configuration lies on the device.
pub const CONFIG_FILE: &str = "/etc/skeg/skegd.toml";

/// How a device gets its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// From a DHCP server.
    Dhcp,
    /// Always the same one.
    Static {
        /// Name of the interface.
        interface: String,
        /// Its address.
        address: Ipv4Addr,
        /// Length of the network's prefix, in bits.
        prefix: u8,
        /// Where everything else goes.
        gateway: Option<Ipv4Addr>,
    },
    /// Not at all: the device works alone.
    None,
}

/// What tells one device from others of the same board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name of the node.
    pub node_name: String,
    /// Its controller as `host:port`, if it has one.
    pub controller: Option<String>,
    /// How it gets an address.
    pub network: Network,
}

#[derive(Serialize)]
struct File<'a> {
    node_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<Controller<'a>>,
    appliance: Appliance<'a>,
}

#[derive(Serialize)]
struct Controller<'a> {
    address: &'a str,
    join_token_file: &'a str,
}

#[derive(Serialize)]
struct Appliance<'a> {
    modules: &'a [String],
    state_device: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    watchdog: Option<&'a PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a str>,
    network: toml::Value,
}

/// Returns the text of the configuration file for `device` on `board`, with `modules` in load order.
pub fn write(board: &Board, device: &Device, modules: &[String]) -> Result<String, toml::ser::Error> {
    let appliance = Appliance {
        modules,
        state_device: &board.appliance.state_device,
        watchdog: board.appliance.watchdog.as_ref(),
        interface: match device.network {
            Network::Dhcp => board.appliance.interface.as_deref(),
            Network::Static { .. } | Network::None => None,
        },
        network: network(&device.network),
    };
    let controller =
        device.controller.as_deref().map(|address| Controller { address, join_token_file: JOIN_TOKEN_FILE });
    toml::to_string(&File { node_name: &device.node_name, controller, appliance })
}

fn network(network: &Network) -> toml::Value {
    match network {
        Network::Dhcp => toml::Value::from("dhcp"),
        Network::None => toml::Value::from("none"),
        Network::Static { interface, address, prefix, gateway } => {
            let mut table = toml::Table::new();
            table.insert("interface".to_owned(), interface.clone().into());
            table.insert("address".to_owned(), format!("{address}/{prefix}").into());
            if let Some(gateway) = gateway {
                table.insert("gateway".to_owned(), gateway.to_string().into());
            }
            table.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_the_agent_reads() {
        let text = r#"
description = "a board"
architecture = "x86_64"
[kernel]
package = "linux-image-cloud-amd64"
command_line = []
[appliance]
modules = ["overlay"]
state_device = "/dev/vda"
watchdog = "/dev/watchdog"
interface = "eth1"
"#;
        let board = Board::parse(Path::new("x"), text).unwrap();
        let network = Network::Static {
            interface: "eth0".to_owned(),
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
        };
        let mut device =
            Device { node_name: "kiln-7".to_owned(), controller: Some("10.0.2.2:7443".to_owned()), network };
        let modules = ["overlay".to_owned()];
        let expected = r#"node_name = "kiln-7"

[controller]
address = "10.0.2.2:7443"
join_token_file = "/etc/skeg/join-token"

[appliance]
modules = ["overlay"]
state_device = "/dev/vda"
watchdog = "/dev/watchdog"

[appliance.network]
address = "10.0.2.15/24"
gateway = "10.0.2.2"
interface = "eth0"
"#;
        assert_eq!(write(&board, &device, &modules).unwrap(), expected);
        device.network = Network::Dhcp;
        device.controller = None;
        let short = write(&board, &device, &modules).unwrap();
        assert!(short.contains("interface = \"eth1\"\nnetwork = \"dhcp\"\n"), "{short}");
        assert!(!short.contains("[controller]"), "{short}");
    }
}
