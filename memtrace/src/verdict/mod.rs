//! Whether reclaim helps: what its rounds found and the state of what they reclaimed from, put into one
//! word. docs/verdicts.md has the rules with their reasons, and what can make them wrong.
//!
//! [`State`] is read elsewhere: from the running kernel by [`live`], from fixed values in tests.

pub mod live;
mod state;
mod window;

use std::fmt::{self, Display, Formatter};

use serde::{Serialize, Serializer};

pub use self::{
    state::{Stat, State},
    window::{States, Verdicts},
};

/// What is to be expected of the reclaim of a cgroup, or of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It finds pages: the threads will go on.
    Progressing,
    /// It looks at many pages for each that it gets, or sleeps for lack of progress.
    Slow,
    /// There is nothing that it could get: no swap, and next to no file pages.
    Hopeless,
    /// The file pages that it gets are read back at once.
    Thrash,
    /// What it could get has to be written to a disk first.
    WritebackBound,
}

/// The thresholds, each with its reason in docs/verdicts.md.
mod threshold {
    /// Pages that the kernel asks of a round at least (`SWAP_CLUSTER_MAX`).
    pub const PAGES_A_ROUND: u64 = 32;
    /// Fewer pages of 1,000 scanned, or asked for, than this are a failure.
    pub const FAILS: u64 = 100;
    /// Below it reclaim is slow.
    pub const SLOW: u64 = 250;
    /// Below it, pages that wait for a disk are to blame, where there are many of them.
    pub const WAITS: u64 = 750;
    /// So do rounds that last as long as this on average, as where the disk's pace is reclaim's.
    pub const WAITS_NS: u64 = 2_000_000;
    /// Share of file pages, of 1,000, that have to be written first.
    pub const UNWRITTEN: u64 = 500;
    /// Share of the time, of 1,000, that is slept for one reason.
    pub const THROTTLED: u64 = 300;
    /// File pages that are read back for each 1,000 reclaimed.
    pub const REFAULTS: u64 = 500;
    /// Fewer refaults prove nothing.
    pub const FEWEST_REFAULTS: u64 = 256;
    /// Share of file pages, of 1,000, in memory that is anonymous only.
    pub const FILE: u64 = 50;
    /// Share of the memory in use, of 1,000, that is on the lists at least; the rest is the kernel's.
    pub const LISTED: u64 = 500;
    /// Share of its limit, of 1,000, that a full cgroup uses at least.
    pub const FULL: u64 = 900;
    /// Rounds that last as long as this on average hold threads up though reclaim works.
    pub const LONG_NS: u64 = 10_000_000;
    /// Fewer rounds in a window are no evidence,
    pub const FEWEST_ROUNDS: u64 = 8;
    /// unless they took as long as this; and less than this is not worth a word on speed.
    pub const LEAST_NS: u64 = 100_000_000;
}
use threshold as least;

/// Time slept in a stall for the sake of others' progress, in nanoseconds by reason
/// (`enum vmscan_throttle_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttled {
    /// Too many pages wait for a disk.
    pub writeback_ns: u64,
    /// Too many pages are in others' hands.
    pub isolated_ns: u64,
    /// Nothing was reclaimed.
    pub noprogress_ns: u64,
    /// The disks are busy.
    pub congested_ns: u64,
}

/// One round of reclaim, or all rounds of one stall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// When it ended, in nanoseconds of `CLOCK_MONOTONIC`.
    pub end_ns: u64,
    /// How long it lasted.
    pub duration_ns: u64,
    /// Pages scanned, where that is known.
    pub scanned: Option<u64>,
    /// Pages reclaimed; not the one that stands for none where compaction is to try.
    pub reclaimed: u64,
    /// Lowest priority reached, from 12 down to 0.
    pub priority: Option<i32>,
    /// How many rounds these are.
    pub rounds: u64,
    /// Time slept.
    pub throttled: Throttled,
    /// Nothing but compaction: it is no evidence of what reclaim does.
    pub is_compaction: bool,
}

/// All that is known of some rounds, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// How many.
    pub rounds: u64,
    /// Time that threads spent in rounds, in nanoseconds.
    pub stalled_ns: u64,
    /// Pages scanned.
    pub scanned: u64,
    /// Pages reclaimed.
    pub reclaimed: u64,
    /// Lowest priority. Shown, but in no rule: in a small cgroup it says nothing.
    pub priority: Option<i32>,
    /// Time slept.
    pub throttled: Throttled,
    /// What was read back, where that is known.
    pub refaults: Option<Refaults>,
}

/// What became of reclaimed file pages between two looks at the same counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refaults {
    /// Pages read back.
    pub refaulted: u64,
    /// Pages reclaimed meanwhile, by whomever.
    pub reclaimed: u64,
}

impl Evidence {
    /// Adds a round.
    pub fn add(&mut self, round: &Round) {
        if round.is_compaction {
            return;
        }
        self.merge(&Self {
            rounds: round.rounds.max(1),
            stalled_ns: round.duration_ns,
            // Where the kernel does not tell it, as for soft limits, it is no less than what was reclaimed.
            scanned: round.scanned.unwrap_or(round.reclaimed),
            reclaimed: round.reclaimed,
            priority: round.priority,
            throttled: round.throttled,
            refaults: None,
        });
    }

    /// Adds other rounds; what was read back stays.
    fn merge(&mut self, other: &Self) {
        let Self { rounds, stalled_ns, scanned, reclaimed, priority, throttled, refaults: _ } =
            other;
        let Throttled { writeback_ns, isolated_ns, noprogress_ns, congested_ns } = throttled;
        let slept = &mut self.throttled;
        for (sum, more) in [
            (&mut self.rounds, rounds),
            (&mut self.stalled_ns, stalled_ns),
            (&mut self.scanned, scanned),
            (&mut self.reclaimed, reclaimed),
            (&mut slept.writeback_ns, writeback_ns),
            (&mut slept.isolated_ns, isolated_ns),
            (&mut slept.noprogress_ns, noprogress_ns),
            (&mut slept.congested_ns, congested_ns),
        ] {
            *sum = sum.saturating_add(*more);
        }
        self.priority = self.priority.into_iter().chain(*priority).min();
    }

    /// Pages reclaimed of 1,000 scanned; none where nothing was scanned.
    #[must_use]
    pub fn reclaimed_per_1000(&self) -> Option<u64> {
        (self.scanned > 0).then(|| permille(self.reclaimed, self.scanned))
    }

    /// The same, where a round that finds nothing to scan counts as one that got nothing.
    fn yield_per_1000(&self) -> u64 {
        let wanted = self.rounds.saturating_mul(least::PAGES_A_ROUND);
        permille(self.reclaimed, self.scanned.max(wanted))
    }

    fn mean_ns(&self) -> u64 {
        self.stalled_ns / self.rounds.max(1)
    }

    /// File pages read back for each 1,000 reclaimed, of which there may be more, in the latest seconds; none where that is not known.
    #[must_use]
    pub fn refaulted_per_1000(&self) -> Option<u64> {
        self.refaults.map(|Refaults { refaulted, reclaimed }| permille(refaulted, reclaimed))
    }

    fn refaults_enough(&self) -> bool {
        self.refaults.is_some_and(|refaults| refaults.refaulted >= least::FEWEST_REFAULTS)
            && self.refaulted_per_1000().is_some_and(|permille| permille >= least::REFAULTS)
    }

    fn is_throttled(&self, slept_ns: u64) -> bool {
        slept_ns > 0 && permille(slept_ns, self.stalled_ns) >= least::THROTTLED
    }

    /// The rules, of which the first that applies counts.
    fn judge(&self, state: Option<&State>) -> Verdict {
        let got = self.yield_per_1000();
        let Throttled { writeback_ns, isolated_ns, noprogress_ns, congested_ns } = self.throttled;
        let waits = got < least::WAITS || self.mean_ns() >= least::WAITS_NS;
        let gets_nothing = got < least::FAILS || self.refaults_enough();
        let unwritten = state.is_some_and(|state| state.unwritten_per_1000() >= least::UNWRITTEN);
        let idle_ns = isolated_ns.saturating_add(noprogress_ns).saturating_add(congested_ns);
        if gets_nothing && state.is_some_and(State::is_anonymous_only) {
            Verdict::Hopeless
        } else if self.is_throttled(writeback_ns) || (unwritten && waits) {
            Verdict::WritebackBound
        } else if self.refaults_enough() {
            Verdict::Thrash
        } else if got < least::SLOW || self.is_throttled(idle_ns) {
            Verdict::Slow
        } else {
            Verdict::Progressing
        }
    }

    /// The verdict on a target: only on enough evidence, and none where there is nothing to complain of.
    fn judge_target(&self, state: Option<&State>) -> Option<Verdict> {
        let took_long = self.stalled_ns >= least::LEAST_NS;
        if self.rounds == 0 || (self.rounds < least::FEWEST_ROUNDS && !took_long) {
            return None;
        }
        match self.judge(state) {
            Verdict::Slow | Verdict::WritebackBound if !took_long => None,
            Verdict::Progressing if !took_long || self.mean_ns() < least::LONG_NS => None,
            verdict => Some(verdict),
        }
    }
}

impl State {
    /// Whether reclaim can get next to nothing of it, ever: no swap, and hardly any file pages.
    fn is_anonymous_only(&self) -> bool {
        let (Some(0), Some(anon), Some(file)) = (self.swap_free, self.anon, self.file) else {
            return false;
        };
        let listed = anon.saturating_add(file);
        let is_full =
            |limit| self.current.is_some_and(|current| permille(current, limit) >= least::FULL);
        anon > 0
            && permille(file, listed) <= least::FILE
            && self.current.is_none_or(|current| permille(listed, current) >= least::LISTED)
            && self.limit.is_none_or(is_full)
    }

    /// Pages of 1,000 file pages that have to be written before they can be reclaimed.
    fn unwritten_per_1000(&self) -> u64 {
        let unwritten = self.dirty.unwrap_or(0).saturating_add(self.writeback.unwrap_or(0));
        self.file.filter(|file| *file > 0).map_or(0, |file| permille(unwritten, file))
    }
}

impl Verdict {
    /// Judges a single stall by itself; none where nothing is known of what it reclaimed. That its pages
    /// are read back is seen over a window only.
    #[must_use]
    pub fn judge_one(round: &Round, state: Option<&State>) -> Option<Self> {
        let known = !round.is_compaction && round.scanned.is_some();
        let mut evidence = Evidence::default();
        evidence.add(round);
        known.then(|| evidence.judge(state))
    }

    /// Judges a target that nothing is known of but its state: only what no reclaim can change.
    #[must_use]
    pub fn of_state(state: &State) -> Option<Self> {
        state.is_anonymous_only().then_some(Self::Hopeless)
    }

    /// Its name in JSON, which stays the same.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Progressing => "progressing",
            Self::Slow => "slow",
            Self::Hopeless => "hopeless",
            Self::Thrash => "thrash",
            Self::WritebackBound => "writeback-bound",
        }
    }
}

/// The words for people. Honours the formatter's width.
impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hopeless => "hopeless: anonymous only, no swap",
            Self::Thrash => "thrash: file pages refault",
            Self::Progressing | Self::Slow | Self::WritebackBound => self.name(),
        })
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How many of 1,000 of `whole` are `part`; where there is no whole, as if there were one.
fn permille(part: u64, whole: u64) -> u64 {
    let permille = u128::from(part) * 1000 / u128::from(whole.max(1));
    u64::try_from(permille).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
