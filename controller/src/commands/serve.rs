//! `skeg serve`: puts the parts together and runs them until a signal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::kubeconfig;
use crate::api::Audit;
use crate::app::App;
use crate::data::Data;
use crate::images::Upstream;
use crate::link::{Hub, mark_all_unknown};
use crate::registry::{self, Registry};
use crate::server::{Server, reachable};
use crate::store::{Database, Guard, Key, Store, StoreError};
use crate::tls::{Authority, Identity, names};
use crate::{manager, secret, time};

/// Runs the controller.
#[derive(Debug, Clone, Args)]
pub(crate) struct Serve {
    /// Folder for everything that the controller keeps
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Address and port to listen on; port 0 takes any free one
    #[arg(long, default_value = "0.0.0.0:7443")]
    pub(crate) listen: SocketAddr,
    /// Name or address by which people reach this controller; may be given several times, the first goes into
    /// admin.kubeconfig
    #[arg(long)]
    pub(crate) name: Vec<String>,
    /// Registry (host or host:port) that is asked without TLS when images are looked up; may be given several times
    #[arg(long)]
    pub(crate) plain_http_registry: Vec<String>,
    /// Docker's config.json with logins of registries, read anew whenever one is asked
    #[arg(long)]
    pub(crate) docker_config: Option<PathBuf>,
    /// GiB of other registries' images that are kept for devices which reach only this controller
    #[arg(long, default_value_t = 20)]
    pub(crate) kept_gib: u64,
    /// Seconds between a device's heartbeats; a device that was silent for three is taken for lost
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub(crate) heartbeat: u16,
}

/// A controller that listens and does not serve yet.
pub(crate) struct Ready {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    pub(crate) app: Arc<App>,
    listener: TcpListener,
    server: Server,
    nudges: mpsc::UnboundedReceiver<manager::Nudge>,
}

/// Opens the folder and the port. The controller stops when `stopping` becomes true.
pub(crate) async fn prepare(options: &Serve, stopping: watch::Receiver<bool>) -> Result<Ready> {
    let data = Data::open(&options.data)?;
    let key = data.get_or_make("identity/secrets.key", secret::random_key)?;
    let key =
        key.as_slice().try_into().ok().context("identity/secrets.key has not 32 bytes: restore it from a backup")?;
    let store = Arc::new(Database::open(&data.path("store.redb"), key)?);
    let (identity, authority) = (Identity::load(&data)?, Authority::load(&data)?);
    let token = data.get_or_make("admin.token", || Ok(secret::random_word(40)?.into_bytes()))?;
    let admin_token = String::from_utf8(token).context("admin.token is no text")?.trim().to_owned();
    make_default_namespace(store.as_ref())?;
    mark_all_unknown(store.as_ref())?;
    let listener =
        TcpListener::bind(options.listen).await.with_context(|| format!("cannot listen on {}", options.listen))?;
    let address = listener.local_addr()?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_lowercase());
    let https = authority.https_config(names(&options.name, address.ip(), host))?;
    let public = options.name.first().cloned().unwrap_or_else(|| reachable(address.ip()).to_string());
    let url = match public.contains(':') {
        true => format!("https://[{public}]:{}", address.port()),
        false => format!("https://{public}:{}", address.port()),
    };
    let kubeconfig = kubeconfig::render(&url, &authority.ca_pem, "admin", &admin_token);
    data.write("admin.kubeconfig", kubeconfig.as_bytes())?;
    let (nudge, nudges) = mpsc::unbounded_channel();
    let app = Arc::new(App {
        registry: Registry::open(&data.registry(), store.clone(), options.kept_gib.saturating_mul(1 << 30))?,
        store,
        hub: Hub::default(),
        upstream: Upstream {
            plain_http: options.plain_http_registry.clone(),
            docker_config: options.docker_config.clone(),
        },
        heartbeat_seconds: options.heartbeat,
        admin_token,
        public_key: identity.public,
        audit: Audit::open(&data.path("audit.log")).context("cannot open the audit log")?,
        allocating: Mutex::new(()),
        nudges: nudge,
        stopping,
    });
    let server = Server { app: app.clone(), device: identity.device_config()?, https };
    Ok(Ready { address, app, listener, server, nudges })
}

impl Ready {
    /// Serves until the controller stops.
    pub(crate) async fn run(self) {
        tokio::spawn(registry::sweep_hourly(self.app.clone()));
        tokio::spawn(settle_each_second(self.app.clone()));
        let app = self.app.clone();
        let manager = tokio::spawn(manager::run(self.app, self.nudges));
        self.server.run(self.listener).await;
        if let Err(error) = manager.await {
            log::error!("the manager failed: {error}");
        }
        if let Err(error) = app.store.settle() {
            log::error!("making the last changes durable: {error}");
        }
    }
}

/// Makes changes of status durable that did not wait for the disk.
async fn settle_each_second(app: Arc<App>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = app.stopped() => return,
        }
        if let Err(error) = app.store.settle() {
            log::error!("making changes of status durable: {error}");
        }
    }
}

fn make_default_namespace(store: &dyn Store) -> Result<()> {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": "default", "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": time::text(time::now()),
            "labels": {"kubernetes.io/metadata.name": "default"},
        },
        "spec": {}, "status": {"phase": "Active"},
    });
    match store.put(&Key::new("Namespace", "", "default"), namespace, Guard::Absent) {
        Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Runs the controller until SIGTERM or SIGINT.
pub(crate) async fn run(options: &Serve) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (stop, stopping) = watch::channel(false);
    let ready = prepare(options, stopping).await?;
    {
        use std::io::Write;
        let mut out = std::io::stdout();
        // Whoever started the controller may not listen.
        let _ = writeln!(out, "listening on {}", ready.address).and_then(|()| out.flush());
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log::info!("stopping");
        let _ = stop.send(true);
    });
    ready.run().await;
    Ok(())
}
