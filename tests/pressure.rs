//! Memory pressure of every kind, against ftrace and /proc/vmstat. Only in a guest: most of it takes
//! the whole machine.
//!
//! What the kernel's counters have to do with stalls stands in docs/vmstat.md.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use rustix::mm::{MlockAllFlags, mlockall};
use serde_json::json;
use tests::{
    cgroup::{Cgroup, Limit, TEST},
    compare::{Matched, match_up},
    host::{require_guest, zones},
    load::{Churning, LIMIT, Load},
    oracle::{Mechanism, Oracle, Trace},
    rows::{Output, Row},
    run::{Finished, Memtrace},
    setting::Setting,
    vmstat::Vmstat,
};

/// Stalls in direct reclaim that each of the three loads is to make.
const STALLS_OF_A_LOAD: u64 = 750;

/// How often the kernel may count one stall again, each time after it came to priority 0 in vain.
const MOST_RETRIES: u64 = 3;

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
fn watch(subject: &str, load: impl FnOnce(&Memtrace) -> Result<()>) -> Result<Watched> {
    // Where every page is wanted, the test would wait for its own code for minutes.
    mlockall(MlockAllFlags::CURRENT).context("cannot lock the test's memory")?;
    let oracle = Oracle::start()?;
    let before = Vmstat::read()?;
    let memtrace = Memtrace::start(&[subject, "--json"]);
    let memtrace_pid = memtrace.id();
    load(&memtrace)?;
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

    /// Pages reclaimed of the rows of a kind, without those that stand for none.
    fn reclaimed(&self, kind: &str) -> u64 {
        let ready = self.rows(kind).filter(|row| row.value["compaction_ready"] == true).count();
        self.sum(kind, "nr_reclaimed") - ready as u64
    }

    /// How far a counter of /proc/vmstat moved; 0 where the kernel has no such counter.
    fn moved(&self, name: &str) -> u64 {
        self.vmstat.get(name).unwrap_or(0)
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
        let matched = self.matched();
        matched.assert_none_missing();
        matched.assert_none_extra();
        matched.assert_fields_agree();
        println!("{} stalls agree", matched.pairs.len());
    }

    /// Checks that reclaim for cgroups is none of the machine's: some kernels count its pages all the
    /// same, those of memory.reclaim elsewhere.
    #[track_caller]
    fn assert_no_global_reclaim(&self) {
        let direct = self.rows("direct").count();
        assert_eq!(direct, 0, "stalls in direct reclaim, on a machine that has memory");
        assert_eq!(self.vmstat.sum("allocstall_"), 0, "allocstall");
        for (counter, key) in [("pgscan_direct", "nr_scanned"), ("pgsteal_direct", "nr_reclaimed")]
        {
            let (sum, moved) = (self.sum("memcg", key), self.moved(counter));
            println!("{counter} {moved}, {sum} of kind memcg");
            assert!(moved <= sum, "{counter} moved by {moved}, with {key} {sum} of kind memcg");
        }
    }

    /// Compares compactions with the counters of /proc/vmstat.
    #[track_caller]
    fn assert_compaction_counted(&self, zones: usize) {
        let rows = &self.output.rows;
        for key in ["migrate_scanned", "free_scanned"] {
            let known = rows.iter().filter(|row| !row.value[key].is_null()).count();
            if known == 0 {
                println!("this kernel does not tell {key}");
                continue;
            }
            assert_eq!(known, rows.len(), "rows that have {key}");
            let sum: u64 = rows.iter().filter_map(|row| row.value[key].as_u64()).sum();
            assert_eq!(sum, self.moved(&format!("compact_{key}")), "compact_{key}");
            // Some kernels count the proactive work of kcompactd as well.
            let (woken, counter) = (self.sum("kcompactd", key), format!("compact_daemon_{key}"));
            let moved = self.moved(&counter);
            assert!(
                moved == woken || moved == woken + self.sum("proactive", key),
                "{counter} moved by {moved}, {woken} of them by cause kcompactd"
            );
        }
        let [stalls, success, fail] =
            ["compact_stall", "compact_success", "compact_fail"].map(|name| self.moved(name));
        let direct = self.rows("direct").count() as u64;
        println!("{direct} direct compactions of a zone, compact_stall {stalls}");
        assert_eq!(stalls, success + fail, "compact_stall is compact_success and compact_fail");
        assert!(
            direct <= stalls * zones as u64,
            "{direct} direct compactions in {zones} zones, and compact_stall {stalls}"
        );
    }

    #[track_caller]
    fn assert_at_least(&self, least: usize, kind: &str, pid: u32) {
        let count = self.count(kind, pid);
        println!("{kind}: {count} stalls of the load");
        assert!(count >= least, "only {count} stalls of kind {kind}, not {least}");
    }
}

/// Whether the kernel has its multi-generational LRU at work, which counts pages otherwise.
fn multi_generational() -> bool {
    let enabled = fs::read_to_string("/sys/kernel/mm/lru_gen/enabled").unwrap_or_default();
    !matches!(enabled.trim(), "" | "0x0000")
}

/// Stalls in direct reclaim so far, of the whole machine.
fn allocstall() -> u64 {
    Vmstat::read().map_or(0, |vmstat| vmstat.sum("allocstall_"))
}

/// Has memload reclaim directly for a while. Gives its process id.
fn reclaim_directly(args: &[&str]) -> Result<u32> {
    let args = [args, &["--whole-machine", "--duration", "5m"]].concat();
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
    let watched = watch("drsnoop", |_| {
        for load in [
            &["anon", "--threads", "32", "--swap", "128M", "--leave", "32M"][..],
            &["anon", "--threads", "16", "--leave", "48M"],
            &["churn", "--threads", "16", "--leave", "48M"],
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

    let reached_zero =
        watched.rows("direct").filter(|row| row.value["priority"].as_i64() == Some(0)).count();
    let [stalls, reached_zero] = [direct, reached_zero].map(|count| count as u64);
    let allocstall = watched.vmstat.sum("allocstall_");
    println!("allocstall {allocstall}, {stalls} stalls, {reached_zero} of them with priority 0");
    assert!(
        (stalls..=stalls + MOST_RETRIES * reached_zero).contains(&allocstall),
        "allocstall moved by {allocstall} with {stalls} stalls, {reached_zero} with priority 0"
    );
    let (scanned, counted) = (watched.sum("direct", "nr_scanned"), watched.moved("pgscan_direct"));
    println!("{scanned} pages scanned, pgscan_direct {counted}");
    if multi_generational() {
        assert!(
            (1..=scanned).contains(&counted),
            "{scanned} pages scanned, and pgscan_direct moved by {counted}"
        );
    } else {
        assert_eq!(scanned, counted, "pages scanned, and pgscan_direct");
    }
    let (reclaimed, stolen) = (watched.reclaimed("direct"), watched.moved("pgsteal_direct"));
    println!("{reclaimed} pages reclaimed, pgsteal_direct {stolen}");
    assert!(
        (stolen..=stolen + stolen / 20).contains(&reclaimed),
        "{reclaimed} pages reclaimed, and pgsteal_direct moved by {stolen}"
    );
    Ok(())
}

/// The page cache by memory.max and by memory.high, and anonymous memory by memory.max with swap.
#[test]
fn memcg_reclaim() -> Result<()> {
    require_guest();
    let mut pids = Vec::new();
    let watched = watch("drsnoop", |_| {
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
    watched.assert_no_global_reclaim();
    Ok(())
}

/// Writes to memory.reclaim. Where the kernel has none, memload says so, and memtrace shows none;
/// where it does not mark them, they are `memcg`.
#[test]
fn proactive_reclaim() -> Result<()> {
    require_guest();
    let mut pid = 0;
    let watched = watch("drsnoop", |_| {
        if !Cgroup::limited(TEST, LIMIT)?.has_reclaim_file() {
            let refused = Command::new(memload()).arg("reclaim").output()?;
            let why = String::from_utf8_lossy(&refused.stderr);
            assert!(!refused.status.success() && why.contains("no memory.reclaim"), "{why}");
            return Ok(());
        }
        let mut load = Load::of(memload(), &["reclaim", "--pause", "20ms", "--duration", "5s"])?;
        pid = load.id();
        load.go()?;
        println!("{}", load.wait()?);
        Ok(())
    })?;
    watched.assert_same();
    let unmarked = watched.output.summary.unavailable.iter().any(|what| what.contains("proactive"));
    match (pid, unmarked) {
        (0, _) => assert_eq!(watched.rows("proactive").count(), 0, "proactive reclaims"),
        (pid, true) => watched.assert_at_least(20, "memcg", pid),
        (pid, false) => watched.assert_at_least(20, "proactive", pid),
    }
    watched.assert_no_global_reclaim();
    Ok(())
}

/// How many compactions for this cause memtrace has shown so far.
fn shown(memtrace: &Memtrace, cause: &str) -> usize {
    memtrace.stdout().matches(&format!(r#""cause":"{cause}""#)).count()
}

/// Has memload ask for huge pages until memtrace has shown so many compactions. Gives its process id.
fn ask_for_huge_pages(
    memtrace: &Memtrace,
    cause: &str,
    enough: usize,
    fragment: &str,
) -> Result<u32> {
    let mut load = Load::of(
        memload(),
        &["thp", "--whole-machine", "--leave", "96M", "--fragment", fragment, "--duration", "5m"],
    )?;
    load.work_until(cause, || shown(memtrace, cause) >= enough)?;
    let pid = load.id();
    println!("{}", load.stop()?);
    Ok(pid)
}

/// Huge pages in fragmented memory.
#[test]
fn direct_compaction() -> Result<()> {
    require_guest();
    let _enabled = Setting::set(format!("{HUGE_PAGES}/enabled"), "madvise")?;
    let _defrag = Setting::set(format!("{HUGE_PAGES}/defrag"), "madvise")?;
    let mut pid = 0;
    let watched = watch("compactsnoop", |memtrace| {
        pid = ask_for_huge_pages(memtrace, "direct", 60, "12M")?;
        Ok(())
    })?;
    watched.assert_at_least(50, "direct", pid);
    watched.assert_same();
    watched.assert_compaction_counted(zones()?.len());
    Ok(())
}

/// kcompactd, woken up for huge pages, and a write to vm.compact_memory.
#[test]
fn background_and_manual_compaction() -> Result<()> {
    require_guest();
    let _enabled = Setting::set(format!("{HUGE_PAGES}/enabled"), "madvise")?;
    let _defrag = Setting::set(format!("{HUGE_PAGES}/defrag"), "defer")?;
    let mut pid = 0;
    let watched = watch("compactsnoop", |memtrace| {
        // kswapd leaves memory to kcompactd once it has reclaimed something.
        let mut files =
            Load::of(memload(), &["churn", "--size", "48M", "--threads", "2", "--duration", "5m"])?;
        files.go()?;
        ask_for_huge_pages(memtrace, "kcompactd", 3, "4M")?;
        files.stop()?;
        let mut load = Load::compact(memload(), 5)?;
        pid = load.id();
        load.go()?;
        println!("{}", load.wait()?);
        Ok(())
    })?;
    watched.assert_at_least(5, "manual", pid);
    let background = watched.rows("kcompactd").count();
    assert!(background >= 3, "only {background} compactions by kcompactd");
    watched.assert_same();
    watched.assert_compaction_counted(zones()?.len());
    Ok(())
}

/// Whether a page was for a pipe. Who writes to one, as memtrace does here, has to find its pages.
fn is_of_pipe(row: &Row) -> bool {
    row.value["gfp"] == json!(["GFP_HIGHUSER", "__GFP_ACCOUNT"])
}

/// Processes that are killed one after the other for lack of memory, while memtrace goes on: it is
/// not among them, accounts for every stall, and has none itself.
#[test]
fn oom_storm() -> Result<()> {
    const KILLS: u64 = 8;
    require_guest();
    let mut said = String::new();
    let watched = watch("drsnoop", |_| {
        let kills = KILLS.to_string();
        let args =
            ["oom", "--whole-machine", "--leave", "32M", "--victims", "4", "--kills", &kills];
        let mut load = Load::of(memload(), &[&args[..], &["--duration", "5m"]].concat())?;
        load.go()?;
        said = load.wait()?;
        println!("{said}");
        Ok(())
    })?;
    let kills = watched.moved("oom_kill");
    assert!(kills >= KILLS, "only {kills} kills");
    // Nobody else was killed, though some victims may have been so after memload had enough.
    assert!(kills <= KILLS + 4, "{kills} kills, and {said}");

    let matched = watched.matched();
    let summary = &watched.output.summary;
    println!("{} stalls agree; {summary:?}", matched.pairs.len());
    assert!(matched.pairs.len() >= 500, "only {} stalls", matched.pairs.len());
    matched.assert_none_extra();
    matched.assert_fields_agree();
    let unseen = summary.lost + summary.table_full + summary.skipped + summary.unfinished;
    assert!(
        matched.missing.len() as u64 <= unseen,
        "{} stalls are missing, {unseen} accounted for: {summary:?}",
        matched.missing.len()
    );

    let own: Vec<_> = watched
        .output
        .rows
        .iter()
        .filter(|row| {
            row.pid == watched.memtrace_pid
                && row.start_ns > watched.memtrace.attached_ns
                && !is_of_pipe(row)
        })
        .collect();
    assert!(own.is_empty(), "{} stalls of memtrace itself, such as {}", own.len(), own[0].value);
    Ok(())
}
