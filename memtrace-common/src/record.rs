//! Records in the ring buffer, one per finished stall.
//!
//! Each begins with [`Stall`], whose `mechanism` says which record it is. What few views need follows
//! only where it was asked for: first the details ([`known::DETAILS`]), then each [`Stack`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A thread's name in the kernel, 16 bytes with the terminating zero (`TASK_COMM_LEN`), as the words
/// that they are in memory: the probes' compiler moves bytes one by one.
pub type Comm = [u64; 2];

/// Longest stack delivered, in frames (`PERF_MAX_STACK_DEPTH`).
pub const STACK_DEPTH: usize = 127;

/// Room for a zone's name; the kernel's longest is `Movable`.
pub const ZONE_NAME_LEN: usize = 8;

/// The tracepoint pair that a stall was measured with: values of [`Stall::mechanism`] and part of
/// the key under which the probes remember a begin.
pub mod mechanism {
    /// `mm_vmscan_direct_reclaim_begin` and `_end`.
    pub const DIRECT: u32 = 0;
    /// `mm_vmscan_memcg_reclaim_begin` and `_end`.
    pub const MEMCG: u32 = 1;
    /// `mm_vmscan_memcg_softlimit_reclaim_begin` and `_end`.
    pub const SOFTLIMIT: u32 = 2;
    /// `mm_vmscan_node_reclaim_begin` and `_end`.
    pub const NODE: u32 = 3;
    /// `mm_compaction_begin` and `_end`.
    pub const COMPACTION: u32 = 4;
    /// No pair of its own: the outermost of those a thread is in, a [`super::Scope`].
    pub const SCOPE: u32 = 5;
    /// `mark_victim`, a [`super::Oom`].
    pub const OOM: u32 = 6;
}

/// Bits of [`Stall::known`]: which of the optional fields the probe could fill on this kernel, for
/// this stall. A field whose bit is not set means nothing, whatever it holds.
pub mod known {
    /// [`super::Stall::gfp`].
    pub const GFP: u32 = 1 << 0;
    /// [`super::Stall::order`].
    pub const ORDER: u32 = 1 << 1;
    /// [`super::ReclaimDetails::cgroup_id`].
    pub const CGROUP: u32 = 1 << 2;
    /// [`super::ReclaimDetails::nr_scanned`].
    pub const SCANNED: u32 = 1 << 3;
    /// [`super::ReclaimDetails::priority`].
    pub const PRIORITY: u32 = 1 << 4;
    /// [`super::ReclaimDetails::target_cgroup_id`].
    pub const TARGET: u32 = 1 << 5;
    /// [`super::ReclaimDetails::free_pages`].
    pub const FREE: u32 = 1 << 6;
    /// [`super::ReclaimDetails::node`].
    pub const RECLAIM_NODE: u32 = 1 << 7;
    /// [`super::Compaction::node`] and [`super::Compaction::zone`].
    pub const ZONE: u32 = 1 << 8;
    /// [`super::CompactionDetails::watermark_min`], `_low`, `_high` and `free_pages`.
    pub const WATERMARKS: u32 = 1 << 9;
    /// [`super::CompactionDetails::frag_index`].
    pub const FRAG_INDEX: u32 = 1 << 10;
    /// [`super::CompactionDetails::migrate_scanned`] and `free_scanned`.
    pub const COMPACT_SCANNED: u32 = 1 << 11;
    /// Set for reclaim asked for through `memory.reclaim` (`scan_control.proactive`).
    pub const PROACTIVE: u32 = 1 << 12;
    /// Set for direct reclaim that gave up because compaction was ready to run: the kernel then
    /// reports one reclaimed page where it reclaimed none.
    pub const COMPACTION_READY: u32 = 1 << 13;
    /// [`super::Compaction::mode`].
    pub const MODE: u32 = 1 << 14;
    /// The details follow: [`super::ReclaimDetails`] or [`super::CompactionDetails`].
    pub const DETAILS: u32 = 1 << 15;
    /// Set for memcg reclaim of a cgroup above its memory.high that is not at its limit.
    pub const LIMIT_HIGH: u32 = 1 << 16;
    /// Set for memcg reclaim of a cgroup at its limit: memory.max, or v1's.
    pub const LIMIT_MAX: u32 = 1 << 17;
    /// [`super::Oom::victim_comm`] and `victim_cgroup_id`.
    pub const VICTIM: u32 = 1 << 18;
    /// Set for a scope that is a memstall section of the kernel's pressure stall information.
    pub const MEMSTALL: u32 = 1 << 19;
}

/// What every stall has, whatever held the thread up.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stall {
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// How long it lasted, in nanoseconds.
    pub duration_ns: u64,
    /// The process (thread group), in the initial PID namespace.
    pub pid: u32,
    /// The thread, in the initial PID namespace.
    pub tid: u32,
    /// The thread's real user id.
    pub uid: u32,
    /// The allocation's `gfp_t`.
    pub gfp: u32,
    /// The thread's name, ended by a zero byte; the process's where that was asked for.
    pub comm: Comm,
    /// Which optional fields are filled: bits of [`known`].
    pub known: u32,
    /// The CPU on which the stall ended.
    pub cpu: u16,
    /// Order of the allocation: 2^order pages; -1 where the kernel compacts a whole zone.
    pub order: i8,
    /// Which tracepoint pair: one of [`mechanism`].
    pub mechanism: u8,
}

/// A thread was held up reclaiming pages.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reclaim {
    /// What every stall has.
    pub stall: Stall,
    /// Pages reclaimed, as the end tracepoint reports them.
    pub nr_reclaimed: u64,
}

/// What follows a [`Reclaim`] with [`known::DETAILS`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReclaimDetails {
    /// Id, in its hierarchy, of the cgroup that the thread was charged to: the one of the memory
    /// controller, or of cgroup v2 where that is not known.
    pub cgroup_id: u64,
    /// Pages scanned on the inactive lists, over all priorities; of the last priority only where the
    /// multi-generational LRU isolates pages without `mm_vmscan_lru_isolate`.
    pub nr_scanned: u64,
    /// Id of the cgroup whose limit asked for the reclaim; 0 where none did (global reclaim).
    pub target_cgroup_id: u64,
    /// Free pages in the whole system when the stall began.
    pub free_pages: u64,
    /// Lowest priority that the scan reached: 12 is the least effort, 0 the most.
    pub priority: i32,
    /// The NUMA node that node reclaim worked on.
    pub node: i32,
}

/// A thread was held up compacting a zone.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Compaction {
    /// What every stall has.
    pub stall: Stall,
    /// The zone's name, ended by a zero byte unless it fills the field.
    pub zone: [u8; ZONE_NAME_LEN],
    /// The zone's NUMA node.
    pub node: i32,
    /// The kernel's `enum migrate_mode`.
    pub mode: u32,
    /// The kernel's `enum compact_result`.
    pub status: i32,
    /// Who asked for it: one of [`cause`].
    pub cause: u32,
}

/// What follows a [`Compaction`] with [`known::DETAILS`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CompactionDetails {
    /// As in [`ReclaimDetails`].
    pub cgroup_id: u64,
    /// Pages that the migration scanner looked at.
    pub migrate_scanned: u64,
    /// Pages that the free scanner looked at.
    pub free_scanned: u64,
    /// The zone's minimum watermark with its boost, in pages, when the stall began.
    pub watermark_min: u64,
    /// The zone's low watermark with its boost, in pages, when the stall began.
    pub watermark_low: u64,
    /// The zone's high watermark with its boost, in pages, when the stall began.
    pub watermark_high: u64,
    /// The zone's free pages when the stall began.
    pub free_pages: u64,
    /// Fragmentation index of the order asked for when the stall began, times 1000: towards 0 an
    /// allocation would fail for lack of memory, towards 1000 for fragmentation, and at -1000 it
    /// would succeed. See `fragmentation_index()` in the kernel's mm/vmstat.c.
    pub frag_index: i32,
    /// Always zero.
    pub reserved: u32,
}

/// Positions in [`Parts::ns`]: what a thread did in a scope.
pub mod part {
    /// Was on a CPU reclaiming pages, not in a shrinker.
    pub const SCAN: usize = 0;
    /// Compacted, on a CPU or not.
    pub const COMPACTION: usize = 1;
    /// Was off the CPU until something woke it up.
    pub const BLOCKED: usize = 2;
    /// Could have run, and waited for a CPU.
    pub const WAITING: usize = 3;
    /// Slept in `throttle_direct_reclaim()`, before it could reclaim.
    pub const PFMEMALLOC: usize = 4;
    /// Slept in `reclaim_throttle()`: this one and the next three are by the kernel's
    /// `enum vmscan_throttle_state`.
    pub const THROTTLED: usize = 5;
    /// How many reasons that has.
    pub const REASONS: usize = 4;
    /// The last of the reasons; before 5.16 there was no other (`congestion_wait()`).
    pub const CONGESTED: usize = THROTTLED + 3;
    /// Was in shrinkers beyond those of [`super::Parts::shrinkers`].
    pub const SHRINKERS: usize = 9;
    /// None of these: on a CPU in a memstall section, but not in reclaim or compaction.
    pub const OTHER: usize = 10;
    /// Number of parts.
    pub const COUNT: usize = 11;
}

/// How many shrinkers are told apart in a scope.
pub const SHRINKERS: usize = 8;
/// How many callers of a memstall section are delivered.
pub const CALLERS: usize = 5;

/// A shrinker's part of a scope.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Shrinker {
    /// Address of its `scan_objects` function; 0 where there is none.
    pub scan_objects: u64,
    /// The time in it, in nanoseconds, on a CPU or not.
    pub ns: u64,
}

/// How a scope's time was spent. The sum of all is its duration, to the nanosecond.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Parts {
    /// In nanoseconds, by [`part`].
    pub ns: [u64; part::COUNT],
    /// Shrinkers, those seen first.
    pub shrinkers: [Shrinker; SHRINKERS],
}

/// The outermost span in which a thread was held up: a memstall section where those can be probed,
/// else one reclaim or compaction. The records of the reclaims and compactions in it come before.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Scope {
    /// What every stall has; order and flags are those of what is in it.
    pub stall: Stall,
    /// How the time was spent.
    pub parts: Parts,
    /// As in [`ReclaimDetails`].
    pub cgroup_id: u64,
    /// Of a memstall section without reclaim or compaction: return addresses of who began it,
    /// innermost first; 0 where there are no more.
    pub callers: [u64; CALLERS],
}

/// The kernel chose a process to be killed for lack of memory. Its thread is the one that lacked it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Oom {
    /// What every stall has; it takes no time.
    pub stall: Stall,
    /// As in [`ReclaimDetails`], of the thread that lacked memory.
    pub cgroup_id: u64,
    /// The same of the victim.
    pub victim_cgroup_id: u64,
    /// The victim's name.
    pub victim_comm: Comm,
    /// The victim, a process.
    pub victim_pid: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Values of [`Compaction::cause`].
pub mod cause {
    /// An allocation that could not go on without (`direct_compaction`).
    pub const DIRECT: u32 = 0;
    /// The node's kcompactd, woken up for an allocation.
    pub const KCOMPACTD: u32 = 1;
    /// Background compaction for `vm.compaction_proactiveness` (`proactive_compaction`).
    pub const PROACTIVE: u32 = 2;
    /// A write to `vm.compact_memory` or to a node's `compact`.
    pub const MANUAL: u32 = 3;
    /// None of these.
    pub const OTHER: u32 = 4;
}

/// A stack at the end of a stall, innermost frame first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stack {
    /// Bytes of `frames` that are filled, or a negative errno where the kernel gave none.
    pub len: i32,
    /// Whose it is: one of [`side`].
    pub side: u32,
    /// Return addresses.
    pub frames: [u64; STACK_DEPTH],
}

/// Values of [`Stack::side`].
pub mod side {
    /// The kernel's.
    pub const KERNEL: u32 = 0;
    /// The program's, as far as its frame pointers lead.
    pub const USER: u32 = 1;
}

/// A record together with what follows it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Followed<T, U> {
    /// The record.
    pub record: T,
    /// Its details, or the stacks.
    pub by: U,
}
