//! How much slower a load is that stalls all the time and is traced.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::wait::budget;

use crate::{
    report::{Budget, Row},
    setting::{Churn, HISTOGRAM, LoadKind, Mode, ROWS, Setting, WARM_UP},
    stats::{Spread, confidence},
    tracer::Tracer,
};

const MODES: [Mode; 2] = [ROWS, HISTOGRAM];

const UNIT: &str = "%";

/// Slower, at most.
const MOST: f64 = 1.0;

/// Pairs of a time with and a time without memtrace, in each round.
const PAIRS: usize = 6;

/// Each of the two takes about so long,
const TIME: Duration = Duration::from_secs(1);
/// and a multiple of so many passes: the load writes in one of them and reads in the others.
const CYCLE: f64 = 4.0;

/// How often one looks how far the load is.
const PERIOD: Duration = Duration::from_millis(1);

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
    let usual = Speed::of(setting, load, CYCLE)?.passes;
    let cycles = (usual * setting.time(TIME).as_secs_f64() / CYCLE).round().max(1.0);
    let untraced = || Speed::of(setting, load, cycles * CYCLE);
    let traced = || -> Result<Speed> {
        setting.ensure_going_on()?;
        let Setting { memtrace, cores, .. } = setting;
        let tracer = Tracer::start(memtrace, mode.args, &setting.output(), &cores.all)?;
        let speed = Speed::of(setting, load, cycles * CYCLE);
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
    let interval = format!("95 % confidence {low:.2} to {high:.2} %");
    Ok(Row::new(name, UNIT, values)
        .within(Budget::Most(MOST))
        .judged(high)
        .noting(format!("{pairs} pairs, median with {interval}, of which the upper end is judged")))
}

impl Speed {
    /// During so many passes, after a moment to settle.
    fn of(setting: &Setting, load: &Churn, passes: f64) -> Result<Self> {
        thread::sleep(SETTLE);
        let (start, first, cpu) = (Instant::now(), load.passes()?, load.cpu_time()?);
        loop {
            thread::sleep(PERIOD);
            setting.ensure_going_on()?;
            let (done, took) = (load.passes()? - first, start.elapsed());
            if done >= passes {
                let cpu = load.cpu_time()?.saturating_sub(cpu).as_secs_f64();
                return Ok(Self { passes: done / took.as_secs_f64(), cpu: cpu / done });
            }
            ensure!(took < budget(), "the load has done {done:.1} passes in {took:?}");
        }
    }
}
