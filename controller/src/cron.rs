//! Schedules of CronJobs: five fields as cron has them (crontab(5)), in a time zone. Pure: the time comes in.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// How far ahead the next time is looked for: leap days are at most 8 years apart.
const YEARS: i16 = 9;
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// When something is due: bits of minutes, hours, days of the month, months and days of the week.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// A day fits if either of two restricted fields does; if one is `*`, the other alone decides.
    either: bool,
    zone: TimeZone,
}

impl Schedule {
    /// Reads a schedule such as `30 2 * * 1-6` or `@daily`, in a zone of the IANA database (UTC without one).
    ///
    /// # Errors
    /// What of it cannot be read, for people.
    pub(crate) fn parse(text: &str, zone: Option<&str>) -> Result<Schedule, String> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {text:?}", fields.len()));
        };
        let zone = zone.filter(|zone| !zone.is_empty()).unwrap_or("UTC");
        let zone = TimeZone::get(zone).map_err(|_| format!("unknown time zone {zone}"))?;
        // Sunday is 0 and 7.
        let weekdays_read = field(weekdays, 0, 7, &DAYS)?;
        Ok(Schedule {
            minutes: field(minutes, 0, 59, &[])?,
            hours: field(hours, 0, 23, &[])?,
            days: field(days, 1, 31, &[])?,
            months: field(months, 1, 12, &MONTHS)?,
            weekdays: (weekdays_read | weekdays_read >> 7) & 0x7f,
            either: !days.starts_with(['*', '?']) && !weekdays.starts_with(['*', '?']),
            zone,
        })
    }

    fn day_fits(&self, at: DateTime) -> bool {
        let day = self.days >> at.day() & 1 == 1;
        let weekday = self.weekdays >> at.weekday().to_sunday_zero_offset() & 1 == 1;
        let fits = if self.either { day || weekday } else { day && weekday };
        fits && self.months >> at.month() & 1 == 1
    }

    /// The first time after this one; `None` where there is none (30 February). A time that a clock change skips is
    /// due when the clock goes on; one that comes twice is due once.
    pub(crate) fn after(&self, time: Timestamp) -> Option<Timestamp> {
        let start = time.to_zoned(self.zone.clone()).datetime();
        let mut at =
            DateTime::new(start.year(), start.month(), start.day(), start.hour(), start.minute(), 0, 0).ok()?;
        at = at.checked_add(1.minute()).ok()?;
        while at.year() < start.year() + YEARS {
            let (hour, minute) = (at.hour(), at.minute());
            at = match () {
                () if !self.day_fits(at) => at.date().tomorrow().ok()?.at(0, 0, 0, 0),
                () if self.hours >> hour & 1 == 0 => at.date().at(hour, 0, 0, 0).checked_add(1.hour()).ok()?,
                () if self.minutes >> minute & 1 == 0 => at.checked_add(1.minute()).ok()?,
                () => {
                    let due = self.zone.to_timestamp(at).ok()?;
                    if due > time {
                        return Some(due);
                    }
                    at.checked_add(1.minute()).ok()?
                }
            };
        }
        None
    }
}

/// Reads one field: lists of numbers, names, ranges and steps.
fn field(text: &str, low: u32, high: u32, names: &[&str]) -> Result<u64, String> {
    let number = |word: &str| -> Result<u32, String> {
        let offset = u32::from(names.len() == MONTHS.len());
        let named = names.iter().position(|name| word.eq_ignore_ascii_case(name)).map(|place| place as u32 + offset);
        let number = named.or_else(|| word.parse().ok()).filter(|number| (low..=high).contains(number));
        number.ok_or_else(|| format!("{word:?} is not between {low} and {high}"))
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let step = match step {
            None => 1,
            Some(step) => step.parse().ok().filter(|step| *step > 0).ok_or_else(|| format!("{part:?} has no step"))?,
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (low, high),
            Some((from, to)) => (number(from)?, number(to)?),
            None if part.contains('/') => (number(range)?, high),
            None => (number(range)?, number(range)?),
        };
        if from > to {
            return Err(format!("{part:?} ends before it begins"));
        }
        bits |= (from..=to).step_by(step).fold(0, |bits, number| bits | 1 << number);
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, zone: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule, Some(zone)).unwrap();
        schedule.after(after.parse().unwrap()).map_or_else(String::new, |at| at.to_string())
    }

    #[test]
    fn schedules_name_the_next_time() {
        for (schedule, zone, after, due) in [
            ("*/15 * * * *", "UTC", "2026-11-28T10:07:30Z", "2026-11-28T10:15:00Z"),
            ("0 0 1 1 *", "UTC", "2026-11-28T10:07:30Z", "2027-01-01T00:00:00Z"),
            ("30 2 * * 1-6", "Europe/Warsaw", "2026-11-28T10:00:00Z", "2026-11-30T01:30:00Z"),
            ("0 12 * * sun", "UTC", "2026-11-28T10:00:00Z", "2026-11-29T12:00:00Z"),
            ("0 12 * * 7", "UTC", "2026-11-28T10:00:00Z", "2026-11-29T12:00:00Z"),
            ("0 0 13 * 5", "UTC", "2026-11-28T10:00:00Z", "2026-12-04T00:00:00Z"),
            ("5,10-12 8 * feb *", "UTC", "2026-11-28T10:00:00Z", "2027-02-01T08:05:00Z"),
            ("0 0 29 2 *", "UTC", "2026-11-28T10:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 30 2 *", "UTC", "2026-11-28T10:00:00Z", ""),
            ("@hourly", "UTC", "2026-11-28T10:00:00Z", "2026-11-28T11:00:00Z"),
            // Warsaw's clocks skip 02:30 on that day, and have it twice on this one.
            ("30 2 * * *", "Europe/Warsaw", "2026-03-28T12:00:00Z", "2026-03-29T01:30:00Z"),
            ("30 2 * * *", "Europe/Warsaw", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        ] {
            assert_eq!(next(schedule, zone, after), due, "{schedule} {zone} after {after}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "a * * * *"]
        {
            assert!(Schedule::parse(text, None).is_err(), "{text}");
        }
        assert!(Schedule::parse("* * * * *", Some("Mars/Olympus")).is_err());
    }
}
