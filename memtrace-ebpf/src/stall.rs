//! What every probe shares: which threads are looked at, and how a finished stall is delivered or
//! counted as lost.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_get_stack,
    },
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use memtrace_common::{
    config::{filter, wanted},
    counter,
    record::{COMM_LEN, STACK_DEPTH, Stacked, Stall, known},
};

use crate::{
    kernel,
    settings::{
        self, CGROUP, COMM_MASK, COMM_TEXT, FILTERS, MIN_NS, PIDS, TIDS, UID, WAKEUP_BYTES,
    },
};

/// Finished stalls on their way to user space, which sets its size.
#[map]
static STALLS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// What was not delivered, by [`counter`].
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// How many records may be added at once without the reader being woken up.
const AT_ONCE: u64 = 16;

/// The current thread.
#[derive(Clone, Copy)]
pub struct Thread {
    pub pid: u32,
    pub tid: u32,
}

impl Thread {
    #[inline(always)]
    pub fn current() -> Self {
        let pid_tgid = bpf_get_current_pid_tgid();
        Self { pid: (pid_tgid >> 32) as u32, tid: pid_tgid as u32 }
    }

    /// Whether the user wants to hear of it.
    #[inline(always)]
    pub fn passes(self) -> bool {
        let filters = FILTERS.load();
        if filters & filter::PID != 0 && PIDS.get_ptr(self.pid).is_none() {
            return false;
        }
        if filters & filter::TID != 0 && TIDS.get_ptr(self.tid).is_none() {
            return false;
        }
        if filters & filter::UID != 0 && uid() != UID.load() {
            return false;
        }
        if filters & filter::COMM != 0 && !comm_matches() {
            return false;
        }
        if filters & filter::CGROUP_V2 != 0 && !kernel::in_cgroup(CGROUP.load(), false) {
            return false;
        }
        if filters & filter::CGROUP_V1 != 0 && !kernel::in_cgroup(CGROUP.load(), true) {
            return false;
        }
        true
    }

    /// The part of a record that every mechanism has, for a stall that ends now; nothing where the
    /// stall is shorter than the user wants.
    #[inline(always)]
    pub fn stalled_since(self, start_ns: u64, mechanism: u32) -> Option<Stall> {
        let duration_ns = now().wrapping_sub(start_ns);
        if duration_ns < MIN_NS.load() {
            return None;
        }
        let mut stall = Stall {
            start_ns,
            duration_ns,
            cgroup_id: 0,
            mechanism,
            known: 0,
            pid: self.pid,
            tid: self.tid,
            uid: uid(),
            // SAFETY: the helper has no precondition.
            cpu: unsafe { bpf_get_smp_processor_id() },
            order: 0,
            gfp: 0,
            comm: comm(),
        };
        if settings::wanted(wanted::CGROUP)
            && let Some(id) = kernel::payer_id()
        {
            stall.cgroup_id = id;
            stall.known |= known::CGROUP;
        }
        Some(stall)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds one to a slot of [`COUNTERS`].
#[inline(always)]
pub fn count(slot: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(slot) {
        add_one(value);
    }
}

/// Adds in one step, as another probe may come in between where tracepoints can be preempted. For
/// this target Rust has no atomic types.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn add_one(value: *mut u64) {
    // SAFETY: the pointer is to a value of a map, which is there as long as the map is.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({value} + 0) += {one}",
            value = in(reg) value,
            one = in(reg) 1_u64,
            options(nostack),
        );
    }
}

/// For the lints, which see this crate as a program of the host.
#[cfg(not(target_arch = "bpf"))]
fn add_one(value: *mut u64) {
    // SAFETY: as above.
    unsafe { *value += 1 };
}

/// Delivers `record`, with the kernel stack where that is wanted, or counts it as lost.
#[inline(always)]
pub fn deliver<T: Copy + 'static>(ctx: &impl EbpfContext, record: T) {
    if settings::wanted(wanted::STACK) {
        let Some(mut entry) = STALLS.reserve::<Stacked<T>>(0) else {
            return count(counter::LOST);
        };
        let place = entry.as_mut_ptr();
        // SAFETY: the entry has room for the record, which comes first.
        unsafe { place.cast::<T>().write(record) };
        // SAFETY: the stack is a part of the entry; only its address is taken.
        let stack = unsafe { &raw mut (*place).stack };
        // SAFETY: likewise the frames.
        let frames = unsafe { &raw mut (*stack).frames };
        let size = (STACK_DEPTH * size_of::<u64>()) as u32;
        // SAFETY: the helper writes at most `size` bytes, the size of the frames.
        let len = unsafe { bpf_get_stack(ctx.as_ptr(), frames.cast(), size, 0) };
        // SAFETY: the entry has room for the length, which comes first in the stack.
        unsafe { stack.cast::<i64>().write(len) };
        entry.submit(wakeup(size_of::<Stacked<T>>()));
    } else {
        let Some(mut entry) = STALLS.reserve::<T>(0) else {
            return count(counter::LOST);
        };
        entry.write(record);
        entry.submit(wakeup(size_of::<T>()));
    }
}

/// Wakes the reader up when the record of this size passes a multiple of the threshold, give or
/// take what other CPUs add at the same time. Waking up costs ten times what the rest of a probe
/// does, so the reader looks by itself as well.
#[inline(always)]
fn wakeup(size: usize) -> u64 {
    let unread = STALLS.query(u64::from(BPF_RB_AVAIL_DATA));
    let threshold = WAKEUP_BYTES.load();
    let past = unread.checked_rem(threshold).unwrap_or(u64::MAX);
    if unread >= threshold && past < AT_ONCE * size as u64 {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

#[inline(always)]
fn uid() -> u32 {
    bpf_get_current_uid_gid() as u32
}

#[inline(always)]
fn comm() -> [u8; COMM_LEN] {
    bpf_get_current_comm().unwrap_or_default()
}

/// Whether the thread's name contains the wanted text: compares under a mask at each of the places
/// where it could stand, which needs no memory access that the verifier would have to bound.
#[inline(always)]
fn comm_matches() -> bool {
    let comm = u128::from_le_bytes(comm());
    let (mut low, mut high) = (comm as u64, (comm >> 64) as u64);
    let (text, mask) = (COMM_TEXT.load(), COMM_MASK.load());
    for _ in 0..COMM_LEN {
        if low & mask[0] == text[0] && high & mask[1] == text[1] {
            return true;
        }
        low = (low >> 8) | (high << 56);
        high >>= 8;
    }
    false
}
