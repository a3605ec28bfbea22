//! What a stall costs the thread that is stalled: the run time of memtrace's programs, by the kernel's own count.

use std::{
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tests::wait::budget;

use crate::{
    flood::{Pace, Pair},
    peers::{Peer, Rounds},
    programs::{Floor, Runs},
    report::{Budget, Row},
    setting::{
        EXTENDED, HISTOGRAM, JSON, Mode, ROWS, STACKS, STALLS, STALLS_ONLY, Setting, WARM_UP,
        measure_runs,
    },
};

/// Those of `stalls` include what its program costs at every switch of threads meanwhile.
const MODES: [Mode; 7] = [ROWS, EXTENDED, STACKS, JSON, HISTOGRAM, STALLS, STALLS_ONLY];

const UNIT: &str = "ns/stall";
const FLOOR: &str = "two empty programs";
const CLOCK: &str = "two that read the clock";

/// Stalls in each round of a flood.
const FLOOD: u64 = 20_000;

/// Stalls of which some batches find room, with kernel stacks as well. memtrace has some time to read after each.
const BATCH: u64 = 500;

/// How long nothing comes between the batches of the empty pair: as long as memtrace takes at least.
pub const PAUSE: Duration = Duration::from_millis(50);

/// How long each program has for real stalls, in each round.
const CHURN: Duration = Duration::from_secs(2);

/// As many real stalls make a measurement.
const ENOUGH: u64 = 100;

/// A budget in nanoseconds, and in times of the empty pair.
fn with_budget(row: Row, mode: Mode) -> Row {
    if mode == ROWS {
        row.within(Budget::MostTimes(4.0)).within(Budget::Most(500.0))
    } else if mode == HISTOGRAM {
        row.within(Budget::MostTimes(3.0))
    } else {
        row
    }
}

/// Measures stalls that are made one right after the other, on one core, with all that they touch in its caches.
pub fn flood(setting: &Setting) -> Result<Vec<Row>> {
    let _measuring = measure_runs()?;
    let count = setting.count(FLOOD);
    let (empty, clock) = (Floor::empty()?, Floor::clock()?);
    let [mut floor, mut clocks] = [Vec::new(), Vec::new()];
    let mut values = MODES.map(|_| Vec::new());
    let mut lost = MODES.map(|_| 0);
    for _ in 0..setting.rounds {
        for (programs, values) in [(&empty, &mut floor), (&clock, &mut clocks)] {
            let pair = Pair { begin: programs.begin.as_fd(), end: programs.end.as_fd() };
            let before = Runs::of(&programs.ids()?)?;
            in_batches(setting, pair, count, || {
                thread::sleep(PAUSE);
                Ok(())
            })?;
            let (runs, stalls) = in_pairs(Runs::of(&programs.ids()?)?.since(before));
            values.push(runs.ns_per(stalls));
        }
        for ((mode, values), lost) in MODES.into_iter().zip(&mut values).zip(&mut lost) {
            let tracer = setting.start(mode)?;
            let opened = tracer.pair()?;
            let (before, ends) = (tracer.runs()?, tracer.ends()?);
            in_batches(setting, opened.pair(), count, || {
                tracer.come_to_rest(Duration::ZERO).map(|_| ())
            })?;
            let runs = tracer.runs()?.since(before);
            values.push(runs.ns_per(tracer.ends()? - ends));
            *lost += tracer.stop()?.lost;
        }
    }
    let mut rows = floors("flood", &floor, clocks);
    for ((mode, values), lost) in MODES.into_iter().zip(values).zip(lost) {
        let name = format!("BPF time, flood: {}", mode.name);
        let row = with_budget(Row::new(name, UNIT, values).against(FLOOR, &floor), mode);
        rows.push(row.losing(lost));
    }
    Ok(rows)
}

/// The rows of what nothing that measures stalls can do without.
fn floors(load: &str, empty: &[f64], clock: Vec<f64>) -> Vec<Row> {
    vec![
        Row::new(format!("BPF time, {load}: {FLOOR}"), UNIT, empty.to_vec()),
        Row::new(format!("BPF time, {load}: {CLOCK}"), UNIT, clock).against(FLOOR, empty),
    ]
}

/// Makes stalls, and waits after some of them.
fn in_batches(
    setting: &Setting,
    pair: Pair<'_>,
    count: u64,
    wait: impl Fn() -> Result<()>,
) -> Result<()> {
    setting.cores.flooding(|| {
        for _ in 0..count.div_ceil(BATCH) {
            pair.flood(BATCH, Pace::Full)?;
            wait()?;
        }
        Ok(())
    })
}

/// Measures stalls of a load at its cgroup's limit: the caches are as the kernel's reclaim leaves them.
pub fn churn(setting: &Setting) -> Result<Vec<Row>> {
    let _measuring = measure_runs()?;
    let time = setting.time(CHURN);
    let _load = setting.churn()?;
    thread::sleep(WARM_UP);
    let (empty, clock) = (Floor::empty()?, Floor::clock()?);
    let [mut floor, mut clocks] = [Vec::new(), Vec::new()];
    let mut peer = Rounds::default();
    let mut values = MODES.map(|_| Vec::new());
    let mut lost = MODES.map(|_| 0);
    for _ in 0..setting.rounds {
        for (programs, values) in [(&empty, &mut floor), (&clock, &mut clocks)] {
            let _attached = programs.attach()?;
            values.push(over(setting, time, || Ok(in_pairs(Runs::of(&programs.ids()?)?)))?);
        }
        peer.measure(|| {
            let bpftrace = Peer::bpftrace()?;
            over(setting, time, || Ok(in_pairs(Runs::of(bpftrace.programs())?)))
        });
        for ((mode, values), lost) in MODES.into_iter().zip(&mut values).zip(&mut lost) {
            let tracer = setting.start(mode)?;
            values.push(over(setting, time, || Ok((tracer.runs()?, tracer.ends()?)))?);
            *lost += tracer.stop()?.lost;
        }
    }
    let mut rows = floors("churn", &floor, clocks);
    rows.push(peer.row("BPF time, churn: bpftrace hist()", UNIT).against(FLOOR, &floor));
    for ((mode, values), lost) in MODES.into_iter().zip(values).zip(lost) {
        let name = format!("BPF time, churn: {}", mode.name);
        let row = with_budget(Row::new(name, UNIT, values).against(FLOOR, &floor), mode);
        rows.push(row.losing(lost));
    }
    Ok(rows)
}

/// Runs of two programs, and how many stalls that were.
pub fn in_pairs(runs: Runs) -> (Runs, u64) {
    (runs, runs.count / 2)
}

/// Nanoseconds for each stall during `time`, or longer, until there were enough, of the programs' runs and the number of stalls that `now` gives.
pub fn over(
    setting: &Setting,
    time: Duration,
    now: impl Fn() -> Result<(Runs, u64)>,
) -> Result<f64> {
    let (runs_before, stalls_before) = now()?;
    let start = Instant::now();
    loop {
        thread::sleep(time);
        setting.ensure_going_on()?;
        let (runs, stalls) = now()?;
        let stalls = stalls - stalls_before;
        if stalls >= ENOUGH {
            return Ok(runs.since(runs_before).ns_per(stalls));
        }
        let took = start.elapsed();
        ensure!(took < budget(), "only {stalls} stalls in {took:?}: the load makes none");
    }
}
