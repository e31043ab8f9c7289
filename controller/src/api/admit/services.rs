//! Services: their address and node ports, given out here, and their defaults.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::rules::one_of;
use super::{default, name_of};
use crate::api::ApiError;
use crate::api::error::Cause;
use crate::app::App;
use crate::store::Store;

/// First and last address that is given out: 10.96.0.0/16 without its ends and its first hundred, which stay free for
/// addresses that people choose.
const ADDRESSES: (u32, u32) = (0x0a60_0064, 0x0a60_fffe);
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

/// Fills in and checks a Service.
pub(super) fn admit(app: &App, service: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
    let name = name_of(service).to_owned();
    let namespace = service["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let spec = &mut service["spec"];
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    default(spec, "internalTrafficPolicy", json!("Cluster"));
    let mut causes = Vec::new();
    one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &mut causes);
    one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"], &mut causes);
    let others: Vec<Value> = app.store.list("Service", None)?.items;
    let others = others.iter().filter(|other| name_of(other) != name || other["metadata"]["namespace"] != *namespace);
    let (addresses, ports) = taken(others);
    if spec["type"] == "ExternalName" {
        if spec["externalName"].as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required("spec.externalName", ""));
        }
    } else {
        self::ports(spec, old, &ports, &mut causes);
        address(spec, old, &addresses, &mut causes);
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::causes("Service", &name, &causes)) }
}

fn taken<'a>(others: impl Iterator<Item = &'a Value>) -> (BTreeSet<String>, BTreeSet<i64>) {
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for other in others {
        addresses.extend(other["spec"]["clusterIP"].as_str().map(str::to_owned));
        ports.extend(
            other["spec"]["ports"].as_array().into_iter().flatten().filter_map(|port| port["nodePort"].as_i64()),
        );
    }
    (addresses, ports)
}

fn ports(spec: &mut Value, old: Option<&Value>, taken: &BTreeSet<i64>, causes: &mut Vec<Cause>) {
    let published = matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    let headless = spec["clusterIP"] == "None";
    let list = spec.get_mut("ports").and_then(Value::as_array_mut);
    let count = list.as_ref().map_or(0, |list| list.len());
    if count == 0 && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    let mut own: BTreeSet<i64> = BTreeSet::new();
    for (index, port) in list.into_iter().flatten().enumerate() {
        let path = format!("spec.ports[{index}]");
        default(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        default(port, "targetPort", number.clone());
        if !number.as_i64().is_some_and(|number| (1..=65_535).contains(&number)) {
            causes.push(Cause::invalid(&format!("{path}.port"), &number, "must be between 1 and 65535, inclusive"));
        }
        if count > 1 && port["name"].as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required(&format!("{path}.name"), ""));
        }
        if !published {
            port.as_object_mut().map(|port| port.remove("nodePort"));
            continue;
        }
        // A port that is not named again stays what it was.
        let before = old.and_then(|old| {
            old["spec"]["ports"]
                .as_array()?
                .iter()
                .find(|old| old["port"] == port["port"] && old["protocol"] == port["protocol"])
        });
        let wanted = port["nodePort"].as_i64().filter(|number| *number != 0);
        match wanted {
            Some(wanted) if !NODE_PORTS.contains(&wanted) => {
                let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
                causes.push(Cause::invalid(&format!("{path}.nodePort"), &json!(wanted), why));
            }
            Some(wanted) if taken.contains(&wanted) || own.contains(&wanted) => {
                let why = "provided port is already allocated";
                causes.push(Cause::invalid(&format!("{path}.nodePort"), &json!(wanted), why));
            }
            Some(wanted) => drop(own.insert(wanted)),
            None => {
                let kept = before.and_then(|old| old["nodePort"].as_i64()).filter(|port| !own.contains(port));
                let free = || NODE_PORTS.clone().find(|port| !taken.contains(port) && !own.contains(port));
                match kept.or_else(free) {
                    Some(number) => {
                        own.insert(number);
                        port["nodePort"] = json!(number);
                    }
                    None => causes.push(Cause::forbidden(&format!("{path}.nodePort"), "no node port is free")),
                }
            }
        }
    }
}

fn address(spec: &mut Value, old: Option<&Value>, taken: &BTreeSet<String>, causes: &mut Vec<Cause>) {
    let before = old.and_then(|old| old["spec"]["clusterIP"].as_str()).filter(|address| !address.is_empty());
    let wanted = spec["clusterIP"].as_str().filter(|address| !address.is_empty()).map(str::to_owned);
    match (wanted, before) {
        (Some(wanted), Some(before)) if wanted != before => {
            causes.push(Cause::invalid("spec.clusterIP", &json!(wanted), "field is immutable"));
        }
        (Some(wanted), None) if wanted != "None" => {
            if wanted.parse::<Ipv4Addr>().is_err() {
                causes.push(Cause::invalid("spec.clusterIP", &json!(wanted), "must be a valid IPv4 address or None"));
            } else if taken.contains(&wanted) {
                causes.push(Cause::invalid("spec.clusterIP", &json!(wanted), "provided IP is already allocated"));
            }
        }
        (Some(_), _) => {}
        (None, Some(before)) => spec["clusterIP"] = json!(before),
        (None, None) => {
            let free = (ADDRESSES.0..=ADDRESSES.1).map(|bits| Ipv4Addr::from_bits(bits).to_string());
            match free.into_iter().find(|address| !taken.contains(address)) {
                Some(address) => spec["clusterIP"] = json!(address),
                None => causes.push(Cause::forbidden("spec.clusterIP", "no address is free")),
            }
        }
    }
    spec["clusterIPs"] = json!([spec["clusterIP"]]);
    default(spec, "ipFamilies", json!(["IPv4"]));
    default(spec, "ipFamilyPolicy", json!("SingleStack"));
    if matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    }
}
