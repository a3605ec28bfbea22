//! Threads that are stalled at this moment, and what two looks at them tell.
//!
//! A source takes [`Sample`]s, [`compare`] makes [`Row`]s of two, and a view shows them. Nobody knows
//! when such a stall began, nor whether it is still the same one: a thread that reclaims round after
//! round is in a different one each time.

use crate::stall::{Comm, Scanned, Zone};
use crate::verdict::{Round, State as TargetState, Verdict};

/// What holds a thread up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It reclaims, as it found no free page.
    Direct,
    /// It reclaims for a cgroup's limit.
    Memcg,
    /// It reclaims on one NUMA node before another is used.
    Node,
    /// It reclaims as memory.reclaim asks for.
    Proactive,
    /// It compacts a zone for an allocation.
    Compaction,
    /// It is made to sleep, as its cgroup is beyond memory.high.
    Penalty,
    /// It waits for kswapd, which the kernel is so short of pages for that nobody else may reclaim.
    Pfmemalloc,
    /// It waits for a page that was swapped out.
    SwapIn,
    /// It waits for a page of a file that was reclaimed while still in use.
    Refault,
    /// The kernel counts it as held up by memory, with none of these.
    Memstall,
    /// A node's own thread, which reclaims for all others.
    Kswapd,
    /// A node's own thread, which compacts for all others.
    Kcompactd,
}

impl Kind {
    /// Its name in columns and JSON: as `stalls` has it, but that a look does not tell which limit of a cgroup
    /// it is.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Memcg => "memcg",
            Self::Node => "node",
            Self::Proactive => "proactive",
            Self::Compaction => "compaction",
            Self::Penalty => "penalty",
            Self::Pfmemalloc => "pfmemalloc",
            Self::SwapIn => "swapin",
            Self::Refault => "refault",
            Self::Memstall => "memstall",
            Self::Kswapd => "kswapd",
            Self::Kcompactd => "kcompactd",
        }
    }

    /// Whether it works for others, and is no victim.
    #[must_use]
    pub fn is_worker(self) -> bool {
        matches!(self, Self::Kswapd | Self::Kcompactd)
    }
}

/// What a thread does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs, or waits for a CPU only.
    Running,
    /// It waits for something else.
    Waiting,
    /// It waits as reclaim makes it wait, for writeback or for others that reclaim.
    Throttled,
}

impl State {
    /// Its name in columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Throttled => "throttled",
        }
    }
}

/// How far a round of reclaim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaiming {
    /// The present priority, from 12, the least effort, down to 0; -1 as the last has failed.
    pub priority: i32,
    /// Pages scanned at this priority, not at those before.
    pub nr_scanned: u64,
    /// Pages reclaimed in the round.
    pub nr_reclaimed: u64,
    /// The cgroup whose limit asks for it; 0 where memory itself is short.
    pub target_cgroup_id: Option<u64>,
}

/// How far the compaction of a zone has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compacting {
    /// The zone.
    pub zone: Zone,
    /// The kernel's `enum migrate_mode`.
    pub mode: u32,
    /// What the two scanners looked at.
    pub scanned: Scanned,
}

/// What is known of the work that a thread does in place of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// It reclaims pages.
    Reclaim(Reclaiming),
    /// It compacts a zone.
    Compaction(Compacting),
    /// It waits, or the kernel does not tell.
    Unknown,
}

/// A thread that was stalled when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// The process (thread group).
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread's real user id.
    pub uid: u32,
    /// The thread's name.
    pub comm: Comm,
    /// What holds it up.
    pub kind: Kind,
    /// Whether it runs.
    pub state: State,
    /// Order of the allocation: 2^order pages.
    pub order: Option<i32>,
    /// The allocation's flags, a `gfp_t`.
    pub gfp: Option<u32>,
    /// The cgroup that the thread's memory is charged to.
    pub cgroup_id: Option<u64>,
    /// How far it has come.
    pub work: Work,
    /// Where the kernel keeps what the round needs: another place is another round.
    pub control: u64,
    /// When it was first seen stalled, in nanoseconds of `CLOCK_MONOTONIC`, if in every look since.
    pub since_ns: u64,
    /// What is to be expected of the reclaim that it is in or waits for.
    pub verdict: Option<Verdict>,
    /// Its kernel stack, innermost frame first; empty where it runs on another CPU.
    pub stack: Vec<u64>,
}

/// Fewer pages scanned say nothing of a round that is not over.
const FEWEST_SCANNED: u64 = 1024;

impl Stalled {
    /// What is reclaimed from: the id of a cgroup, 0 for the host. Of a thread that sleeps for its
    /// cgroup's memory.high the one that it is charged to.
    #[must_use]
    pub fn target(&self) -> Option<u64> {
        match (&self.work, self.kind) {
            (Work::Reclaim(reclaim), _) => reclaim.target_cgroup_id,
            (_, Kind::Penalty) => self.cgroup_id,
            _ => None,
        }
    }

    /// Judges by how far it has come and the state of its target.
    #[must_use]
    pub fn judge(&self, state: Option<&TargetState>) -> Option<Verdict> {
        if let Work::Reclaim(Reclaiming { priority, nr_scanned, nr_reclaimed, .. }) = self.work
            && nr_scanned >= FEWEST_SCANNED
        {
            let round = Round {
                scanned: Some(nr_scanned),
                reclaimed: nr_reclaimed,
                priority: Some(priority),
                rounds: 1,
                ..Round::default()
            };
            return Verdict::judge_one(&round, state);
        }
        state.and_then(Verdict::of_state)
    }
}

/// One look at all threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// Those that were stalled and pass the filters, by thread id.
    pub threads: Vec<Stalled>,
    /// How many threads were looked at.
    pub looked_at: u64,
    /// Threads left out as their stall was over before all of it was read.
    pub torn: u64,
    /// Threads left out as there were too many.
    pub left_out: u64,
    /// What cannot be seen on this kernel, each with the reason.
    pub unavailable: Vec<String>,
}

impl Sample {
    /// Puts the threads in order, and takes over since when they are stalled from the look before.
    pub fn follow(&mut self, before: &Self) {
        for thread in &mut self.threads {
            if let Some(known) = before.find(thread) {
                thread.since_ns = known.since_ns;
            }
        }
    }

    fn find(&self, thread: &Stalled) -> Option<&Stalled> {
        let at = self.threads.binary_search_by_key(&thread.tid, |thread| thread.tid).ok()?;
        Some(&self.threads[at]).filter(|found| found.pid == thread.pid)
    }
}

/// In which of two looks a thread was stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// In both.
    Both,
    /// In the second only: it has begun since.
    Second,
    /// In the first only: it is over.
    First,
}

impl Seen {
    /// Its name in columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Second => "second",
            Self::First => "first",
        }
    }
}

/// What two looks tell of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// As it was last seen.
    pub thread: &'a Stalled,
    /// When it was seen.
    pub seen: Seen,
    /// What it got done, where it was in the same round both times, as far as one can tell.
    pub pace: Option<Pace>,
}

/// What a thread gets done, in pages per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Scanned; not known where the priority has changed, at which the kernel counts from 0.
    pub scanned: Option<u64>,
    /// Reclaimed; of reclaim only.
    pub reclaimed: Option<u64>,
}

/// Rows of all threads that were stalled in one of two looks: those in both first, the longest first,
/// and workers last.
#[must_use]
pub fn compare<'a>(first: &'a Sample, second: &'a Sample) -> Vec<Row<'a>> {
    let elapsed_ns = second.at_ns.saturating_sub(first.at_ns);
    let now = second.threads.iter().map(|thread| match first.find(thread) {
        Some(before) => Row { thread, seen: Seen::Both, pace: pace(before, thread, elapsed_ns) },
        None => Row { thread, seen: Seen::Second, pace: None },
    });
    let gone = first.threads.iter().filter(|thread| second.find(thread).is_none());
    let gone = gone.map(|thread| Row { thread, seen: Seen::First, pace: None });
    let mut rows: Vec<_> = now.chain(gone).collect();
    rows.sort_by_key(|row| {
        let Stalled { kind, since_ns, tid, .. } = *row.thread;
        (kind.is_worker(), row.seen, since_ns, tid)
    });
    rows
}

/// What a thread got done in `elapsed_ns`; nothing where it is known to be in another round.
fn pace(before: &Stalled, now: &Stalled, elapsed_ns: u64) -> Option<Pace> {
    let round = |thread: &Stalled| (thread.kind, thread.control, thread.order, thread.gfp);
    if round(before) != round(now) || elapsed_ns == 0 {
        return None;
    }
    let per_second = |before: u64, now: u64| {
        let pages = u128::from(now.checked_sub(before)?);
        u64::try_from(pages * 1_000_000_000 / u128::from(elapsed_ns)).ok()
    };
    match (&before.work, &now.work) {
        (Work::Reclaim(before), Work::Reclaim(now)) => {
            if before.target_cgroup_id != now.target_cgroup_id || before.priority < now.priority {
                return None;
            }
            let scanned = if before.priority == now.priority {
                Some(per_second(before.nr_scanned, now.nr_scanned)?)
            } else {
                None
            };
            let reclaimed = Some(per_second(before.nr_reclaimed, now.nr_reclaimed)?);
            Some(Pace { scanned, reclaimed })
        }
        (Work::Compaction(before), Work::Compaction(now)) => {
            let all = |work: &Compacting| work.scanned.migrate.saturating_add(work.scanned.free);
            let is_same = before.zone == now.zone && before.mode == now.mode;
            let scanned = is_same.then(|| per_second(all(before), all(now))).flatten()?;
            Some(Pace { scanned: Some(scanned), reclaimed: None })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(tid: u32) -> Stalled {
        Stalled {
            pid: 1,
            tid,
            uid: 0,
            comm: Comm::new(*b"postgres\0\0\0\0\0\0\0\0"),
            kind: Kind::Memcg,
            state: State::Running,
            order: Some(0),
            gfp: Some(0xcc0),
            cgroup_id: Some(7),
            work: work(12, 100, 10),
            control: 0xff00,
            since_ns: 0,
            verdict: None,
            stack: Vec::new(),
        }
    }

    fn work(priority: i32, nr_scanned: u64, nr_reclaimed: u64) -> Work {
        Work::Reclaim(Reclaiming { priority, nr_scanned, nr_reclaimed, target_cgroup_id: Some(8) })
    }

    fn sample(at_ns: u64, threads: Vec<Stalled>) -> Sample {
        Sample { at_ns, threads, ..Sample::default() }
    }

    #[test]
    fn tells_pages_per_second_of_one_round_only() {
        let half = 500_000_000;
        let later = |change: fn(&mut Stalled)| {
            let mut later = thread(5);
            change(&mut later);
            pace(&thread(5), &later, half)
        };
        let both = |scanned, reclaimed| Some(Pace { scanned, reclaimed: Some(reclaimed) });
        assert_eq!(later(|_| ()), both(Some(0), 0));
        assert_eq!(later(|thread| thread.work = work(12, 150, 11)), both(Some(100), 2));
        // The kernel counts what it scans from 0 at each priority.
        assert_eq!(later(|thread| thread.work = work(11, 50, 11)), both(None, 2));
        for (what, other) in [
            ("counts less", later(|thread| thread.work = work(12, 99, 10))),
            ("reclaimed less", later(|thread| thread.work = work(12, 100, 9))),
            ("a higher priority", later(|thread| thread.work = work(13, 200, 20))),
            ("another place", later(|thread| thread.control = 0)),
            ("another allocation", later(|thread| thread.order = Some(1))),
            ("other flags", later(|thread| thread.gfp = None)),
            ("another kind", later(|thread| thread.kind = Kind::Direct)),
            ("other work", later(|thread| thread.work = Work::Unknown)),
        ] {
            assert_eq!(other, None, "{what}");
        }
        assert_eq!(pace(&thread(5), &thread(5), 0), None);
    }

    #[test]
    fn tells_how_fast_a_zone_is_compacted() {
        let compacting = |migrate, zone: &str| Stalled {
            kind: Kind::Compaction,
            work: Work::Compaction(Compacting {
                zone: Zone { node: 0, name: zone.to_owned() },
                mode: 1,
                scanned: Scanned { migrate, free: 50 },
            }),
            ..thread(5)
        };
        let second = 1_000_000_000;
        let pace = |later| pace(&compacting(10, "DMA32"), &later, second);
        let scanned = Some(Pace { scanned: Some(90), reclaimed: None });
        assert_eq!(pace(compacting(100, "DMA32")), scanned);
        assert_eq!(pace(compacting(100, "Normal")), None);
        assert_eq!(pace(compacting(9, "DMA32")), None);
    }

    #[test]
    fn tells_those_in_one_look_from_those_in_both() {
        let worker = Stalled { kind: Kind::Kswapd, ..thread(3) };
        let other_process = Stalled { pid: 2, ..thread(9) };
        let first = sample(10, vec![thread(2), worker.clone(), thread(5), thread(9)]);
        let mut second = sample(20, vec![worker, thread(4), thread(5), other_process]);
        for thread in &mut second.threads {
            thread.since_ns = 20;
        }
        second.follow(&first);
        let rows: Vec<_> = compare(&first, &second)
            .iter()
            .map(|row| (row.thread.tid, row.seen, row.thread.since_ns))
            .collect();
        let expected = [
            (5, Seen::Both, 0),
            (4, Seen::Second, 20),
            (9, Seen::Second, 20),
            (2, Seen::First, 0),
            (9, Seen::First, 0),
            (3, Seen::Both, 0),
        ];
        assert_eq!(rows, expected);
    }
}
