//! `memload reclaim`: proactive reclaim.

use std::{sync::atomic::Ordering, thread};

use anyhow::{Result, ensure};
use tests::{
    cgroup::{Cgroup, Limit},
    churn::{Passes, Scratch},
    until::Until,
};

use crate::{
    churn,
    cli::{MIB, ReclaimArgs},
    session::{Session, say},
};

/// Runs it.
pub fn run(args: &ReclaimArgs) -> Result<()> {
    let session = Session::begin()?;
    let cgroup = Cgroup::limited_by("memload", Limit::Max(args.limit))?;
    ensure!(
        cgroup.has_reclaim_file(),
        "no memory.reclaim in cgroup `{}`: that takes Linux 5.19 and a memory controller in cgroup v2",
        cgroup.path().display()
    );
    // Within the limit, so that nothing but the writes makes the kernel reclaim.
    let scratch = Scratch::new(&args.dir, 1, args.limit / 2)?;
    cgroup.add(std::process::id())?;
    if args.time.hold {
        session.hold()?;
    } else {
        say(&format!(
            "memload: asks for {} MiB of cgroup {} every {:?}, for {:?}; Ctrl-C stops",
            args.limit / 8 / MIB,
            cgroup.name(),
            args.pause,
            args.time.duration,
        ))?;
    }
    let until = Until::new(args.time.duration, &session.stop);
    let mut times: u64 = 0;
    let files = thread::scope(|scope| {
        let files = scope.spawn(|| {
            churn::alongside(&scratch, Passes::WriteAndRead, args.time.duration, &session.stop)
        });
        while !until.is_over() {
            thread::sleep(args.pause);
            if let Err(err) = cgroup.reclaim(args.limit / 8) {
                session.stop.store(true, Ordering::Relaxed);
                return Err(err);
            }
            times += 1;
        }
        files.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let done = format!(
        "asked {times} times for {} MiB, and {}",
        args.limit / 8 / MIB,
        churn::told(&files)
    );
    session.report(&done, Some(&cgroup))
}
