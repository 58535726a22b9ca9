//! Times as people read and write them. Always UTC, so that they mean the same everywhere.

use crate::core::time::Timestamp;
pub(super) use crate::telemetry::rfc3339;
use std::str::FromStr;

/// How many milliseconds each unit of a duration has.
const UNITS: [(char, i64); 5] =
    [('s', 1_000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000), ('w', 604_800_000)];

/// Returns a time as tables show it: `2026-11-21 11:02:03Z`.
pub(super) fn shown(at: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(at.as_ms()) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        // Outside of the years that calendars know: only a damaged row has it.
        Err(_) => format!("{at} ms"),
    }
}

/// Returns a span of time as people read it: its two largest units.
pub(super) fn span(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (_, _, _) => format!("{days} d {hours} h"),
    }
}

/// A point of time, or how long before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    At(Timestamp),
    Ago { ms: i64 },
}

impl Since {
    pub(super) fn from(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago { ms } => now.plus_ms(ms.saturating_neg()),
        }
    }
}

/// A text that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a time as 2026-11-21T11:02:03Z or 2026-11-21, or how long ago it is as 90s, 30m, 2h, 3d or 1w"
)]
pub(super) struct InvalidSince;

impl FromStr for Since {
    type Err = InvalidSince;

    fn from_str(text: &str) -> Result<Self, InvalidSince> {
        Ok(match read(text).ok_or(InvalidSince)? {
            Read::Time(at) => Self::At(at),
            Read::Span { ms } => Self::Ago { ms },
        })
    }
}

/// A point of time, or how long after now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    At(Timestamp),
    In { ms: i64 },
}

impl Deadline {
    pub(super) fn from(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::In { ms } => now.plus_ms(ms),
        }
    }
}

/// A text that is no deadline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a deadline as 2026-11-21T11:02:03Z or 2026-11-21, or how far off it is as 90s, 30m, 2h, 3d or 1w"
)]
pub(super) struct InvalidDeadline;

impl FromStr for Deadline {
    type Err = InvalidDeadline;

    fn from_str(text: &str) -> Result<Self, InvalidDeadline> {
        Ok(match read(text).ok_or(InvalidDeadline)? {
            Read::Time(at) => Self::At(at),
            Read::Span { ms } => Self::In { ms },
        })
    }
}

/// What a text names.
enum Read {
    Time(Timestamp),
    Span { ms: i64 },
}

fn read(text: &str) -> Option<Read> {
    if let Some((number, unit_ms)) =
        UNITS.iter().find_map(|(unit, ms)| text.strip_suffix(*unit).map(|number| (number, *ms)))
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        let count: i64 = number.parse().ok()?;
        return Some(Read::Span { ms: count.checked_mul(unit_ms)? });
    }
    let time = match text.parse::<jiff::civil::Date>() {
        Ok(date) if text.len() == "2026-11-21".len() => {
            date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()
        }
        Ok(_) | Err(_) => text.parse::<jiff::Timestamp>().ok()?,
    };
    Some(Read::Time(Timestamp::from_ms(time.as_millisecond())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_ms(1_795_262_400_000);

    #[test]
    fn times_are_shown_in_utc() {
        let at = NOON.plus_ms(123_456);
        assert_eq!(shown(at), "2026-11-21 12:02:03Z");
        assert_eq!(rfc3339(at), "2026-11-21T12:02:03.456Z");
        assert_eq!(rfc3339(NOON), "2026-11-21T12:00:00.000Z");
        assert_eq!(shown(Timestamp::from_ms(i64::MAX)), format!("{} ms", i64::MAX));
    }

    #[test]
    fn times_and_durations_are_read() {
        for (text, ms) in [
            ("2026-11-21T12:00:00Z", 0),
            ("2026-11-21T13:00:00+01:00", 0),
            ("2026-11-21", -12 * 3_600_000),
            ("90s", -90_000),
            ("30m", -1_800_000),
            ("2h", -7_200_000),
            ("3d", -3 * 86_400_000),
            ("1w", -7 * 86_400_000),
        ] {
            let since: Since = text.parse().unwrap();
            assert_eq!(since.from(NOON).as_ms() - NOON.as_ms(), ms, "{text}");
        }
    }

    #[test]
    fn deadlines_are_ahead() {
        for (text, ms) in [("2026-11-21T12:00:01Z", 1_000), ("90s", 90_000), ("1d", 86_400_000)] {
            let deadline: Deadline = text.parse().unwrap();
            assert_eq!(deadline.from(NOON).as_ms() - NOON.as_ms(), ms, "{text}");
        }
        assert_eq!("soon".parse::<Deadline>(), Err(InvalidDeadline));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "h", "2", "-2h", "2 h", "yesterday", "2026-13-01", "99999999999999999999h"]
        {
            assert_eq!(text.parse::<Since>(), Err(InvalidSince), "{text}");
        }
        assert_eq!("9000000000000000w".parse::<Since>(), Err(InvalidSince));
    }

    #[test]
    fn spans_show_two_units() {
        let texts = [0, 59_999, 61_000, 3_661_000, 90_000_000].map(span);
        assert_eq!(texts, ["0 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
