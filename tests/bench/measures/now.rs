//! How soon `memtrace now` answers on a host of many threads, and what memory it takes.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    report::{Budget, Row},
    setting::{Setting, mib, millis},
    tracer::memory_of,
};

/// Threads that sleep meanwhile.
const THREADS: usize = 10_000;
const STACK: usize = 16 << 10;

/// Until the answer, at most: 200 ms of it pass between the two looks.
const ANSWER: f64 = 300.0;

/// Resident, at most.
const RESIDENT: f64 = 8.0;

/// Runs in each round.
const RUNS: usize = 4;

/// How often to look at its memory.
const PERIOD: Duration = Duration::from_millis(5);

/// Measures it.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let is_over = AtomicBool::new(false);
    let (took, peak) = thread::scope(|scope| {
        let sleeper = || {
            while !is_over.load(Ordering::Relaxed) {
                thread::park();
            }
        };
        let start = |_| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, sleeper);
        let mut sleepers = Vec::with_capacity(THREADS);
        let started: Result<(), _> =
            (0..THREADS).map(start).try_for_each(|sleeper| sleeper.map(|it| sleepers.push(it)));
        let measured = started
            .with_context(|| format!("cannot start {THREADS} threads"))
            .and_then(|()| runs(setting));
        is_over.store(true, Ordering::Relaxed);
        for sleeper in &sleepers {
            sleeper.thread().unpark();
        }
        measured
    })?;
    Ok(vec![
        Row::new("memtrace now, 10,000 threads: until the answer", "ms", took)
            .within(Budget::Most(ANSWER)),
        Row::new("memtrace now, 10,000 threads: peak resident memory", "MiB", peak)
            .within(Budget::Most(RESIDENT)),
    ])
}

fn runs(setting: &Setting) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut took, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..setting.rounds * RUNS {
        setting.ensure_going_on()?;
        let start = Instant::now();
        let mut child = Command::new(&setting.memtrace)
            .args(["now", "-q"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start memtrace")?;
        let mut peak = 0;
        // As it ends its memory is gone, of which it has taken all by the first look.
        let status = loop {
            if let Some(status) = child.try_wait().context("cannot wait for memtrace")? {
                break status;
            }
            peak = memory_of(child.id(), "VmHWM").unwrap_or(peak);
            thread::sleep(PERIOD);
        };
        took.push(millis(start.elapsed()));
        ensure!(status.success(), "memtrace now ended with {status}");
        peaks.push(mib(peak));
    }
    Ok((took, peaks))
}
