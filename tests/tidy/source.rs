//! A Rust source as text, cut into code, comments and strings.

use std::ops::Range;

/// One source file.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Its path from the repository's root.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
    /// It with comments and the contents of literals as spaces, byte for byte.
    code: String,
    comments: Vec<(usize, String)>,
    strings: Vec<(usize, String)>,
    /// The items that exist for tests only.
    tests: Vec<Range<usize>>,
}

/// A path such as `std::{fs, io::Read}` names, one for each of the leaves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    /// Where it starts in the text.
    pub(crate) at: usize,
    /// What stood between the double colons.
    pub(crate) segments: Vec<String>,
}

impl Source {
    /// Cuts a text up.
    pub(crate) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let mut cutter =
            Cutter { text: &text, at: 0, code: text.clone().into_bytes(), ..Cutter::default() };
        cutter.run();
        let Cutter { code, comments, strings, .. } = cutter;
        let code = String::from_utf8(code).unwrap();
        let tests = items_for_tests(&code);
        Self { path: path.into(), text, code, comments, strings, tests }
    }

    /// Returns the room: the folder or file right below `src`. The roots are in none.
    pub(crate) fn room(&self) -> Option<&str> {
        let path = self.path.strip_prefix("src/")?;
        let room = path.split('/').next()?.trim_end_matches(".rs");
        (!matches!(room, "lib" | "main")).then_some(room)
    }

    /// Returns how many `super` lead from this file's module to the crate's root.
    pub(crate) fn depth(&self) -> usize {
        let path = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let steps = path.split('/').count();
        if path.ends_with("/mod.rs") || matches!(path, "lib.rs" | "main.rs") {
            steps - 1
        } else {
            steps
        }
    }

    /// Returns the line, counted from 1, of a place in the text.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    /// Returns every comment and where it starts.
    pub(crate) fn comments(&self) -> impl Iterator<Item = (usize, &str)> {
        self.comments.iter().map(|(at, text)| (*at, text.as_str()))
    }

    /// Returns every string literal of the program, as it is written, and where it starts.
    pub(crate) fn strings(&self) -> impl Iterator<Item = (usize, &str)> {
        let program = self.strings.iter().filter(|(at, _)| !self.is_for_tests(*at));
        program.map(|(at, text)| (*at, text.as_str()))
    }

    /// Returns every identifier or keyword and where it starts, tests included.
    pub(crate) fn words(&self) -> Vec<(usize, &str)> {
        let mut words = Vec::new();
        let mut start = None;
        for (at, character) in self.code.char_indices().chain([(self.code.len(), ' ')]) {
            match (start, is_word(character)) {
                (None, true) => start = Some(at),
                (Some(from), false) => {
                    words.push((from, &self.code[from..at]));
                    start = None;
                }
                (None, false) | (Some(_), true) => {}
            }
        }
        words
    }

    /// Returns the code behind a place.
    pub(crate) fn code_from(&self, at: usize) -> &str {
        &self.code[at..]
    }

    /// Tells whether a place is in an item that exists for tests only.
    pub(crate) fn is_for_tests(&self, at: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&at))
    }

    /// Returns every path of more than one segment that the program mentions.
    pub(crate) fn mentions(&self) -> Vec<Mention> {
        let mut mentions = Vec::new();
        for (at, _) in self.words() {
            let inside = self.code[..at].trim_end().ends_with("::");
            if !inside && !self.is_for_tests(at) {
                let mut tree = Tree { code: &self.code, at, mentions: &mut mentions, start: at };
                tree.path(Vec::new());
            }
        }
        mentions.retain(|mention| mention.segments.len() > 1);
        mentions
    }

    /// Returns the modules in files of their own that exist for tests only, as paths without `.rs`.
    pub(crate) fn modules_for_tests_only(&self) -> Vec<String> {
        let folder = match self.path.strip_suffix("/mod.rs") {
            Some(folder) => folder.to_owned(),
            None if matches!(self.path.as_str(), "src/lib.rs" | "src/main.rs") => "src".to_owned(),
            None => self.path.trim_end_matches(".rs").to_owned(),
        };
        let items = self.tests.iter().map(|range| self.code[range.clone()].trim_end());
        let modules = items.filter_map(|item| {
            let name = item.strip_suffix(';')?.split_whitespace().collect::<Vec<_>>();
            match name.as_slice() {
                [.., "mod", name] => Some(format!("{folder}/{name}")),
                _ => None,
            }
        });
        modules.collect()
    }

    /// Tells whether this is the file of a module, or of one below it.
    pub(crate) fn is_in_module(&self, module: &str) -> bool {
        self.path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }
}

fn is_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

/// Returns the ranges of the items behind `#[cfg(test)]`.
fn items_for_tests(code: &str) -> Vec<Range<usize>> {
    const MARK: &str = "#[cfg(test)]";
    code.match_indices(MARK)
        .map(|(start, _)| {
            let mut depth = 0usize;
            for (at, character) in code[start + MARK.len()..].char_indices() {
                let end = start + MARK.len() + at + 1;
                match character {
                    '{' | '[' | '(' => depth += 1,
                    '}' | ']' | ')' => {
                        depth = depth.saturating_sub(1);
                        if depth == 0 && character == '}' {
                            return start..end;
                        }
                    }
                    ';' if depth == 0 => return start..end,
                    _ => {}
                }
            }
            start..code.len()
        })
        .collect()
}

/// Reads one path with its groups.
struct Tree<'a> {
    code: &'a str,
    at: usize,
    start: usize,
    mentions: &'a mut Vec<Mention>,
}

impl Tree<'_> {
    fn rest(&self) -> &str {
        &self.code[self.at..]
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// Reads on from the beginning of a segment; `before` is what the groups around it say.
    fn path(&mut self, mut before: Vec<String>) {
        loop {
            self.space();
            if self.rest().starts_with('{') {
                self.at += 1;
                return self.group(&before);
            }
            let rest = self.rest();
            let length = rest.find(|character| !is_word(character)).unwrap_or(rest.len());
            if length == 0 {
                break;
            }
            before.push(rest[..length].to_owned());
            self.at += length;
            self.space();
            if !self.rest().starts_with("::") {
                break;
            }
            self.at += 2;
        }
        self.mentions.push(Mention { at: self.start, segments: before });
    }

    /// Reads a group behind its brace.
    fn group(&mut self, before: &[String]) {
        while let Some(next) = self.rest().trim_start().chars().next() {
            self.space();
            match next {
                '}' => {
                    self.at += 1;
                    return;
                }
                ',' | '*' => self.at += 1,
                next if is_word(next) && !self.rest().starts_with("as ") => {
                    self.path(before.to_vec());
                }
                // `as Name`, or something that is no group of a path after all.
                next if is_word(next) => {
                    self.at += 2;
                    self.space();
                    let rest = self.rest();
                    self.at += rest.find(|other| !is_word(other)).unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }
}

/// Walks over a text and blanks what is not code.
#[derive(Default)]
struct Cutter<'a> {
    text: &'a str,
    at: usize,
    code: Vec<u8>,
    comments: Vec<(usize, String)>,
    strings: Vec<(usize, String)>,
}

impl Cutter<'_> {
    fn run(&mut self) {
        while let Some(next) = self.rest().chars().next() {
            let before = self.text[..self.at].chars().next_back();
            let fresh = !before.is_some_and(is_word);
            if self.rest().starts_with("//") {
                self.comment(self.rest().find('\n').unwrap_or(self.rest().len()));
            } else if self.rest().starts_with("/*") {
                self.comment(self.block_comment());
            } else if let Some((open, close)) = self.raw_string().filter(|_| fresh) {
                let body = &self.rest()[open..];
                let length = body.find(&close).unwrap_or(body.len());
                self.string(open, length, close.len());
            } else if next == '"' {
                let length = quoted(&self.rest()[1..]);
                self.string(1, length, 1);
            } else if let Some(length) = self.character() {
                self.blank(self.at + 1..self.at + length - 1);
                self.at += length;
            } else {
                self.at += next.len_utf8();
            }
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn blank(&mut self, range: Range<usize>) {
        for byte in &mut self.code[range] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }

    fn comment(&mut self, length: usize) {
        let range = self.at..self.at + length;
        self.comments.push((self.at, self.text[range.clone()].to_owned()));
        self.blank(range);
        self.at += length;
    }

    fn string(&mut self, open: usize, length: usize, close: usize) {
        let start = self.at + open;
        let range = start..start + length;
        self.strings.push((self.at, self.text[range.clone()].to_owned()));
        self.blank(range.clone());
        self.at = (range.end + close).min(self.text.len());
    }

    /// Returns the length of the block comment that starts here; they nest.
    fn block_comment(&self) -> usize {
        let mut depth = 0usize;
        let mut at = 0;
        while at < self.rest().len() {
            let rest = &self.rest()[at..];
            if rest.starts_with("/*") {
                depth += 1;
                at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        at
    }

    /// Returns how long the beginning of a raw string here is, and how it will end.
    fn raw_string(&self) -> Option<(usize, String)> {
        let prefix =
            ["br", "cr", "r"].into_iter().find(|prefix| self.rest().starts_with(prefix))?;
        let behind = &self.rest()[prefix.len()..];
        let hashes = behind.len() - behind.trim_start_matches('#').len();
        behind[hashes..]
            .starts_with('"')
            .then(|| (prefix.len() + hashes + 1, format!("\"{}", "#".repeat(hashes))))
    }

    /// Returns the length of the character literal here; a lifetime is none.
    fn character(&self) -> Option<usize> {
        let body = self.rest().strip_prefix('\'')?;
        let mut characters = body.char_indices();
        let (_, first) = characters.next()?;
        if first == '\\' {
            return body[2..].find('\'').map(|end| end + 4);
        }
        let (end, second) = characters.next()?;
        (second == '\'').then_some(end + 2)
    }
}

/// Returns how much of a text is in front of the closing quote.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            '"' if !escaped => return at,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}
