//! What a report says: the totals of recordings with names, the most first.

use std::hash::Hash;
use std::sync::atomic::AtomicU64;

use jiff::tz::TimeZone;
use serde::Serialize;

use super::keys::{CgroupKey, Payer, ProcessKey, ThreadKey, Who};
use super::rows::{
    Cgroup, CgroupRow, Host, KillRow, KindRow, LongRow, OrderRow, Recorded, Stats, TargetRow,
    WhoRow, ZoneRow,
};
use super::seconds::{SECOND_NS, Worst};
use super::serial::{as_map, maybe_parts, maybe_time, payer, time};
use super::sources::Source;
use super::system::{CgroupState, System};
use super::table::Table;
use super::text::Text;
use super::times::Times;
use super::totals::{LookAt, Totals, boots, joined};
use crate::recording::{Counts, Look, Meta, Note, Recording};
use crate::scope::Parts;
use crate::view::parts;

/// Blocks in which a look at the system is looked for.
const MOST_TRIED: usize = 4096;

/// What recordings come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Findings {
    r#type: &'static str,
    /// When the first recording began, in nanoseconds since 1970.
    #[serde(serialize_with = "maybe_time")]
    pub since: Option<i64>,
    /// When the last one ended, likewise.
    #[serde(serialize_with = "maybe_time")]
    pub time: Option<i64>,
    /// How long was recorded, of each host; what several recordings of it have counts once.
    pub duration_ns: u64,
    /// All stalls.
    #[serde(flatten)]
    pub stats: Stats,
    /// Stalls in a second of recording.
    pub stalls_per_s: Option<f64>,
    /// Nanoseconds lost in a second of recording, by all threads together.
    pub stalled_ns_per_s: Option<f64>,
    /// When the first stall began, in nanoseconds since 1970.
    #[serde(serialize_with = "maybe_time")]
    pub first: Option<i64>,
    /// When the last one ended, likewise.
    #[serde(serialize_with = "maybe_time")]
    pub last: Option<i64>,
    /// The recordings, in the order in which they were given.
    pub recordings: Vec<Recorded>,
    /// How many threads stalled.
    pub nr_threads: usize,
    /// Those with the most time.
    pub threads: Vec<WhoRow>,
    /// Stalls of others, which were too many to be told apart.
    pub other_threads: Option<Stats>,
    /// How many processes.
    pub nr_processes: usize,
    /// Those with the most time.
    pub processes: Vec<WhoRow>,
    /// Stalls of others, which were too many to be told apart.
    pub other_processes: Option<Stats>,
    /// How many cgroups had threads that stalled.
    pub nr_cgroups: usize,
    /// Those with the most time.
    pub cgroups: Vec<CgroupRow>,
    /// Stalls of others, which were too many to be told apart.
    pub other_cgroups: Option<Stats>,
    /// All kinds of which there were stalls, that with the most time first; so the next three.
    pub kinds: Vec<KindRow>,
    /// All orders.
    pub orders: Vec<OrderRow>,
    /// All zones.
    pub zones: Vec<ZoneRow>,
    /// How many targets were reclaimed from.
    pub nr_targets: usize,
    /// Those with the most time.
    pub targets: Vec<TargetRow>,
    /// How the time was spent, the longest part first; nothing where that was not recorded.
    #[serde(serialize_with = "maybe_parts")]
    pub parts: Option<Vec<(String, u64)>>,
    /// The longest stalls.
    pub longest: Vec<LongRow>,
    /// How many processes were chosen to be killed.
    pub nr_oom_kills: u64,
    /// The first of them.
    pub oom_kills: Vec<KillRow>,
    /// The second in which most time was lost.
    pub worst_second: Option<WorstSecond>,
    /// What was not recorded, in all.
    #[serde(flatten)]
    pub counts: Counts,
}

/// The second in which most time was lost, and the system then.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorstSecond {
    /// When it began, in nanoseconds since 1970.
    #[serde(serialize_with = "time")]
    pub time: i64,
    /// Where.
    #[serde(flatten)]
    pub host: Host,
    /// Stalls that began in it.
    pub stalls: u64,
    /// What all threads together lost in it.
    pub stalled_ns: u64,
    /// The system at the look that was nearest to its end.
    pub system: Option<SystemThen>,
}

/// The system at a look.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SystemThen {
    /// When, in nanoseconds since 1970.
    #[serde(serialize_with = "time")]
    pub time: i64,
    /// What it was like.
    #[serde(flatten)]
    pub system: System,
    /// The cgroups that stalled.
    pub cgroups: Vec<CgroupThen>,
}

/// A cgroup at a look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CgroupThen {
    /// Which.
    #[serde(flatten, serialize_with = "payer")]
    pub cgroup: Cgroup,
    /// memory.current, in bytes; of cgroup v1 memory.usage_in_bytes.
    pub current_bytes: Option<u64>,
    /// memory.events in all; of cgroup v1 memory.failcnt as `failcnt`.
    #[serde(serialize_with = "as_map")]
    pub events: Vec<(String, u64)>,
    /// By how much they had grown since the look before.
    #[serde(serialize_with = "as_map")]
    pub events_grown: Vec<(String, u64)>,
}

impl Findings {
    /// Appends them for people, with times of day at that place.
    pub fn text(&self, zone: &TimeZone, out: &mut Vec<u8>) {
        Text::append(self, zone, out);
    }

    /// Reads recordings, given with the names of their files. `most` is how many there are of what there are many
    /// of; `done` counts the blocks.
    #[must_use]
    pub fn gather(
        recordings: &[Recording],
        files: &[Vec<u8>],
        most: usize,
        done: &AtomicU64,
    ) -> Self {
        let boots = boots(recordings);
        let (totals, left_out) = super::gather(recordings, || Totals::new(&boots, most), done);
        let (boots, totals, left_out) = (&*boots, &totals, &*left_out);
        Source { recordings, files, boots, totals, left_out }.findings(most)
    }
}

impl Source<'_> {
    pub(super) fn findings(&self, most: usize) -> Findings {
        let Totals { threads, cgroups, orders, zones, targets, .. } = self.totals;
        let (nr_processes, processes) = self.processes(most);
        let spans = self.spans();
        let whole = spans.iter().fold(None, |whole, span| joined(whole, *span));
        let duration_ns = self.duration_ns();
        let stalled = self.totals.seen.iter().fold(None, |all, seen| joined(all, seen.span_ns));
        let stats = Stats::from(&self.totals.all());
        let zone = |zone: &Option<(i32, String)>, stats| ZoneRow {
            node: zone.as_ref().map(|(node, _)| *node),
            zone: zone.as_ref().map(|(_, name)| name.clone()),
            stats,
        };
        let mut kinds: Vec<_> = self
            .totals
            .kinds()
            .filter(|(_, times)| times.count() != 0)
            .map(|(kind, times)| KindRow { kind, stats: times.into() })
            .collect();
        kinds.sort_by_key(|row| std::cmp::Reverse(row.stats.total_ns));
        Findings {
            r#type: "report",
            since: whole.map(|(since, _)| since),
            time: whole.map(|(_, time)| time),
            duration_ns,
            stats,
            stalls_per_s: per_second(stats.count, duration_ns),
            stalled_ns_per_s: per_second(stats.total_ns, duration_ns),
            first: stalled.map(|(first, _)| first),
            last: stalled.map(|(_, last)| last),
            recordings: self.recorded(&spans),
            nr_threads: threads.len(),
            other_threads: self.totals.other_threads().map(|times| Stats::from(&times)),
            threads: self.threads(most),
            nr_processes,
            other_processes: self.totals.other_processes().map(|times| Stats::from(&times)),
            processes,
            nr_cgroups: cgroups.len(),
            other_cgroups: cgroups.other().map(Stats::from),
            cgroups: rows(cgroups, most, |key, stats| CgroupRow {
                cgroup: self.cgroup(key.boot, key.id),
                host: self.host(key.boot),
                stats,
            }),
            kinds,
            orders: rows(orders, most.max(16), |order, stats| OrderRow { order: *order, stats }),
            zones: rows(zones, most.max(16), zone),
            nr_targets: targets.len(),
            targets: rows(targets, most, |key, stats| self.target(key, stats)),
            parts: self.parts(),
            longest: self.longest(),
            nr_oom_kills: self.totals.nr_kills,
            oom_kills: self.kills(),
            worst_second: self.totals.seconds.worst().map(|worst| self.worst_second(worst)),
            counts: self.counts(),
        }
    }

    fn threads(&self, most: usize) -> Vec<WhoRow> {
        let row = |(key, times, payer): (ThreadKey, Times, Payer)| WhoRow {
            comm: key.comm,
            pid: key.pid,
            tid: Some(key.tid),
            host: self.host(key.boot),
            cgroup: self.cgroup(key.boot, payer.id()),
            stats: (&times).into(),
        };
        self.totals.threads.top(most).into_iter().map(row).collect()
    }

    /// How many there are, and those with the most time.
    fn processes(&self, most: usize) -> (usize, Vec<WhoRow>) {
        let row = |(key, times, who): (ProcessKey, Times, Who)| WhoRow {
            comm: who.comm,
            pid: key.pid,
            tid: None,
            host: self.host(key.boot),
            cgroup: self.cgroup(key.boot, who.payer.id()),
            stats: (&times).into(),
        };
        let (count, top) = self.totals.processes(most);
        (count, top.into_iter().map(row).collect())
    }

    /// A boot goes by the number of its first recording.
    pub(super) fn host(&self, boot: u32) -> Host {
        let recording = self.recordings.get(boot as usize);
        let of = |recording: &Recording| {
            let Meta { host, boot, .. } = &recording.meta;
            Host { host: host.clone(), boot: boot.clone() }
        };
        recording.map(of).unwrap_or_default()
    }

    pub(super) fn cgroup(&self, boot: u32, id: Option<u64>) -> Cgroup {
        let path = id.and_then(|id| self.totals.path(boot, id)).map(<[u8]>::to_vec);
        Cgroup { id, path }
    }

    fn target(&self, key: &CgroupKey, stats: Stats) -> TargetRow {
        TargetRow {
            global: key.id.map(|id| id == 0),
            cgroup: self.cgroup(key.boot, key.id.filter(|id| *id != 0)),
            host: self.host(key.boot),
            stats,
        }
    }

    fn parts(&self) -> Option<Vec<(String, u64)>> {
        let ns = self.totals.parts?;
        let metas = self.recordings.iter().map(|recording| &recording.meta.throttles);
        let throttles = metas.into_iter().find(|names| !names.is_empty());
        let throttles = Meta::enum_names(throttles.map(Vec::as_slice).unwrap_or_default());
        let fixed = Parts { ns, shrinkers: Vec::new() }.sorted().into_iter().map(|(part, ns)| {
            (parts::name_by(part, &throttles, |address| format!("{address:#x}")).into_owned(), ns)
        });
        let shrinkers = self.totals.shrinkers.iter();
        let shrinkers = shrinkers.map(|(name, ns)| (format!("shrink:{name}"), *ns));
        let mut all: Vec<_> = fixed.chain(shrinkers).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Some(all)
    }

    fn longest(&self) -> Vec<LongRow> {
        let row = |long: &super::longest::Long| LongRow {
            host: self.host(long.boot),
            cgroup: self.cgroup(long.boot, long.thread.cgroup_id),
            target: self.cgroup(long.boot, long.target.filter(|id| *id != 0)),
            long: long.clone(),
        };
        self.totals.longest.sorted().iter().map(row).collect()
    }

    fn kills(&self) -> Vec<KillRow> {
        let row = |kill: &super::totals::Kill| {
            let oom = &kill.oom;
            KillRow {
                time: kill.at_ns,
                host: self.host(kill.boot),
                comm: oom.comm,
                pid: oom.pid,
                tid: oom.tid,
                cgroup: self.cgroup(kill.boot, oom.cgroup_id),
                victim_pid: oom.victim_pid,
                victim_comm: oom.victim_comm,
                victim_cgroup: self.cgroup(kill.boot, oom.victim_cgroup_id),
            }
        };
        let mut rows: Vec<_> = self.totals.kills.iter().map(row).collect();
        rows.sort_by_key(|row| row.time);
        rows
    }

    fn worst_second(&self, worst: Worst) -> WorstSecond {
        let Worst { boot, second, stalls, stalled_ns } = worst;
        let begin_ns = second.saturating_mul(SECOND_NS.cast_signed());
        let end_ns = begin_ns.saturating_add_unsigned(SECOND_NS);
        // What has grown by the look at its end has grown in it.
        let looks = || {
            self.totals.looks.iter().filter(|look| self.boots.get(look.recording) == Some(&boot))
        };
        let nearest = looks().min_by_key(|look| look.at_ns.abs_diff(end_ns));
        let system = nearest.and_then(|nearest| {
            let earlier = looks().filter(|look| look.monotonic_ns < nearest.monotonic_ns);
            let before = earlier.max_by_key(|look| look.monotonic_ns);
            let before = before.and_then(|before| self.look(before));
            Some(self.system(boot, nearest.at_ns, &self.look(nearest)?, before.as_ref()))
        });
        WorstSecond { time: begin_ns, host: self.host(boot), stalls, stalled_ns, system }
    }

    fn system(&self, boot: u32, time: i64, look: &Look, before: Option<&Look>) -> SystemThen {
        let system = System::of(look, before);
        let then = |state: &CgroupState| CgroupThen {
            cgroup: self.cgroup(boot, Some(state.id)),
            current_bytes: state.current_bytes,
            events: state.events.clone(),
            events_grown: state.grown.clone(),
        };
        SystemThen { time, cgroups: system.cgroups.iter().map(then).collect(), system }
    }

    /// Reads a look again: of many, few are of interest.
    fn look(&self, at: &LookAt) -> Option<Look> {
        let recording = self.recordings.get(at.recording)?;
        let may_have_it = |place: &&_| -> bool { spans(place).contains(&at.monotonic_ns) };
        let places = recording.places.iter().filter(may_have_it).take(MOST_TRIED);
        let mut blocks = places.filter_map(|place| recording.block(place).ok());
        blocks.find_map(|block| {
            block.notes().iter().find_map(|note| match note {
                Note::Look(look) if look.at_ns == at.monotonic_ns => Some(look.clone()),
                _ => None,
            })
        })
    }
}

fn spans(place: &crate::recording::Place) -> std::ops::RangeInclusive<u64> {
    place.first_ns..=place.last_ns
}

/// The rows of a table with the most time.
fn rows<K, R>(table: &Table<K>, most: usize, row: impl Fn(&K, Stats) -> R) -> Vec<R>
where
    K: Clone + Ord + Hash,
{
    table.top(most).into_iter().map(|(key, times)| row(key, times.into())).collect()
}

/// How many, or how much, in a second of recording.
#[must_use]
pub fn per_second(count: u64, duration_ns: u64) -> Option<f64> {
    (duration_ns != 0).then(|| count as f64 * SECOND_NS as f64 / duration_ns as f64)
}
