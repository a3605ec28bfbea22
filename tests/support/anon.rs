//! The load that makes anonymous memory scarce: threads that write to every page of a mapping of
//! their own, again and again.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use memmap2::{Advice, MmapMut};

use crate::until::Until;

/// Pages touched between two looks at the clock.
const PAGES_AT_ONCE: usize = 64;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Anon {
    /// Number of threads.
    pub threads: usize,
    /// Bytes of memory of all threads together.
    pub bytes: u64,
    /// Whether a thread keeps its memory, so that what does not fit has to be swapped out and in;
    /// otherwise it gives all of it back after each pass, and makes the kernel find new pages.
    pub keep: bool,
}

impl Anon {
    /// Touches pages until the time is over. Gives how many were touched.
    pub fn run(&self, until: &Until<'_>) -> Result<u64> {
        let share = usize::try_from(self.bytes).context("too much memory")? / self.threads;
        let pages = AtomicU64::new(0);
        thread::scope(|scope| {
            let start_worker = |_| {
                let work = || {
                    while !until.is_over() {
                        let mut memory = map_small_pages(share)?;
                        while touch(&mut memory, until, &pages) && self.keep {}
                    }
                    Ok(())
                };
                thread::Builder::new().spawn_scoped(scope, work)
            };
            let workers: Vec<_> = (0..self.threads)
                .map(start_worker)
                .collect::<io::Result<_>>()
                .context("cannot start a thread")?;
            for worker in workers {
                let result: io::Result<()> =
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result.context("cannot map memory")?;
            }
            Ok(pages.load(Ordering::Relaxed))
        })
    }
}

/// Maps memory that the kernel gives page by page, whatever its policy for huge pages is.
pub fn map_small_pages(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes)?;
    match memory.advise(Advice::NoHugePage) {
        // A kernel without huge pages does not know the advice.
        Err(err) if err.kind() != io::ErrorKind::InvalidInput => Err(err),
        _ => Ok(memory),
    }
}

/// Takes `bytes` bytes of memory, as far as it comes before the time is over, which is looked at before
/// each page: a page can take seconds. Adds to `taken` how many they are.
pub fn fill(bytes: u64, until: &Until<'_>, taken: &mut u64) -> Result<MmapMut> {
    let mut memory = map_small_pages(usize::try_from(bytes).context("too much memory")?)
        .context("cannot map memory")?;
    let size = rustix::param::page_size();
    for page in memory.chunks_mut(size).take_while(|_| !until.is_over()) {
        page[0] = 1;
        *taken += size as u64;
    }
    Ok(memory)
}

/// Writes to every page, and adds their number to `pages`. Gives whether it came to the end before
/// the time was over.
pub fn touch(memory: &mut MmapMut, until: &Until<'_>, pages: &AtomicU64) -> bool {
    let size = rustix::param::page_size();
    for some in memory.chunks_mut(PAGES_AT_ONCE * size) {
        if until.is_over() {
            return false;
        }
        for page in some.chunks_mut(size) {
            page[0] = page[0].wrapping_add(1);
            pages.fetch_add(1, Ordering::Relaxed);
        }
    }
    true
}
