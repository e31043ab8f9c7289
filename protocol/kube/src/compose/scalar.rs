//! Scalars of a Compose file. After variables were replaced a number may stand there as a text, and a text that looks
//! like a number may have been read as one.

use serde_json::Value;

use super::words;
use crate::cursor::{Cursor, Fault};

pub(super) trait Scalar {
    /// The text of a text, number or truth value.
    fn scalar(&self) -> Result<String, Fault>;
    /// A whole number.
    fn whole<T: TryFrom<i64>>(&self) -> Result<T, Fault>;
    /// True or false.
    fn truth(&self) -> Result<bool, Fault>;
    /// Milliseconds of a duration.
    fn duration(&self) -> Result<u32, Fault>;
    /// Bytes of a size.
    fn size(&self) -> Result<u64, Fault>;
    /// Thousandths of a number of CPUs.
    fn cpus(&self) -> Result<u32, Fault>;
}

impl Scalar for Cursor<'_> {
    fn scalar(&self) -> Result<String, Fault> {
        match self.value() {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(truth) => Ok(truth.to_string()),
            _ => Err(self.invalid("must be a text or a number")),
        }
    }

    fn whole<T: TryFrom<i64>>(&self) -> Result<T, Fault> {
        let number = match self.value() {
            Value::String(text) => text.trim().parse().ok(),
            value => value.as_i64(),
        };
        let number: i64 = number.ok_or_else(|| self.invalid("must be a whole number"))?;
        T::try_from(number).map_err(|_| self.invalid("is out of range"))
    }

    fn truth(&self) -> Result<bool, Fault> {
        match self.value() {
            Value::Bool(truth) => Ok(*truth),
            Value::String(text) if matches!(text.as_str(), "true" | "yes" | "on" | "y" | "1") => Ok(true),
            Value::String(text) if matches!(text.as_str(), "false" | "no" | "off" | "n" | "0" | "") => Ok(false),
            _ => Err(self.invalid("must be true or false")),
        }
    }

    fn duration(&self) -> Result<u32, Fault> {
        words::millis(&self.scalar()?).ok_or_else(|| self.invalid("must be a duration such as 30s or 1m30s"))
    }

    fn size(&self) -> Result<u64, Fault> {
        words::bytes(&self.scalar()?).ok_or_else(|| self.invalid("must be a size such as 64m or 1gb"))
    }

    fn cpus(&self) -> Result<u32, Fault> {
        words::thousandths(&self.scalar()?).ok_or_else(|| self.invalid("must be a number of CPUs such as 0.5"))
    }
}
