//! `cargo xtask demo`: the whole way of a pod, shown step by step on this machine and taken away again. It owns the
//! story; [`world`] owns what runs, [`image`] the image.

pub(crate) mod image;
pub(crate) mod world;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::machine::Snapshot;
use crate::ui::Ui;
use crate::{build, needs};
use world::{PATIENCE, World, until};

/// Port on which the program listens inside its pod.
const PORT: u16 = 8080;
/// Longest page that is read.
const MAX_PAGE: u64 = 64 * 1024;

/// `cargo xtask demo`.
///
/// # Errors
/// Whatever went wrong, after everything was taken away.
pub(crate) fn run(build: bool) -> Result<ExitCode> {
    if !needs::is_root() {
        bail!(
            "the demo starts containers: it mounts, makes namespaces and cgroups, and needs root's rights for that\n\
             (CAP_SYS_ADMIN above all). Run it as root: sudo env \"PATH=$PATH\" cargo xtask demo"
        );
    }
    let mut ui = Ui::new();
    ui.plain("skeg: a controller and a board on this machine, from the build to the clean-up\n");
    let before = Snapshot::take("skeg-demo-")?;
    if build {
        prepare(&mut ui)?;
    }
    let mut world = World::new("skeg-demo-")?;
    let story = tell(&mut ui, &mut world);
    if story.is_err() {
        ui.plain("\nIt failed; what it made is taken away …");
    }
    let result = story.and_then(|()| {
        ui.step("Stops both and takes everything away");
        world.stop()?;
        Ok(())
    });
    // The folder goes with the world, also after a failure.
    drop(world);
    result?;
    before.same_as_now()?;
    ui.done("mounts, cgroups, processes, network and temp folders are as before");
    ui.plain(&format!("\nDone in {}.", ui.total()));
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing and builds.
pub(crate) fn prepare(ui: &mut Ui) -> Result<()> {
    ui.step("Installs what is missing");
    needs::packages(ui, &[needs::BUILD, needs::DEMO])?;
    let target = build::host_target();
    needs::targets(ui, &[&target])?;
    ui.done("all there");
    ui.step(&format!("Builds static skegd, skeg and demo-web for {target}"));
    build::release(ui, &target, &["skeg-agent", "skeg-controller", "demo-web"])?;
    let sizes: Result<Vec<String>> = ["skegd", "skeg", "demo-web"]
        .iter()
        .map(|name| {
            let size = build::binary(&target, name).metadata()?.len();
            Ok(format!("{name} {:.1} MiB", size as f64 / f64::from(1 << 20)))
        })
        .collect();
    ui.done(&sizes?.join(", "));
    Ok(())
}

/// Starts the controller, enrols the device, pushes the image.
pub(crate) fn set_up(ui: &mut Ui, world: &mut World) -> Result<()> {
    ui.step("Starts the controller");
    world.start_controller()?;
    ui.lines("$ skeg serve --listen 127.0.0.1:0 --data …/controller");
    ui.done(&format!("listens on {}", world.address));

    ui.step("Enrols a device with a one-time token");
    let token = world.skeg(&["token", "create"])?;
    ui.lines("$ skeg token create");
    ui.lines(&shorten(token.trim()));
    world.start_device(token.trim())?;
    ui.lines("$ skegd init --config …/skegd.toml");
    world.wait_for_node(ui)?;
    show(ui, "skeg get nodes", &world.skeg(&["get", "nodes"])?);
    ui.done("the device is Ready");

    ui.step("Packs demo-web as an OCI image and pushes it into the controller's registry");
    let layout = world.path("image");
    let size = image::write(&layout, "demo-web", &build::binary(&build::host_target(), "demo-web"), PORT)?;
    let typed = world.push(ui, &layout, "demo-web")?;
    ui.lines(&format!("$ {typed}"));
    ui.done(&format!("one layer of {} KiB", size / 1024));
    Ok(())
}

fn tell(ui: &mut Ui, world: &mut World) -> Result<()> {
    set_up(ui, world)?;
    let port = free_port()?;
    ui.step("Applies a pod");
    let manifest = manifest(port);
    ui.lines(&manifest);
    show(ui, "skeg apply -f pod.yaml", &world.apply("pod.yaml", &manifest)?);
    let pod = world.wait_for_pod(ui, "web", "Running", |pod| running(pod) && pod["status"]["phase"] == "Running")?;
    ui.done("Running");

    ui.step("Fetches its page");
    let page = fetch(ui, world, port)?;
    show(ui, &format!("curl http://127.0.0.1:{port}/"), &page);
    ui.done("served from the pod");

    ui.step("Kills its process");
    let uid = pod["metadata"]["uid"].as_str().context("every object has a uid")?.to_owned();
    let processes = world.processes(&uid);
    let [process] = processes[..] else { bail!("one process was expected in the pod's cgroup, not {processes:?}") };
    ui.lines(&format!("$ kill -KILL {process}"));
    kill(Pid::from_raw(process), Signal::SIGKILL).context("kill")?;
    let pod = world.wait_for_pod(ui, "web", "running again", |pod| running(pod) && restarts(pod) == 1)?;
    let ended = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    if ended["exitCode"] != 137 {
        bail!("the restart's reason is not recorded: {}", pod["status"]);
    }
    fetch(ui, world, port)?;
    ui.done("restarted, and serving again");

    ui.step("Shows what a user sees");
    for arguments in
        [&["get", "nodes"][..], &["get", "pods", "-o", "wide"], &["describe", "pod", "web"], &["logs", "web"]]
    {
        show(ui, &format!("skeg {}", arguments.join(" ")), &world.skeg(arguments)?);
    }
    show(ui, "skegd ps", &world.skegd(&["ps"])?);
    ui.done("the restart and its reason are in the tables");

    ui.step("Deletes the pod");
    show(ui, "skeg delete pod web", &world.skeg(&["delete", "pod", "web"])?);
    until(ui, "the pod to be gone", PATIENCE, || {
        let gone = !world.skeg(&["get", "pods"])?.lines().any(|line| line.starts_with("web "));
        Ok((gone && world.processes(&uid).is_empty()).then_some(()))
    })?;
    ui.done("gone, with its processes");
    Ok(())
}

fn running(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default()
}

fn show(ui: &Ui, typed: &str, printed: &str) {
    ui.lines(&format!("$ {typed}"));
    ui.lines(printed);
}

/// A secret, so that it is recognised but of no use.
fn shorten(secret: &str) -> String {
    format!("{}…", secret.chars().take(24).collect::<String>())
}

fn manifest(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  restartPolicy: Always\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: web\n    image: demo-web:1\n    ports:\n    \
         - containerPort: {PORT}\n      hostPort: {port}\n      hostIP: 127.0.0.1\n    resources:\n      limits:\n        \
         memory: 32Mi\n        cpu: 500m\n"
    )
}

/// A port of the loopback interface that nobody has at this moment.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a free port")?;
    Ok(listener.local_addr()?.port())
}

/// One page over plain HTTP.
fn request(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_PAGE).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Fetches the page, patiently: the program may need a moment until it listens.
fn fetch(ui: &mut Ui, world: &mut World, port: u16) -> Result<String> {
    until(ui, &format!("http://127.0.0.1:{port}/"), Duration::from_secs(20), || {
        world.check_alive()?;
        let answer = request(port).unwrap_or_default();
        let page = answer.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.1 200 "));
        Ok(page.map(|(_, body)| body.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_names_the_port_and_keeps_its_indents() {
        let text = manifest(18080);
        assert!(text.contains("\n    ports:\n    - containerPort: 8080\n      hostPort: 18080\n"), "{text}");
        assert!(text.ends_with("\n      limits:\n        memory: 32Mi\n        cpu: 500m\n"), "{text}");
    }

    #[test]
    fn a_secret_is_not_shown_whole() {
        assert_eq!(shorten("skeg-join.abcdefghijklmnopqrstuvwxyz"), "skeg-join.abcdefghijklmn…");
    }
}
