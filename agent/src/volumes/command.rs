//! The words of `skegd volume …`.

use std::io::Write;

use anyhow::Context;
use serde_json::Value;
use skeg_protocol::message::{StreamRequest, VolumeRequest};
use tokio::net::UnixStream;

use crate::commands::columns;
use crate::config::Config;
use crate::image::{Output, ask, size};
use crate::local::SOCKET;

/// What is to be done with the volumes that outlive pods. A volume is named NAMESPACE/NAME, or NAME where only one
/// namespace has it.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Lists the volumes and the pods that use them
    Ls(Output),
    /// Adds up what each holds
    Usage(Output),
    /// Shows all that is known of volumes, as JSON
    Inspect {
        /// Volumes
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Removes volumes that no pod uses, with all that is in them
    Rm {
        /// Volumes
        #[arg(required = true)]
        volumes: Vec<String>,
    },
}

/// Has a command carried out by the agent and prints the answer. Says the exit code.
///
/// # Errors
/// What could not be done, and why.
pub async fn run(config: Config, command: Command) -> anyhow::Result<i32> {
    let (request, show): (_, fn(&Value) -> String) = match command {
        Command::Ls(output) => (VolumeRequest::List, if output.is_json() { json } else { list }),
        Command::Usage(output) => (VolumeRequest::Usage, if output.is_json() { json } else { usage }),
        Command::Inspect { volumes } => (VolumeRequest::Inspect { volumes }, json),
        Command::Rm { volumes } => (VolumeRequest::Remove { volumes }, removed),
    };
    let socket = UnixStream::connect(config.run_dir.join(SOCKET)).await;
    let socket = socket.context("connecting to the agent: does it run, and are you root?")?;
    let answer = ask(socket, StreamRequest::Volume(request)).await?;
    let mut out = std::io::stdout().lock();
    out.write_all(show(&answer).as_bytes()).and_then(|()| out.flush()).context("writing to standard output")?;
    Ok(0)
}

fn json(answer: &Value) -> String {
    format!("{answer:#}\n")
}

fn removed(answer: &Value) -> String {
    let names = answer["removed"].as_array().into_iter().flatten().filter_map(Value::as_str);
    names.map(|name| format!("removed: {name}\n")).collect()
}

fn text(volume: &Value, field: &str) -> String {
    volume[field].as_str().unwrap_or_default().to_owned()
}

fn pods(volume: &Value) -> String {
    volume["pods"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn list(answer: &Value) -> String {
    let mut rows = vec![["NAMESPACE", "VOLUME", "PODS"].map(str::to_owned)];
    let volumes = answer.as_array().into_iter().flatten();
    rows.extend(volumes.map(|one| [text(one, "namespace"), text(one, "name"), pods(one)]));
    columns(&rows)
}

fn usage(answer: &Value) -> String {
    let mut rows = vec![["NAMESPACE", "VOLUME", "SIZE", "FILES", "PODS"].map(str::to_owned)];
    let volumes = answer.as_array().into_iter().flatten();
    let row = |one: &Value| {
        [text(one, "namespace"), text(one, "name"), size(&one["bytes"]), one["files"].to_string(), pods(one)]
    };
    rows.extend(volumes.map(row));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_name_the_pods_and_the_size() {
        let mut answer = serde_json::json!([{"namespace": "default", "name": "db", "pods": ["a", "b"]}]);
        assert_eq!(list(&answer), "NAMESPACE  VOLUME  PODS\ndefault    db      a,b\n");
        answer[0]["bytes"] = 5_000_000.into();
        answer[0]["files"] = 7.into();
        assert!(usage(&answer).ends_with("default    db      4.7 MiB  7      a,b\n"), "{}", usage(&answer));
    }
}
