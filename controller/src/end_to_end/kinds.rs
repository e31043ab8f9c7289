//! What the kinds that act do together: the whole controller, with a device that runs what it is told.

use hyper::Method;
use serde_json::{Value, json};

use super::Controller;
use super::device::Device;
use super::links::enrol;
use crate::store::{Key, Store};

/// A device that reports everything that it is given as running, until the returned task is dropped.
fn obey(mut device: Device) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        for turn in 0.. {
            let before: Vec<_> = device.pods.keys().copied().collect();
            device.take_manifest().await;
            let removed = before.into_iter().filter(|uid| !device.pods.contains_key(uid)).collect();
            device.report(turn == 0, removed).await;
        }
    })
}

fn deployment(image: &str, replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
        },
    })
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn key(kind: &str, name: &str) -> Key {
    Key::new(kind, "default", name)
}

/// Whether a Deployment has so many pods, all of its newest template and available.
fn is_settled(deployment: &Value, replicas: i64) -> bool {
    let status = &deployment["status"];
    let all = ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[*field] == replicas);
    all && status["observedGeneration"] == deployment["metadata"]["generation"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_and_everything_it_made_goes_with_it() {
    let controller = Controller::start().await;
    let client = &controller.client;
    controller.name_image("demo", 7);
    controller.name_image("next", 8);
    let (_, device) = enrol(&controller, "kiln-7").await;
    let device = obey(device);
    client.json(Method::POST, DEPLOYMENTS, Some(&deployment("demo:1", 3))).await.unwrap();
    controller.until(&key("Deployment", "web"), |web| is_settled(web, 3)).await;
    let place = format!("{DEPLOYMENTS}/web");
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "next:1"}]}}}});
    let body = Some(("application/strategic-merge-patch+json", patch.to_string().into_bytes()));
    client.send(Method::PATCH, &place, body).await.unwrap();
    let web = controller
        .until(&key("Deployment", "web"), |web| is_settled(web, 3) && web["metadata"]["generation"] == 2)
        .await;
    assert_eq!(web["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    let pods = controller.app.store.list("Pod", Some("default")).unwrap().items;
    let live: Vec<_> = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
    assert!(live.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "next:1") && live.len() == 3);
    client.json(Method::DELETE, &place, Some(&json!({"propagationPolicy": "Foreground"}))).await.unwrap();
    controller.until(&key("Deployment", "web"), Value::is_null).await;
    assert!(controller.app.store.list("ReplicaSet", None).unwrap().items.is_empty());
    device.abort();
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_secrets_and_services_reach_the_device() {
    let controller = Controller::start().await;
    let client = &controller.client;
    controller.name_image("demo", 7);
    let (_, mut device) = enrol(&controller, "kiln-7").await;
    let path = |plural: &str| format!("/api/v1/namespaces/default/{plural}");
    let map = json!({"metadata": {"name": "settings"}, "data": {"a": "b"}});
    client.json(Method::POST, &path("configmaps"), Some(&map)).await.unwrap();
    let secret = json!({"metadata": {"name": "key"}, "stringData": {"k": "hush"}});
    client.json(Method::POST, &path("secrets"), Some(&secret)).await.unwrap();
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    client.json(Method::POST, &path("services"), Some(&service)).await.unwrap();
    let pod = json!({
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [{
            "name": "main", "image": "demo:1", "envFrom": [{"configMapRef": {"name": "settings"}}],
            "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}],
        }]},
    });
    client.json(Method::POST, &path("pods"), Some(&pod)).await.unwrap();
    device.take_manifest().await;
    let manifest = controller.app.store.newest_manifest("kiln-7").unwrap();
    let names: Vec<_> = manifest.data.iter().map(|data| data.name.as_str()).collect();
    assert_eq!((names, manifest.services[0].name.as_str()), (vec!["settings", "key"], "web"));
    let patch = Some(("application/merge-patch+json", br#"{"data":{"a":"c"}}"#.to_vec()));
    client.send(Method::PATCH, &format!("{}/settings", path("configmaps")), patch).await.unwrap();
    device.take_manifest().await;
    let manifest = controller.app.store.newest_manifest("kiln-7").unwrap();
    assert_eq!(manifest.data[0].get("a"), Some(&b"c"[..]));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_may_do_what_their_roles_say() {
    let controller = Controller::start().await;
    let client = &controller.client;
    let made = client
        .json(Method::POST, "/apis/skeg.dev/v1/usertokens", Some(&json!({"spec": {"user": "ada", "groups": ["ops"]}})))
        .await
        .unwrap();
    let ada = client.with_token(made["status"]["token"].as_str().unwrap());
    let pods = "/api/v1/namespaces/default/pods";
    let refused = ada.json(Method::GET, pods, None).await.unwrap_err().to_string();
    let wanted =
        "pods is forbidden: User \"ada\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!(refused, wanted);
    let role =
        json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    client.json(Method::POST, &format!("{rbac}/roles"), Some(&role)).await.unwrap();
    let binding = json!({
        "metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "Group", "name": "ops"}],
    });
    client.json(Method::POST, &format!("{rbac}/rolebindings"), Some(&binding)).await.unwrap();
    ada.json(Method::GET, pods, None).await.unwrap();
    assert!(ada.json(Method::GET, "/api/v1/namespaces/default/secrets", None).await.is_err());
    // Nobody gives away more than they have.
    let all = json!({"metadata": {"name": "x"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    let grant = json!({"metadata": {"name": "g"}, "rules": [
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]},
    ]});
    client.json(Method::POST, &format!("{rbac}/roles"), Some(&grant)).await.unwrap();
    let bind = json!({
        "metadata": {"name": "bb"}, "roleRef": {"kind": "Role", "name": "g"}, "subjects": [{"kind": "User", "name": "ada"}],
    });
    client.json(Method::POST, &format!("{rbac}/rolebindings"), Some(&bind)).await.unwrap();
    let beyond = ada.json(Method::POST, &format!("{rbac}/roles"), Some(&all)).await.unwrap_err().to_string();
    assert!(beyond.contains("attempting to grant RBAC permissions not currently held"), "{beyond}");
    let id = made["metadata"]["name"].as_str().unwrap();
    client.json(Method::DELETE, &format!("/apis/skeg.dev/v1/usertokens/{id}"), None).await.unwrap();
    assert_eq!(ada.json(Method::GET, pods, None).await.unwrap_err().to_string(), "Unauthorized");
    let log = std::fs::read_to_string(controller.folder.path().join("data/audit.log")).unwrap();
    assert!(log.contains("\"username\":\"ada\"") && log.contains("\"code\":403"), "{log}");
    controller.stop().await;
}
