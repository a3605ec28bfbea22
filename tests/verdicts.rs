//! Verdicts on real loads: each gets its label within seconds, and a healthy one gets none.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use tests::{
    cgroup::{Cgroup, TEST},
    host::monotonic_ns,
    load::Load,
    run::Memtrace,
    wait::wait_for,
};

/// From the first stall to the label.
const SOON_NS: u64 = 5_000_000_000;

/// How long a healthy load is watched, unless the environment has another number of seconds.
const HEALTHY: Duration = Duration::from_secs(15);
/// Where that number is.
const HEALTHY_SECONDS: &str = "MEMTRACE_HEALTHY_SECONDS";

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// What `stalls` says of one process and of the cgroup that it is reclaimed for.
struct Watch {
    memtrace: Memtrace,
    /// How much of its output was read.
    read: usize,
    /// The verdicts on targets that stand, by the target's id.
    verdicts: BTreeMap<u64, String>,
    /// The cgroup of the process, once it has stalled, and when it did so first.
    target: Option<(u64, u64)>,
    /// The verdicts on single stalls of the process.
    singles: BTreeMap<String, u64>,
    /// The last of all verdicts.
    last: Value,
}

impl Watch {
    fn start() -> Self {
        Self {
            memtrace: Memtrace::start(&["stalls", "--json"]),
            read: 0,
            verdicts: BTreeMap::new(),
            target: None,
            singles: BTreeMap::new(),
            last: Value::Null,
        }
    }

    /// The verdict that stands on the cgroup of process `pid`.
    fn verdict(&mut self, pid: u32) -> Option<&str> {
        let text = self.memtrace.stdout();
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        for line in text[self.read..whole].lines() {
            let object: Value = serde_json::from_str(line).expect("stalls writes JSON");
            let number = |key: &str| object[key].as_u64();
            let verdict = object["verdict"].as_str();
            let Some(target) = number("target_cgroup_id") else { continue };
            if object["type"] == "verdict" {
                match verdict {
                    Some(verdict) => drop(self.verdicts.insert(target, verdict.to_owned())),
                    None => drop(self.verdicts.remove(&target)),
                }
                self.last = object;
            } else if number("pid") == Some(pid.into()) {
                let start_ns = number("start_ns").expect("every stall has begun");
                self.target.get_or_insert((target, start_ns));
                *self.singles.entry(verdict.unwrap_or("none").to_owned()).or_default() += 1;
            }
        }
        self.read = whole;
        self.verdicts.get(&self.target?.0).map(String::as_str)
    }

    /// What was seen so far.
    fn told(&self) -> String {
        format!("single stalls {:?}, last verdict {}", self.singles, self.last)
    }
}

/// Runs memload until its cgroup gets the label `wanted`, which must not take long.
#[track_caller]
fn assert_label(args: &[&str], wanted: &str) -> Result<()> {
    let mut watch = Watch::start();
    let mut load = Load::of(memload(), &[args, &["--duration", "5m"]].concat())?;
    load.go()?;
    let mut others = BTreeMap::new();
    let labelled_ns = wait_for(&format!("memload {args:?} to be {wanted}"), || {
        let verdict = watch.verdict(load.id());
        if verdict == Some(wanted) {
            return Some(monotonic_ns());
        }
        *others.entry(verdict.map(str::to_owned)).or_insert(0_u32) += 1;
        // The wait may be in vain: what is seen meanwhile says why.
        if others.values().sum::<u32>().is_multiple_of(1000) {
            println!("{others:?} {}", watch.told());
        }
        None
    });
    let (_, first_ns) = watch.target.context("a label without a stall")?;
    let took_ns = labelled_ns.saturating_sub(first_ns);
    println!("{wanted} after {} ms; before {others:?}; {}", took_ns / 1_000_000, watch.told());
    assert!(took_ns <= SOON_NS, "{wanted} only after {took_ns} ns");
    load.stop()?;
    Ok(())
}

#[test]
fn thrash() -> Result<()> {
    assert_label(&["thrash"], "thrash")
}

#[test]
fn hopeless_below_a_hard_limit() -> Result<()> {
    assert_label(&["hopeless"], "hopeless")
}

#[cfg(feature = "guest")]
mod guest {
    use tests::{host::require_guest, setting::Setting};

    use super::*;

    /// On cgroup v1 there is none.
    #[test]
    fn hopeless_beyond_memory_high() -> Result<()> {
        require_guest();
        assert_label(&["hopeless", "--high"], "hopeless")
    }

    /// A disk is slowed down, and settings of the whole machine are changed.
    #[test]
    fn writeback_bound() -> Result<()> {
        require_guest();
        // Otherwise writers wait for the disk before there is anything to reclaim.
        let _late = Setting::set("/proc/sys/vm/dirty_background_ratio", "90")?;
        let _never = Setting::set("/proc/sys/vm/dirty_ratio", "95")?;
        assert_label(&["dirty"], "writeback-bound")
    }
}

/// A child that is killed when dropped.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: std::io::Result<()> = self.0.kill();
        let _waited: std::io::Result<_> = self.0.wait();
    }
}

/// Page cache that is larger than the limit, but used once: every page is reclaimed at once, and none is
/// missed.
#[test]
fn a_healthy_cgroup_has_no_label() -> Result<()> {
    let cgroup = Cgroup::limited(TEST, 64 << 20)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open("/var/tmp", flags, Mode::RUSR | Mode::WUSR)?);
    // It takes no room on the disk, and longer to read than the test takes.
    file.set_len(1 << 40)?;
    let mut watch = Watch::start();
    let reader = Command::new("dd")
        .args(["of=/dev/null", "bs=65536"])
        .stdin(Stdio::from(file))
        .stderr(Stdio::null())
        .spawn()
        .map(Reader)
        .context("cannot start dd")?;
    cgroup.add(reader.0.id())?;
    let watched = match env::var(HEALTHY_SECONDS) {
        Ok(seconds) => Duration::from_secs(seconds.parse().context(HEALTHY_SECONDS)?),
        Err(_) => HEALTHY,
    };
    let end_ns = monotonic_ns() + u64::try_from(watched.as_nanos())?;
    while monotonic_ns() < end_ns {
        let verdict = watch.verdict(reader.0.id()).map(str::to_owned);
        assert_eq!(verdict, None, "{}", watch.told());
        thread::sleep(Duration::from_millis(100));
    }
    println!("{}", watch.told());
    let (target, _) = watch.target.context("it never stalled, which proves nothing")?;
    assert_eq!(target, cgroup.id()?);
    Ok(())
}
