//! `skeg kubeconfig`: a kubeconfig with a token of its own for a person, whose roles say what they may do.

use anyhow::{Context, Result};
use clap::Args;
use hyper::Method;
use serde_json::json;

use super::client::Client;
use super::kubeconfig::render;
use super::token::seconds;

/// Makes a token for a person and prints the kubeconfig that holds it, once.
#[derive(Debug, Clone, Args)]
pub(crate) struct Kubeconfig {
    /// Name of the person, as roles are bound to it
    #[arg(long)]
    user: String,
    /// Group that the person is in; may be given several times
    #[arg(long)]
    group: Vec<String>,
    /// How long the token is valid (30m, 8h, 90d); for ever where it is left out
    #[arg(long, value_parser = seconds)]
    ttl: Option<i64>,
}

/// Makes the token.
pub(crate) async fn run(client: &Client, options: &Kubeconfig) -> Result<()> {
    let spec = json!({"user": options.user, "groups": options.group, "ttlSeconds": options.ttl});
    let made = client.json(Method::POST, "/apis/skeg.dev/v1/usertokens", Some(&json!({"spec": spec}))).await?;
    let token = made["status"]["token"].as_str().context("the controller gave no token")?;
    let (server, ca) = client.place();
    print!("{}", render(server, ca, &options.user, token));
    Ok(())
}
