//! Aligned columns, and foreign text that does a terminal no harm.

use std::fmt::Write as _;

/// What stands between two columns.
const GAP: &str = "  ";
/// The longest piece of foreign text in a message, in characters.
const EXCERPT_CHARACTERS_MAX: usize = 200;

/// Rows of text under one heading each.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
}

impl Table {
    /// Returns a table that has only its headings.
    pub(super) fn new(headings: &[&str]) -> Self {
        let mut table = Self { rows: Vec::new(), widths: vec![0; headings.len()] };
        table.row(headings.iter().map(|&heading| heading.to_owned()).collect());
        table
    }

    /// Adds a row with as many cells as there are headings.
    pub(super) fn row(&mut self, mut cells: Vec<String>) {
        for (width, cell) in self.widths.iter_mut().zip(&mut cells) {
            *cell = plain(cell);
            *width = (*width).max(cell.chars().count());
        }
        self.rows.push(cells);
    }

    /// Returns whether there are only headings.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// Returns the text. On a terminal with so many columns, lines end where it does.
    pub(super) fn text(&self, columns: Option<u32>) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&self.widths) {
                // Writing to a string does not fail.
                write!(line, "{cell:width$}{GAP}").ok();
            }
            text.push_str(&cut(line.trim_end(), columns));
            text.push('\n');
        }
        text
    }
}

/// Returns the part of a line that a terminal has room for.
pub(super) fn cut(line: &str, columns: Option<u32>) -> String {
    match columns.map(|columns| usize::try_from(columns).unwrap_or(usize::MAX)) {
        // A client without a real terminal may say that it has none at all.
        None | Some(0) => line.to_owned(),
        Some(columns) => line.chars().take(columns).collect(),
    }
}

/// Returns a text in lines that begin with `indent` and end where the terminal does, unless a word
/// is longer.
pub(super) fn wrapped(text: &str, indent: &str, columns: u32) -> String {
    let room = usize::try_from(columns).unwrap_or(usize::MAX);
    let mut wrapped = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let parts = [indent, line.as_str(), word];
        let length: usize = parts.iter().map(|part| part.chars().count()).sum();
        if !line.is_empty() && length >= room {
            // Writing to a string does not fail.
            writeln!(wrapped, "{indent}{line}").ok();
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(wrapped, "{indent}{line}").ok();
    wrapped
}

/// Returns a text without characters that move a cursor or begin a new line.
pub(super) fn plain(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// Returns the beginning of a foreign text, fit for a message.
pub(super) fn excerpt(text: &str) -> String {
    let mut start: String = text.chars().take(EXCERPT_CHARACTERS_MAX).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    plain(&start)
}

/// Returns a number of bytes as people read it.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut whole = count;
    let mut rest = 0;
    let mut unit = None;
    for name in UNITS {
        if whole < 1024 {
            break;
        }
        rest = whole % 1024;
        whole /= 1024;
        unit = Some(name);
    }
    match unit {
        None => format!("{count} B"),
        Some(unit) => format!("{whole}.{} {unit}", rest * 10 / 1024),
    }
}

/// Returns a number with its noun, which gets an `s` unless there is exactly one.
pub(super) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_goes_on_in_the_next_line() {
        assert_eq!(wrapped("one two three", "  ", 9), "  one two\n  three\n");
        assert_eq!(wrapped("immeasurable", "  ", 4), "  immeasurable\n");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["id", "state", "agent"]);
        table.row(vec!["1".to_owned(), "waiting".to_owned(), String::new()]);
        table.row(vec!["22222".to_owned(), "ok".to_owned(), "amber".to_owned()]);
        insta::assert_snapshot!(table.text(None), @r"
        id     state    agent
        1      waiting
        22222  ok       amber
        ");
    }

    #[test]
    fn a_terminal_gets_lines_that_fit() {
        let mut table = Table::new(&["a", "b"]);
        table.row(vec!["éééé".to_owned(), "bbbb".to_owned()]);
        assert_eq!(table.text(Some(7)), "a     b\néééé  b\n");
        assert_eq!(table.text(Some(0)), table.text(None));
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        assert_eq!(plain("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(plain("é"), "é");
        assert_eq!(excerpt(&"x".repeat(300)).chars().count(), 201);
    }

    #[test]
    fn sizes_are_rounded_down() {
        let texts = [0, 1023, 1024, 1536, 1 << 30, u64::MAX].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 GiB", "16383.9 PiB"]);
    }
}
