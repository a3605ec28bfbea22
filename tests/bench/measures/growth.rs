//! How the cost of a stall grows with the number of threads that are stalled at once.

use std::{os::fd::AsFd as _, thread, time::Duration};

use anyhow::Result;

use crate::{
    flood::Pair,
    measures::kernel::PAUSE,
    programs::{Floor, Runs},
    report::{Budget, Row},
    setting::{HISTOGRAM, Mode, ROWS, Setting, measure_runs},
};

const MODES: [Mode; 2] = [ROWS, HISTOGRAM];

const UNIT: &str = "ns/stall";

const THREADS: [usize; 5] = [1, 10, 100, 1000, 10_000];

/// Stalls in each round, shared out among the threads.
const FLOOD: u64 = 100_000;

/// Stalls that find room, and memtrace reads before more come: the buffer has some 58,000 records in it.
const BATCH: u64 = 20_000;

/// Flat enough.
const TIMES: f64 = 1.2;

/// Measures it. All threads take turns on one core, so that memtrace can read on the other.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let _measuring = measure_runs()?;
    let count = setting.count(FLOOD);
    let empty = Floor::empty()?;
    let mut floor = THREADS.map(|_| Vec::new());
    let mut values = MODES.map(|_| THREADS.map(|_| Vec::new()));
    let mut lost = MODES.map(|_| THREADS.map(|_| 0));
    for _ in 0..setting.rounds {
        for (threads, values) in THREADS.into_iter().zip(&mut floor) {
            let pair = Pair { begin: empty.begin.as_fd(), end: empty.end.as_fd() };
            let before = Runs::of(&empty.ids()?)?;
            at_once(setting, pair, threads, count, || {
                thread::sleep(PAUSE);
                Ok(())
            })?;
            let runs = Runs::of(&empty.ids()?)?.since(before);
            values.push(runs.ns_per(runs.count / 2));
        }
        for ((mode, values), lost) in MODES.into_iter().zip(&mut values).zip(&mut lost) {
            for ((threads, values), lost) in THREADS.into_iter().zip(values).zip(lost) {
                let tracer = setting.start(mode)?;
                let opened = tracer.pair()?;
                let (before, ends) = (tracer.runs()?, tracer.ends()?);
                at_once(setting, opened.pair(), threads, count, || {
                    tracer.come_to_rest(Duration::ZERO).map(|_| ())
                })?;
                values.push(tracer.runs()?.since(before).ns_per(tracer.ends()? - ends));
                *lost += tracer.stop()?.lost;
            }
        }
    }
    let mut rows = Vec::new();
    for (threads, values) in THREADS.into_iter().zip(floor) {
        rows.push(Row::new(format!("{}: two empty programs", at(threads)), UNIT, values));
    }
    for ((mode, values), lost) in MODES.into_iter().zip(values).zip(lost) {
        let one = values[0].clone();
        for ((threads, values), lost) in THREADS.into_iter().zip(values).zip(lost) {
            let row = Row::new(format!("{}: {}", at(threads), mode.name), UNIT, values);
            let row = row.losing(lost);
            rows.push(if threads == 1 {
                row
            } else {
                row.against("1 thread", &one).within(Budget::MostTimes(TIMES))
            });
        }
    }
    Ok(rows)
}

fn at_once(
    setting: &Setting,
    pair: Pair<'_>,
    threads: usize,
    count: u64,
    rest: impl Fn() -> Result<()> + Sync,
) -> Result<()> {
    let rounds = |stalls: u64| (stalls / threads as u64).max(1);
    setting.cores.flooding(|| pair.flood_at_once(threads, rounds(count), rounds(BATCH), rest))
}

fn at(threads: usize) -> String {
    format!("BPF time, {threads} thread{} at once", if threads == 1 { "" } else { "s" })
}
