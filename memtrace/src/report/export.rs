//! What the exports share: blocks one after another with their names, hosts told apart, and stacks as text.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;

use super::{LeftOut, blocks, read};
use crate::names::Names;
use crate::recording::{Block, Place, Recording};
use crate::symbols::Frame;

/// Most bytes of a function's name: more than a recorder writes.
const MOST_NAME: usize = 512;
/// Most bytes of texts of stacks that are remembered of a block.
const MOST_TEXT: usize = 16 << 20;

/// Calls `each` with every block that can be read, the number of its recording and the names of what is in it. `done`
/// counts the blocks as they are done.
pub fn each_block<E>(
    recordings: &[Recording],
    done: &AtomicU64,
    mut each: impl FnMut(usize, &Block, &mut Names) -> Result<(), E>,
) -> Result<LeftOut, E> {
    each_place(recordings, blocks(recordings), done, |number, _, block| {
        each(number, block, &mut block.names(&recordings[number].meta))
    })
}

/// Reads these blocks of recordings, each given with the number of its recording, and calls `each` with those that can
/// be read.
pub fn each_place<'a, E>(
    recordings: &[Recording],
    places: impl IntoIterator<Item = (usize, &'a Place)>,
    done: &AtomicU64,
    mut each: impl FnMut(usize, &Place, &Block) -> Result<(), E>,
) -> Result<LeftOut, E> {
    let mut left_out = vec![0; recordings.len()];
    for (number, place) in places {
        match read(recordings, number, place) {
            Some(block) => each(number, place, &block)?,
            None => left_out[number] += 1,
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(left_out)
}

/// Paths of cgroups by id.
pub type Paths<'a> = HashMap<u64, &'a [u8], RandomState>;

/// The paths of a block's cgroups, where they were found.
pub fn paths(block: &Block) -> Paths<'_> {
    block.paths().filter_map(|(id, path)| Some((id, path?))).collect()
}

/// Time of day in nanoseconds since 1970 at `at_ns` nanoseconds of a clock whose zero was at `epoch_ns`; beyond what
/// a number has room for the nearest that it has.
pub fn since_1970_ns(epoch_ns: i64, at_ns: u64) -> i64 {
    epoch_ns.saturating_add_unsigned(at_ns)
}

/// The function's name.
pub fn function(frame: &Frame) -> &str {
    let name = frame.function();
    &name[..name.floor_char_boundary(MOST_NAME)]
}

/// Kernel stacks as text, by their numbers in one block: `outer;inner`.
#[derive(Default)]
pub struct Stacks {
    known: HashMap<u32, String, RandomState>,
    bytes: usize,
    last: String,
}

impl Stacks {
    /// The text of a stack; empty where there is none.
    pub fn text(&mut self, number: u32, block: &Block, names: &mut Names) -> &str {
        if number == 0 {
            return "";
        }
        // Those of a recorder are some hundreds, each again and again.
        if !self.known.contains_key(&number) {
            let text = text(&names.symbols.kernel(block.stack(number)));
            if self.bytes + text.len() > MOST_TEXT {
                self.last = text;
                return &self.last;
            }
            self.bytes += text.len();
            self.known.insert(number, text);
        }
        self.known.get(&number).map_or("", String::as_str)
    }
}

/// The frames of a stack, given innermost first, as `outer;inner`.
pub fn text(frames: &[Rc<Frame>]) -> String {
    let functions: Vec<_> =
        frames.iter().rev().map(|frame| function(frame).replace(';', ":")).collect();
    functions.join(";")
}

/// A boot of a host: its times are of one clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Its number among those of all recordings.
    pub number: usize,
    /// Time of day when that clock was zero, in nanoseconds since 1970, as the host knew it in the end: until then
    /// its clock may have been set.
    pub epoch_ns: i64,
    /// The time of its last block.
    last_ns: u64,
}

/// The boot of each recording. That of which no block can be read is later than all others.
pub fn boots(recordings: &[Recording]) -> Vec<Boot> {
    let mut known: HashMap<(&str, &str), Boot, RandomState> = HashMap::default();
    for recording in recordings {
        let number = known.len();
        let known =
            known.entry(id(recording)).or_insert(Boot { number, epoch_ns: i64::MAX, last_ns: 0 });
        if let Some((place, epoch_ns)) = last_epoch_ns(recording)
            && place.last_ns >= known.last_ns
        {
            (known.epoch_ns, known.last_ns) = (epoch_ns, place.last_ns);
        }
    }
    recordings.iter().map(|recording| known[&id(recording)]).collect()
}

fn id(recording: &Recording) -> (&str, &str) {
    (&recording.meta.host, &recording.meta.boot)
}

fn last_epoch_ns(recording: &Recording) -> Option<(&Place, i64)> {
    let mut places = recording.places.iter().rev();
    places.find_map(|place| Some((place, recording.block(place).ok()?.epoch_ns())))
}
