//! Carries out what controllers want. A deed that somebody else has overtaken is left: the change that overtook it makes
//! the controller look again.

use serde_json::{Value, json};

use super::controllers::Deed;
use super::events;
use super::world::{controller_of, key_of};
use crate::api::{self, ApiError, DeleteOptions};
use crate::app::App;
use crate::store::{Guard, Key, Store, StoreError, revision_of, update};

/// Carries out deeds for an object, one after the other.
///
/// # Errors
/// Why one failed, for people; those after it were not tried.
pub(super) fn carry_out(app: &App, object: &Value, deeds: Vec<Deed>) -> Result<(), String> {
    for deed in deeds {
        one(app, object, deed)?;
    }
    Ok(())
}

fn one(app: &App, object: &Value, deed: Deed) -> Result<(), String> {
    let store = app.store.as_ref();
    let told = |error: StoreError| match error {
        StoreError::Conflict { .. } | StoreError::NotFound(_) | StoreError::Exists(_) => Ok(()),
        error => Err(error.to_string()),
    };
    match deed {
        Deed::Create(fresh) => create(app, object, fresh),
        Deed::Replace(changed) => replace(store, changed).or_else(told),
        Deed::Status(key, status) => {
            update(store, &key, |object| object["status"] = status.clone()).map(drop).or_else(told)
        }
        Deed::Metadata(key, field, value) => {
            update(store, &key, |object| object["metadata"][field] = value.clone()).map(drop).or_else(told)
        }
        Deed::Delete(key, uid) => delete(app, &key, &uid).map_err(|error| error.message().to_owned()),
        Deed::Remove(key) => {
            if key.kind == "Namespace" {
                events::forget(store, &key.name).or_else(told)?;
            }
            store.remove(&key).map(drop).or_else(told)
        }
        Deed::Event { about, warning, reason, message } => {
            events::tell(store, &about, warning, reason, &message).or_else(told)
        }
    }
}

fn create(app: &App, owner: &Value, mut fresh: Value) -> Result<(), String> {
    let store = app.store.as_ref();
    let kind = fresh["kind"].as_str().unwrap_or_default().to_owned();
    // A StatefulSet tells of its pods itself, by their names.
    let answers = controller_of(&fresh).is_some() && owner["kind"] != "StatefulSet" && matches!(&*kind, "Pod" | "Job");
    let made = api::prepare(app, &kind, &mut fresh).and_then(|()| {
        let key = key_of(&fresh);
        match store.put(&key, fresh, Guard::Absent) {
            Ok(_) => Ok(Some(key.name)),
            Err(StoreError::Exists(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    });
    let told = |error: StoreError| error.to_string();
    match made {
        Ok(Some(name)) if answers => {
            let message = format!("Created {}: {name}", kind.to_lowercase());
            events::tell(store, owner, false, "SuccessfulCreate", &message).map_err(told)
        }
        Ok(_) => Ok(()),
        Err(error) => {
            let message = format!("Error creating: {}", error.message());
            events::tell(store, owner, true, "FailedCreate", &message).map_err(told)?;
            Err(error.message().to_owned())
        }
    }
}

/// Replaces an object that is still as the controller saw it; what it is asked to be counts as a new generation.
fn replace(store: &dyn Store, mut changed: Value) -> Result<(), StoreError> {
    let key = key_of(&changed);
    let Some(old) = store.get(&key)? else { return Ok(()) };
    if old["spec"] != changed["spec"] && !old["metadata"]["generation"].is_null() {
        changed["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
    }
    let guard = Guard::Revision(revision_of(&changed));
    store.put(&key, changed, guard).map(drop)
}

fn delete(app: &App, key: &Key, uid: &str) -> Result<(), ApiError> {
    let Some(object) = app.store.get(key)? else { return Ok(()) };
    if object["metadata"]["uid"] != uid {
        return Ok(());
    }
    match api::delete(app, key, &object, &DeleteOptions::default()) {
        Err(error) if error.is_missing() => Ok(()),
        other => other.map(drop),
    }
}
