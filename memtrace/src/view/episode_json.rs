//! JSON of `stalls`: an object for each episode and each OOM kill, and one for what was watched.

use std::io;

use jiff::Timestamp;
use serde::Serialize;

use super::json::{Json, Object, Time, line};
use super::words::status_name;
use super::{Certificate, Judged, parts};
use crate::coverage::Coverage;
use crate::episode::Episode;
use crate::kind::Kind;
use crate::names::Names;
use crate::owner::Owner;
use crate::scope::{Oom, Parts};
use crate::stall::Comm;

impl Json {
    pub(super) fn episode(
        &mut self,
        episode: &Episode,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let mut object = Object::begin(out);
        object.text("type", b"stall".as_slice())?;
        self.time(names.clock.at(episode.start_ns), object.key("time"))?;
        object.entry("start_ns", episode.start_ns)?;
        object.entry("end_ns", episode.end_ns)?;
        object.entry("duration_ns", episode.duration_ns)?;
        object.text("comm", episode.comm.as_bytes())?;
        object.entry("pid", episode.pid)?;
        object.entry("tid", episode.tid)?;
        object.entry("uid", episode.uid)?;
        object.entry("cpu", episode.cpu)?;
        object.text("kind", episode.kind.name().as_bytes())?;
        let kinds = episode.kinds();
        let kinds: serde_json::Map<_, _> =
            kinds.into_iter().map(|(kind, ns)| (kind.name().to_owned(), ns.into())).collect();
        object.entry("kinds", kinds)?;
        object.entry("rounds", RoundsObject::of(episode))?;
        object.entry("order", episode.order)?;
        self.gfp(episode.gfp, &names.gfp, object.key("gfp"))?;
        object.entry("cgroup_id", episode.cgroup_id)?;
        let path = episode.cgroup_id.and_then(|id| names.cgroups.path(id));
        object.text("cgroup", path)?;
        object.entry("owner", path.and_then(Owner::of))?;
        let target_id = episode.target_cgroup_id.filter(|&id| id != 0);
        object.entry("target_cgroup_id", target_id)?;
        let path = target_id.and_then(|id| names.cgroups.path(id));
        object.text("target_cgroup", path)?;
        object.entry("target_owner", path.and_then(Owner::of))?;
        object.entry("verdict", episode.verdict)?;
        object.entry("target_verdict", episode.target_verdict)?;
        object.entry("nr_scanned", episode.nr_scanned)?;
        object
            .entry("nr_reclaimed", (episode.rounds.reclaim != 0).then_some(episode.nr_reclaimed))?;
        object.entry("priority", episode.priority)?;
        object.entry("free_pages", episode.free_pages)?;
        object.entry("node", episode.zone.as_ref().map(|zone| zone.node))?;
        object.text("zone", episode.zone.as_ref().map(|zone| zone.name.as_bytes()))?;
        object.entry("status", episode.status.map(|it| status_name(it, &names.statuses)))?;
        object.entry("parts", episode.parts.as_ref().map(|of| parts_map(of, names)))?;
        self.stacks(episode.pid, &episode.stack, &episode.user_stack, names, &mut object)?;
        object.end();
        Ok(())
    }

    pub(super) fn oom(
        &mut self,
        oom: &Oom,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let mut object = Object::begin(out);
        object.text("type", b"oom".as_slice())?;
        self.time(names.clock.at(oom.at_ns), object.key("time"))?;
        object.entry("at_ns", oom.at_ns)?;
        object.text("comm", oom.comm.as_bytes())?;
        object.entry("pid", oom.pid)?;
        object.entry("tid", oom.tid)?;
        object.entry("uid", oom.uid)?;
        object.entry("cgroup_id", oom.cgroup_id)?;
        let path = oom.cgroup_id.and_then(|id| names.cgroups.path(id));
        object.text("cgroup", path)?;
        object.entry("owner", path.and_then(Owner::of))?;
        object.entry("victim_pid", oom.victim_pid)?;
        object.text("victim_comm", oom.victim_comm.as_ref().map(Comm::as_bytes))?;
        object.entry("victim_cgroup_id", oom.victim_cgroup_id)?;
        let cgroup = oom.victim_cgroup_id.and_then(|id| names.cgroups.path(id));
        object.text("victim_cgroup", cgroup)?;
        object.entry("victim_owner", cgroup.and_then(Owner::of))?;
        self.stacks(oom.pid, &oom.stack, &oom.user_stack, names, &mut object)?;
        object.end();
        Ok(())
    }

    pub(super) fn verdict(
        &mut self,
        judged: &Judged,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let Judged { target, at_ns, verdict, evidence } = *judged;
        let target_id = Some(target).filter(|&id| id != 0);
        let mut object = Object::begin(out);
        object.text("type", b"verdict".as_slice())?;
        self.time(names.clock.at(at_ns), object.key("time"))?;
        object.entry("target_cgroup_id", target_id)?;
        let path = target_id.and_then(|id| names.cgroups.path(id));
        object.text("target_cgroup", path)?;
        object.entry("target_owner", path.and_then(Owner::of))?;
        object.entry("verdict", verdict)?;
        object.entry("rounds", evidence.rounds)?;
        object.entry("stalled_ns", evidence.stalled_ns)?;
        object.entry("nr_scanned", evidence.scanned)?;
        object.entry("nr_reclaimed", evidence.reclaimed)?;
        object.entry("refaulted_per_1000", evidence.refaulted_per_1000())?;
        object.entry("priority", evidence.priority)?;
        object.end();
        Ok(())
    }

    pub(super) fn coverage(
        coverage: &Coverage,
        at: Timestamp,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let not_watched = coverage.missing();
        let object = CoverageObject {
            r#type: "coverage",
            time: Time(at),
            watched: coverage.watched().map(Kind::name).collect(),
            not_watched: not_watched
                .map(|(kind, reason)| Missing { kind: kind.name(), reason })
                .collect(),
        };
        line(&object, out)
    }

    pub(super) fn certificate(
        certificate: &Certificate,
        at: Timestamp,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let Certificate { pid, longest_ns, duration, watched, not_seen_whole, filtered, has_ended } =
            *certificate;
        let object = CertificateObject {
            r#type: "certificate",
            time: Time(at),
            pid,
            longest_ns: (longest_ns != 0).then_some(longest_ns),
            duration_ns: duration.as_nanos(),
            watched,
            kinds: Kind::ALL.len(),
            not_seen_whole,
            filtered,
            has_ended,
        };
        line(&object, out)
    }
}

/// Nanoseconds by the part's name.
fn parts_map(of: &Parts, names: &mut Names) -> serde_json::Map<String, serde_json::Value> {
    let mut map = serde_json::Map::new();
    for (part, ns) in of.sorted() {
        // Two shrinkers may have the same name.
        let sum = map.entry(parts::name(part, names)).or_insert_with(|| 0.into());
        *sum = sum.as_u64().unwrap_or(0).saturating_add(ns).into();
    }
    map
}

#[derive(Serialize)]
struct RoundsObject {
    reclaim: u64,
    compaction: u64,
    other: u64,
}

impl RoundsObject {
    fn of(episode: &Episode) -> Self {
        let rounds = episode.rounds;
        Self { reclaim: rounds.reclaim, compaction: rounds.compaction, other: rounds.other }
    }
}

#[derive(Serialize)]
struct CoverageObject<'a> {
    r#type: &'static str,
    time: Time,
    watched: Vec<&'static str>,
    not_watched: Vec<Missing<'a>>,
}

#[derive(Serialize)]
struct CertificateObject {
    r#type: &'static str,
    time: Time,
    pid: u32,
    longest_ns: Option<u64>,
    duration_ns: u128,
    watched: usize,
    kinds: usize,
    not_seen_whole: u64,
    filtered: bool,
    has_ended: bool,
}

#[derive(Serialize)]
struct Missing<'a> {
    kind: &'static str,
    reason: &'a str,
}
