//! Times as Kubernetes writes them: RFC 3339 in UTC, whole seconds.

use jiff::Timestamp;
use serde_json::{Value, json};

/// Now, by the controller's clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// A time as text.
pub(crate) fn text(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// A device's time (milliseconds since 1970) as text; null where no calendar has it.
pub(crate) fn from_millis(millis: i64) -> Value {
    Timestamp::from_millisecond(millis).map_or(Value::Null, |time| json!(text(time)))
}

/// Seconds between a text and now, as a short age (`5s`, `3m`, `2h`, `4d`); `<unknown>` where it is no time.
pub(crate) fn age(since: &Value, now: Timestamp) -> String {
    let Some(since) = since.as_str().and_then(|text| text.parse::<Timestamp>().ok()) else {
        return "<unknown>".to_owned();
    };
    let seconds = (now.as_second() - since.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{}m{}s", seconds / 60, seconds % 60),
        120..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |ago: i64| json!(text(Timestamp::from_second(1_000_000 - ago).unwrap()));
        for (ago, text) in [(5, "5s"), (119, "119s"), (125, "2m5s"), (3600, "60m"), (90_000, "25h"), (400_000, "4d")] {
            assert_eq!(age(&at(ago), now), text);
        }
        assert_eq!(age(&Value::Null, now), "<unknown>");
    }
}
