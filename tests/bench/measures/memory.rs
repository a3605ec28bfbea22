//! What memtrace takes of the machine: memory, and its file.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    flood::Pace,
    peers::{Peer, Rounds},
    report::{Budget, Row},
    setting::{HISTOGRAM, Mode, RECORD, ROWS, STACKS, STALLS, STALLS_ONLY, Setting, mib},
    tracer::memory_of,
};

const MODES: [Mode; 6] = [ROWS, HISTOGRAM, STACKS, STALLS, STALLS_ONLY, RECORD];

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
    let (mut bpftrace, mut bcc) = (Rounds::default(), Rounds::default());
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
        bpftrace.measure(|| peak(&Peer::bpftrace()?));
        bcc.measure(|| peak(&Peer::bcc()?));
    }
    drop(load);
    let mut rows = vec![
        bpftrace.row("peak resident memory: bpftrace hist()", UNIT),
        bcc.row("peak resident memory: bcc drsnoop", UNIT),
    ];
    for (mode, Memory { peak, locked, maps }) in MODES.into_iter().zip(memories) {
        let name = |what| format!("{what}: {}", mode.name);
        rows.extend([
            with_budget(Row::new(name("peak resident memory"), UNIT, peak), mode)
                .against("bpftrace", bpftrace.values()),
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

/// The kernel's symbols, for stacks and for the names of shrinkers, are beyond it.
fn with_budget(row: Row, mode: Mode) -> Row {
    if [STACKS, STALLS, STALLS_ONLY, RECORD].contains(&mode) {
        row
    } else {
        row.within(Budget::Most(RESIDENT))
    }
}

/// The most that a peer had resident until now.
fn peak(peer: &Peer) -> Result<f64> {
    Ok(mib(memory_of(peer.id(), "VmHWM")?))
}
