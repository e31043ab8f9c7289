//! Questions that are answered and not kept: who am I, and what may somebody do.

use axum::response::Response;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::ApiError;
use super::authorize::{self, Deed};
use super::objects::Ask;
use super::respond::answer;
use super::users::{self, User};

/// Answers a review.
pub(super) fn answer_to(ask: &mut Ask) -> Result<Response, ApiError> {
    let mut review = ask.object()?;
    let spec = review["spec"].clone();
    let me = ask.user.clone();
    review["status"] = match ask.target.kind.kind {
        "SelfSubjectReview" => json!({"userInfo": me.info()}),
        "TokenReview" => {
            let user = users::of_token(&ask.app, spec["token"].as_str().unwrap_or_default())?;
            match user {
                Some(user) => json!({"authenticated": true, "user": user.info()}),
                None => json!({"authenticated": false, "error": "the token is not known"}),
            }
        }
        "SelfSubjectAccessReview" => access(ask, &me, &spec)?,
        "SelfSubjectRulesReview" => {
            let rules = authorize::rules(&ask.app, &me, spec["namespace"].as_str().unwrap_or_default())?;
            let (of_paths, of_objects): (Vec<Value>, Vec<Value>) =
                rules.into_iter().partition(|rule| rule["nonResourceURLs"].is_array());
            json!({"resourceRules": of_objects, "nonResourceRules": of_paths, "incomplete": false})
        }
        // SubjectAccessReview and LocalSubjectAccessReview
        _ => {
            let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let user = User {
                name: spec["user"].as_str().unwrap_or_default().to_owned(),
                groups: groups.map(str::to_owned).collect(),
            };
            access(ask, &user, &spec)?
        }
    };
    Ok(answer(StatusCode::CREATED, &review, &ask.warnings))
}

fn access(ask: &Ask, user: &User, spec: &Value) -> Result<Value, ApiError> {
    let (of_object, of_path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let deed = match of_path.is_object() {
        true => Deed { verb: text(&of_path["verb"]), path: text(&of_path["path"]), ..Deed::default() },
        false => {
            let part = text(&of_object["subresource"]);
            let plural = text(&of_object["resource"]);
            Deed {
                verb: text(&of_object["verb"]),
                group: text(&of_object["group"]),
                resource: if part.is_empty() { plural } else { format!("{plural}/{part}") },
                namespace: text(&of_object["namespace"]),
                name: text(&of_object["name"]),
                path: String::new(),
            }
        }
    };
    Ok(json!({"allowed": authorize::allows(&ask.app, user, &deed)?}))
}
