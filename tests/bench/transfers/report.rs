//! What was measured, as a table.

use super::measure::Series;
use std::fmt::Write as _;

/// What a ratio has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bar {
    /// The peer must take at least so many times as long.
    Faster(f64),
    /// Our value may be at most this.
    AtMost(f64),
    /// Our value may be at most so many times the peer's.
    Share(f64),
    /// Measured for information.
    None,
}

/// What we are compared with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Peer {
    /// It was measured in the same run.
    Measured(String, f64, f64),
    /// It could not be measured, and why.
    NotRun(String, String),
    /// There is none.
    Nothing,
}

/// One line of the table: a value of ours and what it is compared with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    /// The median and the best.
    pub(crate) ours: (f64, f64),
    pub(crate) peer: Peer,
    pub(crate) bar: Bar,
}

/// A peer's measurements, or why there are none.
pub(crate) type Outcome<'a> = Result<&'a Series, &'a str>;

/// Returns the lines that compare two series: time, and processor time if both have it.
pub(crate) fn compare(
    what: &str,
    ours: &Series,
    name: &str,
    peer: Outcome<'_>,
    bars: (Bar, Bar),
) -> Vec<Row> {
    let wall = |series: &Series| (series.median_wall(), series.best_wall());
    let not_run = |reason: &str| Peer::NotRun(name.to_owned(), reason.to_owned());
    let mut rows = vec![Row {
        what: what.to_owned(),
        unit: "s",
        ours: wall(ours),
        peer: match peer {
            Ok(peer) => Peer::Measured(name.to_owned(), wall(peer).0, wall(peer).1),
            Err(reason) => not_run(reason),
        },
        bar: bars.0,
    }];
    if let Some(cpu) = ours.median_cpu() {
        let theirs = match peer {
            Ok(peer) => peer
                .median_cpu()
                .map_or(Peer::Nothing, |cpu| Peer::Measured(name.to_owned(), cpu, cpu)),
            Err(reason) => not_run(reason),
        };
        let what = format!("{what}, both ends");
        rows.push(Row { what, unit: "CPU s", ours: (cpu, cpu), peer: theirs, bar: bars.1 });
    }
    rows
}

impl Row {
    /// Returns the ratio as the bar means it, of the medians.
    fn ratio(&self) -> Option<f64> {
        let Peer::Measured(_, median, _) = &self.peer else { return None };
        // Of time, how many times as fast we are; of everything else, how much of it we need.
        Some(if self.unit == "s" { median / self.ours.0 } else { self.ours.0 / median })
    }

    /// Returns whether the bar is met, in a word; nothing where there is none.
    pub(crate) fn verdict(&self) -> &'static str {
        if let Bar::AtMost(limit) = self.bar {
            return if self.ours.0 <= limit { "met" } else { "MISSED" };
        }
        if matches!(self.bar, Bar::None) {
            return "";
        }
        let Some(ratio) = self.ratio() else { return "not run" };
        let met = match self.bar {
            Bar::Faster(least) => ratio >= least,
            Bar::Share(most) => ratio <= most,
            Bar::AtMost(_) | Bar::None => true,
        };
        if met { "met" } else { "MISSED" }
    }

    fn cells(&self) -> [String; 6] {
        let both = |(median, best): (f64, f64)| {
            if (median - best).abs() < 1e-9 {
                number(median)
            } else {
                format!("{} ({})", number(median), number(best))
            }
        };
        let peer = match &self.peer {
            Peer::Measured(name, median, best) => format!("{name}: {}", both((*median, *best))),
            Peer::NotRun(name, reason) => format!("{name}: not run: {reason}"),
            Peer::Nothing => String::new(),
        };
        let bar = match self.bar {
            Bar::Faster(least) => format!("≥ {least}×"),
            Bar::Share(most) => format!("≤ {most}×"),
            Bar::AtMost(limit) => format!("≤ {limit} {}", self.unit),
            Bar::None => String::new(),
        };
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}×"));
        let ours = format!("{} {}", both(self.ours), self.unit);
        [self.what.clone(), ours, peer, ratio, bar, self.verdict().to_owned()]
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// What one part of the run gave.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) part: &'static str,
    /// What was measured, with sizes and number of rounds.
    pub(crate) about: String,
    pub(crate) rows: Vec<Row>,
}

/// Returns a section as a Markdown table.
pub(crate) fn table(section: &Section) -> String {
    let mut text = format!("{}\n\n", section.about);
    text.push_str("| what | ours: median (best) | peer: median (best) | ratio | bar | |\n");
    text.push_str("|---|---|---|---|---|---|\n");
    for row in &section.rows {
        writeln!(text, "| {} |", row.cells().join(" | ")).unwrap();
    }
    text
}
