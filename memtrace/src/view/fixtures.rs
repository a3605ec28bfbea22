//! Stalls and names that the views' tests share.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use memtrace_common::record::part;

use super::{Format, HistogramOptions, Judged, Subject, View, ViewOptions};
use crate::cgroup::Cgroups;
use crate::clock::WallClock;
use crate::episode::{Episode, Episodes};
use crate::histogram::By;
use crate::names::{EnumNames, GfpNames, Names};
use crate::scope::{Oom, Parts, Scope};
use crate::stall::{
    Cause, Comm, Compaction, Detail, Limit, Reclaim, ReclaimKind, Scanned, Stall, Watermarks, Zone,
};
use crate::symbols::{Frame, Symbols};
use crate::verdict::{Evidence, Verdict};

/// A process that cannot be: pids end one below.
pub const NO_PID: u32 = 4_194_304;

/// Escape sequence, quotes, backslash, line break, not UTF-8, emoji.
pub const HOSTILE: &[u8] = b"\x1b[2J\"'\\\n\xff\xf0\x9f\x92\xa9";

pub fn comm(name: &[u8]) -> Comm {
    let mut bytes = [0; Comm::LEN];
    bytes[..name.len()].copy_from_slice(name);
    Comm::new(bytes)
}

pub fn reclaim() -> Stall {
    Stall {
        start_ns: 5_123_456_789,
        duration_ns: 1_234_567,
        pid: 1234,
        tid: 1240,
        uid: 1000,
        cpu: 3,
        comm: comm(b"postgres"),
        order: Some(0),
        gfp: Some(0x140_cca),
        cgroup_id: Some(70),
        detail: Detail::Reclaim(Reclaim {
            kind: ReclaimKind::Memcg,
            limit: None,
            nr_scanned: Some(64),
            nr_reclaimed: 37,
            compaction_ready: false,
            priority: Some(11),
            target_cgroup_id: Some(71),
            free_pages: Some(21565),
            node: None,
        }),
        stack: vec![0x1f, 0x2a],
        user_stack: vec![0x3b],
    }
}

pub fn compaction() -> Stall {
    Stall {
        order: Some(9),
        comm: comm(b"summ"),
        detail: Detail::Compaction(Compaction {
            cause: Cause::Direct,
            zone: Some(Zone { node: 1, name: "Normal".to_owned() }),
            mode: Some(1),
            status: 6,
            scanned: Some(Scanned { migrate: 1234, free: 5678 }),
            watermarks: Some(Watermarks { min: 11284, low: 14105, high: 16926, free: 14193 }),
            frag_index: Some(728),
        }),
        ..reclaim()
    }
}

/// Direct reclaim and compaction for one allocation, all of whose time is accounted for.
pub fn episode() -> Episode {
    let mut episodes = Episodes::new(u64::MAX, true);
    let mut first = Stall { order: Some(9), ..reclaim() };
    if let Detail::Reclaim(reclaim) = &mut first.detail {
        reclaim.limit = Some(Limit::High);
    }
    let second = Stall { start_ns: first.start_ns + first.duration_ns + 9, ..compaction() };
    for (at, stall) in [(0, first), (1, second)] {
        let Stall { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, .. } = stall;
        let mut parts = Parts { shrinkers: vec![(0x1f, 1_000)], ..Parts::default() };
        parts.ns[part::THROTTLED] = 200_000;
        parts.ns[part::SCAN + at] = duration_ns - 201_000;
        let callers = Vec::new();
        episodes.round(stall);
        let scope =
            Scope { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, parts, callers };
        episodes.scope(scope, &mut names().symbols);
    }
    episodes.end();
    let mut episode = episodes.next_finished().expect("they are one");
    episode.verdict = Some(Verdict::Slow);
    episode.target_verdict = Some(Verdict::Hopeless);
    episode
}

/// A memstall section of which next to nothing is known.
pub fn unknown_episode() -> Episode {
    let mut episodes = Episodes::new(0, true);
    let Stall { start_ns, duration_ns, pid, tid, uid, cpu, comm, .. } = reclaim();
    let (parts, callers) = (Parts::default(), Vec::new());
    let scope =
        Scope { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id: None, parts, callers };
    episodes.scope(scope, &mut names().symbols);
    let mut episode = episodes.next_finished().expect("it has ended");
    episode.parts = None;
    episode
}

pub fn oom() -> Oom {
    Oom {
        at_ns: 5_123_456_789,
        pid: 1234,
        tid: 1240,
        uid: 1000,
        comm: comm(b"postgres"),
        cgroup_id: Some(70),
        victim_pid: 99,
        victim_comm: Some(comm(HOSTILE)),
        victim_cgroup_id: Some(71),
        stack: Vec::new(),
        user_stack: Vec::new(),
    }
}

pub fn judged(target: u64, verdict: Option<Verdict>) -> Judged {
    let evidence =
        Evidence { rounds: 12, stalled_ns: 1_500_000_000, scanned: 3000, ..Evidence::default() };
    Judged { target, at_ns: 6_000_000_000, verdict, evidence }
}

/// All that a view shows of these.
pub fn shown_episodes(options: ViewOptions, all: &[Episode]) -> String {
    let (mut view, mut names, mut out) = (View::new(options), names(), Vec::new());
    view.begin(at(0), &mut out);
    for episode in all {
        view.episode(episode, &mut names, &mut out);
    }
    view.oom(&oom(), &mut names, &mut out);
    view.verdict(&judged(71, Some(Verdict::Hopeless)), &mut names, &mut out);
    view.verdict(&judged(0, None), &mut names, &mut out);
    view.interval(&mut names, at(10), &mut out);
    String::from_utf8(out).expect("views show UTF-8")
}

/// Nothing known that may be unknown.
pub fn unknown(stall: Stall) -> Stall {
    let detail = match stall.detail {
        Detail::Reclaim(reclaim) => Detail::Reclaim(Reclaim {
            nr_scanned: None,
            priority: None,
            target_cgroup_id: None,
            free_pages: None,
            node: None,
            ..reclaim
        }),
        Detail::Compaction(compaction) => Detail::Compaction(Compaction {
            zone: None,
            mode: None,
            status: -1,
            scanned: None,
            watermarks: None,
            frag_index: None,
            ..compaction
        }),
    };
    Stall {
        order: None,
        gfp: None,
        cgroup_id: None,
        stack: Vec::new(),
        user_stack: Vec::new(),
        detail,
        ..stall
    }
}

/// Every number as great as it can be, and every text hostile.
pub fn extreme(stall: Stall) -> Stall {
    let detail = match stall.detail {
        Detail::Reclaim(reclaim) => Detail::Reclaim(Reclaim {
            nr_scanned: Some(u64::MAX),
            nr_reclaimed: u64::MAX,
            priority: Some(i32::MIN),
            target_cgroup_id: Some(u64::MAX),
            free_pages: Some(u64::MAX),
            node: Some(i32::MIN),
            ..reclaim
        }),
        Detail::Compaction(compaction) => Detail::Compaction(Compaction {
            zone: Some(Zone { node: i32::MIN, name: "\u{1b}[2J".to_owned() }),
            mode: Some(u32::MAX),
            status: i32::MIN,
            scanned: Some(Scanned { migrate: u64::MAX, free: u64::MAX }),
            watermarks: Some(Watermarks {
                min: u64::MAX,
                low: u64::MAX,
                high: u64::MAX,
                free: u64::MAX,
            }),
            frag_index: Some(i32::MIN),
            ..compaction
        }),
    };
    Stall {
        start_ns: u64::MAX,
        duration_ns: u64::MAX,
        pid: u32::MAX,
        tid: u32::MAX,
        uid: u32::MAX,
        cpu: u32::MAX,
        comm: comm(HOSTILE),
        order: Some(i32::MIN),
        gfp: Some(u32::MAX),
        cgroup_id: Some(72),
        detail,
        stack: vec![u64::MAX],
        user_stack: vec![u64::MAX],
    }
}

/// The path of cgroup 72: 4 KiB and hostile.
pub fn hostile_path() -> String {
    format!("/\u{1b}[2J\n{}", "é".repeat(2045))
}

pub fn at(seconds: i64) -> Timestamp {
    let noon: Timestamp = "2026-03-01T12:00:00Z".parse().expect("a time");
    noon + SignedDuration::from_secs(seconds)
}

pub fn names() -> Names {
    let named =
        |names: &[&str]| EnumNames((0..).zip(names.iter().map(|&name| name.to_owned())).collect());
    Names {
        gfp: GfpNames(vec![
            (0x140_cca, "GFP_HIGHUSER_MOVABLE".to_owned()),
            (0xcc0, "GFP_KERNEL".to_owned()),
            (0x4_0000, "__GFP_COMP".to_owned()),
        ]),
        modes: named(&["async", "sync_light", "sync"]),
        throttles: named(&["writeback", "isolated", "noprogress", "congested"]),
        statuses: named(&[
            "not_suitable_zone",
            "skipped",
            "deferred",
            "no_suitable_page",
            "continue",
            "complete",
            "partial_skipped",
            "contended",
            "success",
        ]),
        cgroups: Cgroups::from_paths([
            (70, "/system.slice/pg.service".to_owned()),
            (71, "/system.slice".to_owned()),
            (72, hostile_path()),
        ]),
        clock: WallClock::from_epoch(at(0)),
        symbols: Symbols::from_frames([
            (0x1f, Frame::of_function("do_try_to_free_pages", 0x1f)),
            (0x2a, Frame::of_function("try_charge_memcg", 0x2a)),
        ]),
        page_size: 4096,
    }
}

pub fn options(subject: Subject, format: Format) -> ViewOptions {
    ViewOptions {
        subject,
        format,
        histogram: None,
        folded: None,
        timestamp: false,
        zone: TimeZone::fixed(Offset::constant(2)),
        uid: false,
        extended: false,
        stacks: false,
        user_stacks: false,
        quiet: false,
    }
}

pub fn histograms(by: By, format: Format) -> ViewOptions {
    let histogram = Some(HistogramOptions { by, max_keys: 2 });
    ViewOptions { histogram, ..options(Subject::Reclaim, format) }
}

/// All that a view shows of `stalls`, up to the end of the first interval.
pub fn shown(options: ViewOptions, stalls: &[Stall]) -> String {
    let (mut view, mut names, mut out) = (View::new(options), names(), Vec::new());
    view.begin(at(0), &mut out);
    for stall in stalls {
        view.stall(stall, &mut names, &mut out);
    }
    view.interval(&mut names, at(10), &mut out);
    String::from_utf8(out).expect("views show UTF-8")
}
