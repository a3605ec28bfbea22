//! What every probe shares: which threads are looked at, and how a finished stall is delivered or
//! counted as lost.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_STACK, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_uid_gid, bpf_get_smp_processor_id, bpf_ktime_get_ns,
        generated::bpf_get_stack,
    },
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use memtrace_common::{
    config::{filter, wanted},
    counter,
    record::{Comm, Followed, STACK_DEPTH, Stack, Stall, side},
};

use crate::{
    atomic,
    kernel::{self, Task},
    settings::{self, PIDS, TIDS, config},
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
    pub task: Task,
}

impl Thread {
    #[inline(always)]
    pub fn current() -> Self {
        let task = Task::current();
        let (pid, tid) = task.ids();
        Self { pid, tid, task }
    }

    /// Whether the user wants to hear of it.
    #[inline(always)]
    pub fn passes(self) -> bool {
        let filters = config!(filters);
        if filters & filter::PID != 0 && PIDS.get_ptr(self.pid).is_none() {
            return false;
        }
        if filters & filter::TID != 0 && TIDS.get_ptr(self.tid).is_none() {
            return false;
        }
        if filters & filter::UID != 0 && uid() != config!(uid) {
            return false;
        }
        if filters & filter::COMM != 0 && !self.comm_matches() {
            return false;
        }
        if filters & filter::CGROUP_V2 != 0 && !kernel::in_cgroup(config!(cgroup), false) {
            return false;
        }
        if filters & filter::CGROUP_V1 != 0 && !kernel::in_cgroup(config!(cgroup), true) {
            return false;
        }
        true
    }

    /// The part of a record that every mechanism has, for a stall that ends now.
    #[inline(always)]
    pub fn stall(self, start_ns: u64, duration_ns: u64, mechanism: u32) -> Stall {
        Stall {
            start_ns,
            duration_ns,
            pid: self.pid,
            tid: self.tid,
            uid: if settings::wanted(wanted::UID) { uid() } else { 0 },
            gfp: 0,
            comm: self.comm(),
            known: 0,
            // SAFETY: the helper has no precondition.
            cpu: unsafe { bpf_get_smp_processor_id() as u16 },
            order: 0,
            mechanism: mechanism as u8,
        }
    }

    /// The thread's name, or the process's where that is wanted and can be had.
    #[inline(always)]
    pub fn comm(self) -> Comm {
        if settings::wanted(wanted::PROCESS_NAME)
            && let Some(comm) = self.task.process_comm()
        {
            return comm;
        }
        self.thread_comm()
    }

    #[inline(always)]
    fn thread_comm(self) -> Comm {
        self.task.comm().unwrap_or_default()
    }

    /// Whether the thread's name contains the wanted text: compares under a mask at each of the places
    /// where it could stand, which needs no memory access that the verifier would have to bound.
    #[inline(always)]
    fn comm_matches(self) -> bool {
        let [mut low, mut high] = self.thread_comm();
        let (text, mask) = (config!(comm_text), config!(comm_mask));
        for _ in 0..size_of::<Comm>() {
            if low & mask[0] == text[0] && high & mask[1] == text[1] {
                return true;
            }
            low = (low >> 8) | (high << 56);
            high >>= 8;
        }
        false
    }
}

/// How long a stall lasted that ends now, in nanoseconds; nothing where that is less than the user
/// wants.
#[inline(always)]
pub fn duration_since(start_ns: u64) -> Option<u64> {
    let duration_ns = now().wrapping_sub(start_ns);
    (duration_ns >= config!(min_ns)).then_some(duration_ns)
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
        // SAFETY: it is a value of a map.
        unsafe { atomic::add(value, 1) };
    }
}

/// Delivers a record that `fill` writes into its place in the ring buffer, or counts it as lost.
#[inline(always)]
pub fn deliver_in_place<T: 'static>(fill: impl FnOnce(*mut T)) {
    let Some(mut entry) = STALLS.reserve::<T>(0) else {
        return count(counter::LOST);
    };
    fill(entry.as_mut_ptr());
    entry.submit(wakeup(size_of::<T>()));
}

/// Delivers `record`, with the stacks that are wanted, or counts it as lost.
#[inline(always)]
pub fn deliver<T: Copy + 'static>(ctx: &impl EbpfContext, record: T) {
    match (settings::wanted(wanted::STACK), settings::wanted(wanted::USER_STACK)) {
        (false, false) => {
            let Some(mut entry) = STALLS.reserve::<T>(0) else {
                return count(counter::LOST);
            };
            entry.write(record);
            entry.submit(wakeup(size_of::<T>()));
        }
        (true, false) => deliver_with(ctx, record, [side::KERNEL]),
        (false, true) => deliver_with(ctx, record, [side::USER]),
        (true, true) => deliver_with(ctx, record, [side::KERNEL, side::USER]),
    }
}

/// Delivers `record` with the stacks of these sides.
#[inline(always)]
fn deliver_with<T: Copy + 'static, const N: usize>(
    ctx: &impl EbpfContext,
    record: T,
    sides: [u32; N],
) {
    let Some(mut entry) = STALLS.reserve::<Followed<T, [Stack; N]>>(0) else {
        return count(counter::LOST);
    };
    let place = entry.as_mut_ptr();
    // SAFETY: the entry has room for the record, which comes first.
    unsafe { place.cast::<T>().write(record) };
    // SAFETY: the stacks are a part of the entry; only their address is taken.
    let mut stack = unsafe { &raw mut (*place).by }.cast::<Stack>();
    for side in sides {
        // SAFETY: there are as many stacks as sides.
        unsafe { take_stack(ctx, stack, side) };
        // SAFETY: the end of the stacks at most.
        stack = unsafe { stack.add(1) };
    }
    entry.submit(wakeup(size_of::<Followed<T, [Stack; N]>>()));
}

/// Fills `stack` with the current thread's.
///
/// # Safety
/// `stack` must be valid for writes.
#[inline(always)]
unsafe fn take_stack(ctx: &impl EbpfContext, stack: *mut Stack, side: u32) {
    let flags = if side == side::USER { u64::from(BPF_F_USER_STACK) } else { 0 };
    // SAFETY: only the address of the frames is taken.
    let frames = unsafe { &raw mut (*stack).frames };
    let room = (STACK_DEPTH * size_of::<u64>()) as u32;
    // SAFETY: the helper writes at most `room` bytes, the size of the frames.
    let len = unsafe { bpf_get_stack(ctx.as_ptr(), frames.cast(), room, flags) };
    // SAFETY: the caller's word.
    unsafe { (*stack).len = len as i32 };
    // SAFETY: likewise.
    unsafe { (*stack).side = side };
}

/// Wakes the reader up when the record of this size passes a multiple of the threshold, give or
/// take what other CPUs add at the same time. Waking up costs ten times what the rest of a probe
/// does, so the reader looks by itself as well.
#[inline(always)]
fn wakeup(size: usize) -> u64 {
    let unread = STALLS.query(u64::from(BPF_RB_AVAIL_DATA));
    let threshold = config!(wakeup_bytes);
    // A power of two.
    let past = unread & threshold.wrapping_sub(1);
    if unread >= threshold && past < AT_ONCE * size as u64 {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

#[inline(always)]
pub fn uid() -> u32 {
    bpf_get_current_uid_gid() as u32
}
