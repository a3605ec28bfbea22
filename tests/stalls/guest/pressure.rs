//! The kernel's own account of stalls, pressure stall information, against memtrace's. Where memstall
//! sections can be probed the two measure the same.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{process::Pid, thread::CpuSet};
use tests::{
    cgroup::{Cgroup, Limit, TEST},
    episodes::{Episode, Stalls, assert_parts_add_up},
    host::{kprobes_work, require_guest},
    load::{Churning, LIMIT, Load},
    run::Memtrace,
};

use crate::{memload, stopped};

/// How far the two may be apart: one part in so many of the time, one percent.
const APART: u64 = 100;
/// What the two may be apart in each section, in nanoseconds: where memtrace has looked at its clock at the
/// end, it delivers what it has seen before the kernel looks at its own, for which an emulated CPU takes
/// some 20 us, and several times that where others want the machine.
const EACH_NS: u64 = 150_000;
/// The shortest pressure, in nanoseconds, that proves something.
const ENOUGH_NS: u64 = 500_000_000;

/// How long some thread of the cgroup was held up so far, by the kernel, in nanoseconds.
fn pressure_ns(cgroup: &Path) -> Result<u64> {
    let path = cgroup.join("memory.pressure");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let some = text.lines().find_map(|line| line.strip_prefix("some ")?.rsplit_once("total="));
    let (_, total) = some.with_context(|| format!("unknown form of memory.pressure: `{text}`"))?;
    Ok(total.parse::<u64>()? * 1000)
}

/// Keeps a load, and the threads that it will start, on one CPU: the kernel weighs a cgroup's pressure
/// on each CPU by how busy it keeps that, so that what moves between two is not counted whole.
fn pin(load: &Load) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    for &tid in load.tids() {
        let tid = Pid::from_raw(i32::try_from(tid)?).context("no thread id")?;
        rustix::thread::sched_setaffinity(Some(tid), &cpus).context("cannot pin a thread")?;
    }
    Ok(())
}

/// Starts a load of a cgroup, lets it work until it has lost `enough_ns`, and gives what memtrace shows of it,
/// section by section, once that agrees with the pressure. An emulated CPU that others take away for some
/// milliseconds has its clocks jump, that of PSI and that of memtrace at different times: what is wrong for any
/// other reason is so each time.
fn compare(cgroup: &Path, enough_ns: u64, start: impl Fn() -> Result<Load>) -> Result<Stalls> {
    const ATTEMPTS: u32 = 3;
    ensure!(kprobes_work(), "this kernel's functions cannot be probed");
    let mut apart = String::new();
    for _ in 0..ATTEMPTS {
        let mut load = start()?;
        pin(&load)?;
        let pid = load.id();
        let memtrace = Memtrace::start(&["stalls", "--rounds", "--json", "-p", &pid.to_string()]);
        let before = pressure_ns(cgroup)?;
        load.work_until("pressure", || {
            pressure_ns(cgroup).is_ok_and(|now| now >= before + enough_ns)
        })?;
        println!("{}", load.stop()?);
        let pressure = pressure_ns(cgroup)? - before;
        let stalls = stopped(memtrace)?;
        assert_parts_add_up(&stalls.episodes);
        // What memory.reclaim asks for is no pressure.
        let mut unseen = stalls.not_watched.keys().filter(|kind| *kind != "proactive");
        assert_eq!(unseen.next(), None, "{:?}", stalls.not_watched);
        match agrees(&stalls, pressure) {
            Ok(()) => return Ok(stalls),
            Err(error) => apart = format!("{error:#}"),
        }
    }
    bail!("{ATTEMPTS} times: {apart}")
}

/// Checks that threads were held up as long by memtrace as by the kernel. Where several are at once the
/// kernel counts the time once.
fn agrees(stalls: &Stalls, pressure_ns: u64) -> Result<()> {
    let mut spans: Vec<_> = stalls.episodes.iter().map(|it| (it.start_ns, it.end_ns)).collect();
    spans.sort_unstable();
    let (mut union, mut until) = (0, 0);
    for (start_ns, end_ns) in &spans {
        union += end_ns.saturating_sub(*start_ns.max(&until));
        until = until.max(*end_ns);
    }
    let apart = union.abs_diff(pressure_ns);
    let bound = pressure_ns / APART + spans.len() as u64 * EACH_NS;
    println!(
        "{union} ns in {} sections, by the kernel {pressure_ns} ns: apart {apart}, {:.2} %, {} ns each",
        spans.len(),
        apart as f64 * 100.0 / pressure_ns as f64,
        apart / spans.len().max(1) as u64,
    );
    ensure!(
        apart <= bound,
        "{union} ns, but by the kernel {pressure_ns} ns, {apart} apart of {bound}"
    );
    Ok(())
}

fn sum(stalls: &Stalls, kind: &str) -> u64 {
    stalls.episodes.iter().filter_map(|it: &Episode| it.kinds.get(kind)).sum()
}

/// One thread that reads and writes a file in a cgroup with this limit.
fn of_file(limit: Limit) -> Result<Stalls> {
    require_guest();
    let cgroup = Cgroup::limited_by(TEST, limit)?;
    compare(cgroup.path(), ENOUGH_NS, || {
        Load::churn(memload(), &Churning { threads: 1, ..Churning::new(&cgroup) })
    })
}

#[test]
fn by_memory_max() -> Result<()> {
    let stalls = of_file(Limit::Max(LIMIT))?;
    assert!(sum(&stalls, "memcg-max") > 0);
    assert_eq!((sum(&stalls, "memcg-high"), sum(&stalls, "penalty")), (0, 0));
    Ok(())
}

#[test]
fn by_memory_high() -> Result<()> {
    let stalls = of_file(Limit::High(LIMIT))?;
    assert!(sum(&stalls, "memcg-high") > 0);
    assert_eq!(sum(&stalls, "memcg-max"), 0);
    Ok(())
}

/// Starts a load on one thread, and moves it from its own cgroup, which goes with it, to one that stays.
fn within(cgroup: &Cgroup, args: &[&str]) -> Result<Load> {
    let limit = LIMIT.to_string();
    let others = ["--limit", &limit, "--threads", "1", "--duration", "5m"];
    let load = Load::of(memload(), &[args, &others].concat())?;
    cgroup.add(load.id())?;
    Ok(load)
}

/// Memory that cannot be reclaimed, beyond memory.high: the kernel puts the thread to sleep.
#[test]
fn penalty() -> Result<()> {
    require_guest();
    let cgroup = Cgroup::limited_by(TEST, Limit::High(LIMIT))?;
    let load = || within(&cgroup, &["anon", "--size", "24M"]);
    let stalls = compare(cgroup.path(), ENOUGH_NS, load)?;
    let slept = sum(&stalls, "penalty");
    println!("{slept} ns of penalty, {} ns of reclaim for memory.high", sum(&stalls, "memcg-high"));
    assert!(slept > ENOUGH_NS / 5, "only {slept} ns of penalty");
    assert_eq!(sum(&stalls, "memcg-max"), 0);
    for episode in stalls.episodes.iter().filter(|episode| episode.kind == "penalty") {
        assert_eq!(episode.rounds, [0, 0, 1], "{}", episode.value);
        let asleep = episode.part("blocked") + episode.part("waiting");
        assert!(asleep > episode.duration_ns / 2, "{}", episode.value);
    }
    Ok(())
}
