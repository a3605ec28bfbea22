//! How soon memtrace is there, and how soon it shows a stall.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    peers::{self, Rounds, said},
    report::{Budget, Row},
    setting::{ROWS, Setting, millis},
    tracer::Tracer,
};

const UNIT: &str = "ms";

/// Attached, at most.
const ATTACHED: f64 = 80.0;

/// A row after its stall, at most.
const SHOWN: f64 = 120.0;

/// Starts in each round.
const STARTS: usize = 4;

/// memtrace looks at its buffer several times a second; stalls come at any time in between.
const PHASE: Duration = Duration::from_millis(37);

/// What every row of a stall at a cgroup's limit has in it, and no header.
const KIND: &str = " memcg ";

/// Prints a line for each stall.
const LINES: &str =
    r#"tracepoint:vmscan:mm_vmscan_memcg_reclaim_end { printf("%s memcg \n", comm); }"#;

/// Measures it.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let (mut attached, mut shown) = (Vec::new(), Vec::new());
    for number in 0..setting.rounds * STARTS {
        let (tracer, stdout) = start(setting)?;
        attached.push(millis(tracer.took));
        let opened = tracer.pair()?;
        thread::sleep(PHASE * u32::try_from(number % 10).unwrap_or_default());
        let stalled = setting.cores.flooding(|| {
            opened.pair().stall()?;
            Ok(Instant::now())
        })?;
        first_row(stdout)?;
        shown.push(millis(stalled.elapsed()));
    }
    let _load = setting.churn()?;
    let mut first = Vec::new();
    let mut peer = Rounds::default();
    for _ in 0..setting.rounds {
        let started = Instant::now();
        let (tracer, stdout) = start(setting)?;
        first_row(stdout)?;
        first.push(millis(started.elapsed()));
        drop(tracer);
        peer.measure(|| bpftrace().map(millis));
    }
    let name = "start until the first row, in churn";
    Ok(vec![
        Row::new("start until attached", UNIT, attached).within(Budget::Most(ATTACHED)),
        Row::new("end of a stall until its row", UNIT, shown).within(Budget::Most(SHOWN)),
        peer.row(format!("{name}: bpftrace"), UNIT),
        Row::new(format!("{name}: memtrace"), UNIT, first).against("bpftrace", peer.values()),
    ])
}

fn start(setting: &Setting) -> Result<(Tracer, std::process::ChildStdout)> {
    setting.ensure_going_on()?;
    Tracer::start_piped(&setting.memtrace, ROWS.args, &[setting.cores.reader])
}

/// Waits for a row of a stall. From then on nobody reads any more.
fn first_row(stdout: impl Read) -> Result<()> {
    let mut stdout = BufReader::new(stdout);
    let mut line = Vec::new();
    while !String::from_utf8_lossy(&line).contains(KIND) {
        line.clear();
        let len = stdout.read_until(b'\n', &mut line).context("cannot read rows")?;
        ensure!(len > 0, "there was a stall, and no row");
    }
    Ok(())
}

/// As long as bpftrace takes for the same.
fn bpftrace() -> Result<Duration> {
    let mut command = peers::bpftrace(&["-B", "line", "-e", LINES])?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().context("cannot start bpftrace")?;
    let shown = child.stdout.take().context("no standard output").and_then(first_row);
    let took = start.elapsed();
    // Both fail where it has ended, which is what is wanted.
    let _killed: std::io::Result<()> = child.kill();
    let _waited: std::io::Result<_> = child.wait();
    shown.map(|()| took).with_context(|| format!("bpftrace says: {}", said(child.stderr.take())))
}
