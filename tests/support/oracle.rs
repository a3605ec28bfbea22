//! The oracle: a private ftrace instance that records the same tracepoints as memtrace, and the
//! stalls that its trace shows.
//!
//! ftrace counts what it drops. The oracle refuses to answer when that is not zero, as it could
//! not tell a stall that memtrace made up from one that ftrace lost.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::host::{Mount, Zone, zones};

/// The tracepoints that make or measure a stall. Kernels without one of them do without.
const EVENTS: [&str; 12] = [
    "vmscan/mm_vmscan_direct_reclaim_begin",
    "vmscan/mm_vmscan_direct_reclaim_end",
    "vmscan/mm_vmscan_memcg_reclaim_begin",
    "vmscan/mm_vmscan_memcg_reclaim_end",
    "vmscan/mm_vmscan_memcg_softlimit_reclaim_begin",
    "vmscan/mm_vmscan_memcg_softlimit_reclaim_end",
    "vmscan/mm_vmscan_node_reclaim_begin",
    "vmscan/mm_vmscan_node_reclaim_end",
    ISOLATE,
    "vmscan/mm_vmscan_lru_shrink_inactive",
    "compaction/mm_compaction_begin",
    "compaction/mm_compaction_end",
];

/// The tracepoint that counts scanned pages.
const ISOLATE: &str = "vmscan/mm_vmscan_lru_isolate";

/// Size of the trace buffer, for each CPU.
const BUFFER_KIB: u32 = 32 << 10;

/// What held a thread up, by the pair of tracepoints that shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mechanism {
    /// `mm_vmscan_direct_reclaim_*`.
    Direct,
    /// `mm_vmscan_memcg_reclaim_*`.
    Memcg,
    /// `mm_vmscan_memcg_softlimit_reclaim_*`.
    Softlimit,
    /// `mm_vmscan_node_reclaim_*`.
    Node,
    /// `mm_compaction_*`.
    Compaction,
}

/// A stall as ftrace saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// The pair of tracepoints.
    pub mechanism: Mechanism,
    /// The thread.
    pub tid: u32,
    /// The thread's name, where ftrace knew it.
    pub comm: Option<String>,
    /// The CPU of the end.
    pub cpu: u32,
    /// Time of the begin, in nanoseconds of `CLOCK_MONOTONIC`, rounded to microseconds.
    pub begin_ns: u64,
    /// Time of the end, likewise.
    pub end_ns: u64,
    /// What the tracepoints say.
    pub detail: Detail,
    /// The lowest priority at which pages were taken off a list: not in [`Detail`], as the last try
    /// of a reclaim may take none.
    pub priority: Option<i64>,
}

/// What the tracepoints say about a stall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// About reclaim.
    Reclaim {
        /// Order of the allocation.
        order: i64,
        /// Its flags in the kernel's words, sorted.
        gfp: Vec<String>,
        /// Pages reclaimed.
        nr_reclaimed: u64,
        /// Pages scanned on the inactive lists.
        nr_scanned: u64,
    },
    /// About compaction.
    Compaction {
        /// The zone's NUMA node.
        node: i64,
        /// The zone.
        zone: String,
        /// Whether the mode is more than async.
        sync: bool,
        /// The result in the kernel's words.
        status: String,
    },
}

/// What the trace shows.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Stalls whose begin and end are in the trace, in the order of their ends.
    pub stalls: Vec<Stall>,
    /// Ends whose begin is not.
    pub ends_without_begin: Vec<Orphan>,
    /// Begins whose end is not.
    pub begins_without_end: Vec<Orphan>,
}

/// One half of a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The pair of tracepoints.
    pub mechanism: Mechanism,
    /// The thread.
    pub tid: u32,
    /// When, as in [`Stall`].
    pub at_ns: u64,
}

/// The running oracle. Its ftrace instance is removed when dropped.
#[derive(Debug)]
pub struct Oracle {
    instance: PathBuf,
    zones: Vec<Zone>,
    /// Holds the file system of `instance`.
    _tracefs: Mount,
}

impl Oracle {
    /// Starts recording.
    pub fn start() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tracefs = Mount::new("tracefs")?;
        let instance =
            tracefs.path().join(format!("instances/memtrace-test-{}-{number}", process::id()));
        fs::create_dir(&instance).context("cannot create an instance of ftrace")?;
        let oracle = Self { instance, zones: zones()?, _tracefs: tracefs };
        oracle.write("tracing_on", "0")?;
        oracle.write("trace_clock", "mono")?;
        oracle.write("buffer_size_kb", &BUFFER_KIB.to_string())?;
        for event in EVENTS {
            let dir = oracle.instance.join("events").join(event);
            if !dir.exists() {
                continue;
            }
            if event == ISOLATE {
                // Scans that found nothing on their list are most of all events.
                oracle.write(&format!("events/{event}/filter"), "nr_scanned > 0")?;
            }
            oracle.write(&format!("events/{event}/enable"), "1")?;
        }
        oracle.write("tracing_on", "1")?;
        Ok(oracle)
    }

    /// Stops recording and gives what was recorded. Fails where ftrace itself lost events.
    pub fn stop(self) -> Result<Trace> {
        self.write("tracing_on", "0")?;
        self.ensure_complete()?;
        let text = read_bytes(&self.instance.join("trace"))?;
        let mut parser =
            Parser { zones: &self.zones, open: HashMap::new(), trace: Trace::default() };
        for line in String::from_utf8_lossy(&text).lines().filter(|line| !line.starts_with('#')) {
            parser.line(line).with_context(|| format!("unknown form of ftrace's line `{line}`"))?;
        }
        Ok(parser.finish())
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

impl Drop for Oracle {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir(&self.instance) {
            eprintln!("cannot remove `{}`: {err}", self.instance.display());
        }
    }
}

/// Reads a file of tracefs, whose sizes are unknown and whose names may be any bytes.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// What the begin tells.
#[derive(Clone, Debug)]
enum Begin {
    Reclaim { order: i64, gfp: Vec<String>, nr_scanned: u64, priority: Option<i64> },
    Compaction { zone_start: u64, sync: bool },
}

struct Parser<'a> {
    zones: &'a [Zone],
    open: HashMap<(u32, Mechanism), (u64, Begin)>,
    trace: Trace,
}

/// The parts of a line of the trace.
struct Event<'a> {
    comm: Option<&'a str>,
    tid: u32,
    cpu: u32,
    at_ns: u64,
    name: &'a str,
    fields: &'a str,
}

impl<'a> Event<'a> {
    /// Takes apart a line such as
    /// `  dd-42      [001] .....  12.345678: mm_vmscan_memcg_reclaim_end: nr_reclaimed=32`.
    ///
    /// A thread's name may have spaces and colons in it, so the head is read from its end.
    fn parse(line: &'a str) -> Option<Self> {
        let mut colons = line.match_indices(':').map(|(at, _)| at);
        let split = colons.find(|&at| line[at..].starts_with(": mm_"))?;
        let (head, event) = (&line[..split], &line[split + 2..]);
        let (name, fields) = event.split_once(": ")?;
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
    fn field(&self, name: &str) -> Result<&'a str> {
        let mut fields = self.fields.split(' ').filter_map(|field| field.split_once('='));
        let found = fields.find(|(candidate, _)| *candidate == name);
        found
            .map(|(_, value)| value.trim_end_matches(','))
            .with_context(|| format!("no field `{name}`"))
    }

    fn number<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
        &self,
        name: &str,
    ) -> Result<T> {
        self.field(name)?.parse().with_context(|| format!("`{name}` is not a number"))
    }

    fn address(&self, name: &str) -> Result<u64> {
        let digits = self.field(name)?.trim_start_matches("0x");
        u64::from_str_radix(digits, 16)
            .with_context(|| format!("`{name}` is not a hexadecimal number"))
    }
}

/// The flags of an allocation in the kernel's words, in an order that does not depend on it.
fn gfp(words: &str) -> Vec<String> {
    let mut names: Vec<_> = words.split('|').map(str::to_owned).collect();
    names.sort();
    names
}

impl Parser<'_> {
    fn line(&mut self, line: &str) -> Result<()> {
        let event = Event::parse(line).context("not an event")?;
        let Some((mechanism, is_begin)) = meaning(event.name)? else { return self.scan(&event) };
        let key = (event.tid, mechanism);
        if is_begin {
            let begin = if mechanism == Mechanism::Compaction {
                Begin::Compaction {
                    zone_start: event.address("zone_start")?,
                    sync: event.field("mode")? == "sync",
                }
            } else {
                Begin::Reclaim {
                    order: event.number("order")?,
                    gfp: gfp(event.field("gfp_flags")?),
                    nr_scanned: 0,
                    priority: None,
                }
            };
            if let Some((at_ns, _)) = self.open.insert(key, (event.at_ns, begin)) {
                self.trace.begins_without_end.push(Orphan { mechanism, tid: event.tid, at_ns });
            }
            return Ok(());
        }
        let Some((begin_ns, begin)) = self.open.remove(&key) else {
            self.trace.ends_without_begin.push(Orphan {
                mechanism,
                tid: event.tid,
                at_ns: event.at_ns,
            });
            return Ok(());
        };
        let mut lowest_priority = None;
        let detail = match begin {
            Begin::Reclaim { order, gfp, nr_scanned, priority } => {
                lowest_priority = priority;
                Detail::Reclaim {
                    order,
                    gfp,
                    nr_reclaimed: event.number("nr_reclaimed")?,
                    nr_scanned,
                }
            }
            Begin::Compaction { zone_start, sync } => {
                let zone = self.zone(zone_start)?;
                Detail::Compaction {
                    node: zone.node,
                    zone: zone.name,
                    sync,
                    status: event.field("status")?.to_owned(),
                }
            }
        };
        self.trace.stalls.push(Stall {
            mechanism,
            tid: event.tid,
            comm: event.comm.map(str::to_owned),
            cpu: event.cpu,
            begin_ns,
            end_ns: event.at_ns,
            detail,
            priority: lowest_priority,
        });
        Ok(())
    }

    /// Adds what a thread scanned to all that it is in.
    fn scan(&mut self, event: &Event<'_>) -> Result<()> {
        let isolates = event.name == "mm_vmscan_lru_isolate";
        if isolates && !event.field("lru")?.starts_with("inactive_") {
            return Ok(());
        }
        let value: i64 = event.number(if isolates { "nr_scanned" } else { "priority" })?;
        for mechanism in
            [Mechanism::Direct, Mechanism::Memcg, Mechanism::Softlimit, Mechanism::Node]
        {
            if let Some((_, Begin::Reclaim { nr_scanned, priority, .. })) =
                self.open.get_mut(&(event.tid, mechanism))
            {
                if isolates {
                    *nr_scanned += u64::try_from(value).context("a negative number of pages")?;
                } else {
                    *priority = Some(priority.map_or(value, |lowest| lowest.min(value)));
                }
            }
        }
        Ok(())
    }

    fn zone(&self, start_pfn: u64) -> Result<Zone> {
        let found = self.zones.iter().find(|zone| zone.start_pfn == start_pfn);
        found.cloned().with_context(|| {
            format!("/proc/zoneinfo has no zone that starts at page frame {start_pfn}")
        })
    }

    fn finish(mut self) -> Trace {
        let open = self.open.into_iter().map(|((tid, mechanism), (at_ns, _))| Orphan {
            mechanism,
            tid,
            at_ns,
        });
        self.trace.begins_without_end.extend(open);
        self.trace
    }
}

/// Which pair of tracepoints an event is of, and whether it is the begin; nothing for those of
/// none.
fn meaning(name: &str) -> Result<Option<(Mechanism, bool)>> {
    if name.starts_with("mm_vmscan_lru_") {
        return Ok(None);
    }
    let (pair, is_begin) = match (name.strip_suffix("_begin"), name.strip_suffix("_end")) {
        (Some(pair), _) => (pair, true),
        (_, Some(pair)) => (pair, false),
        _ => bail!("neither a begin nor an end"),
    };
    let mechanism = match pair {
        "mm_vmscan_direct_reclaim" => Mechanism::Direct,
        "mm_vmscan_memcg_reclaim" => Mechanism::Memcg,
        "mm_vmscan_memcg_softlimit_reclaim" => Mechanism::Softlimit,
        "mm_vmscan_node_reclaim" => Mechanism::Node,
        "mm_compaction" => Mechanism::Compaction,
        _ => bail!("unknown pair"),
    };
    Ok(Some((mechanism, is_begin)))
}
