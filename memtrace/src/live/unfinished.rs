//! Stalls that have begun and not ended.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use memtrace_common::in_progress::{Compaction, Reclaim, Slot};
use rustix::mm::ProtFlags;

use super::{LiveError, load, mapping::Mapping};

/// Bytes of the slots to map at once.
const PART: usize = 64 << 10;

const RECLAIM: usize = size_of::<Reclaim>() / size_of::<u64>();
const COMPACTION: usize = size_of::<Compaction>() / size_of::<u64>();

/// The tables in which the probes keep them.
pub(super) struct Unfinished {
    slots: OwnedFd,
    /// Bytes of all slots.
    size: usize,
    reclaims: HashMap<MapData, [u32; 2], [u64; RECLAIM]>,
    compactions: HashMap<MapData, u32, [u64; COMPACTION]>,
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
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> Result<u64, LiveError> {
        let in_slots =
            self.in_slots().map_err(|error| LiveError::map("SLOTS", MapError::IoError(error)))?;
        Ok(in_slots
            + entries(&self.reclaims, "RECLAIMS")?
            + entries(&self.compactions, "COMPACTIONS")?)
    }

    fn in_slots(&self) -> io::Result<u64> {
        let page = rustix::param::page_size();
        let mut count = 0;
        for from in (0..self.size).step_by(PART.max(page)) {
            let len = (self.size - from).min(PART.max(page));
            let fd = self.slots.as_fd();
            let part = Mapping::new(fd, len.next_multiple_of(page), ProtFlags::READ, from)?;
            let owners = (0..len)
                .step_by(size_of::<Slot>())
                .map(|slot| part.half_word(slot + offset_of!(Slot, owner)).load(Ordering::Relaxed));
            count += owners.map(|owner| u64::from(owner != 0)).sum::<u64>();
        }
        Ok(count)
    }
}

/// Number of entries of a hash map.
fn entries<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<u64, LiveError> {
    let error = |error| LiveError::map(name, error);
    map.keys().try_fold(0, |count, key| key.map(|_| count + 1).map_err(error))
}
