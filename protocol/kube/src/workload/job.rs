//! Jobs and cron jobs: the device makes their pods itself.

use serde_json::json;
use skeg_protocol::manifest::{Concurrency, CronJob, Job};
use skeg_protocol::{Invalid, Label, Name};

use super::{Maker, OBJECT, names, template};
use crate::cursor::{Cursor, Fault, Fields};

const JOB: Fields = Fields {
    read: &[
        "activeDeadlineSeconds",
        "backoffLimit",
        "completionMode",
        "completions",
        "parallelism",
        "suspend",
        "template",
        "ttlSecondsAfterFinished",
    ],
    ignored: &["manualSelector", "podReplacementPolicy", "selector"],
    unsupported: &["backoffLimitPerIndex", "managedBy", "maxFailedIndexes", "podFailurePolicy", "successPolicy"],
};
const CRON_JOB: Fields = Fields {
    read: &[
        "concurrencyPolicy",
        "failedJobsHistoryLimit",
        "jobTemplate",
        "schedule",
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "suspend",
        "timeZone",
    ],
    ignored: &[],
    unsupported: &[],
};

impl Maker<'_> {
    pub(super) fn job(&mut self, top: &Cursor<'_>) -> Result<(), Fault> {
        top.fields(&OBJECT)?;
        let (namespace, name) = names(&top.need("metadata")?)?;
        if let Some(job) = self.read_job(&top.need("spec")?, namespace, name)? {
            job.validate()?;
            self.bundle.jobs.push(job);
        }
        Ok(())
    }

    pub(super) fn cron_job(&mut self, top: &Cursor<'_>) -> Result<(), Fault> {
        top.fields(&OBJECT)?;
        let (namespace, name) = names(&top.need("metadata")?)?;
        let spec = top.need("spec")?;
        spec.fields(&CRON_JOB)?;
        let template = spec.need("jobTemplate")?;
        template.fields(&Fields { read: &["spec"], ignored: &["metadata"], unsupported: &[] })?;
        let Some(job) = self.read_job(&template.need("spec")?, namespace.clone(), name.clone())? else { return Ok(()) };
        spec.only("concurrencyPolicy", &[json!("Allow"), json!("Forbid"), json!("Replace")])?;
        let concurrency = match spec.word("concurrencyPolicy")? {
            "Forbid" => Concurrency::Forbid,
            "Replace" => Concurrency::Replace,
            _ => Concurrency::Allow,
        };
        let job = CronJob {
            namespace,
            name,
            schedule: spec.need("schedule")?.text()?.to_owned(),
            time_zone: spec.get("timeZone")?.map(|zone| zone.bounded()).transpose()?,
            concurrency,
            starting_deadline_seconds: spec.number("startingDeadlineSeconds")?,
            successful_jobs_history_limit: spec.number("successfulJobsHistoryLimit")?.unwrap_or(3),
            failed_jobs_history_limit: spec.number("failedJobsHistoryLimit")?.unwrap_or(1),
            suspend: spec.flag("suspend")?,
            job: Job { name: Name::new(), namespace: Label::new(), ..job },
            ..CronJob::default()
        };
        job.validate()?;
        self.bundle.cron_jobs.push(job);
        Ok(())
    }

    fn read_job(&mut self, spec: &Cursor<'_>, namespace: Label, name: Name) -> Result<Option<Job>, Fault> {
        spec.fields(&JOB)?;
        spec.only("completionMode", &[json!("NonIndexed"), json!("Indexed")])?;
        let written = template(spec.need("template")?.value(), &[]);
        let read = self.of_template(&spec.need("template")?, &written, namespace.clone(), name.clone())?;
        let Some(mut pod) = read else { return Ok(None) };
        // What is made of it is named when it is made.
        (pod.namespace, pod.name) = (Label::new(), Name::new());
        let (completions, parallelism) = (spec.number("completions")?, spec.number("parallelism")?);
        // As Kubernetes fills them in: one of one, unless either is written.
        let completions = if completions.is_none() && parallelism.is_none() { Some(1) } else { completions };
        let limit = spec.number("backoffLimit")?.unwrap_or(6);
        let deadline: Option<u32> = spec.number("activeDeadlineSeconds")?;
        if deadline == Some(0) {
            let field = format!("{}.activeDeadlineSeconds", spec.path());
            return Err(Invalid { field, problem: "must be at least 1".to_owned() }.into());
        }
        Ok(Some(Job {
            namespace,
            name,
            template: Box::new(pod),
            completions,
            parallelism: parallelism.unwrap_or(1),
            indexed: spec.word("completionMode")? == "Indexed",
            backoff_limit: limit,
            active_deadline_seconds: deadline,
            ttl_seconds_after_finished: spec.number("ttlSecondsAfterFinished")?,
            suspend: spec.flag("suspend")?,
            ..Job::default()
        }))
    }
}
