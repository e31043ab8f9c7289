//! Services.

use std::net::IpAddr;

use serde_json::{Value, json};
use skeg_protocol::manifest::{Service, ServiceKind, ServicePort, TargetPort};

use crate::cursor::{Cursor, Fault, Fields};
use crate::pod::{METADATA, port_protocol};

const TOP: Fields =
    Fields { read: &["metadata", "spec"], ignored: &["apiVersion", "kind", "status"], unsupported: &[] };
const SPEC: Fields = Fields {
    read: &[
        "type",
        "clusterIP",
        "clusterIPs",
        "externalName",
        "externalTrafficPolicy",
        "ports",
        "publishNotReadyAddresses",
        "selector",
        "sessionAffinity",
        "sessionAffinityConfig",
    ],
    // Clusters of clouds and of several ranges fill these in; on a device they say what is so anyway.
    ignored: &[
        "allocateLoadBalancerNodePorts",
        "internalTrafficPolicy",
        "ipFamilies",
        "ipFamilyPolicy",
        "trafficDistribution",
    ],
    unsupported: &[
        "externalIPs",
        "healthCheckNodePort",
        "loadBalancerClass",
        "loadBalancerIP",
        "loadBalancerSourceRanges",
    ],
};
/// Seconds of session affinity where none are written.
const AFFINITY: u32 = 10_800;

/// Converts a Service. A `LoadBalancer` is a `NodePort`: no cloud stands before a device. A node port that is left out
/// stays so; whoever keeps the objects chooses it.
///
/// # Errors
/// The first field that is unknown, unsupported or breaks a rule.
pub fn convert_service(object: &Value) -> Result<Service, Fault> {
    let top = Cursor::new(object, "");
    top.fields(&TOP)?;
    let (metadata, spec) = (top.need("metadata")?, top.need("spec")?);
    metadata.fields(&METADATA)?;
    spec.fields(&SPEC)?;
    spec.only("type", &["", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].map(Value::from))?;
    let kind = match spec.word("type")? {
        "ExternalName" => ServiceKind::ExternalName(spec.need("externalName")?.text()?.to_ascii_lowercase()),
        _ => cluster_ip(&spec)?,
    };
    let outside = matches!(spec.word("type")?, "NodePort" | "LoadBalancer");
    if outside && kind == ServiceKind::Headless {
        return Err(spec.need("clusterIP")?.invalid("must be left out when type is NodePort or LoadBalancer"));
    }
    spec.only("externalTrafficPolicy", &[json!(""), json!("Cluster"), json!("Local")])?;
    let ports = spec.each("ports", |at| port(at, outside))?;
    let portless = matches!(kind, ServiceKind::ExternalName(_) | ServiceKind::Headless);
    if ports.is_empty() && !portless {
        return Err(spec.need("ports").err().unwrap_or_else(|| spec.wrong("ports must not be empty")));
    }
    let service = Service {
        namespace: metadata.need("namespace")?.bounded()?,
        name: metadata.need("name")?.bounded()?,
        kind,
        selector: spec.text_map("selector")?,
        ports,
        affinity_seconds: affinity(&spec)?,
        external_local: spec.word("externalTrafficPolicy")? == "Local",
        publish_not_ready: spec.flag("publishNotReadyAddresses")?,
    };
    service.validate()?;
    Ok(service)
}

fn cluster_ip(spec: &Cursor<'_>) -> Result<ServiceKind, Fault> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut list = spec.items("clusterIPs")?;
    if list.is_empty() {
        list.extend(spec.get("clusterIP")?);
    }
    for at in list {
        match at.text()? {
            "None" => return Ok(ServiceKind::Headless),
            "" => {}
            text => addresses.push(text.parse().map_err(|_| at.invalid("must be an IP address or None"))?),
        }
    }
    Ok(ServiceKind::ClusterIp(addresses))
}

fn port(at: &Cursor<'_>, outside: bool) -> Result<ServicePort, Fault> {
    at.fields(&Fields {
        read: &["name", "protocol", "port", "targetPort", "nodePort"],
        ignored: &["appProtocol"],
        unsupported: &[],
    })?;
    let port = at.need("port")?.integer()?;
    let target = match at.get("targetPort")? {
        None => TargetPort::Number(port),
        Some(target) => match target.value() {
            Value::String(_) => TargetPort::Name(target.bounded()?),
            // Kubernetes takes a zero for a missing number.
            _ => TargetPort::Number(Some(target.integer()?).filter(|number| *number != 0).unwrap_or(port)),
        },
    };
    let node_port = at.number("nodePort")?.filter(|number| *number != 0);
    if node_port.is_some() && !outside {
        return Err(at.need("nodePort")?.invalid("may only be there when type is NodePort or LoadBalancer"));
    }
    let name = at.get("name")?.map(|name| name.bounded()).transpose()?.unwrap_or_default();
    Ok(ServicePort { name, protocol: port_protocol(at)?, port, target, node_port })
}

fn affinity(spec: &Cursor<'_>) -> Result<Option<u32>, Fault> {
    spec.only("sessionAffinity", &[json!(""), json!("None"), json!("ClientIP")])?;
    if spec.word("sessionAffinity")? != "ClientIP" {
        return Ok(None);
    }
    let Some(config) = spec.get("sessionAffinityConfig")? else { return Ok(Some(AFFINITY)) };
    config.fields(&Fields { read: &["clientIP"], ignored: &[], unsupported: &[] })?;
    let Some(client) = config.get("clientIP")? else { return Ok(Some(AFFINITY)) };
    client.fields(&Fields { read: &["timeoutSeconds"], ignored: &[], unsupported: &[] })?;
    Ok(Some(client.number("timeoutSeconds")?.unwrap_or(AFFINITY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Result<Service, String> {
        let object = json!({"kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        convert_service(&object).map_err(|fault| fault.to_string())
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let plain = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]})).unwrap();
        assert_eq!(plain.kind, ServiceKind::ClusterIp(Vec::new()));
        assert_eq!(plain.ports[0].target, TargetPort::Number(80));
        assert_eq!((plain.affinity_seconds, plain.external_local, plain.publish_not_ready), (None, false, false));
        let sticky = service(json!({"sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": "http"}]}));
        let sticky = sticky.unwrap();
        assert_eq!(sticky.affinity_seconds, Some(10_800));
        assert_eq!(sticky.ports[0].target, TargetPort::Name("http".try_into().unwrap()));
    }

    #[test]
    fn each_kind_has_its_fields() {
        let headless = service(json!({"clusterIP": "None", "publishNotReadyAddresses": true})).unwrap();
        assert_eq!(headless.kind, ServiceKind::Headless);
        assert!(headless.publish_not_ready);
        let outside = json!({
            "type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}],
        });
        let outside = service(outside).unwrap();
        assert_eq!((outside.ports[0].node_port, outside.external_local), (Some(30080), true));
        let named = service(json!({"type": "ExternalName", "externalName": "Db.Example.ORG"})).unwrap();
        assert_eq!(named.kind, ServiceKind::ExternalName("db.example.org".to_owned()));
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        for (spec, part) in [
            (json!({}), "spec.ports: is required"),
            (json!({"ports": [{"port": 1}, {"port": 2}]}), "spec.ports[0].name: must be a DNS label"),
            (json!({"ports": [{"port": 1, "nodePort": 30000}]}), "spec.ports[0].nodePort: 30000 may only be there"),
            (json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]}), "spec.clusterIP"),
            (json!({"clusterIP": "x", "ports": [{"port": 1}]}), "spec.clusterIP: \"x\" must be an IP address"),
            (json!({"externalIPs": ["1.2.3.4"], "ports": [{"port": 1}]}), "spec.externalIPs: not supported yet"),
        ] {
            let text = service(spec).unwrap_err();
            assert!(text.contains(part), "{text}");
        }
    }
}
