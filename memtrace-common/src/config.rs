//! What the probes are told: what the user asked for, and where the kernel keeps things. Constants to
//! the verifier, which drops the branches that are not taken.

use zerocopy::{Immutable, IntoBytes};

use crate::layout::KernelLayout;

/// All of it. What every probe reads stands together, as it is not in the processor's cache when a
/// stall begins.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Config {
    /// Shortest stall to deliver, in nanoseconds.
    pub min_ns: u64,
    /// Unread bytes in the ring buffer at which the reader is woken up, a power of two.
    pub wakeup_bytes: u64,
    /// Bits of [`filter`].
    pub filters: u32,
    /// Bits of [`wanted`].
    pub wanted: u32,
    /// Bit n: deliver the [`kind`] n.
    pub kinds: u32,
    /// Bit n: deliver the [`crate::record::cause`] n.
    pub causes: u32,
    /// One of [`crate::tally::by`].
    pub by: u32,
    /// One less than the number of slots for reclaims in progress, a power of two.
    pub slots_mask: u32,
    /// Where this kernel keeps things.
    pub layout: KernelLayout,
    /// The user id of the filter on users.
    pub uid: u32,
    /// Always zero.
    pub reserved: u32,
    /// The id of the cgroup of the filter on cgroups.
    pub cgroup: u64,
    /// The text of the filter on names as a little-endian number of 16 bytes, low word first.
    pub comm_text: [u64; 2],
    /// All bits set where that text has a byte.
    pub comm_mask: [u64; 2],
    /// Address of `vm_zone_stat[NR_FREE_PAGES]`; 0 where the kernel does not tell.
    pub free_pages_address: u64,
}

impl Config {
    /// Nothing is wanted, and of the kernel nothing known.
    pub const NOTHING: Self = Self {
        min_ns: 0,
        wakeup_bytes: 0,
        filters: 0,
        wanted: 0,
        kinds: 0,
        causes: 0,
        by: 0,
        slots_mask: 0,
        layout: KernelLayout::ABSENT,
        uid: 0,
        reserved: 0,
        cgroup: 0,
        comm_text: [0; 2],
        comm_mask: [0; 2],
        free_pages_address: 0,
    };
}

/// Bits of [`Config::filters`]: which filters are on. A stall must pass all of them.
pub mod filter {
    /// The process is a key of the map `PIDS`.
    pub const PID: u32 = 1 << 0;
    /// The thread is a key of the map `TIDS`.
    pub const TID: u32 = 1 << 1;
    /// The real user id equals [`Config::uid`](super::Config::uid).
    pub const UID: u32 = 1 << 2;
    /// The name contains [`Config::comm_text`](super::Config::comm_text).
    pub const COMM: u32 = 1 << 3;
    /// The thread is in the cgroup [`Config::cgroup`](super::Config::cgroup), or below it, in cgroup v2.
    pub const CGROUP_V2: u32 = 1 << 4;
    /// The same in the memory controller's hierarchy of cgroup v1.
    pub const CGROUP_V1: u32 = 1 << 5;
}

/// Bits of [`Config::wanted`]: what the chosen view shows beyond the plain row.
pub mod wanted {
    /// The fields of `--extended` and `--json`, but for the cgroup.
    pub const EXTENDED: u32 = 1 << 0;
    /// The kernel stack.
    pub const STACK: u32 = 1 << 1;
    /// The cgroup that the thread is charged to.
    pub const CGROUP: u32 = 1 << 2;
    /// The thread's user id.
    pub const UID: u32 = 1 << 3;
    /// The process's name in the place of the thread's.
    pub const PROCESS_NAME: u32 = 1 << 4;
    /// The parts of each [scope](crate::record::Scope).
    pub const PARTS: u32 = 1 << 5;
    /// The stack in user space.
    pub const USER_STACK: u32 = 1 << 6;
    /// Which of a cgroup's limits was reached.
    pub const LIMIT: u32 = 1 << 7;
}

/// Bits of [`Config::kinds`], the kinds of reclaim to deliver, by position.
pub mod kind {
    /// The kinds that have a tracepoint pair of their own stand at their
    /// [`crate::record::mechanism`]; reclaim by `memory.reclaim` shares those of others.
    pub const PROACTIVE: u32 = 4;
}
