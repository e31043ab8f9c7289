//! `skeg apply`: makes the objects of a file, or changes them to what it says.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::client::{Client, is_refusal, path};
use crate::api::kinds;

/// Makes or changes the objects of a YAML or JSON file.
#[derive(Debug, Clone, Args)]
pub(crate) struct Apply {
    /// File, or - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", required = true)]
    file: Vec<PathBuf>,
    /// Namespace for objects that name none
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Applies every object; all are tried, and the first error decides the exit code.
pub(crate) async fn run(client: &Client, options: &Apply) -> Result<()> {
    let mut failed = 0;
    for file in &options.file {
        let text = match file.as_os_str() == "-" {
            true => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
                text
            }
            false => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        };
        let objects = skeg_kube::yaml::parse(&text).with_context(|| format!("in {}", file.display()))?;
        if objects.is_empty() {
            bail!("{} holds no objects", file.display());
        }
        for object in &objects {
            match apply(client, object, options.namespace.as_deref()).await {
                Ok(line) => println!("{line}"),
                Err(error) => {
                    eprintln!("error: {}: {error:#}", file.display());
                    failed += 1;
                }
            }
        }
    }
    if failed > 0 { bail!("{failed} objects could not be applied") } else { Ok(()) }
}

async fn apply(client: &Client, object: &Value, namespace: Option<&str>) -> Result<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
    let known = kinds::of(&kind).with_context(|| format!("{kind:?} is no kind that skeg knows"))?;
    if object["apiVersion"] != known.api_version() {
        let version = known.api_version();
        bail!("{kind} {name}: apiVersion {} is not known here, only {version}", object["apiVersion"]);
    }
    if name.is_empty() {
        bail!("{kind}: metadata.name is missing");
    }
    let namespace = object["metadata"]["namespace"].as_str().or(namespace);
    let namespace = client.namespace(namespace);
    let (place, what) = (path(&kind, namespace, &name)?, format!("{}/{name}", known.resource_of_one()));
    let created = client.json(Method::POST, &path(&kind, namespace, "")?, Some(object)).await;
    match created {
        Ok(_) => Ok(format!("{what} created")),
        Err(error) if is_refusal(&error, "AlreadyExists") => {
            let before = client.json(Method::GET, &place, None).await?;
            let body = ("application/strategic-merge-patch+json", object.to_string().into_bytes());
            client.send(Method::PATCH, &place, Some(body)).await?;
            let after = client.json(Method::GET, &place, None).await?;
            let same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"];
            Ok(format!("{what} {}", if same { "unchanged" } else { "configured" }))
        }
        Err(error) => Err(error),
    }
}
