//! The scope: the outermost span in which a thread was held up, and how its time was spent. Beside it
//! the OOM kill, which takes no time.

use memtrace_common::record::part;
use serde::{Deserialize, Serialize};

use crate::stall::Comm;

/// One finished scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// How long it lasted, in nanoseconds.
    pub duration_ns: u64,
    /// The process (thread group).
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread's real user id.
    pub uid: u32,
    /// The CPU on which it ended.
    pub cpu: u32,
    /// The thread's name.
    pub comm: Comm,
    /// The cgroup that the thread's memory is charged to.
    pub cgroup_id: Option<u64>,
    /// How the time was spent.
    pub parts: Parts,
    /// Return addresses of who began a memstall section, innermost first.
    pub callers: Vec<u64>,
}

/// How time was spent, in nanoseconds; the sum is the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// By [`part`].
    pub ns: [u64; part::COUNT],
    /// In shrinkers, by the address of their `scan_objects` functions, those seen first first.
    pub shrinkers: Vec<(u64, u64)>,
}

/// A part that has a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Reclaiming on a CPU.
    Scan,
    /// In the shrinker with this `scan_objects`; 0 for those beyond the ones told apart.
    Shrinker(u64),
    /// Asleep in `reclaim_throttle()`, by `enum vmscan_throttle_state`.
    Throttled(usize),
    /// Asleep in `throttle_direct_reclaim()`.
    Pfmemalloc,
    /// Compacting.
    Compaction,
    /// Off the CPU for something else.
    Blocked,
    /// Waiting for a CPU.
    Waiting,
    /// None of these.
    Other,
}

/// Most shrinkers that are told apart in the sum of several scopes.
const MAX_SHRINKERS: usize = 32;

impl Parts {
    /// All that took any time, the longest first.
    #[must_use]
    pub fn sorted(&self) -> Vec<(Part, u64)> {
        let fixed = self.ns.iter().enumerate().map(|(index, ns)| (Self::part(index), *ns));
        let shrinkers = self.shrinkers.iter().map(|&(address, ns)| (Part::Shrinker(address), ns));
        let mut all: Vec<_> = fixed.chain(shrinkers).filter(|(_, ns)| *ns != 0).collect();
        all.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
        all
    }

    /// The whole.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        let shrinkers = self.shrinkers.iter().map(|(_, ns)| ns);
        self.ns.iter().chain(shrinkers).fold(0, |sum: u64, ns| sum.saturating_add(*ns))
    }

    /// Adds those of another scope.
    pub fn add(&mut self, other: &Self) {
        for (sum, ns) in self.ns.iter_mut().zip(other.ns) {
            *sum = sum.saturating_add(ns);
        }
        for &(address, ns) in &other.shrinkers {
            let has_room = self.shrinkers.len() < MAX_SHRINKERS;
            match self.shrinkers.iter_mut().find(|(known, _)| *known == address) {
                Some((_, sum)) => *sum = sum.saturating_add(ns),
                None if has_room => self.shrinkers.push((address, ns)),
                None => self.ns[part::SHRINKERS] = self.ns[part::SHRINKERS].saturating_add(ns),
            }
        }
    }

    fn part(index: usize) -> Part {
        match index {
            part::SCAN => Part::Scan,
            part::COMPACTION => Part::Compaction,
            part::BLOCKED => Part::Blocked,
            part::WAITING => Part::Waiting,
            part::PFMEMALLOC => Part::Pfmemalloc,
            part::SHRINKERS => Part::Shrinker(0),
            part::OTHER => Part::Other,
            throttled => Part::Throttled(throttled - part::THROTTLED),
        }
    }
}

/// A process was chosen to be killed for lack of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oom {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// The process that lacked memory.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// That thread's real user id.
    pub uid: u32,
    /// Its name.
    pub comm: Comm,
    /// The cgroup that its memory is charged to.
    pub cgroup_id: Option<u64>,
    /// The process that is killed for it.
    pub victim_pid: u32,
    /// Its name, where the kernel tells it.
    pub victim_comm: Option<Comm>,
    /// The cgroup that its memory is charged to.
    pub victim_cgroup_id: Option<u64>,
    /// The kernel stack, innermost frame first; empty unless asked for.
    pub stack: Vec<u64>,
    /// The stack in user space, likewise.
    pub user_stack: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(scan: u64, shrinkers: &[(u64, u64)]) -> Parts {
        let mut parts = Parts { shrinkers: shrinkers.to_vec(), ..Parts::default() };
        parts.ns[part::SCAN] = scan;
        parts
    }

    #[test]
    fn sums_keep_every_nanosecond() {
        let mut sum = parts(5, &[(1, 7)]);
        let many: Vec<_> = (1..100).map(|address| (address, address)).collect();
        sum.add(&parts(1, &many));
        assert_eq!(sum.total_ns(), 12 + 1 + (1..100).sum::<u64>());
        assert_eq!(sum.shrinkers.len(), MAX_SHRINKERS);
        assert_eq!(sum.shrinkers[0], (1, 8));
    }

    #[test]
    fn the_longest_part_comes_first_and_nothing_is_left_out() {
        let mut parts = parts(5, &[(9, 6)]);
        for (index, ns) in parts.ns.iter_mut().enumerate() {
            *ns += index as u64;
        }
        let sorted = parts.sorted();
        assert_eq!(sorted.iter().map(|(_, ns)| ns).sum::<u64>(), parts.total_ns());
        assert!(sorted.is_sorted_by_key(|(_, ns)| std::cmp::Reverse(*ns)));
        assert!(sorted.contains(&(Part::Throttled(3), part::CONGESTED as u64)));
        assert!(sorted.contains(&(Part::Shrinker(9), 6)));
        assert_eq!(Parts::default().sorted(), []);
    }
}
