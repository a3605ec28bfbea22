//! What all measures share: the programs, the cores, how often and how long.

use std::{
    env, fs,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::sys::{Stats, enable_stats};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tests::{
    cgroup::Cgroup,
    host::TempDir,
    load::{LIMIT, Load},
};

use crate::{
    host::Cores,
    programs::field,
    tracer::{Tracer, cpu_time},
};

/// Rounds of a quick run, and of any other.
const QUICK_ROUNDS: u16 = 3;
const ROUNDS: u16 = 5;

/// Until a new load's files are there and its cgroup is full.
pub const WARM_UP: Duration = Duration::from_secs(2);

/// Beginning of the names of the bench's cgroups.
const CGROUP: &str = "memtrace-bench";

/// One way to run memtrace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Its name in the report.
    pub name: &'static str,
    /// memtrace's arguments, but for the file of a recording.
    pub args: &'static [&'static str],
}

/// Rows with all default fields.
pub const ROWS: Mode = Mode { name: "rows", args: &["drsnoop"] };
/// More columns.
pub const EXTENDED: Mode = Mode { name: "-e", args: &["drsnoop", "-e"] };
/// Kernel stacks.
pub const STACKS: Mode = Mode { name: "-K", args: &["drsnoop", "-K"] };
/// JSON.
pub const JSON: Mode = Mode { name: "--json", args: &["drsnoop", "--json"] };
/// Histograms by thread.
pub const HISTOGRAM: Mode = Mode { name: "--histogram", args: &["drsnoop", "--histogram"] };

/// All mechanisms, and what the time was spent for. A flood of one thread would be one episode.
pub const STALLS: Mode = Mode { name: "stalls", args: &["stalls", "--rounds"] };
/// All mechanisms.
pub const STALLS_ONLY: Mode =
    Mode { name: "stalls --no-parts", args: &["stalls", "--rounds", "--no-parts"] };

/// A recording of the same.
pub const RECORD: Mode = Mode { name: "record", args: &["record"] };
/// The same without the parts of the time.
pub const RECORD_ONLY: Mode = Mode { name: "record --no-parts", args: &["record", "--no-parts"] };

/// What the bench runs with.
#[derive(Debug)]
pub struct Setting {
    /// memtrace.
    pub memtrace: PathBuf,
    /// The load.
    pub memload: PathBuf,
    /// Fewer and shorter rounds.
    pub quick: bool,
    /// How often everything is measured.
    pub rounds: usize,
    /// Who runs where.
    pub cores: Cores,
    /// For what memtrace prints: on a disk.
    pub dir: TempDir,
    stop: Arc<AtomicBool>,
}

impl Setting {
    /// Makes it.
    pub fn new(
        memtrace: PathBuf,
        memload: PathBuf,
        quick: bool,
        rounds: Option<u16>,
    ) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the bench loads eBPF programs: run it as root"
        );
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))
                .context("cannot handle signals")?;
        }
        let rounds = rounds.unwrap_or(if quick { QUICK_ROUNDS } else { ROUNDS }).into();
        let (cores, dir) = (Cores::new()?, TempDir::new()?);
        Ok(Self { memtrace, memload, quick, rounds, cores, dir, stop })
    }

    /// Fails when the bench shall end early.
    pub fn ensure_going_on(&self) -> Result<()> {
        ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// A number of stalls, a tenth of it where it has to be quick.
    pub fn count(&self, count: u64) -> u64 {
        if self.quick { count / 10 } else { count }
    }

    /// A time, a part of it where it has to be quick.
    pub fn time(&self, time: Duration) -> Duration {
        if self.quick { time / 4 } else { time }
    }

    /// Where memtrace's output goes.
    pub fn output(&self) -> PathBuf {
        self.dir.path().join("output")
    }

    /// Where its recording goes.
    pub fn recording(&self) -> PathBuf {
        self.dir.path().join("recording")
    }

    /// memtrace in this mode, its output in a file, on the core of the reader.
    pub fn start(&self, mode: Mode) -> Result<Tracer> {
        self.ensure_going_on()?;
        let recording = self.recording();
        let mut args = mode.args.to_vec();
        if [RECORD, RECORD_ONLY].contains(&mode) {
            args.extend(["-o", recording.to_str().context("an odd name of a directory")?]);
        }
        Tracer::start(&self.memtrace, &args, &self.output(), &[self.cores.reader])
            .with_context(|| format!("cannot measure {}", mode.name))
    }

    /// A load that makes real stalls, in a cgroup of its own.
    pub fn churn(&self) -> Result<Churn> {
        self.load(LoadKind::Files)
    }

    /// A load of either kind.
    pub fn load(&self, kind: LoadKind) -> Result<Churn> {
        let cgroup = Cgroup::limited(CGROUP, LIMIT)?;
        let (limit, size, threads) = (LIMIT.to_string(), SIZE.to_string(), THREADS.to_string());
        let mut load = match kind {
            LoadKind::Files => {
                // Ended long before; should the bench be killed, it ends with it.
                let args = [
                    "churn",
                    "--limit",
                    &limit,
                    "--size",
                    &size,
                    "--threads",
                    &threads,
                    "--duration",
                    "1h",
                ];
                Load::of(&self.memload, &args)?
            }
            LoadKind::Holes => {
                let this = env::current_exe().context("cannot tell where the bench lies")?;
                let dir = self.dir.path().to_str().context("an odd name of a directory")?;
                Load::of(&this, &["holes", "--size", &size, "--threads", &threads, "--dir", dir])?
            }
        };
        cgroup.add(load.id())?;
        load.go()?;
        Ok(Churn { load, _cgroup: cgroup })
    }
}

/// Bytes of all files of a load,
const SIZE: u64 = 4 * LIMIT;
/// and its threads.
const THREADS: usize = 2;

/// What is churned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadKind {
    /// Files on a disk, read and written.
    Files,
    /// Files without contents, only read: there is no disk to wait for, all time goes into memory management.
    Holes,
}

impl LoadKind {
    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Holes => "holes",
        }
    }
}

/// Real stalls, until dropped.
#[derive(Debug)]
pub struct Churn {
    // Before its cgroup.
    load: Load,
    _cgroup: Cgroup,
}

impl Churn {
    /// How often it has gone through all of its files.
    pub fn passes(&self) -> Result<f64> {
        let path = format!("/proc/{}/io", self.load.id());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
        let bytes =
            |key| field::<u64>(&text, key).with_context(|| format!("no `{key}` in `{path}`"));
        Ok((bytes("rchar:")? + bytes("wchar:")?) as f64 / SIZE as f64)
    }

    /// The CPU time that its threads have taken so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.load.id())
    }
}

/// A time in milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Has the kernel measure every run of every eBPF program, for as long as the result lives. That costs time as well.
pub fn measure_runs() -> Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("cannot have the kernel measure eBPF programs: root may")
}
