//! Histograms that the probes keep: taking what they have counted, each stall once.

use std::{io, os::fd::AsFd as _};

use aya::maps::{Array, HashMap, MapData, MapError};
use memtrace_common::tally::{Key, Tally};
use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

use super::LiveError;

const KEY: usize = size_of::<Key>() / size_of::<u64>();
const TALLY: usize = size_of::<Tally>() / size_of::<u64>();

/// Whether the kernel can tell when every running probe has come to its end. It cannot where some of
/// its CPUs do without a clock tick.
pub(super) fn can_be_taken() -> bool {
    membarrier_query().contains(MembarrierQuery::GLOBAL)
}

/// Waits until every probe that runs has come to its end, if the kernel can tell.
pub(super) fn wait_for_probes() {
    // Those that it cannot tell of are given some time to finish what they write.
    let _waited: rustix::io::Result<()> = membarrier(MembarrierCommand::Global);
}

/// What the probes count.
pub(super) struct Tallies {
    counted: Map,
    /// The same once more, to remove from it while it is gone through.
    taken: Map,
    epochs: Array<MapData, u32>,
    epoch: u32,
}

type Map = HashMap<MapData, [u64; KEY], [u64; TALLY]>;

impl Tallies {
    /// Of the maps `TALLIES` and `EPOCH`.
    pub(super) fn new(tallies: MapData, epochs: Array<MapData, u32>) -> Result<Self, MapError> {
        let again = MapData::from_fd(tallies.fd().as_fd().try_clone_to_owned()?)?;
        let [counted, taken] = [tallies, again].map(aya::maps::Map::HashMap);
        Ok(Self { counted: counted.try_into()?, taken: taken.try_into()?, epochs, epoch: 0 })
    }

    /// Takes all that was counted until now and gives it to `each`. Takes as long as every probe that
    /// runs now: some milliseconds.
    pub(super) fn take(&mut self, mut each: impl FnMut(Key, Tally)) -> Result<(), LiveError> {
        let map_error = |error| LiveError::map("TALLIES", error);
        let past = self.epoch;
        self.epoch = past.wrapping_add(1);
        self.epochs.set(0, self.epoch, 0).map_err(|error| LiveError::map("EPOCH", error))?;
        // A probe may have read the past one just before.
        membarrier(MembarrierCommand::Global)
            .map_err(|error| map_error(MapError::IoError(io::Error::from(error))))?;
        let mut keys = self.counted.keys().peekable();
        while let Some(words) = keys.next() {
            let words = words.map_err(map_error)?;
            // The next one is found by this one, as long as this one is there.
            let _next = keys.peek();
            let key: Key = zerocopy::transmute!(words);
            if key.epoch != past {
                continue;
            }
            let tally = self.counted.get(&words, 0).map_err(map_error)?;
            self.taken.remove(&words).map_err(map_error)?;
            each(key, zerocopy::transmute!(tally));
        }
        Ok(())
    }
}
