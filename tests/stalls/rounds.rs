//! Rounds: those that drsnoop shows.

use std::collections::BTreeMap;

use anyhow::Result;
use tests::{
    compare::assert_within_bounds, episodes::Stalls, host::kprobes_work, rows::Output,
    run::Memtrace,
};

use super::{churning, stopped};

/// Fewer stalls than this prove nothing.
const ENOUGH: usize = 500;

/// What both saw of a thread, in nanoseconds: begin and duration of each stall.
type Threads = BTreeMap<u32, Vec<(u64, u64)>>;

fn sorted(stalls: impl Iterator<Item = (u32, u64, u64)>) -> Threads {
    let mut threads = Threads::new();
    for (tid, start_ns, duration_ns) in stalls {
        threads.entry(tid).or_default().push((start_ns, duration_ns));
    }
    for thread in threads.values_mut() {
        thread.sort_unstable();
    }
    threads
}

/// Compares rounds one by one.
#[track_caller]
fn assert_same(rounds: &Threads, drsnoop: &Threads) {
    let [mut starts, mut durations] = [const { Vec::new() }; 2];
    for (tid, theirs) in drsnoop {
        let ours = rounds.get(tid).map_or(&[][..], Vec::as_slice);
        assert_eq!(ours.len(), theirs.len(), "stalls of thread {tid}, and those of drsnoop");
        for (ours, theirs) in ours.iter().zip(theirs) {
            starts.push(ours.0.abs_diff(theirs.0));
            durations.push(ours.1.abs_diff(theirs.1));
        }
    }
    assert_eq!(rounds.len(), drsnoop.len(), "threads, and those of drsnoop");
    assert_within_bounds("begin", starts);
    assert_within_bounds("duration", durations);
}

/// Compares rounds that may be longer than what drsnoop measures: from the begin of the memstall
/// section around it, in which there may be several.
#[track_caller]
fn assert_inside(rounds: &Stalls, drsnoop: &Threads) {
    let count = drsnoop.values().map(Vec::len).sum::<usize>() as u64;
    let reclaims: u64 = rounds.episodes.iter().map(|episode| episode.rounds[0]).sum();
    assert_eq!(reclaims, count, "rounds of reclaim, and stalls of drsnoop");
    let mut durations = Vec::new();
    for episode in rounds.episodes.iter().filter(|episode| episode.rounds[0] > 0) {
        let thread = drsnoop.get(&episode.tid).map_or(&[][..], Vec::as_slice);
        let inside = thread.iter().filter(|(start_ns, duration_ns)| {
            let middle = start_ns + duration_ns / 2;
            (episode.start_ns..episode.end_ns).contains(&middle)
        });
        let (number, ns) = inside.fold((0, 0), |(number, ns), it| (number + 1, ns + it.1));
        assert_eq!(number, episode.rounds[0], "stalls of drsnoop in {}", episode.value);
        let reclaim = episode.kinds.values().sum::<u64>();
        durations.push(reclaim.abs_diff(ns));
        assert!(
            reclaim <= episode.duration_ns,
            "its rounds are longer than it is: {}",
            episode.value
        );
    }
    assert_within_bounds("duration", durations);
}

/// The same threads by both, from before they begin to after they have ended.
#[test]
fn as_drsnoop() -> Result<()> {
    let (_cgroup, mut load) = churning(4)?;
    let pid = load.id().to_string();
    let memtrace = Memtrace::start(&["stalls", "--rounds", "--json", "-p", &pid]);
    let drsnoop = Memtrace::start(&["drsnoop", "--json", "-p", &pid]);
    load.work_until_shown(&drsnoop, ENOUGH, 4)?;
    load.stop()?;
    let finished = drsnoop.stop();
    let rounds = stopped(memtrace)?;
    finished.assert_success();
    let drsnoop = Output::parse(&finished.stdout)?;
    drsnoop.summary.assert_nothing_lost();
    let theirs = sorted(drsnoop.rows.iter().map(|row| (row.tid, row.start_ns, row.duration_ns)));
    if kprobes_work() {
        assert_inside(&rounds, &theirs);
    } else {
        let episodes = rounds.episodes.iter();
        let ours = episodes.map(|it| (it.tid, it.start_ns, it.duration_ns));
        assert_same(&sorted(ours), &theirs);
    }
    println!("{} rounds agree", drsnoop.rows.len());
    Ok(())
}
