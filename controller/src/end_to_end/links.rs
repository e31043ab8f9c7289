//! What devices and the controller do to each other.

use http_body_util::BodyExt;
use hyper::Method;
use serde_json::json;
use skeg_protocol::message::{Base, Channel, Held, Items, RejectCode, StatusUpdate, StreamEnd, StreamRequest};
use skeg_protocol::{LinkError, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::device::{Device, NOTHING, connect, hello, identity, running};
use super::{Controller, node_key, pod_key};
use crate::commands::client::is_refusal;
use crate::schedule::is_ready;
use crate::tls::Identity;

/// Enrols a new device.
pub(super) async fn enrol(controller: &Controller, name: &str) -> (Identity, Device) {
    let identity = identity();
    let token = controller.token().await;
    let mut device = open(controller, &identity, hello(name, Some(&token), NOTHING)).await;
    assert!(matches!(device.expect().await, Message::Welcome(_)));
    controller.until(&node_key(name), is_ready).await;
    (identity, device)
}

pub(super) async fn open(controller: &Controller, identity: &Identity, hello: skeg_protocol::message::Hello) -> Device {
    Device::open(controller.address, controller.app.public_key, identity, hello).await
}

async fn refused(controller: &Controller, identity: &Identity, name: &str, join: Option<&str>) -> (RejectCode, String) {
    let mut device = open(controller, identity, hello(name, join, NOTHING)).await;
    match device.next().await {
        Err(LinkError::Rejected(reject)) => (reject.code, reject.message),
        other => panic!("let in: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_down_to_its_device_and_its_status_comes_back() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (_, mut device) = enrol(&controller, "kiln-7").await;
    controller.create_pod("web").await;
    assert_eq!(device.take_manifest().await, 0);
    let pod = device.pods.values().next().unwrap().clone();
    assert_eq!((pod.name.as_str(), pod.containers[0].image.digest.0), ("web", [7; 32]));
    device.report(true, Vec::new()).await;
    let seen = controller.until(&pod_key("web"), |pod| pod["status"]["phase"] == "Running").await;
    assert_eq!(seen["spec"]["nodeName"], "kiln-7");
    assert_eq!(seen["status"]["hostIP"], "127.0.0.1");
    assert_eq!(seen["status"]["containerStatuses"][0]["ready"], true);

    controller.create_pod("two").await;
    assert_eq!(device.take_manifest().await, 1);
    let place = "/api/v1/namespaces/default/pods/web";
    controller.client.json(Method::DELETE, place, None).await.unwrap();
    assert_eq!(device.take_manifest().await, 2);
    assert!(!device.pods.contains_key(&pod.uid));
    // The device has not stopped it yet: the object stays.
    let marked = controller.client.json(Method::GET, place, None).await.unwrap();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    device.report(false, vec![pod.uid]).await;
    controller.until(&pod_key("web"), serde_json::Value::is_null).await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_strangers_keep_no_device_out() {
    let controller = Controller::start().await;
    let (known, device) = enrol(&controller, "kiln-7").await;
    drop(device);
    controller.until(&node_key("kiln-7"), |node| !is_ready(node)).await;
    let (address, key) = (controller.address, controller.app.public_key);
    let mut strangers = Vec::new();
    for _ in 0..crate::server::GUESTS_OF_ONE {
        strangers.push(connect(address, key, &identity(), b"http/1.1").await);
    }
    // One more of this address is closed, whoever it is: the first that is closed shows that all places are taken.
    let mut closed = connect(address, key, &identity(), b"http/1.1").await;
    assert!(matches!(closed.read(&mut [0; 16]).await, Ok(0) | Err(_)));
    let mut device = open(&controller, &known, hello("kiln-7", None, NOTHING)).await;
    assert!(matches!(device.expect().await, Message::Welcome(_)));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_comes_back_is_sent_only_what_it_lacks() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (identity, mut device) = enrol(&controller, "kiln-7").await;
    controller.create_pod("one").await;
    device.take_manifest().await;
    let intake = std::mem::take(&mut device.intake);
    drop(device);
    controller.until(&node_key("kiln-7"), |node| !is_ready(node)).await;
    let mut device = open(&controller, &identity, hello("kiln-7", None, intake.held())).await;
    assert!(matches!(device.expect().await, Message::Welcome(_)));
    device.intake = intake;
    controller.create_pod("two").await;
    let Message::ManifestBegin(begin) = device.expect().await else { panic!("no manifest begins") };
    assert_eq!(begin.base, Base::Held, "the first manifest of the new connection is a difference");
    assert!(begin.length < 150 && begin.size > 150, "{} of {} bytes", begin.length, begin.size);
    controller.stop().await;
}

/// It used to send the device what it remembered, above the device's number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_with_an_older_memory_rolls_no_device_back_unasked() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (identity, device) = enrol(&controller, "kiln-7").await;
    drop(device);
    controller.create_pod("one").await;
    let strange = Held { revision: 90, digest: skeg_protocol::Digest([9; 32]), epoch: [9; 8] };
    let mut device = open(&controller, &identity, hello("kiln-7", None, strange)).await;
    assert!(matches!(device.expect().await, Message::Welcome(_)));
    let conflict = |node: &serde_json::Value| {
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "HoldsUnknownRevision" && condition["status"] == "True")
    };
    let node = controller.until(&node_key("kiln-7"), conflict).await;
    assert!(is_ready(&node));
    controller.create_pod("two").await;
    let place = "/apis/skeg.dev/v1/nodes/kiln-7/overwrite";
    controller.client.json(Method::POST, place, None).await.unwrap();
    // The first that it hears of manifests is after the operator's consent.
    assert!(matches!(device.expect().await, Message::GetItems(_)));
    device.send(Items { checks: vec![[1; 8]] }).await;
    assert_eq!(device.take_manifest().await, 0);
    assert!(device.intake.held().revision > 90 && !device.pods.is_empty());
    controller.until(&node_key("kiln-7"), |node| !conflict(node)).await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_node_was_deleted_comes_back_to_an_empty_manifest() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (identity, mut device) = enrol(&controller, "kiln-7").await;
    controller.create_pod("one").await;
    device.take_manifest().await;
    let intake = std::mem::take(&mut device.intake);
    controller.client.json(Method::DELETE, "/api/v1/nodes/kiln-7", None).await.unwrap();
    assert_eq!(device.next().await, Ok(None));
    let token = controller.token().await;
    let mut device = open(&controller, &identity, hello("kiln-7", Some(&token), intake.held())).await;
    assert!(matches!(device.expect().await, Message::Welcome(_)));
    (device.intake, device.pods) = (intake, std::collections::BTreeMap::new());
    device.take_manifest().await;
    assert!(device.pods.is_empty());
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_are_let_in_who_may() {
    let controller = Controller::start().await;
    let token = controller.token().await;
    let (first, second) = (identity(), identity());
    let (code, message) = refused(&controller, &first, "a", None).await;
    assert_eq!(code, RejectCode::UnknownKey);
    assert!(message.contains("skeg token create"));
    let (code, _) = refused(&controller, &first, "a", Some("wrong")).await;
    assert_eq!(code, RejectCode::Token);
    let (code, _) = refused(&controller, &first, "Not A Name", Some(&token)).await;
    assert_eq!(code, RejectCode::Invalid);
    let mut device = open(&controller, &first, hello("a", Some(&token), NOTHING)).await;
    assert!(matches!(device.expect().await, Message::Welcome(_)));
    let (code, message) = refused(&controller, &second, "b", Some(&token)).await;
    assert_eq!(code, RejectCode::Token);
    assert!(message.contains("used already"), "{message}");
    let token = controller.token().await;
    let (code, _) = refused(&controller, &second, "a", Some(&token)).await;
    assert_eq!(code, RejectCode::NameTaken);
    // A deleted node's key is forgotten, and its device cut off.
    controller.until(&node_key("a"), is_ready).await;
    controller.client.json(Method::DELETE, "/api/v1/nodes/a", None).await.unwrap();
    assert_eq!(device.next().await, Ok(None));
    assert_eq!(refused(&controller, &first, "a", None).await.0, RejectCode::UnknownKey);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_only_the_connection_that_it_came_on() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (_, mut good) = enrol(&controller, "good").await;
    let (_, mut bad) = enrol(&controller, "bad").await;
    bad.send_raw(&[0xff, 0xff, 0xff, 4]).await;
    assert_eq!(bad.next().await, Ok(None));
    let node = controller.until(&node_key("bad"), |node| !is_ready(node)).await;
    let message = node["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("16777215 bytes is over the limit"), "{message}");
    let (_, mut worse) = enrol(&controller, "worse").await;
    worse.send_raw(&[3, 0, 0, 10, 1, 0xff, 0xff]).await;
    assert_eq!(worse.next().await, Ok(None));
    controller.create_pod("web").await;
    good.take_manifest().await;
    good.report(true, Vec::new()).await;
    controller.until(&pod_key("web"), |pod| pod["status"]["phase"] == "Running").await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_has_no_say_about_the_pods_of_another() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (_, mut owner) = enrol(&controller, "owner").await;
    controller.create_pod("web").await;
    owner.take_manifest().await;
    let (_, mut liar) = enrol(&controller, "liar").await;
    let mut status = running(owner.pods.values().next().unwrap());
    status.phase = skeg_protocol::Phase::Failed;
    liar.send(StatusUpdate { full: true, pods: vec![status], removed: Vec::new() }).await;
    // The liar's next breach is answered after its lie was dealt with.
    liar.send_raw(&[0xff, 0xff, 0xff, 4]).await;
    assert_eq!(liar.next().await, Ok(None));
    let pod = controller.until(&pod_key("web"), |_| true).await;
    assert_ne!(pod["status"]["phase"], "Failed");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_come_in_take_names_and_leave_as_the_operator_says() {
    let controller = Controller::start().await;
    let tokens = "/apis/skeg.dev/v1/jointokens";
    let spec = json!({"spec": {"approve": true, "uses": 9, "labels": {"site": "kiln"}}});
    let made = controller.client.json(Method::POST, tokens, Some(&spec)).await.unwrap();
    let (id, text) = (made["metadata"]["name"].as_str().unwrap(), made["status"]["token"].as_str().unwrap());
    let token = text.rsplit('.').next().unwrap();
    let act = async |verb: &str| {
        let place = format!("/apis/skeg.dev/v1/nodes/kiln-7/{verb}");
        controller.client.json(Method::POST, &place, None).await.map(drop)
    };
    assert!(act("approve").await.unwrap_err().to_string().contains("no device waits"));
    let (first, second) = (identity(), identity());
    let (code, message) = refused(&controller, &first, "kiln-7", Some(token)).await;
    assert!(code == RejectCode::Pending && message.contains("skeg node approve kiln-7"), "{message}");
    // It goes on waiting without a token.
    assert_eq!(refused(&controller, &first, "kiln-7", None).await.0, RejectCode::Pending);
    let waiting = controller.client.json(Method::GET, "/apis/skeg.dev/v1/pendingnodes", None).await.unwrap();
    assert_eq!((&waiting["items"][0]["name"], &waiting["items"][0]["token"]), (&json!("kiln-7"), &json!(id)));
    act("approve").await.unwrap();
    let mut old = open(&controller, &first, hello("kiln-7", None, NOTHING)).await;
    assert!(matches!(old.expect().await, Message::Welcome(_)));
    let node = controller.until(&node_key("kiln-7"), is_ready).await;
    assert_eq!(node["metadata"]["labels"]["site"], "kiln");

    // A board that was flashed anew.
    assert_eq!(refused(&controller, &second, "kiln-7", Some(token)).await.0, RejectCode::NameTaken);
    assert!(act("approve").await.unwrap_err().to_string().contains("skeg node replace kiln-7"));
    act("replace").await.unwrap();
    assert_eq!(old.next().await, Ok(None));
    assert_eq!(refused(&controller, &first, "kiln-7", None).await.0, RejectCode::UnknownKey);
    let mut new = open(&controller, &second, hello("kiln-7", None, NOTHING)).await;
    assert!(matches!(new.expect().await, Message::Welcome(_)));

    act("revoke").await.unwrap();
    assert_eq!(new.next().await, Ok(None));
    assert_eq!(refused(&controller, &second, "kiln-7", None).await.0, RejectCode::UnknownKey);
    controller.client.json(Method::DELETE, &format!("{tokens}/{id}"), None).await.unwrap();
    let (code, message) = refused(&controller, &second, "kiln-7", Some(token)).await;
    assert!(code == RejectCode::Token && message.contains("revoked"), "{message}");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_connection_of_a_device_counts() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (identity, mut old) = enrol(&controller, "kiln-7").await;
    let mut new = open(&controller, &identity, hello("kiln-7", None, NOTHING)).await;
    assert!(matches!(new.expect().await, Message::Welcome(_)));
    assert_eq!(old.next().await, Ok(None));
    let node = controller.until(&node_key("kiln-7"), |_| true).await;
    assert!(is_ready(&node), "the end of the old connection is not the node's");
    controller.create_pod("web").await;
    new.take_manifest().await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_nobody_has_holds_up_no_other_pod() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (_, mut device) = enrol(&controller, "kiln-7").await;
    let pod = json!({
        "metadata": {"name": "lost"},
        "spec": {"containers": [{"name": "main", "image": "127.0.0.1:1/nobody/has:this"}]},
    });
    controller.client.json(Method::POST, "/api/v1/namespaces/default/pods", Some(&pod)).await.unwrap();
    let state = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let lost = controller.until(&pod_key("lost"), |pod| state(pod)["reason"] == "ErrImagePull").await;
    let message = state(&lost)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("127.0.0.1:1"), "{message}");
    controller.create_pod("web").await;
    device.take_manifest().await;
    assert_eq!(device.pods.len(), 1);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_flow_from_the_device_within_their_credit() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (_, mut device) = enrol(&controller, "kiln-7").await;
    controller.create_pod("web").await;
    device.take_manifest().await;
    let sent: Vec<u8> = (0..40_000).flat_map(|line| format!("line {line}\n").into_bytes()).collect();
    let expected = sent.clone();
    let device = tokio::spawn(async move {
        let Message::StreamOpen(open) = device.expect().await else { panic!("no stream") };
        assert!(matches!(open.request, StreamRequest::Logs { tail: Some(5), follow: true, .. }));
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let count = device.connection.send_stream(open.id, Channel::Stdout, rest).unwrap();
            rest = &rest[count..];
            device.flush().await;
            if !rest.is_empty() {
                assert!(matches!(device.expect().await, Message::StreamCredit(_)));
            }
        }
        device.connection.close_stream(open.id, StreamEnd::Done).unwrap();
        device.flush().await;
        device
    });
    let place = "/api/v1/namespaces/default/pods/web/log?follow=true&tailLines=5";
    let body = controller.client.send(Method::GET, place, None).await.unwrap().into_body();
    assert_eq!(body.collect().await.unwrap().to_bytes(), expected);
    drop(device.await.unwrap());
    controller.until(&node_key("kiln-7"), |node| !is_ready(node)).await;
    let error = controller.client.send(Method::GET, place, None).await.unwrap_err();
    assert!(is_refusal(&error, "ServiceUnavailable"), "{error}");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_exec_carries_streams_both_ways_and_the_exit_code() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (_, mut device) = enrol(&controller, "kiln-7").await;
    controller.create_pod("web").await;
    device.take_manifest().await;
    // More than the stream's window, so that credit has to flow both ways.
    let sent: Vec<u8> = (0..60_000).flat_map(|line| format!("line {line}\n").into_bytes()).collect();
    let input = controller.folder.path().join("input");
    std::fs::write(&input, &sent).unwrap();
    let device = tokio::spawn(async move {
        let Message::StreamOpen(open) = device.expect().await else { panic!("no stream") };
        let StreamRequest::Exec { command, stdin: true, tty: false, .. } = open.request else { panic!("no exec") };
        assert_eq!(command, ["tr", "a-z", "A-Z"]);
        device.connection.send_stream(open.id, Channel::Stderr, b"careful\n").unwrap();
        device.flush().await;
        let mut waiting = Vec::new();
        let mut ended = false;
        while !(ended && waiting.is_empty()) {
            match device.expect().await {
                Message::StreamData(data) => {
                    ended |= data.bytes.is_empty();
                    device.connection.consumed(open.id, data.bytes.len()).unwrap();
                    waiting.extend(data.bytes.to_ascii_uppercase());
                }
                Message::StreamCredit(_) => {}
                other => panic!("{other:?} on a stream"),
            }
            let count = device.connection.send_stream(open.id, Channel::Stdout, &waiting).unwrap();
            waiting.drain(..count);
            device.flush().await;
        }
        device.connection.close_stream(open.id, StreamEnd::Exited(7)).unwrap();
        device.flush().await;
        device
    });
    let mut command = tokio::process::Command::new("kubectl");
    command.args(["exec", "-i", "web", "--", "tr", "a-z", "A-Z"]).kill_on_drop(true);
    command.env("KUBECONFIG", controller.folder.path().join("data/admin.kubeconfig"));
    command.env("HOME", controller.folder.path()).stdin(std::fs::File::open(&input).unwrap());
    match command.output().await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: kubectl is not installed");
            device.abort();
        }
        output => {
            let output = output.unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(7), "{errors}");
            assert!(errors.starts_with("careful\n"), "{errors}");
            assert!(output.stdout == sent.to_ascii_uppercase());
            drop(device.await.unwrap());
        }
    }
    controller.stop().await;
}

/// One HTTP/1.1 request of a device to the registry; gives the whole answer.
pub(super) async fn request(controller: &Controller, identity: &Identity, line: &str) -> String {
    let mut stream = connect(controller.address, controller.app.public_key, identity, b"http/1.1").await;
    let text = format!("{line} HTTP/1.1\r\nhost: skeg\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The controller may close without a TLS goodbye.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_is_read_only_for_enrolled_devices_and_closed_to_others() {
    let controller = Controller::start().await;
    let (known, _device) = enrol(&controller, "kiln-7").await;
    let get = request(&controller, &known, "GET /v2/").await;
    assert!(get.starts_with("HTTP/1.1 200"), "{get}");
    let push = request(&controller, &known, "POST /v2/demo/blobs/uploads/").await;
    assert!(push.starts_with("HTTP/1.1 403") && push.contains("devices only read"), "{push}");
    let stranger = request(&controller, &identity(), "GET /v2/").await;
    assert!(stranger.starts_with("HTTP/1.1 403") && stranger.contains("not enrolled"), "{stranger}");
    let api = request(&controller, &known, "GET /api/v1/pods").await;
    assert!(api.starts_with("HTTP/1.1 404"), "{api}");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_cannot_use_up_the_revisions_of_its_node() {
    let controller = Controller::start().await;
    let (identity, device) = enrol(&controller, "kiln-7").await;
    drop(device);
    let held = Held { revision: u64::MAX, ..NOTHING };
    let mut device = open(&controller, &identity, hello("kiln-7", None, held)).await;
    while let Ok(Some(_)) = device.next().await {}
    assert_eq!(controller.app.store.newest_manifest("kiln-7").unwrap().revision, 0);
    let mut device = open(&controller, &identity, hello("kiln-7", None, NOTHING)).await;
    assert!(matches!(device.expect().await, Message::Welcome(_)));
}
