//! Reclaim: of the machine, for cgroups and proactive.

use std::{fs, process::Command};

use anyhow::Result;
use tests::{
    cgroup::{Cgroup, Limit, TEST},
    host::require_guest,
    load::{Churning, LIMIT, Load},
    vmstat::Vmstat,
    watch::Watched,
};

use super::{memload, watch};

/// Stalls in direct reclaim that each of the three loads is to make.
const STALLS_OF_A_LOAD: u64 = 750;

/// How often the kernel may count one stall again, each time after it came to priority 0 in vain.
const MOST_RETRIES: u64 = 3;

/// Pages reclaimed of the rows of a kind, without those that stand for none.
fn reclaimed(watched: &Watched, kind: &str) -> u64 {
    let ready = watched.rows(kind).filter(|row| row.value["compaction_ready"] == true).count();
    watched.sum(kind, "nr_reclaimed") - ready as u64
}

/// Checks that reclaim for cgroups is none of the machine's: some kernels count its pages all the
/// same, those of memory.reclaim elsewhere.
#[track_caller]
fn assert_no_global_reclaim(watched: &Watched) {
    let direct = watched.rows("direct").count();
    assert_eq!(direct, 0, "stalls in direct reclaim, on a machine that has memory");
    assert_eq!(watched.vmstat.sum("allocstall_"), 0, "allocstall");
    for (counter, key) in [("pgscan_direct", "nr_scanned"), ("pgsteal_direct", "nr_reclaimed")] {
        let (sum, moved) = (watched.sum("memcg", key), watched.moved(counter));
        println!("{counter} {moved}, {sum} of kind memcg");
        assert!(moved <= sum, "{counter} moved by {moved}, with {key} {sum} of kind memcg");
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
    watched.assert_same_fields();

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
    let (reclaimed, stolen) = (reclaimed(&watched, "direct"), watched.moved("pgsteal_direct"));
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
            Load::of(memload(), &["anon", "--limit", "16M", "--swap", "64M", "--duration", "15s"])?;
        pids.push(load.id());
        load.go()?;
        println!("{}", load.wait()?);
        Ok(())
    })?;
    for &pid in &pids {
        watched.assert_at_least(100, "memcg", pid);
    }
    watched.assert_same_fields();
    assert_no_global_reclaim(&watched);
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
    watched.assert_same_fields();
    let unmarked = watched.output.summary.unavailable.iter().any(|what| what.contains("proactive"));
    match (pid, unmarked) {
        (0, _) => assert_eq!(watched.rows("proactive").count(), 0, "proactive reclaims"),
        (pid, true) => watched.assert_at_least(20, "memcg", pid),
        (pid, false) => watched.assert_at_least(20, "proactive", pid),
    }
    assert_no_global_reclaim(&watched);
    Ok(())
}
