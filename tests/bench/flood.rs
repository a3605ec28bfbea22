//! Stalls without waiting: begin and end programs run one after the other, as often as wanted.

use std::{
    hint,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Barrier, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::bpf::{self, Arguments};

/// What the tracepoints tell: an allocation of one page with GFP_KERNEL, and 32 pages reclaimed. What the kernel's own
/// run of a program has not, such as `reclaim_state`, is not there.
const BEGIN: Arguments = [0, 0xcc0, 0, 0, 0, 0, 0, 0];
const END: Arguments = [32, 0, 0, 0, 0, 0, 0, 0];

/// Stalls made in one go where there is a pace.
const BATCH: u64 = 500;

/// The smallest stack that runs this.
const STACK: usize = 64 << 10;

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as one thread can.
    Full,
    /// So many a second, in batches.
    PerSecond(f64),
}

/// A begin program and an end program.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Runs first.
    pub begin: BorrowedFd<'a>,
    /// Runs second.
    pub end: BorrowedFd<'a>,
}

impl Pair<'_> {
    fn begin(self) -> Result<()> {
        run(self.begin, &BEGIN)
    }

    fn end(self) -> Result<()> {
        run(self.end, &END)
    }

    /// Makes one stall.
    pub fn stall(self) -> Result<()> {
        self.begin()?;
        self.end()
    }

    /// Makes `count` stalls of this thread. Gives how long it took.
    pub fn flood(self, count: u64, pace: Pace) -> Result<Duration> {
        let (_, took) = self.flood_while(pace, |done, _| count.saturating_sub(done))?;
        Ok(took)
    }

    /// Makes stalls of this thread for `duration`. Gives how many, and how long it took.
    pub fn flood_for(self, duration: Duration, pace: Pace) -> Result<(u64, Duration)> {
        self.flood_while(pace, |_, took| if took < duration { BATCH } else { 0 })
    }

    /// Makes as many as `left` says of what was made and how long that took, until it says none.
    fn flood_while(
        self,
        pace: Pace,
        left: impl Fn(u64, Duration) -> u64,
    ) -> Result<(u64, Duration)> {
        let (start, mut done) = (Instant::now(), 0);
        loop {
            let batch = left(done, start.elapsed()).min(BATCH);
            if batch == 0 {
                return Ok((done, start.elapsed()));
            }
            for _ in 0..batch {
                self.stall()?;
            }
            done += batch;
            if let Pace::PerSecond(rate) = pace {
                let due = start + Duration::from_secs_f64(done as f64 / rate);
                while Instant::now() < due {
                    hint::spin_loop();
                }
            }
        }
    }

    /// Makes stalls of `threads` threads, `rounds` of each: all of them begin, and when the last has begun, all end. So
    /// all are in progress at once. After each `batch` of rounds, 1 at least, one thread does `rest` while the others wait.
    pub fn flood_at_once(
        self,
        threads: usize,
        rounds: u64,
        batch: u64,
        rest: impl Fn() -> Result<()> + Sync,
    ) -> Result<()> {
        let (gate, barrier) = (OnceLock::<bool>::new(), Barrier::new(threads));
        let work = || {
            let mut result = Ok(());
            if !*gate.wait() {
                return result;
            }
            for round in 0..rounds {
                if round > 0 && round.is_multiple_of(batch) && barrier.wait().is_leader() {
                    result = result.and_then(|()| rest());
                }
                // Whoever fails must not leave the others waiting.
                barrier.wait();
                result = result.and_then(|()| self.begin());
                barrier.wait();
                result = result.and_then(|()| self.end());
            }
            result
        };
        thread::scope(|scope| {
            let start = |_| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
            let started: Result<Vec<_>, _> = (0..threads).map(start).collect();
            gate.get_or_init(|| started.is_ok());
            let workers = started.with_context(|| format!("cannot start {threads} threads"))?;
            workers.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }
}

fn run(program: BorrowedFd<'_>, arguments: &Arguments) -> Result<()> {
    bpf::test_run(program, arguments)
        .context("the kernel does not run memtrace's programs for a test")
}

/// A pair whose programs are open here.
#[derive(Debug)]
pub struct Opened {
    begin: OwnedFd,
    end: OwnedFd,
}

impl Opened {
    /// Opens the programs with these ids.
    pub fn by_id(begin: u32, end: u32) -> Result<Self> {
        Ok(Self { begin: bpf::by_id(begin)?, end: bpf::by_id(end)? })
    }

    /// The pair.
    pub fn pair(&self) -> Pair<'_> {
        Pair { begin: self.begin.as_fd(), end: self.end.as_fd() }
    }
}
