//! What users bring runs unchanged on a board of its own: the Compose and Kubernetes files of `shared/examples`, with the
//! images that `shared/real-images/make.sh` builds of Debian's packages. Needs root and mmdebstrap; says so when they are
//! missing. Builds the images once into the target folder.

#![allow(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

#[allow(dead_code, reason = "what the tests of devices share")]
mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::needs::{self, needs_root};
use support::{Device, err, out, until};

const IMAGES: [&str; 5] = ["busybox:1", "nginx:1.22", "postgres:15", "redis:7", "webapp:1"];

/// The folder beside the checkout with what users bring.
fn shared() -> Option<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    ["../shared", "../../shared"].map(|shared| checkout.join(shared)).into_iter().find(|shared| shared.exists())
}

/// Builds the images, as OCI layouts in folders of their names.
fn images(shared: &Path) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-images");
    let built = Command::new(shared.join("real-images/make.sh")).arg(&folder).args(IMAGES).output();
    let built = built.map_err(|error| format!("make.sh: {error}"))?;
    match built.status.success() {
        true => Ok(folder),
        false => Err(format!("make.sh failed: {}", err(&built))),
    }
}

fn done(device: &Device, words: &[&str]) -> String {
    let output = device.skegd(words);
    assert!(output.status.success(), "skegd {words:?}: {}\n{}", err(&output), device.log());
    out(&output)
}

/// Answers of a web server on the device.
fn page(port: u16, path: &str) -> Option<String> {
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    client.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).ok()?;
    answer.contains("200 OK").then_some(answer)
}

#[test]
fn files_that_users_bring_run_unchanged_with_real_images() {
    needs_root!();
    let Some(shared) = shared() else { return println!("skipped: there is no folder shared beside the checkout") };
    let folder = match images(&shared) {
        Ok(folder) => folder,
        Err(why) => return println!("skipped: {why}"),
    };
    let example = |name: &str| shared.join("examples").join(name).to_str().unwrap().to_owned();
    let mut device = Device::start_with("examples", "[labels]\n\"example.org/sensor\" = \"true\"\n");
    for image in IMAGES {
        let layout = folder.join(image.split(':').next().unwrap());
        done(&device, &["image", "import", layout.to_str().unwrap(), "--name", image]);
    }

    // A proxy, two copies of an application, a database and a cache in two networks.
    done(&device, &["up", "-f", &example("compose-shop.yml")]);
    until("the shop's page", || page(8081, "/"));
    let knows = |pod: &str, name: &str| device.skegd(&["exec", pod, "--", "getent", "hosts", name]).status.success();
    assert!(knows("shop/web-1", "api") && !knows("shop/web-1", "db"), "the proxy is in the front network only");
    assert!(knows("shop/api-1", "db") && knows("shop/api-2", "cache"), "the application is in both");
    done(&device, &["down", "-p", "shop"]);
    done(&device, &["up", "-f", &example("compose-minimal.yml")]);

    // An init container, the host's /proc, facts about the pod.
    done(&device, &["up", "-f", &example("k8s-edge-agent.yaml")]);
    let pods = done(&device, &["ps"]);
    let name = pods.split_whitespace().find(|word| word.starts_with("edge-agent-")).unwrap().to_owned();
    until("what it knows of itself", || {
        let log = done(&device, &["logs", &format!("default/{name}")]);
        log.contains("on examples").then_some(())?;
        log.contains(&format!("as default/{name}, memory limit 24 MiB")).then_some(())
    });

    // Three copies with settings and secrets, behind a node port.
    done(&device, &["up", "-f", &example("k8s-webapp.yaml")]);
    until("the application's page", || page(30080, "/"));
    device.power_off();
}
