//! `skeg get`: tables as kubectl prints them, or the objects themselves.

use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use hyper::Method;
use serde_json::{Value, json};

use super::client::{Client, path};

/// Shows objects.
#[derive(Debug, Clone, Args)]
pub(crate) struct Get {
    /// Kind, such as pods or deployments
    kind: String,
    /// Only this one
    name: Option<String>,
    /// Namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels (app=web,tier!=db)
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Form of the output
    #[arg(short, long)]
    output: Option<Output>,
    /// Without the header line
    #[arg(long)]
    no_headers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// More columns
    Wide,
    /// The objects as JSON
    Json,
    /// The objects as YAML
    Yaml,
    /// kind/name, one a line
    Name,
}

/// Percent-encodes a query value.
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
        out
    })
}

/// Shows what was asked for.
pub(crate) async fn run(client: &Client, options: &Get) -> Result<()> {
    let namespace = if options.all_namespaces { "" } else { client.namespace(options.namespace.as_deref()) };
    let mut place = path(&options.kind, namespace, options.name.as_deref().unwrap_or_default())?;
    if let Some(selector) = &options.selector {
        place = format!("{place}?labelSelector={}", encode(selector));
    }
    let found = client.json(Method::GET, &place, None).await?;
    match options.output {
        Some(Output::Json) => println!("{}", serde_json::to_string_pretty(&found)?),
        Some(Output::Yaml) => print!("{}", serde_saphyr::to_string(&found)?),
        Some(Output::Name) => items(&found).iter().for_each(|item| {
            let kind = found["kind"].as_str().unwrap_or_default().trim_end_matches("List").to_lowercase();
            println!("{kind}/{}", item["metadata"]["name"].as_str().unwrap_or_default());
        }),
        None | Some(Output::Wide) => print(&found, options, namespace),
    }
    Ok(())
}

fn items(found: &Value) -> Vec<Value> {
    match found["items"].as_array() {
        Some(items) => items.clone(),
        None => vec![found.clone()],
    }
}

fn print(found: &Value, options: &Get, namespace: &str) {
    let items = items(found);
    if items.is_empty() {
        match namespace {
            "" => eprintln!("No resources found"),
            _ => eprintln!("No resources found in {namespace} namespace."),
        }
        return;
    }
    let kind = found["kind"].as_str().unwrap_or_default().trim_end_matches("List");
    let table = crate::api::table(&items, &json!({}), Some(kind));
    let wide = options.output == Some(Output::Wide);
    let shown: Vec<bool> = columns(&table).iter().map(|column| wide || column["priority"] == 0).collect();
    let pick = |cells: Vec<String>| cells.into_iter().zip(&shown).filter(|(_, shown)| **shown).map(|(cell, _)| cell);
    let mut lines: Vec<Vec<String>> = Vec::new();
    if !options.no_headers {
        let names = columns(&table).iter().map(|column| column["name"].as_str().unwrap_or_default().to_uppercase());
        let mut line: Vec<String> = pick(names.collect()).collect();
        if options.all_namespaces {
            line.insert(0, "NAMESPACE".to_owned());
        }
        lines.push(line);
    }
    for (row, item) in table["rows"].as_array().map(Vec::as_slice).unwrap_or_default().iter().zip(&items) {
        let cells = row["cells"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut line: Vec<String> =
            pick(cells.iter().map(|cell| cell.as_str().unwrap_or_default().to_owned()).collect()).collect();
        if options.all_namespaces {
            line.insert(0, item["metadata"]["namespace"].as_str().unwrap_or_default().to_owned());
        }
        lines.push(line);
    }
    println!("{}", align(lines));
}

fn columns(table: &Value) -> &[Value] {
    table["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Lines with aligned columns, three spaces apart.
pub(super) fn align(lines: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for line in lines {
        table.add_row(line);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
