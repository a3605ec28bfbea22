//! Reports: what one or several recordings come to.
//!
//! What is wanted of them is gathered in one pass over their blocks, by as many threads as there are CPUs, though not
//! very many: each has a part of the blocks that follow one another, and what they have gathered is put together in
//! that order.

#[cfg(test)]
mod check;
pub mod csv;
mod diff;
mod export;
mod findings;
pub mod hlog;
pub mod html;
mod json;
mod keys;
mod longest;
mod losses;
mod many;
pub mod perfetto;
mod rows;
mod seconds;
mod serial;
mod sources;
pub mod stacks;
mod system;
mod table;
mod text;
mod text_system;
mod times;
mod totals;
mod worst;

#[cfg(test)]
mod tests;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::recording::{Block, Meta, Place, Recording};

pub use self::{diff::Diff, findings::Findings};

/// Most threads that gather: each may take some hundred MiB, if a file is made for that.
const MOST_THREADS: usize = 8;

/// Something that is gathered from recordings.
pub trait Gather: Send + Sized {
    /// Takes the next block of a recording, given by its number among all and what is known of it as a whole.
    fn block(&mut self, recording: usize, meta: &Meta, block: &Block);

    /// Takes what was gathered from the blocks that follow.
    fn merge(&mut self, later: Self);
}

impl<A: Gather, B: Gather> Gather for (A, B) {
    fn block(&mut self, recording: usize, meta: &Meta, block: &Block) {
        self.0.block(recording, meta, block);
        self.1.block(recording, meta, block);
    }

    fn merge(&mut self, later: Self) {
        self.0.merge(later.0);
        self.1.merge(later.1);
    }
}

impl<A: Gather> Gather for Option<A> {
    fn block(&mut self, recording: usize, meta: &Meta, block: &Block) {
        if let Some(gathered) = self {
            gathered.block(recording, meta, block);
        }
    }

    fn merge(&mut self, later: Self) {
        if let (Some(gathered), Some(later)) = (self, later) {
            gathered.merge(later);
        }
    }
}

/// The blocks of all recordings, each with the number of its recording, those of one in order of time. A block that
/// is in several, as a file was copied or two dumps have it, comes once.
pub fn blocks(recordings: &[Recording]) -> impl Iterator<Item = (usize, &Place)> {
    recordings.iter().enumerate().flat_map(move |(number, recording)| {
        let earlier = recordings.get(..number).unwrap_or_default();
        let kin: Vec<_> = earlier.iter().filter(|other| are_kin(other, recording)).collect();
        let is_new = move |place: &&Place| !kin.iter().any(|other| twin(other, place).is_some());
        recording.places.iter().filter(is_new).map(move |place| (number, place))
    })
}

/// Reads one of [`blocks`], from another recording that has it where it is damaged in its own.
#[must_use]
pub fn read(recordings: &[Recording], number: usize, place: &Place) -> Option<Block> {
    let recording = recordings.get(number)?;
    recording.block(place).ok().or_else(|| {
        let later = recordings.get(number + 1..)?.iter();
        let mut kin = later.filter(|other| are_kin(other, recording));
        kin.find_map(|other| other.block(twin(other, place)?).ok())
    })
}

/// Whether they are of the same run of memtrace, so that the same number is of the same block.
fn are_kin(a: &Recording, b: &Recording) -> bool {
    run(a) == run(b)
}

/// The run of memtrace that a recording is of, by its boot and when it began: the files of a flight recorder begin
/// later, each at a time of its own.
fn run(recording: &Recording) -> (&str, i64) {
    let Meta { boot, began_ns, run_ns, .. } = &recording.meta;
    (boot, if *run_ns == 0 { *began_ns } else { *run_ns })
}

/// When something in a block was, in nanoseconds since 1970, by the clock of the host as it was set when the block
/// began: the same as in what the host itself has logged. `monotonic_ns` is by `CLOCK_MONOTONIC`. Beyond what a number
/// has room for it is the nearest that it has.
#[must_use]
pub fn time_of_day(block: &Block, monotonic_ns: u64) -> i64 {
    block.epoch_ns().saturating_add_unsigned(monotonic_ns)
}

/// The same block in another recording.
fn twin<'a>(recording: &'a Recording, place: &Place) -> Option<&'a Place> {
    let at = recording.places.binary_search_by_key(&place.number, |other| other.number).ok()?;
    let other = &recording.places[at];
    (other.first_ns == place.first_ns && other.last_ns == place.last_ns).then_some(other)
}

/// Of each recording, how many of its blocks were left out of what was made of it, as they are damaged.
pub type LeftOut = Vec<u64>;

/// Gathers from all blocks of the recordings; what could not be read comes beside it. `done` counts the blocks as they
/// are done.
///
/// # Panics
/// Where `G` does.
pub fn gather<G: Gather>(
    recordings: &[Recording],
    make: impl Fn() -> G + Sync,
    done: &AtomicU64,
) -> (G, LeftOut) {
    let all: Vec<_> = blocks(recordings).collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
    let parts = all.chunks(all.len().div_ceil(threads).max(1));
    let gather_part = |part: &[(usize, &_)]| {
        let (mut gathered, mut left_out) = (make(), vec![0; recordings.len()]);
        for (number, place) in part {
            match read(recordings, *number, place) {
                Some(block) => gathered.block(*number, &recordings[*number].meta, &block),
                None => left_out[*number] += 1,
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        (gathered, left_out)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = parts.map(|part| scope.spawn(move || gather_part(part))).collect();
        let mut sum: Option<(G, LeftOut)> = None;
        for worker in workers {
            let (gathered, left_out) = worker.join().expect("it does not panic");
            match &mut sum {
                Some((all, all_left_out)) => {
                    all.merge(gathered);
                    all_left_out.iter_mut().zip(left_out).for_each(|(sum, more)| *sum += more);
                }
                None => sum = Some((gathered, left_out)),
            }
        }
        sum.unwrap_or_else(|| (make(), vec![0; recordings.len()]))
    })
}
