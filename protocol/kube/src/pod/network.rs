//! Ports, names and addresses of a pod.

use std::net::IpAddr;

use skeg_protocol::manifest::{Dns, DnsPolicy, HostAlias, Port, Protocol};

use crate::cursor::{Cursor, Fault, Fields};

/// The transport of a port; TCP where none is written.
pub(crate) fn port_protocol(at: &Cursor<'_>) -> Result<Protocol, Fault> {
    let Some(protocol) = at.get("protocol")? else { return Ok(Protocol::Tcp) };
    match protocol.text()? {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(protocol.invalid("must be TCP, UDP or SCTP")),
    }
}

pub(super) fn port(at: &Cursor<'_>, host_network: bool) -> Result<Port, Fault> {
    at.fields(&Fields {
        read: &["containerPort", "hostPort", "hostIP", "protocol", "name"],
        ignored: &[],
        unsupported: &[],
    })?;
    let number = |name| -> Result<Option<u16>, Fault> {
        let Some(number) = at.get(name)? else { return Ok(None) };
        match number.integer()? {
            0 => Err(number.invalid("must be 1 to 65535")),
            port => Ok(Some(port)),
        }
    };
    let host_ip = match at.get("hostIP")? {
        Some(address) if !address.text()?.is_empty() => {
            let address: IpAddr = address.text()?.parse().map_err(|_| address.invalid("must be an IP address"))?;
            Some(address).filter(|address| !address.is_unspecified())
        }
        _ => None,
    };
    at.need("containerPort")?;
    let (container_port, host_port) = (number("containerPort")?.unwrap_or_default(), number("hostPort")?);
    if host_network && host_port.is_some_and(|port| port != container_port) {
        return Err(at.invalid("hostPort must be the containerPort when hostNetwork is true"));
    }
    Ok(Port {
        name: at.get("name")?.map(|name| name.bounded()).transpose()?.unwrap_or_default(),
        container_port,
        // With the device's own network there is nothing to publish.
        host_port: host_port.filter(|_| !host_network),
        host_ip,
        protocol: port_protocol(at)?,
    })
}

pub(super) fn dns(spec: &Cursor<'_>, host_network: bool) -> Result<Dns, Fault> {
    let mut dns = Dns::default();
    if let Some(policy) = spec.get("dnsPolicy")? {
        dns.policy = match policy.text()? {
            // As Kubernetes says: with the node's network it is the node's way of asking.
            "ClusterFirst" if host_network => DnsPolicy::Default,
            "ClusterFirst" | "ClusterFirstWithHostNet" => DnsPolicy::ClusterFirst,
            "Default" => DnsPolicy::Default,
            "None" => DnsPolicy::None,
            _ => return Err(policy.invalid("must be ClusterFirst, ClusterFirstWithHostNet, Default or None")),
        };
    } else if host_network {
        dns.policy = DnsPolicy::Default;
    }
    let Some(config) = spec.get("dnsConfig")? else { return Ok(dns) };
    config.fields(&Fields { read: &["nameservers", "searches", "options"], ignored: &[], unsupported: &[] })?;
    dns.servers = config
        .each("nameservers", |server| server.text()?.parse().map_err(|_| server.invalid("must be an IP address")))?;
    dns.searches = config.each("searches", |domain| domain.bounded())?;
    dns.options = config.each("options", |option| {
        option.fields(&Fields { read: &["name", "value"], ignored: &[], unsupported: &[] })?;
        let (name, value) = (option.need("name")?.text()?, option.word("value")?);
        let text = if value.is_empty() { name.to_owned() } else { format!("{name}:{value}") };
        heapless::String::try_from(text.as_str()).map_err(|_| option.invalid("must have at most 63 bytes"))
    })?;
    Ok(dns)
}

pub(super) fn host_alias(at: &Cursor<'_>) -> Result<HostAlias, Fault> {
    at.fields(&Fields { read: &["ip", "hostnames"], ignored: &[], unsupported: &[] })?;
    let ip = at.need("ip")?;
    let address = ip.text()?.parse().map_err(|_| ip.invalid("must be an IP address"))?;
    Ok(HostAlias { ip: Some(address), hostnames: at.each("hostnames", |name| name.bounded())? })
}
