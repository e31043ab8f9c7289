//! `skeg logs`.

use std::io::Write;

use anyhow::{Context, Result};
use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;

use super::client::{Client, path};
use super::get::encode;

/// Shows a container's log.
#[derive(Debug, Clone, Args)]
pub(crate) struct Logs {
    /// Pod
    pod: String,
    /// Namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Container, where the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Goes on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines
    #[arg(long)]
    tail: Option<u32>,
    /// Of the instance before the present one
    #[arg(short, long)]
    previous: bool,
    /// Each line begins with its time
    #[arg(long)]
    timestamps: bool,
}

/// Copies the log to standard output.
pub(crate) async fn run(client: &Client, options: &Logs) -> Result<()> {
    let namespace = client.namespace(options.namespace.as_deref());
    let mut place = format!("{}/log?", path("pod", namespace, &options.pod)?);
    for (name, set) in [("follow", options.follow), ("previous", options.previous), ("timestamps", options.timestamps)]
    {
        place.push_str(&format!("{name}={set}&"));
    }
    if let Some(lines) = options.tail {
        place.push_str(&format!("tailLines={lines}&"));
    }
    if let Some(container) = &options.container {
        place.push_str(&format!("container={}&", encode(container)));
    }
    let mut body = client.send(Method::GET, place.trim_end_matches('&'), None).await?.into_body();
    let mut out = std::io::stdout();
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame.context("the log broke off")?.into_data() else { continue };
        match out.write_all(&bytes).and_then(|()| out.flush()) {
            // Whoever read it has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}
