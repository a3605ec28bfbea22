//! Other tracers, where they are installed.

use std::{
    env, fmt,
    io::Read,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use ::tests::wait::budget;
use anyhow::{Context as _, Error, Result, anyhow, ensure};

use crate::{report::Row, tracer::programs_of};

/// Measures the same stalls as memtrace does.
const HISTOGRAM: &str = "\
tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin { @begin[tid] = nsecs; }
tracepoint:vmscan:mm_vmscan_memcg_reclaim_end /@begin[tid]/ {
    @us = hist((nsecs - @begin[tid]) / 1000);
    delete(@begin[tid]);
}";

/// Programs that a peer has for its two tracepoints.
const PROGRAMS: usize = 2;

/// bcc's drsnoop, as Debian calls it.
const DRSNOOP: &str = "/usr/sbin/drsnoop-bpfcc";

/// Gives a program tracefs, and debugfs where it can be had, if this machine has none mounted, that nobody else sees.
const IN_PRIVATE: &str = r#"
test -d /sys/kernel/tracing/events || mount -t tracefs nodev /sys/kernel/tracing || exit
test -d /sys/kernel/debug/tracing || mount -t debugfs nodev /sys/kernel/debug 2>/dev/null
exec "$@""#;

/// What one does without, and no failure.
#[derive(Debug)]
enum Unavailable {
    NotInstalled(&'static str),
    /// What it says of why.
    DoesNotStart(&'static str, String),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled(program) => {
                write!(f, "{program} is not installed: `cargo xtask bench --peers` installs it")
            }
            Self::DoesNotStart(program, why) => write!(f, "{program} does not start here: {why}"),
        }
    }
}

impl std::error::Error for Unavailable {}

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
            Some(err) if err.is::<Unavailable>() => row.noting(format!("{err:#}")),
            Some(err) => row.failing(format!("{err:#}")),
        }
    }
}

/// A running tracer. It is killed when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    programs: Vec<u32>,
}

impl Peer {
    /// Starts bpftrace with a script that makes a histogram of stalls at cgroups' limits, and waits until that is attached.
    pub fn bpftrace() -> Result<Self> {
        let mut command = bpftrace(&["-e", HISTOGRAM])?;
        // Nobody reads it.
        command.stdout(Stdio::null());
        Self::start(command)?.map_err(|why| anyhow!("bpftrace does not start: {why}"))
    }

    /// Starts bcc's drsnoop, and waits until it is attached. It needs headers of the running kernel and a
    /// symbol that many kernels hide.
    pub fn bcc() -> Result<Self> {
        let mut command = in_private(DRSNOOP, &[])?;
        // Where it says why it does not start.
        command.stdout(Stdio::piped());
        Self::start(command)?.map_err(|why| Unavailable::DoesNotStart(DRSNOOP, why).into())
    }

    /// Starts it, or gives what it says of why it ends at once.
    fn start(mut command: Command) -> Result<Result<Self, String>> {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().context("cannot start a peer")?;
        let mut peer = Self { child, programs: Vec::new() };
        let mut waited = Duration::ZERO;
        while peer.programs.len() < PROGRAMS {
            if let Some(status) = peer.child.try_wait().context("cannot wait for a peer")? {
                let (stdout, stderr) =
                    (said(peer.child.stdout.take()), said(peer.child.stderr.take()));
                return Ok(Err(format!("it ended with {status}, and said `{stdout}{stderr}`")));
            }
            ensure!(waited <= budget(), "the peer is not attached after {waited:?}");
            let period = Duration::from_millis(20);
            thread::sleep(period);
            waited += period;
            peer.programs = programs_of(peer.child.id())?.into_iter().map(|(id, _)| id).collect();
        }
        Ok(Ok(peer))
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

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: std::io::Result<()> = self.child.kill();
        let _waited: std::io::Result<_> = self.child.wait();
    }
}

/// What starts bpftrace.
pub fn bpftrace(args: &[&str]) -> Result<Command> {
    in_private("bpftrace", args)
}

/// What starts a program in a mount namespace of its own.
fn in_private(program: &'static str, args: &[&str]) -> Result<Command> {
    if !is_there(program) {
        return Err(Unavailable::NotInstalled(program).into());
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", IN_PRIVATE, "sh", program]).args(args);
    Ok(command)
}

/// All that a program that has ended said of why.
pub fn said(output: Option<impl Read>) -> String {
    let mut text = String::new();
    // What cannot be read is not said.
    let _read: Option<std::io::Result<usize>> =
        output.map(|mut output| output.read_to_string(&mut text));
    text.trim().replace('\n', "; ")
}

/// Whether a program is on the path, or where it should be.
fn is_there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

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
        rounds.measure(|| Err(Error::from(Unavailable::NotInstalled("peer")).context("no peer")));
        let row = rounds.row("peer", "ns");
        assert!(!row.failed && row.values.is_empty());
        assert!(row.note.contains("peer is not installed: "), "{}", row.note);
    }

    #[test]
    fn what_a_peer_says_when_it_does_not_start() -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no headers >&2; exit 3"]);
        let why = Peer::start(command)?.expect_err("it has no programs");
        assert_eq!(why, "it ended with exit status: 3, and said `no headers`");
        Ok(())
    }
}
