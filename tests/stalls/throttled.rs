//! Throttling, against what the kernel says of each of its sleeps.

use anyhow::{Context as _, Result};
use rustix::mm::{MlockAllFlags, mlockall};
use tests::{
    episodes::assert_parts_add_up, host::require_guest, load::Load, run::Memtrace,
    timeline::Recorder,
};

use super::{memload, stopped};

/// The kernel's longest jiffy. It counts its sleeps in jiffies, begun ones whole, and may be one off at either end.
const JIFFY_NS: u64 = 10_000_000;

/// Processes that take memory until there is none, and nothing can be reclaimed for them.
#[test]
fn without_progress() -> Result<()> {
    require_guest();
    // Where every page is wanted, the test would wait for its own code for minutes.
    mlockall(MlockAllFlags::CURRENT).context("cannot lock the test's memory")?;
    // Both take memory of their own first.
    let recorder = Recorder::start("memload")?;
    let memtrace = Memtrace::start(&["stalls", "--rounds", "--json", "-n", "memload"]);
    let args = ["oom", "--whole-machine", "--leave", "32M", "--victims", "2", "--kills", "4"];
    let mut load = Load::of(memload(), &[&args[..], &["--duration", "5m"]].concat())?;
    load.go()?;
    println!("{}", load.wait()?);
    let stalls = stopped(memtrace)?;
    let timeline = recorder.stop()?;
    assert_parts_add_up(&stalls.episodes);
    let (mut events, mut theirs_ns, mut ours_ns) = (0, 0, 0);
    for episode in &stalls.episodes {
        let spent = timeline.spent(episode);
        let ours = episode.parts_with("throttled:") - episode.part("throttled:pfmemalloc");
        let (count, ns) =
            spent.throttled.values().fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        assert!(
            ours.abs_diff(ns) <= 2 * JIFFY_NS * count,
            "{ours} ns throttled, by the kernel {ns} ns in {count} sleeps: {}",
            episode.value
        );
        assert!(
            ours <= spent.blocked_ns + JIFFY_NS * count,
            "more than it slept: {}",
            episode.value
        );
        for (reason, (_, ns)) in &spent.throttled {
            let ours = episode.part(&format!("throttled:{}", reason.to_lowercase()));
            assert!(
                ours > 0 || *ns <= 2 * JIFFY_NS,
                "not throttled by {reason}: {}",
                episode.value
            );
        }
        events += count;
        theirs_ns += ns;
        ours_ns += ours;
    }
    println!("{events} sleeps of {theirs_ns} ns by the kernel, {ours_ns} ns by memtrace");
    // Before 5.16 only who waited for writeback was throttled, and there is none here.
    let has_reasons = stalls.watched.iter().any(|kind| kind == "throttled");
    assert!(has_reasons, "{:?}", stalls.not_watched);
    if Recorder::has_throttled()? {
        assert!(events >= 10, "only {events} sleeps");
    } else {
        assert_eq!(events, 0, "sleeps for congestion");
    }
    Ok(())
}
