//! How many stalls find room while memtrace does not get to run at all.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use crate::{
    flood::Pace,
    report::{Budget, Row},
    setting::{HISTOGRAM, Mode, ROWS, Setting},
};

/// Modes and their budgets.
const MODES: [(Mode, f64); 2] = [(ROWS, 50_000.0), (HISTOGRAM, 200_000.0)];

/// Stalls of a burst: more than any buffer is asked for.
const BURST: u64 = 400_000;

/// Measures it. Stalls are taken in until there is no room, and from then on none, as nobody makes room: so those that
/// were taken in are as many as could have come without loss.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (mode, least) in MODES {
        let mut values = Vec::new();
        let mut all = true;
        for _ in 0..setting.rounds {
            let tracer = setting.start(mode)?;
            let opened = tracer.pair()?;
            tracer.come_to_rest(Duration::ZERO)?;
            tracer.freeze()?;
            setting.cores.flooding(|| opened.pair().flood(BURST, Pace::Full))?;
            tracer.signal(Signal::CONT)?;
            tracer.come_to_rest(Duration::ZERO)?;
            let told = tracer.stop()?;
            all &= told.lost == 0;
            values.push(told.stalls.min(BURST) as f64);
        }
        let note = if all { ", and all found room" } else { "" };
        rows.push(
            Row::new(format!("burst while stopped: {}", mode.name), "stalls", values)
                .within(Budget::Least(least))
                .noting(format!("{BURST} stalls of one thread{note}")),
        );
    }
    Ok(rows)
}
