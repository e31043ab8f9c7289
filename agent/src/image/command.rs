//! The words of `skegd image …`, and who carries them out: the agent where one runs, else this process.

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::{Context, bail};
use serde_json::Value;
use skeg_images::{Platform, Store};
use skeg_protocol::message::{Channel, ImageRequest, StreamEnd, StreamRequest};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::serve::carry_out;
use super::show::{Form, show};
use crate::apply::{Images, Registries, STORE, wanted};
use crate::commands::Client;
use crate::config::Config;
use crate::journal::Journal;
use crate::local::SOCKET;
use crate::peer::StreamEvent;

/// What is to be done with images. Images are named as in a pod, by digest, or by the first digits of digest or id.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Lists the images
    Ls(Output),
    /// Fetches an image from its registry
    Pull {
        /// As in a pod: nginx:1.27, ghcr.io/a/b@sha256:…
        reference: String,
        #[command(flatten)]
        output: Output,
    },
    /// Removes images, or a name of an image that has several
    Rm {
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Shows all that is known of images, as JSON
    Inspect {
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Takes in an OCI layout or what `docker save` has written
    Import {
        /// Folder or archive; - for standard input
        path: String,
        /// Name of a single image, in place of those in the archive
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Writes images where Docker, podman and skopeo can read them
    Export {
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
        /// An archive; with a slash at its end a folder; - for standard output
        #[arg(short = 'f', long = "file")]
        path: String,
    },
    /// Removes every image that no pod needs
    Prune(Output),
    /// Reads every image again and compares it with its digests; exits with 1 where something was broken
    Verify(Output),
    /// Tells where the disk's space went
    Usage(Output),
}

/// Form of the output.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Form of the output
    #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
    output: String,
}

impl Output {
    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.output == "json"
    }
}

impl Command {
    /// The request, and the form of its answer.
    fn request(self) -> anyhow::Result<(ImageRequest, Form)> {
        let form = |output: Output, table| if output.is_json() { Form::Json } else { table };
        Ok(match self {
            Command::Ls(output) => (ImageRequest::List, form(output, Form::List)),
            Command::Pull { reference, output } => (ImageRequest::Pull { reference }, form(output, Form::Digest)),
            Command::Rm { images, output } => (ImageRequest::Remove { images }, form(output, Form::Removed)),
            Command::Inspect { images } => (ImageRequest::Inspect { images }, Form::Json),
            Command::Import { path, name, output } => {
                let path = if path == "-" { own_descriptor(0) } else { absolute(&path)? };
                (ImageRequest::Import { path, name }, form(output, Form::Imported))
            }
            Command::Export { images, path } if path == "-" => {
                if std::io::stdout().is_terminal() {
                    bail!("an archive is nothing for a terminal: name a file with --file, or use a pipe");
                }
                (ImageRequest::Export { images, path: own_descriptor(1) }, Form::Nothing)
            }
            Command::Export { images, path } => {
                let slash = if path.ends_with('/') { "/" } else { "" };
                let path = format!("{}{slash}", absolute(path.trim_end_matches('/'))?);
                (ImageRequest::Export { images, path }, Form::Nothing)
            }
            Command::Prune(output) => (ImageRequest::Prune, form(output, Form::Pruned)),
            Command::Verify(output) => (ImageRequest::Verify, form(output, Form::Verified)),
            Command::Usage(output) => (ImageRequest::Usage, form(output, Form::Usage)),
        })
    }
}

/// One of this process's descriptors, as another process of this device opens it.
fn own_descriptor(number: u8) -> String {
    format!("/proc/{}/fd/{number}", std::process::id())
}

/// The agent has another working directory.
fn absolute(path: &str) -> anyhow::Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("making {path:?} absolute"))?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8"))
}

/// Has a command carried out and prints the answer. Says the exit code.
///
/// # Errors
/// What could not be done, and why.
pub async fn run(config: Config, command: Command) -> anyhow::Result<i32> {
    let (request, form) = command.request()?;
    let answer = match UnixStream::connect(config.run_dir.join(SOCKET)).await {
        Ok(socket) => ask(socket, StreamRequest::Image(request)).await?,
        // No agent runs, so nobody else has the store.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            alone(&config, request).await?
        }
        Err(error) => return Err(error).context("connecting to the agent: are you root?"),
    };
    let (text, code) = show(&answer, form);
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to standard output")?;
    Ok(code)
}

/// Asks the agent for a JSON document, and tells what it says meanwhile.
///
/// # Errors
/// What could not be done, and why.
pub async fn ask(socket: UnixStream, request: StreamRequest) -> anyhow::Result<Value> {
    let client = Client::over(socket)?;
    let mut stream = client.open(request)?;
    let mut answer = Vec::new();
    loop {
        match stream.next().await {
            Some(StreamEvent::Data(Channel::Stdout, bytes)) => answer.extend_from_slice(&bytes),
            Some(StreamEvent::Data(_, bytes)) => tell(&bytes),
            Some(StreamEvent::Resize { .. }) => {}
            Some(StreamEvent::Closed(StreamEnd::Failed(message))) => bail!(message),
            Some(StreamEvent::Closed(_)) => return serde_json::from_slice(&answer).context("reading the answer"),
            None => bail!("the agent closed the connection"),
        }
    }
}

async fn alone(config: &Config, request: ImageRequest) -> anyhow::Result<Value> {
    let store =
        Store::open(&config.state_dir.join(STORE), config.images.limits()).context("opening the image store")?;
    let journal = Journal::open(&config.state_dir).context("reading what pods the device has")?;
    let (current, previous) = (journal.manifest(), journal.previous_manifest());
    let records = journal.records().context("reading what pods the device has")?;
    store.want(wanted(current.pods.iter().chain(&previous.pods).chain(records.iter().map(|record| &record.pod))));
    let registries = Registries::new(config);
    let images = Images { store, platform: Platform::host(), registries, controller: None };
    let (lines, mut said) = mpsc::unbounded_channel();
    let telling = async {
        while let Some(line) = said.recv().await {
            tell(String::as_bytes(&line));
        }
    };
    // The lines end with the work, which has the only sender.
    let (answer, ()) = tokio::join!(carry_out(&images, request, lines), telling);
    answer.map_err(anyhow::Error::msg)
}

/// Says how far it is, for people only.
fn tell(line: &[u8]) {
    let mut out = std::io::stderr().lock();
    if out.is_terminal() {
        // Nobody depends on it.
        out.write_all(line).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn paths_are_absolute_and_folders_keep_their_slash() {
        let export = |path: &str| {
            let command = Command::Export { images: vec!["x".to_owned()], path: path.to_owned() };
            match command.request().unwrap().0 {
                ImageRequest::Export { path, .. } => path,
                other => panic!("{other:?}"),
            }
        };
        let here = std::env::current_dir().unwrap();
        assert_eq!(export("a/b.tar"), here.join("a/b.tar").to_str().unwrap());
        assert_eq!(export("/a/b/"), "/a/b/");
        assert_eq!(Path::new(&own_descriptor(1)), Path::new("/proc").join(std::process::id().to_string()).join("fd/1"));
    }
}
