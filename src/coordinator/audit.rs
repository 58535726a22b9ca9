//! The audit: one line for each act that changes something, and for each refusal.
//!
//! The line of an act is durable before anything that is asked of the engine behind it, and gets
//! its end when that is known. Refusals are noted when they are over. Whoever is refused very often
//! gets one line for many: what a flood costs is bounded, and none of it goes uncounted.

use super::engine_thread::{EngineGone, EngineHandle};
use crate::{
    core::{
        audit::{ActId, AuditChange, AuditRecord},
        change::Change,
        engine::Input,
        id::Name,
        time::{Monotonic, Timestamp},
    },
    ssh::{Principal, Role},
    telemetry::Clock,
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// The longest line in the audit, in characters; longer ones are cut.
const LINE_CHARACTERS_MAX: usize = 4_096;
/// The longest reason in the audit, in characters.
const REASON_CHARACTERS_MAX: usize = 300;
/// How many refusals of one principal have a line each when there were none for a while.
const REFUSALS_AT_ONCE: u64 = 1_000;
/// How many more have one per second: 86,400 lines a day of whoever never stops.
const REFUSALS_PER_SECOND: u64 = 1;
/// How often what was summed up is written down.
const SUM_EVERY: Duration = Duration::from_secs(5);
/// What is written of acts that the end of the process interrupted.
const INTERRUPTED: &str = "the coordinator ended meanwhile";
/// What the secret part of a token follows, in every line; see [`super::enrollment`].
const TOKEN_PREFIX: &str = "steading-token-";

/// Somebody who did something, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    name: Name,
    role: Role,
    fingerprint: String,
    address: String,
}

impl Actor {
    /// Returns who a principal is that is connected from there.
    #[must_use]
    pub fn new(principal: &Principal, peer: SocketAddr) -> Self {
        Self {
            name: principal.name.clone(),
            role: principal.role,
            fingerprint: principal.fingerprint.clone(),
            address: peer.to_string(),
        }
    }

    fn record(&self, line: String, at: Timestamp) -> AuditRecord {
        AuditRecord {
            act: None,
            principal: self.name.clone(),
            role: Some(self.role.word()),
            fingerprint: self.fingerprint.clone(),
            address: Some(self.address.clone()),
            line,
            status: None,
            reason: None,
            lines: 1,
            at,
        }
    }
}

/// The way to the audit; cheap to clone.
#[derive(Debug, Clone)]
pub struct Auditor {
    engine: EngineHandle,
    clock: Clock,
    floods: Arc<Mutex<Floods>>,
}

/// What was refused lately, and how much since the start.
#[derive(Debug, Default)]
struct Floods {
    of: BTreeMap<(Role, Name), Flood>,
    refused: u64,
    summed: u64,
}

/// How much was refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusals {
    /// How often somebody was refused since the start.
    pub refused: u64,
    /// How many of those have no line of their own.
    pub summed: u64,
    /// Who is refused so often just now that many share a line, without strangers: anybody may
    /// knock.
    pub flooding: Vec<(Role, Name)>,
}

/// How often one principal was refused lately. Bounded by the keydir: strangers share one.
#[derive(Debug)]
struct Flood {
    /// How many lines it may have at once, in thousandths.
    allowance: u64,
    /// When that was counted.
    counted: Monotonic,
    /// What has no line yet.
    unwritten: Option<AuditRecord>,
}

impl Flood {
    const FULL: u64 = REFUSALS_AT_ONCE * 1_000;

    fn new(now: Monotonic) -> Self {
        Self { allowance: Self::FULL, counted: now, unwritten: None }
    }

    fn earn(&mut self, now: Monotonic) {
        let passed_ms = now.as_ms().saturating_sub(self.counted.as_ms());
        let earned = passed_ms.saturating_mul(REFUSALS_PER_SECOND);
        self.allowance = self.allowance.saturating_add(earned).min(Self::FULL);
        self.counted = now;
    }

    /// Returns the record if it gets a line of its own; counts it otherwise.
    fn take(&mut self, now: Monotonic, record: AuditRecord) -> Option<AuditRecord> {
        self.earn(now);
        if let Some(rest) = self.allowance.checked_sub(1_000) {
            self.allowance = rest;
            return Some(record);
        }
        let before = self.unwritten.as_ref().map_or(0, |sum| sum.lines);
        // The last one stands for all.
        self.unwritten = Some(AuditRecord { lines: before.saturating_add(1), ..record });
        None
    }
}

impl Floods {
    /// Counts a refusal; returns its record if it gets a line of its own.
    fn take(
        &mut self,
        who: (Role, Name),
        now: Monotonic,
        record: AuditRecord,
    ) -> Option<AuditRecord> {
        let own = self.of.entry(who).or_insert_with(|| Flood::new(now)).take(now, record);
        self.refused = self.refused.saturating_add(1);
        self.summed = self.summed.saturating_add(u64::from(own.is_none()));
        own
    }

    fn refusals(&mut self, now: Monotonic) -> Refusals {
        let floods = self.of.iter_mut().filter_map(|(who, flood)| {
            flood.earn(now);
            let is_flood = flood.allowance < Flood::FULL / 2 && who.0 != Role::Stranger;
            is_flood.then(|| who.clone())
        });
        Refusals { flooding: floods.collect(), refused: self.refused, summed: self.summed }
    }
}

/// An act that is being done. Dropped before its end is told, it is noted that nobody waited.
#[derive(Debug)]
pub struct Act {
    id: ActId,
    auditor: Auditor,
    is_over: bool,
}

impl Auditor {
    /// Begins: what an earlier process was doing is over.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn start(engine: EngineHandle, clock: Clock) -> Result<Self, EngineGone> {
        let auditor = Self { engine, clock, floods: Arc::default() };
        auditor.write(AuditChange::Interrupted { reason: INTERRUPTED.to_owned() }).await?;
        Ok(auditor)
    }

    /// Notes that somebody is about to change something. It is durable before anything that is
    /// asked of the engine behind it.
    ///
    /// # Errors
    /// [`EngineGone`].
    ///
    /// # Panics
    /// When the operating system has no randomness.
    pub async fn begin(&self, actor: &Actor, line: &str) -> Result<Act, EngineGone> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the operating system has randomness");
        let id = ActId::from_bytes(bytes);
        let record = actor.record(shown(line.as_bytes()), self.clock.now().wall);
        self.write(AuditChange::Line(AuditRecord { act: Some(id), ..record })).await?;
        Ok(Act { id, auditor: self.clone(), is_over: false })
    }

    /// Notes that somebody was refused, by itself or together with others like it. A line of its
    /// own is durable when this returns.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn refused(
        &self,
        actor: &Actor,
        line: &[u8],
        status: u8,
        reason: &str,
    ) -> Result<(), EngineGone> {
        let now = self.clock.now();
        let record = actor.record(shown(line), now.wall);
        let record =
            AuditRecord { status: Some(status), reason: Some(shown_reason(reason)), ..record };
        let key = (actor.role, actor.name.clone());
        let own = self.floods().take(key, now.mono, record);
        match own {
            Some(record) => self.keep(AuditChange::Line(record)).await,
            None => Ok(()),
        }
    }

    /// Writes down from time to time what was summed up, until canceled.
    pub(super) async fn sum_up(self, cancel: CancellationToken) {
        let mut looks = interval(SUM_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_last = tokio::select! {
                () = cancel.cancelled() => true,
                _ = looks.tick() => false,
            };
            for sum in self.sums() {
                if self.write(AuditChange::Line(sum)).await.is_err() {
                    return;
                }
            }
            if is_last {
                return;
            }
        }
    }

    /// Takes what was summed up, and forgets who has been quiet.
    fn sums(&self) -> Vec<AuditRecord> {
        let now = self.clock.now().mono;
        let mut floods = self.floods();
        let sums = floods.of.values_mut().filter_map(|flood| flood.unwritten.take()).collect();
        floods.of.retain(|_, flood| {
            flood.earn(now);
            flood.allowance < Flood::FULL
        });
        sums
    }

    /// Returns how much was refused.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.floods().refusals(self.clock.now().mono)
    }

    /// Writes something down and waits until it is durable.
    async fn keep(&self, change: AuditChange) -> Result<(), EngineGone> {
        let changes = vec![Change::Audit(Box::new(change))];
        self.engine.request(|token| Input::Record { token: Some(token), changes }).await?;
        Ok(())
    }

    /// Writes something down before whatever is asked of the engine next.
    async fn write(&self, change: AuditChange) -> Result<(), EngineGone> {
        self.engine
            .tell(Input::Record { token: None, changes: vec![Change::Audit(Box::new(change))] })
            .await
    }

    fn floods(&self) -> MutexGuard<'_, Floods> {
        self.floods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Act {
    /// Notes how it ended. That is durable when this returns.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn end(mut self, status: u8, reason: Option<&str>) -> Result<(), EngineGone> {
        self.is_over = true;
        let (act, reason) = (self.id, reason.map(shown_reason));
        let auditor = self.auditor.clone();
        auditor.keep(AuditChange::Ended { act, status: Some(status), reason }).await
    }
}

impl Drop for Act {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let (act, auditor) = (self.id, self.auditor.clone());
        let reason = Some("whoever asked did not wait for the end".to_owned());
        // Without a runtime the process is ending, which the next one notes.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(async move {
                auditor.write(AuditChange::Ended { act, status: None, reason }).await.ok();
            }));
        }
    }
}

/// Returns a line as the audit has it: printable, not too long, and without the secrets of tokens.
fn shown(line: &[u8]) -> String {
    let text = match std::str::from_utf8(line) {
        Ok(text) => text.to_owned(),
        Err(_) => line.escape_ascii().to_string(),
    };
    let mut shown = String::new();
    let mut characters = text.chars();
    for character in characters.by_ref().take(LINE_CHARACTERS_MAX) {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    if characters.next().is_some() {
        shown.push('…');
    }
    without_secrets(&shown)
}

/// Returns a text in which tokens have lost their secret part, wherever they stand.
fn without_secrets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(TOKEN_PREFIX) {
        let (before, token) = rest.split_at(at.saturating_add(TOKEN_PREFIX.len()));
        let id = token.find('-').map_or(token.len(), |dash| dash.saturating_add(1));
        let (id, secret) = token.split_at(id);
        let end = secret.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(secret.len());
        kept.push_str(before);
        kept.push_str(id);
        if end > 0 {
            kept.push('…');
        }
        rest = secret.get(end..).unwrap_or_default();
    }
    kept.push_str(rest);
    kept
}

/// Returns the first line of a reason, which says the most.
fn shown_reason(reason: &str) -> String {
    let line = reason.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let mut text: String = line.chars().take(REASON_CHARACTERS_MAX).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    without_secrets(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: &str) -> AuditRecord {
        let name = "ada".parse().unwrap();
        AuditRecord::of_coordinator(name, line.to_owned(), Timestamp::from_ms(0))
    }

    #[test]
    fn lines_are_printable_and_bounded() {
        assert_eq!(shown(b"show 'x y'"), "show 'x y'");
        assert_eq!(shown(b"a\n\x1b[2J"), "a\\n\\u{1b}[2J");
        assert_eq!(shown(b"a\xffb"), "a\\xffb");
        let long = shown("é".repeat(LINE_CHARACTERS_MAX + 1).as_bytes());
        assert_eq!(long.chars().count(), LINE_CHARACTERS_MAX + 1);
        assert_eq!(shown_reason("\n first\nsecond"), "first");
    }

    #[test]
    fn secrets_of_tokens_are_not_written_down() {
        let lines = [
            ("enroll --token steading-token-abc-S3cr3t --name x", "steading-token-abc-… --name x"),
            ("'steading-token-abc-S3cr3t'", "'steading-token-abc-…'"),
            ("a steading-token-abc-S steading-token-d-T", "abc-… steading-token-d-…"),
            ("steading-token-", "steading-token-"),
        ];
        for (line, end) in lines {
            let shown = shown(line.as_bytes());
            assert!(shown.ends_with(end), "{shown}");
            assert!(!shown.contains("S3cr3t"), "{shown}");
        }
    }

    #[test]
    fn a_flood_is_summed_up_and_nothing_of_it_is_lost() {
        let at = |ms| Monotonic::from_ms(ms);
        let mut flood = Flood::new(at(0));
        let own = (0..REFUSALS_AT_ONCE).filter(|_| flood.take(at(0), record("x")).is_some());
        assert_eq!(own.count() as u64, REFUSALS_AT_ONCE);
        for number in 0..7 {
            assert_eq!(flood.take(at(0), record(&format!("y{number}"))), None);
        }
        let sum = flood.unwritten.take().unwrap();
        assert_eq!((sum.lines, sum.line.as_str()), (7, "y6"));
        assert!(flood.take(at(1_000), record("z")).is_some());
        assert_eq!(flood.take(at(1_000), record("z")), None);
    }

    #[test]
    fn who_floods_is_known_until_it_has_been_quiet_for_a_while() {
        let (at, mut floods) = (|s: u64| Monotonic::from_ms(s * 1_000), Floods::default());
        let who = |role, name: &str| (role, name.parse::<Name>().unwrap());
        for (person, refusals) in [
            (who(Role::Submitter, "sam"), REFUSALS_AT_ONCE + 7),
            (who(Role::Viewer, "vera"), 3),
            (who(Role::Stranger, "unknown"), REFUSALS_AT_ONCE + 2),
        ] {
            for _ in 0..refusals {
                floods.take(person.clone(), at(0), record("x"));
            }
        }
        let refused = 2 * REFUSALS_AT_ONCE + 12;
        let flooding = vec![who(Role::Submitter, "sam")];
        assert_eq!(floods.refusals(at(0)), Refusals { refused, summed: 9, flooding });
        let quiet = at(REFUSALS_AT_ONCE / REFUSALS_PER_SECOND / 2);
        assert!(floods.refusals(quiet).flooding.is_empty());
    }
}
