//! Throttling, against what the kernel says of each of its sleeps.

use anyhow::Result;
use tests::{
    cgroup::{Hierarchy, Version},
    episodes::assert_parts_add_up,
    host::is_guest,
    load::Load,
    rows,
    run::Memtrace,
    timeline::Recorder,
};

use super::{memload, stopped};

/// The kernel's longest jiffy. It counts its sleeps in jiffies, and may be one off at either end. What the thread
/// then waits for a CPU it counts as well.
const JIFFY_NS: u64 = 10_000_000;

/// In guests one of so many stalls may be another's; on a machine of its own none.
const EXCEPTIONS: usize = 10;

/// Fewer stalls than this prove nothing.
const ENOUGH: usize = 100;

/// Who writes faster than the disk takes it. Only in cgroup v1 reclaim itself has writers sleep; in v2
/// they do before, in `balance_dirty_pages()`.
#[test]
pub fn writers() -> Result<()> {
    let recorder = Recorder::start("memload")?;
    let args = ["dirty", "--limit", "16M", "--threads", "2", "--duration", "5m"];
    let mut load = Load::of(memload(), &args)?;
    let pid = load.id();
    let memtrace = Memtrace::start(&["stalls", "--rounds", "--json", "-p", &pid.to_string()]);
    let has_to_throttle = Hierarchy::memory()?.version == Version::V1 && Recorder::has_throttled()?;
    let (mut lines, mut enough) = (0, false);
    load.work_until("memtrace to show stalls of the load", || {
        if memtrace.lines() > lines + ENOUGH {
            lines = memtrace.lines();
            let shown = memtrace.stdout();
            let throttled = shown.matches("\"throttled:").count();
            enough = rows::tids(&shown, Some(pid)).len() >= ENOUGH
                && (!has_to_throttle || throttled >= ENOUGH / 4);
        }
        enough
    })?;
    println!("{}", load.stop()?);
    let stalls = stopped(memtrace)?;
    let timeline = recorder.stop()?;
    assert_parts_add_up(&stalls.episodes);
    let (mut events, mut theirs_ns, mut ours_ns, mut waiting_ns) = (0, 0, 0, 0);
    let (mut slept, mut wrong) = (0, Vec::new());
    for episode in &stalls.episodes {
        let spent = timeline.spent(episode);
        let ours = episode.parts_with("throttled:") - episode.part("throttled:pfmemalloc");
        let waiting = episode.part("waiting");
        let (count, ns) =
            spent.throttled.values().fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        let jiffies = 2 * JIFFY_NS * count;
        if !(ours <= ns + jiffies && ns <= ours + waiting + jiffies) {
            wrong.push(format!(
                "{ours} ns throttled, by the kernel {ns} ns in {count} sleeps: {}",
                episode.value
            ));
        }
        for (reason, (_, ns)) in &spent.throttled {
            let ours = episode.part(&format!("throttled:{}", reason.to_lowercase()));
            if ours == 0 && *ns > 2 * JIFFY_NS + waiting {
                wrong.push(format!("not throttled by {reason}: {}", episode.value));
            }
        }
        slept += usize::from(count != 0);
        events += count;
        theirs_ns += ns;
        ours_ns += ours;
        waiting_ns += waiting;
    }
    // Where a CPU is taken away from an emulated machine, its jiffies stand still, and then jump.
    assert!(
        wrong.len() <= if is_guest() { slept / EXCEPTIONS } else { 0 },
        "{} of {slept}: {wrong:#?}",
        wrong.len()
    );
    println!("{events} sleeps of {theirs_ns} ns by the kernel, {ours_ns} ns by memtrace");
    let jiffies = JIFFY_NS * events;
    assert!(
        ours_ns <= theirs_ns + jiffies && theirs_ns <= ours_ns + waiting_ns + jiffies,
        "{ours_ns} ns throttled, by the kernel {theirs_ns} ns in {events} sleeps"
    );
    Ok(())
}
