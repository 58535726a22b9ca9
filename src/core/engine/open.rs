//! An open build as memory keeps it. There may be a million, so what few of them have takes one
//! pointer from all others.

use super::KeptState;
use crate::core::{
    arena::Ix,
    build::{Hold, ShownState},
    change::{Limits, Origin},
    demands::Demands,
    graph::Node,
    id::{BuildId, Name},
    plan::{AccountIx, ClassIx, Rank},
    time::{Monotonic, Timestamp},
};
use std::{collections::BTreeSet, sync::Arc};

/// An open build.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its id.
    pub id: BuildId,
    /// Its derivation.
    pub node: Ix<Node>,
    /// Where it stands.
    pub state: KeptState,
    /// Why it exists.
    pub origin: Origin,
    /// What it has in common with the others of its submission.
    pub request: Arc<Request>,
    /// Nothing for most.
    pub(super) rare: Option<Box<Rare>>,
    /// Where it is among the ready; most are not.
    pub(super) queued_as: Option<Box<Queued>>,
    /// How it is counted, and what those who wait were told.
    pub(super) shown: ShownState,
}

/// What the builds of one submission have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Who asked for them.
    pub submitter: Name,
    /// The priority of each.
    pub priority: i32,
    /// When they were asked for.
    pub submitted: Timestamp,
    /// How long each may run and be silent.
    pub limits: Limits,
}

/// Requests that builds share.
#[derive(Debug, Default)]
pub(super) struct Requests(BTreeSet<Arc<Request>>);

impl Requests {
    /// Returns one of the requests that are equal to this.
    pub(super) fn share(&mut self, request: Request) -> Arc<Request> {
        if let Some(known) = self.0.get(&request) {
            return Arc::clone(known);
        }
        let request = Arc::new(request);
        self.0.insert(Arc::clone(&request));
        request
    }
}

/// Where a build is among the ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queued {
    /// In which ready set.
    pub(super) kind: ClassIx,
    /// Under whose account, there.
    pub(super) account: AccountIx,
    /// Under which rank.
    pub(super) rank: Rank,
}

/// What attempts that are over left of a build, and what people wished.
#[derive(Debug, Clone, Default)]
pub(super) struct Rare {
    /// How many of its attempts ended through no fault of its own.
    pub(super) infrastructure_ends: u32,
    /// The agent whose attempt ended so last; others are asked first.
    pub(super) avoid: Option<Name>,
    /// When it is queued again, while it is deferred.
    pub(super) due: Option<Monotonic>,
    /// What even fewer have.
    extras: Option<Box<Extras>>,
    /// In which ready set it belongs, when it asks for more than its derivation does.
    pub(super) kind: Option<ClassIx>,
}

/// What few builds have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extras {
    /// What it asks of its agent besides what its derivation does.
    pub demands: Demands,
    /// Who holds it back.
    pub hold: Option<Hold>,
    /// When it may be tried, by the wish of whoever asked for it.
    pub not_before: Option<Timestamp>,
    /// How many of its attempts found it failing, and it was tried again.
    pub failures: u32,
}

impl Rare {
    /// Returns what a build has that few have; nothing when it has nothing of it.
    pub(super) fn of(
        infrastructure_ends: u32,
        avoid: Option<Name>,
        extras: Extras,
    ) -> Option<Box<Self>> {
        let extras = (extras != Extras::default()).then(|| Box::new(extras));
        let is_usual = infrastructure_ends == 0 && avoid.is_none() && extras.is_none();
        (!is_usual)
            .then(|| Box::new(Self { infrastructure_ends, avoid, due: None, extras, kind: None }))
    }
}

impl Build {
    /// Returns how many of its attempts ended through no fault of its own.
    #[must_use]
    pub fn infrastructure_ends(&self) -> u32 {
        self.rare.as_ref().map_or(0, |rare| rare.infrastructure_ends)
    }

    /// Returns the agent whose attempt ended so last; others are asked first.
    #[must_use]
    pub fn avoid(&self) -> Option<&Name> {
        self.rare.as_ref()?.avoid.as_ref()
    }

    /// Returns what few builds have.
    #[must_use]
    pub fn extras(&self) -> Extras {
        self.known_extras().cloned().unwrap_or_default()
    }

    /// Returns who holds it back.
    #[must_use]
    pub fn hold(&self) -> Option<&Hold> {
        self.known_extras()?.hold.as_ref()
    }

    /// Returns when it may be tried, by the wish of whoever asked for it.
    #[must_use]
    pub fn not_before(&self) -> Option<Timestamp> {
        self.known_extras()?.not_before
    }

    /// Returns how many of its attempts found it failing, and it was tried again.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.known_extras().map_or(0, |extras| extras.failures)
    }

    fn known_extras(&self) -> Option<&Extras> {
        self.rare.as_ref()?.extras.as_deref()
    }

    /// Returns what it asks of its agent besides what its derivation does, if anything.
    pub(super) fn demands(&self) -> Option<&Demands> {
        self.known_extras().map(|extras| &extras.demands).filter(|demands| !demands.is_none())
    }

    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Takes away when it is queued again.
    pub(super) fn take_due(&mut self) -> Option<Monotonic> {
        self.rare.as_mut()?.due.take()
    }

    /// Takes away in which ready set it belongs, when that is another than its derivation's.
    pub(super) fn take_kind(&mut self) -> Option<ClassIx> {
        self.rare.as_mut()?.kind.take()
    }

    /// Changes what few builds have.
    pub(super) fn change_extras(&mut self, change: impl FnOnce(&mut Extras)) {
        let mut extras = self.extras();
        change(&mut extras);
        let extras = (extras != Extras::default()).then(|| Box::new(extras));
        if extras.is_some() || self.rare.is_some() {
            self.rare_mut().extras = extras;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_few_builds_have_takes_one_pointer_from_all() {
        assert_eq!(size_of::<Option<Box<Rare>>>(), 8);
        assert!(size_of::<Build>() <= 56, "{} bytes", size_of::<Build>());
    }
}
