//! How long `memtrace report` takes, and its memory, by the number of stalls in a recording that is made up.

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use memtrace::{
    cgroup::Cgroups,
    clock::WallClock,
    live::Event,
    names::{EnumNames, GfpNames, Names},
    recording::{Meta, Recorder, Store},
    scope::{Parts, Scope},
    stall::{Comm, Detail, Reclaim, ReclaimKind, Stall},
    symbols::{Frame, Symbols},
};
use memtrace_common::record::part;

use crate::{
    report::{Budget, Row},
    setting::{Setting, mib},
    tracer::memory_of,
};

/// Stalls in the recordings.
const COUNTS: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];

/// What is made of them, with the seconds that the largest may take.
const OUTPUTS: [(&str, &[&str], f64); 2] =
    [("text", &[], 2.0), ("--html", &["--html", "/dev/shm/memtrace-bench.html"], 4.0)];

/// Resident, at most, in MiB.
const RESIDENT: f64 = 300.0;
/// Threads that stall.
const THREADS: u64 = 2000;
/// How often to look at its memory.
const PERIOD: Duration = Duration::from_millis(5);

/// Measures it.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let counts = if setting.quick { &COUNTS[..3] } else { &COUNTS[..] };
    let mut before: [Option<f64>; OUTPUTS.len()] = [None; OUTPUTS.len()];
    for &count in counts {
        setting.ensure_going_on()?;
        let path = setting.dir.path().join("report.mtr");
        record(&path, count)?;
        let bytes = fs::metadata(&path)?.len() as f64 / count as f64;
        for ((name, args, most), before) in OUTPUTS.into_iter().zip(&mut before) {
            let (mut took, mut peaks) = (Vec::new(), Vec::new());
            for _ in 0..setting.rounds {
                let (seconds, peak) = report(&setting.memtrace, &path, args)?;
                took.push(seconds);
                peaks.push(peak);
            }
            let what = format!("report of {count} stalls, {name}");
            let is_largest = count == COUNTS[COUNTS.len() - 1];
            let mut row = Row::new(what.clone(), "s", took)
                .noting(format!("with parts, {bytes:.1} bytes a stall"));
            if let Some(before) = *before {
                row = row.against("a tenth of the stalls", &[before]);
            }
            *before = row.spread().map(|spread| spread.median);
            if is_largest {
                row = row.within(Budget::Most(most));
            }
            rows.push(row);
            if is_largest {
                let name = format!("{what}: peak resident memory");
                rows.push(Row::new(name, "MiB", peaks).within(Budget::Most(RESIDENT)));
            }
        }
        fs::remove_file(&path)?;
    }
    let _removed: std::io::Result<()> = fs::remove_file("/dev/shm/memtrace-bench.html");
    Ok(rows)
}

/// The seconds that a report takes, and the most memory that it had, in MiB.
fn report(memtrace: &Path, path: &Path, args: &[&str]) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut child = Command::new(memtrace)
        .arg("report")
        .args(args)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start memtrace")?;
    let mut peak = 0;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for memtrace")? {
            break status;
        }
        peak = memory_of(child.id(), "VmHWM").unwrap_or(peak);
        thread::sleep(PERIOD);
    };
    ensure!(status.success(), "memtrace report ended with {status}");
    Ok((start.elapsed().as_secs_f64(), mib(peak)))
}

/// Makes a recording of so many stalls, of threads that take turns in no order, with parts and kernel stacks, at
/// 10,000 a second.
fn record(path: &Path, count: u64) -> Result<()> {
    let mut names = names();
    let meta = Meta { scopes: true, stacks: true, page_size: 4096, ..Meta::default() };
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let mut store = Store::begin(options.open(path)?, &meta, u64::MAX)?;
    let mut recorder = Recorder::new(&names, true, 0, 0);
    // A linear congruential generator: the same each time.
    let mut state: u64 = 1;
    let mut random = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for number in 0..count {
        let now_ns = number * 100_000;
        let tid = 1000 + u32::try_from(random(THREADS))?;
        // Mostly tens of microseconds, sometimes much longer.
        let duration_ns = (20_000 + random(40_000)) << (random(64) / 16 * random(3));
        let stall = stall(tid, now_ns, duration_ns, [random(4), random(8)]);
        let mut parts = Parts::default();
        parts.ns[part::SCAN] = duration_ns / 2;
        parts.ns[part::WAITING] = duration_ns - duration_ns / 2;
        let Stall { start_ns, pid, uid, cpu, comm, cgroup_id, .. } = stall;
        recorder.event(&Event::Stall(stall), &mut names);
        let callers = Vec::new();
        let scope =
            Scope { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, parts, callers };
        recorder.event(&Event::Scope(scope), &mut names);
        if recorder.is_full()
            && let Some(block) = recorder.finish(now_ns)
        {
            store.append(block)?;
        }
    }
    if let Some(block) = recorder.finish(count * 100_000) {
        store.append(block)?;
    }
    Ok(())
}

fn stall(tid: u32, start_ns: u64, duration_ns: u64, [order, stack]: [u64; 2]) -> Stall {
    let mut comm = [0; Comm::LEN];
    comm[..6].copy_from_slice(b"worker");
    Stall {
        start_ns,
        duration_ns,
        pid: tid - tid % 10,
        tid,
        uid: 1000,
        cpu: tid % 16,
        comm: Comm::new(comm),
        order: i32::try_from(order).ok(),
        gfp: Some(0x140_cca),
        cgroup_id: Some(u64::from(tid % 50)),
        detail: Detail::Reclaim(Reclaim {
            kind: if order == 0 { ReclaimKind::Memcg } else { ReclaimKind::Direct },
            limit: None,
            nr_scanned: Some(duration_ns / 500),
            nr_reclaimed: duration_ns / 1000,
            compaction_ready: false,
            priority: Some(12),
            target_cgroup_id: Some(if order == 0 { u64::from(tid % 50) } else { 0 }),
            free_pages: Some(20_000 + duration_ns % 1000),
            node: None,
        }),
        stack: (0..12).map(|depth| depth + 100 * stack).collect(),
        user_stack: Vec::new(),
    }
}

fn names() -> Names {
    let paths = (0..50).map(|id| (id, format!("/kubepods.slice/pod-{id}.slice")));
    let frames = (0..800).map(|at| (at, Frame::of_function(&format!("function_{at}"), 16)));
    Names {
        gfp: GfpNames::default(),
        modes: EnumNames::default(),
        statuses: EnumNames::default(),
        throttles: EnumNames::default(),
        cgroups: Cgroups::from_paths(paths),
        clock: WallClock::now(),
        symbols: Symbols::from_frames(frames),
        page_size: 4096,
    }
}
