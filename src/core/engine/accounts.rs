//! Who is charged for what agents do, and by how much its builds go back.

use super::{Build, Engine, Turn};
use crate::core::{
    arena::Ix,
    change::Change,
    defect::Defect,
    id::{AttemptId, Name},
    outcome::{AttemptEnd, MachineVerdict},
    plan::{AccountIx, CHARGED_AT_ONCE_MS, Setbacks},
    time::Timestamp,
};

impl Engine {
    /// Returns under whose account a build is: everybody's while fair share is off.
    #[must_use]
    pub fn account_of(&self, ix: Ix<Build>) -> AccountIx {
        let submitter = &self.builds[ix].request.submitter;
        let own = self.settings.fair_share.is_on().then(|| self.accounts.find(submitter));
        own.flatten().unwrap_or(AccountIx::EVERYBODY)
    }

    /// Charges a submitter for a build that an agent is given.
    pub(super) fn charge_at_once(&mut self, turn: &mut Turn<'_>, submitter: &Name) {
        self.charge(turn, submitter, CHARGED_AT_ONCE_MS);
    }

    /// Charges a submitter for the rest of an attempt that is over. What a machine spoiled is not
    /// the submitter's to pay for.
    pub(super) fn charge_rest(
        &mut self,
        turn: &mut Turn<'_>,
        submitter: &Name,
        attempt: AttemptId,
        end: &AttemptEnd,
    ) {
        let pays = match end.machine_verdict() {
            MachineVerdict::Sound => true,
            MachineVerdict::AtFault => false,
            MachineVerdict::Unknown => *end == AttemptEnd::Canceled,
        };
        let took = turn.now.wall.as_ms().saturating_sub(attempt.made_at().as_ms());
        let rest = u64::try_from(took).unwrap_or(0).saturating_sub(CHARGED_AT_ONCE_MS);
        if pays && rest > 0 {
            self.charge(turn, submitter, rest);
        }
    }

    fn charge(&mut self, turn: &mut Turn<'_>, submitter: &Name, ms: u64) {
        let fair = self.settings.fair_share;
        if fair.is_on() {
            self.accounts.charge(submitter, ms, turn.now.wall, fair);
            if !self.settings.planted.is(Defect::ChargeForgotten) {
                turn.charged.insert(submitter.clone());
            }
        }
    }

    /// Writes down what was charged, once for each account.
    pub(super) fn note_charges(&self, turn: &mut Turn<'_>) {
        for name in std::mem::take(&mut turn.charged) {
            if let Some(usage) = self.accounts.usage(&name) {
                turn.out.changes.push(Change::Account { name, usage });
            }
        }
    }

    /// Returns by how much the builds of each account go back at a time.
    #[must_use]
    pub fn setbacks(&self, now: Timestamp) -> Setbacks {
        if self.settings.planted.is(Defect::SetbackIgnored) {
            return Setbacks::default();
        }
        self.accounts.setbacks(now, self.settings.fair_share)
    }
}
