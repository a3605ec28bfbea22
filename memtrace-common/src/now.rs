//! The iterator over threads of `memtrace now`: what it is told, and its records, one for each thread
//! that may be stalled and one at the end.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::layout::ABSENT;
use crate::record::{Comm, STACK_DEPTH, ZONE_NAME_LEN};

/// Offsets in bytes, beside those of [`crate::layout::KernelLayout`], each [`ABSENT`] where the kernel
/// has no such member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ThreadLayout {
    /// `task_struct.__state`, `state` before 5.14.
    pub task_state: u32,
    /// `task_struct.stack`, the lowest address of the thread's kernel stack.
    pub task_stack: u32,
    /// `task_struct.flags`.
    pub task_flags: u32,
    /// `task_struct.real_cred`.
    pub task_real_cred: u32,
    /// `cred.uid`.
    pub cred_uid: u32,
    /// The byte that holds the bit-field `task_struct.in_memstall`, of kernels with PSI.
    pub task_in_memstall: u32,
    /// That bit, as a mask for the byte.
    pub task_in_memstall_mask: u32,
    /// `task_struct.capture_control`, set while the thread compacts a zone for an allocation of its own.
    pub task_capture_control: u32,
    /// `capture_control.cc`, a pointer to the `compact_control`.
    pub capture_control_cc: u32,
    /// `scan_control.order`, one signed byte.
    pub scan_control_order: u32,
    /// `scan_control.gfp_mask`.
    pub scan_control_gfp: u32,
}

impl ThreadLayout {
    /// A kernel of which nothing is known.
    pub const ABSENT: Self = zerocopy::transmute!([ABSENT; size_of::<Self>() / size_of::<u32>()]);
}

/// Values of [`Thread::activity`].
pub mod activity {
    /// It reclaims pages.
    pub const RECLAIM: u32 = 0;
    /// It compacts a zone for an allocation of its own.
    pub const COMPACTION: u32 = 1;
    /// It does neither, and waits for something, or is said to be held up by memory.
    pub const WAIT: u32 = 2;
    /// No thread: all of them have been looked at, [`Thread::threads`](super::Thread::threads) of them.
    pub const END: u32 = 3;
}

/// Bits of [`Thread::marks`].
pub mod mark {
    /// What the thread did was over before all of it was read: nothing in the record can be relied on.
    pub const TORN: u32 = 1 << 0;
    /// The kernel counts the thread as held up by memory (`task_struct.in_memstall`).
    pub const MEMSTALL: u32 = 1 << 1;
}

/// One thread, and what it is held up with.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Thread {
    /// One of [`activity`].
    pub activity: u32,
    /// Bits of [`mark`].
    pub marks: u32,
    /// Which optional fields are filled: bits of [`crate::record::known`].
    pub known: u32,
    /// The process, in the initial PID namespace.
    pub pid: u32,
    /// The thread, in the initial PID namespace.
    pub tid: u32,
    /// The thread's real user id.
    pub uid: u32,
    /// `task_struct.flags`.
    pub flags: u32,
    /// `task_struct.__state`: 0 while the thread runs or could.
    pub state: u32,
    /// The thread's name.
    pub comm: Comm,
    /// Address of the `scan_control` or `compact_control`.
    pub control: u64,
    /// How many threads were looked at, at the end only.
    pub threads: u64,
    /// Id of the cgroup that the thread is charged to.
    pub cgroup_id: u64,
    /// Id of the cgroup whose limit asks for the reclaim; 0 where none does.
    pub target_cgroup_id: u64,
    /// Pages scanned at the present priority, or by the migration scanner.
    pub nr_scanned: u64,
    /// Pages reclaimed in this round.
    pub nr_reclaimed: u64,
    /// Pages that the free scanner looked at.
    pub free_scanned: u64,
    /// The allocation's `gfp_t`.
    pub gfp: u32,
    /// Order of the allocation.
    pub order: i32,
    /// The present priority.
    pub priority: i32,
    /// The kernel's `enum migrate_mode`.
    pub mode: u32,
    /// The NUMA node of `zone`.
    pub node: i32,
    /// Bytes of frames that follow, or a negative errno where the kernel gave none.
    pub stack: i32,
    /// The zone that is compacted, by its name.
    pub zone: [u8; ZONE_NAME_LEN],
}

/// A [`Thread`] with the room for what follows it: return addresses, innermost first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Record {
    /// The thread.
    pub thread: Thread,
    /// Its kernel stack.
    pub frames: [u64; STACK_DEPTH],
}
