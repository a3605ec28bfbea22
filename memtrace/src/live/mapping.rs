//! Memory of a map that the kernel shares with this process.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, AtomicUsize},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A part of a map's memory. All of its pages count as resident, used or not.
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes from `offset` on, both in whole pages.
    pub(super) fn new(
        fd: BorrowedFd<'_>,
        len: usize,
        prot: ProtFlags,
        offset: usize,
    ) -> io::Result<Self> {
        let offset = offset as u64;
        // SAFETY: the kernel chooses a place where nothing else is.
        let start = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, fd, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, len })
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The word with which it begins, of a part in which only that word is used, by this process and
    /// by the kernel, and always atomically.
    pub(super) fn first_word(&self) -> &AtomicUsize {
        // SAFETY: a mapping begins with a page, and the caller says who uses it.
        unsafe { self.start.cast().as_ref() }
    }

    /// The 32 bits at `at`, a multiple of 4, which the kernel writes in one step.
    pub(super) fn half_word(&self, at: usize) -> &AtomicU32 {
        let word = self.part(at, size_of::<u32>());
        // SAFETY: it is inside the mapping, which lives as long as `self`, and aligned as it is.
        unsafe { word.cast().as_ref() }
    }

    /// A part that the kernel leaves alone.
    pub(super) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        let start = self.part(at, len);
        // SAFETY: it is inside the mapping, which lives as long as `self`, and is not written.
        unsafe { slice::from_raw_parts(start.as_ptr(), len) }
    }

    fn part(&self, at: usize, len: usize) -> NonNull<u8> {
        assert!(at + len <= self.len, "the kernel's data lie within its maps");
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
