//! How the cost of a stall grows with the number of threads that are stalled at once.

use std::os::fd::AsFd as _;

use anyhow::Result;

use crate::{
    flood::Pair,
    programs::{Floor, Runs},
    report::{Budget, Row},
    setting::{HISTOGRAM, Mode, ROWS, Setting, measure_runs},
};

const MODES: [Mode; 2] = [ROWS, HISTOGRAM];

const UNIT: &str = "ns/stall";

const THREADS: [usize; 5] = [1, 10, 100, 1000, 10_000];

/// Stalls in each round, shared out among the threads.
const FLOOD: u64 = 100_000;

/// Flat enough.
const TIMES: f64 = 1.2;

/// Measures it. All threads take turns on one core, so that memtrace can read on the other.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let _measuring = measure_runs()?;
    let count = setting.count(FLOOD);
    let empty = Floor::empty()?;
    let mut floor = THREADS.map(|_| Vec::new());
    let mut values = MODES.map(|_| THREADS.map(|_| Vec::new()));
    for _ in 0..setting.rounds {
        for (threads, values) in THREADS.into_iter().zip(&mut floor) {
            let pair = Pair { begin: empty.begin.as_fd(), end: empty.end.as_fd() };
            let before = Runs::of(&empty.ids()?)?;
            at_once(setting, pair, threads, count)?;
            let runs = Runs::of(&empty.ids()?)?.since(before);
            values.push(runs.ns_per(runs.count / 2));
        }
        for (mode, values) in MODES.into_iter().zip(&mut values) {
            for (threads, values) in THREADS.into_iter().zip(values) {
                let tracer = setting.start(mode)?;
                let opened = tracer.pair()?;
                let (before, ends) = (tracer.runs()?, tracer.ends()?);
                at_once(setting, opened.pair(), threads, count)?;
                values.push(tracer.runs()?.since(before).ns_per(tracer.ends()? - ends));
                tracer.stop()?;
            }
        }
    }
    let mut rows = Vec::new();
    for (threads, values) in THREADS.into_iter().zip(floor) {
        rows.push(Row::new(format!("{}: two empty programs", at(threads)), UNIT, values));
    }
    for (mode, values) in MODES.into_iter().zip(values) {
        let one = values[0].clone();
        for (threads, values) in THREADS.into_iter().zip(values) {
            let row = Row::new(format!("{}: {}", at(threads), mode.name), UNIT, values);
            rows.push(if threads == 1 {
                row
            } else {
                row.against("1 thread", &one).within(Budget::MostTimes(TIMES))
            });
        }
    }
    Ok(rows)
}

fn at_once(setting: &Setting, pair: Pair<'_>, threads: usize, count: u64) -> Result<()> {
    let rounds = (count / threads as u64).max(1);
    setting.cores.flooding(|| pair.flood_at_once(threads, rounds))
}

fn at(threads: usize) -> String {
    format!("BPF time, {threads} thread{} at once", if threads == 1 { "" } else { "s" })
}
