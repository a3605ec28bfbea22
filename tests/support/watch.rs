//! A load at work under memtrace and the oracle, and what each of them says afterwards.

use anyhow::{Result, ensure};

use crate::{
    compare::{Matched, match_up},
    oracle::{Mechanism, Oracle, Stall, Trace},
    rows::{Output, Row},
    run::{Finished, Memtrace},
    vmstat::Vmstat,
};

/// What was seen of a load.
#[derive(Debug)]
pub struct Watched {
    /// Whether it was about compaction, and not reclaim.
    is_compaction: bool,
    /// How memtrace ended: well.
    pub memtrace: Finished,
    /// The process that it was.
    pub memtrace_pid: u32,
    /// What it printed.
    pub output: Output,
    /// What the oracle saw, of whatever thread of the host.
    pub trace: Trace,
    /// How far the kernel's counters moved, from just before memtrace came until just after it went.
    pub vmstat: Vmstat,
}

/// Traces what `load` does by memtrace, which is told its `subject` and `args`, and by the oracle,
/// which starts before memtrace and stops after it.
///
/// Fails where memtrace shows more or fewer stalls than its summary says.
///
/// # Panics
/// When memtrace fails, or does not end.
#[track_caller]
pub fn watch(
    subject: &str,
    args: &[&str],
    load: impl FnOnce(&Memtrace) -> Result<()>,
) -> Result<Watched> {
    let oracle = Oracle::start()?;
    let before = Vmstat::read()?;
    let memtrace = Memtrace::start(&[&[subject, "--json"], args].concat());
    let memtrace_pid = memtrace.id();
    load(&memtrace)?;
    let memtrace = memtrace.stop();
    let vmstat = Vmstat::moved_since(&before)?;
    let trace = oracle.stop()?;
    memtrace.assert_success();
    let output = Output::parse(&memtrace.stdout)?;
    let (stalls, rows) = (output.summary.stalls, output.rows.len());
    ensure!(stalls == rows as u64, "{rows} rows, and {stalls} stalls in the summary");
    let is_compaction = subject == "compactsnoop";
    Ok(Watched { is_compaction, memtrace, memtrace_pid, output, trace, vmstat })
}

impl Watched {
    /// Matches the rows with all stalls that the oracle saw of memtrace's subject.
    ///
    /// # Panics
    /// As [`match_up`].
    #[must_use]
    #[track_caller]
    pub fn matched(&self) -> Matched<'_> {
        self.matched_of(|_| true)
    }

    /// Matches the rows with those of these stalls that memtrace was asked for.
    ///
    /// # Panics
    /// As [`match_up`].
    #[must_use]
    #[track_caller]
    pub fn matched_of(&self, is_asked_for: impl Fn(&Stall) -> bool) -> Matched<'_> {
        let is_of_subject =
            |stall: &Stall| (stall.mechanism == Mechanism::Compaction) == self.is_compaction;
        let stalls = self.trace.stalls.iter();
        let stalls = stalls.filter(|&stall| is_of_subject(stall) && is_asked_for(stall));
        match_up(stalls, &self.output.rows).within(&self.memtrace)
    }

    /// Checks that memtrace lost nothing and saw what the oracle saw, in all fields but the times.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn assert_same_fields(&self) {
        self.output.summary.assert_nothing_lost();
        let matched = self.matched();
        matched.assert_none_missing();
        matched.assert_none_extra();
        matched.assert_fields_agree();
        println!("{} stalls agree", matched.pairs.len());
    }

    /// The rows of a kind or cause.
    pub fn rows<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Row> {
        self.output.rows.iter().filter(move |row| row.kind == kind)
    }

    /// Sum of a field of the rows of a kind or cause, those left out that do not have it.
    #[must_use]
    pub fn sum(&self, kind: &str, key: &str) -> u64 {
        self.rows(kind).filter_map(|row| row.value[key].as_u64()).sum()
    }

    /// How far a counter of /proc/vmstat moved; 0 where the kernel has no such counter.
    #[must_use]
    pub fn moved(&self, name: &str) -> u64 {
        self.vmstat.get(name).unwrap_or(0)
    }

    /// Checks that there are so many rows of a kind or cause of one process.
    ///
    /// # Panics
    /// When there are fewer.
    #[track_caller]
    pub fn assert_at_least(&self, least: usize, kind: &str, pid: u32) {
        let count = self.rows(kind).filter(|row| row.pid == pid).count();
        println!("{kind}: {count} stalls of the load");
        assert!(count >= least, "only {count} stalls of kind {kind}, not {least}");
    }
}
