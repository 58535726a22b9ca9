//! The verbs that people and scripts run through the SSH door: `ssh coordinator VERB …`.
//!
//! This room splits a command line into words, finds the verb, asks whether the key may, and
//! answers: on stdout what was asked for, on stderr what there is to say about it, and an exit
//! status. It decides nothing about builds: questions go to the engine and the database, wishes to
//! the engine. It runs no shell and no process.
//!
//! The one entry point is [`run`], called by the coordinator for every request. The verbs are in
//! [`verb`]'s table; a new one is a file with its arguments and one line there. What scripts may
//! rely on (exit statuses, JSON fields) is written down in `README.md` beside this file; manual pages
//! and completions are made of the same definitions ([`manual`]).

mod advice;
mod agents;
mod asking;
mod audit;
mod backup;
mod builds;
mod cancel;
mod check;
pub mod client;
mod ends;
mod enroll;
mod error;
mod events;
mod gc;
mod health;
mod help;
mod hooks;
mod invocation;
mod keys;
mod lines;
mod log;
pub mod manual;
mod metrics;
mod missing;
mod nar;
mod nearest;
mod obstacles;
mod output;
mod outputs;
mod prune;
mod reload;
mod retry;
mod selection;
mod set;
mod settings;
mod show;
mod shown;
mod status;
mod submit;
mod table;
mod times;
mod unplaceable;
mod verb;
mod version;
mod wait;
mod whoami;
mod why;
mod words;

use crate::{
    coordinator::{Coordinator, audit::Actor},
    ssh::{Request, RequestKind},
};
use error::{CommandError, Exit};
use invocation::Invocation;
use output::Output;
use std::ops::RangeInclusive;

/// Which exit statuses are refusals: bad words, no such thing, not permitted, a limit or bad input.
const REFUSALS: RangeInclusive<u8> = 2..=5;

/// The exit status when something in here broke.
const BROKEN: u32 = 75;

/// Answers one request, whatever it is, with an exit status. A client that goes away ends it.
pub async fn run(coordinator: Coordinator, request: Request) {
    let output = request.output.clone();
    let gone = request.gone.clone();
    // In a task of its own, so that even a mistake in here is answered.
    let answering = tokio::spawn(async move {
        tokio::select! {
            () = gone.cancelled() => {}
            () = answer(coordinator, request) => {}
        }
    });
    if let Err(error) = answering.await {
        tracing::error!(%error, "a command broke");
        let text = "steading: the coordinator made a mistake; its log says more\n";
        // Whoever asked may have gone.
        output.write_stderr(text.into()).await.ok();
        output.exit(BROKEN).await.ok();
    }
}

/// Returns the verb that a command line calls, or else what whoever sent it is told. Nothing is
/// done: this is all that happens to foreign text before a verb's own code.
///
/// # Errors
/// The text of the refusal, or of the help that was asked for.
pub fn called(line: &[u8]) -> Result<&'static str, String> {
    let words = words::split(line).map_err(|error| error.text())?;
    match verb::parse(&words, None) {
        Ok(called) => Ok(called.verb.name),
        Err(verb::NotCalled::Help(text) | verb::NotCalled::Usage(text)) => Err(text),
    }
}

async fn answer(coordinator: Coordinator, request: Request) {
    let (words, said) = match request.kind {
        RequestKind::Exec(line) => (words::split(&line), line),
        RequestKind::Shell => (Ok(vec!["help".to_owned()]), Vec::new()),
        RequestKind::Subsystem(name) => {
            let reason = CommandError::Usage(format!(
                "there is no subsystem ‘{}’ for your key: give a verb, as in ‘ssh COORDINATOR \
                 help’",
                table::excerpt(&name),
            ));
            (Err(reason), format!("subsystem {name}").into_bytes())
        }
    };
    let output = Output::new(&request.output, request.pty.map(|size| size.columns));
    let mut invocation = Invocation {
        coordinator,
        principal: request.principal,
        peer: request.peer,
        env: request.env,
        line: String::new(),
        input: request.input,
        output,
        act: None,
    };
    let ended = match words {
        Ok(words) => obey(&mut invocation, &words).await,
        Err(error) => Err(error),
    };
    let (status, reason) = match ended {
        Ok(exit) => (exit.status(), None),
        Err(error) => {
            error.log(&invocation.line);
            (error.status(), Some(error.text()))
        }
    };
    // Before anybody hears of it, so that whoever is answered finds it in the audit.
    note_end(&mut invocation, &said, status, reason.as_deref()).await;
    if let Some(reason) = &reason {
        // Whoever asked may have gone; the status is then for nobody, too.
        invocation.output.message(reason).await.ok();
    }
    invocation.output.exit(status).await;
}

/// Notes how an act ended, and what was refused. Questions that were answered are not noted.
async fn note_end(invocation: &mut Invocation, said: &[u8], status: u32, reason: Option<&str>) {
    let status = u8::try_from(status).unwrap_or(u8::MAX);
    // When the engine is gone nothing can be noted, and the next process says that of acts.
    if let Some(act) = invocation.act.take() {
        act.end(status, reason).await.ok();
    } else if REFUSALS.contains(&status) {
        let actor = Actor::new(&invocation.principal, invocation.peer);
        let auditor = &invocation.coordinator.audit;
        auditor.refused(&actor, said, status, reason.unwrap_or_default()).await.ok();
    }
}

async fn obey(invocation: &mut Invocation, words: &[String]) -> Result<Exit, CommandError> {
    let called = match verb::parse(words, invocation.output.columns()) {
        Ok(called) => called,
        Err(verb::NotCalled::Help(text)) => {
            invocation.output.text(&text).await?;
            return Ok(Exit::Done);
        }
        Err(verb::NotCalled::Usage(text)) => return Err(CommandError::Usage(text)),
    };
    called.verb.authorize(invocation.principal.role)?;
    invocation.line = shell_words::join(words);
    invocation.output.set_format(called.format);
    (called.verb.run)(invocation, &called.matches).await
}
