//! How much slower a load is that stalls all the time and is traced.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    report::{Budget, Row},
    setting::{Churn, HISTOGRAM, LoadKind, Mode, ROWS, Setting},
    stats::{Spread, confidence},
    tracer::Tracer,
};

const MODES: [Mode; 2] = [ROWS, HISTOGRAM];

const UNIT: &str = "%";

/// Slower, at most.
const MOST: f64 = 1.0;

/// Pairs of a time with and a time without memtrace, in each round.
const PAIRS: usize = 6;

/// Each of the two.
const TIME: Duration = Duration::from_secs(1);

/// Until a new load's files are there and its cgroup is full.
const WARM_UP: Duration = Duration::from_secs(2);

/// Until the load goes on as usual after memtrace has started or ended.
const SETTLE: Duration = Duration::from_millis(200);

/// Measures it, on all cores: memtrace takes its time from the load.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in [LoadKind::Files, LoadKind::Holes] {
        let load = setting.load(kind)?;
        thread::sleep(WARM_UP);
        for mode in MODES {
            rows.extend(slowdown(setting, &load, mode, kind)?);
        }
    }
    Ok(rows)
}

/// How a load fares.
#[derive(Clone, Copy)]
struct Speed {
    /// Passes a second through its files.
    passes: f64,
    /// Its CPU time for a pass, in seconds. What other processes take of the CPUs is not in it.
    cpu: f64,
}

fn slowdown(setting: &Setting, load: &Churn, mode: Mode, kind: LoadKind) -> Result<[Row; 2]> {
    let time = setting.time(TIME);
    let untraced = || Speed::of(load, time);
    let traced = || -> Result<Speed> {
        let Setting { memtrace, cores, .. } = setting;
        let tracer = Tracer::start(memtrace, mode.args, &setting.output(), &cores.all)?;
        let speed = Speed::of(load, time);
        tracer.stop()?;
        speed
    };
    let (mut slower, mut dearer, mut passes) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..setting.rounds * PAIRS {
        // Each comes first as often as the other.
        let (with, without) = if number % 2 == 0 {
            let with = traced()?;
            (with, untraced()?)
        } else {
            let without = untraced()?;
            (traced()?, without)
        };
        slower.push((without.passes / with.passes).ln() * 100.0);
        dearer.push((with.cpu / without.cpu).ln() * 100.0);
        passes.push(without.passes);
    }
    let of = format!("{}: {}", kind.name(), mode.name);
    let passes = Spread::of(&passes).map_or(0.0, |spread| spread.median);
    Ok([
        row(format!("slowdown of churn, {of}"), slower)?
            .noting(format!("untraced {passes:.1} passes/s")),
        row(format!("CPU time of churn, {of}"), dearer)?,
    ])
}

fn row(name: String, values: Vec<f64>) -> Result<Row> {
    let (low, high) = confidence(&values).context("one pair has no interval")?;
    let pairs = values.len();
    Ok(Row::new(name, UNIT, values).within(Budget::Most(MOST)).judged(high).noting(format!(
        "{pairs} pairs, median with 95 % confidence {low:.2} to {high:.2} %, of which the upper end is judged"
    )))
}

impl Speed {
    /// During `time`, after a moment to settle.
    fn of(load: &Churn, time: Duration) -> Result<Self> {
        thread::sleep(SETTLE);
        let (start, passes, cpu) = (Instant::now(), load.passes()?, load.cpu_time()?);
        thread::sleep(time);
        let passes = load.passes()? - passes;
        let cpu = load.cpu_time()?.saturating_sub(cpu);
        ensure!(passes > 0.0, "the load stands still");
        Ok(Self { passes: passes / start.elapsed().as_secs_f64(), cpu: cpu.as_secs_f64() / passes })
    }
}
