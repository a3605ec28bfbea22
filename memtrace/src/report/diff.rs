//! Two recordings side by side: before and after a change.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::slice;
use std::sync::atomic::AtomicU64;

use serde::{Serialize, Serializer};

use super::findings::{Findings, per_second};
use super::rows::{Cgroup, Recorded, Stats};
use super::serial::{comm, kind, payer};
use super::sources::Source;
use super::text::{name_and_owner, span};
use super::times::Times;
use super::totals::{Totals, boots};
use crate::kind::Kind;
use crate::recording::Recording;
use crate::stall::Comm;
use crate::text::Printable;
use crate::view::line::Line;
use crate::view::words::Span;

/// What has changed between two recordings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    r#type: &'static str,
    /// The one before.
    pub before: Recorded,
    /// The one after.
    pub after: Recorded,
    /// How long was recorded before and after, in nanoseconds.
    pub duration_ns: [u64; 2],
    /// All stalls.
    pub all: Change,
    /// By kind, in order of how much time has changed; so the next two.
    pub kinds: Vec<Changed<KindOf>>,
    /// By the name of the process.
    pub processes: Vec<Changed<CommOf>>,
    /// By the path of the cgroup; those without match by their ids where both recordings are of the same boot.
    pub cgroups: Vec<Changed<CgroupOf>>,
}

/// What stalls are told apart by, with the change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed<K: Serialize> {
    /// Whose they are.
    #[serde(flatten)]
    pub key: K,
    /// Before and after.
    #[serde(flatten)]
    pub change: Change,
}

/// A kind of stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct KindOf {
    /// Which.
    #[serde(serialize_with = "kind")]
    pub kind: Kind,
}

/// Processes of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct CommOf {
    /// The name.
    #[serde(serialize_with = "comm")]
    pub comm: Comm,
}

/// A cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupOf(pub Cgroup);

impl Serialize for CgroupOf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        payer(&self.0, serializer)
    }
}

/// Stalls before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "it is what came to it")]
pub struct Change {
    /// Before.
    pub before: Rated,
    /// After.
    pub after: Rated,
    /// What came to it.
    pub change: Difference,
}

/// Stalls with their rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rated {
    /// The stalls.
    #[serde(flatten)]
    pub stats: Stats,
    /// Stalls in a second of recording.
    pub stalls_per_s: Option<f64>,
    /// Nanoseconds lost in a second of recording.
    pub stalled_ns_per_s: Option<f64>,
}

/// What came to it, or went where it is below zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Stalled time.
    pub total_ns: i128,
    /// What 99 of 100 stalls did not exceed.
    pub p99_ns: i128,
    /// Stalls in a second of recording.
    pub stalls_per_s: Option<f64>,
    /// Nanoseconds lost in a second of recording.
    pub stalled_ns_per_s: Option<f64>,
}

impl Change {
    fn new(times: [Option<&Times>; 2], durations_ns: [u64; 2]) -> Self {
        let rated = |side: usize| {
            let stats = times[side].map(Stats::from).unwrap_or_default();
            Rated {
                stats,
                stalls_per_s: per_second(stats.count, durations_ns[side]),
                stalled_ns_per_s: per_second(stats.total_ns, durations_ns[side]),
            }
        };
        let (before, after) = (rated(0), rated(1));
        let less = |after: Option<f64>, before: Option<f64>| Some(after? - before?);
        let change = Difference {
            total_ns: i128::from(after.stats.total_ns) - i128::from(before.stats.total_ns),
            p99_ns: i128::from(after.stats.p99_ns) - i128::from(before.stats.p99_ns),
            stalls_per_s: less(after.stalls_per_s, before.stalls_per_s),
            stalled_ns_per_s: less(after.stalled_ns_per_s, before.stalled_ns_per_s),
        };
        Self { before, after, change }
    }
}

/// One of the two.
struct Side {
    totals: Totals,
    findings: Findings,
}

impl Diff {
    /// Reads two recordings, given with the names of their files. `most` is how many processes and cgroups to tell
    /// apart, those that have changed most; `done` counts the blocks.
    #[must_use]
    pub fn gather(
        recordings: [&Recording; 2],
        files: &[Vec<u8>; 2],
        most: usize,
        done: &AtomicU64,
    ) -> Self {
        let side = |number: usize| {
            let recordings = slice::from_ref(recordings[number]);
            let boots = boots(recordings);
            let (totals, left_out) = super::gather(recordings, || Totals::new(&boots, 0), done);
            let files = slice::from_ref(&files[number]);
            let (boots, left_out) = (&*boots, &*left_out);
            let source = Source { recordings, files, boots, totals: &totals, left_out };
            let findings = source.findings(0);
            Side { totals, findings }
        };
        let sides = [side(0), side(1)];
        let durations_ns = sides.each_ref().map(|side| side.findings.duration_ns);
        let totals = sides.each_ref().map(|side| &side.totals);
        let all = totals.map(Totals::all);
        let same_boot = {
            let [before, after] = recordings.map(|recording| &recording.meta);
            !before.boot.is_empty() && (&before.host, &before.boot) == (&after.host, &after.boot)
        };
        let kinds = totals.map(|totals| {
            let kinds = totals.kinds().filter(|(_, times)| times.count() != 0);
            kinds.map(|(kind, times)| (KindOf { kind }, times.clone())).collect()
        });
        let processes = totals.map(|totals| {
            let mut by_comm: BTreeMap<_, Times> = BTreeMap::new();
            for (_, times, who) in totals.processes(usize::MAX).1 {
                by_comm.entry(CommOf { comm: who.comm }).or_default().merge(&times);
            }
            by_comm
        });
        // Without a path an id says something within one boot only.
        let cgroups = [0_u8, 1].map(|side| {
            let totals = totals[usize::from(side)];
            totals.cgroups.folded(|key| {
                let path = key.id.and_then(|id| totals.path(key.boot, id)).map(<[u8]>::to_vec);
                match (path, key.id) {
                    (Some(path), _) => (Some(path), None, 0),
                    (None, id) => (None, id, if same_boot || id.is_none() { 0 } else { side }),
                }
            })
        });
        let [before, after] = sides.each_ref().map(|side| &side.findings.recordings[0]);
        Self {
            r#type: "diff",
            before: before.clone(),
            after: after.clone(),
            duration_ns: durations_ns,
            all: Change::new(all.each_ref().map(Some), durations_ns),
            kinds: changes(&kinds, usize::MAX, KindOf::clone, durations_ns),
            processes: changes(&processes, most, CommOf::clone, durations_ns),
            cgroups: changes(
                &cgroups,
                most,
                |(path, id, _)| CgroupOf(Cgroup { id: *id, path: path.clone() }),
                durations_ns,
            ),
        }
    }

    /// Appends it for people.
    pub fn text(&self, out: &mut Vec<u8>) {
        let written = self.append(out);
        debug_assert!(written.is_ok(), "writing into memory does not fail");
    }

    fn append(&self, out: &mut Vec<u8>) -> io::Result<()> {
        for (name, recorded, duration_ns) in [
            ("before", &self.before, self.duration_ns[0]),
            ("after", &self.after, self.duration_ns[1]),
        ] {
            let Recorded { file, host, kernel, .. } = recorded;
            let [host, kernel] = [&host.host, kernel].map(|text| Printable(text.as_bytes()));
            let span = Span(duration_ns.into());
            writeln!(
                out,
                "{name:<6} {}: {host}, Linux {kernel}, {span} recorded",
                Printable(file)
            )?;
            for (is_so, what) in [
                (!recorded.ended, "has no end: it was cut, or is still being written"),
                (recorded.is_damaged(), "is damaged in part: what is left of it is compared"),
                (recorded.dropped_blocks != 0, "gave up its oldest stalls for its size"),
            ] {
                if is_so {
                    writeln!(out, "       {what}")?;
                }
            }
        }
        let Self { before, after, .. } = self;
        let told = |recorded: &Recorded| (recorded.filters.clone(), recorded.watched.clone());
        if told(before) != told(after) {
            writeln!(out, "\nNot of the same stalls:")?;
            for (name, Recorded { filters, watched, .. }) in [("before", before), ("after", after)]
            {
                let with = if filters.is_empty() { "" } else { " with " };
                let watched = watched.join(", ");
                writeln!(out, "{name:<6} {watched}{with}{}", Printable(filters.as_bytes()))?;
            }
        }
        let rate = |rated: &Rated| {
            rated.stalls_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
        };
        let Change { before, after, .. } = &self.all;
        let counts = [before.stats.count, after.stats.count];
        let change = percent(
            before.stalls_per_s.unwrap_or_default(),
            after.stalls_per_s.unwrap_or_default(),
        );
        writeln!(
            out,
            "\n{} stalls before, {} after; a second {} before, {} after: {change}",
            counts[0],
            counts[1],
            rate(before),
            rate(after)
        )?;
        header("KIND", out)?;
        row(&self.all, "all", out);
        for Changed { key, change } in &self.kinds {
            row(change, key.kind.name(), out);
        }
        if !self.processes.is_empty() {
            header("PROCESS", out)?;
        }
        for Changed { key, change } in &self.processes {
            row(change, &key.comm.to_string(), out);
        }
        if !self.cgroups.is_empty() {
            header("CGROUP", out)?;
        }
        for Changed { key, change } in &self.cgroups {
            row(change, &name_and_owner(&key.0), out);
        }
        Ok(())
    }
}

/// The keys of both sides, those that have changed most first.
fn changes<K: Clone + Ord, N: Serialize>(
    sides: &[BTreeMap<K, Times>; 2],
    most: usize,
    name: impl Fn(&K) -> N,
    durations_ns: [u64; 2],
) -> Vec<Changed<N>> {
    let keys: BTreeSet<_> = sides.iter().flat_map(BTreeMap::keys).collect();
    let of = |key: &K| sides.each_ref().map(|side| side.get(key));
    let difference = |key: &&K| {
        let [before, after] = of(key).map(|times| times.map_or(0, Times::total_ns));
        std::cmp::Reverse(before.abs_diff(after))
    };
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_by_key(difference);
    keys.truncate(most);
    let changed = |key| Changed { key: name(key), change: Change::new(of(key), durations_ns) };
    keys.into_iter().map(changed).collect()
}

fn header(name: &str, out: &mut Vec<u8>) -> io::Result<()> {
    writeln!(out, "\n        STALLED TIME                   P99                  LOST A SECOND")?;
    writeln!(
        out,
        "   BEFORE     AFTER  CHANGE    BEFORE     AFTER  CHANGE    BEFORE     AFTER  CHANGE {name}"
    )
}

fn row(change: &Change, name: &str, out: &mut Vec<u8>) {
    let Change { before, after, .. } = change;
    let mut line = Line::begin(out);
    let stats = [&before.stats, &after.stats];
    for [before, after] in [stats.map(|stats| stats.total_ns), stats.map(|stats| stats.p99_ns)] {
        let shown = [before, after].map(|ns| Span(ns.into()).to_string());
        let percent = percent(before as f64, after as f64);
        line.right(9, &*shown[0]).right(9, &*shown[1]).right(7, &*percent);
    }
    let rates = [before, after].map(|rated| rated.stalled_ns_per_s);
    let shown = rates.map(|rate| rate.map(|ns| span(ns).to_string()));
    let percent = percent(rates[0].unwrap_or_default(), rates[1].unwrap_or_default());
    line.right(9, shown[0].as_deref()).right(9, shown[1].as_deref()).right(7, &*percent);
    line.left(0, name).end();
}

/// By how much it has grown.
fn percent(before: f64, after: f64) -> String {
    match () {
        () if before <= 0.0 && after <= 0.0 => "-".to_owned(),
        () if before <= 0.0 => "new".to_owned(),
        () if after <= 0.0 => "gone".to_owned(),
        () if after / before >= 10.0 => format!("x{:.0}", after / before),
        // Nothing less is not shown as less.
        () => format!("{:+.0}%", ((after / before - 1.0) * 100.0).round() + 0.0),
    }
}
