//! The ring buffer through which the probes deliver.
//!
//! aya's own reader maps the data twice in a row, so that a record that goes round the end of the
//! buffer lies in one piece. All mapped pages count as resident at once, and that is most of what
//! memtrace takes: here the data are mapped once, and a record that goes round is put together.
//! Layout: kernel/bpf/ringbuf.c.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use aya::maps::MapData;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// In a record's length: the probe is still writing it.
const BUSY: u32 = 1 << 31;
/// In a record's length: the probe gave it up.
const DISCARDED: u32 = 1 << 30;
/// Bytes in front of each record: its length, and where its page is.
const HEADER: usize = 8;

/// The reading end.
pub(super) struct Ring {
    descriptor: OwnedFd,
    /// How far was read; the kernel sees it.
    consumer: Mapping,
    /// How far was written, in a page of its own, and then the data.
    producer: Mapping,
    /// Size of the data, a power of two.
    size: usize,
    page: usize,
    /// A record that goes round the end, put together.
    whole: Vec<u8>,
}

impl Ring {
    /// Opens the ring buffer of `map`.
    pub(super) fn open(map: &MapData, size: u32) -> io::Result<Self> {
        let (page, size) = (rustix::param::page_size(), size as usize);
        let descriptor = map.fd().as_fd().try_clone_to_owned()?;
        let consumer =
            Mapping::new(descriptor.as_fd(), page, ProtFlags::READ | ProtFlags::WRITE, 0)?;
        let producer = Mapping::new(descriptor.as_fd(), page + size, ProtFlags::READ, page as u64)?;
        Ok(Self { descriptor, consumer, producer, size, page, whole: Vec::with_capacity(page) })
    }

    /// Reads the next record with `read`, if one is waiting.
    pub(super) fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        loop {
            // Only this end moves it.
            let consumed = self.consumer.position().load(Ordering::Relaxed);
            if consumed == self.producer.position().load(Ordering::Acquire) {
                return None;
            }
            let at = consumed & (self.size - 1);
            let header = self.producer.length(self.page + at).load(Ordering::Acquire);
            if header & BUSY != 0 {
                return None;
            }
            let len = (header & !(BUSY | DISCARDED)) as usize;
            let next = consumed.wrapping_add((HEADER + len).next_multiple_of(HEADER));
            if header & DISCARDED != 0 {
                self.consumer.position().store(next, Ordering::Release);
                continue;
            }
            let start = (at + HEADER) & (self.size - 1);
            let until_end = len.min(self.size - start);
            let first = self.producer.bytes(self.page + start, until_end);
            let value = if until_end == len {
                read(first)
            } else {
                self.whole.clear();
                self.whole.extend_from_slice(first);
                self.whole.extend_from_slice(self.producer.bytes(self.page, len - until_end));
                read(&self.whole)
            };
            self.consumer.position().store(next, Ordering::Release);
            return Some(value);
        }
    }

    /// Whether all that was reserved is read: a record may still be in the writing.
    pub(super) fn is_drained(&self) -> bool {
        let consumed = self.consumer.position().load(Ordering::Relaxed);
        consumed == self.producer.position().load(Ordering::Acquire)
    }

    /// A descriptor that is readable when the probes ask to be heard.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }
}

/// A part of the ring buffer's memory, shared with the kernel.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize, prot: ProtFlags, offset: u64) -> io::Result<Self> {
        // SAFETY: the kernel chooses a place where nothing else is.
        let start = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, fd, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, len })
    }

    /// The position with which a page of the kernel's begins.
    fn position(&self) -> &AtomicUsize {
        // SAFETY: both mappings begin with a page in which only this word is used, by this process
        // and by the kernel, and always atomically.
        unsafe { self.start.cast().as_ref() }
    }

    /// The first word of the header of the record at `at`.
    fn length(&self, at: usize) -> &AtomicU32 {
        let word = self.part(at, HEADER);
        // SAFETY: records begin at multiples of 8, and the kernel writes this word atomically.
        unsafe { word.cast().as_ref() }
    }

    /// The part of a record, finished and not consumed, that the kernel therefore leaves alone.
    fn bytes(&self, at: usize, len: usize) -> &[u8] {
        let start = self.part(at, len);
        // SAFETY: it is inside the mapping, which lives as long as `self`, and is not written.
        unsafe { slice::from_raw_parts(start.as_ptr(), len) }
    }

    fn part(&self, at: usize, len: usize) -> NonNull<u8> {
        assert!(at + len <= self.len, "the kernel's records lie within its buffer");
        // SAFETY: checked to be inside the mapping.
        unsafe { self.start.add(at) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from the mapping any more.
        let _unmapped: rustix::io::Result<()> =
            unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
