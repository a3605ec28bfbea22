//! `memload thrash`: page cache that is read again as soon as it was reclaimed.

use anyhow::Result;
use tests::churn::{Passes, Scratch};

use crate::{
    churn,
    cli::{MIB, ThrashArgs},
    place::Place,
    session::{Session, say},
};

/// Runs it.
pub fn run(args: &ThrashArgs) -> Result<()> {
    let session = Session::begin()?;
    let place = Place::cgroup(&args.cgroup)?;
    let size = args.size.unwrap_or(place.room / 2 * 3);
    let scratch = Scratch::new(&args.dir, usize::from(args.threads), size)?;
    place.enter()?;
    if args.time.hold {
        session.hold()?;
    } else {
        say(&format!(
            "memload: {} threads read {} MiB in `{}` again and again, {}, for {:?}; Ctrl-C stops",
            args.threads,
            size / MIB,
            args.dir.display(),
            place.name(),
            args.time.duration,
        ))?;
    }
    let done = churn::alongside(&scratch, Passes::Read, args.time.duration, &session.stop)?;
    session.report(&churn::told(&done), place.cgroup.as_ref())
}
