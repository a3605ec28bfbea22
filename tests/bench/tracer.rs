//! memtrace as the bench measures it: a child process on a core of its own, whose programs and costs can be looked at.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::loaded_programs;
use nix::time::{ClockId, clock_getcpuclockid};
use rustix::process::{Pid, Signal};

use crate::{
    flood::Opened,
    host::pin,
    programs::{Runs, field},
};

/// The beginnings of the line that says that the probes are attached.
const ATTACHED: [&str; 2] = ["Tracing ", "Recording "];

/// Names of the programs of a stall at a cgroup's limit.
const BEGIN: &str = "memcg_begin";
const END: &str = "memcg_end";

/// Beginning of the names of programs of classic tracepoints.
const CLASSIC: &str = "tp_";

/// Nothing that memtrace does takes longer.
const LONGEST: Duration = Duration::from_mins(1);

/// How often a process is looked at while it comes to rest.
const PERIOD: Duration = Duration::from_millis(50);

/// memtrace, attached. It is killed when dropped, should the bench fail.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    stderr: BufReader<ChildStderr>,
    programs: Vec<(u32, String)>,
    /// From the start of the process to the line that says that all is attached.
    pub took: Duration,
}

/// What memtrace said of its stalls when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Shown, or in histograms.
    pub stalls: u64,
    /// Not shown: the buffer was full, or a table.
    pub lost: u64,
}

impl Tracer {
    /// Starts it on these cores, with standard output into `file`, and waits until it traces.
    pub fn start(memtrace: &Path, args: &[&str], file: &Path, cores: &[usize]) -> Result<Self> {
        let file =
            File::create(file).with_context(|| format!("cannot make `{}`", file.display()))?;
        Self::spawn(memtrace, args, file.into(), cores)
    }

    /// As [`Tracer::start`], with standard output into a pipe.
    pub fn start_piped(
        memtrace: &Path,
        args: &[&str],
        cores: &[usize],
    ) -> Result<(Self, ChildStdout)> {
        let mut tracer = Self::spawn(memtrace, args, Stdio::piped(), cores)?;
        let stdout = tracer.child.stdout.take().context("no standard output")?;
        Ok((tracer, stdout))
    }

    fn spawn(memtrace: &Path, args: &[&str], stdout: Stdio, cores: &[usize]) -> Result<Self> {
        let mut command = Command::new(memtrace);
        command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child =
            command.spawn().with_context(|| format!("cannot start `{}`", memtrace.display()))?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut tracer = Self {
            child,
            stderr: BufReader::new(stderr),
            programs: Vec::new(),
            took: Duration::ZERO,
        };
        // Its threads inherit it.
        pin(Some(tracer.pid()?), cores)?;
        let mut said = String::new();
        loop {
            let from = said.len();
            if tracer.stderr.read_line(&mut said).context("cannot read from memtrace")? == 0 {
                bail!("memtrace ended before it was attached: {}", said.trim());
            }
            if ATTACHED.iter().any(|start| said[from..].starts_with(start)) {
                break;
            }
        }
        tracer.took = start.elapsed();
        tracer.programs = programs_of(tracer.id())?;
        Ok(tracer)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Result<Pid> {
        i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("no process id")
    }

    /// The two programs of a stall at a cgroup's limit.
    pub fn pair(&self) -> Result<Opened> {
        let id = |name| {
            let found = self.programs.iter().find(|(_, known)| known == name);
            found.map(|(id, _)| *id).with_context(|| {
                format!("memtrace has not loaded `{name}`: on this kernel it has other programs, which nobody but a tracepoint can run")
            })
        };
        Opened::by_id(id(BEGIN)?, id(END)?)
    }

    /// What the kernel counted of all of its programs.
    pub fn runs(&self) -> Result<Runs> {
        Runs::of(&self.programs.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    }

    /// What the kernel counted of its program of this name, in either of its two kinds.
    pub fn runs_of(&self, name: &str) -> Result<Runs> {
        let is_named = |known: &str| known.strip_prefix(CLASSIC).unwrap_or(known) == name;
        let named = self.programs.iter().filter(|(_, known)| is_named(known));
        Runs::of(&named.map(|(id, _)| *id).collect::<Vec<_>>())
    }

    /// How often that has run.
    pub fn count(&self, name: &str) -> Result<u64> {
        Ok(self.runs_of(name)?.count)
    }

    /// How many stalls at a cgroup's limit have ended.
    pub fn ends(&self) -> Result<u64> {
        self.count(END)
    }

    /// The CPU time that it has taken so far, in user space and in the kernel.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.id())
    }

    /// Waits until it takes next to no CPU time any more, at least for `least`: it has worked off what was there to
    /// read, and what it does once a second. Gives the CPU time until then.
    pub fn come_to_rest(&self, least: Duration) -> Result<Duration> {
        let start = Instant::now();
        let mut before = self.cpu_time()?;
        loop {
            thread::sleep(PERIOD);
            let now = self.cpu_time()?;
            // It looks at its buffer several times a second, which takes some 20 us each.
            let at_rest = now.saturating_sub(before) < PERIOD / 50;
            if at_rest && start.elapsed() >= least {
                return Ok(now);
            }
            ensure!(
                start.elapsed() < LONGEST,
                "memtrace is not done with its stalls after {LONGEST:?}"
            );
            before = now;
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.pid()?, signal).context("memtrace is gone")
    }

    /// Has it stand still, until it is sent `SIGCONT`.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let path = format!("/proc/{}/status", self.id());
        let start = Instant::now();
        loop {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
            if text.lines().any(|line| line.starts_with("State:\tT")) {
                return Ok(());
            }
            ensure!(start.elapsed() < LONGEST, "memtrace does not stand still");
            thread::sleep(PERIOD);
        }
    }

    /// A field of its /proc/PID/status, which is in KiB, in bytes.
    pub fn memory(&self, key: &str) -> Result<u64> {
        memory_of(self.id(), key)
    }

    /// Bytes of the kernel's that its eBPF maps take.
    pub fn maps(&self) -> Result<u64> {
        let infos = fdinfos(self.id())?;
        let mut maps: Vec<(u32, u64)> = infos
            .iter()
            .filter_map(|info| Some((field(info, "map_id:")?, field(info, "memlock:")?)))
            .collect();
        maps.sort_unstable();
        maps.dedup();
        Ok(maps.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Stops it as Ctrl-C does. Gives what it says at the end.
    pub fn stop(mut self) -> Result<Told> {
        self.signal(Signal::INT)?;
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).context("cannot read from memtrace")?;
        let status = self.child.wait().context("cannot wait for memtrace")?;
        ensure!(status.success(), "memtrace ended with {status}: {}", said.trim());
        said.lines().rev().find_map(Told::parse).with_context(|| {
            format!("memtrace ended without a summary, but said `{}`", said.trim())
        })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: std::io::Result<()> = self.child.kill();
        let _waited: std::io::Result<_> = self.child.wait();
    }
}

impl Told {
    /// Reads the summary for people. Whatever is not counted as a stall there but would be one is lost.
    fn parse(line: &str) -> Option<Self> {
        let (stalls, rest) = line.strip_prefix("memtrace: ")?.split_once(" stall")?;
        let after = |text| -> Option<u64> {
            let (_, rest) = rest.split_once(text)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let lost = after("lost ")? + after("table full ")? + after("probes skipped ").unwrap_or(0);
        Some(Self { stalls: stalls.parse().ok()?, lost })
    }
}

/// The CPU time that a process has taken so far.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process).context("no process id")?);
    let clock: ClockId = clock_getcpuclockid(pid).context("the process is gone")?;
    Ok(clock.now().context("cannot read the CPU time of a process")?.into())
}

/// A field of a process's /proc/PID/status, which is in KiB, in bytes.
pub fn memory_of(process: u32, key: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(size.with_context(|| format!("no `{key}` in `{path}`"))? << 10)
}

/// Ids and names of the eBPF programs that a process holds, in its file descriptors or through links.
pub fn programs_of(process: u32) -> Result<Vec<(u32, String)>> {
    let infos = fdinfos(process)?;
    let held: Vec<u32> = infos.iter().filter_map(|info| field(info, "prog_id:")).collect();
    let programs = loaded_programs().filter_map(|program| {
        let program = program.ok()?;
        let name = String::from_utf8_lossy(program.name()).into_owned();
        held.contains(&program.id()).then(|| (program.id(), name))
    });
    Ok(programs.collect())
}

/// What /proc says of each file descriptor of a process.
pub fn fdinfos(process: u32) -> Result<Vec<String>> {
    let path = format!("/proc/{process}/fdinfo");
    let dir = fs::read_dir(&path).with_context(|| format!("cannot read `{path}`"))?;
    // One can be closed by the time that it is looked at.
    Ok(dir.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary() {
        let line = "memtrace: 5129 stalls in 3.0 s; lost 3 (ring buffer full), missed begin 7 (began before tracing), \
                    table full 2 (too many at once), unfinished 1 (still stalled at the end)";
        assert_eq!(Told::parse(line), Some(Told { stalls: 5129, lost: 5 }));
        let one = "memtrace: 1 stall in 0.0 s; lost 0 (ring buffer full), missed begin 0 (began before tracing), \
                   table full 0 (too many at once), probes skipped 4, unfinished 0 (still stalled at the end)";
        assert_eq!(Told::parse(one), Some(Told { stalls: 1, lost: 4 }));
        assert_eq!(Told::parse("memtrace: cannot read kernel BTF"), None);
    }
}
