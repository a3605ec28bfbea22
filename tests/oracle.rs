//! memtrace against ftrace: the same stalls, none missing, none extra, all fields equal.
//!
//! The oracle starts before memtrace and stops after it, so every stall that memtrace shows, of
//! whatever thread of the host, must be in the trace; and every stall in the trace that began and
//! ended while memtrace was attached must be shown.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use tests::{
    compare::match_up,
    host::zones,
    load::{Churning, HITS, Load, limited_cgroup},
    oracle::{Detail, Mechanism, Oracle},
    rows::Output,
    run::{Finished, Memtrace, command},
};

/// Fewer stalls than this prove nothing.
const ENOUGH: usize = 500;

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// What a load had to do with its stalls.
struct Threads {
    /// Those that were there before it began to work.
    workers: Vec<u32>,
    /// Those that stalled. The main thread may be among them, as it ends the others.
    stalled: BTreeSet<u32>,
}

/// Compares the reclaim of a load.
fn compare_churn(threads: usize, brief: bool) -> Result<Threads> {
    let cgroup = limited_cgroup()?;
    let oracle = Oracle::start()?;
    let memtrace = Memtrace::start(&["drsnoop", "--json"]);
    let mut load = Load::churn(memload(), &Churning { threads, brief, ..Churning::new(&cgroup) })?;
    let (pid, workers) = (load.id(), load.workers());
    load.work(&cgroup, HITS)?;
    load.stop()?;
    let memtrace = memtrace.stop();
    let trace = oracle.stop()?;

    memtrace.assert_success();
    let Output { rows, summary, histograms: _ } = Output::parse(&memtrace.stdout)?;
    summary.assert_nothing_lost();
    assert_eq!(usize::try_from(summary.stalls)?, rows.len(), "stalls of the summary");

    let reclaims = trace.stalls.iter().filter(|stall| stall.mechanism != Mechanism::Compaction);
    let matched = match_up(reclaims, &rows).within(&memtrace);
    matched.assert_same();

    let of_load: Vec<_> = matched.pairs.iter().filter(|(_, row)| row.pid == pid).collect();
    assert!(of_load.len() >= ENOUGH, "only {} stalls of the load", of_load.len());
    for (_, row) in &of_load {
        assert_eq!(
            (row.kind.as_str(), row.comm.as_str(), row.uid),
            ("memcg", "memload", 0),
            "{}",
            row.value
        );
    }
    println!("{} stalls of the load agree", of_load.len());
    Ok(Threads { workers, stalled: of_load.iter().map(|(stall, _)| stall.tid).collect() })
}

/// Compares the reclaim of a load whose threads stay.
fn compare_all_of(threads: usize) -> Result<()> {
    let Threads { workers, stalled } = compare_churn(threads, false)?;
    assert_eq!(workers.len(), threads, "threads that work: {workers:?}");
    let idle: Vec<_> = workers.iter().filter(|&tid| !stalled.contains(tid)).collect();
    assert!(idle.is_empty(), "{idle:?} of {workers:?} never stalled, but {stalled:?} did");
    Ok(())
}

#[test]
fn threads_that_stay() -> Result<()> {
    compare_all_of(4)
}

#[test]
fn more_threads_than_cpus_at_once() -> Result<()> {
    compare_all_of(8)
}

#[test]
fn threads_that_come_and_go() -> Result<()> {
    // The workers start the others, and stall for their stacks.
    let Threads { workers, stalled } = compare_churn(4, true)?;
    let came = stalled.iter().filter(|tid| !workers.contains(tid)).count();
    assert!(came >= 20, "only {came} threads stalled: {stalled:?}");
    Ok(())
}

#[test]
fn manual_compaction() -> Result<()> {
    const TIMES: usize = 3;
    let oracle = Oracle::start()?;
    let memtrace = Memtrace::start(&["compactsnoop", "--json"]);
    let mut load = Load::compact(memload(), u32::try_from(TIMES)?)?;
    let pid = load.id();
    load.go()?;
    load.wait()?;
    let memtrace = memtrace.stop();
    let trace = oracle.stop()?;

    memtrace.assert_success();
    let Output { rows, summary, histograms: _ } = Output::parse(&memtrace.stdout)?;
    summary.assert_nothing_lost();
    assert_eq!(usize::try_from(summary.stalls)?, rows.len(), "stalls of the summary");

    let compactions = trace.stalls.iter().filter(|stall| stall.mechanism == Mechanism::Compaction);
    let matched = match_up(compactions, &rows).within(&memtrace);
    matched.assert_same();

    let of_load: Vec<_> = matched.pairs.iter().filter(|(_, row)| row.pid == pid).collect();
    // Some kernels pass zones by without touching them, and how many zones there are depends on the
    // host, but each is compacted as often as all are.
    let names: BTreeSet<_> = of_load
        .iter()
        .map(|(stall, _)| match &stall.detail {
            Detail::Compaction { node, zone, .. } => (*node, zone.as_str()),
            Detail::Reclaim { .. } => unreachable!("compactions only"),
        })
        .collect();
    assert!(!names.is_empty() && names.len() <= zones()?.len(), "zones compacted: {names:?}");
    assert_eq!(of_load.len(), names.len() * TIMES, "compactions of {names:?}");
    for (_, row) in &of_load {
        assert_eq!(
            (row.kind.as_str(), row.comm.as_str(), row.tid),
            ("manual", "memload", pid),
            "{}",
            row.value
        );
        assert_eq!(
            (row.value["order"].as_i64(), row.value["mode"].as_str()),
            (Some(-1), Some("sync")),
            "{}",
            row.value
        );
    }
    Ok(())
}

/// Writing to memory.reclaim makes a reclaim of its own kind, which the oracle sees as memcg
/// reclaim. Cgroup v1 has no such file: there memtrace has nothing of that kind to show. Kernels
/// that do not tell it from other memcg reclaim are named as such.
#[test]
fn proactive_reclaim() -> Result<()> {
    let alone = Finished::of(&mut command(&["drsnoop", "--kind", "proactive", "-d", "1ms"]));
    if !alone.status.success() {
        assert!(alone.stderr.contains("no scan_control.proactive"), "{}", alone.stderr);
        let memtrace = Memtrace::start(&["drsnoop", "--json", "--kind", "memcg,proactive"]).stop();
        let unavailable = Output::parse(&memtrace.stdout)?.summary.unavailable;
        assert_eq!(unavailable, ["proactive reclaim (no scan_control.proactive)"]);
        return Ok(());
    }
    let cgroup = limited_cgroup()?;
    let oracle = Oracle::start()?;
    let memtrace = Memtrace::start(&["drsnoop", "--json", "--kind", "proactive"]);
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    load.work(&cgroup, HITS / 10)?;
    let asked = cgroup.has_reclaim_file();
    if asked {
        cgroup.reclaim(tests::load::LIMIT / 4)?;
    }
    load.stop()?;
    let memtrace = memtrace.stop();
    let trace = oracle.stop()?;

    memtrace.assert_success();
    let Output { rows, summary, histograms: _ } = Output::parse(&memtrace.stdout)?;
    assert!(trace.stalls.len() >= 10, "only {} stalls, none of which to show", trace.stalls.len());
    assert_eq!(
        summary.stalls > 0,
        asked,
        "proactive reclaims in {summary:?}, with a write to memory.reclaim: {asked}"
    );
    for row in &rows {
        assert_eq!(
            (row.kind.as_str(), row.pid),
            ("proactive", std::process::id()),
            "{}",
            row.value
        );
    }
    let matched = match_up(&trace.stalls, &rows);
    matched.assert_none_extra();
    matched.assert_pairs_agree();
    Ok(())
}
