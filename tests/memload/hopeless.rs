//! `memload hopeless`: anonymous memory without swap, of which reclaim gets nothing.

use anyhow::{Result, ensure};
use tests::{
    anon::fill,
    churn::{Passes, Scratch},
    until::Until,
    vmstat::meminfo,
};

use crate::{
    churn,
    cli::{HopelessArgs, MIB},
    place::Place,
    session::{Session, say},
};

/// Of a limit that is never exceeded one in so many bytes is left to a file; with less the kernel kills.
const LEFT: u64 = 32;

/// Runs it.
pub fn run(args: &HopelessArgs) -> Result<()> {
    let session = Session::begin()?;
    ensure!(
        meminfo("SwapTotal")? == 0,
        "this machine has swap, so there is hope: switch it off with `swapoff -a` first"
    );
    let place = Place::cgroup(&args.cgroup)?;
    // Beyond memory.high, where threads are held up for as long as they want more; or right below
    // memory.max, where a file that is read has all that is left.
    let bytes = if args.cgroup.high { 2 * place.room } else { place.room - place.room / LEFT };
    let has_file = !args.cgroup.high;
    let scratch = has_file.then(|| Scratch::new(&args.dir, 1, place.room / 4)).transpose()?;
    place.enter()?;
    if args.time.hold {
        session.hold()?;
    } else {
        say(&format!(
            "memload: takes {} MiB of memory, {}, for {:?}; Ctrl-C stops",
            bytes / MIB,
            place.name(),
            args.time.duration,
        ))?;
    }
    let until = Until::new(args.time.duration, &session.stop);
    let mut taken = 0;
    let files = if let Some(scratch) = &scratch {
        let memory = fill(bytes, &until, &mut taken)?;
        let files = churn::alongside(scratch, Passes::Read, args.time.duration, &session.stop)?;
        drop(memory);
        Some(files)
    } else {
        while !until.is_over() {
            drop(fill(bytes, &until, &mut taken)?);
        }
        None
    };
    let beside = files.map(|files| format!("; {}", churn::told(&files))).unwrap_or_default();
    let taken = format!("took {} MiB of memory", taken / MIB);
    session.report(&format!("{taken}{beside}"), place.cgroup.as_ref())
}
