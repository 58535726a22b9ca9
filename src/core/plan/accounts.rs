//! Fair share: who has used much of the farm lately goes behind those who have not.
//!
//! Each submitter has an account. It is charged for the time that agents have its builds, at least a
//! minute for each, and what it was charged counts half as much after each half-life. An account's
//! builds go back by its share in all that counts, times the weight: who used everything that was
//! used by the whole weight, who used nothing not at all. So nobody waits longer for others' lack of
//! use than the weight, and within one account the order stays what it is.

use crate::core::{id::Name, time::Timestamp};
use std::collections::BTreeMap;

/// What a build is charged when it is given to an agent, in milliseconds; the rest when its attempt
/// is over. Otherwise the first who comes would get every free slot there is.
pub const CHARGED_AT_ONCE_MS: u64 = 60_000;
/// The most a single attempt is charged, in milliseconds: a year, whatever the clock did meanwhile.
const CHARGED_MS_MAX: u64 = 366 * 86_400_000;
/// After so many half-lives nothing is left.
const HALVINGS_MAX: i64 = 40;

/// How fair share works; off when the weight is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FairShare {
    /// By how many minutes the builds go back of whoever used all that was used.
    pub weight_minutes: i64,
    /// After how many minutes use counts half as much.
    pub half_life_minutes: i64,
}

impl FairShare {
    /// Tells whether accounts matter at all.
    #[must_use]
    pub const fn is_on(self) -> bool {
        self.weight_minutes > 0
    }
}

/// What an account has used, as of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// How much, in milliseconds of one slot.
    pub used_ms: u64,
    /// When it was so much.
    pub at: Timestamp,
}

impl Usage {
    /// Nothing.
    pub const NONE: Self = Self { used_ms: 0, at: Timestamp::from_ms(0) };

    /// Returns what is left of it at another time. Between two half-lives it falls in a straight
    /// line; when the clock went back, nothing falls.
    #[must_use]
    pub fn decayed(self, now: Timestamp, half_life_minutes: i64) -> u64 {
        let half_life = half_life_minutes.saturating_mul(60_000).max(1);
        let passed = now.as_ms().saturating_sub(self.at.as_ms()).max(0);
        let halvings = (passed / half_life).min(HALVINGS_MAX);
        let rest = passed % half_life;
        let whole = self.used_ms >> u32::try_from(halvings).unwrap_or(u32::MAX).min(63);
        let half = u128::from(whole / 2);
        let fallen = half * u128::from(rest.unsigned_abs()) / u128::from(half_life.unsigned_abs());
        whole.saturating_sub(u64::try_from(fallen).unwrap_or(u64::MAX))
    }
}

/// The place of an account among others. They are few: one per submitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccountIx(u32);

impl AccountIx {
    /// Where everybody's builds are while fair share is off.
    pub const EVERYBODY: Self = Self(0);
}

/// All accounts.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    by_name: BTreeMap<Name, AccountIx>,
    /// The first one is everybody's.
    usages: Vec<Usage>,
}

impl Accounts {
    /// Returns the place of a submitter's account.
    pub fn of(&mut self, name: &Name) -> AccountIx {
        if let Some(ix) = self.by_name.get(name) {
            return *ix;
        }
        if self.usages.is_empty() {
            self.usages.push(Usage::NONE);
        }
        let ix = AccountIx(u32::try_from(self.usages.len()).unwrap_or(u32::MAX));
        self.usages.push(Usage::NONE);
        self.by_name.insert(name.clone(), ix);
        ix
    }

    /// Returns the place of a submitter's account, if there is one.
    #[must_use]
    pub fn find(&self, name: &Name) -> Option<AccountIx> {
        self.by_name.get(name).copied()
    }

    /// Returns what a submitter has used.
    #[must_use]
    pub fn usage(&self, name: &Name) -> Option<Usage> {
        self.by_name.get(name).and_then(|ix| self.usages.get(ix.0 as usize)).copied()
    }

    /// Takes over what was written down of a submitter.
    pub fn restore(&mut self, name: &Name, usage: Usage) {
        let ix = self.of(name);
        self.usages[ix.0 as usize] = usage;
    }

    /// Charges a submitter. Returns what it has used now.
    pub fn charge(&mut self, name: &Name, ms: u64, now: Timestamp, fair: FairShare) -> Usage {
        let ix = self.of(name);
        let usage = &mut self.usages[ix.0 as usize];
        let before = usage.decayed(now, fair.half_life_minutes);
        // Where the clock went back, the later time stays, so that nothing falls twice.
        let at = usage.at.max(now);
        *usage = Usage { used_ms: before.saturating_add(ms.min(CHARGED_MS_MAX)), at };
        *usage
    }

    /// Returns by how many minutes the builds of each account go back.
    #[must_use]
    pub fn setbacks(&self, now: Timestamp, fair: FairShare) -> Setbacks {
        if !fair.is_on() {
            return Setbacks(Vec::new());
        }
        let left = self.usages.iter().map(|usage| usage.decayed(now, fair.half_life_minutes));
        let left: Vec<u128> = left.map(u128::from).collect();
        let total = left.iter().sum::<u128>().max(1);
        let weight = u128::from(fair.weight_minutes.unsigned_abs());
        let minutes = |used: u128| i64::try_from(used * weight / total).unwrap_or(i64::MAX);
        Setbacks(left.into_iter().map(minutes).collect())
    }

    /// Returns all submitters who have an account, and what they used.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, Usage)> {
        self.by_name.iter().map(|(name, ix)| (name, self.usages[ix.0 as usize]))
    }
}

/// By how many minutes the builds of each account go back just now.
#[derive(Debug, Clone, Default)]
pub struct Setbacks(Vec<i64>);

impl Setbacks {
    /// Returns those of an account; none while fair share is off.
    #[must_use]
    pub fn of(&self, account: AccountIx) -> i64 {
        self.0.get(account.0 as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAIR: FairShare = FairShare { weight_minutes: 120, half_life_minutes: 60 };

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_ms(minutes * 60_000)
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn use_counts_half_after_each_half_life_and_falls_evenly_between() {
        let usage = Usage { used_ms: 1_000, at: at(0) };
        let left = [0, 30, 60, 90, 120, 60 * 39].map(|minutes| usage.decayed(at(minutes), 60));
        assert_eq!(left, [1_000, 750, 500, 375, 250, 0]);
        assert_eq!(usage.decayed(at(-9), 60), 1_000);
        assert_eq!(Usage { used_ms: u64::MAX, at: at(0) }.decayed(at(0), 0), u64::MAX);
    }

    #[test]
    fn whoever_used_more_goes_back_further_and_never_beyond_the_weight() {
        let mut accounts = Accounts::default();
        accounts.charge(&name("ada"), 3_000_000, at(0), FAIR);
        accounts.charge(&name("bea"), 1_000_000, at(0), FAIR);
        let (ada, bea, new) =
            (accounts.of(&name("ada")), accounts.of(&name("bea")), accounts.of(&name("new")));
        let setbacks = accounts.setbacks(at(0), FAIR);
        assert_eq!([ada, bea, new].map(|account| setbacks.of(account)), [90, 30, 0]);
        // All fall alike.
        let later = accounts.setbacks(at(60), FAIR);
        assert_eq!([ada, bea, new].map(|account| later.of(account)), [90, 30, 0]);
        let off = FairShare::default();
        assert_eq!(accounts.setbacks(at(0), off).of(ada), 0);
    }

    #[test]
    fn what_is_charged_adds_to_what_is_left() {
        let mut accounts = Accounts::default();
        accounts.charge(&name("ada"), 1_000, at(0), FAIR);
        let usage = accounts.charge(&name("ada"), 1_000, at(60), FAIR);
        assert_eq!(usage, Usage { used_ms: 1_500, at: at(60) });
        let usage = accounts.charge(&name("ada"), u64::MAX, at(60), FAIR);
        assert_eq!(usage.used_ms, CHARGED_MS_MAX + 1_500);
    }
}
