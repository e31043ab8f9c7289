//! Work that ends, and work that returns. A controller makes pods of its jobs itself; a device that is alone is told
//! the jobs and makes the pods.

use serde::{Deserialize, Serialize};

use super::Pod;
use crate::id::{Label, Name, Uid};

/// Work that ends (Kubernetes `batch/v1.Job`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Names this very job for ever.
    pub uid: Uid,
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Unique in the namespace.
    pub name: Name,
    /// What each of its pods is; uid and name are given when one is made.
    pub template: Box<Pod>,
    /// Pods that must succeed; `None`: as soon as one has and all have ended.
    pub completions: Option<u32>,
    /// Most pods at a time.
    pub parallelism: u32,
    /// Each completion has a number, in `JOB_COMPLETION_INDEX` and the annotation of that name.
    pub indexed: bool,
    /// Failures before it has failed.
    pub backoff_limit: u32,
    /// Seconds from its start after which it has failed.
    pub active_deadline_seconds: Option<u32>,
    /// Seconds from its end after which it is forgotten.
    pub ttl_seconds_after_finished: Option<u32>,
    /// Makes no pods and ends those that run.
    pub suspend: bool,
}

/// Work that returns (Kubernetes `batch/v1.CronJob`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronJob {
    /// Names this very cron job for ever.
    pub uid: Uid,
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Unique in the namespace.
    pub name: Name,
    /// crontab(5)'s five fields, or `@hourly` and the like.
    pub schedule: String,
    /// Name of a time zone (IANA); `None` is UTC.
    pub time_zone: Option<heapless::String<64>>,
    /// What happens when one is due while another runs.
    pub concurrency: Concurrency,
    /// Seconds after its time at which a job is not started any more.
    pub starting_deadline_seconds: Option<u32>,
    /// Ended jobs that are kept.
    pub successful_jobs_history_limit: u32,
    /// Failed jobs that are kept.
    pub failed_jobs_history_limit: u32,
    /// Starts nothing.
    pub suspend: bool,
    /// Each job; uid and name are given when one is made.
    pub job: Job,
}

/// What happens when a cron job is due while its last job still runs (Kubernetes `concurrencyPolicy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Concurrency {
    /// Both run.
    #[default]
    Allow,
    /// This time is left out.
    Forbid,
    /// The old one is ended.
    Replace,
}
