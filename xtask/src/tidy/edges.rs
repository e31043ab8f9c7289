//! Who may depend on whom among our own crates: the drawing of docs/ARCHITECTURE.md as a table. Tests and tools
//! keep to it as well.

use serde_json::Value;

/// Crate, and the crates of ours that it may use.
const DRAWN: &[(&str, &[&str])] = &[
    ("skeg-protocol", &[]),
    ("skeg-kube", &["skeg-protocol"]),
    ("skeg-runtime", &[]),
    ("skeg-images", &[]),
    ("skeg-disk", &[]),
    ("skeg-agent", &["skeg-protocol", "skeg-kube", "skeg-runtime", "skeg-images"]),
    ("skeg-controller", &["skeg-protocol", "skeg-kube", "skeg-images", "skeg-disk"]),
    ("skeg-qemu-tests", &["skeg-disk"]),
    ("demo-web", &[]),
    // Stands in for the crate of that name, for oci-spec.
    ("regex", &[]),
    // Not drawn as a part of the product: the benches measure the runtime and the image store, and the simulation drives
    // the protocol.
    ("xtask", &["skeg-runtime", "skeg-images", "skeg-protocol"]),
];

/// Finds edges that are not drawn, in the output of `cargo metadata --no-deps`.
pub(super) fn check(metadata: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = text(&package["name"]);
        let Some((_, allowed)) = DRAWN.iter().find(|(drawn, _)| *drawn == name) else {
            findings.push(format!("{name}: this crate is not drawn in docs/ARCHITECTURE.md (nor in tidy/edges.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = text(&dependency["name"]);
            if dependency["path"].is_string() && !allowed.contains(&used.as_str()) {
                findings.push(format!("{name} -> {used}: this edge is not drawn in docs/ARCHITECTURE.md"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, used: &[&str]) -> Value {
        let used: Vec<Value> = used.iter().map(|name| json!({ "name": name, "path": format!("/{name}") })).collect();
        json!({ "name": name, "dependencies": used })
    }

    #[test]
    fn a_drawn_edge_passes_and_another_does_not() {
        let good = json!({ "packages": [package("skeg-agent", &["skeg-runtime"]), package("skeg-runtime", &[])] });
        assert!(check(&good).is_empty());
        let bad = json!({ "packages": [package("skeg-runtime", &["skeg-protocol"]), package("skeg-new", &[])] });
        let findings = check(&bad).join("\n");
        assert!(findings.contains("skeg-runtime -> skeg-protocol") && findings.contains("skeg-new"), "{findings}");
    }

    #[test]
    fn others_crates_are_no_edges() {
        let package = json!({ "name": "skeg-protocol", "dependencies": [{ "name": "serde", "path": null }] });
        assert!(check(&json!({ "packages": [package] })).is_empty());
    }
}
