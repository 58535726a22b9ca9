//! `log`: what a build printed.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::{Format, Output},
    shown,
    verb::Act,
};
use crate::{
    coordinator::Coordinator,
    core::{
        build::ShownState,
        id::{AttemptId, BuildId},
    },
    store::AttemptRow,
};
use bytes::Bytes;
use fs_err::tokio::File;
use serde::Serialize;
use std::io::{ErrorKind, SeekFrom};
use tokio::{
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    sync::broadcast::{Receiver, error::RecvError},
};

/// How much is read at a time, in bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// The longest line of a JSON object, in bytes; longer ones are divided.
const JSON_LINE_BYTES_MAX: usize = 64 * 1024;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Log {
    /// The build
    id: BuildId,
    /// Go on until the build ends
    #[arg(short, long)]
    follow: bool,
    /// The log of this attempt, counted from 1, instead of the last
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
}

#[derive(Serialize)]
struct Object<'a> {
    attempt: String,
    /// Without its end; bytes that are not UTF-8 are replaced by U+FFFD.
    line: &'a str,
}

impl Act for Log {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        // What begins or ends behind this is told.
        let mut news = News::of(&invocation.coordinator, self.id);
        let build = shown::build(&invocation.coordinator, self.id).await?;
        let attempts = attempts(&invocation.coordinator, self.id).await?;
        let mut tail = self.tail;
        if let Some(number) = self.attempt {
            let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
            let Some(attempt) = attempts.get(index) else {
                let text = format!("build {} had {} attempts", self.id, attempts.len());
                return Err(CommandError::NoSuch(text));
            };
            self.show(invocation, attempt, tail).await?;
            return Ok(Exit::Done);
        }
        let mut state = build.state;
        let mut latest = attempts.into_iter().next_back();
        if latest.is_none() && !(self.follow && goes_on(state)) {
            let text = format!("build {} is {state}: no agent ever had it", self.id);
            return Err(CommandError::NoSuch(text));
        }
        loop {
            let shown = latest.as_ref().map(|attempt| attempt.id);
            if let Some(attempt) = latest.take() {
                self.show(invocation, &attempt, tail.take()).await?;
                invocation.output.flush().await?;
                if self.follow {
                    // Its end and the build's are one step, so this is up to date.
                    state = shown::build(&invocation.coordinator, self.id).await?.state;
                }
            }
            if !self.follow {
                return Ok(Exit::Done);
            }
            if !goes_on(state) {
                invocation.output.message(&format!("build {} is {state}", self.id)).await?;
                return Ok(Exit::Done);
            }
            let text = format!("build {} is {state}; waiting for an agent to take it", self.id);
            invocation.output.message(&text).await?;
            loop {
                let attempts = attempts_after(&invocation.coordinator, self.id, shown).await?;
                if let Some(next) = attempts {
                    latest = Some(next);
                    break;
                }
                state = shown::build(&invocation.coordinator, self.id).await?.state;
                if !goes_on(state) {
                    break;
                }
                news.next().await?;
            }
        }
    }
}

/// Tells whether a build may still get an attempt by itself.
const fn goes_on(state: ShownState) -> bool {
    !state.ends_a_wait()
}

async fn attempts(
    coordinator: &Coordinator,
    build: BuildId,
) -> Result<Vec<AttemptRow>, CommandError> {
    Ok(coordinator.readers.read(move |reader| reader.attempts(build)).await?)
}

/// Returns the last attempt, if it is another than the one that was shown.
async fn attempts_after(
    coordinator: &Coordinator,
    build: BuildId,
    shown: Option<AttemptId>,
) -> Result<Option<AttemptRow>, CommandError> {
    let last = attempts(coordinator, build).await?.into_iter().next_back();
    Ok(last.filter(|attempt| Some(attempt.id) != shown))
}

/// Tells when a build is given to an agent or comes to rest.
struct News {
    build: BuildId,
    allocated: Receiver<(BuildId, AttemptId)>,
    rested: Receiver<(BuildId, ShownState)>,
}

impl News {
    fn of(coordinator: &Coordinator, build: BuildId) -> Self {
        let (allocated, rested) =
            (coordinator.allocated.subscribe(), coordinator.rested.subscribe());
        Self { build, allocated, rested }
    }

    /// Returns when there may be something new.
    async fn next(&mut self) -> Result<(), CommandError> {
        loop {
            let about = tokio::select! {
                told = self.allocated.recv() => told.map(|(build, _)| build),
                told = self.rested.recv() => told.map(|(build, _)| build),
            };
            match about {
                Ok(build) if build == self.build => return Ok(()),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return Ok(()),
                Err(RecvError::Closed) => {
                    let text = "the coordinator is stopping; follow again in a moment";
                    return Err(CommandError::TryAgain(text.to_owned()));
                }
            }
        }
    }
}

impl Log {
    /// Prints the log of an attempt; when following, until the attempt ends.
    async fn show(
        &self,
        invocation: &mut Invocation,
        attempt: &AttemptRow,
        tail: Option<u64>,
    ) -> Result<(), CommandError> {
        let logs = invocation.coordinator.logs.clone();
        let mut printer = Printer::new(&mut invocation.output, attempt.id);
        if !self.follow || attempt.ended.is_some() {
            if let Some(mut file) = open(&invocation.coordinator, attempt.id).await? {
                start_at(&mut file, tail).await?;
                copy(&mut file, &mut printer).await?;
            }
            return printer.finish().await;
        }
        let mut extent = logs.follow(attempt.id).await.map_err(CommandError::Log)?;
        let (build, id) = (self.id, attempt.id);
        // An end that came before the call above is not told.
        let mut over = attempts(&invocation.coordinator, build)
            .await?
            .iter()
            .any(|attempt| attempt.id == id && attempt.ended.is_some());
        if over {
            logs.seal(id);
        }
        let Some(mut file) = open(&invocation.coordinator, id).await? else { return Ok(()) };
        start_at(&mut file, tail).await?;
        loop {
            over = over || extent.borrow_and_update().sealed;
            copy(&mut file, &mut printer).await?;
            printer.output.flush().await?;
            if over {
                return printer.finish().await;
            }
            // The sender goes only with the process.
            over = extent.changed().await.is_err();
        }
    }
}

async fn open(coordinator: &Coordinator, attempt: AttemptId) -> Result<Option<File>, CommandError> {
    match File::open(coordinator.logs.path(attempt)).await {
        Ok(file) => Ok(Some(file)),
        // Nothing was printed.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CommandError::Log(error)),
    }
}

/// Goes to the beginning of the last lines. Reads backwards, so that long logs cost nothing.
async fn start_at(file: &mut File, tail: Option<u64>) -> Result<(), CommandError> {
    let Some(lines) = tail else { return Ok(()) };
    let start = tail_offset(file, lines).await.map_err(CommandError::Log)?;
    file.seek(SeekFrom::Start(start)).await.map(drop).map_err(CommandError::Log)
}

async fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(end);
    }
    let last = end.saturating_sub(1);
    let mut found = 0;
    let mut buffer = vec![0; PIECE_BYTES];
    while end > 0 {
        let start = end.saturating_sub(PIECE_BYTES as u64);
        let piece = &mut buffer[..usize::try_from(end - start).unwrap_or(PIECE_BYTES)];
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(piece).await?;
        for (place, byte) in piece.iter().enumerate().rev() {
            let at = start + place as u64;
            // The end of the last line begins no other.
            if *byte == b'\n' && at != last {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// Prints what there is from here on.
async fn copy(file: &mut File, printer: &mut Printer<'_>) -> Result<(), CommandError> {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let len = file.read(&mut piece).await.map_err(CommandError::Log)?;
        if len == 0 {
            return Ok(());
        }
        piece.truncate(len);
        printer.print(piece.into()).await?;
    }
}

/// Prints a log in the wanted form.
struct Printer<'a> {
    output: &'a mut Output,
    attempt: AttemptId,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl<'a> Printer<'a> {
    const fn new(output: &'a mut Output, attempt: AttemptId) -> Self {
        Self { output, attempt, partial: Vec::new() }
    }

    async fn print(&mut self, piece: Bytes) -> Result<(), CommandError> {
        if self.output.format() == Format::Text {
            return Ok(self.output.bytes(piece).await?);
        }
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if part.ends_with(b"\n") || self.partial.len() >= JSON_LINE_BYTES_MAX {
                self.end_line().await?;
            }
        }
        Ok(())
    }

    async fn end_line(&mut self) -> Result<(), CommandError> {
        let line = std::mem::take(&mut self.partial);
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let mut text = String::with_capacity(line.len());
        for chunk in line.utf8_chunks() {
            text.push_str(chunk.valid());
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        let object = Object { attempt: self.attempt.to_string(), line: &text };
        Ok(self.output.json(&object).await?)
    }

    async fn finish(mut self) -> Result<(), CommandError> {
        if self.partial.is_empty() { Ok(()) } else { self.end_line().await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tail_of(content: &[u8], lines: u64) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs_err::write(&path, content).unwrap();
        let mut file = File::open(&path).await.unwrap();
        let offset = tail_offset(&mut file, lines).await.unwrap();
        content[usize::try_from(offset).unwrap()..].to_vec()
    }

    #[tokio::test]
    async fn the_last_lines_are_found_from_behind() {
        assert_eq!(tail_of(b"a\nb\nc\n", 2).await, b"b\nc\n");
        assert_eq!(tail_of(b"a\nb\nc", 2).await, b"b\nc");
        assert_eq!(tail_of(b"a\nb\nc\n", 9).await, b"a\nb\nc\n");
        assert_eq!(tail_of(b"a\nb\n\n", 1).await, b"\n");
        assert_eq!(tail_of(b"a\n", 0).await, b"");
        assert_eq!(tail_of(b"", 3).await, b"");
        let long = [vec![b'x'; 3 * PIECE_BYTES], b"\n".to_vec(), vec![b'y'; PIECE_BYTES]].concat();
        assert_eq!(tail_of(&long, 1).await, vec![b'y'; PIECE_BYTES]);
        assert_eq!(tail_of(&long, 2).await, long);
    }
}
