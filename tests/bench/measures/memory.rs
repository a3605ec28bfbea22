//! What memtrace takes of the machine: memory, and its file.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    flood::Pace,
    peers::{Bpftrace, Rounds},
    report::{Budget, Row},
    setting::{HISTOGRAM, Mode, ROWS, STACKS, Setting, mib},
    tracer::memory_of,
};

const MODES: [Mode; 3] = [ROWS, HISTOGRAM, STACKS];

const UNIT: &str = "MiB";

/// Resident, at most.
const RESIDENT: f64 = 8.0;

/// The file.
const FILE: f64 = 5.0;

/// Stalls that memtrace has seen when it is looked at.
const FLOOD: u64 = 100_000;

/// What memory is in at one time.
#[derive(Clone, Default)]
struct Memory {
    peak: Vec<f64>,
    locked: Vec<f64>,
    maps: Vec<f64>,
}

/// Measures it.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let mut memories = MODES.map(|_| Memory::default());
    let mut peer = Rounds::default();
    let load = setting.churn()?;
    for _ in 0..setting.rounds {
        for (mode, memory) in MODES.into_iter().zip(&mut memories) {
            let tracer = setting.start(mode)?;
            let opened = tracer.pair()?;
            setting.cores.flooding(|| opened.pair().flood(FLOOD, Pace::PerSecond(100_000.0)))?;
            tracer.come_to_rest(Duration::ZERO)?;
            memory.peak.push(mib(tracer.memory("VmHWM")?));
            memory.locked.push(mib(tracer.memory("VmLck")?));
            memory.maps.push(mib(tracer.maps()?));
            tracer.stop()?;
        }
        peer.measure(|| Ok(mib(memory_of(Bpftrace::histogram()?.id(), "VmHWM")?)));
    }
    drop(load);
    let mut rows = vec![peer.row("peak resident memory: bpftrace hist()", UNIT)];
    for (mode, Memory { peak, locked, maps }) in MODES.into_iter().zip(memories) {
        let name = |what| format!("{what}: {}", mode.name);
        rows.extend([
            Row::new(name("peak resident memory"), UNIT, peak)
                .against("bpftrace", peer.values())
                .within(Budget::Most(RESIDENT)),
            Row::new(name("locked memory"), UNIT, locked),
            Row::new(name("kernel memory of the maps"), UNIT, maps),
        ]);
    }
    let size = fs::metadata(&setting.memtrace)
        .with_context(|| format!("cannot look at `{}`", setting.memtrace.display()))?
        .len();
    rows.push(Row::new("size of the file", UNIT, vec![mib(size)]).within(Budget::Most(FILE)));
    Ok(rows)
}
