//! The stall: a span of time in which one mechanism of memory management held up one thread.
//!
//! Sources make stalls, views show them, and neither knows of the other. Ids stay numbers here;
//! [`crate::names::Names`] puts them into words.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::text::Printable;

/// One finished stall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
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
    /// Order of the allocation: 2^order pages; -1 for the compaction of a whole zone.
    pub order: Option<i32>,
    /// The allocation's flags, a `gfp_t`.
    pub gfp: Option<u32>,
    /// The cgroup that the thread's memory is charged to.
    pub cgroup_id: Option<u64>,
    /// What held the thread up.
    pub detail: Detail,
    /// The kernel stack at the end, innermost frame first; empty unless asked for.
    pub stack: Vec<u64>,
    /// The stack in user space at the end, innermost frame first; empty unless asked for, and of a
    /// thread of the kernel's.
    pub user_stack: Vec<u64>,
}

/// What held the thread up, with what only this mechanism has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Reclaiming pages.
    Reclaim(Reclaim),
    /// Compacting a zone.
    Compaction(Compaction),
}

/// Reclaiming pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// Which reclaim.
    pub kind: ReclaimKind,
    /// Which limit of its cgroup asked for it, where that was looked for.
    pub limit: Option<Limit>,
    /// Pages scanned on the inactive lists, over all priorities.
    pub nr_scanned: Option<u64>,
    /// Pages reclaimed, as the kernel reports them.
    pub nr_reclaimed: u64,
    /// The kernel reported one page where it reclaimed none, to let compaction try.
    pub compaction_ready: bool,
    /// Lowest priority reached: 12 is the least effort, 0 the most.
    pub priority: Option<i32>,
    /// The cgroup whose limit asked for the reclaim; 0 where memory itself was short.
    pub target_cgroup_id: Option<u64>,
    /// Free pages in the whole system at the begin.
    pub free_pages: Option<u64>,
    /// The NUMA node, of node reclaim only.
    pub node: Option<i32>,
}

/// Compacting a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Who asked for it.
    pub cause: Cause,
    /// The zone.
    pub zone: Option<Zone>,
    /// The kernel's `enum migrate_mode`.
    pub mode: Option<u32>,
    /// The kernel's `enum compact_result`.
    pub status: i32,
    /// What the two scanners looked at.
    pub scanned: Option<Scanned>,
    /// The zone's watermarks and free pages at the begin.
    pub watermarks: Option<Watermarks>,
    /// Fragmentation index of the order at the begin, times 1000: 0 for lack of memory to 1000 for
    /// fragmentation, -1000 if the allocation would succeed.
    pub frag_index: Option<i32>,
}

/// A zone of a NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The node's number.
    pub node: i32,
    /// The kernel's name of the zone, as in /proc/zoneinfo.
    pub name: String,
}

/// Pages that compaction's scanners looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// By the migration scanner.
    pub migrate: u64,
    /// By the free scanner.
    pub free: u64,
}

/// A zone's watermarks with their boost, and its free pages; all in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Below it only emergency allocations succeed.
    pub min: u64,
    /// Below it kswapd is woken up.
    pub low: u64,
    /// Up to it kswapd works.
    pub high: u64,
    /// Free pages.
    pub free: u64,
}

/// The kinds of reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReclaimKind {
    /// An allocation found no free page.
    Direct,
    /// A cgroup reached its limit (memory.max, memory.high).
    Memcg,
    /// Global pressure on a cgroup beyond its soft limit (cgroup v1).
    Softlimit,
    /// A NUMA node's own (`vm.zone_reclaim_mode`).
    Node,
    /// Asked for by a write to memory.reclaim.
    Proactive,
}

/// The limits of a cgroup that make it reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// memory.high.
    High,
    /// memory.max, or those of cgroup v1.
    Max,
}

/// Who asked for a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// An allocation that could not go on without.
    Direct,
    /// The node's kcompactd, woken up for an allocation.
    Kcompactd,
    /// In the background, for `vm.compaction_proactiveness`.
    Proactive,
    /// A write to `vm.compact_memory` or to a node's `compact`.
    Manual,
    /// None of these.
    Other,
}

impl ReclaimKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Direct, Self::Memcg, Self::Softlimit, Self::Node, Self::Proactive];

    /// Its name in options, columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Memcg => "memcg",
            Self::Softlimit => "softlimit",
            Self::Node => "node",
            Self::Proactive => "proactive",
        }
    }
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Direct, Self::Kcompactd, Self::Proactive, Self::Manual, Self::Other];

    /// Its name in options, columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Kcompactd => "kcompactd",
            Self::Proactive => "proactive",
            Self::Manual => "manual",
            Self::Other => "other",
        }
    }
}

impl Stall {
    /// The name of its kind (reclaim) or cause (compaction).
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match &self.detail {
            Detail::Reclaim(reclaim) => reclaim.kind.name(),
            Detail::Compaction(compaction) => compaction.cause.name(),
        }
    }
}

/// A thread's name. The kernel lets it be any bytes; shown, it never breaks a line or a terminal.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(from = "[u8; Comm::LEN]", into = "[u8; Comm::LEN]")]
pub struct Comm([u8; Self::LEN]);

impl Comm {
    /// Room for a name, with its ending zero.
    pub const LEN: usize = size_of::<memtrace_common::record::Comm>();

    /// Takes the name as the kernel delivers it, ended by a zero byte. What is after that is dropped.
    #[must_use]
    pub fn new(mut bytes: [u8; Self::LEN]) -> Self {
        let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(Self::LEN);
        bytes[len..].fill(0);
        Self(bytes)
    }

    /// The name, filled up with zero bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        self.0
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let len = self.0.iter().position(|&byte| byte == 0).unwrap_or(Self::LEN);
        &self.0[..len]
    }
}

impl From<[u8; Comm::LEN]> for Comm {
    fn from(bytes: [u8; Self::LEN]) -> Self {
        Self::new(bytes)
    }
}

impl From<Comm> for [u8; Comm::LEN] {
    fn from(comm: Comm) -> Self {
        comm.0
    }
}

impl Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(self.as_bytes()).fmt(f)
    }
}
