//! How much slower a load is that stalls all the time and is traced.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

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
const TIME: Duration = Duration::from_secs(2);

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
            rows.push(slowdown(setting, &load, mode, kind)?);
        }
    }
    Ok(rows)
}

fn slowdown(setting: &Setting, load: &Churn, mode: Mode, kind: LoadKind) -> Result<Row> {
    let time = setting.time(TIME);
    let traced = || -> Result<f64> {
        let tracer =
            Tracer::start(&setting.memtrace, mode.args, &setting.output(), &setting.cores.all)?;
        let speed = speed(load, time);
        tracer.stop()?;
        speed
    };
    let (mut values, mut speeds) = (Vec::new(), Vec::new());
    for number in 0..setting.rounds * PAIRS {
        // Each comes first as often as the other.
        let (with, without) = if number % 2 == 0 {
            let with = traced()?;
            (with, speed(load, time)?)
        } else {
            let without = speed(load, time)?;
            (traced()?, without)
        };
        speeds.push(without);
        values.push((1.0 - with / without) * 100.0);
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let (low, high) = confidence(&values).context("one pair has no interval")?;
    let speed = Spread::of(&speeds).map_or(0.0, |spread| spread.median);
    Ok(Row::new(format!("slowdown, {}: {}", kind.name(), mode.name), UNIT, values)
        .within(Budget::AtMost(MOST))
        .judged(high)
        .noting(format!(
            "mean {mean:.2} %, 95 % confidence {low:.2} to {high:.2} % (bootstrap), whose upper end is held against \
             the budget; untraced {speed:.0} passes/s"
        )))
}

/// Passes a second through the load's files during `time`, after a moment to settle.
fn speed(load: &Churn, time: Duration) -> Result<f64> {
    thread::sleep(SETTLE);
    let (start, before) = (Instant::now(), load.passes()?);
    thread::sleep(time);
    let passes = load.passes()? - before;
    Ok(passes / start.elapsed().as_secs_f64())
}
