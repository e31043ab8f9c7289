//! `skeg describe`: everything that is known about one pod or node, for a person.

use std::fmt::Write;

use anyhow::{Result, bail};
use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::client::{Client, path};

/// Shows what is known about one object.
#[derive(Debug, Clone, Args)]
pub(crate) struct Describe {
    /// pod or node
    kind: String,
    /// Which one
    name: String,
    /// Namespace
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Shows it.
pub(crate) async fn run(client: &Client, options: &Describe) -> Result<()> {
    let namespace = client.namespace(options.namespace.as_deref());
    let object = client.json(Method::GET, &path(&options.kind, namespace, &options.name)?, None).await?;
    let mut page = Page::default();
    match object["kind"].as_str() {
        Some("Pod") => pod(&mut page, &object),
        Some("Node") => node(&mut page, &object),
        _ => bail!("only pods and nodes can be described; try `skeg get {} {} -o yaml`", options.kind, options.name),
    }
    print!("{}", page.0);
    Ok(())
}

/// Lines of `Name:   value`.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, depth: usize, name: &str, value: &str) {
        let indent = " ".repeat(depth * 2);
        let label = format!("{indent}{name}:");
        // Writing to a String cannot fail.
        let _ = match value {
            "" => writeln!(self.0, "{label}"),
            value => writeln!(self.0, "{label:<20} {value}"),
        };
    }

    /// A line, where there is a value.
    fn maybe(&mut self, depth: usize, name: &str, value: &Value) {
        match value {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            value => self.line(depth, name, &plain(value)),
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn labels(object: &Value) -> String {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    let text: Vec<String> = labels.map(|(name, value)| format!("{name}={}", plain(value))).collect();
    if text.is_empty() { "<none>".to_owned() } else { text.join(",") }
}

fn pod(page: &mut Page, pod: &Value) {
    let (metadata, status) = (&pod["metadata"], &pod["status"]);
    page.maybe(0, "Name", &metadata["name"]);
    page.maybe(0, "Namespace", &metadata["namespace"]);
    page.maybe(0, "UID", &metadata["uid"]);
    page.line(0, "Node", pod["spec"]["nodeName"].as_str().unwrap_or("<none>"));
    page.line(0, "Labels", &labels(pod));
    page.maybe(0, "Created", &metadata["creationTimestamp"]);
    page.maybe(0, "Deleted", &metadata["deletionTimestamp"]);
    page.maybe(0, "Start Time", &status["startTime"]);
    page.line(0, "Status", &crate::api::pod_reason(pod));
    page.maybe(0, "Reason", &status["reason"]);
    page.maybe(0, "Message", &status["message"]);
    page.maybe(0, "Host IP", &status["hostIP"]);
    page.maybe(0, "Restart Policy", &pod["spec"]["restartPolicy"]);
    page.line(0, "User Namespace", user_namespace(&pod["spec"]));
    page.line(0, "Containers", "");
    for spec in list(&pod["spec"]["containers"]) {
        let status = list(&status["containerStatuses"]).iter().find(|status| status["name"] == spec["name"]);
        container(page, spec, status);
    }
    conditions(page, status);
}

fn user_namespace(spec: &Value) -> &'static str {
    match (&spec["hostUsers"], &spec["hostNetwork"]) {
        (Value::Bool(true), _) => "host (hostUsers: true)",
        (_, Value::Bool(true)) => "host (hostNetwork: true)",
        _ => "own",
    }
}

fn container(page: &mut Page, spec: &Value, status: Option<&Value>) {
    page.line(1, &plain(&spec["name"]), "");
    page.maybe(2, "Image", &spec["image"]);
    for (name, field) in [("Command", "command"), ("Args", "args")] {
        let words: Vec<String> = list(&spec[field]).iter().map(plain).collect();
        if !words.is_empty() {
            page.line(2, name, &words.join(" "));
        }
    }
    for port in list(&spec["ports"]) {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let host =
            if port["hostPort"].is_null() { String::new() } else { format!(" on host port {}", port["hostPort"]) };
        page.line(2, "Port", &format!("{}/{protocol}{host}", port["containerPort"]));
    }
    let Some(status) = status else {
        page.line(2, "State", "<unknown>");
        return;
    };
    page.maybe(2, "Image ID", &status["imageID"]);
    state(page, "State", &status["state"]);
    if status["lastState"].as_object().is_some_and(|state| !state.is_empty()) {
        state(page, "Last State", &status["lastState"]);
    }
    page.line(2, "Ready", if status["ready"] == true { "True" } else { "False" });
    page.maybe(2, "Restart Count", &status["restartCount"]);
    for (name, value) in spec["resources"]["limits"].as_object().into_iter().flatten() {
        page.line(2, &format!("Limit {name}"), &plain(value));
    }
}

fn state(page: &mut Page, name: &str, state: &Value) {
    let Some((word, detail)) = state.as_object().and_then(|state| state.iter().next()) else {
        page.line(2, name, "<unknown>");
        return;
    };
    let mut word = word.clone();
    if let Some(first) = word.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    page.line(2, name, &word);
    for (name, field) in [
        ("Reason", "reason"),
        ("Message", "message"),
        ("Exit Code", "exitCode"),
        ("Signal", "signal"),
        ("Started", "startedAt"),
        ("Finished", "finishedAt"),
    ] {
        page.maybe(3, name, &detail[field]);
    }
}

fn conditions(page: &mut Page, status: &Value) {
    page.line(0, "Conditions", "");
    for condition in list(&status["conditions"]) {
        let reason = condition["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let message = condition["message"].as_str().map(|message| format!(": {message}")).unwrap_or_default();
        let text = format!("{}{reason}{message}", plain(&condition["status"]));
        page.line(1, &plain(&condition["type"]), &text);
    }
}

fn node(page: &mut Page, node: &Value) {
    let status = &node["status"];
    page.maybe(0, "Name", &node["metadata"]["name"]);
    page.line(0, "Labels", &labels(node));
    page.maybe(0, "Enrolled", &node["metadata"]["creationTimestamp"]);
    for address in list(&status["addresses"]) {
        page.line(0, &plain(&address["type"]), &plain(&address["address"]));
    }
    page.line(0, "System", "");
    for (name, field) in [
        ("Architecture", "architecture"),
        ("Kernel", "kernelVersion"),
        ("OS", "osImage"),
        ("Agent", "kubeletVersion"),
        ("Boot ID", "bootID"),
    ] {
        page.maybe(1, name, &status["nodeInfo"][field]);
    }
    page.maybe(1, "User Namespaces", &status["runtimeHandlers"][0]["features"]["userNamespaces"]);
    page.line(0, "Capacity", "");
    for (name, value) in status["capacity"].as_object().into_iter().flatten() {
        page.line(1, name, &plain(value));
    }
    conditions(page, status);
}
