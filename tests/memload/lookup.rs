//! `memload lookup`: what the kernel remembers of names.

use std::thread;

use anyhow::Result;
use tests::{
    churn::{Passes, Scratch},
    lookup::Lookup,
    until::Until,
};

use crate::{
    churn,
    cli::LookupArgs,
    place::Place,
    session::{Session, say},
};

/// Runs it.
pub fn run(args: &LookupArgs) -> Result<()> {
    let session = Session::begin()?;
    let place = Place::new(&args.place)?;
    // Names alone would have the process killed: a cgroup's limit is not told that any were forgotten.
    let scratch = Scratch::new(&args.dir, 1, 2 * place.room)?;
    place.enter()?;
    if args.time.hold {
        session.hold()?;
    } else {
        say(&format!(
            "memload: {} threads look up names in `{}` beside one that writes and reads a file, {}, for {:?}; Ctrl-C stops",
            args.threads,
            args.dir.display(),
            place.name(),
            args.time.duration,
        ))?;
    }
    let lookup = Lookup { threads: args.threads.into(), dir: args.dir.clone() };
    let until = Until::new(args.time.duration, &session.stop);
    let (names, file) = thread::scope(|scope| {
        let beside = scope.spawn(|| {
            churn::alongside(&scratch, Passes::WriteAndRead, args.time.duration, &session.stop)
        });
        let names = lookup.run(&until);
        let file = beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, anyhow::Error>((names?, file?))
    })?;
    let done = format!("looked up {names} names that do not exist; {}", churn::told(&file));
    session.report(&done, place.cgroup.as_ref())
}
