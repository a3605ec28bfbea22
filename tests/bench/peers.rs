//! Other tracers, where they are installed.

use std::{
    env, fmt,
    io::Read as _,
    process::{Child, ChildStderr, Command, Stdio},
    thread,
    time::Duration,
};

use ::tests::wait::budget;
use anyhow::{Context as _, Error, Result, bail};

use crate::{report::Row, tracer::programs_of};

/// Measures the same stalls as memtrace does.
const HISTOGRAM: &str = "\
tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin { @begin[tid] = nsecs; }
tracepoint:vmscan:mm_vmscan_memcg_reclaim_end /@begin[tid]/ {
    @us = hist((nsecs - @begin[tid]) / 1000);
    delete(@begin[tid]);
}";

/// Programs that a script has for its two tracepoints.
const PROGRAMS: usize = 2;

/// Gives bpftrace a tracefs, where this machine has none mounted, that nobody else sees.
const IN_PRIVATE: &str = r#"
test -d /sys/kernel/tracing/events || mount -t tracefs nodev /sys/kernel/tracing || exit
exec bpftrace "$@""#;

/// What one does without, and no failure.
#[derive(Debug)]
struct NotInstalled(&'static str);

impl fmt::Display for NotInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not installed: `cargo xtask bench --peers` installs it", self.0)
    }
}

impl std::error::Error for NotInstalled {}

/// A peer's values, one for each round, until it fails. It is not asked again then.
#[derive(Debug, Default)]
pub struct Rounds {
    values: Vec<f64>,
    end: Option<Error>,
}

impl Rounds {
    /// Measures it once more.
    pub fn measure(&mut self, measure: impl FnOnce() -> Result<f64>) {
        if self.end.is_some() {
            return;
        }
        match measure() {
            Ok(value) => self.values.push(value),
            Err(err) => self.end = Some(err),
        }
    }

    /// What was measured.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Its row.
    pub fn row(&self, name: impl Into<String>, unit: &str) -> Row {
        self.explain(Row::new(name, unit, self.values.clone()))
    }

    /// Says in a row why there are no more values, if there should be.
    pub fn explain(&self, row: Row) -> Row {
        match &self.end {
            None => row,
            Some(err) if err.is::<NotInstalled>() => row.noting(format!("{err:#}")),
            Some(err) => row.failing(format!("{err:#}")),
        }
    }
}

/// A running bpftrace. It is killed when dropped.
#[derive(Debug)]
pub struct Bpftrace {
    child: Child,
    programs: Vec<u32>,
}

impl Bpftrace {
    /// Starts it, in a mount namespace of its own.
    pub fn command(args: &[&str]) -> Result<Command> {
        if !is_on_path("bpftrace") {
            return Err(NotInstalled("bpftrace").into());
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", IN_PRIVATE, "bpftrace"]).args(args);
        Ok(command)
    }

    /// Starts it with a script that makes a histogram of stalls at cgroups' limits, and waits until that is attached.
    pub fn histogram() -> Result<Self> {
        let mut command = Self::command(&["-e", HISTOGRAM])?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().context("cannot start bpftrace")?;
        let mut bpftrace = Self { child, programs: Vec::new() };
        let mut waited = Duration::ZERO;
        while bpftrace.programs.len() < PROGRAMS {
            if let Some(status) = bpftrace.child.try_wait().context("cannot wait for bpftrace")? {
                let why = said(bpftrace.child.stderr.take());
                bail!("bpftrace ended before it was attached, with {status}: {why}");
            }
            if waited > budget() {
                bail!("bpftrace is not attached after {waited:?}");
            }
            let period = Duration::from_millis(20);
            thread::sleep(period);
            waited += period;
            bpftrace.programs =
                programs_of(bpftrace.child.id())?.into_iter().map(|(id, _)| id).collect();
        }
        Ok(bpftrace)
    }

    /// The ids of its programs.
    pub fn programs(&self) -> &[u32] {
        &self.programs
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: std::io::Result<()> = self.child.kill();
        let _waited: std::io::Result<_> = self.child.wait();
    }
}

/// All that a program that has ended said of why.
pub fn said(stderr: Option<ChildStderr>) -> String {
    let mut text = String::new();
    // What cannot be read is not said.
    let _read: Option<std::io::Result<usize>> =
        stderr.map(|mut stderr| stderr.read_to_string(&mut text));
    text.trim().replace('\n', "; ")
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_breaks_has_failed_and_keeps_its_values() {
        let mut rounds = Rounds::default();
        rounds.measure(|| Ok(1.0));
        rounds.measure(|| bail!("it broke"));
        rounds.measure(|| Ok(3.0));
        let row = rounds.row("peer", "ns");
        assert!(row.failed);
        assert_eq!((row.values.as_slice(), rounds.values()), (&[1.0][..], &[1.0][..]));
        assert_eq!(row.note, "failed after 1 round: it broke");
    }

    #[test]
    fn a_peer_that_is_not_installed_has_not_failed() {
        let mut rounds = Rounds::default();
        rounds.measure(|| Err(Error::from(NotInstalled("peer")).context("cannot compare")));
        let row = rounds.row("peer", "ns");
        assert!(!row.failed && row.values.is_empty());
        assert!(row.note.contains("peer is not installed: "), "{}", row.note);
    }
}
