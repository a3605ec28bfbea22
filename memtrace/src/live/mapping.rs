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

    /// The word with which it begins.
    pub(super) fn first_word(&self) -> &AtomicUsize {
        // SAFETY: a mapping begins with a page, and what can change in it is used atomically.
        unsafe { self.start.cast().as_ref() }
    }

    /// The 32 bits at `at`, a multiple of 4, which the kernel writes in one step.
    pub(super) fn half_word(&self, at: usize) -> &AtomicU32 {
        let word = self.part(at, size_of::<u32>());
        // SAFETY: it is inside the mapping, which lives as long as `self`, and aligned as it is.
        unsafe { word.cast().as_ref() }
    }

    /// A part of it.
    ///
    /// # Safety
    /// Nobody writes to that part meanwhile.
    pub(super) unsafe fn bytes(&self, at: usize, len: usize) -> &[u8] {
        let start = self.part(at, len);
        // SAFETY: it is inside the mapping, which lives as long as `self`; the caller says that it is
        // not written.
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

#[cfg(test)]
pub(super) mod tests {
    use std::{
        fs::File,
        os::{fd::AsFd as _, unix::fs::FileExt as _},
        sync::atomic::Ordering,
    };

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    /// `len` bytes of zeros, in whole pages, in the place of a map's.
    pub(in super::super) fn memory(len: usize) -> File {
        let memory = File::from(memfd_create("map", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(len as u64).unwrap();
        memory
    }

    #[test]
    fn a_mapping_begins_at_its_offset() {
        let page = rustix::param::page_size();
        let memory = memory(3 * page);
        memory.write_all_at(&[1, 2, 3, 4], 2 * page as u64).unwrap();
        memory.write_all_at(&7_u32.to_ne_bytes(), 2 * page as u64 - 4).unwrap();
        let mapping = Mapping::new(memory.as_fd(), 2 * page, ProtFlags::READ, page).unwrap();
        assert_eq!(mapping.len(), 2 * page);
        // SAFETY: nobody writes to it.
        assert_eq!(unsafe { mapping.bytes(page + 1, 3) }, [2, 3, 4]);
        assert_eq!(mapping.half_word(page - 4).load(Ordering::Relaxed), 7);
        assert_eq!(mapping.half_word(2 * page - 4).load(Ordering::Relaxed), 0);
        memory.write_all_at(&9_usize.to_ne_bytes(), page as u64).unwrap();
        assert_eq!(mapping.first_word().load(Ordering::Relaxed), 9);
    }

    #[test]
    #[should_panic(expected = "within its maps")]
    fn nothing_beyond_a_mapping_is_read() {
        let page = rustix::param::page_size();
        let memory = memory(2 * page);
        let mapping = Mapping::new(memory.as_fd(), page, ProtFlags::READ, 0).unwrap();
        mapping.half_word(page);
    }
}
