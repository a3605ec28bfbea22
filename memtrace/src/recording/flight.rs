//! The flight recorder's memory: the finished blocks of the last while, ready to be written to a file.
//!
//! All of the memory is there from the beginning. Who writes a file asks for one block after the other, and until
//! it has them they stay, as long as there is memory.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

/// Least memory in bytes: several blocks, however badly they can be compressed.
pub const LEAST_MEMORY: usize = 4 << 20;
/// Most blocks; full ones are never so many, and of others there are a few each second.
const MOST_BLOCKS: usize = 1 << 15;

/// The blocks of the last while.
#[derive(Debug)]
pub struct Flight {
    /// The blocks, one after the other.
    bytes: VecDeque<u8>,
    blocks: VecDeque<Kept>,
    memory: usize,
    before_ns: u64,
    /// Which of all blocks is the first that is kept.
    first: u64,
    /// Whatever ended after this is kept.
    since_ns: u64,
    /// From this one on they are not too old.
    held: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    len: usize,
    finished_ns: u64,
}

impl Flight {
    /// Room for `memory` bytes, [`LEAST_MEMORY`] at least; blocks finished more than `before` ago are dropped. Takes
    /// the memory now. `now_ns` is the time of `CLOCK_MONOTONIC`, as in all that follows.
    #[must_use]
    pub fn new(memory: usize, before: Duration, now_ns: u64) -> Self {
        let memory = memory.max(LEAST_MEMORY);
        // Not zeros, which are pages that have yet to be found.
        let mut bytes = VecDeque::from(black_box(vec![1; memory]));
        bytes.clear();
        let mut blocks =
            VecDeque::from(black_box(vec![Kept { len: 1, finished_ns: 1 }; MOST_BLOCKS]));
        blocks.clear();
        Self {
            bytes,
            blocks,
            memory,
            before_ns: u64::try_from(before.as_nanos()).unwrap_or(u64::MAX),
            first: 0,
            since_ns: now_ns,
            held: None,
        }
    }

    /// Keeps a block as [`block`](super::file::block) has made it, and gives up those that are too old or for which
    /// there is no room any more. A block that is larger than the memory is not kept.
    pub fn push(&mut self, block: &[u8], now_ns: u64) {
        let oldest_ns = now_ns.saturating_sub(self.before_ns);
        while let Some(kept) = self.blocks.front() {
            let is_held = self.held.is_some_and(|held| held <= self.first);
            let is_old = kept.finished_ns < oldest_ns && !is_held;
            let is_full =
                self.bytes.len() + block.len() > self.memory || self.blocks.len() >= MOST_BLOCKS;
            if !is_old && !is_full {
                break;
            }
            self.drop_first();
        }
        self.blocks.push_back(Kept { len: block.len(), finished_ns: now_ns });
        if block.len() > self.memory {
            self.blocks[0].len = 0;
            self.drop_first();
            return;
        }
        self.bytes.extend(block);
    }

    fn drop_first(&mut self) {
        if let Some(Kept { len, finished_ns }) = self.blocks.pop_front() {
            self.bytes.drain(..len);
            self.first += 1;
            self.since_ns = finished_ns;
        }
    }

    /// How far back it reaches: whatever ended after this time is kept.
    #[must_use]
    pub fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// Bytes of all blocks that are kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The blocks that are kept, counted from the first there ever was.
    #[must_use]
    pub fn numbers(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.blocks.len() as u64
    }

    /// The first of them, in two parts of which the second may be empty, and those after it.
    #[must_use]
    pub fn from(&self, number: u64) -> Blocks<'_> {
        let skipped = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let skipped = skipped.min(self.blocks.len());
        let offset = self.blocks.range(..skipped).map(|kept| kept.len).sum();
        Blocks { flight: self, at: skipped, offset }
    }

    /// Keeps blocks from this one on whatever their age, until that is taken back.
    pub fn hold(&mut self, from: Option<u64>) {
        self.held = from;
    }
}

/// Blocks that are kept, each in two parts of which the second may be empty.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    flight: &'a Flight,
    at: usize,
    offset: usize,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = [&'a [u8]; 2];

    fn next(&mut self) -> Option<Self::Item> {
        let Kept { len, .. } = self.flight.blocks.get(self.at)?;
        let range = self.offset..self.offset + len;
        (self.at, self.offset) = (self.at + 1, range.end);
        let (front, back) = self.flight.bytes.as_slices();
        let part = |slice: &'a [u8], begin: usize| {
            let [from, to] =
                [range.start, range.end].map(|at| at.clamp(begin, begin + slice.len()));
            &slice[from - begin..to - begin]
        };
        Some([part(front, 0), part(back, front.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn flight() -> Flight {
        Flight::new(LEAST_MEMORY, Duration::from_secs(30), 100 * SECOND)
    }

    fn all(flight: &Flight) -> Vec<Vec<u8>> {
        flight.from(0).map(|parts| parts.concat()).collect()
    }

    #[test]
    fn blocks_are_kept_for_their_time() {
        let mut flight = flight();
        assert_eq!((flight.since_ns(), flight.numbers()), (100 * SECOND, 0..0));
        for second in 101..=131_u8 {
            flight.push(&[second; 3], u64::from(second) * SECOND);
        }
        assert_eq!((flight.since_ns(), flight.numbers()), (100 * SECOND, 0..31));
        flight.push(b"last", 132 * SECOND);
        assert_eq!((flight.since_ns(), flight.numbers()), (101 * SECOND, 1..32));
        let kept = all(&flight);
        assert_eq!((&*kept[0], &*kept[30]), (&[102; 3][..], &b"last"[..]));
        assert_eq!(flight.bytes(), 30 * 3 + 4);
        let later: Vec<_> = flight.from(30).map(|parts| parts.concat()).collect();
        assert_eq!(later, [&[131; 3][..], b"last"]);
        assert_eq!(flight.from(32).count(), 0);
        assert_eq!(flight.from(u64::MAX).count(), 0);
    }

    #[test]
    fn memory_does_not_grow_and_blocks_stay_whole() {
        let mut flight = flight();
        let (capacity, blocks) = (flight.bytes.capacity(), flight.blocks.capacity());
        let len = |number: usize| 100_000 + number * 7919 % 200_000;
        for number in 0..1000_usize {
            flight.push(&vec![number.to_le_bytes()[0]; len(number)], 100 * SECOND);
            assert!(flight.bytes() <= LEAST_MEMORY);
            let mut expected = usize::try_from(flight.numbers().start).expect("it is small");
            for block in all(&flight) {
                assert_eq!(block, vec![expected.to_le_bytes()[0]; len(expected)]);
                expected += 1;
            }
            assert_eq!(expected, number + 1);
        }
        assert!(flight.bytes() > LEAST_MEMORY - 300_000, "{}", flight.bytes());
        for _ in 0..MOST_BLOCKS + 1000 {
            flight.push(b"x", 100 * SECOND);
        }
        assert_eq!(flight.blocks.len(), MOST_BLOCKS);
        assert_eq!((flight.bytes.capacity(), flight.blocks.capacity()), (capacity, blocks));
    }

    #[test]
    fn a_block_that_is_too_large_is_not_kept() {
        let mut flight = flight();
        flight.push(b"small", 101 * SECOND);
        flight.push(&vec![0; LEAST_MEMORY + 1], 102 * SECOND);
        assert_eq!((flight.bytes(), flight.numbers()), (0, 2..2));
        assert_eq!(flight.since_ns(), 102 * SECOND);
        flight.push(&vec![7; LEAST_MEMORY], 103 * SECOND);
        assert_eq!(flight.numbers(), 2..3);
    }

    #[test]
    fn what_is_held_is_given_up_for_room_only() {
        let mut flight = flight();
        for second in 101..=110 {
            flight.push(b"block", second * SECOND);
        }
        flight.hold(Some(4));
        flight.push(b"block", 500 * SECOND);
        assert_eq!(flight.numbers(), 4..11);
        flight.push(&vec![0; LEAST_MEMORY], 501 * SECOND);
        assert_eq!(flight.numbers(), 11..12);
        flight.hold(None);
        flight.push(b"", 600 * SECOND);
        assert_eq!(flight.numbers(), 12..13);
    }
}
