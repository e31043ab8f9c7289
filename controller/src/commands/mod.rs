//! The commands that an operator types. Each is a client of the API, except `serve`, which is the API.

pub(crate) mod apply;
pub(crate) mod client;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod get;
mod kubeconfig;
pub(crate) mod logs;
pub(crate) mod node;
pub(crate) mod serve;
pub(crate) mod token;
pub(crate) mod user;

pub(crate) use client::{Client, Target};
