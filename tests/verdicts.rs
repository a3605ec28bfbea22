//! Verdicts on real loads: each gets its label within seconds, and a healthy one gets none.
//!
//! What drsnoop shows of a load's stalls goes through the library, with the state of the load's cgroup
//! read as `memtrace` reads it.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use memtrace::{
    cgroup::Cgroups,
    verdict::{Round, Verdict, Verdicts, live::Live},
};
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

/// How long a healthy load is watched.
const HEALTHY: Duration = Duration::from_secs(15);

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// What drsnoop says, judged as it comes.
struct Judge {
    memtrace: Memtrace,
    /// How much of its output was read.
    read: usize,
    cgroups: Cgroups,
    verdicts: Verdicts,
    /// The cgroup of the load, once it has stalled, and when it did so first.
    target: Option<(u64, u64)>,
    /// The verdicts on single stalls of the load.
    singles: BTreeMap<Option<&'static str>, u64>,
}

impl Judge {
    fn start() -> Self {
        Self {
            memtrace: Memtrace::start(&["drsnoop", "--json"]),
            read: 0,
            cgroups: Cgroups::live(),
            verdicts: Verdicts::new(),
            target: None,
            singles: BTreeMap::new(),
        }
    }

    /// Judges the cgroup of process `pid` by what it lost in it so far.
    fn judge(&mut self, pid: u32) -> Option<Verdict> {
        let text = self.memtrace.stdout();
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut states = Live { cgroups: &mut self.cgroups };
        for line in text[self.read..whole].lines() {
            let row: Value = serde_json::from_str(line).expect("drsnoop writes JSON");
            let number = |key: &str| row[key].as_u64();
            if let (Some(target), Some(start_ns)) = (number("target_cgroup_id"), number("start_ns"))
            {
                let round = round(&row, start_ns);
                self.verdicts.round(target, &round);
                if number("pid") == Some(pid.into()) {
                    self.target.get_or_insert((target, start_ns));
                    let single = self.verdicts.judge_one(target, &round, &mut states);
                    *self.singles.entry(single.map(Verdict::name)).or_default() += 1;
                }
            }
        }
        self.read = whole;
        self.verdicts.judge(self.target?.0, monotonic_ns(), &mut states)
    }

    /// What the last verdict was based on.
    fn told(&self) -> String {
        let evidence =
            self.target.map(|(target, _)| self.verdicts.evidence(target, monotonic_ns()));
        format!("{evidence:?}, single stalls {:?}", self.singles)
    }
}

fn round(row: &Value, start_ns: u64) -> Round {
    let number = |key: &str| row[key].as_u64();
    let duration_ns = number("duration_ns").expect("every stall has a duration");
    Round {
        end_ns: start_ns + duration_ns,
        duration_ns,
        scanned: number("nr_scanned"),
        reclaimed: number("nr_reclaimed").expect("every reclaim says what it got"),
        priority: row["priority"].as_i64().and_then(|priority| priority.try_into().ok()),
        rounds: 1,
        ..Round::default()
    }
}

/// Runs memload until its cgroup gets the label `wanted`, which must not take long.
#[track_caller]
fn assert_label(args: &[&str], wanted: Verdict) -> Result<()> {
    let mut judge = Judge::start();
    let mut load = Load::of(memload(), &[args, &["--duration", "5m"]].concat())?;
    load.go()?;
    let mut others = BTreeMap::new();
    let labelled_ns = wait_for(&format!("memload {args:?} to be {wanted}"), || {
        let verdict = judge.judge(load.id());
        if verdict == Some(wanted) {
            return Some(monotonic_ns());
        }
        *others.entry(verdict.map(Verdict::name)).or_insert(0_u32) += 1;
        // The wait may be in vain: what is seen meanwhile says why.
        if others.values().sum::<u32>().is_multiple_of(1000) {
            println!("{others:?} {}", judge.told());
        }
        None
    });
    let (_, first_ns) = judge.target.context("a label without a stall")?;
    let took_ns = labelled_ns.saturating_sub(first_ns);
    println!("{wanted} after {} ms; before {others:?}; {}", took_ns / 1_000_000, judge.told());
    assert!(took_ns <= SOON_NS, "{wanted} only after {took_ns} ns");
    load.stop()?;
    Ok(())
}

#[test]
fn thrash() -> Result<()> {
    assert_label(&["thrash"], Verdict::Thrash)
}

#[test]
fn hopeless_below_a_hard_limit() -> Result<()> {
    assert_label(&["hopeless"], Verdict::Hopeless)
}

/// On cgroup v1 there is none.
#[cfg(feature = "guest")]
#[test]
fn hopeless_beyond_memory_high() -> Result<()> {
    assert_label(&["hopeless", "--high"], Verdict::Hopeless)
}

/// A disk is slowed down, and settings of the whole machine are changed, in guests only.
#[cfg(feature = "guest")]
#[test]
fn writeback_bound() -> Result<()> {
    // Otherwise writers wait for the disk before there is anything to reclaim.
    let _late = tests::setting::Setting::set("/proc/sys/vm/dirty_background_ratio", "90")?;
    let _never = tests::setting::Setting::set("/proc/sys/vm/dirty_ratio", "95")?;
    assert_label(&["dirty"], Verdict::WritebackBound)
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
    let mut judge = Judge::start();
    let reader = Command::new("dd")
        .args(["of=/dev/null", "bs=65536"])
        .stdin(Stdio::from(file))
        .stderr(Stdio::null())
        .spawn()
        .map(Reader)
        .context("cannot start dd")?;
    cgroup.add(reader.0.id())?;
    let end_ns = monotonic_ns() + u64::try_from(HEALTHY.as_nanos())?;
    while monotonic_ns() < end_ns {
        let verdict = judge.judge(reader.0.id());
        assert_eq!(verdict, None, "{}", judge.told());
        thread::sleep(Duration::from_millis(100));
    }
    println!("{}", judge.told());
    let (target, _) = judge.target.context("it never stalled, which proves nothing")?;
    assert_eq!(target, cgroup.id()?);
    Ok(())
}
