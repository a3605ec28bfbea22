//! memtrace against ftrace: the same stalls, none missing, none extra, all fields equal.
//!
//! The oracle starts before memtrace and stops after it, so every stall that memtrace shows, of
//! whatever thread of the host, must be in the trace; and every stall in the trace that began and
//! ended while memtrace was attached must be shown.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use tests::{
    cgroup::{Cgroup, TEST},
    compare::match_up,
    host::{is_guest, zones},
    load::{Churning, HITS, LIMIT, Load, THREAD_BYTES, limited_cgroup},
    oracle::{Detail, Stall},
    rows::Output,
    run::{Finished, Memtrace, command},
    watch::{Watched, watch},
};

/// Fewer stalls than this prove nothing.
const ENOUGH: usize = 500;

/// Where more threads than this want to run, how far two measurements are apart says nothing, and
/// memtrace has to wait so long that more stalls than usual wait for it.
const MOST_TIMED: usize = 8;

/// Slots for stalls in progress in [`more_threads_than_slots`], a power of two.
const SLOTS: u32 = 4;

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// The threads of a load.
struct Threads {
    /// Those that were there before it began to work, but for the main one.
    workers: BTreeSet<u32>,
    /// Those that stalled. The main one may be among them, as it ends the others.
    stalled: BTreeSet<u32>,
    /// How many of them were in a stall at the same time.
    at_once: usize,
    /// How often one stalled while another did that had the same of [`SLOTS`] slots.
    shared: usize,
}

/// Compares the reclaim of a load, which is let `work` until it has stalled often `enough`.
fn compare_churn(
    what: &Churning<'_>,
    args: &[&str],
    enough: usize,
    work: impl FnOnce(&mut Load, &Memtrace) -> Result<()>,
) -> Result<Threads> {
    let mut load = Load::churn(memload(), what)?;
    let (pid, workers) = (load.id(), load.workers().into_iter().collect());
    let watched = watch("drsnoop", args, |memtrace| {
        work(&mut load, memtrace)?;
        load.stop().map(drop)
    })?;
    watched.assert_same_fields();
    let matched = watched.matched();
    if what.threads <= MOST_TIMED {
        matched.assert_times_agree();
    }

    let of_load: Vec<_> = matched.pairs.iter().filter(|(_, row)| row.pid == pid).collect();
    assert!(of_load.len() >= enough, "only {} stalls of the load", of_load.len());
    for (_, row) in &of_load {
        assert_eq!(
            (row.kind.as_str(), row.comm.as_str(), row.uid),
            ("memcg", "memload", 0),
            "{}",
            row.value
        );
    }
    println!("{} stalls of the load agree", of_load.len());
    let stalls: Vec<_> = of_load.iter().map(|(stall, _)| *stall).collect();
    let begun = |at_ns: u64| stalls.iter().filter(|stall| stall.begin_ns <= at_ns).count();
    let ended = |at_ns: u64| stalls.iter().filter(|stall| stall.end_ns <= at_ns).count();
    // There are most of them where one begins.
    let at_once = stalls.iter().map(|stall| begun(stall.begin_ns) - ended(stall.begin_ns)).max();
    let share = |one: &Stall, other: &Stall| {
        one.tid != other.tid
            && one.tid % SLOTS == other.tid % SLOTS
            && (one.begin_ns..one.end_ns).contains(&other.begin_ns)
    };
    Ok(Threads {
        workers,
        stalled: stalls.iter().map(|stall| stall.tid).collect(),
        at_once: at_once.unwrap_or_default(),
        shared: stalls.iter().filter(|one| stalls.iter().any(|other| share(one, other))).count(),
    })
}

/// Compares the reclaim of a load whose threads stay.
fn compare_all_of(threads: usize, args: &[&str]) -> Result<Threads> {
    let cgroup = limited_cgroup()?;
    let what = Churning { threads, ..Churning::new(&cgroup) };
    let compared = compare_churn(&what, args, ENOUGH, |load, memtrace| {
        load.work_until_shown(memtrace, ENOUGH, threads)
    })?;
    let Threads { workers, stalled, .. } = &compared;
    assert_eq!(workers.len(), threads, "threads that work: {workers:?}");
    let idle: Vec<_> = workers.difference(stalled).collect();
    assert!(idle.is_empty(), "{idle:?} of {workers:?} never stalled, but {stalled:?} did");
    Ok(compared)
}

#[test]
fn threads_that_stay() -> Result<()> {
    compare_all_of(4, &[]).map(drop)
}

/// More of them than CPUs, and than the slots that memtrace has for stalls in progress: who finds its
/// slot taken goes into a table.
#[test]
fn more_threads_than_slots() -> Result<()> {
    let args = ["--max-stalled", &SLOTS.to_string()];
    let Threads { shared, .. } = compare_all_of(2 * SLOTS as usize, &args)?;
    println!("{shared} stalls while another one had the slot");
    assert!(shared > 0, "no two threads of the same slot stalled at once");
    Ok(())
}

/// Many of them stall at the same time. Memtrace, which is one thread more, has to wait for its turn on
/// a CPU as they do: it may show them only later, which its buffer must have room for.
#[test]
fn two_hundred_threads() -> Result<()> {
    const THREADS: usize = 200;
    const MOST: usize = 100;
    // More than both CPUs of a small machine run.
    const AT_ONCE: usize = 3;
    // What each of them writes cannot be reclaimed before it is on the disk.
    let cgroup = Cgroup::limited(TEST, LIMIT + THREADS as u64 * 2 * THREAD_BYTES)?;
    let what = Churning { threads: THREADS, ..Churning::new(&cgroup) };
    let args = ["--buffer-size", "32M"];
    let compared = compare_churn(&what, &args, MOST, |load, _| {
        load.work(&cgroup, if is_guest() { HITS } else { 4 * HITS })
    })?;
    let Threads { workers, stalled, at_once, .. } = compared;
    let count = workers.intersection(&stalled).count();
    assert!(count >= MOST, "only {count} of {} threads stalled", workers.len());
    println!("{at_once} of {count} stalled at once");
    // Where reclaim takes microseconds, few are in it at the same time.
    assert!(
        !is_guest() || at_once >= AT_ONCE,
        "never more than {at_once} of {count} stalled at once"
    );
    Ok(())
}

#[test]
fn threads_that_come_and_go() -> Result<()> {
    const MANY: usize = 20;
    let cgroup = limited_cgroup()?;
    let what = Churning { brief: true, ..Churning::new(&cgroup) };
    let compared = compare_churn(&what, &[], ENOUGH, |load, memtrace| {
        load.work_until_shown(memtrace, ENOUGH, MANY + what.threads)
    })?;
    let Threads { workers, stalled, .. } = compared;
    let came = stalled.difference(&workers).count();
    assert!(came >= MANY, "only {came} threads stalled: {stalled:?}");
    Ok(())
}

#[test]
fn manual_compaction() -> Result<()> {
    const TIMES: usize = 3;
    let mut load = Load::compact(memload(), u32::try_from(TIMES)?)?;
    let pid = load.id();
    let watched = watch("compactsnoop", &[], |_| {
        load.go()?;
        load.wait().map(drop)
    })?;
    watched.assert_same_fields();
    let matched = watched.matched();
    matched.assert_times_agree();

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
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let asked = cgroup.has_reclaim_file();
    let watched = watch("drsnoop", &["--kind", "proactive"], |_| {
        load.work(&cgroup, HITS / 10)?;
        if asked {
            cgroup.reclaim(LIMIT / 4)?;
        }
        load.stop().map(drop)
    })?;
    let Watched { output: Output { rows, summary, histograms: _ }, trace, .. } = &watched;
    assert!(trace.stalls.len() >= 10, "only {} stalls, none of which to show", trace.stalls.len());
    assert_eq!(
        summary.stalls > 0,
        asked,
        "proactive reclaims in {summary:?}, with a write to memory.reclaim: {asked}"
    );
    for row in rows {
        assert_eq!(
            (row.kind.as_str(), row.pid),
            ("proactive", std::process::id()),
            "{}",
            row.value
        );
    }
    let matched = match_up(&trace.stalls, rows);
    matched.assert_none_extra();
    matched.assert_pairs_agree();
    Ok(())
}
