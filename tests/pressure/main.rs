//! Memory pressure of every kind, against ftrace and /proc/vmstat. Only in a guest: most of it takes
//! the whole machine.
//!
//! What the kernel's counters have to do with stalls stands in docs/vmstat.md.

mod compaction;
mod oom;
mod reclaim;

use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::mm::{MlockAllFlags, mlockall};
use tests::{
    run::Memtrace,
    watch::{self, Watched},
};

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// Traces what `load` does to the machine.
#[track_caller]
fn watch(subject: &str, load: impl FnOnce(&Memtrace) -> Result<()>) -> Result<Watched> {
    // Where every page is wanted, the test would wait for its own code for minutes.
    mlockall(MlockAllFlags::CURRENT).context("cannot lock the test's memory")?;
    watch::watch(subject, &[], load)
}
