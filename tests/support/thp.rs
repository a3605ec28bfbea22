//! The load that makes direct compaction happen: threads that ask for huge pages where memory is free
//! in small pieces only.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use memmap2::{Advice, MmapMut, UncheckedAdvice};

use crate::{
    anon::{map_small_pages, touch},
    fragment::HUGE,
    until::Until,
};

/// One page in so many stays when memory is scattered: few enough to be moved quickly, many enough
/// that there is one in every huge page.
const KEPT: usize = 8;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Thp {
    /// Number of threads.
    pub threads: usize,
    /// Bytes of memory over which all threads together scatter small pages.
    pub scatter: u64,
    /// Bytes that all threads together ask for in huge pages.
    pub bytes: u64,
}

impl Thp {
    /// Scatters small pages over memory, asks for huge pages, gives all back, and begins again until
    /// the time is over. Gives how many times a thread asked for a huge page.
    pub fn run(&self, until: &Until<'_>) -> Result<u64> {
        let share = |bytes: u64| {
            let bytes = usize::try_from(bytes).context("too much memory")?;
            Ok::<_, anyhow::Error>(bytes / self.threads)
        };
        let (scattered, huge) = (share(self.scatter)?, share(self.bytes)?.max(HUGE));
        let asked = AtomicU64::new(0);
        while !until.is_over() {
            // All threads scatter before one asks, as the pages of one are in the way of all.
            let _scattered = self.on_all_threads(|| scatter(scattered, until))?;
            self.on_all_threads(|| ask(huge, until, &asked))?;
        }
        Ok(asked.load(Ordering::Relaxed))
    }

    fn on_all_threads<T: Send>(&self, work: impl Fn() -> io::Result<T> + Sync) -> Result<Vec<T>> {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads)
                .map(|_| thread::Builder::new().spawn_scoped(scope, &work))
                .collect::<io::Result<_>>()
                .context("cannot start a thread")?;
            let results = workers.into_iter().map(|worker| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            results.collect::<io::Result<_>>().context("cannot map memory")
        })
    }
}

/// Takes memory in small pages and gives all but one in [`KEPT`] back. The kernel can move those that
/// stay, and has to before there is a huge page.
fn scatter(bytes: usize, until: &Until<'_>) -> io::Result<MmapMut> {
    let page_size = rustix::param::page_size();
    let mut memory = map_small_pages(bytes)?;
    touch(&mut memory, until, &AtomicU64::new(0));
    for first in (0..bytes).step_by(KEPT * page_size) {
        let len = ((KEPT - 1) * page_size).min(bytes - first);
        // SAFETY: nobody has a reference to the memory, which is zero afterwards.
        unsafe { memory.unchecked_advise_range(UncheckedAdvice::DontNeed, first, len) }?;
    }
    Ok(memory)
}

/// Asks for so many bytes in huge pages.
fn ask(bytes: usize, until: &Until<'_>, asked: &AtomicU64) -> io::Result<()> {
    // The kernel puts huge pages at multiples of their size only.
    let mut memory = MmapMut::map_anon(bytes + HUGE)?;
    memory.advise(Advice::HugePage)?;
    let start = memory.as_ptr().align_offset(HUGE);
    for huge in memory[start..].chunks_exact_mut(HUGE) {
        if until.is_over() {
            break;
        }
        huge[0] = 1;
        asked.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
