//! The load that makes the kernel kill for lack of memory: processes that ask to be killed first,
//! and take memory until they are.

use std::{
    fs, io,
    os::unix::process::ExitStatusExt as _,
    process::Child,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    anon::{map_small_pages, touch},
    until::Until,
};

/// What a victim maps at once: less than what the kernel would refuse to promise.
const AT_ONCE: u64 = 8 << 20;

/// How often is looked whether a victim is dead.
const PERIOD: Duration = Duration::from_millis(5);

/// Has the kernel kill this process before any other.
pub fn volunteer() -> Result<()> {
    fs::write("/proc/self/oom_score_adj", "1000")
        .context("cannot write to /proc/self/oom_score_adj")
}

/// Takes `bytes` of memory and keeps them until the time is over.
///
/// Fails where it gets them all: then nothing kills it.
pub fn take(bytes: u64, until: &Until<'_>) -> Result<()> {
    let mut taken = Vec::new();
    let pages = AtomicU64::new(0);
    while taken.len() as u64 * AT_ONCE < bytes {
        let mut memory = map_small_pages(usize::try_from(AT_ONCE)?).context("cannot map memory")?;
        if !touch(&mut memory, until, &pages) {
            return Ok(());
        }
        taken.push(memory);
    }
    bail!("took {} MiB and was not killed: there is more memory or swap than that", bytes >> 20)
}

/// What shall be killed.
#[derive(Clone, Copy, Debug)]
pub struct Victims {
    /// How many at once.
    pub at_once: usize,
    /// How many altogether.
    pub kills: usize,
}

impl Victims {
    /// Starts victims by `start` until enough have been killed, or the time is over. Gives the
    /// process ids of those that were killed, in this order.
    pub fn run(
        &self,
        until: &Until<'_>,
        start: impl Fn() -> Result<Child> + Sync,
    ) -> Result<Vec<u32>> {
        let killed = Mutex::new(Vec::new());
        let killed_so_far = || killed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = || until.is_over() || killed_so_far().len() >= self.kills;
        let one_after_the_other = || {
            while !is_over() {
                let mut victim = Victim(start()?);
                if victim.is_killed(is_over)? {
                    killed_so_far().push(victim.0.id());
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let slots: Vec<_> = (0..self.at_once)
                .map(|_| thread::Builder::new().spawn_scoped(scope, one_after_the_other))
                .collect::<io::Result<_>>()
                .context("cannot start a thread")?;
            let results = slots
                .into_iter()
                .map(|slot| slot.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            results.collect::<Result<()>>()
        })?;
        Ok(killed.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A process, ended when dropped.
struct Victim(Child);

impl Victim {
    /// Waits for its end, and gives whether it was killed before `is_over`.
    fn is_killed(&mut self, is_over: impl Fn() -> bool) -> Result<bool> {
        loop {
            match self.0.try_wait().context("cannot wait for a victim")? {
                Some(status) if status.signal() == Some(libc::SIGKILL) => return Ok(true),
                Some(status) => {
                    bail!("victim {} was not killed, but ended with {status}", self.0.id())
                }
                None if is_over() => return Ok(false),
                None => thread::sleep(PERIOD),
            }
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: io::Result<()> = self.0.kill();
        let _waited: io::Result<_> = self.0.wait();
    }
}
