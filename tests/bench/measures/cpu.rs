//! What a stall costs memtrace itself: the CPU time of its process, in user space and in the kernel on its behalf.

use std::{
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    flood::{Pace, Pair},
    host::pin,
    programs::{Floor, RECORD as RECORD_BYTES, Writer},
    report::{Budget, Row},
    setting::{
        EXTENDED, HISTOGRAM, JSON, Mode, RECORD, RECORD_ONLY, ROWS, STALLS, STALLS_ONLY, Setting,
    },
};

/// Modes, and their budget in microseconds.
const MODES: [(Mode, Option<f64>); 8] = [
    (ROWS, Some(1.0)),
    (EXTENDED, None),
    (JSON, Some(1.0)),
    (HISTOGRAM, Some(0.2)),
    (STALLS, None),
    (STALLS_ONLY, None),
    // At 100,000 a second a twentieth of a core.
    (RECORD, Some(0.5)),
    (RECORD_ONLY, Some(0.5)),
];

const UNIT: &str = "us/stall";

/// Stalls in each round.
const FLOOD: u64 = 400_000;

/// Fast enough that what memtrace does while nothing happens does not count, slow enough to lose nothing.
const PACE: Pace = Pace::PerSecond(100_000.0);

/// memtrace does some things only once in this time.
const PERIODIC: Duration = Duration::from_millis(1200);

/// The default of memtrace.
const RING: u32 = 4 << 20;

/// How long the floor's reader sleeps when there is nothing to read: as long as memtrace does.
const NAP: Duration = Duration::from_millis(100);

/// Measures it.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let count = setting.count(FLOOD);
    let mut floor = Vec::new();
    let mut values = MODES.map(|_| Vec::new());
    let mut lost = MODES.map(|_| 0);
    let mut unread = 0;
    for _ in 0..setting.rounds {
        let (time, read) = read_only(setting, count)?;
        floor.push(micros(time) / read as f64);
        unread += count - read;
        for (((mode, _), values), lost) in MODES.into_iter().zip(&mut values).zip(&mut lost) {
            let tracer = setting.start(mode)?;
            let opened = tracer.pair()?;
            let before = tracer.come_to_rest(Duration::ZERO)?;
            setting.cores.flooding(|| opened.pair().flood(count, PACE))?;
            let took = tracer.come_to_rest(PERIODIC)?.saturating_sub(before);
            let told = tracer.stop()?;
            ensure!(told.stalls > 0, "memtrace says of {count} stalls that there was none");
            values.push(micros(took) / told.stalls as f64);
            *lost += told.lost;
        }
    }
    let name = "a loop that only reads";
    let mut rows = vec![
        Row::new("CPU time: a loop that only reads the ring buffer", UNIT, floor.clone())
            .noting(format!("records of {RECORD_BYTES} bytes"))
            .losing(unread),
    ];
    for (((mode, budget), values), lost) in MODES.into_iter().zip(values).zip(lost) {
        let row = Row::new(format!("CPU time: {}", mode.name), UNIT, values).against(name, &floor);
        let row = match budget {
            Some(most) => row.within(Budget::Most(most)),
            None => row,
        };
        rows.push(row.losing(lost));
    }
    Ok(rows)
}

/// The CPU time of a thread that reads records and does nothing with them, and how many it has read.
fn read_only(setting: &Setting, count: u64) -> Result<(Duration, u64)> {
    let Writer { program, mut ring } = Writer::load(RING)?;
    let empty = Floor::empty()?;
    let pair = Pair { begin: empty.begin.as_fd(), end: program.as_fd() };
    let written = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<(Duration, u64)> {
            pin(None, &[setting.cores.reader])?;
            let (mut read, mut sum) = (0, 0_u64);
            loop {
                // Asked before the last look, so that nothing stays unread.
                let was_last = written.load(Ordering::Acquire);
                while let Some(record) = ring.next() {
                    read += 1;
                    // The compiler may not leave the reading out.
                    sum += u64::from(std::hint::black_box(record[0]));
                }
                if was_last {
                    break;
                }
                thread::sleep(NAP);
            }
            ensure!(sum == 0, "the ring buffer has something else in it");
            ensure!(read > 0, "of {count} records none was there to be read");
            let time = clock_gettime(ClockId::ThreadCPUTime);
            Ok((Duration::try_from(time).context("no CPU time")?, read))
        });
        let flooded = setting.cores.flooding(|| pair.flood(count, PACE));
        written.store(true, Ordering::Release);
        let time = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        flooded.and(time)
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
