//! Docker's HEALTHCHECK of an image's configuration, which the OCI image specification leaves out.
//!
//! Owns its reading. Must not run it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How an image says that its program is healthy; Docker image specification v1.2, `Healthcheck`. A time of 0 and a
/// count of 0 mean the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", program, argument…]`, `["CMD-SHELL", line]`, or nothing: that of the image below.
    pub test: Vec<String>,
    /// Time between two checks in nanoseconds.
    pub interval: i64,
    /// How long a check may take in nanoseconds.
    pub timeout: i64,
    /// How long failures do not count after the start, in nanoseconds.
    pub start_period: i64,
    /// Time between two checks in that period, in nanoseconds.
    pub start_interval: i64,
    /// So many failures in a row make it unhealthy.
    pub retries: i64,
}

/// Reads the health check of an image's configuration.
///
/// # Errors
/// It is there and has another form.
pub(crate) fn of(configuration: &Value) -> Result<Option<Healthcheck>, serde_json::Error> {
    Option::deserialize(&configuration["config"]["Healthcheck"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_is_read_as_docker_writes_it() {
        let of = |text: &str| of(&serde_json::from_str(text).unwrap());
        let text = r#"{"config": {"Healthcheck": {"Test": ["CMD-SHELL", "wget -q -O- localhost"],
            "Interval": 5000000000, "Retries": 3}}}"#;
        let check = of(text).unwrap().unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "wget -q -O- localhost"]);
        assert_eq!((check.interval, check.timeout, check.retries), (5_000_000_000, 0, 3));
        for without in [r#"{}"#, r#"{"config": null}"#, r#"{"config": {"Healthcheck": null}}"#] {
            assert_eq!(of(without).unwrap(), None);
        }
        assert!(of(r#"{"config": {"Healthcheck": {"Test": "true"}}}"#).is_err());
    }
}
