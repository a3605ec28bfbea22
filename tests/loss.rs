//! What memtrace cannot deliver is counted, each stall once.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use rustix::process::Signal;
use tests::{
    host::{has_preemptible_tracepoints, is_guest},
    load::{Churning, HITS, Load, limited_cgroup},
    oracle::{Oracle, Trace},
    rows::Output,
    run::{Finished, Memtrace},
};

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// Number of a load's stalls.
fn of_load(trace: &Trace, load: &BTreeSet<u32>) -> u64 {
    trace.stalls.iter().filter(|stall| load.contains(&stall.tid)).count() as u64
}

/// Runs a load while memtrace is stopped and cannot read its ring buffer, the smallest possible.
/// Gives what memtrace left behind, and how many stalls there were.
fn starve(start: impl FnOnce(&[&str]) -> Memtrace, args: &[&str]) -> Result<(Finished, u64)> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let (pid, tids) = (load.id().to_string(), load.tids().clone());
    let oracle = Oracle::start()?;
    let memtrace = start(&[&["drsnoop", "--buffer-size", "4K", "-p", &pid], args].concat());
    memtrace.signal(Signal::STOP);
    load.work(&cgroup, HITS / 2)?;
    load.stop()?;
    memtrace.signal(Signal::CONT);
    let finished = memtrace.stop();
    finished.assert_success();
    let count = of_load(&oracle.stop()?, &tids);
    Ok((finished, count))
}

#[test]
fn full_ring_buffer() -> Result<()> {
    let (finished, count) = starve(|args| Memtrace::start(args), &["--json"])?;
    let Output { rows, summary, histograms: _ } = Output::parse(&finished.stdout)?;
    assert_eq!(summary.stalls, rows.len() as u64);
    assert!(
        summary.stalls > 0 && summary.lost > 0,
        "a full buffer makes some seen and some lost: {summary:?}"
    );
    assert_eq!(
        summary.stalls + summary.lost,
        count,
        "seen and lost are all of the oracle's: {summary:?}"
    );
    assert_eq!((summary.missed_begin, summary.table_full), (0, 0), "{summary:?}");
    Ok(())
}

/// Where the kernel counts, no stall needs room in the buffer; where it does not, each is lost or shown
/// as those of rows are.
#[test]
fn histograms_of_a_stopped_reader() -> Result<()> {
    let (finished, count) = starve(|args| Memtrace::start(args), &["--json", "-H"])?;
    let Output { rows: _, summary, histograms } = Output::parse(&finished.stdout)?;
    if has_preemptible_tracepoints() {
        assert!(summary.lost > 0, "4 KiB hold some dozens: {summary:?}");
        assert_eq!(summary.stalls + summary.lost, count, "{summary:?}");
    } else {
        summary.assert_nothing_lost();
        assert_eq!(summary.stalls, count, "those of the oracle, although 4 KiB hold some dozens");
    }
    let counts = histograms.iter().filter_map(|histogram| histogram["count"].as_u64());
    assert_eq!(counts.sum::<u64>(), summary.stalls);
    Ok(())
}

#[test]
fn full_ring_buffer_for_people() -> Result<()> {
    let (finished, count) = starve(|args| Memtrace::start(args), &[])?;
    let summary = finished.summary();
    assert!(summary.lost > 0, "{summary:?}");
    assert_eq!(
        summary.stalls + summary.lost,
        count,
        "seen and lost are all of the oracle's: {summary:?}"
    );
    assert_eq!(finished.stdout.lines().count() as u64, 1 + summary.stalls, "a header and the rows");
    Ok(())
}

/// `-q` means rows only, but a loss is said even so.
#[test]
fn full_ring_buffer_when_quiet() -> Result<()> {
    let (finished, count) = starve(Memtrace::start_quiet, &[])?;
    let summary = finished.summary();
    assert!(summary.lost > 0, "{summary:?}");
    assert_eq!(
        summary.stalls + summary.lost,
        count,
        "seen and lost are all of the oracle's: {summary:?}"
    );
    assert_eq!(finished.stdout.lines().count() as u64, summary.stalls, "rows only");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    Ok(())
}

/// Room for one thread in a slot and for one in the table, and eight of them.
#[test]
fn full_table() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning { threads: 8, ..Churning::new(&cgroup) })?;
    let (pid, tids) = (load.id().to_string(), load.tids().clone());
    let oracle = Oracle::start()?;
    let memtrace = Memtrace::start(&["drsnoop", "--json", "--max-stalled", "1", "-p", &pid]);
    load.work(&cgroup, HITS)?;
    load.stop()?;
    let finished = memtrace.stop();
    finished.assert_success();
    let count = of_load(&oracle.stop()?, &tids);
    let summary = Output::parse(&finished.stdout)?.summary;
    println!("{count} stalls: {summary:?}");
    assert!(summary.stalls > 0 && summary.table_full > 0, "{summary:?}");
    assert_eq!(
        summary.stalls + summary.table_full,
        count,
        "seen and without room are all of the oracle's: {summary:?}"
    );
    assert_eq!((summary.missed_begin, summary.lost), (0, 0), "each is counted once: {summary:?}");
    Ok(())
}

/// Threads that keep the CPUs busy, some of them in a stall at most times. More than that keep memtrace
/// from attaching, and a guest for a minute.
fn busy_threads() -> usize {
    if is_guest() { 3 } else { 8 }
}

/// memtrace attaches while a load is at work, until that catches a stall in progress.
///
/// When exactly each probe is attached cannot be known. What is certain: a stall that began before
/// memtrace was started and ended when it was attached has no begin for it, and one that it counts
/// began before it was attached and ended after it was started. None of them is shown, and all that
/// comes after is.
#[test]
fn stalls_in_progress_when_attaching() -> Result<()> {
    const ATTEMPTS: usize = 10;
    let cgroup = limited_cgroup()?;
    let what = Churning { threads: busy_threads(), ..Churning::new(&cgroup) };
    let mut load = Load::churn(memload(), &what)?;
    let (pid, tids) = (load.id().to_string(), load.tids().clone());
    load.work(&cgroup, 1)?;
    let mut caught = 0;
    for _ in 0..ATTEMPTS {
        let oracle = Oracle::start()?;
        let memtrace = Memtrace::start(&["drsnoop", "--json", "-p", &pid]);
        let finished = memtrace.stop();
        finished.assert_success();
        let trace = oracle.stop()?;
        let Output { rows, summary, histograms: _ } = Output::parse(&finished.stdout)?;
        summary.assert_nothing_lost();

        let stalls: Vec<_> =
            trace.stalls.iter().filter(|stall| tids.contains(&stall.tid)).collect();
        let (started, attached) = (finished.spawned_ns, finished.attached_ns);
        let certain = stalls
            .iter()
            .filter(|stall| stall.begin_ns < started && stall.end_ns > attached)
            .count();
        let shown = |stall: &tests::oracle::Stall| {
            rows.iter().any(|row| {
                row.tid == stall.tid
                    && row.start_ns <= stall.end_ns
                    && stall.begin_ns <= row.end_ns()
            })
        };
        let possible = stalls
            .iter()
            .filter(|stall| stall.begin_ns < attached && stall.end_ns > started && !shown(stall))
            .count();
        // The oracle starts a little earlier, but its own begin may be missing, too.
        let orphans = trace
            .ends_without_begin
            .iter()
            .filter(|end| tids.contains(&end.tid) && end.at_ns > started)
            .count();
        let range = certain as u64..=(possible + orphans) as u64;
        assert!(range.contains(&summary.missed_begin), "{summary:?}, not within {range:?}");
        println!("{} missed, of {range:?}", summary.missed_begin);
        caught += summary.missed_begin;
        if caught > 0 {
            break;
        }
    }
    load.stop()?;
    assert!(caught > 0, "attached {ATTEMPTS} times to busy threads without a stall in progress");
    Ok(())
}

/// memtrace ends while a load is at work, until that leaves a stall behind.
#[test]
fn stalls_in_progress_at_the_end() -> Result<()> {
    const ATTEMPTS: usize = 10;
    let cgroup = limited_cgroup()?;
    let what = Churning { threads: busy_threads(), ..Churning::new(&cgroup) };
    let mut load = Load::churn(memload(), &what)?;
    let pid = load.id().to_string();
    load.work(&cgroup, 1)?;
    let mut unfinished = 0;
    for _ in 0..ATTEMPTS {
        let finished = Memtrace::start(&["drsnoop", "--json", "-p", &pid]).stop();
        finished.assert_success();
        unfinished = Output::parse(&finished.stdout)?.summary.unfinished;
        assert!(
            unfinished <= what.threads as u64,
            "{unfinished} stalls of {} threads",
            what.threads
        );
        if unfinished > 0 {
            break;
        }
    }
    load.stop()?;
    assert!(unfinished > 0, "ended {ATTEMPTS} times beside busy threads that never stalled");
    Ok(())
}
