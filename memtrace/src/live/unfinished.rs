//! Stalls that have begun and not ended.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use memtrace_common::{
    in_progress::{Compaction, Reclaim, Scope, Slot},
    record::mechanism,
};
use rustix::mm::ProtFlags;

use super::{LiveError, load, mapping::Mapping};

/// Bytes of the slots to map at once.
const PART: usize = 64 << 10;

const RECLAIM: usize = size_of::<Reclaim>() / size_of::<u64>();
const COMPACTION: usize = size_of::<Compaction>() / size_of::<u64>();
const SCOPE: usize = size_of::<Scope>() / size_of::<u64>();

/// The tables in which the probes keep them.
pub(super) struct Unfinished {
    slots: OwnedFd,
    /// Bytes of all slots.
    size: usize,
    reclaims: HashMap<MapData, [u32; 2], [u64; RECLAIM]>,
    compactions: HashMap<MapData, u32, [u64; COMPACTION]>,
    scopes: HashMap<MapData, u32, [u64; SCOPE]>,
}

impl Unfinished {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, LiveError> {
        let (slots, count) = load::take(ebpf, "SLOTS", |map| match map {
            Map::Array(map) => {
                let count = map.info()?.max_entries();
                Ok((map.fd().as_fd().try_clone_to_owned()?, count))
            }
            _ => Err(MapError::InvalidName { name: "SLOTS".to_owned() }),
        })?;
        Ok(Self {
            slots,
            size: count as usize * size_of::<Slot>(),
            reclaims: load::take(ebpf, "RECLAIMS", HashMap::try_from)?,
            compactions: load::take(ebpf, "COMPACTIONS", HashMap::try_from)?,
            scopes: load::take(ebpf, "SCOPES", HashMap::try_from)?,
        })
    }

    /// When the one that a thread is in began, in nanoseconds of `CLOCK_MONOTONIC`: that is the first
    /// word in each of the tables.
    pub(super) fn begun_ns(&self, tid: u32) -> Option<u64> {
        let scope = self.scopes.get(&tid, 0).map(|[begun_ns, ..]| begun_ns);
        let compaction = || self.compactions.get(&tid, 0).map(|[begun_ns, ..]| begun_ns);
        let reclaims = [mechanism::DIRECT, mechanism::MEMCG, mechanism::SOFTLIMIT, mechanism::NODE];
        let reclaim = |mechanism| self.reclaims.get(&[tid, mechanism], 0);
        scope
            .or_else(|_| compaction())
            .ok()
            .or_else(|| in_slot(self.slots.as_fd(), self.size, tid))
            .or_else(|| {
                reclaims.into_iter().find_map(|it| reclaim(it).ok()).map(|[begun_ns, ..]| begun_ns)
            })
    }

    /// How many there are.
    pub(super) fn count(&self) -> Result<u64, LiveError> {
        // What else they are in is in their scope.
        let scopes = entries(&self.scopes, "SCOPES")?;
        if scopes != 0 {
            return Ok(scopes);
        }
        let in_slots = owners(self.slots.as_fd(), self.size)
            .map_err(|error| LiveError::map("SLOTS", MapError::IoError(error)))?;
        Ok(in_slots
            + entries(&self.reclaims, "RECLAIMS")?
            + entries(&self.compactions, "COMPACTIONS")?)
    }
}

/// When the reclaim in a thread's slot, of slots that are together `size` bytes, began, if it is the thread's.
fn in_slot(slots: BorrowedFd<'_>, size: usize, tid: u32) -> Option<u64> {
    const START: usize = offset_of!(Slot, reclaim) + offset_of!(Reclaim, start_ns);
    let page = rustix::param::page_size();
    // They are a power of two.
    let slot = (tid as usize * size_of::<Slot>()) & size.checked_sub(1)?;
    let part = Mapping::new(slots, page, ProtFlags::READ, slot & !(page - 1)).ok()?;
    let word = |at| part.half_word((slot & (page - 1)) + at).load(Ordering::Relaxed);
    // The lower two bits of the owner are the mechanism.
    let is_own = word(offset_of!(Slot, owner)) >> 2 == tid;
    is_own.then(|| u64::from(word(START)) | u64::from(word(START + size_of::<u32>())) << 32)
}

/// How many of the slots, together `size` bytes, somebody has.
fn owners(slots: BorrowedFd<'_>, size: usize) -> io::Result<u64> {
    let page = rustix::param::page_size();
    let mut count = 0;
    for from in (0..size).step_by(PART.max(page)) {
        let len = (size - from).min(PART.max(page));
        let part = Mapping::new(slots, len.next_multiple_of(page), ProtFlags::READ, from)?;
        let owners = (0..len)
            .step_by(size_of::<Slot>())
            .map(|slot| part.half_word(slot + offset_of!(Slot, owner)).load(Ordering::Relaxed));
        count += owners.map(|owner| u64::from(owner != 0)).sum::<u64>();
    }
    Ok(count)
}

/// Number of entries of a hash map.
fn entries<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<u64, LiveError> {
    let error = |error| LiveError::map(name, error);
    map.keys().try_fold(0, |count, key| key.map(|_| count + 1).map_err(error))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use super::{super::mapping::tests::memory, *};

    const SLOT: usize = size_of::<Slot>();

    fn set_owner(slots: &File, slot: usize, owner: u32) {
        let at = slot * SLOT + offset_of!(Slot, owner);
        slots.write_all_at(&owner.to_ne_bytes(), at as u64).unwrap();
    }

    /// So many slots that somebody had, and nobody has.
    fn unowned(count: usize) -> File {
        let page = rustix::param::page_size();
        let len = (count * SLOT).next_multiple_of(page) + PART;
        let slots = memory(len);
        // All other fields are left as they were, and behind the last slot there is no slot.
        slots.write_all_at(&vec![0xff; len], 0).unwrap();
        for slot in 0..count {
            set_owner(&slots, slot, 0);
        }
        slots
    }

    #[test]
    fn owners_are_counted_in_every_part() {
        let part = PART.max(rustix::param::page_size()) / SLOT;
        // The last part is shorter, and ends in the midst of a page, with one, or with its first slot.
        let page = rustix::param::page_size() / SLOT;
        for rest in [page + 3, page, 1] {
            let count = 2 * part + rest;
            let slots = unowned(count);
            let owners = || owners(slots.as_fd(), count * SLOT).unwrap();
            assert_eq!(owners(), 0);
            let mut owned = vec![0, part - 1, part, 2 * part - 1, 2 * part, count - 1];
            owned.dedup();
            for (number, &slot) in owned.iter().enumerate() {
                set_owner(&slots, slot, 1 << (5 * number));
                assert_eq!(owners(), number as u64 + 1, "slot {slot} of {count}");
            }
            for (number, &slot) in owned.iter().enumerate() {
                set_owner(&slots, slot, 0);
                assert_eq!(owners(), (owned.len() - number - 1) as u64, "slot {slot} of {count}");
            }
        }
    }

    #[test]
    fn the_reclaim_in_a_slot_is_the_threads_own() {
        let slots = unowned(256);
        let size = 256 * SLOT;
        set_owner(&slots, 5, (256 + 5) << 2 | mechanism::MEMCG);
        let begun_ns = 0x1234_5678_9abc_def0_u64;
        let at = 5 * SLOT + offset_of!(Slot, reclaim) + offset_of!(Reclaim, start_ns);
        slots.write_all_at(&begun_ns.to_ne_bytes(), at as u64).unwrap();
        let in_slot = |tid| in_slot(slots.as_fd(), size, tid);
        assert_eq!(in_slot(256 + 5), Some(begun_ns));
        assert_eq!(in_slot(5), None);
        assert_eq!(in_slot(256 + 6), None);
    }

    #[test]
    fn owners_are_counted_in_a_single_part() {
        let part = PART.max(rustix::param::page_size()) / SLOT;
        for count in [1, 2, part - 1, part] {
            let slots = unowned(count);
            for slot in 0..count {
                set_owner(&slots, slot, u32::MAX);
            }
            assert_eq!(owners(slots.as_fd(), count * SLOT).unwrap(), count as u64);
        }
    }
}
