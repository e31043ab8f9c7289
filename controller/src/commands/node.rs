//! `skeg node`: what only an operator decides about a device.

use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;

use super::client::Client;
use super::get::align;

/// Decides about devices.
#[derive(Debug, Clone, Args)]
pub(crate) struct Node {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Lists the devices that wait for consent
    Pending,
    /// Lets in a device that waits, because its token asks for consent
    Approve {
        /// The name that it wants
        name: String,
    },
    /// Gives a node's name and pods to the device that waits for it, as after a board was flashed anew; the old key is
    /// forgotten
    Replace {
        /// The node
        name: String,
    },
    /// Forgets a device's key and cuts it off at once; the node and its pods stay
    Revoke {
        /// The node
        name: String,
    },
    /// Gives a device this controller's manifest although it holds one that this controller does not know, as after a
    /// restored backup
    Overwrite {
        /// The node
        name: String,
    },
}

/// Lists the devices that wait.
async fn pending(client: &Client) -> Result<()> {
    let found = client.json(Method::GET, "/apis/skeg.dev/v1/pendingnodes", None).await?;
    let mut lines = vec![["NAME", "TOKEN", "SINCE"].map(str::to_owned).to_vec()];
    for item in found["items"].as_array().map(Vec::as_slice).unwrap_or_default() {
        lines
            .push(["name", "token", "since"].map(|field| item[field].as_str().unwrap_or_default().to_owned()).to_vec());
    }
    println!("{}", align(lines));
    Ok(())
}

/// Tells the controller.
pub(crate) async fn run(client: &Client, options: &Node) -> Result<()> {
    let (name, verb) = match &options.verb {
        Verb::Overwrite { name } => (name, "overwrite"),
        Verb::Approve { name } => (name, "approve"),
        Verb::Replace { name } => (name, "replace"),
        Verb::Revoke { name } => (name, "revoke"),
        Verb::Pending => return pending(client).await,
    };
    let answer = client.json(Method::POST, &format!("/apis/skeg.dev/v1/nodes/{name}/{verb}"), None).await?;
    println!("{}", answer["message"].as_str().unwrap_or_default());
    Ok(())
}
