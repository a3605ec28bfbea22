//! Parts: they add up, and are what ftrace says that the time went into.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use tests::{
    compare::{Bounds, bounds},
    episodes::{Episode, assert_parts_add_up},
    host::{has_preemptible_tracepoints, is_guest},
    load::Load,
    run::Memtrace,
    timeline::{Recorder, Spent, Timeline},
};

use super::{churning, memload, stopped};

/// Fewer stalls than this prove nothing.
const ENOUGH: usize = 300;

/// How far the two may be apart for each run of a shrinker, in nanoseconds: ftrace rounds times to
/// microseconds, and has what memtrace's probes cost in its own. An emulated CPU takes many times as long.
fn each_run_ns() -> u64 {
    if is_guest() { 300_000 } else { 2_000 }
}

/// The same for each time off the CPU: between the two measurements the scheduler may look for others.
fn each_switch_ns() -> u64 {
    if is_guest() { 300_000 } else { 10_000 }
}

/// What may come between two probes on one event now and then: in a whole run no more than this.
fn once() -> Duration {
    let Bounds { usual, limit, .. } = bounds();
    if has_preemptible_tracepoints() { limit } else { 20 * usual }
}

/// What memtrace and ftrace say of the same stalls, all of them of one thread.
#[derive(Default)]
struct Both {
    stalls: u64,
    duration_ns: u64,
    memtrace: BTreeMap<String, u64>,
    ftrace: Spent,
}

/// Adds up what both say, thread by thread.
fn both<'a>(
    episodes: impl IntoIterator<Item = &'a Episode>,
    timeline: &Timeline,
) -> BTreeMap<u32, Both> {
    let mut threads: BTreeMap<u32, Both> = BTreeMap::new();
    for episode in episodes {
        let both = threads.entry(episode.tid).or_default();
        both.stalls += 1;
        both.duration_ns += episode.duration_ns;
        for (part, ns) in episode.parts.iter().flatten() {
            *both.memtrace.entry(part.clone()).or_default() += ns;
        }
        both.ftrace.add(&timeline.spent(episode));
    }
    threads
}

impl Both {
    fn part(&self, name: &str) -> u64 {
        self.memtrace.get(name).copied().unwrap_or(0)
    }

    fn shrinking_ns(&self) -> u64 {
        let shrinkers = self.memtrace.iter().filter(|(name, _)| name.starts_with("shrink:"));
        shrinkers.map(|(_, ns)| ns).sum()
    }

    /// Compares one time, to which all events together may add so much.
    fn is_close(&self, what: &str, memtrace_ns: u64, ftrace_ns: u64, each_ns: u64) -> bool {
        let apart = memtrace_ns.abs_diff(ftrace_ns);
        let once = once().min(Duration::from_nanos(self.duration_ns / 20));
        let bound = u128::from(each_ns) + once.as_nanos();
        println!("{what}: {memtrace_ns} ns, by ftrace {ftrace_ns} ns, apart {apart} of {bound}");
        u128::from(apart) <= bound
    }

    #[track_caller]
    fn assert_shrinkers_agree(&self) {
        let shrinkers = self
            .memtrace
            .iter()
            .filter_map(|(name, ns)| Some((name.strip_prefix("shrink:")?.to_owned(), *ns)));
        let mut shrinkers: BTreeMap<_, _> = shrinkers.collect();
        for (function, (count, ns)) in &self.ftrace.shrinkers {
            let found = shrinkers.remove(function).unwrap_or(0);
            assert!(
                self.is_close(function, found, *ns, (count * each_run_ns()).min(ns / 4)),
                "{function} in {} stalls",
                self.stalls
            );
        }
        assert!(shrinkers.is_empty(), "shrinkers that ftrace did not see: {shrinkers:?}");
    }

    fn scheduling_agrees(&self) -> bool {
        let throttled = self.memtrace.iter().filter(|(name, _)| name.starts_with("throttled:"));
        let throttled: u64 = throttled.map(|(_, ns)| ns).sum();
        let Spent { blocked_ns, waiting_ns, switches, .. } = self.ftrace;
        if has_preemptible_tracepoints() {
            // Who is preempted in a probe at the begin or the end of a shrinker waits on one side of it for
            // memtrace, and on the other for ftrace.
            let runs: u64 = self.ftrace.shrinkers.values().map(|(count, _)| count).sum();
            let shrinking: u64 = self.ftrace.shrinkers.values().map(|(_, ns)| ns).sum();
            return self.is_close(
                "off the CPU, or in shrinkers",
                self.part("blocked") + throttled + self.part("waiting") + self.shrinking_ns(),
                blocked_ns + waiting_ns + shrinking,
                switches * each_switch_ns() + (runs * each_run_ns()).min(shrinking / 4),
            );
        }
        // What was throttled was blocked.
        let blocked = self.is_close(
            "blocked",
            self.part("blocked") + throttled,
            blocked_ns,
            switches * each_switch_ns(),
        );
        let waiting = self.part("waiting");
        self.is_close("waiting", waiting, waiting_ns, switches * each_switch_ns()) && blocked
    }
}

fn total(threads: &BTreeMap<u32, Both>, of: impl Fn(&Both) -> u64) -> u64 {
    threads.values().map(of).sum()
}

/// What the kernel remembers of names is given back by a shrinker.
#[test]
fn shrinkers() -> Result<()> {
    let recorder = Recorder::start("memload")?;
    let mut load = Load::of(memload(), &["lookup", "--limit", "16M", "--duration", "5m"])?;
    let memtrace = Memtrace::start(&["stalls", "--rounds", "--json", "-p", &load.id().to_string()]);
    load.work_until_shown(&memtrace, ENOUGH, 2)?;
    println!("{}", load.stop()?);
    let stalls = stopped(memtrace)?;
    let timeline = recorder.stop()?;
    println!("{:?}", stalls.summary);
    assert_parts_add_up(&stalls.episodes);
    let threads = both(&stalls.episodes, &timeline);
    let mut functions = BTreeSet::new();
    for (tid, both) in &threads {
        println!("thread {tid}: {} stalls of {} ns", both.stalls, both.duration_ns);
        both.assert_shrinkers_agree();
        functions.extend(both.ftrace.shrinkers.keys().map(String::as_str));
    }
    assert!(functions.contains("super_cache_scan"), "no dentries were reclaimed: {functions:?}");
    println!("{functions:?}");
    // Single functions may take so little that the bounds would let anything pass.
    let runs = total(&threads, |both| both.ftrace.shrinkers.values().map(|(count, _)| count).sum());
    let by_ftrace = total(&threads, |both| both.ftrace.shrinkers.values().map(|(_, ns)| ns).sum());
    let found = total(&threads, Both::shrinking_ns);
    println!("{runs} runs of shrinkers: {found} ns, by ftrace {by_ftrace} ns");
    assert!(runs >= ENOUGH as u64, "only {runs} runs of shrinkers");
    // What the probes take is in ftrace's time only: on an emulated CPU some 30 us, of runs as short as 60 us. And
    // who is preempted in one waits within the run for ftrace, and before or after it for memtrace.
    let bound = if is_guest() { by_ftrace / 3 * 2 } else { by_ftrace / 4 };
    assert!(found.abs_diff(by_ftrace) < bound, "{found} ns, but {by_ftrace} ns by ftrace");
    Ok(())
}

/// More threads than CPUs: who stalls has to wait for one.
#[test]
fn waiting_and_blocked() -> Result<()> {
    const THREADS: usize = 8;
    let recorder = Recorder::start("memload")?;
    let (_cgroup, mut load) = churning(THREADS)?;
    let memtrace = Memtrace::start(&["stalls", "--rounds", "--json", "-p", &load.id().to_string()]);
    load.work_until_shown(&memtrace, ENOUGH, THREADS)?;
    load.stop()?;
    let stalls = stopped(memtrace)?;
    let timeline = recorder.stop()?;
    println!("{:?}", stalls.summary);
    assert_parts_add_up(&stalls.episodes);
    let threads = both(&stalls.episodes, &timeline);
    let mut apart = 0;
    for (tid, both) in &threads {
        println!("thread {tid}: {} stalls of {} ns", both.stalls, both.duration_ns);
        apart += usize::from(!both.scheduling_agrees());
    }
    // Seen once, beside builds: 1.6 ms more in one thread of eight than by ftrace. Why is not known; perhaps the CPU was
    // taken away between the two tracers' looks at one switch.
    assert!(apart <= THREADS / 8, "{apart} threads waited for another time than ftrace says");
    let waiting = total(&threads, |both| both.part("waiting"));
    let lost = total(&threads, |both| both.duration_ns);
    let switches = total(&threads, |both| both.ftrace.switches);
    println!("{waiting} of {lost} ns waiting for a CPU, {switches} switches");
    assert!(waiting > 0 && switches > 0, "nobody had to wait for a CPU");
    Ok(())
}

/// With gaps between them, the rounds of an episode still add up.
#[test]
fn of_episodes() -> Result<()> {
    let (_cgroup, mut load) = churning(4)?;
    let pid = load.id().to_string();
    let memtrace = Memtrace::start(&["stalls", "--json", "--gap", "1s", "-p", &pid]);
    let rounds = Memtrace::start(&["stalls", "--json", "--rounds", "-p", &pid]);
    load.work_until_shown(&rounds, ENOUGH, 4)?;
    load.stop()?;
    let (rounds, merged) = (stopped(rounds)?, stopped(memtrace)?);
    assert_parts_add_up(&rounds.episodes);
    assert_parts_add_up(&merged.episodes);
    let several = merged.episodes.iter().filter(|it| it.rounds.iter().sum::<u64>() > 1).count();
    assert!(several > 0, "no episode of more than one round");
    assert!(merged.episodes.len() < rounds.episodes.len());
    Ok(())
}
