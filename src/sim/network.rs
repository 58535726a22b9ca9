//! Connections between machines and the coordinator: slow, cut, or silent for a while.
//!
//! A connection keeps the order of what it carries, as SSH over TCP does. What is under way is
//! lost when it is cut; while a direction is stalled everything waits. Two connections of the same
//! machine know nothing of each other, so control and bulk overtake one another.

use super::{
    chance::Chance,
    world::{Event, World},
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Names a connection.
pub(super) type LinkId = u64;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Control,
    Bulk,
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Coordinator,
    Agent,
}

/// What comes out of a connection.
#[derive(Debug)]
pub(super) enum Arrival {
    Opened,
    Data(Bytes),
    Gone,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) machine: usize,
    pub(super) purpose: Purpose,
    /// Nothing comes through any more.
    is_cut: bool,
    /// Which ends still have it: coordinator, agent.
    open: [bool; 2],
    /// When the last thing sent to each end arrives.
    last_ms: [u64; 2],
    latency_ms: u64,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) links: BTreeMap<LinkId, Link>,
    next: LinkId,
    /// Until when each machine's directions are stalled: towards the coordinator, towards it.
    stalled_ms: BTreeMap<usize, [u64; 2]>,
}

const fn index(side: Side) -> usize {
    match side {
        Side::Coordinator => 0,
        Side::Agent => 1,
    }
}

impl Network {
    pub(super) fn stall(&mut self, machine: usize, towards: Side, until_ms: u64) {
        self.stalled_ms.entry(machine).or_default()[index(towards)] = until_ms;
    }

    pub(super) fn heal(&mut self) {
        self.stalled_ms.clear();
    }

    pub(super) fn is_open(&self, link: LinkId, side: Side) -> bool {
        self.links.get(&link).is_some_and(|link| link.open[index(side)])
    }

    /// Returns when something sent now arrives; it arrives behind what was sent before.
    fn arrival_ms(&mut self, link: LinkId, to: Side, now_ms: u64, chance: &mut Chance) -> u64 {
        let link = self.links.get_mut(&link).expect("sending looks at the end first");
        let stalled = self.stalled_ms.get(&link.machine).map_or(0, |until| until[index(to)]);
        let tail = if chance.permille(20) { 2_000 } else { 0 };
        let delay = chance.between(1, link.latency_ms) + chance.below(tail + 1);
        let at = (now_ms + delay).max(link.last_ms[index(to)]).max(stalled + 1);
        link.last_ms[index(to)] = at;
        at
    }
}

impl World {
    /// An agent dials.
    pub(super) fn open(&mut self, machine: usize, purpose: Purpose) -> LinkId {
        self.network.next += 1;
        let id = self.network.next;
        let latency_ms = *self.chance.pick(&[2, 20, 200]);
        let link = Link {
            machine,
            purpose,
            is_cut: false,
            open: [true, true],
            last_ms: [0, 0],
            latency_ms,
        };
        self.network.links.insert(id, link);
        self.push(id, Side::Coordinator, Arrival::Opened);
        id
    }

    /// Sends bytes, if the sending end still has the connection.
    pub(super) fn send(&mut self, link: LinkId, to: Side, bytes: Bytes) {
        let from = match to {
            Side::Coordinator => Side::Agent,
            Side::Agent => Side::Coordinator,
        };
        if self.network.is_open(link, from) {
            self.push(link, to, Arrival::Data(bytes));
        }
    }

    fn push(&mut self, link: LinkId, to: Side, arrival: Arrival) {
        let at = self.network.arrival_ms(link, to, self.now_ms, &mut self.chance);
        self.at(at, Event::Arrive { link, to, arrival });
    }

    /// One end closes a connection; the other hears of it behind everything else.
    pub(super) fn close(&mut self, id: LinkId, by: Side) {
        let Some(link) = self.network.links.get_mut(&id) else { return };
        let was_open = std::mem::replace(&mut link.open[index(by)], false);
        let is_cut = link.is_cut;
        let (to, other) = match by {
            Side::Coordinator => (Side::Agent, link.open[1]),
            Side::Agent => (Side::Coordinator, link.open[0]),
        };
        if !other {
            self.network.links.remove(&id);
        } else if was_open && !is_cut {
            self.push(id, to, Arrival::Gone);
        }
    }

    /// Cuts a connection: what is under way is lost, and each end hears of it when it does, or
    /// only by the silence.
    pub(super) fn cut(&mut self, id: LinkId) {
        let Some(link) = self.network.links.get_mut(&id) else { return };
        link.is_cut = true;
        for to in [Side::Coordinator, Side::Agent] {
            let noticed = self.chance.between(1, 150_000);
            self.after(noticed, Event::Arrive { link: id, to, arrival: Arrival::Gone });
        }
    }

    /// Something arrives.
    pub(super) fn arrive(&mut self, id: LinkId, to: Side, arrival: Arrival) {
        let Some(link) = self.network.links.get(&id) else { return };
        let gone = matches!(arrival, Arrival::Gone);
        if !link.open[index(to)] || (link.is_cut && !gone) {
            return;
        }
        let (machine, purpose) = (link.machine, link.purpose);
        match to {
            Side::Coordinator => self.coordinator_hears(id, machine, purpose, arrival),
            Side::Agent => self.machine_hears(id, machine, purpose, arrival),
        }
        if gone {
            self.close(id, to);
        }
    }
}
