//! The text format in which Prometheus reads measurements (version 0.0.4).
//!
//! Source: Prometheus documentation, “Exposition formats”, “Text-based format”.

use super::meter::{BOUNDS_US, Counted};
use std::fmt::Write as _;

/// What the names of all measurements begin with.
const PREFIX: &str = "steading_";

/// What becomes of a number as time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only rises, and begins anew with the process.
    Counter,
    /// Numbers of events within bounds.
    Histogram,
}

impl Kind {
    /// Returns the word of the format.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What stands behind the name of the measurement: `_bucket`, `_sum`, `_count`, or nothing.
    pub suffix: &'static str,
    /// What tells it from others of the same name.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

/// What is measured, under one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Its name, with what all begin with.
    pub name: String,
    /// What becomes of it.
    pub kind: Kind,
    /// What it is, in one line.
    pub help: &'static str,
    /// The numbers.
    pub samples: Vec<Sample>,
}

/// All measurements of one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exposition {
    /// By name, each once.
    pub families: Vec<Family>,
}

impl Exposition {
    /// Adds numbers of one name. A name without numbers is left out.
    pub(super) fn add(
        &mut self,
        kind: Kind,
        name: &str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, String)>, f64)>,
    ) {
        let of_one = |(labels, value)| Sample { suffix: "", labels, value };
        let samples: Vec<Sample> = samples.into_iter().map(of_one).collect();
        if !samples.is_empty() {
            self.families.push(Family { name: format!("{PREFIX}{name}"), kind, help, samples });
        }
    }

    /// Adds one number.
    pub(super) fn one(&mut self, kind: Kind, name: &str, help: &'static str, value: f64) {
        self.add(kind, name, help, [(Vec::new(), value)]);
    }

    /// Adds how long something took.
    pub(super) fn durations(&mut self, name: &str, help: &'static str, counted: &Counted) {
        let mut samples = Vec::with_capacity(BOUNDS_US.len() + 3);
        let bucket = |bound: String, number: u64| Sample {
            suffix: "_bucket",
            labels: vec![("le", bound)],
            value: number_of(number),
        };
        for (bound, number) in BOUNDS_US.iter().zip(counted.within) {
            samples.push(bucket(seconds_of_us(*bound).to_string(), number));
        }
        samples.push(bucket("+Inf".to_owned(), counted.number));
        let rest = [("_sum", seconds_of_us(counted.sum_us)), ("_count", number_of(counted.number))];
        samples.extend(rest.map(|(suffix, value)| Sample { suffix, labels: Vec::new(), value }));
        let name = format!("{PREFIX}{name}");
        self.families.push(Family { name, kind: Kind::Histogram, help, samples });
    }

    /// Returns the text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        for Family { name, kind, help, samples } in &self.families {
            // Writing to a string does not fail.
            writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", kind.word()).ok();
            for Sample { suffix, labels, value } in samples {
                write!(text, "{name}{suffix}").ok();
                for (place, (label, value)) in labels.iter().enumerate() {
                    let open = if place == 0 { '{' } else { ',' };
                    write!(text, "{open}{label}=\"{}\"", escaped(value)).ok();
                }
                let close = if labels.is_empty() { "" } else { "}" };
                writeln!(text, "{close} {value}").ok();
            }
        }
        text
    }
}

/// Returns a number as the format has it: all that we count is far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "measurements are read, not added up")]
pub(super) const fn number_of(number: u64) -> f64 {
    number as f64
}

/// Returns seconds.
pub(super) fn seconds_of_us(us: u64) -> f64 {
    number_of(us) / 1e6
}

/// Returns a label's value with what would end it escaped.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::care::meter::Meter;
    use std::time::Duration;

    #[test]
    fn the_text_is_as_prometheus_reads_it() {
        let mut exposition = Exposition::default();
        exposition.one(Kind::Counter, "a_total", "How often.", 3.0);
        exposition.add(Kind::Gauge, "none", "Nothing.", []);
        let labels = vec![("agent", "a\"b\\c\nd".to_owned()), ("state", "up".to_owned())];
        exposition.add(Kind::Gauge, "b", "What.", [(labels, 0.5)]);
        insta::assert_snapshot!(exposition.text(), @r#"
        # HELP steading_a_total How often.
        # TYPE steading_a_total counter
        steading_a_total 3
        # HELP steading_b What.
        # TYPE steading_b gauge
        steading_b{agent="a\"b\\c\nd",state="up"} 0.5
        "#);
    }

    #[test]
    fn durations_are_buckets_that_hold_all_before_them() {
        let meter = Meter::default();
        meter.committed(Duration::from_micros(300));
        meter.committed(Duration::from_secs(20));
        let mut exposition = Exposition::default();
        exposition.durations("t_seconds", "How long.", &meter.commits());
        let text = exposition.text();
        for line in [
            "steading_t_seconds_bucket{le=\"0.00025\"} 0",
            "steading_t_seconds_bucket{le=\"0.0005\"} 1",
            "steading_t_seconds_bucket{le=\"10\"} 1",
            "steading_t_seconds_bucket{le=\"+Inf\"} 2",
            "steading_t_seconds_sum 20.0003",
            "steading_t_seconds_count 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
