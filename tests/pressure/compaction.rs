//! Compaction: for huge pages, in the background, and on demand.

use anyhow::Result;
use tests::{
    host::{require_guest, zones},
    load::Load,
    run::Memtrace,
    setting::Setting,
    watch::Watched,
};

use super::{memload, watch};

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";

/// Compares compactions with the counters of /proc/vmstat.
#[track_caller]
fn assert_compaction_counted(watched: &Watched, zones: usize) {
    let rows = &watched.output.rows;
    for key in ["migrate_scanned", "free_scanned"] {
        let known = rows.iter().filter(|row| !row.value[key].is_null()).count();
        if known == 0 {
            println!("this kernel does not tell {key}");
            continue;
        }
        assert_eq!(known, rows.len(), "rows that have {key}");
        let sum: u64 = rows.iter().filter_map(|row| row.value[key].as_u64()).sum();
        assert_eq!(sum, watched.moved(&format!("compact_{key}")), "compact_{key}");
        // Some kernels count the proactive work of kcompactd as well.
        let (woken, counter) = (watched.sum("kcompactd", key), format!("compact_daemon_{key}"));
        let moved = watched.moved(&counter);
        assert!(
            moved == woken || moved == woken + watched.sum("proactive", key),
            "{counter} moved by {moved}, {woken} of them by cause kcompactd"
        );
    }
    let [stalls, success, fail] =
        ["compact_stall", "compact_success", "compact_fail"].map(|name| watched.moved(name));
    let direct = watched.rows("direct").count() as u64;
    println!("{direct} direct compactions of a zone, compact_stall {stalls}");
    assert_eq!(stalls, success + fail, "compact_stall is compact_success and compact_fail");
    assert!(
        direct <= stalls * zones as u64,
        "{direct} direct compactions in {zones} zones, and compact_stall {stalls}"
    );
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
    watched.assert_same_fields();
    assert_compaction_counted(&watched, zones()?.len());
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
    watched.assert_same_fields();
    assert_compaction_counted(&watched, zones()?.len());
    Ok(())
}
