//! What the probes remember of a stall from its begin to its end: keys and values of the maps
//! `SLOTS`, `RECLAIMS`, `COMPACTIONS` and `SCOPES`. A thread's compaction and its scope are found by its
//! id alone.

use crate::record::{CALLERS, Parts, SHRINKERS, Shrinker, part};

/// Key of a reclaim. One thread can be in several at once: soft-limit reclaim runs inside direct
/// reclaim.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ReclaimKey {
    /// The thread.
    pub tid: u32,
    /// One of [`crate::record::mechanism`].
    pub mechanism: u32,
}

/// A reclaim in progress. What every view needs comes first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Reclaim {
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Address of the `scan_control`; 0 where the thread did not lead to it at the begin.
    pub control: u64,
    /// The allocation's `gfp_t`.
    pub gfp: u32,
    /// Which fields are filled: bits of [`crate::record::known`].
    pub known: u32,
    /// The NUMA node, of node reclaim.
    pub node: i32,
    /// Always zero.
    pub reserved: u16,
    /// Order of the allocation.
    pub order: i8,
    /// Lowest priority so far; `i8::MAX` before the first.
    pub priority: i8,
    /// Pages scanned so far.
    pub nr_scanned: u64,
    /// Free pages in the whole system at the begin.
    pub free_pages: u64,
    /// Of the tracepoint's own argument where it has one, since 7.1.
    pub target_cgroup_id: u64,
}

/// Room for one reclaim in the array `SLOTS`: a line of the processor's cache.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Slot {
    /// How many threads have it or are about to look whether they can have it.
    pub claims: u32,
    /// Whose it is, [`Slot::key`]; 0 while it is nobody's.
    pub owner: u32,
    /// The reclaim.
    pub reclaim: Reclaim,
}

impl Slot {
    /// What stands for a thread in a mechanism, one of the first four of
    /// [`crate::record::mechanism`]. Thread ids are below 2^22 (`PID_MAX_LIMIT`), and none is 0.
    #[must_use]
    pub const fn key(key: ReclaimKey) -> u32 {
        key.tid << 2 | key.mechanism
    }
}

const _: () = assert!(size_of::<Slot>() == 64, "a line of the processor's cache");

/// A compaction in progress.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Compaction {
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Address of the `struct zone`; 0 if not known.
    pub zone: u64,
    /// The zone's watermarks at the begin: min, low, high.
    pub watermarks: [u64; 3],
    /// The zone's free pages at the begin.
    pub free_pages: u64,
    /// Fragmentation index at the begin, times 1000.
    pub frag_index: i32,
    /// Order asked for; -1 for the whole zone.
    pub order: i32,
    /// The allocation's `gfp_t`.
    pub gfp: u32,
    /// One of [`crate::record::cause`].
    pub cause: u32,
    /// The kernel's `enum migrate_mode`.
    pub mode: u32,
    /// Which of these are filled: bits of [`crate::record::known`].
    pub known: u32,
    /// 1 where it was kept by the tracepoint's first program and the spare one has not seen it yet.
    pub is_new: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Values of [`Scope::is_off`].
pub mod off {
    /// It waits for something, and then perhaps for a CPU.
    pub const ASLEEP: u32 = 1;
    /// It was made to go, and waits for a CPU.
    pub const PREEMPTED: u32 = 2;
}

/// A scope in progress, [`crate::record::Scope`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scope {
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Until when its time stands in `parts`.
    pub charged_ns: u64,
    /// The thread's `sched_info.run_delay` when it was last looked at.
    pub run_delay_ns: u64,
    /// How long it has since waited after it was preempted, as the scheduler's probe saw it.
    pub preempted_ns: u64,
    /// How long the thread was last off the CPU, as far as it is not known what for: until it is next
    /// looked at this includes the time that it waited for a CPU.
    pub unsettled_ns: u64,
    /// How long it was blocked when it last was, if that was since the last event but those of the scheduler.
    pub blocked_ns: u64,
    /// The shrinker that runs, by its `scan_objects`; 0 if none does.
    pub shrinker: u64,
    /// Which sections the thread is in: bit n for [`crate::record::mechanism`] n, of which
    /// [`SCOPE`](crate::record::mechanism::SCOPE) stands for a memstall section.
    pub sections: u32,
    /// How many reclaims and compactions have ended in it.
    pub rounds: u32,
    /// One of [`off`] while the thread is off the CPU, else 0.
    pub is_off: u32,
    /// Always zero.
    pub reserved: u32,
    /// Who began the memstall section.
    pub callers: [u64; CALLERS],
    /// How the time was spent.
    pub parts: Parts,
}

impl Scope {
    /// One that has not begun.
    pub const EMPTY: Self = Self {
        start_ns: 0,
        charged_ns: 0,
        run_delay_ns: 0,
        preempted_ns: 0,
        unsettled_ns: 0,
        blocked_ns: 0,
        shrinker: 0,
        sections: 0,
        rounds: 0,
        is_off: 0,
        reserved: 0,
        callers: [0; CALLERS],
        parts: Parts {
            ns: [0; part::COUNT],
            shrinkers: [Shrinker { scan_objects: 0, ns: 0 }; SHRINKERS],
        },
    };
}
