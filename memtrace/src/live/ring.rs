//! The ring buffer through which the probes deliver.
//!
//! aya's own reader maps the data twice in a row, so that a record that goes round the end of the
//! buffer lies in one piece. All mapped pages count as resident at once, and that would be most of
//! what memtrace takes: here a window is mapped, which moves on with the reading, and a record that
//! goes over its end is put together. Layout: kernel/bpf/ringbuf.c.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
};

use aya::maps::MapData;
use rustix::mm::ProtFlags;

use super::mapping::Mapping;

/// In a record's length: the probe is still writing it.
const BUSY: u32 = 1 << 31;
/// In a record's length: the probe gave it up.
const DISCARDED: u32 = 1 << 30;
/// Bytes in front of each record: its length, and where its page is.
const HEADER: usize = 8;
/// Most bytes of the data to map. A record is far shorter.
const WINDOW: usize = 512 << 10;

/// The reading end.
pub(super) struct Ring {
    descriptor: OwnedFd,
    /// How far was read; the kernel sees it.
    consumer: Mapping,
    /// How far was written.
    producer: Mapping,
    /// The data from `from` on.
    window: Mapping,
    from: usize,
    /// Size of the data, a power of two.
    size: usize,
    page: usize,
    /// A record that goes over the end of the window, put together.
    whole: Vec<u8>,
}

impl Ring {
    /// Opens the ring buffer of `map`.
    pub(super) fn open(map: &MapData, size: u32) -> io::Result<Self> {
        let size = size as usize;
        Self::over(map.fd().as_fd().try_clone_to_owned()?, size, size.min(WINDOW))
    }

    /// Opens a ring buffer of `size` bytes of data, of which `window` are mapped at once: both are
    /// powers of two, in whole pages.
    fn over(descriptor: OwnedFd, size: usize, window: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let fd = descriptor.as_fd();
        let consumer = Mapping::new(fd, page, ProtFlags::READ | ProtFlags::WRITE, 0)?;
        let producer = Mapping::new(fd, page, ProtFlags::READ, page)?;
        let window = Mapping::new(fd, window, ProtFlags::READ, 2 * page)?;
        let whole = Vec::with_capacity(page);
        Ok(Self { descriptor, consumer, producer, window, from: 0, size, page, whole })
    }

    /// Reads the next record with `read`, if one is waiting. An error leaves it there.
    pub(super) fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        loop {
            // Only this end moves it.
            let consumed = self.consumer.first_word().load(Ordering::Relaxed);
            if consumed == self.producer.first_word().load(Ordering::Acquire) {
                return Ok(None);
            }
            let at = consumed & (self.size - 1);
            self.show(at)?;
            // Records begin at multiples of 8.
            let header = self.window.half_word(at - self.from).load(Ordering::Acquire);
            if header & BUSY != 0 {
                return Ok(None);
            }
            let len = (header & !(BUSY | DISCARDED)) as usize;
            let next = consumed.wrapping_add((HEADER + len).next_multiple_of(HEADER));
            if header & DISCARDED != 0 {
                self.consumer.first_word().store(next, Ordering::Release);
                continue;
            }
            let value = read(self.record((at + HEADER) & (self.size - 1), len)?);
            self.consumer.first_word().store(next, Ordering::Release);
            return Ok(Some(value));
        }
    }

    /// The `len` bytes of a record from `start` on, which is written and not yet consumed.
    fn record(&mut self, start: usize, len: usize) -> io::Result<&[u8]> {
        self.show(start)?;
        let here = len.min(self.from + self.window.len() - start);
        if here == len {
            // SAFETY: the probes leave it alone until it is consumed.
            return Ok(unsafe { self.window.bytes(start - self.from, len) });
        }
        self.whole.clear();
        // SAFETY: as above.
        self.whole.extend_from_slice(unsafe { self.window.bytes(start - self.from, here) });
        self.show((start + here) & (self.size - 1))?;
        // SAFETY: as above.
        self.whole.extend_from_slice(unsafe { self.window.bytes(0, len - here) });
        Ok(&self.whole)
    }

    /// Moves the window to where `at` is in it.
    fn show(&mut self, at: usize) -> io::Result<()> {
        let len = self.window.len();
        if !(self.from..self.from + len).contains(&at) {
            let from = at & !(len - 1);
            let fd = self.descriptor.as_fd();
            self.window = Mapping::new(fd, len, ProtFlags::READ, 2 * self.page + from)?;
            self.from = from;
        }
        Ok(())
    }

    /// Whether all that was reserved is read: a record may still be in the writing.
    pub(super) fn is_drained(&self) -> bool {
        let consumed = self.consumer.first_word().load(Ordering::Relaxed);
        consumed == self.producer.first_word().load(Ordering::Acquire)
    }

    /// A descriptor that is readable when the probes ask to be heard.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use super::{super::mapping::tests::memory, *};

    /// Lengths of records of the probes', and one that ends in the midst of a word.
    const LENGTHS: [usize; 4] = [64, 104, 1088, 13];

    /// The writing end, over ordinary memory.
    struct Probes {
        memory: File,
        page: usize,
        size: usize,
        produced: usize,
        /// How many records it has written.
        count: usize,
    }

    impl Probes {
        /// A ring buffer of `pages`, of which the reader sees `window` at once, with all that is in
        /// front of the position `start` read.
        fn new(pages: usize, window: usize, start: usize) -> (Self, Ring) {
            let page = rustix::param::page_size();
            let size = pages * page;
            let memory = memory(2 * page + 2 * size);
            // Nothing of what was not written makes a record, and nothing behind the ring's end.
            memory.write_all_at(&vec![0xff; 2 * size], 2 * page as u64).unwrap();
            memory.write_all_at(&start.to_ne_bytes(), 0).unwrap();
            memory.write_all_at(&start.to_ne_bytes(), page as u64).unwrap();
            let descriptor = memory.try_clone().unwrap().into();
            let ring = Ring::over(descriptor, size, window * page).unwrap();
            (Self { memory, page, size, produced: start, count: 0 }, ring)
        }

        /// How much of what was written is not read yet.
        fn waiting(&self) -> usize {
            let mut consumed = [0; size_of::<usize>()];
            self.memory.read_exact_at(&mut consumed, 0).unwrap();
            self.produced.wrapping_sub(usize::from_ne_bytes(consumed))
        }

        /// Writes at a position, round the end of the ring.
        fn put(&self, position: usize, bytes: &[u8]) {
            let at = position & (self.size - 1);
            let (front, rest) = bytes.split_at(bytes.len().min(self.size - at));
            self.memory.write_all_at(front, (2 * self.page + at) as u64).unwrap();
            self.memory.write_all_at(rest, 2 * self.page as u64).unwrap();
        }

        fn put_header(&self, position: usize, len: usize, state: u32) {
            self.put(position, &(u32::try_from(len).unwrap() | state).to_ne_bytes());
            self.put(position.wrapping_add(4), &0xffff_ffff_u32.to_ne_bytes());
        }

        /// Writes a record, as the kernel does, and returns what is in it. `None` where there is no room.
        fn write(&mut self, len: usize, state: u32) -> Option<Vec<u8>> {
            let room = (HEADER + len).next_multiple_of(HEADER);
            if self.waiting() + room >= self.size {
                return None;
            }
            let bytes = (0..251).cycle().skip(self.count * 131 % 251);
            let record: Vec<u8> = bytes.take(len).collect();
            self.count += 1;
            self.put_header(self.produced, len, state);
            self.put(self.produced.wrapping_add(HEADER), &record);
            self.produced = self.produced.wrapping_add(room);
            let page = self.page as u64;
            self.memory.write_all_at(&self.produced.to_ne_bytes(), page).unwrap();
            Some(record)
        }
    }

    fn read(ring: &mut Ring) -> Option<Vec<u8>> {
        ring.next(<[u8]>::to_vec).unwrap()
    }

    /// Pages of a ring, and of the window on it.
    const SHAPES: [(usize, usize); 5] = [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4)];

    /// Fills the ring and empties it, until it went round some times. `lengths` are taken in turn.
    fn goes_round(lengths: &[usize], shape: (usize, usize), start: usize) {
        let (mut probes, mut ring) = Probes::new(shape.0, shape.1, start);
        let mut lengths = lengths.iter().cycle();
        while probes.produced.wrapping_sub(start) < 12 * probes.size {
            let records: Vec<_> = lengths.by_ref().map_while(|&len| probes.write(len, 0)).collect();
            assert!(!ring.is_drained());
            for record in records {
                assert_eq!(read(&mut ring), Some(record), "{shape:?} from {start}");
            }
            assert_eq!(read(&mut ring), None);
            assert!(ring.is_drained());
            assert_eq!(probes.waiting(), 0, "the kernel has its room back");
        }
    }

    #[test]
    fn records_of_one_length_go_round() {
        for shape in SHAPES {
            for len in LENGTHS {
                goes_round(&[len], shape, 0);
            }
        }
    }

    #[test]
    fn records_of_all_lengths_go_round() {
        for shape in SHAPES {
            goes_round(&LENGTHS, shape, 0);
        }
    }

    #[test]
    fn positions_start_again_at_zero() {
        for shape in SHAPES {
            goes_round(&LENGTHS, shape, 0_usize.wrapping_sub(64));
        }
    }

    /// Tries `test` with a reader that stands `before` bytes in front of the end of the first window,
    /// of the second, and of the ring.
    fn at_borders(before: usize, mut test: impl FnMut(Probes, Ring)) {
        for (pages, window) in SHAPES {
            let page = rustix::param::page_size();
            for end in [window, 2 * window, pages] {
                let (probes, ring) = Probes::new(pages, window, end * page - before);
                test(probes, ring);
            }
        }
    }

    #[test]
    fn a_header_can_be_the_last_of_a_window() {
        for len in LENGTHS {
            at_borders(HEADER, |mut probes, mut ring| {
                let records = [probes.write(len, 0), probes.write(len, 0)];
                for record in records {
                    assert!(record.is_some());
                    assert_eq!(read(&mut ring), record);
                }
                assert!(ring.is_drained());
            });
        }
    }

    #[test]
    fn a_record_can_go_over_the_end_of_a_window() {
        // The last has its end where the window has it.
        for before in [2 * HEADER, 3 * HEADER, 1088, 1088 + HEADER] {
            at_borders(before, |mut probes, mut ring| {
                let records = [probes.write(1088, 0), probes.write(64, 0), probes.write(1088, 0)];
                for record in records {
                    assert!(record.is_some());
                    assert_eq!(read(&mut ring), record);
                }
                assert!(ring.is_drained());
            });
        }
    }

    #[test]
    fn discarded_records_are_passed_over_at_a_border() {
        // The header in front of the border, the border in the record, and behind it.
        for before in [HEADER, 40, 64 + HEADER] {
            at_borders(before, |mut probes, mut ring| {
                probes.write(64, DISCARDED).unwrap();
                probes.write(104, DISCARDED).unwrap();
                let record = probes.write(1088, 0);
                assert!(record.is_some());
                probes.write(13, DISCARDED).unwrap();
                assert_eq!(read(&mut ring), record);
                assert!(!ring.is_drained());
                assert_eq!(read(&mut ring), None);
                assert!(ring.is_drained());
                assert_eq!(probes.waiting(), 0, "the kernel has its room back");
            });
        }
    }

    #[test]
    fn a_record_in_the_writing_is_waited_for_at_a_border() {
        for before in [HEADER, 40, 64 + HEADER] {
            at_borders(before, |mut probes, mut ring| {
                let position = probes.produced;
                let first = probes.write(64, BUSY);
                assert!(first.is_some());
                let waiting = probes.waiting();
                let second = probes.write(1088, 0);
                assert!(second.is_some());
                assert_eq!(read(&mut ring), None);
                assert!(!ring.is_drained());
                assert!(probes.waiting() > waiting, "nothing of it is given back");
                probes.put_header(position, 64, 0);
                assert_eq!(read(&mut ring), first);
                assert_eq!(read(&mut ring), second);
                assert!(ring.is_drained());
            });
        }
    }

    #[test]
    fn a_record_that_is_given_up_late_is_passed_over() {
        at_borders(HEADER, |mut probes, mut ring| {
            let position = probes.produced;
            probes.write(64, BUSY).unwrap();
            let second = probes.write(104, 0);
            assert_eq!(read(&mut ring), None);
            probes.put_header(position, 64, DISCARDED);
            assert!(second.is_some());
            assert_eq!(read(&mut ring), second);
        });
    }
}
