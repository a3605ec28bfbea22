//! The last seconds of each cgroup that something was reclaimed from.

use std::collections::BTreeMap;

use super::{Evidence, Refaults, Round, State, Verdict};

/// Where the state of a cgroup, by its id, is read from; id 0 is the host.
pub trait States {
    /// Reads it; nothing where the cgroup is gone or out of sight.
    fn read(&mut self, cgroup: u64) -> Option<State>;
}

/// A window's parts.
const SLOT_NS: u64 = 1_000_000_000;

/// How many parts there are in a window, of which the last one is not over.
const SLOTS: usize = 10;

/// How long a window is.
const WINDOW_NS: u64 = SLOTS as u64 * SLOT_NS;

/// Counters are compared over so much of it: a working set that is read for the first time refaults nothing.
const REFAULTS_NS: u64 = 3 * SLOT_NS;

/// A target's state is not read more often.
const STATE_NS: u64 = 1_000_000_000;

/// Most targets that are kept, of some 1.5 KiB each.
const MOST_TARGETS: usize = 128;

/// What is known of all targets, and what is to be expected of them.
#[derive(Debug, Default)]
pub struct Verdicts {
    targets: BTreeMap<u64, Box<Window>>,
    forgotten: u64,
}

/// What is known of one target.
#[derive(Debug, Default)]
struct Window {
    /// By the time, in slots, modulo their number; each with the time that it is of.
    slots: [(u64, Evidence); SLOTS],
    /// When the last round ended.
    last_ns: u64,
    /// Pages reclaimed since it is known.
    reclaimed: u64,
    /// When the state was read last, and what it was.
    state: Option<(u64, Option<State>)>,
    /// The counters of file pages that were read back and of pages reclaimed, when they were looked at.
    looks: [Option<Look>; SLOTS],
    /// The place for the next look.
    next_look: usize,
}

/// A look at the counters.
#[derive(Clone, Copy, Debug)]
struct Look {
    at_ns: u64,
    refaulted: u64,
    reclaimed: u64,
}

impl Verdicts {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a round that reclaimed from the cgroup `target`, or from the host where that is 0.
    /// Rounds may come in any order; those older than the window are left out.
    pub fn round(&mut self, target: u64, round: &Round) {
        if round.is_compaction {
            return;
        }
        if !self.targets.contains_key(&target) && self.targets.len() >= MOST_TARGETS {
            self.make_room(round.end_ns);
        }
        self.targets.entry(target).or_default().add(round);
    }

    /// Forgets the target that had no round for the longest time.
    fn make_room(&mut self, now_ns: u64) {
        let oldest = self.targets.iter().min_by_key(|(_, window)| window.last_ns);
        let Some((&target, last_ns)) = oldest.map(|(target, window)| (target, window.last_ns))
        else {
            return;
        };
        self.targets.remove(&target);
        self.forgotten += u64::from(now_ns.saturating_sub(last_ns) < WINDOW_NS);
    }

    /// How often a target was forgotten whose rounds were still in the window, as there were too many.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The targets that had a round in the window before `now_ns`.
    pub fn targets(&self, now_ns: u64) -> impl Iterator<Item = u64> {
        let is_recent = move |window: &Window| now_ns.saturating_sub(window.last_ns) < WINDOW_NS;
        self.targets.iter().filter(move |(_, window)| is_recent(window)).map(|(target, _)| *target)
    }

    /// What is known of the window before `now_ns`, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn evidence(&self, target: u64, now_ns: u64) -> Evidence {
        self.targets.get(&target).map(|window| window.evidence(now_ns)).unwrap_or_default()
    }

    /// Judges the target by the window before `now_ns`. Reads its state, but not more than once a second.
    pub fn judge(&mut self, target: u64, now_ns: u64, states: &mut impl States) -> Option<Verdict> {
        let window = self.targets.get_mut(&target)?;
        if window.evidence(now_ns).rounds == 0 {
            return None;
        }
        let state = window.state(target, now_ns, states);
        window.evidence(now_ns).judge_target(state.as_ref())
    }

    /// Reads the target's state if that is old, so that what is said of it does not depend on when it is asked for.
    pub fn look(&mut self, target: u64, now_ns: u64, states: &mut impl States) {
        if let Some(window) = self.targets.get_mut(&target) {
            window.state(target, now_ns, states);
        }
    }

    /// Judges one stall in `target` by itself, with the state that [`Verdicts::judge`] would have.
    pub fn judge_one(
        &mut self,
        target: u64,
        round: &Round,
        states: &mut impl States,
    ) -> Option<Verdict> {
        let window = self.targets.get_mut(&target)?;
        let state = window.state(target, round.end_ns, states);
        Verdict::judge_one(round, state.as_ref())
    }
}

impl Window {
    fn add(&mut self, round: &Round) {
        let time = round.end_ns / SLOT_NS;
        let (of, evidence) = &mut self.slots[slot(time)];
        if *of > time {
            return;
        }
        if *of < time {
            *of = time;
            *evidence = Evidence::default();
        }
        evidence.add(round);
        self.last_ns = self.last_ns.max(round.end_ns);
        self.reclaimed = self.reclaimed.saturating_add(round.reclaimed);
    }

    fn evidence(&self, now_ns: u64) -> Evidence {
        let now = now_ns / SLOT_NS;
        let mut sum = Evidence { refaults: self.refaults(now_ns), ..Evidence::default() };
        for (of, evidence) in &self.slots {
            if now.saturating_sub(*of) < SLOTS as u64 {
                sum.merge(evidence);
            }
        }
        sum
    }

    /// The state, read again if it is old.
    fn state(&mut self, target: u64, now_ns: u64, states: &mut impl States) -> Option<State> {
        match self.state {
            Some((at_ns, state)) if now_ns.saturating_sub(at_ns) < STATE_NS => return state,
            _ => {}
        }
        let state = states.read(target);
        self.state = Some((now_ns, state));
        if let Some(refaulted) = state.and_then(|state| state.refaulted_file) {
            let reclaimed = state.and_then(|state| state.stolen).unwrap_or(self.reclaimed);
            self.looks[self.next_look] = Some(Look { at_ns: now_ns, refaulted, reclaimed });
            self.next_look = (self.next_look + 1) % self.looks.len();
        }
        state
    }

    /// What the counters moved by between the first of the latest looks and the last.
    fn refaults(&self, now_ns: u64) -> Option<Refaults> {
        let looks = self.looks.iter().flatten();
        let recent = looks.filter(|look| now_ns.saturating_sub(look.at_ns) < REFAULTS_NS);
        let (first, last) =
            (recent.clone().min_by_key(|look| look.at_ns)?, recent.max_by_key(|look| look.at_ns)?);
        (first.at_ns < last.at_ns).then(|| Refaults {
            refaulted: last.refaulted.saturating_sub(first.refaulted),
            reclaimed: last.reclaimed.saturating_sub(first.reclaimed),
        })
    }
}

fn slot(time: u64) -> usize {
    usize::try_from(time % SLOTS as u64).unwrap_or_default()
}
