//! What stands behind an object's name in a path and is an object of its own: scale, binding, eviction and token.

use axum::response::Response;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::change::repeated;
use super::error::Cause;
use super::objects::Ask;
use super::respond::answer;
use super::schema::Type;
use super::{ApiError, body, delete, patch, users};
use crate::selector;
use crate::store::{Guard, Key, Store, revision_of, update};

/// Serves a part.
pub(super) fn serve(ask: &mut Ask, method: &Method, name: &str) -> Result<Response, ApiError> {
    match (method, ask.target.part()) {
        (&Method::GET, "scale") => Ok(answer(StatusCode::OK, &scale_of(&ask.get(name)?), &ask.warnings)),
        (&Method::PUT, "scale") => {
            let wanted = ask.object()?;
            rescale(ask, name, &ask.get(name)?, &wanted)
        }
        (&Method::PATCH, "scale") => repeated(|| patch_scale(ask, name)),
        (&Method::POST, "binding") => bind(ask, name),
        (&Method::POST, "eviction") => evict(ask, name),
        (&Method::POST, "token") => users::service_account_token(ask, name),
        _ => Err(ApiError::method()),
    }
}

fn patch_scale(ask: &Ask, name: &str) -> Result<Response, ApiError> {
    let object = ask.get(name)?;
    let mut wanted = scale_of(&object);
    match patch::Form::of(body::media_type(&ask.headers))? {
        patch::Form::Operations => wanted = patch::operate(wanted, &ask.body)?,
        patch::Form::Merge => patch::merge(&mut wanted, &patch::read(&ask.body)?),
        patch::Form::Strategic | patch::Form::Apply => {
            patch::strategic(&mut wanted, &patch::read(&ask.body)?, Type::named("autoscaling.v1.Scale"))?;
        }
    }
    rescale(ask, name, &object, &wanted)
}

fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {
            "replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector::text(&object["spec"]["selector"]),
        },
    })
}

fn rescale(ask: &Ask, name: &str, object: &Value, wanted: &Value) -> Result<Response, ApiError> {
    let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
    if !(0..=i64::from(i32::MAX)).contains(&replicas) {
        let cause = Cause::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
        return Err(ApiError::causes("Scale", name, &[cause]));
    }
    let version = wanted["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
    let mut changed = object.clone();
    if changed["spec"]["replicas"] != replicas {
        changed["spec"]["replicas"] = json!(replicas);
        let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        changed["metadata"]["generation"] = json!(generation);
    }
    if let Some(schema) = Type::named(ask.target.kind.schema) {
        ask.with_manager(|manager| patch::track(Some(object), &mut changed, schema, manager));
    }
    if !ask.is_dry_run() {
        let guard = Guard::Revision(version.unwrap_or_else(|| revision_of(object)));
        changed = ask.app.store.put(&ask.key(name), changed, guard)?;
    }
    Ok(answer(StatusCode::OK, &scale_of(&changed), &ask.warnings))
}

fn success(code: StatusCode) -> Response {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()});
    answer(code, &status, &[])
}

/// Binds a pod to a node, as another scheduler does.
fn bind(ask: &mut Ask, name: &str) -> Result<Response, ApiError> {
    let wanted = ask.object()?;
    let node = wanted["target"]["name"].as_str().filter(|node| !node.is_empty());
    let node = node.ok_or_else(|| ApiError::causes("Binding", name, &[Cause::required("target.name", "")]))?;
    if ask.app.store.get(&Key::new("Node", "", node))?.is_none() {
        return Err(ApiError::not_found("Node", node));
    }
    let mut taken = None;
    let bound = update(ask.app.store.as_ref(), &ask.key(name), |pod| {
        match pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
            Some(other) => taken = Some(other.to_owned()),
            None => pod["spec"]["nodeName"] = json!(node),
        }
    })?;
    match (bound, taken) {
        (None, _) => Err(ApiError::not_found("Pod", name)),
        (_, Some(other)) => {
            Err(ApiError::conflict(&ask.key(name), &format!("pod {name} is already assigned to node \"{other}\"")))
        }
        _ => Ok(success(StatusCode::CREATED)),
    }
}

/// Deletes a pod if its disruption budgets allow that.
fn evict(ask: &mut Ask, name: &str) -> Result<Response, ApiError> {
    let wanted = ask.object()?;
    let pod = ask.get(name)?;
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
    for budget in ask.app.store.list("PodDisruptionBudget", Some(&ask.target.namespace))?.items {
        if over || !selector::matches(&budget["spec"]["selector"], &pod["metadata"]["labels"]) {
            continue;
        }
        if budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) < 1 {
            let name = budget["metadata"]["name"].as_str().unwrap_or_default();
            let why = format!("The disruption budget {name} does not allow another disruption right now.");
            let message = "Cannot evict pod as it would violate the pod's disruption budget.";
            return Err(ApiError::too_many_requests(message, Some(("DisruptionBudget", why))));
        }
        let name = budget["metadata"]["name"].as_str().unwrap_or_default();
        // Counted at once, so that two evictions do not share one allowance; the controller counts anew.
        update(ask.app.store.as_ref(), &Key::new("PodDisruptionBudget", &ask.target.namespace, name), |budget| {
            let left = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(1) - 1;
            budget["status"]["disruptionsAllowed"] = json!(left);
        })?;
    }
    let options = delete::Options::sent(&wanted["deleteOptions"], ask.is_dry_run());
    delete::delete(&ask.app, &ask.key(name), &pod, &options)?;
    Ok(success(StatusCode::CREATED))
}
