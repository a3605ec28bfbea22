//! `memload churn`: the page cache.

use std::{sync::atomic::AtomicBool, time::Duration};

use anyhow::{Context as _, Result};
use rustix::thread::Uid;
use tests::churn::{Churn, Done, Lifetime, Passes, Scratch};

use crate::{
    cli::{ChurnArgs, MIB},
    place::Place,
    session::{Session, end_with_parent, say},
};

/// The files are so many times as large as the limit of a cgroup,
const TIMES_THE_LIMIT: u64 = 4;
/// or as the memory of a machine, which takes longer.
const TIMES_THE_MACHINE: u64 = 2;

/// Runs it.
pub fn run(args: &ChurnArgs) -> Result<()> {
    let session = Session::begin()?;
    let in_place = args.place.whole_machine || !args.time.hold;
    let place = in_place.then(|| Place::new(&args.place)).transpose()?;
    let cgroup = place.as_ref().and_then(|place| place.cgroup.as_ref());
    let size = args.size.unwrap_or_else(|| match &place {
        Some(Place { cgroup: None, room, .. }) => TIMES_THE_MACHINE * room,
        _ => TIMES_THE_LIMIT * args.place.limit,
    });
    let scratch = Scratch::new(&args.dir, usize::from(args.threads), size)?;
    if let Some(place) = &place {
        place.enter()?;
    }
    if let (Some(place), false) = (&place, args.time.hold) {
        say(&format!(
            "memload: {} threads write and read {} MiB in `{}`, {}, for {:?}; Ctrl-C stops",
            args.threads,
            size / MIB,
            args.dir.display(),
            place.name(),
            args.time.duration,
        ))?;
    }
    if let Some(uid) = args.uid {
        // Of this thread and those that it starts, which are all.
        rustix::thread::set_thread_uid(Uid::from_raw(uid)).context("cannot change the user id")?;
        end_with_parent()?;
    }
    let churn = Churn {
        passes: Passes::WriteAndRead,
        lifetime: if args.brief { Lifetime::Brief } else { Lifetime::Whole },
        comm: args.comm.clone(),
        duration: args.time.duration,
    };
    let mut held = Ok(());
    let done = churn.run(&scratch, &session.stop, || {
        if args.time.hold {
            held = session.hold();
        }
    })?;
    held?;
    session.report(&told(&done), cgroup)
}

/// Reads and writes as another mode's companion, until `stop` is set or the time is over.
pub fn alongside(
    scratch: &Scratch,
    passes: Passes,
    duration: Duration,
    stop: &AtomicBool,
) -> Result<Done> {
    Churn { passes, lifetime: Lifetime::Whole, comm: None, duration }.run(scratch, stop, || ())
}

/// What was done, in words.
pub fn told(done: &Done) -> String {
    format!(
        "wrote and read {} MiB with {} threads in {:.1} s",
        done.bytes / MIB,
        done.threads,
        done.took.as_secs_f64(),
    )
}
