//! memtrace and libbpf-tools' drsnoop on the same global direct reclaim, which ruins the machine: in a guest.

use std::{
    ffi::CStr,
    fs::File,
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{host::require_guest, load::Load, wait::budget};

use crate::{
    bpf,
    measures::kernel::{in_pairs, over},
    peers::{Rounds, said},
    programs::{Floor, Runs},
    report::{Budget, Row},
    setting::{HISTOGRAM, Mode, ROWS, Setting, measure_runs, mib, millis},
    tracer::{fdinfos, memory_of, programs_of},
};

/// The pair of tracepoints of global direct reclaim.
const BEGIN: &CStr = c"mm_vmscan_direct_reclaim_begin";
const END: &CStr = c"mm_vmscan_direct_reclaim_end";

/// memtrace's program for the end, and drsnoop's.
const OURS: &str = "direct_end";
const THEIRS: usize = 2;

const MODES: [Mode; 2] = [ROWS, HISTOGRAM];

const UNIT: &str = "ns/stall";
const PEER: &str = "libbpf-tools drsnoop";

/// memtrace takes no more than this part of what the peer takes.
const TIMES: f64 = 1.0 / 20.0;

/// How long each has, in each round. Emulated machines are slow.
const TIME: Duration = Duration::from_secs(8);

/// How often one looks whether the peer is attached.
const PERIOD: Duration = Duration::from_millis(2);

/// Measures it.
pub fn measure(setting: &Setting, drsnoop: &Path) -> Result<Vec<Row>> {
    require_guest();
    let _measuring = measure_runs()?;
    let time = setting.time(TIME);
    let empty = Floor::empty()?;
    let (mut floor, mut peer, mut values) =
        (Vec::new(), Rounds::default(), MODES.map(|_| Vec::new()));
    let mut lost = MODES.map(|_| 0);
    let (mut attached, mut peer_attached) = (Vec::new(), Rounds::default());
    let (mut resident, mut peer_resident) = (Vec::new(), Vec::new());
    // As long as there is memory, else it is the load that is measured.
    for _ in 0..setting.rounds {
        peer_attached.measure(|| Ok(millis(Drsnoop::start(drsnoop, &setting.output())?.took)));
        attached.push(millis(setting.start(ROWS)?.took));
    }
    let args = ["churn", "--whole-machine", "--threads", "2", "--duration", "1h"];
    let mut load = Load::of(&setting.memload, &args)?;
    load.go()?;
    for _ in 0..setting.rounds {
        let links =
            [bpf::attach(empty.begin.as_fd(), BEGIN)?, bpf::attach(empty.end.as_fd(), END)?];
        floor.push(over(setting, time, || Ok(in_pairs(Runs::of(&empty.ids()?)?)))?);
        drop(links);

        peer.measure(|| {
            let drsnoop = Drsnoop::start(drsnoop, &setting.output())?;
            let value = over(setting, time, || Ok(in_pairs(Runs::of(&drsnoop.programs)?)))?;
            peer_resident.push(mib(memory_of(drsnoop.child.id(), "VmHWM")?));
            Ok(value)
        });

        for ((mode, values), lost) in MODES.into_iter().zip(&mut values).zip(&mut lost) {
            let tracer = setting.start(mode)?;
            values.push(over(setting, time, || Ok((tracer.runs()?, tracer.count(OURS)?)))?);
            if mode == ROWS {
                resident.push(mib(tracer.memory("VmHWM")?));
            }
            *lost += tracer.stop()?.lost;
        }
    }
    let name = |what| format!("guest, BPF time: {what}");
    let mut rows =
        vec![Row::new(name("two empty programs"), UNIT, floor), peer.row(name(PEER), UNIT)];
    for ((mode, values), lost) in MODES.into_iter().zip(values).zip(lost) {
        let row = Row::new(name(mode.name), UNIT, values).against(PEER, peer.values());
        rows.push(row.within(Budget::MostTimes(TIMES)).losing(lost));
    }
    // The peer has no row of its own here.
    rows.push(
        peer_attached.explain(
            Row::new("guest, start until attached: rows", "ms", attached)
                .against(PEER, peer_attached.values()),
        ),
    );
    rows.push(
        Row::new("guest, peak resident memory: rows", "MiB", resident)
            .against(PEER, &peer_resident),
    );
    Ok(rows)
}

/// What is said where nothing was measured.
pub fn missing(why: &str) -> Row {
    Row::missing(format!("guest, BPF time: {}", ROWS.name), UNIT, why)
        .within(Budget::MostTimes(TIMES))
}

/// A running drsnoop. It is killed when dropped.
struct Drsnoop {
    child: Child,
    programs: Vec<u32>,
    took: Duration,
}

impl Drsnoop {
    /// Starts it and waits until it holds its links. Its standard output, which it does not flush, cannot tell.
    fn start(drsnoop: &Path, output: &Path) -> Result<Self> {
        let file = File::create(output).context("cannot make a file for drsnoop")?;
        let mut command = Command::new(drsnoop);
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::piped());
        let start = Instant::now();
        let child =
            command.spawn().with_context(|| format!("cannot start `{}`", drsnoop.display()))?;
        let mut drsnoop = Self { child, programs: Vec::new(), took: Duration::ZERO };
        while linked(drsnoop.child.id())? < THEIRS {
            if let Some(status) = drsnoop.child.try_wait().context("cannot wait for drsnoop")? {
                let why = said(drsnoop.child.stderr.take());
                bail!("drsnoop ended before it was attached, with {status}: {why}");
            }
            ensure!(start.elapsed() < budget(), "drsnoop is not attached");
            thread::sleep(PERIOD);
        }
        drsnoop.took = start.elapsed();
        drsnoop.programs = programs_of(drsnoop.child.id())?.into_iter().map(|(id, _)| id).collect();
        Ok(drsnoop)
    }
}

impl Drop for Drsnoop {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: std::io::Result<()> = self.child.kill();
        let _waited: std::io::Result<_> = self.child.wait();
    }
}

/// How many links to eBPF programs a process holds.
fn linked(process: u32) -> Result<usize> {
    let infos = fdinfos(process)?;
    Ok(infos.iter().filter(|info| info.contains("link_type:")).count())
}
