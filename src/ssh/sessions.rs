//! Who is connected, and who may be: the one place where both are known at once.

use super::{
    authorize::{Principal, Role},
    channel::Revoked,
    keys::{Keydir, KeydirProblem, Presented},
    local::Forced,
    request::SessionId,
    server::DoorLimits,
};
use crate::{
    core::{
        id::Name,
        time::{Monotonic, Timestamp},
    },
    telemetry::Clock,
};
use russh::keys::ssh_key::public::KeyData;
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How much is going on at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Authenticated connections.
    pub sessions: usize,
    /// Those of them that belong to agents.
    pub agents: usize,
    /// Connections that have not proved who they are yet.
    pub unauthenticated: usize,
    /// Open channels.
    pub channels: usize,
    /// Connections turned away since the start because too many were unauthenticated.
    pub turned_away: usize,
    /// Connections since the start.
    pub connections: usize,
    /// Connections, channels and commands refused since the start because their principal had too
    /// many.
    pub refused: usize,
}

/// The live sessions and the keydir.
pub(super) struct Sessions {
    limits: DoorLimits,
    clock: Clock,
    state: Mutex<State>,
    channels: AtomicUsize,
    turned_away: AtomicUsize,
    connections: AtomicUsize,
    refused: AtomicUsize,
    /// Told when the keydir lets an agent in no more.
    agents_gone: Notify,
}

#[derive(Default)]
struct State {
    keydir: Arc<Keydir>,
    problems: Vec<KeydirProblem>,
    /// Keys of this program itself, which no file lists.
    own: Vec<(KeyData, Arc<Principal>)>,
    live: HashMap<SessionId, Live>,
    unauthenticated: HashMap<IpAddr, usize>,
    unauthenticated_total: usize,
    /// What principals use. Bounded by the keydir: forgotten with the session when it is changed.
    usage: HashMap<(Role, Name), Usage>,
    /// Agents that the keydir lets in no more, which nobody was told yet. Bounded by the keydir.
    gone: BTreeSet<Name>,
}

impl State {
    /// Returns whom a key belongs to, if anybody, at this time.
    fn principal_of(&self, key: &KeyData, now: Timestamp) -> Option<Arc<Principal>> {
        let own = || self.own.iter().find(|(own, _)| own == key);
        self.keydir.principal_of(key, now).or_else(|| own().map(|(_, own)| Arc::clone(own)))
    }

    /// Returns who somebody is, if anybody, at this time.
    fn principal(&self, presented: &Presented, now: Timestamp) -> Option<Arc<Principal>> {
        match presented {
            Presented::Key(key) => self.principal_of(key, now),
            Presented::Certificate(..) | Presented::Unknown(_) | Presented::Forced(_) => {
                self.keydir.principal(presented, now)
            }
        }
    }
}

/// What one principal uses.
struct Usage {
    sessions: usize,
    channels: usize,
    /// How many commands may come at once, in thousandths.
    allowance: u64,
    /// When that was counted.
    counted: Monotonic,
}

/// Somebody who was let in.
pub(super) struct Admitted {
    pub(super) principal: Arc<Principal>,
    /// Whether they have more connections than they may, so that requests are refused.
    pub(super) over: bool,
}

/// Why sessions are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    /// The keydir was read anew.
    Keydir,
    /// Time passed.
    Time,
}

struct Live {
    presented: Presented,
    principal: Arc<Principal>,
    end: CancellationToken,
    revoked: Revoked,
}

impl Live {
    /// Ends the session, and with it whatever it had sent and nobody has read.
    fn end(&self) {
        self.revoked.set();
        self.end.cancel();
    }
}

impl Sessions {
    pub(super) fn new(limits: DoorLimits, clock: Clock) -> Self {
        Self {
            limits,
            clock,
            state: Mutex::new(State::default()),
            channels: AtomicUsize::new(0),
            turned_away: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            agents_gone: Notify::new(),
        }
    }

    pub(super) fn limits(&self) -> &DoorLimits {
        &self.limits
    }

    /// Counts a new connection, unless too many have not said who they are.
    pub(super) fn knock(self: &Arc<Self>, address: IpAddr) -> Option<Unauthenticated> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let block = block_of(address);
        let mut state = self.state();
        let total = state.unauthenticated_total;
        let from_there = state.unauthenticated.get(&block).copied().unwrap_or(0);
        if total >= self.limits.unauthenticated
            || from_there >= self.limits.unauthenticated_per_address
        {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        state.unauthenticated_total = total.saturating_add(1);
        state.unauthenticated.insert(block, from_there.saturating_add(1));
        Some(Unauthenticated { sessions: Arc::clone(self), block })
    }

    /// Returns whether a key is listed and would be let in now. Says nothing about who holds it.
    pub(super) fn knows(&self, key: &KeyData) -> bool {
        let now = self.clock.now().wall;
        self.state().principal_of(key, now).is_some()
    }

    /// Returns whether a key that is not listed may come with a certificate, which is seen only
    /// when it is proved.
    pub(super) fn takes_certificates(&self) -> bool {
        self.state().keydir.has_authorities()
    }

    /// Lets in the proven owner of what was presented. From here on the session lives as long as
    /// the keydir says the same of it: looking up and entering are one step, so no change falls
    /// between them.
    pub(super) fn admit(
        &self,
        id: SessionId,
        presented: Presented,
        end: &CancellationToken,
        revoked: &Revoked,
    ) -> Option<Admitted> {
        self.enter(id, presented, end, revoked)
    }

    /// Lets in whom a forced command names, as [`Sessions::admit`] does.
    pub(super) fn admit_forced(
        &self,
        id: SessionId,
        forced: &Forced,
        end: &CancellationToken,
        revoked: &Revoked,
    ) -> Option<Admitted> {
        self.enter(id, Presented::Forced(forced.clone()), end, revoked)
    }

    fn enter(
        &self,
        id: SessionId,
        presented: Presented,
        end: &CancellationToken,
        revoked: &Revoked,
    ) -> Option<Admitted> {
        let now = self.clock.now().wall;
        let mut state = self.state();
        let principal = state.principal(&presented, now)?;
        if state.live.len() >= self.limits.sessions {
            tracing::error!("too many sessions: nobody else is let in");
            return None;
        }
        let most = match principal.role {
            Role::Agent => self.limits.sessions_per_agent,
            Role::Stranger => self.limits.sessions_of_strangers,
            Role::Viewer | Role::Submitter | Role::Operator | Role::Admin => {
                self.limits.sessions_per_person
            }
        };
        let usage = self.usage(&mut state, &principal);
        if usage.sessions >= most.saturating_mul(2) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        usage.sessions = usage.sessions.saturating_add(1);
        let over = usage.sessions > most;
        let live = Live {
            presented,
            principal: Arc::clone(&principal),
            end: end.clone(),
            revoked: revoked.clone(),
        };
        state.live.insert(id, live);
        Some(Admitted { principal, over })
    }

    /// Takes one command of a principal, unless there are too many. Returns how many per second
    /// are taken then.
    pub(super) fn take_command(&self, principal: &Principal) -> Result<(), u32> {
        let now = self.clock.now().mono;
        let limits = &self.limits;
        let most = u64::from(limits.commands_at_once).saturating_mul(1_000);
        let mut state = self.state();
        let usage = self.usage(&mut state, principal);
        let passed_ms = now.as_ms().saturating_sub(usage.counted.as_ms());
        let earned = passed_ms.saturating_mul(u64::from(limits.commands_per_second));
        usage.allowance = usage.allowance.saturating_add(earned).min(most);
        usage.counted = now;
        if let Some(rest) = usage.allowance.checked_sub(1_000) {
            usage.allowance = rest;
            Ok(())
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            Err(limits.commands_per_second)
        }
    }

    /// Counts a request that was refused because its principal has too much.
    pub(super) fn count_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn usage<'a>(&self, state: &'a mut State, principal: &Principal) -> &'a mut Usage {
        state.usage.entry((principal.role, principal.name.clone())).or_insert_with(|| Usage {
            sessions: 0,
            channels: 0,
            allowance: u64::from(self.limits.commands_at_once).saturating_mul(1_000),
            counted: self.clock.now().mono,
        })
    }

    /// Forgets a session that has ended.
    pub(super) fn remove(&self, id: SessionId) {
        let mut state = self.state();
        let Some(live) = state.live.remove(&id) else { return };
        let usage = self.usage(&mut state, &live.principal);
        usage.sessions = usage.sessions.saturating_sub(1);
    }

    /// Ends a session. Returns whether it was live.
    pub(super) fn cut(&self, id: SessionId) -> bool {
        match self.state().live.get(&id) {
            Some(live) => {
                live.end();
                true
            }
            None => false,
        }
    }

    /// Takes a new reading of the keydir and ends the sessions that it no longer allows.
    pub(super) fn replace_keydir(&self, keydir: Keydir, problems: Vec<KeydirProblem>) {
        let mut state = self.state();
        for problem in &problems {
            if !state.problems.contains(problem) {
                tracing::warn!(%problem, "something in the keydir is not followed");
            }
        }
        let now = self.clock.now().wall;
        let before = std::mem::replace(&mut state.keydir, Arc::new(keydir));
        state.problems = problems;
        state.usage.retain(|_, usage| usage.sessions > 0 || usage.channels > 0);
        // Those that are away, too.
        let mut gone = before.agents(now);
        for name in state.keydir.agents(now) {
            gone.remove(&name);
        }
        state.gone.extend(gone);
        self.end_refused(state, now, Because::Keydir);
    }

    /// Lets in the owner of a key of this program's own.
    pub(super) fn let_in(&self, key: KeyData, principal: Principal) {
        self.state().own.push((key, Arc::new(principal)));
    }

    /// Ends the sessions whose keys have expired.
    pub(super) fn expire(&self) {
        self.end_refused(self.state(), self.clock.now().wall, Because::Time);
    }

    /// Ends the sessions whose key is gone, has expired, or belongs to somebody else by now.
    /// Changed options end a session, too: its owner comes back with the new ones.
    fn end_refused(&self, mut state: MutexGuard<'_, State>, now: Timestamp, because: Because) {
        let mut gone = Vec::new();
        for live in state.live.values() {
            // A certificate is not verified every second.
            if because == Because::Time && state.keydir.still_holds(&live.presented, now) {
                continue;
            }
            let found = state.principal(&live.presented, now);
            if found.as_ref() == Some(&live.principal) {
                continue;
            }
            let principal = &live.principal;
            tracing::info!(name = %principal.name, key = %principal.fingerprint,
                "session ended: its key is no longer known as it was");
            live.end();
            let is_same =
                |one: &Arc<Principal>| one.role == principal.role && one.name == principal.name;
            if principal.role == Role::Agent && !found.as_ref().is_some_and(is_same) {
                gone.push(principal.name.clone());
            }
        }
        if !gone.is_empty() {
            // With another key the agent may come back.
            let known = state.keydir.agents(now);
            gone.retain(|name| !known.contains(name));
            state.gone.extend(gone);
        }
        if !state.gone.is_empty() {
            self.agents_gone.notify_one();
        }
    }

    /// Returns the names of the agents that are listed and let in now.
    pub(super) fn known_agents(&self) -> BTreeSet<Name> {
        let now = self.clock.now().wall;
        let keydir = Arc::clone(&self.state().keydir);
        keydir.agents(now)
    }

    /// Waits until the keydir lets agents in no more, and returns their names. Each is told once.
    pub(super) async fn agents_gone(&self) -> BTreeSet<Name> {
        loop {
            let gone = std::mem::take(&mut self.state().gone);
            if !gone.is_empty() {
                return gone;
            }
            self.agents_gone.notified().await;
        }
    }

    pub(super) fn keydir(&self) -> (Arc<Keydir>, Vec<KeydirProblem>) {
        let state = self.state();
        (Arc::clone(&state.keydir), state.problems.clone())
    }

    pub(super) fn counters(&self) -> Counters {
        let state = self.state();
        let agents = state.live.values().filter(|live| live.principal.role == Role::Agent).count();
        Counters {
            sessions: state.live.len(),
            agents,
            unauthenticated: state.unauthenticated_total,
            channels: self.channels.load(Ordering::Relaxed),
            turned_away: self.turned_away.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Counts an open channel, unless its principal has too many.
    pub(super) fn count_channel(
        self: &Arc<Self>,
        principal: &Arc<Principal>,
    ) -> Option<CountedChannel> {
        let mut state = self.state();
        let usage = self.usage(&mut state, principal);
        if usage.channels >= self.limits.channels_per_principal {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        usage.channels = usage.channels.saturating_add(1);
        self.channels.fetch_add(1, Ordering::Relaxed);
        Some(CountedChannel { sessions: Arc::clone(self), principal: Arc::clone(principal) })
    }

    /// A panic elsewhere never leaves the state half changed, so a poisoned lock is not an error.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what counts as one address: IPv6 networks of 64 bits, since one host has a whole one.
fn block_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

/// One connection that has not authenticated. Dropped when it has, or ends.
pub(super) struct Unauthenticated {
    sessions: Arc<Sessions>,
    block: IpAddr,
}

impl Drop for Unauthenticated {
    fn drop(&mut self) {
        let mut state = self.sessions.state();
        state.unauthenticated_total = state.unauthenticated_total.saturating_sub(1);
        if let Some(count) = state.unauthenticated.get_mut(&self.block) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.unauthenticated.remove(&self.block);
            }
        }
    }
}

/// One open channel. Dropped when it ends.
pub(super) struct CountedChannel {
    sessions: Arc<Sessions>,
    principal: Arc<Principal>,
}

impl Drop for CountedChannel {
    fn drop(&mut self) {
        let mut state = self.sessions.state();
        let usage = self.sessions.usage(&mut state, &self.principal);
        usage.channels = usage.channels.saturating_sub(1);
        drop(state);
        self.sessions.channels.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unauthenticated_connections_are_counted_per_address_and_in_total() {
        let limits = DoorLimits {
            unauthenticated: 3,
            unauthenticated_per_address: 2,
            ..DoorLimits::default()
        };
        let sessions = Arc::new(Sessions::new(limits, Clock::start()));
        let knock = |text: &str| sessions.knock(text.parse().unwrap());
        let first = knock("2001:db8::1").unwrap();
        let _second = knock("2001:db8::ffff:0:0:2").unwrap();
        assert!(knock("2001:db8::3").is_none());
        let _third = knock("::ffff:192.0.2.1").unwrap();
        assert!(knock("192.0.2.2").is_none());
        drop(first);
        let _fourth = knock("192.0.2.1").unwrap();
        let counters = sessions.counters();
        assert_eq!((counters.unauthenticated, counters.turned_away), (3, 2));
    }
}
