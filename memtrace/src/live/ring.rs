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
        let (page, size) = (rustix::param::page_size(), size as usize);
        let descriptor = map.fd().as_fd().try_clone_to_owned()?;
        let fd = descriptor.as_fd();
        let consumer = Mapping::new(fd, page, ProtFlags::READ | ProtFlags::WRITE, 0)?;
        let producer = Mapping::new(fd, page, ProtFlags::READ, page)?;
        let window = Mapping::new(fd, size.min(WINDOW), ProtFlags::READ, 2 * page)?;
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

    /// The `len` bytes of a record from `start` on.
    fn record(&mut self, start: usize, len: usize) -> io::Result<&[u8]> {
        self.show(start)?;
        let here = len.min(self.from + self.window.len() - start);
        if here == len {
            return Ok(self.window.bytes(start - self.from, len));
        }
        self.whole.clear();
        self.whole.extend_from_slice(self.window.bytes(start - self.from, here));
        self.show((start + here) & (self.size - 1))?;
        self.whole.extend_from_slice(self.window.bytes(0, len - here));
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
