//! What user space sets before the probes are loaded. All of it is read-only to the probes and
//! constant to the verifier, which drops what is switched off.

use aya_ebpf::{Global, macros::map, maps::HashMap};
use memtrace_common::layout::{ABSENT, KernelLayout};

/// Bits of [`memtrace_common::config::filter`].
#[unsafe(no_mangle)]
pub static FILTERS: Global<u32> = Global::new(0);
/// Bits of [`memtrace_common::config::wanted`].
#[unsafe(no_mangle)]
pub static WANTED: Global<u32> = Global::new(0);
/// Bit n: deliver the [`memtrace_common::config::kind`] n.
#[unsafe(no_mangle)]
pub static KINDS: Global<u32> = Global::new(0);
/// Bit n: deliver the [`memtrace_common::record::cause`] n.
#[unsafe(no_mangle)]
pub static CAUSES: Global<u32> = Global::new(0);
/// Shortest stall to deliver, in nanoseconds.
#[unsafe(no_mangle)]
pub static MIN_NS: Global<u64> = Global::new(0);
/// The user id of the filter on users.
#[unsafe(no_mangle)]
pub static UID: Global<u32> = Global::new(0);
/// The text of the filter on names as a little-endian number of 16 bytes, low word first.
#[unsafe(no_mangle)]
pub static COMM_TEXT: Global<[u64; 2]> = Global::new([0; 2]);
/// All bits set where that text has a byte.
#[unsafe(no_mangle)]
pub static COMM_MASK: Global<[u64; 2]> = Global::new([0; 2]);
/// The id of the cgroup of the filter on cgroups.
#[unsafe(no_mangle)]
pub static CGROUP: Global<u64> = Global::new(0);
/// Unread bytes in the ring buffer at which the reader is woken up.
#[unsafe(no_mangle)]
pub static WAKEUP_BYTES: Global<u64> = Global::new(0);
/// Address of `vm_zone_stat[NR_FREE_PAGES]`; 0 where the kernel does not tell.
#[unsafe(no_mangle)]
pub static FREE_PAGES_ADDRESS: Global<u64> = Global::new(0);

/// Processes of the filter on processes; user space sets its size.
#[map]
pub static PIDS: HashMap<u32, u8> = HashMap::with_max_entries(1, 0);
/// Threads of the filter on threads; user space sets its size.
#[map]
pub static TIDS: HashMap<u32, u8> = HashMap::with_max_entries(1, 0);

/// Where this kernel keeps things. Read through [`layout`].
#[unsafe(no_mangle)]
pub static LAYOUT: KernelLayout = KernelLayout::ABSENT;

/// Reads a field of [`LAYOUT`] as a constant of the verifier.
macro_rules! layout {
    ($($field:tt)+) => {{
        // SAFETY: the static is initialised and valid for reads; volatile because user space
        // replaces its value after compilation.
        unsafe { core::ptr::read_volatile(&raw const crate::settings::LAYOUT.$($field)+) }
    }};
}
pub(crate) use layout;

/// Whether this kernel has what `offset_or_position` stands for.
#[inline(always)]
pub fn present(offset_or_position: u32) -> bool {
    offset_or_position != ABSENT
}

/// Whether `bit` of [`memtrace_common::config::wanted`] is set.
#[inline(always)]
pub fn wanted(bit: u32) -> bool {
    WANTED.load() & bit != 0
}
