//! The controller's own registry.
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use axum::Router;

use crate::app::App;
use crate::store::{Database, Key32};

#[derive(Debug)]
pub(crate) struct Registry;

impl Registry {
    pub(crate) fn open(_root: &Path, _store: Arc<Database>) -> Result<Self> {
        Ok(Registry)
    }
}

pub(crate) fn admin_router(_app: Arc<App>) -> Router {
    Router::new()
}

pub(crate) fn device_router(_app: Arc<App>, _key: Key32) -> Router {
    Router::new()
}
