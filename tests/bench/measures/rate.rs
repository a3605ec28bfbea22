//! How many stalls a second memtrace takes in for a long time without losing one.

use std::{os::fd::AsFd as _, time::Duration};

use anyhow::Result;

use crate::{
    flood::{Pace, Pair},
    programs::Floor,
    report::{Budget, Row},
    setting::{HISTOGRAM, Mode, ROWS, Setting},
};

const MODES: [Mode; 2] = [ROWS, HISTOGRAM];

const UNIT: &str = "stalls/s";

/// Nobody asks for less.
const LEAST: f64 = 300_000.0;

/// How long the rate has to be kept up.
const LONG: Duration = Duration::from_secs(30);

/// The same where it has to be quick.
const LONG_ENOUGH: Duration = Duration::from_secs(3);

/// How long a rate is tried before.
const SHORT: Duration = Duration::from_secs(2);

/// How often the interval of the highest rate is halved.
const HALVINGS: u32 = 5;

/// Rates for the long run, each so much lower than the one before.
const STEP: f64 = 0.93;

/// Measures it.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let empty = Floor::empty()?;
    let long = if setting.quick { LONG_ENOUGH } else { LONG };
    let mut floor = Vec::new();
    let mut values = MODES.map(|_| (Vec::new(), Vec::new()));
    let mut lost = MODES.map(|_| 0.0_f64);
    for _ in 0..setting.rounds {
        let pair = Pair { begin: empty.begin.as_fd(), end: empty.end.as_fd() };
        floor.push(rate(setting.cores.flooding(|| pair.flood_for(SHORT, Pace::Full))?));
        for ((mode, (full, kept)), lost) in MODES.into_iter().zip(&mut values).zip(&mut lost) {
            let tried = attempt(setting, mode, Pace::Full, long)?;
            full.push(tried.rate);
            *lost = lost.max(tried.lost);
            kept.push(if tried.lost > 0.0 {
                highest(setting, mode, tried.rate, long)?
            } else {
                tried.rate
            });
        }
    }
    let name = "empty programs";
    let mut rows = vec![Row::new("flood at full speed: empty programs", UNIT, floor.clone())];
    for ((mode, (full, kept)), lost) in MODES.into_iter().zip(values).zip(lost) {
        rows.push(
            Row::new(format!("flood at full speed: {}", mode.name), UNIT, full.clone())
                .against(name, &floor)
                .noting(if lost > 0.0 {
                    format!("up to {:.1} % were lost", lost * 100.0)
                } else {
                    String::new()
                }),
        );
        rows.push(
            Row::new(format!("rate without loss: {}", mode.name), UNIT, kept)
                .against("flood at full speed", &full)
                .within(Budget::Least(LEAST))
                .within(Budget::LeastTimes(1.0))
                .noting(format!("kept up for {} s", long.as_secs())),
        );
    }
    Ok(rows)
}

/// How a flood went.
#[derive(Clone, Copy, Debug)]
struct Tried {
    /// Stalls a second.
    rate: f64,
    /// The share that was lost.
    lost: f64,
}

fn attempt(setting: &Setting, mode: Mode, pace: Pace, time: Duration) -> Result<Tried> {
    let tracer = setting.start(mode)?;
    let opened = tracer.pair()?;
    let done = setting.cores.flooding(|| opened.pair().flood_for(time, pace))?;
    tracer.come_to_rest(Duration::ZERO)?;
    let told = tracer.stop()?;
    // Whatever it calls it, what is not shown is lost.
    let lost = told.lost.max(done.0.saturating_sub(told.stalls));
    Ok(Tried { rate: rate(done), lost: lost as f64 / done.0 as f64 })
}

/// The highest rate that is kept up without loss, where `full` is not.
fn highest(setting: &Setting, mode: Mode, full: f64, long: Duration) -> Result<f64> {
    let (mut low, mut high) = (0.0, full);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if attempt(setting, mode, Pace::PerSecond(middle), SHORT)?.lost > 0.0 {
            high = middle;
        } else {
            low = middle;
        }
    }
    let mut wanted = low;
    while wanted > full / 100.0 {
        let tried = attempt(setting, mode, Pace::PerSecond(wanted), long)?;
        if tried.lost == 0.0 {
            return Ok(tried.rate);
        }
        wanted *= STEP;
    }
    Ok(0.0)
}

fn rate((count, took): (u64, Duration)) -> f64 {
    count as f64 / took.as_secs_f64()
}
