//! The controller as a whole, in this process: a real port, real TLS, and a device that speaks the real protocol.

mod device;
mod kinds;
mod links;
mod secrets;
mod through;
mod tools;

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app::App;
use crate::commands::serve::{Serve, prepare};
use crate::commands::{Client, Target};
use crate::store::{Key, Store};

/// A controller that runs.
struct Controller {
    folder: tempfile::TempDir,
    address: SocketAddr,
    app: Arc<App>,
    client: Client,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Controller {
    async fn start() -> Self {
        Self::start_beside(Vec::new()).await
    }

    /// Starts one that speaks to these registries without TLS.
    async fn start_beside(plain_http_registry: Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Serve {
            data: folder.path().join("data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            name: Vec::new(),
            plain_http_registry,
            docker_config: None,
            kept_gib: 20,
            heartbeat: 15,
        };
        let (stop, stopping) = watch::channel(false);
        let ready = prepare(&options, stopping).await.unwrap();
        let (address, app) = (ready.address, ready.app.clone());
        let kubeconfig = Some(folder.path().join("data/admin.kubeconfig"));
        let client = Client::open(&Target { kubeconfig }).unwrap();
        Controller { folder, address, app, client, stop, task: tokio::spawn(ready.run()) }
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap();
    }

    /// The secret part of a new join token.
    async fn token(&self) -> String {
        let made = self.client.json(Method::POST, "/apis/skeg.dev/v1/jointokens", Some(&json!({}))).await.unwrap();
        let text = made["status"]["token"].as_str().unwrap().to_owned();
        text.rsplit('.').next().unwrap().to_owned()
    }

    /// Puts an image's name into the registry; only its digest matters here.
    fn name_image(&self, name: &str, digest: u8) {
        self.app.store.add_content(name, &[digest; 32], "application/json", Some("1")).unwrap();
    }

    async fn create_pod(&self, name: &str) -> Value {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "main", "image": "demo:1"}]},
        });
        self.client.json(Method::POST, "/api/v1/namespaces/default/pods", Some(&pod)).await.unwrap()
    }

    /// Waits until an object (null when it does not exist) is as wanted.
    async fn until(&self, key: &Key, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut watch = self.app.store.watch(None).unwrap();
        loop {
            let object = self.app.store.get(key).unwrap().unwrap_or_default();
            if wanted(&object) {
                return object;
            }
            watch.next().await.unwrap().unwrap();
        }
    }
}

fn pod_key(name: &str) -> Key {
    Key::new("Pod", "default", name)
}

fn node_key(name: &str) -> Key {
    Key::new("Node", "", name)
}
