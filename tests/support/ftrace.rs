//! A private instance of ftrace, and the lines of its trace.
//!
//! ftrace counts what it drops. A trace is refused when that is not zero, as it could not tell what
//! memtrace made up from what ftrace lost.

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};

use crate::host::Mount;

/// Size of the trace buffer, for each CPU.
const BUFFER_KIB: u32 = 32 << 10;

/// A tracepoint to record.
#[derive(Clone, Debug)]
pub struct Tracepoint {
    /// Its system and its name, such as `vmscan/mm_vmscan_throttled`.
    pub name: &'static str,
    /// Which of its events, in ftrace's words; all of them where there is none.
    pub filter: Option<String>,
}

impl From<&'static str> for Tracepoint {
    fn from(name: &'static str) -> Self {
        Self { name, filter: None }
    }
}

/// The running instance, removed when dropped.
#[derive(Debug)]
pub struct Ftrace {
    instance: PathBuf,
    /// Holds the file system of `instance`.
    _tracefs: Mount,
}

impl Ftrace {
    /// Starts recording. Kernels without one of the tracepoints do without.
    pub fn start(tracepoints: impl IntoIterator<Item = Tracepoint>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tracefs = Mount::new("tracefs")?;
        let instance =
            tracefs.path().join(format!("instances/memtrace-test-{}-{number}", process::id()));
        fs::create_dir(&instance).context("cannot create an instance of ftrace")?;
        let ftrace = Self { instance, _tracefs: tracefs };
        ftrace.write("tracing_on", "0")?;
        ftrace.write("trace_clock", "mono")?;
        ftrace.write("buffer_size_kb", &BUFFER_KIB.to_string())?;
        for Tracepoint { name, filter } in tracepoints {
            if !ftrace.instance.join("events").join(name).exists() {
                continue;
            }
            if let Some(filter) = filter {
                ftrace.write(&format!("events/{name}/filter"), &filter)?;
            }
            ftrace.write(&format!("events/{name}/enable"), "1")?;
        }
        ftrace.write("tracing_on", "1")?;
        Ok(ftrace)
    }

    /// Stops recording and gives what was recorded, one line an event. Fails where ftrace lost any.
    pub fn stop(self) -> Result<String> {
        self.write("tracing_on", "0")?;
        self.ensure_complete()?;
        let path = self.instance.join("trace");
        // The names of threads may be any bytes.
        let text = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, value)
            .with_context(|| format!("cannot write `{value}` to `{}`", path.display()))
    }

    fn ensure_complete(&self) -> Result<()> {
        for cpu in fs::read_dir(self.instance.join("per_cpu")).context("no per_cpu in tracefs")? {
            let path = cpu?.path().join("stats");
            let stats = match fs::read_to_string(&path) {
                Ok(stats) => stats,
                // CPUs that are possible but not there.
                Err(err) if err.kind() == ErrorKind::NotFound => continue,
                Err(err) => {
                    return Err(err).with_context(|| format!("cannot read `{}`", path.display()));
                }
            };
            for name in ["overrun", "commit overrun", "dropped events"] {
                let value =
                    stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                let value =
                    value.with_context(|| format!("no `{name}` in `{}`", path.display()))?;
                ensure!(
                    value == "0",
                    "inconclusive: ftrace itself lost events (`{name}: {value}` in `{}`), so it cannot judge",
                    path.display()
                );
            }
        }
        Ok(())
    }
}

impl Drop for Ftrace {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir(&self.instance) {
            eprintln!("cannot remove `{}`: {err}", self.instance.display());
        }
    }
}

/// The events of a trace, in their order.
///
/// Fails at a line that is none.
pub fn events(trace: &str) -> impl Iterator<Item = Result<Event<'_>>> {
    trace.lines().filter(|line| !line.starts_with('#')).map(|line| {
        Event::parse(line).with_context(|| format!("unknown form of ftrace's line `{line}`"))
    })
}

/// The parts of a line of the trace.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The thread's name, where ftrace knew it.
    pub comm: Option<&'a str>,
    /// The thread.
    pub tid: u32,
    /// Where it ran.
    pub cpu: u32,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`, rounded to microseconds.
    pub at_ns: u64,
    /// The tracepoint.
    pub name: &'a str,
    /// What it tells.
    pub fields: &'a str,
}

impl<'a> Event<'a> {
    /// Takes apart a line such as
    /// `  dd-42      [001] .....  12.345678: mm_vmscan_memcg_reclaim_end: nr_reclaimed=32`.
    ///
    /// A thread's name may have spaces and colons in it, but is too short to be such a head itself.
    fn parse(line: &'a str) -> Option<Self> {
        line.match_indices(": ").find_map(|(at, colon)| {
            let (name, fields) = line[at + colon.len()..].split_once(": ")?;
            Self::with_head(&line[..at], name, fields)
        })
    }

    /// Reads the head from its end.
    fn with_head(head: &'a str, name: &'a str, fields: &'a str) -> Option<Self> {
        let (head, time) = head.rsplit_once(' ')?;
        let (head, _flags) = head.trim_end().rsplit_once(' ')?;
        let (thread, cpu) = head.trim_end().rsplit_once(' ')?;
        let (comm, tid) = thread.trim().rsplit_once('-')?;
        let (secs, micros) = time.split_once('.')?;
        if micros.len() != 6 {
            return None;
        }
        let micros = secs.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
        Some(Self {
            comm: Some(comm).filter(|&comm| comm != "<...>"),
            tid: tid.parse().ok()?,
            cpu: cpu.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?,
            at_ns: micros * 1000,
            name,
            fields,
        })
    }

    /// The value of a field, written `name=value`.
    pub fn field(&self, name: &str) -> Result<&'a str> {
        let mut fields = self.fields.split(' ').filter_map(|field| field.split_once('='));
        let found = fields.find(|(candidate, _)| *candidate == name);
        found
            .map(|(_, value)| value.trim_end_matches(','))
            .with_context(|| format!("no field `{name}` in `{}: {}`", self.name, self.fields))
    }

    /// The same, a number.
    pub fn number<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
        &self,
        name: &str,
    ) -> Result<T> {
        self.field(name)?.parse().with_context(|| format!("`{name}` is not a number"))
    }

    /// The same, an address.
    pub fn address(&self, name: &str) -> Result<u64> {
        let digits = self.field(name)?.trim_start_matches("0x");
        u64::from_str_radix(digits, 16)
            .with_context(|| format!("`{name}` is not a hexadecimal number"))
    }
}
