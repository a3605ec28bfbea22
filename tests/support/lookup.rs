//! The load that makes shrinkers run: threads look up names that do not exist, of which the kernel
//! remembers each that it was asked for until it needs the memory.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::until::Until;

/// Names looked up between two looks at the clock.
const AT_ONCE: u64 = 256;

/// What to do.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Number of threads.
    pub threads: usize,
    /// In which directory.
    pub dir: PathBuf,
}

impl Lookup {
    /// Looks names up until the time is over. Gives how many.
    pub fn run(&self, until: &Until<'_>) -> Result<u64> {
        let names = AtomicU64::new(0);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads)
                .map(|number| {
                    let work = move |names| look_up(&self.dir, number, until, names);
                    let names = &names;
                    thread::Builder::new().spawn_scoped(scope, move || work(names))
                })
                .collect::<io::Result<_>>()
                .context("cannot start a thread")?;
            for worker in workers {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(names.load(Ordering::Relaxed))
        })
    }
}

fn look_up(dir: &Path, number: usize, until: &Until<'_>, names: &AtomicU64) -> Result<()> {
    let process = std::process::id();
    for next in 0_u64.. {
        if next.is_multiple_of(AT_ONCE) && until.is_over() {
            break;
        }
        let path = dir.join(format!("no-such-file-{process}-{number}-{next}"));
        match rustix::fs::stat(&path) {
            Err(rustix::io::Errno::NOENT) => {}
            Err(err) => {
                return Err(err).with_context(|| format!("cannot look `{}` up", path.display()));
            }
            Ok(_) => bail!("there is a `{}`", path.display()),
        }
        names.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
