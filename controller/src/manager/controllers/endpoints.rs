//! The addresses behind a Service: its Endpoints and EndpointSlice, from the pods that it selects.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::world::World;
use super::common::{is_leaving, is_over, is_ready, name, reference};
use super::{Deed, Plan};
use crate::selector;
use crate::store::Key;

/// A pod that a Service selects and that has an address.
struct End<'a> {
    pod: &'a Value,
    address: &'a str,
    ready: bool,
}

/// The number of a Service's port in a pod; a name is looked up among its containers' ports.
fn target(port: &Value, pod: &Value) -> Option<i64> {
    match &port["targetPort"] {
        Value::Null => port["port"].as_i64(),
        Value::String(name) => {
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            let found =
                ports.find(|port| port["name"] == **name && port["protocol"].as_str().unwrap_or("TCP") == protocol);
            found.and_then(|port| port["containerPort"].as_i64())
        }
        number => number.as_i64(),
    }
}

fn target_reference(pod: &Value) -> Value {
    json!({
        "kind": "Pod", "name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"],
        "uid": pod["metadata"]["uid"],
    })
}

/// What is to be done about a Service.
pub(super) fn plan(world: &World, service: &Value) -> Plan {
    let mut plan = Plan::default();
    let spec = &service["spec"];
    if spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) || spec["type"] == "ExternalName" {
        // Without a selector somebody else writes the addresses.
        return plan;
    }
    let namespace = service["metadata"]["namespace"].as_str().unwrap_or_default();
    let eager = spec["publishNotReadyAddresses"] == true;
    let mut ends: Vec<End<'_>> = world
        .within("Pod", namespace)
        .filter(|pod| selector::has_all(&spec["selector"], &pod["metadata"]["labels"]) && !is_over(pod))
        .filter_map(|pod| {
            let address = pod["status"]["podIP"].as_str().filter(|address| !address.is_empty())?;
            Some(End { pod, address, ready: eager || (is_ready(pod) && !is_leaving(pod)) })
        })
        .collect();
    ends.sort_by_key(|end| end.address);
    write(world, service, "Endpoints", json!({"subsets": subsets(spec, &ends)}), &mut plan);
    write(world, service, "EndpointSlice", slice(spec, &ends), &mut plan);
    plan
}

/// Addresses by the ports that they have: pods may give one name different numbers.
fn subsets(spec: &Value, ends: &[End<'_>]) -> Vec<Value> {
    let mut groups: BTreeMap<String, (Vec<Value>, [Vec<Value>; 2])> = BTreeMap::new();
    for end in ends {
        let ports: Vec<Value> = ports(spec, end.pod);
        let group = groups.entry(json!(ports).to_string()).or_insert_with(|| (ports, Default::default()));
        let address =
            json!({"ip": end.address, "nodeName": end.pod["spec"]["nodeName"], "targetRef": target_reference(end.pod)});
        group.1[usize::from(!end.ready)].push(address);
    }
    let subset = |(ports, [ready, waiting]): (Vec<Value>, [Vec<Value>; 2])| {
        let mut subset = json!({"ports": ports});
        for (field, list) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            if !list.is_empty() {
                subset[field] = Value::Array(list);
            }
        }
        subset
    };
    groups.into_values().map(subset).collect()
}

fn ports(spec: &Value, pod: &Value) -> Vec<Value> {
    let ports = spec["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(|port| {
            let mut shown = json!({"port": target(port, pod)?, "protocol": port["protocol"].as_str().unwrap_or("TCP")});
            if let Some(name) = port["name"].as_str() {
                shown["name"] = json!(name);
            }
            Some(shown)
        })
        .collect()
}

fn slice(spec: &Value, ends: &[End<'_>]) -> Value {
    let shown: Vec<Value> = ends
        .iter()
        .map(|end| {
            let leaving = is_leaving(end.pod);
            json!({
                "addresses": [end.address], "nodeName": end.pod["spec"]["nodeName"], "targetRef": target_reference(end.pod),
                "conditions": {"ready": end.ready, "serving": is_ready(end.pod), "terminating": leaving},
            })
        })
        .collect();
    let ports = ends.first().map(|end| ports(spec, end.pod)).unwrap_or_default();
    json!({"addressType": "IPv4", "endpoints": shown, "ports": ports})
}

/// Makes or changes an object of the Service's name, where it says something else.
fn write(world: &World, service: &Value, kind: &str, content: Value, plan: &mut Plan) {
    let namespace = service["metadata"]["namespace"].as_str().unwrap_or_default();
    let old = world.get(&Key::new(kind, namespace, name(service)));
    let mut object = old.cloned().unwrap_or_else(|| {
        let api_version = if kind == "Endpoints" { "v1" } else { "discovery.k8s.io/v1" };
        let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        if kind == "EndpointSlice" {
            labels.insert("kubernetes.io/service-name".to_owned(), json!(name(service)));
            labels.insert("endpointslice.kubernetes.io/managed-by".to_owned(), json!("endpointslice-controller.k8s.io"));
        }
        json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": {
                "name": name(service), "namespace": namespace, "labels": labels, "ownerReferences": [reference(service)],
            },
        })
    });
    for (field, value) in content.as_object().into_iter().flatten() {
        object[field] = value.clone();
    }
    match old {
        None => plan.add(Deed::Create(object)),
        Some(old) if *old != object => plan.add(Deed::Replace(object)),
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, address: &str, ready: bool, port: i64) -> Value {
        json!({
            "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"a": "b"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "http", "containerPort": port}]}]},
            "status": {
                "phase": "Running", "podIP": address,
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        })
    }

    #[test]
    fn ready_pods_are_behind_a_service_with_the_numbers_of_their_ports() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default", "uid": "s"},
            "spec": {"selector": {"a": "b"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        });
        let world = World::of([
            pod("x", "10.0.0.2", true, 8080),
            pod("y", "10.0.0.1", false, 8080),
            pod("z", "10.0.0.3", true, 9090),
        ]);
        let plan = plan(&world, &service);
        let [Deed::Create(endpoints), Deed::Create(slice)] = plan.deeds.as_slice() else { panic!("{plan:?}") };
        let subsets = endpoints["subsets"].as_array().unwrap();
        assert_eq!(subsets.len(), 2);
        assert_eq!(subsets[0]["addresses"][0]["ip"], "10.0.0.2");
        assert_eq!(subsets[0]["notReadyAddresses"][0]["ip"], "10.0.0.1");
        assert_eq!(subsets[1]["ports"][0]["port"], 9090);
        assert_eq!(slice["endpoints"].as_array().unwrap().len(), 3);
    }
}
