//! The load that makes direct compaction happen: threads that fault huge pages in where there are
//! none.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use memmap2::{Advice, MmapMut};

use crate::{fragment::HUGE, until::Until};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Thp {
    /// Number of threads.
    pub threads: usize,
    /// Bytes of memory of all threads together.
    pub bytes: u64,
}

impl Thp {
    /// Has each thread ask for its share in huge pages, give it back, and ask again until the time
    /// is over. Gives how many times a thread asked for a huge page.
    pub fn run(&self, until: &Until<'_>) -> Result<u64> {
        let share = usize::try_from(self.bytes).context("too much memory")? / self.threads;
        let asked = AtomicU64::new(0);
        thread::scope(|scope| {
            let start_worker = |_| {
                let work = || {
                    while !until.is_over() {
                        // The kernel puts huge pages at multiples of their size only.
                        let mut memory = MmapMut::map_anon(share.max(HUGE) + HUGE)?;
                        memory.advise(Advice::HugePage)?;
                        let start = memory.as_ptr().align_offset(HUGE);
                        fault(&mut memory[start..], until, &asked);
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
                result.context("cannot map memory for huge pages, which takes a kernel with CONFIG_TRANSPARENT_HUGEPAGE")?;
            }
            Ok(asked.load(Ordering::Relaxed))
        })
    }
}

fn fault(memory: &mut [u8], until: &Until<'_>, asked: &AtomicU64) {
    for huge in memory.chunks_exact_mut(HUGE) {
        if until.is_over() {
            return;
        }
        huge[0] = 1;
        asked.fetch_add(1, Ordering::Relaxed);
    }
}
