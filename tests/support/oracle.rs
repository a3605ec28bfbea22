//! The oracle: ftrace records the same tracepoints as memtrace, and the stalls that its trace shows.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};

use crate::{
    ftrace::{self, Event, Ftrace, Tracepoint},
    host::{Zone, zones},
};

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

/// The running oracle.
#[derive(Debug)]
pub struct Oracle {
    ftrace: Ftrace,
    zones: Vec<Zone>,
}

impl Oracle {
    /// Starts recording.
    pub fn start() -> Result<Self> {
        // Scans that found nothing on their list are most of all events.
        let filter = |name| (name == ISOLATE).then(|| "nr_scanned > 0".to_owned());
        let tracepoints = EVENTS.map(|name| Tracepoint { name, filter: filter(name) });
        Ok(Self { zones: zones()?, ftrace: Ftrace::start(tracepoints)? })
    }

    /// Stops recording and gives what was recorded. Fails where ftrace itself lost events.
    pub fn stop(self) -> Result<Trace> {
        let text = self.ftrace.stop()?;
        let mut parser =
            Parser { zones: &self.zones, open: HashMap::new(), trace: Trace::default() };
        for event in ftrace::events(&text) {
            let event = event?;
            parser.event(&event).with_context(|| format!("unknown form of {event:?}"))?;
        }
        Ok(parser.finish())
    }
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

/// The flags of an allocation in the kernel's words, in an order that does not depend on it.
fn gfp(words: &str) -> Vec<String> {
    let mut names: Vec<_> = words.split('|').map(str::to_owned).collect();
    names.sort();
    names
}

impl Parser<'_> {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let Some((mechanism, is_begin)) = meaning(event.name)? else { return self.scan(event) };
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
