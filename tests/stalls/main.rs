//! `memtrace stalls` against ftrace, drsnoop, and what the kernel itself tells.

mod coverage;
#[cfg(feature = "guest")]
mod guest;
mod oom;
mod options;
mod parts;
mod rounds;
mod throttled;
#[cfg(feature = "guest")]
mod v1;

use std::path::Path;

use anyhow::Result;
use tests::{
    cgroup::Cgroup,
    episodes::Stalls,
    load::{Churning, Load, limited_cgroup},
    run::Memtrace,
};

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// Reads what a memtrace that was told to stop has shown, which lost nothing.
#[track_caller]
fn stopped(memtrace: Memtrace) -> Result<Stalls> {
    let finished = memtrace.stop();
    finished.assert_success();
    let stalls = Stalls::parse(&finished.stdout)?;
    stalls.summary.assert_nothing_lost();
    Ok(stalls)
}

/// A load that churns in a cgroup with a limit, and has not begun.
fn churning(threads: usize) -> Result<(Cgroup, Load)> {
    let cgroup = limited_cgroup()?;
    let load = Load::churn(memload(), &Churning { threads, ..Churning::new(&cgroup) })?;
    Ok((cgroup, load))
}

/// How many episodes rounds are where no gap is too long: what follows another one of its thread for the
/// same order and flags is the same, and so is what has none and is of the same kind. A compaction that was
/// deferred has none, and belongs to what it follows.
fn episodes_of(rounds: &Stalls) -> usize {
    let mut sequence: Vec<_> = rounds.episodes.iter().collect();
    sequence.sort_by_key(|round| (round.tid, round.start_ns));
    let mut before = None;
    sequence.retain(|round| {
        let follows = before.replace(round.tid) == Some(round.tid);
        !(follows && round.order.is_none() && round.kind == "compaction")
    });
    sequence.dedup_by(|next, before| {
        (next.tid, next.order, &next.value["gfp"])
            == (before.tid, before.order, &before.value["gfp"])
            && (next.order.is_some() || next.kind == before.kind)
    });
    sequence.len()
}
