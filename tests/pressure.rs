//! Memory pressure of every kind, against ftrace and /proc/vmstat. Only in a guest: most of it takes
//! the whole machine.
//!
//! What the kernel's counters have to do with stalls stands in docs/vmstat.md.

use std::path::Path;

use anyhow::{Context as _, Result};
use tests::{
    cgroup::{Cgroup, Limit, TEST},
    compare::{Matched, match_up},
    host::require_guest,
    load::{Churning, LIMIT, Load},
    oracle::{Mechanism, Oracle, Trace},
    rows::{Output, Row},
    run::{Finished, Memtrace},
    setting::Setting,
    vmstat::Vmstat,
};

/// Stalls in direct reclaim that each of the three loads is to make.
const STALLS_OF_A_LOAD: u64 = 800;

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// Everything about one trace.
struct Watched {
    /// Whether it is about compaction, and not reclaim.
    of_compaction: bool,
    memtrace: Finished,
    memtrace_pid: u32,
    output: Output,
    trace: Trace,
    /// How far the counters moved, from before the trace until after it.
    vmstat: Vmstat,
}

/// Traces what `load` does.
fn watch(subject: &str, load: impl FnOnce() -> Result<()>) -> Result<Watched> {
    let oracle = Oracle::start()?;
    let before = Vmstat::read()?;
    let memtrace = Memtrace::start(&[subject, "--json"]);
    let memtrace_pid = memtrace.id();
    load()?;
    let memtrace = memtrace.stop();
    let vmstat = Vmstat::moved_since(&before)?;
    let trace = oracle.stop()?;
    memtrace.assert_success();
    let output = Output::parse(&memtrace.stdout)?;
    assert_eq!(usize::try_from(output.summary.stalls)?, output.rows.len(), "stalls of the summary");
    let of_compaction = subject == "compactsnoop";
    Ok(Watched { of_compaction, memtrace, memtrace_pid, output, trace, vmstat })
}

impl Watched {
    /// The rows of a kind or cause.
    fn rows<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Row> {
        self.output.rows.iter().filter(move |row| row.kind == kind)
    }

    /// The rows of a kind or cause of one process.
    fn count(&self, kind: &str, pid: u32) -> usize {
        self.rows(kind).filter(|row| row.pid == pid).count()
    }

    /// Sum of a field of the rows of a kind or cause, those left out that do not have it.
    fn sum(&self, kind: &str, key: &str) -> u64 {
        self.rows(kind).filter_map(|row| row.value[key].as_u64()).sum()
    }

    /// Matches rows with the oracle's stalls.
    fn matched(&self) -> Matched<'_> {
        let is_compaction = |mechanism| mechanism == Mechanism::Compaction;
        let stalls = self.trace.stalls.iter();
        let stalls = stalls.filter(|stall| is_compaction(stall.mechanism) == self.of_compaction);
        match_up(stalls, &self.output.rows).within(&self.memtrace)
    }

    /// Checks that memtrace lost nothing and saw what the oracle saw, in all fields.
    #[track_caller]
    fn assert_same(&self) {
        self.output.summary.assert_nothing_lost();
        self.matched().assert_same();
    }

    #[track_caller]
    fn assert_at_least(&self, least: usize, kind: &str, pid: u32) {
        let count = self.count(kind, pid);
        println!("{kind}: {count} stalls of the load");
        assert!(count >= least, "only {count} stalls of kind {kind}, not {least}");
    }
}

/// Stalls in direct reclaim so far, of the whole machine.
fn allocstall() -> u64 {
    Vmstat::read().map_or(0, |vmstat| vmstat.sum("allocstall_"))
}

/// Has memload reclaim directly for a while. Gives its process id.
fn reclaim_directly(args: &[&str]) -> Result<u32> {
    let args = [args, &["--whole-machine", "--leave", "32M", "--duration", "2m"]].concat();
    let mut load = Load::of(memload(), &args)?;
    let (pid, wanted) = (load.id(), allocstall() + STALLS_OF_A_LOAD);
    load.work_until("direct reclaim", || allocstall() >= wanted)?;
    println!("{}", load.stop()?);
    Ok(pid)
}

/// Anonymous memory with swap and without, and page cache; and what /proc/vmstat says to it.
#[test]
fn direct_reclaim() -> Result<()> {
    require_guest();
    let mut pids = Vec::new();
    let watched = watch("drsnoop", || {
        for load in [
            &["anon", "--threads", "16", "--swap", "128M"][..],
            &["anon", "--threads", "16"],
            &["churn", "--threads", "200", "--size", "128M"],
        ] {
            pids.push(reclaim_directly(load)?);
        }
        Ok(())
    })?;
    for &pid in &pids {
        watched.assert_at_least(usize::try_from(STALLS_OF_A_LOAD / 4 * 3)?, "direct", pid);
    }
    let direct = watched.rows("direct").count();
    assert!(direct >= 2000, "only {direct} stalls in direct reclaim");
    watched.assert_same();

    let vmstat = &watched.vmstat;
    let moved = |name: &str| vmstat.get(name).context("no such counter in /proc/vmstat");
    let stalls = u64::try_from(direct)?;
    let (scanned, reclaimed) =
        (watched.sum("direct", "nr_scanned"), watched.sum("direct", "nr_reclaimed"));
    println!(
        "allocstall {} stalls {stalls}; pgscan_direct {} {scanned}; pgsteal_direct {} {reclaimed}",
        vmstat.sum("allocstall_"),
        moved("pgscan_direct")?,
        moved("pgsteal_direct")?
    );
    Ok(())
}

/// The page cache by memory.max and by memory.high, and anonymous memory by memory.max with swap.
#[test]
fn memcg_reclaim() -> Result<()> {
    require_guest();
    let mut pids = Vec::new();
    let watched = watch("drsnoop", || {
        for (limit, event) in [(Limit::Max(LIMIT), "max"), (Limit::High(LIMIT), "high")] {
            let cgroup = Cgroup::limited_by(TEST, limit)?;
            let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
            load.work_until(event, || {
                let events = cgroup.events().unwrap_or_default();
                events.iter().any(|(name, count)| name == event && *count >= 300)
            })?;
            pids.push(load.id());
            load.stop()?;
        }
        let mut load =
            Load::of(memload(), &["anon", "--limit", "16M", "--swap", "64M", "--duration", "5s"])?;
        pids.push(load.id());
        load.go()?;
        println!("{}", load.wait()?);
        Ok(())
    })?;
    for &pid in &pids {
        watched.assert_at_least(100, "memcg", pid);
    }
    watched.assert_same();
    println!(
        "pgscan_direct {:?}, allocstall {}",
        watched.vmstat.get("pgscan_direct"),
        watched.vmstat.sum("allocstall_")
    );
    Ok(())
}

/// Writes to memory.reclaim, where the kernel has it.
#[test]
fn proactive_reclaim() -> Result<()> {
    require_guest();
    let has_file = Cgroup::limited(TEST, LIMIT)?.has_reclaim_file();
    let mut pid = 0;
    let watched = watch("drsnoop", || {
        if !has_file {
            return Ok(());
        }
        let mut load = Load::of(memload(), &["reclaim", "--pause", "20ms", "--duration", "5s"])?;
        pid = load.id();
        load.go()?;
        println!("{}", load.wait()?);
        Ok(())
    })?;
    watched.assert_same();
    println!("{:?}", watched.output.summary);
    if has_file {
        watched.assert_at_least(20, "proactive", pid);
    } else {
        assert_eq!(watched.rows("proactive").count(), 0);
    }
    println!("{:?}", watched.vmstat.beginning_with("pgscan").collect::<Vec<_>>());
    Ok(())
}

/// Huge pages in fragmented memory.
#[test]
fn direct_compaction() -> Result<()> {
    require_guest();
    let _enabled = Setting::set(format!("{HUGE_PAGES}/enabled"), "madvise")?;
    let _defrag = Setting::set(format!("{HUGE_PAGES}/defrag"), "madvise")?;
    let mut pid = 0;
    let watched = watch("compactsnoop", || {
        let mut load = Load::of(
            memload(),
            &["thp", "--whole-machine", "--leave", "128M", "--fragment", "80M", "--duration", "1m"],
        )?;
        pid = load.id();
        let stalls = || Vmstat::read().map_or(0, |vmstat| vmstat.sum("compact_stall"));
        let wanted = stalls() + 300;
        load.work_until("direct compaction", || stalls() >= wanted)?;
        println!("{}", load.stop()?);
        Ok(())
    })?;
    watched.assert_at_least(200, "direct", pid);
    watched.assert_same();
    let causes = ["direct", "kcompactd", "proactive", "manual", "other"];
    for cause in causes {
        println!(
            "{cause}: {} rows, migrate {} free {}",
            watched.rows(cause).count(),
            watched.sum(cause, "migrate_scanned"),
            watched.sum(cause, "free_scanned")
        );
    }
    println!("{:?}", watched.vmstat.beginning_with("compact_").collect::<Vec<_>>());
    Ok(())
}

/// kcompactd, woken up for huge pages, and a write to vm.compact_memory.
#[test]
fn background_and_manual_compaction() -> Result<()> {
    require_guest();
    let _enabled = Setting::set(format!("{HUGE_PAGES}/enabled"), "madvise")?;
    let _defrag = Setting::set(format!("{HUGE_PAGES}/defrag"), "defer")?;
    let mut pid = 0;
    let watched = watch("compactsnoop", || {
        let mut load = Load::of(
            memload(),
            &[
                "thp",
                "--whole-machine",
                "--leave",
                "128M",
                "--fragment",
                "80M",
                "--size",
                "160M",
                "--duration",
                "1m",
            ],
        )?;
        let wakes = || Vmstat::read().map_or(0, |vmstat| vmstat.sum("compact_daemon_wake"));
        let wanted = wakes() + 5;
        load.work_until("kcompactd", || wakes() >= wanted)?;
        println!("{}", load.stop()?);
        let mut load = Load::compact(memload(), 5)?;
        pid = load.id();
        load.go()?;
        println!("{}", load.wait()?);
        Ok(())
    })?;
    watched.assert_at_least(5, "manual", pid);
    let background = watched.rows("kcompactd").count();
    assert!(background >= 5, "only {background} compactions by kcompactd");
    watched.assert_same();
    let causes = ["direct", "kcompactd", "proactive", "manual", "other"];
    for cause in causes {
        println!(
            "{cause}: {} rows, migrate {} free {}",
            watched.rows(cause).count(),
            watched.sum(cause, "migrate_scanned"),
            watched.sum(cause, "free_scanned")
        );
    }
    println!("{:?}", watched.vmstat.beginning_with("compact_").collect::<Vec<_>>());
    Ok(())
}

/// Processes that are killed one after the other for lack of memory.
#[test]
fn oom_storm() -> Result<()> {
    const KILLS: u64 = 8;
    require_guest();
    let watched = watch("drsnoop", || {
        let mut load = Load::of(
            memload(),
            &[
                "oom",
                "--whole-machine",
                "--leave",
                "32M",
                "--victims",
                "4",
                "--kills",
                "8",
                "--duration",
                "1m",
            ],
        )?;
        load.go()?;
        println!("{}", load.wait()?);
        Ok(())
    })?;
    let kills = watched.vmstat.sum("oom_kill");
    println!("{kills} kills {:?}", watched.output.summary);
    assert!(kills >= KILLS, "only {kills} kills");
    let matched = watched.matched();
    println!(
        "missing {} extra {} pairs {}",
        matched.missing.len(),
        matched.extra.len(),
        matched.pairs.len()
    );
    let own = watched.output.rows.iter().filter(|row| {
        row.pid == watched.memtrace_pid && row.start_ns > watched.memtrace.attached_ns
    });
    assert_eq!(own.count(), 0, "stalls of memtrace itself");
    Ok(())
}
