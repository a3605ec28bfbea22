//! `memload dirty`: page cache that has to be written to a slow disk before it can be reclaimed.

use anyhow::Result;
use tests::{
    cgroup::{Hierarchy, Version},
    churn::{Passes, Scratch},
};

use crate::{
    churn,
    cli::{CgroupArgs, DirtyArgs, MIB},
    place::Place,
    session::{Session, say},
};

/// The files are so many times as large as the limit.
const TIMES_THE_LIMIT: u64 = 4;

/// Runs it.
pub fn run(args: &DirtyArgs) -> Result<()> {
    let session = Session::begin()?;
    // Beyond memory.high writers are slowed down; at memory.max the kernel may kill them instead of waiting
    // for the disk. Cgroup v1 has nothing but such a limit, and waits.
    let high = Hierarchy::memory()?.version == Version::V2;
    let place = Place::cgroup(&CgroupArgs { limit: args.limit, high })?;
    let slowed = match &place.cgroup {
        Some(cgroup) => cgroup.limit_writing(&args.dir, args.speed)?,
        None => false,
    };
    let size = TIMES_THE_LIMIT * place.room;
    // In the cgroup: else what is written to the files is not at first taken for the cgroup's.
    place.enter()?;
    let scratch = Scratch::new(&args.dir, usize::from(args.threads), size)?;
    let speed = if slowed {
        format!("of which the disk takes {} MiB a second", args.speed / MIB)
    } else {
        "as fast as the disk can".to_owned()
    };
    if args.time.hold {
        session.hold()?;
    } else {
        say(&format!(
            "memload: {} threads write {} MiB in `{}` again and again, {speed}, {}, for {:?}; Ctrl-C stops",
            args.threads,
            size / MIB,
            args.dir.display(),
            place.name(),
            args.time.duration,
        ))?;
    }
    let done = churn::alongside(&scratch, Passes::Write, args.time.duration, &session.stop)?;
    // What is still to be written would keep the cgroup's disk busy after its end.
    drop(scratch);
    session.report(&churn::told(&done), place.cgroup.as_ref())
}
