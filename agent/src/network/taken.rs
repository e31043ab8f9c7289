//! Who on the device listens on a port already.
//!
//! Reads proc_pid_net(5) and proc_pid_fd(5); the kernel would let a published port take over silently from a program.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use skeg_protocol::manifest::Protocol;

/// States of sockets that take connections or datagrams, as the kernel numbers them.
const LISTENS: &str = "0A";
const UNCONNECTED: &str = "07";

/// The program that listens on the port at this address of the device, or at all of them; for people.
pub fn by(protocol: Protocol, address: IpAddr, port: u16) -> Option<String> {
    let (file, state) = match protocol {
        Protocol::Tcp => ("tcp", LISTENS),
        Protocol::Udp => ("udp", UNCONNECTED),
        Protocol::Sctp => return None,
    };
    [file.to_owned(), format!("{file}6")].iter().find_map(|file| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
        let inode = table.lines().skip(1).find_map(|line| listener(line, state, address, port))?;
        Some(program(inode).unwrap_or_else(|| "a program that can't be seen from here".to_owned()))
    })
}

/// The inode of a line's socket, where it listens on the port.
fn listener(line: &str, state: &str, address: IpAddr, port: u16) -> Option<u64> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (own, own_port) = words.next()?.split_once(':')?;
    let own = hexadecimal(own)?;
    let here = own.is_unspecified() || address.is_unspecified() || own == address;
    let fits = words.nth(1)? == state && u16::from_str_radix(own_port, 16).ok()? == port && here;
    if fits { words.nth(5)?.parse().ok() } else { None }
}

/// Addresses stand there as numbers of 32 bits in the machine's order.
fn hexadecimal(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            Some(address.to_ipv4_mapped().map_or(address.into(), IpAddr::V4))
        }
        _ => None,
    }
}

/// The process that has a socket open.
fn program(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find_map(|pid| {
        let mut descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        descriptors.find(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(format!("{} (pid {pid})", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_of_a_port_is_named() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let by = |address: &str| by(Protocol::Tcp, address.parse().unwrap(), port);
        for address in ["0.0.0.0", "127.0.0.1"] {
            assert!(by(address).unwrap().contains(&format!("(pid {})", std::process::id())), "{:?}", by(address));
        }
        assert_eq!(by("127.0.0.2"), None);
        drop(socket);
        assert_eq!(by("127.0.0.1"), None);
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let loopback = u32::from_ne_bytes([127, 0, 0, 1]);
        assert_eq!(hexadecimal(&format!("{loopback:08X}")), Some("127.0.0.1".parse().unwrap()));
        let mapped = format!("{:016X}{:08X}{loopback:08X}", 0, u32::from_ne_bytes([0, 0, 255, 255]));
        assert_eq!(hexadecimal(&mapped), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(hexadecimal("xyz"), None);
    }
}
