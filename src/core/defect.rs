//! Mistakes that a simulation plants on purpose, to show that it would notice them.
//!
//! Without the feature `sim` nothing can be planted: [`Planted`] has no size then and
//! [`Planted::is`] is always `false`, so that the compiler leaves the mistakes out.

/// Defines the mistakes together with the words that name them on a command line.
macro_rules! defects {
    (
        farms { $($(#[$doc:meta])* $name:ident => $word:literal,)* }
        histories { $($(#[$more:meta])* $other:ident => $third:literal,)* }
    ) => {
        /// A mistake that somebody could make.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Defect {
            $($(#[$doc])* $name,)*
            $($(#[$more])* $other,)*
        }

        impl Defect {
            /// Those that the simulation of a farm notices.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
            /// Those that random histories of the engine notice.
            pub const IN_HISTORIES: &[Self] = &[$(Self::$other,)*];

            /// Returns the word that names it.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                    $(Self::$other => $third,)*
                }
            }
        }
    };
}

defects! {
    farms {
        /// A report counts whoever sends it.
        FenceDropped => "fence-dropped",
        /// Outputs are taken from any agent.
        StrangerDelivers => "stranger-delivers",
        /// A second `finished` moves the attempt once more.
        FinishedTwice => "finished-twice",
        /// An input that became available is not counted off.
        CounterForgotten => "counter-forgotten",
        /// A build stays blocked when the input that failed succeeds.
        BlockedForGood => "blocked-for-good",
        /// Nobody looks whether a lease ran out.
        LeaseNeverEnds => "lease-never-ends",
        /// A lost connection ends the agent's leases.
        LeaseEndsWithConnection => "lease-ends-with-connection",
        /// Leases are measured on the wall clock.
        LeaseOnWallClock => "lease-on-wall-clock",
        /// An attempt that a returning agent holds is dropped.
        ReadoptionForgets => "readoption-forgets",
        /// What was given up while its agent was away is taken back although others have the build.
        ReadoptionUnchecked => "readoption-unchecked",
        /// What a returning agent lost is not given to others.
        LossUnnoticed => "loss-unnoticed",
        /// Another machine may come under the same name.
        SecondInstanceWelcome => "second-instance-welcome",
        /// Another nar replaces the one that is held.
        DisputedOverwrites => "disputed-overwrites",
        /// Nobody looks at what was committed while an attempt was sending.
        ContestUnnoticed => "contest-unnoticed",
        /// A build that could not begin is tried again at once.
        RetryWithoutPause => "retry-without-pause",
        /// The ends that count towards a pause are not counted in memory.
        EndsUncounted => "ends-uncounted",
        /// The engine does not ask to be woken for deferred builds.
        DeferredWakeForgotten => "deferred-wake-forgotten",
        /// To cancel leaves the builds for inputs behind.
        CancelForgetsInputs => "cancel-forgets-inputs",
        /// To cancel takes the builds for inputs along although others want them.
        CancelForgetsWants => "cancel-forgets-wants",
        /// The same key makes another build.
        KeyForgotten => "key-forgotten",
        /// An agent's slot is not freed.
        SlotLeaked => "slot-leaked",
        /// A ready build is in no ready set.
        ReadyEntryLost => "ready-entry-lost",
        /// A lower priority goes first.
        RankReversed => "rank-reversed",
        /// Agents are given what they cannot build.
        AbilitiesUnchecked => "abilities-unchecked",
        /// An agent of which something else was decided is given builds.
        SuspendedServed => "suspended-served",
        /// Builds are given out although their outputs could not be taken in.
        IntakeIgnored => "intake-ignored",
        /// An agent is given as many builds as it has slots, whatever it wants.
        CapacityUnnoticed => "capacity-unnoticed",
        /// An output that came is not noted in memory.
        OutputUnnoticed => "output-unnoticed",
        /// Paths that agents could not find are not noted.
        MissingUnnoticed => "missing-unnoticed",
        /// People are answered before the commit.
        AnswerBeforeCommit => "answer-before-commit",
        /// Agents may forget an attempt before the commit.
        SettledBeforeCommit => "settled-before-commit",
        /// Nars are published before the commit.
        PublishedBeforeCommit => "published-before-commit",
        /// The effects of a step come out in the wrong order.
        EffectsReversed => "effects-reversed",
        /// A commit failed and the process goes on.
        MemoryAheadOfDisk => "memory-ahead-of-disk",
        /// A piece of log that comes twice is written twice.
        LogPieceTwice => "log-piece-twice",
    }
    histories {
        /// What somebody holds back is given away.
        HoldIgnored => "hold-ignored",
        /// Agents are given builds that ask for others.
        DemandsIgnored => "demands-ignored",
        /// An agent knows a ready set that nobody needs any more.
        KindKept => "kind-kept",
        /// Who used much goes first all the same.
        SetbackIgnored => "setback-ignored",
        /// What was charged is not written down.
        ChargeForgotten => "charge-forgotten",
        /// The end of a build that is opened again counts on.
        EndKept => "end-kept",
        /// Another priority is not handed on to inputs.
        PriorityKept => "priority-kept",
        /// Another strategy is noted, and nothing is judged anew.
        StrategyKept => "strategy-kept",
        /// Nobody asks for what is missing.
        SupplyForgotten => "supply-forgotten",
        /// A failure that is tried again is not counted.
        FailureUncounted => "failure-uncounted",
    }
}

/// Which mistake this instance of the program makes: none, outside of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Planted {
    #[cfg(feature = "sim")]
    defect: Option<Defect>,
}

impl Planted {
    /// Plants a mistake.
    #[cfg(feature = "sim")]
    #[must_use]
    pub const fn one(defect: Option<Defect>) -> Self {
        Self { defect }
    }

    /// Tells whether this mistake is made.
    #[must_use]
    pub const fn is(self, defect: Defect) -> bool {
        #[cfg(feature = "sim")]
        let is = matches!(self.defect, Some(planted) if planted as u8 == defect as u8);
        #[cfg(not(feature = "sim"))]
        let is = {
            let _ = defect;
            false
        };
        is
    }
}
