//! `log`: what a build printed.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::{Format, Output},
    shown,
    verb::Act,
};
use crate::{
    coordinator::{Coordinator, logs::Reading},
    core::{
        build::ShownState,
        id::{AttemptId, BuildId},
    },
    store::AttemptRow,
};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

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
        let (build, id) = (self.id, attempt.id);
        if let Some(ended) = attempt.ended
            && logs.was_removed(ended)
            && logs.bytes(id).await.map_err(CommandError::Log)?.is_none()
        {
            let text = format!(
                "what the attempt {id} printed is not kept any more: logs this old were removed, as \
                 log-keep-days and log-keep-bytes in steading.toml say"
            );
            return Err(CommandError::NoSuch(text));
        }
        let mut reading = logs.read(id);
        let mut printer = Printer::new(&mut invocation.output, id);
        if !self.follow || attempt.ended.is_some() {
            start_at(&mut reading, tail).await?;
            copy(&mut reading, &mut printer).await?;
            return printer.finish().await;
        }
        let mut follower = logs.follow(id).await.map_err(CommandError::Log)?;
        // An end that came before the call above is not told.
        let mut over = attempts(&invocation.coordinator, build)
            .await?
            .iter()
            .any(|attempt| attempt.id == id && attempt.ended.is_some());
        if over {
            logs.seal(id);
        }
        start_at(&mut reading, tail).await?;
        loop {
            over = over || follower.extent().sealed;
            copy(&mut reading, &mut printer).await?;
            printer.output.flush().await?;
            if over {
                return printer.finish().await;
            }
            // The sender goes only with the process.
            over = follower.changed().await.is_err();
        }
    }
}

/// Goes to the beginning of the last lines.
async fn start_at(reading: &mut Reading, tail: Option<u64>) -> Result<(), CommandError> {
    let Some(lines) = tail else { return Ok(()) };
    reading.skip_to_last_lines(lines).await.map_err(CommandError::Log)
}

/// Prints what there is from here on.
async fn copy(reading: &mut Reading, printer: &mut Printer<'_>) -> Result<(), CommandError> {
    loop {
        let bytes = reading.next().await.map_err(CommandError::Log)?;
        if bytes.is_empty() {
            return Ok(());
        }
        printer.print(bytes).await?;
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
