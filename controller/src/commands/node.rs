//! `skeg node`: what only an operator decides about a device.

use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;

use super::client::Client;

/// Decides about devices.
#[derive(Debug, Clone, Args)]
pub(crate) struct Node {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Gives a device this controller's manifest although it holds one that this controller does not know, as after a
    /// restored backup
    Overwrite {
        /// The node
        name: String,
    },
}

/// Tells the controller.
pub(crate) async fn run(client: &Client, options: &Node) -> Result<()> {
    let (name, verb) = match &options.verb {
        Verb::Overwrite { name } => (name, "overwrite"),
    };
    let answer = client.json(Method::POST, &format!("/apis/skeg.dev/v1/nodes/{name}/{verb}"), None).await?;
    println!("{}", answer["message"].as_str().unwrap_or_default());
    Ok(())
}
