//! `skeg`: the fleet's controller and the operator's commands.
//!
//! This file reads the command line and nothing else; `serve` and its parts are described in docs/ARCHITECTURE.md.

#![forbid(unsafe_code)]

mod api;
mod app;
mod bench;
mod commands;
mod compile;
mod cron;
mod data;
#[cfg(test)]
mod end_to_end;
mod images;
mod link;
mod manager;
mod pods;
mod pull_secrets;
mod registry;
mod schedule;
mod secret;
mod selector;
mod server;
mod store;
mod time;
mod tls;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use commands::{Client, Target};

/// Runs containers on a fleet of Linux boards.
#[derive(Debug, Parser)]
#[command(name = "skeg", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller
    Serve(commands::serve::Serve),
    /// Make or change the objects of a file
    Apply(commands::apply::Apply),
    /// Show objects
    Get(commands::get::Get),
    /// Show what is known about one object
    Describe(commands::describe::Describe),
    /// Delete objects
    Delete(commands::delete::Delete),
    /// Show a container's log
    Logs(commands::logs::Logs),
    /// Make and list join tokens for devices
    Token(commands::token::Token),
    /// Make a token for a person and print the kubeconfig that holds it
    Kubeconfig(commands::user::Kubeconfig),
    /// Decide about devices
    Node(commands::node::Node),
    /// Measure what a controller costs
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if let Command::Serve(options) = &cli.command {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(commands::serve::run(options));
    }
    if let Command::Bench(options) = &cli.command {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(bench::run(options));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::open(&cli.target)?;
        match &cli.command {
            Command::Serve(_) | Command::Bench(_) => Ok(()),
            Command::Apply(options) => commands::apply::run(&client, options).await,
            Command::Get(options) => commands::get::run(&client, options).await,
            Command::Describe(options) => commands::describe::run(&client, options).await,
            Command::Delete(options) => commands::delete::run(&client, options).await,
            Command::Logs(options) => commands::logs::run(&client, options).await,
            Command::Token(options) => commands::token::run(&client, options).await,
            Command::Kubeconfig(options) => commands::user::run(&client, options).await,
            Command::Node(options) => commands::node::run(&client, options).await,
        }
    })
}
