//! Counting stalls where they end, for histograms: of a thousand alike nothing has to travel but
//! their number.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap},
};
use memtrace_common::tally::{Key, LONGEST_NS, Tally, UNKNOWN, bucket, by};

use crate::{
    kernel,
    settings::config,
    stall::{Thread, uid},
};

/// User space sets its size.
#[map]
static TALLIES: HashMap<Key, Tally> = HashMap::with_max_entries(1, 0);

/// The present epoch; user space counts it up.
#[map]
static EPOCH: Array<u32> = Array::with_max_entries(1, 0);

/// Counts a stall of the current thread that ends now, if stalls are to be counted; where it could
/// not, the stall has to be delivered.
#[inline(always)]
pub fn count(thread: Thread, duration_ns: u64, kind: u32, order: Option<i64>) -> bool {
    if config!(by) == by::NOTHING || duration_ns > LONGEST_NS {
        return false;
    }
    let Some(epoch) = EPOCH.get_ptr(0) else { return false };
    // SAFETY: the value is there as long as the map is.
    let epoch = unsafe { epoch.read_volatile() };
    let key = key(thread, kind, order, epoch, bucket(duration_ns));
    if let Some(tally) = TALLIES.get_ptr_mut(key) {
        // SAFETY: likewise, and by its key it is written by this thread or this CPU only.
        unsafe { (*tally).add(duration_ns) };
        return true;
    }
    TALLIES.insert(key, Tally::one(duration_ns), u64::from(BPF_NOEXIST)).is_ok()
}

#[inline(always)]
fn key(thread: Thread, kind: u32, order: Option<i64>, epoch: u32, bucket: u16) -> Key {
    let Thread { pid, tid, .. } = thread;
    let id = match config!(by) {
        by::THREAD => u64::from(pid) << 32 | u64::from(tid),
        by::PROCESS => u64::from(pid),
        by::CGROUP => kernel::payer_id().unwrap_or(UNKNOWN),
        by::UID => u64::from(uid()),
        by::KIND => u64::from(kind),
        by::ORDER => order.map_or(UNKNOWN, i64::cast_unsigned),
        _ => 0,
    };
    let comm = match config!(by) {
        by::THREAD | by::PROCESS | by::COMM => thread.comm(),
        _ => [0; 2],
    };
    let cpu = match config!(by) {
        by::THREAD => 0,
        // SAFETY: the helper has no precondition.
        _ => unsafe { bpf_get_smp_processor_id() as u16 },
    };
    Key { id, comm, epoch, bucket, cpu }
}
