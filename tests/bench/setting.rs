//! What all measures share: the programs, the cores, how often and how long.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};
use tests::{
    cgroup::Cgroup,
    host::TempDir,
    load::{LIMIT, Load},
};

use crate::{host::Cores, tracer::Tracer};

/// Beginning of the names of the bench's cgroups.
const CGROUP: &str = "memtrace-bench";

/// One way to run memtrace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Its name in the report.
    pub name: &'static str,
    /// memtrace's arguments.
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
}

impl Setting {
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

    /// memtrace in this mode, its output in a file, on the core of the reader.
    pub fn start(&self, mode: Mode) -> Result<Tracer> {
        Tracer::start(&self.memtrace, mode.args, &self.output(), self.cores.reader)
            .with_context(|| format!("cannot measure {}", mode.name))
    }

    /// A load that makes real stalls, in a cgroup of its own.
    pub fn churn(&self) -> Result<Churn> {
        let cgroup = Cgroup::limited(CGROUP, LIMIT)?;
        let limit = LIMIT.to_string();
        // Ended long before; should the bench be killed, it ends with it.
        let args = ["churn", "--limit", &limit, "--threads", "2", "--duration", "1h"];
        let mut load = Load::of(&self.memload, &args)?;
        cgroup.add(load.id())?;
        load.go()?;
        Ok(Churn { _load: load, _cgroup: cgroup })
    }
}

/// Real stalls, until dropped.
#[derive(Debug)]
pub struct Churn {
    // Before its cgroup.
    _load: Load,
    _cgroup: Cgroup,
}

/// Has the kernel measure every run of every eBPF program, for as long as the result lives. That costs time as well.
pub fn measure_runs() -> Result<std::os::fd::OwnedFd> {
    enable_stats(Stats::RunTime).context("cannot have the kernel measure eBPF programs: root may")
}
