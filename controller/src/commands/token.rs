//! `skeg token`: join tokens for devices.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;

use super::client::Client;
use super::get::align;

const PLACE: &str = "/apis/skeg.dev/v1/jointokens";

/// Makes, revokes and lists join tokens.
#[derive(Debug, Clone, Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Makes a token and prints it, once
    Create {
        /// How long it is valid (30m, 1h, 7d)
        #[arg(long, default_value = "1h", value_parser = seconds)]
        ttl: i64,
        /// How many devices it lets in
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// KEY=VALUE that the nodes of its devices get; may be given several times
        #[arg(long, value_parser = label)]
        label: Vec<(String, String)>,
        /// Lets its devices wait until `skeg node approve`
        #[arg(long)]
        approve: bool,
    },
    /// Takes a token back; who came in with it stays in
    Revoke {
        /// As `skeg token list` shows it
        id: String,
    },
    /// Lists tokens without their secrets
    List,
}

/// Reads a length of time such as `90s`, `30m`, `1h`, `7d`.
pub(super) fn seconds(text: &str) -> Result<i64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => bail!("{text:?} is no length of time such as 90s, 30m, 1h or 7d"),
    };
    let number: i64 = number.parse().with_context(|| format!("{text:?} is no length of time such as 1h"))?;
    number.checked_mul(factor).with_context(|| format!("{text:?} is too long"))
}

/// Reads KEY=VALUE.
fn label(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').with_context(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Makes, takes back or lists.
pub(crate) async fn run(client: &Client, options: &Token) -> Result<()> {
    match &options.verb {
        Verb::Revoke { id } => {
            let answer = client.json(Method::DELETE, &format!("{PLACE}/{id}"), None).await?;
            println!("{}", answer["message"].as_str().unwrap_or_default());
        }
        Verb::Create { ttl, uses, label, approve } => {
            let labels: std::collections::BTreeMap<_, _> = label.iter().cloned().collect();
            let spec = json!({"ttlSeconds": ttl, "uses": uses, "labels": labels, "approve": approve});
            let body = json!({"spec": spec});
            let made = client.json(Method::POST, PLACE, Some(&body)).await?;
            println!("{}", made["status"]["token"].as_str().context("the controller gave no token")?);
        }
        Verb::List => {
            let found = client.json(Method::GET, PLACE, None).await?;
            let mut lines = vec![["ID", "STATUS", "USES LEFT", "EXPIRES"].map(str::to_owned).to_vec()];
            for item in found["items"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let (left, uses) = (&item["status"]["usesLeft"], &item["spec"]["uses"]);
                let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                lines.push(vec![
                    text(&item["metadata"]["name"]),
                    text(&item["status"]["phase"]),
                    format!("{left}/{uses}"),
                    text(&item["status"]["expires"]),
                ]);
            }
            println!("{}", align(lines));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, length) in [("90", 90), ("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(seconds(text).unwrap(), length);
        }
        for text in ["", "h", "1w", "-1h", "1.5h", "99999999999999999999d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
