//! What a pod finds in its `/etc` about names: resolv.conf(5) and hosts(5).

use std::fmt::Write as _;
use std::net::IpAddr;

use skeg_protocol::Pod;
use skeg_protocol::manifest::DnsPolicy;

use super::names::{DOMAIN, hostname};

/// How a pod's resolver asks. `servers` are the device's own addresses in the pod's networks, `device` is the device's
/// own file.
pub fn resolver(pod: &Pod, servers: &[IpAddr], device: &str) -> String {
    let own = pod.dns.policy == DnsPolicy::ClusterFirst && !servers.is_empty();
    let mut text = match pod.dns.policy {
        DnsPolicy::ClusterFirst | DnsPolicy::Default if !own && !pod.no_network => format!("{}\n", device.trim_end()),
        _ => String::new(),
    };
    let servers = servers.iter().filter(|_| own).chain(&pod.dns.servers);
    for server in servers {
        // A String takes everything.
        writeln!(text, "nameserver {server}").ok();
    }
    let namespace = &pod.namespace;
    let domains = [format!("{namespace}.svc.{DOMAIN}"), format!("svc.{DOMAIN}"), DOMAIN.to_owned()];
    let searches: Vec<&str> = domains
        .iter()
        .filter(|_| own)
        .map(String::as_str)
        .chain(pod.dns.searches.iter().map(|name| name.as_str()))
        .collect();
    if !searches.is_empty() {
        writeln!(text, "search {}", searches.join(" ")).ok();
    }
    let dots = ["ndots:5"].into_iter().filter(|_| own);
    let options: Vec<&str> = dots.chain(pod.dns.options.iter().map(|option| option.as_str())).collect();
    if !options.is_empty() {
        writeln!(text, "options {}", options.join(" ")).ok();
    }
    text
}

/// The names that need no question: the pod's own and those that it was given. `gateway` is the device's address.
pub fn hosts(pod: &Pod, own: &[IpAddr], gateway: Option<IpAddr>) -> String {
    let name = hostname(pod);
    let full = pod.subdomain.as_ref().map(|subdomain| format!("{name}.{subdomain}.{}.svc.{DOMAIN}\t", pod.namespace));
    let full = full.unwrap_or_default();
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if own.is_empty() {
        writeln!(text, "127.0.0.1\t{full}{name}").ok();
    }
    for address in own {
        writeln!(text, "{address}\t{full}{name}").ok();
    }
    text + &aliases(pod, gateway)
}

/// The names that a pod was given.
pub fn aliases(pod: &Pod, gateway: Option<IpAddr>) -> String {
    let mut text = String::new();
    for alias in &pod.host_aliases {
        if let Some(address) = alias.ip.or(gateway) {
            let names: Vec<&str> = alias.hostnames.iter().map(|name| name.as_str()).collect();
            writeln!(text, "{address}\t{}", names.join(" ")).ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use skeg_protocol::manifest::{Dns, HostAlias};

    #[test]
    fn the_files_say_what_the_pod_wants() {
        let mut pod = Pod {
            namespace: "shop".try_into().unwrap(),
            name: "db-0".try_into().unwrap(),
            subdomain: Some("db".try_into().unwrap()),
            host_aliases: vec![HostAlias { ip: None, hostnames: vec!["device".try_into().unwrap()] }],
            ..Pod::default()
        };
        let gateway: IpAddr = "10.223.0.1".parse().unwrap();
        let device = "nameserver 192.0.2.53\n";
        assert_eq!(
            resolver(&pod, &[gateway], device),
            "nameserver 10.223.0.1\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        );
        assert_eq!(resolver(&pod, &[], device), device, "on the device's own network");
        let hosts = hosts(&pod, &["10.223.0.7".parse().unwrap()], Some(gateway));
        assert!(hosts.contains("\n10.223.0.7\tdb-0.db.shop.svc.cluster.local\tdb-0\n10.223.0.1\tdevice\n"), "{hosts}");
        pod.dns = Dns {
            policy: DnsPolicy::None,
            servers: vec!["192.0.2.1".parse().unwrap()],
            searches: vec!["example.org".try_into().unwrap()],
            options: vec!["ndots:2".try_into().unwrap()],
        };
        let own = "nameserver 192.0.2.1\nsearch example.org\noptions ndots:2\n";
        assert_eq!(resolver(&pod, &[gateway], device), own);
        pod.dns.policy = DnsPolicy::Default;
        assert_eq!(resolver(&pod, &[gateway], device), format!("{device}{own}"));
    }
}
