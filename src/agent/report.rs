//! Tells the coordinator of one attempt: that it started, its log, how it ended.
//!
//! Everything is told again in every new session, the log from where the coordinator says that it
//! has it; repetitions are harmless there. One piece of log is on its way at a time: what the
//! coordinator says of it tells where to go on, and a builder that floods its log slows nobody but
//! its own log.

use super::spool::Spool;
use crate::{
    core::{id::AttemptId, outcome::Outcome},
    protocol::message::{FromAgent, LOG_CHUNK_BYTES_MAX},
    telemetry,
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// How long to wait for what the coordinator says of a piece of log. Behind that, this session
/// gets no more of the log: an attempt that is not wanted is not answered.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long to wait before a piece is sent again that the coordinator could not write. Full disks
/// do not empty faster.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// A session that messages can be sent in.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Takes messages until the session is over.
    pub(super) outgoing: mpsc::Sender<FromAgent>,
    /// Attempts that have nothing to say in it, because the coordinator only wanted to know what
    /// they made.
    pub(super) muted: Arc<BTreeSet<AttemptId>>,
}

/// How far an attempt is, as its reporter needs it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Progress {
    /// Whether the builder was started.
    pub(super) started: bool,
    /// How long the log is by now.
    pub(super) log_bytes: u64,
    /// How it ended, once it has; the log does not grow any more then.
    pub(super) outcome: Option<Outcome>,
}

/// What the coordinator said of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Acknowledged {
    /// How often it said something.
    pub(super) answers: u64,
    /// How long it says the log is.
    pub(super) offset: u64,
}

/// Reports one attempt.
pub(super) struct Reporter<'a> {
    /// Which attempt.
    pub(super) attempt: AttemptId,
    /// Where its log is.
    pub(super) spool: &'a Spool,
    /// How far it is.
    pub(super) progress: watch::Receiver<Progress>,
    /// The session, while there is one.
    pub(super) link: watch::Receiver<Option<Link>>,
    /// What the coordinator last said of the log.
    pub(super) acknowledged: watch::Receiver<Acknowledged>,
    /// Is set to true as soon as the end was told once.
    pub(super) told: watch::Sender<bool>,
}

/// The session is over, or the agent stops.
struct Gone;

impl<E> From<mpsc::error::SendError<E>> for Gone {
    fn from(_: mpsc::error::SendError<E>) -> Self {
        Self
    }
}

impl Reporter<'_> {
    /// Reports in one session after the other. Never returns.
    pub(super) async fn run(mut self) {
        loop {
            let link = connected(self.attempt, &mut self.link).await;
            let Gone = self.report(&link).await;
            link.outgoing.closed().await;
        }
    }

    /// Reports in one session until it is over.
    async fn report(&mut self, link: &Link) -> Gone {
        match self.try_report(&link.outgoing).await {
            Ok(gone) | Err(gone) => gone,
        }
    }

    async fn try_report(&mut self, outgoing: &mpsc::Sender<FromAgent>) -> Result<Gone, Gone> {
        let attempt = self.attempt;
        let mut log = LogState::Unknown;
        let mut retry = Box::pin(sleep(Duration::ZERO));
        let mut told_started = false;
        let mut told_outcome = None;
        loop {
            let progress = self.progress.borrow_and_update().clone();
            if progress.started && !told_started {
                outgoing.send(FromAgent::Started { attempt }).await?;
                told_started = true;
            }
            let next = self.send_log(outgoing, log, progress.log_bytes).await?;
            if next == LogState::Refused && log != LogState::Refused {
                retry = Box::pin(sleep(RETRY_PAUSE));
            }
            log = next;
            if progress.outcome.is_some() && progress.outcome != told_outcome {
                told_outcome.clone_from(&progress.outcome);
                if let Some(outcome) = progress.outcome {
                    let log_bytes = progress.log_bytes;
                    outgoing.send(FromAgent::Finished { attempt, outcome, log_bytes }).await?;
                    self.told.send_replace(true);
                    // What it does not have by now, it does not want.
                    log = LogState::GivenUp;
                }
            }
            tokio::select! {
                () = outgoing.closed() => return Ok(Gone),
                () = &mut retry, if log == LogState::Refused => log = LogState::Unknown,
                changed = self.progress.changed() => changed.map_err(|_| Gone)?,
            }
        }
    }

    /// Sends the log up to `end`, as far as the coordinator takes it.
    async fn send_log(
        &mut self,
        outgoing: &mpsc::Sender<FromAgent>,
        log: LogState,
        end: u64,
    ) -> Result<LogState, Gone> {
        let mut offset = match log {
            LogState::Taken(offset) => offset,
            LogState::Refused | LogState::GivenUp => return Ok(log),
            LogState::Unknown if end == 0 => return Ok(log),
            // A piece without bytes asks how far the coordinator is.
            LogState::Unknown => match self.send_piece(outgoing, 0, Vec::new()).await? {
                Some(offset) => offset,
                None => return Ok(LogState::GivenUp),
            },
        };
        while offset < end {
            let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let (place, bytes) = match self.spool.read_log(offset, left.min(LOG_CHUNK_BYTES_MAX)) {
                Ok((_, bytes)) if bytes.is_empty() => break,
                Ok(read) => read,
                Err(error) => {
                    // A lost log is no reason to lose the build.
                    let error = telemetry::chain(&error);
                    tracing::warn!(attempt = %self.attempt, error, "log not read");
                    break;
                }
            };
            match self.send_piece(outgoing, place, bytes).await? {
                None => return Ok(LogState::GivenUp),
                Some(reached) if reached > place => offset = reached,
                Some(_) => return Ok(LogState::Refused),
            }
        }
        Ok(LogState::Taken(offset))
    }

    /// Sends one piece and returns how long the coordinator then says the log is; `None` when it
    /// says nothing.
    async fn send_piece(
        &mut self,
        outgoing: &mpsc::Sender<FromAgent>,
        offset: u64,
        bytes: Vec<u8>,
    ) -> Result<Option<u64>, Gone> {
        let attempt = self.attempt;
        let answers = self.acknowledged.borrow_and_update().answers;
        outgoing.send(FromAgent::Log { attempt, offset, bytes: bytes.into() }).await?;
        let answered = self.acknowledged.wait_for(|said| said.answers != answers);
        tokio::select! {
            () = outgoing.closed() => Err(Gone),
            answer = timeout(ANSWER_MAX, answered) => match answer {
                Ok(Ok(said)) => Ok(Some(said.offset)),
                Ok(Err(_)) => Err(Gone),
                Err(_) => {
                    tracing::debug!(%attempt, "the coordinator does not answer to the log");
                    Ok(None)
                }
            },
        }
    }
}

/// How far the log is in one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogState {
    /// It has to be asked.
    Unknown,
    /// The coordinator has this much.
    Taken(u64),
    /// It could not write the last piece, and may be asked again later.
    Refused,
    /// It says nothing, or needs nothing any more.
    GivenUp,
}

/// Waits until there is a session in which the attempt is spoken of. Never returns when the agent
/// stops, because what follows would be taken for the attempt's end.
pub(super) async fn connected(
    attempt: AttemptId,
    link: &mut watch::Receiver<Option<Link>>,
) -> Link {
    let usable = |link: &Option<Link>| {
        link.as_ref().is_some_and(|l| !l.outgoing.is_closed() && !l.muted.contains(&attempt))
    };
    let found = match link.wait_for(usable).await {
        Ok(link) => link.clone(),
        Err(_) => None,
    };
    match found {
        Some(link) => link,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::id::BuildId, logbook, protocol::message::Allocation};

    const ATTEMPT: AttemptId = AttemptId::from_bytes([1; 16]);

    /// Chance that a seed repeats.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) % sides
        }
    }

    /// A coordinator that loses sessions, and sometimes with them the end of what it had.
    async fn receive(
        dice: &mut Dice,
        link: &watch::Sender<Option<Link>>,
        acknowledged: &watch::Sender<Acknowledged>,
    ) -> (Vec<u8>, u64) {
        let mut log: Vec<u8> = Vec::new();
        loop {
            let (outgoing, mut messages) = mpsc::channel(4);
            link.send_replace(Some(Link { outgoing, muted: Arc::default() }));
            while let Some(message) = messages.recv().await {
                match message {
                    FromAgent::Log { offset, bytes, .. } => {
                        if dice.below(4) == 0 {
                            break;
                        }
                        let offset = usize::try_from(offset).unwrap();
                        assert!(bytes.is_empty() || offset <= log.len(), "a gap");
                        if offset + bytes.len() > log.len() {
                            let known = log.len() - offset;
                            log.extend_from_slice(&bytes[known..]);
                        }
                        let offset = log.len() as u64;
                        acknowledged.send_modify(|said| {
                            *said = Acknowledged { answers: said.answers + 1, offset };
                        });
                    }
                    FromAgent::Finished { log_bytes, .. } => return (log, log_bytes),
                    _ => {}
                }
            }
            if dice.below(2) == 0 {
                let kept = dice.below(log.len() as u64 + 1);
                log.truncate(usize::try_from(kept).unwrap());
            }
        }
    }

    #[tokio::test]
    async fn a_log_is_whole_however_often_sessions_and_the_coordinators_copy_are_lost() {
        for seed in 1..=40 {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
            let dir = tempfile::tempdir().unwrap();
            let allocation = Allocation {
                attempt: ATTEMPT,
                build: BuildId::from_bytes([2; 16]),
                derivation: "/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x.drv".parse().unwrap(),
                timeout_ms: None,
                max_silent_ms: None,
            };
            let spool = Spool::create(dir.path(), &allocation).unwrap();
            let (progress, seen) = watch::channel(Progress::default());
            let (link, links) = watch::channel(None);
            let (acknowledged, said) = watch::channel(Acknowledged::default());
            let reporter = Reporter {
                attempt: ATTEMPT,
                spool: &spool,
                progress: seen,
                link: links,
                acknowledged: said,
                told: watch::Sender::new(false),
            };
            let all: Vec<u8> = (0..dice.below(900_000)).map(|place| (place % 251) as u8).collect();
            let mut writer =
                logbook::Writer::open(spool.dir().to_owned(), super::super::spool::LOG_LIMITS)
                    .unwrap();
            let pieces = dice.below(8) + 1;
            let mut growth = Dice(seed + 77);
            let grow = async {
                for piece in 0..=pieces {
                    let end = all.len() * usize::try_from(piece).unwrap()
                        / usize::try_from(pieces).unwrap();
                    writer.append(0, &all[..end]).unwrap();
                    let log_bytes = end as u64;
                    progress.send_replace(Progress { started: true, log_bytes, outcome: None });
                    for _ in 0..growth.below(20) {
                        tokio::task::yield_now().await;
                    }
                }
                let log_bytes = all.len() as u64;
                let outcome = Some(Outcome::Built);
                progress.send_replace(Progress { started: true, log_bytes, outcome });
                std::future::pending::<()>().await;
            };
            let (log, log_bytes) = tokio::select! {
                received = receive(&mut dice, &link, &acknowledged) => received,
                () = reporter.run() => unreachable!("it never returns"),
                () = grow => unreachable!("it never returns"),
            };
            assert_eq!(log_bytes, all.len() as u64, "seed {seed}");
            assert!(log == all, "seed {seed}: {} of {} bytes", log.len(), all.len());
        }
    }
}
