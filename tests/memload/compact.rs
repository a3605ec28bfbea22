//! `memload compact`: compaction of all memory.

use anyhow::Result;
use tests::compact::compact;

use crate::{cli::CompactArgs, session::Session};

/// Runs it.
pub fn run(args: &CompactArgs) -> Result<()> {
    let session = Session::begin()?;
    if args.hold {
        session.hold()?;
    }
    let times = compact(args.times, args.pause, || session.is_stopped())?;
    session.report(&format!("had all memory compacted {times} times"), None)
}
