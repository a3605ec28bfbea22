//! What the sections of a report are made of: rows with names instead of numbers.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::longest::Long;
use super::serial::{Map, bytes, comm, kind, maybe_comm, payer, target, time, victim};
use super::times::Times;
use crate::kind::Kind;
use crate::owner::Owner;
use crate::recording::{Missing, meta};
use crate::stall::Comm;

/// How many stalls there were and how long they lasted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// How many.
    pub count: u64,
    /// Their time together, in nanoseconds.
    pub total_ns: u64,
    /// What half of them did not exceed, at most 1 % too long.
    pub p50_ns: u64,
    /// What 99 of 100 did not exceed, likewise.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl From<&Times> for Stats {
    fn from(times: &Times) -> Self {
        Self {
            count: times.count(),
            total_ns: times.total_ns(),
            p50_ns: times.quantile_ns(500),
            p99_ns: times.quantile_ns(990),
            max_ns: times.max_ns(),
        }
    }
}

/// A host as it was booted once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Its name.
    pub host: String,
    /// The id of the boot.
    pub boot: String,
}

/// A cgroup, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id.
    pub id: Option<u64>,
    /// Its path, in any bytes.
    pub path: Option<Vec<u8>>,
}

impl Cgroup {
    /// What people call it, if they have another name for it than its path.
    #[must_use]
    pub fn owner(&self) -> Option<Owner<'_>> {
        self.path.as_deref().and_then(Owner::of)
    }
}

/// One of the recordings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// The file that it is in.
    #[serde(serialize_with = "bytes")]
    pub file: Vec<u8>,
    /// Whose it is.
    #[serde(flatten)]
    pub host: Host,
    /// The kernel's release.
    pub kernel: String,
    /// How many CPUs were online.
    pub cpus: u32,
    /// The version of memtrace that made it.
    pub memtrace: String,
    /// What was traced, in words.
    pub what: String,
    /// What a stall had to pass to be in it, as options of the command line; empty where all are.
    pub filters: String,
    /// From when it is, in nanoseconds since 1970.
    #[serde(serialize_with = "time")]
    pub since: i64,
    /// To when, likewise.
    #[serde(serialize_with = "time")]
    pub time: i64,
    /// Whether it was ended; else it was cut, or goes on.
    pub ended: bool,
    /// Stalls in it.
    pub stalls: u64,
    /// Oldest blocks that were given up for the size of the file.
    pub dropped_blocks: u64,
    /// Blocks that are not there any more.
    pub lost_blocks: u64,
    /// Blocks that are there, but damaged.
    pub damaged_blocks: u64,
    /// Bytes that belong to no block.
    pub stray_bytes: u64,
    /// Why it was written, where a trigger made it.
    pub trigger: Option<Trigger>,
    /// The kinds that were watched.
    pub watched: Vec<&'static str>,
    /// Those that were not, each with the reason.
    pub not_watched: Vec<NotWatched>,
    /// What the kernel lacked.
    pub unavailable: Vec<String>,
}

impl Recorded {
    /// Whether any of it is not there, but for what was given up for the size of the file.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        [self.lost_blocks, self.damaged_blocks, self.stray_bytes] != [0; 3]
    }

    /// Notes what is missing by the headers, and how many blocks were found damaged.
    pub(super) fn misses(&mut self, missing: Missing, damaged: u64) {
        let Missing { dropped, lost, stray } = missing;
        self.dropped_blocks = dropped;
        self.lost_blocks = lost;
        self.damaged_blocks = damaged;
        self.stray_bytes = stray;
    }
}

/// A trigger that has fired.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_field_names, reason = "it is what recordings call it")]
pub struct Trigger {
    /// As it was given.
    pub trigger: String,
    /// What has made it fire.
    pub cause: String,
    /// When, in nanoseconds since 1970.
    #[serde(serialize_with = "time")]
    pub time: i64,
}

/// A kind that was asked for and not watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NotWatched {
    /// Which.
    pub kind: &'static str,
    /// Why.
    pub reason: String,
}

/// A thread or, without `tid`, a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WhoRow {
    /// Its name.
    #[serde(serialize_with = "comm")]
    pub comm: Comm,
    /// The process.
    pub pid: u32,
    /// The thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// Where.
    #[serde(flatten)]
    pub host: Host,
    /// What its memory was charged to last.
    #[serde(flatten, serialize_with = "payer")]
    pub cgroup: Cgroup,
    /// Its stalls.
    #[serde(flatten)]
    pub stats: Stats,
}

/// A cgroup whose threads stalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CgroupRow {
    /// Which.
    #[serde(flatten, serialize_with = "payer")]
    pub cgroup: Cgroup,
    /// Where.
    #[serde(flatten)]
    pub host: Host,
    /// The stalls.
    #[serde(flatten)]
    pub stats: Stats,
}

/// What was reclaimed from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetRow {
    /// Whether memory itself was short; nothing where it is not known, or nothing was reclaimed.
    pub global: Option<bool>,
    /// The cgroup, of any other.
    #[serde(flatten, serialize_with = "target")]
    pub cgroup: Cgroup,
    /// Where.
    #[serde(flatten)]
    pub host: Host,
    /// The stalls.
    #[serde(flatten)]
    pub stats: Stats,
}

/// A kind of stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KindRow {
    /// Which.
    #[serde(serialize_with = "kind")]
    pub kind: Kind,
    /// The stalls.
    #[serde(flatten)]
    pub stats: Stats,
}

/// An order of allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OrderRow {
    /// 2^order pages; -1 for the compaction of a whole zone; nothing where it is not known.
    pub order: Option<i32>,
    /// The stalls.
    #[serde(flatten)]
    pub stats: Stats,
}

/// A zone that was compacted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZoneRow {
    /// The node's number; nothing where no zone is known.
    pub node: Option<i32>,
    /// The kernel's name of the zone.
    pub zone: Option<String>,
    /// The stalls.
    #[serde(flatten)]
    pub stats: Stats,
}

/// A long stall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LongRow {
    /// All that is known of it.
    pub long: Long,
    /// Where.
    pub host: Host,
    /// What its memory was charged to.
    pub cgroup: Cgroup,
    /// What was reclaimed from, but for the host.
    pub target: Cgroup,
}

impl Serialize for LongRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Object<'a> {
            #[serde(serialize_with = "time")]
            time: i64,
            start_ns: u64,
            duration_ns: u64,
            #[serde(serialize_with = "comm")]
            comm: Comm,
            pid: u32,
            tid: u32,
            uid: u32,
            cpu: u32,
            #[serde(serialize_with = "kind")]
            kind: Kind,
            order: Option<i32>,
            #[serde(flatten)]
            host: &'a Host,
            #[serde(flatten, serialize_with = "payer")]
            cgroup: &'a Cgroup,
            #[serde(flatten, serialize_with = "target")]
            target: &'a Cgroup,
            node: Option<i32>,
            zone: Option<&'a str>,
            nr_reclaimed: u64,
            parts: Option<Map<'a>>,
            stack: &'a [String],
            user_stack: &'a [String],
        }
        let Self { long, host, cgroup, target } = self;
        let zone = long.zone.as_ref();
        let object = Object {
            time: long.at_ns,
            start_ns: long.start_ns,
            duration_ns: long.duration_ns,
            comm: long.thread.comm,
            pid: long.thread.pid,
            tid: long.thread.tid,
            uid: long.thread.uid,
            cpu: long.cpu,
            kind: long.kind,
            order: long.order,
            host,
            cgroup,
            target,
            node: zone.map(|zone| zone.node),
            zone: zone.map(|zone| &*zone.name),
            nr_reclaimed: long.nr_reclaimed,
            parts: long.parts.as_deref().map(Map),
            stack: &long.stack,
            user_stack: &long.user_stack,
        };
        object.serialize(serializer)
    }
}

/// A process that was chosen to be killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KillRow {
    /// When, in nanoseconds since 1970.
    #[serde(serialize_with = "time")]
    pub time: i64,
    /// Where.
    #[serde(flatten)]
    pub host: Host,
    /// The thread that lacked memory.
    #[serde(serialize_with = "comm")]
    pub comm: Comm,
    /// Its process.
    pub pid: u32,
    /// Itself.
    pub tid: u32,
    /// What its memory is charged to.
    #[serde(flatten, serialize_with = "payer")]
    pub cgroup: Cgroup,
    /// The process that was killed for it.
    pub victim_pid: u32,
    /// Its name.
    #[serde(serialize_with = "maybe_comm")]
    pub victim_comm: Option<Comm>,
    /// What its memory was charged to.
    #[serde(flatten, serialize_with = "victim")]
    pub victim_cgroup: Cgroup,
}

/// The time of day.
#[must_use]
pub fn at(since_1970_ns: i64) -> Timestamp {
    meta::timestamp(since_1970_ns)
}
