//! Fields that the oracle does not have, against what else the kernel tells.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use tests::{
    compare::match_up,
    host::{Zone, monotonic_ns, zones},
    load::{Churning, Load, limited_cgroup},
    oracle::Oracle,
    rows::{Output, Row, number, signed, string, strings},
    run::Memtrace,
};

/// What the host may allocate or free between a look of memtrace and the next one of the test.
const SLACK_PAGES: u64 = 64 << 8;

/// So many pages are what a reclaim tries to get (`SWAP_CLUSTER_MAX` in include/linux/swap.h).
const ENOUGH_PAGES: u64 = 32;

/// At which every reclaim begins (`DEF_PRIORITY` in include/linux/mmzone.h); the number falls.
const HIGHEST_PRIORITY: i64 = 12;

/// The clocks are compared once a second, and the time of day may be slewed.
const CLOCK_SLACK: Duration = Duration::from_millis(10);

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// The least and the most of some number of pages, as long as it was watched.
#[derive(Clone, Copy, Debug)]
struct Range(u64, u64);

impl Range {
    #[track_caller]
    fn assert_contains(self, pages: u64, row: &Row) {
        let Self(least, most) = self;
        let (least, most) = (least.saturating_sub(SLACK_PAGES), most + SLACK_PAGES);
        assert!(
            (least..=most).contains(&pages),
            "{pages} pages, not within {least} to {most}, in {}",
            row.value
        );
    }
}

/// Watches the zones while `work` runs.
fn watch_zones<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Vec<Zone>>)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = vec![zones()?];
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
                seen.push(zones()?);
            }
            seen.push(zones()?);
            Ok(seen)
        });
        let result = work();
        stop.store(true, Ordering::Relaxed);
        let seen: Result<_> =
            watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((result?, seen?))
    })
}

fn range(numbers: impl Iterator<Item = u64>) -> Range {
    let (least, most) =
        numbers.fold((u64::MAX, 0), |(least, most), number| (least.min(number), most.max(number)));
    Range(least, most)
}

/// A load in a cgroup whose parent has the limit.
#[test]
fn of_reclaim() -> Result<()> {
    const ENOUGH: usize = 50;
    let limited = limited_cgroup()?;
    let payer = limited.child()?;
    let mut load = Load::churn(memload(), &Churning::new(&payer))?;
    let oracle = Oracle::start()?;
    let pid = load.id().to_string();
    let memtrace = Memtrace::start(&["drsnoop", "--json", "-K", "--kind", "memcg", "-p", &pid]);
    let ((), seen) = watch_zones(|| {
        load.work_until_shown(&memtrace, ENOUGH, 1)?;
        load.stop().map(|_| ())
    })?;
    // While the cgroups are still there, so that their paths are.
    let finished = memtrace.stop();
    let trace = oracle.stop()?;
    finished.assert_success();
    let Output { rows, summary, histograms: _ } = Output::parse(&finished.stdout)?;
    summary.assert_nothing_lost();
    assert!(rows.len() >= ENOUGH, "only {} stalls", rows.len());
    assert_eq!(
        summary.unavailable,
        Vec::<String>::new(),
        "this test is of a kernel that has everything"
    );

    let free = range(seen.iter().map(|zones| zones.iter().map(|zone| zone.free).sum()));
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let booted = wall.saturating_sub(Duration::from_nanos(monotonic_ns()));
    for row in &rows {
        let value = &row.value;
        assert_eq!(number::<u64>(value, "cgroup_id")?, payer.id()?, "{value}");
        assert_eq!(string(value, "cgroup")?, payer.name(), "{value}");
        assert_eq!(number::<u64>(value, "target_cgroup_id")?, limited.id()?, "{value}");
        assert_eq!(string(value, "target_cgroup")?, limited.name(), "{value}");
        assert!((0..=12).contains(&signed(value, "priority")?), "{value}");
        free.assert_contains(number(value, "free_pages")?, row);
        assert_eq!(value["compaction_ready"].as_bool(), Some(false), "{value}");

        let time: jiff::Timestamp = string(value, "time")?.parse().context("no RFC 3339 time")?;
        let time = Duration::try_from(time.as_duration())?;
        let expected = booted + Duration::from_nanos(row.start_ns);
        assert!(time.abs_diff(expected) <= CLOCK_SLACK, "{time:?}, but by start_ns {expected:?}");

        let stack = strings(value, "stack")?;
        let outermost_probe = stack.first().context("an empty stack")?;
        assert!(
            outermost_probe.contains("try_to_free_mem_cgroup_pages"),
            "frames of the tracer's own: {stack:?}"
        );
        assert!(
            !stack.iter().any(|frame| frame.contains("bpf_")),
            "frames of the tracer's own: {stack:?}"
        );
    }

    // A reclaim ends when it has enough, so the last pages that it took tell its lowest priority.
    let matched = match_up(&trace.stalls, &rows);
    let mut priorities = BTreeSet::new();
    for (stall, row) in &matched.pairs {
        let reclaimed: u64 = number(&row.value, "nr_reclaimed")?;
        if let Some(lowest) = stall.priority.filter(|_| reclaimed >= ENOUGH_PAGES) {
            assert_eq!(signed(&row.value, "priority")?, lowest, "{}", row.value);
            priorities.insert(lowest);
        }
    }
    assert!(
        priorities.iter().any(|&lowest| lowest < HIGHEST_PRIORITY),
        "never more than one round: {priorities:?}"
    );
    Ok(())
}

#[test]
fn of_compaction() -> Result<()> {
    let mut load = Load::compact(memload(), 3)?;
    let memtrace = Memtrace::start(&["compactsnoop", "--json", "-K", "-p", &load.id().to_string()]);
    let (_, seen) = watch_zones(|| {
        load.go()?;
        load.wait()
    })?;
    let finished = memtrace.stop();
    finished.assert_success();
    let Output { rows, summary, histograms: _ } = Output::parse(&finished.stdout)?;
    summary.assert_nothing_lost();
    assert!(!rows.is_empty());
    // What a kernel that does not tell at the end of a compaction which it was has instead.
    let tells_control = summary.unavailable.is_empty();
    if !tells_control {
        let [lacking] = &summary.unavailable[..] else { panic!("{summary:?}") };
        assert!(lacking.starts_with("pages scanned ("), "{lacking}");
    }

    let own_cgroup = own_memory_cgroup()?;
    for row in &rows {
        let value = &row.value;
        let (node, name) = (signed(value, "node")?, string(value, "zone")?);
        let zone = |zones: &Vec<Zone>| {
            zones.iter().find(|zone| zone.node == node && zone.name == name).cloned()
        };
        let zones: Vec<Zone> = seen.iter().filter_map(zone).collect();
        assert!(!zones.is_empty(), "/proc/zoneinfo has no such zone: {value}");
        for (key, of) in [
            ("watermark_min", (|zone| zone.min) as fn(&Zone) -> u64),
            ("watermark_low", |zone| zone.low),
            ("watermark_high", |zone| zone.high),
        ] {
            let found: u64 = number(value, key)?;
            assert!(
                zones.iter().any(|zone| of(zone) == found),
                "{key} is not among {:?}: {value}",
                range(zones.iter().map(of))
            );
        }
        range(zones.iter().map(|zone| zone.free))
            .assert_contains(number(value, "free_pages")?, row);
        // The index is that of an order, and here a whole zone is compacted.
        assert!(value["frag_index"].is_null(), "{value}");
        if tells_control {
            assert_eq!(strings(value, "gfp")?, ["GFP_KERNEL"], "{value}");
        } else {
            for key in ["gfp", "migrate_scanned", "free_scanned"] {
                assert!(value[key].is_null(), "{key} in {value}");
            }
        }
        assert_eq!(string(value, "cgroup")?, own_cgroup, "{value}");
        let stack = strings(value, "stack")?;
        assert!(
            !stack.is_empty() && !stack.iter().any(|frame| frame.contains("bpf_")),
            "frames of the tracer's own: {stack:?}"
        );
        assert!(stack.iter().any(|frame| frame.contains("compact")), "{stack:?}");
    }
    if tells_control {
        let scanned = rows.iter().map(|row| number::<u64>(&row.value, "migrate_scanned"));
        let scanned: u64 = scanned.sum::<Result<_>>()?;
        assert!(scanned > 0, "the migration scanner looked at nothing in any zone");
    }
    Ok(())
}

/// The cgroup of this process and its children, in the memory controller's hierarchy.
fn own_memory_cgroup() -> Result<String> {
    let cgroups =
        fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let lines: Vec<Vec<&str>> = cgroups.lines().map(|line| line.splitn(3, ':').collect()).collect();
    let v1 = lines.iter().find(|line| line[1].split(',').any(|name| name == "memory"));
    let v2 = lines.iter().find(|line| line[1].is_empty());
    Ok(v1.or(v2).context("no cgroup of memory")?[2].to_owned())
}
