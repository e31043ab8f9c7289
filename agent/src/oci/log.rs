//! Messages of the OCI command line: standard error for people, the log file for engines.
//!
//! Owns their form, which is runc's: conmon and containerd take the last error of the log file for their own. Must not
//! decide what is worth a message.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::SystemTime;

use anyhow::Context as _;
use log::{Level, LevelFilter, Log, Metadata, Record};

use super::arguments::{Global, LogFormat};
use crate::logs;

/// Where messages go.
struct Logger {
    file: Option<File>,
    format: LogFormat,
}

/// Opens the log file and makes `log`'s macros write there; errors go to standard error, too.
pub(crate) fn start(global: &Global) -> anyhow::Result<()> {
    let open = |path| OpenOptions::new().append(true).create(true).open(path);
    let file = global.log.as_deref().map(|path| open(path).with_context(|| format!("cannot open the log {path:?}")));
    let logger = Logger { file: file.transpose()?, format: global.log_format };
    log::set_max_level(if global.debug { LevelFilter::Debug } else { LevelFilter::Warn });
    log::set_boxed_logger(Box::new(logger)).context("the log is set up twice")
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        // Engines read the standard error of `create` as the container's: only a failure may speak there.
        if record.level() == Level::Error || self.file.is_none() {
            eprintln!("skeg-oci: {}: {message}", word(record.level()));
        }
        if let Some(mut file) = self.file.as_ref() {
            let line = line(self.format, record.level(), &message, SystemTime::now());
            // One write a line, so that lines of several callers never mix. There is nobody to tell of a full disk.
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// A level as logrus calls it.
fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

/// One line as logrus writes it.
fn line(format: LogFormat, level: Level, message: &str, now: SystemTime) -> String {
    let level = word(level);
    let time = logs::timestamp(now);
    match format {
        LogFormat::Json => format!("{}\n", serde_json::json!({ "level": level, "msg": message, "time": time })),
        LogFormat::Text => format!("time={time:?} level={level} msg={message:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_like_those_of_logrus() {
        let (message, now) = ("cannot use \"x\"", SystemTime::UNIX_EPOCH);
        assert_eq!(
            line(LogFormat::Json, Level::Error, message, now),
            "{\"level\":\"error\",\"msg\":\"cannot use \\\"x\\\"\",\"time\":\"1970-01-01T00:00:00.000000000Z\"}\n"
        );
        assert_eq!(
            line(LogFormat::Text, Level::Warn, message, now),
            "time=\"1970-01-01T00:00:00.000000000Z\" level=warning msg=\"cannot use \\\"x\\\"\"\n"
        );
    }
}
