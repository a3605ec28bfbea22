//! Reclaims that have begun, from their begin to their end.
//!
//! An insertion into a hash map and its removal cost more than all else that a probe does, an element
//! of an array next to nothing. So a reclaim is kept in the array's slot for its thread's id, and goes
//! into the hash map only where another thread has that slot, or where a thread can be in several
//! reclaims at once.

use core::mem::MaybeUninit;

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap},
};
use memtrace_common::{
    in_progress::{Reclaim, ReclaimKey, Slot},
    record::mechanism,
};

use crate::{atomic, settings::config};

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h): user space counts the slots in use, and the first one
/// begins on a page, so that none lies across two lines of the cache.
const MMAPABLE: u32 = 1 << 10;

/// User space sets its size, a power of two.
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(1, MMAPABLE);

/// Those that have no slot; user space sets its size.
#[map]
static RECLAIMS: HashMap<ReclaimKey, Reclaim> = HashMap::with_max_entries(1, 0);

/// How many there are in [`RECLAIMS`], so that no one looks there in vain.
#[map]
static WITHOUT_SLOT: Array<u64> = Array::with_max_entries(1, 0);

/// Keeps a reclaim of the current thread; whether there was room.
#[inline(always)]
pub fn keep(key: ReclaimKey, reclaim: Reclaim) -> bool {
    if let Some(slot) = slot(key)
        && (owns(slot, key) || claim(slot))
    {
        // SAFETY: the slot is a value of a map, which is there as long as the map is, and nobody
        // else's.
        unsafe { (*slot).reclaim = reclaim };
        set_owner(slot, Slot::key(key));
        return true;
    }
    keep_without_slot(key, &reclaim)
}

/// The reclaim of the current thread, if it was kept.
#[inline(always)]
pub fn find(key: ReclaimKey) -> Option<*mut Reclaim> {
    if let Some(slot) = slot(key)
        && owns(slot, key)
    {
        // SAFETY: as above; only the address of a part is taken.
        return Some(unsafe { &raw mut (*slot).reclaim });
    }
    if is_any_without_slot() { RECLAIMS.get_ptr_mut(key) } else { None }
}

/// The same, which is forgotten.
#[inline(always)]
pub fn take(key: ReclaimKey) -> Option<Reclaim> {
    if let Some(slot) = slot(key)
        && owns(slot, key)
    {
        // SAFETY: as above.
        let reclaim = unsafe { (*slot).reclaim };
        set_owner(slot, 0);
        release(slot);
        return Some(reclaim);
    }
    if !is_any_without_slot() {
        return None;
    }
    let mut reclaim = MaybeUninit::uninit();
    // SAFETY: written where it says so.
    take_without_slot(key, &mut reclaim).then(|| unsafe { reclaim.assume_init() })
}

/// Out of line, as all that is rare: what is not read does not have to come into the processor's
/// cache.
#[cold]
#[inline(never)]
fn keep_without_slot(key: ReclaimKey, reclaim: &Reclaim) -> bool {
    let Some(without_slot) = WITHOUT_SLOT.get_ptr_mut(0) else { return false };
    // Before it can be looked for, and too often where the thread's last end was missed.
    // SAFETY: it is a value of a map.
    unsafe { atomic::add(without_slot, 1) };
    let kept = RECLAIMS.insert(key, reclaim, 0).is_ok();
    if !kept {
        // SAFETY: as above.
        unsafe { atomic::add(without_slot, -1) };
    }
    kept
}

/// Whether the reclaim was written.
#[cold]
#[inline(never)]
fn take_without_slot(key: ReclaimKey, reclaim: &mut MaybeUninit<Reclaim>) -> bool {
    let Some(entry) = RECLAIMS.get_ptr(key) else { return false };
    // SAFETY: the entry is this thread's own, and only its end removes it.
    reclaim.write(unsafe { *entry });
    // Should it fail, the thread's next begin replaces the entry.
    if RECLAIMS.remove(key).is_ok()
        && let Some(without_slot) = WITHOUT_SLOT.get_ptr_mut(0)
    {
        // SAFETY: as above.
        unsafe { atomic::add(without_slot, -1) };
    }
    true
}

/// The slot for the key's thread. A thread in direct or memcg reclaim begins no other of the two, as
/// it may use the reserves meanwhile (`PF_MEMALLOC`).
#[inline(always)]
fn slot(key: ReclaimKey) -> Option<*mut Slot> {
    match key.mechanism {
        mechanism::DIRECT | mechanism::MEMCG => SLOTS.get_ptr_mut(key.tid & config!(slots_mask)),
        _ => None,
    }
}

/// Whether the slot is the current thread's, in this mechanism. Nobody else writes what stands for it
/// there.
#[inline(always)]
fn owns(slot: *mut Slot, key: ReclaimKey) -> bool {
    // SAFETY: as above; only the address of a part is taken.
    let owner = unsafe { &raw const (*slot).owner };
    // SAFETY: as above.
    unsafe { owner.read_volatile() == Slot::key(key) }
}

#[inline(always)]
fn set_owner(slot: *mut Slot, key: u32) {
    // SAFETY: as above; only the address of a part is taken.
    let owner = unsafe { &raw mut (*slot).owner };
    // SAFETY: as above.
    unsafe { owner.write_volatile(key) };
}

/// Takes the slot if it is free. Of several at once at most one gets it: only who finds nobody but
/// itself. Before 5.12 there is no other atomic operation than to add. On x86_64 that orders all reads
/// and writes around it; where it does not (arm64), an owner could be overwritten by the one before,
/// and its stall be counted as one without a begin.
#[inline(always)]
fn claim(slot: *mut Slot) -> bool {
    // SAFETY: as above; only the address of a part is taken.
    let claims = unsafe { &raw mut (*slot).claims };
    // SAFETY: as above.
    if unsafe { claims.read_volatile() } != 0 {
        return false;
    }
    // SAFETY: a slot is a value of a map.
    unsafe { atomic::add_u32(claims, 1) };
    // SAFETY: as above.
    let alone = unsafe { claims.read_volatile() } == 1;
    if !alone {
        // SAFETY: as above.
        unsafe { atomic::add_u32(claims, -1) };
    }
    alone
}

#[inline(always)]
fn release(slot: *mut Slot) {
    // SAFETY: as above; only the address of a part is taken.
    let claims = unsafe { &raw mut (*slot).claims };
    // SAFETY: as above.
    unsafe { atomic::add_u32(claims, -1) };
}

#[inline(always)]
fn is_any_without_slot() -> bool {
    // SAFETY: as above.
    WITHOUT_SLOT.get_ptr(0).is_some_and(|count| unsafe { count.read_volatile() } != 0)
}
