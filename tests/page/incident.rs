//! A recording of an incident that never was, with hostile names among those that were held up.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

use anyhow::Result;
use memtrace::{
    cgroup::Cgroups,
    clock::WallClock,
    coverage::Coverage,
    kind::Kind,
    live::Event,
    names::{EnumNames, GfpNames, Names},
    recording::{Builder, Counts, End, Fired, Look, Meta, Note, Recording, file, meta::timestamp},
    scope::{Oom, Parts, Scope},
    stall::{Cause, Comm, Compaction, Detail, Reclaim, ReclaimKind, Stall, Zone},
    symbols::{Frame, Symbols},
};
use memtrace_common::record::part;

const SECOND: u64 = 1_000_000_000;
/// When `CLOCK_MONOTONIC` was zero: 2026-03-01 11:00:00 UTC.
const EPOCH_NS: i64 = 1_772_362_800_000_000_000;
/// When the recording begins.
const BEGIN_NS: u64 = 3600 * SECOND;

/// What would be elements if names were HTML.
pub const HOSTILE: [&str; 3] = ["<img src=x>", "</script><b>", "<!--<script>"];

/// The path of a cgroup that would do more.
const HOSTILE_PATH: &str = "/\"><img src=x onerror=\"document.title='owned'\"></script>\u{202e}";

const FUNCTIONS: [&str; 8] = [
    "shrink_folio_list",
    "shrink_lruvec",
    "shrink_node",
    "do_try_to_free_pages",
    "try_to_free_pages",
    "__alloc_pages_slowpath",
    "alloc_pages_mpol",
    "folio_alloc",
];

const THREADS: [&str; 6] =
    ["postgres", "java", "kworker/u8:3", "nginx", "redis-server", "containerd"];

/// What was put into the recording.
#[derive(Debug, Default)]
pub struct Told {
    /// How many stalls.
    pub stalls: u64,
    /// Nanoseconds of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Nanoseconds of each thread.
    pub threads: BTreeMap<u32, u64>,
    /// Nanoseconds throttled, scanning and in a shrinker.
    pub parts_ns: [u64; 3],
    /// The longest, in nanoseconds.
    pub longest_ns: u64,
}

/// Numbers that look like chance and are the same every time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Writes a recording of so many seconds, with about so many stalls in the worst of them.
pub fn record(path: &Path, seconds: u64, worst: u64) -> Result<(Recording, Told)> {
    let (mut chance, mut told, mut names) = (Chance(1), Told::default(), names());
    let mut bytes = file::header(&meta(BEGIN_NS + seconds * 3 / 4 * SECOND));
    let (mut builder, mut number) = (Builder::new(EPOCH_NS, true), 0);
    let mut block = Vec::new();
    for second in 0..seconds {
        let begin_ns = BEGIN_NS + second * SECOND;
        // It begins in the second quarter, and gets worse until the third is over.
        let severity = (second * 4 / seconds == 1 || second * 4 / seconds == 2)
            .then(|| (second - seconds / 4) * 100 / (seconds / 2).max(1) + 1);
        let count = severity.map_or(chance.below(3), |severity| worst * severity / 100 + 1);
        for n in 0..count {
            let start_ns = begin_ns + n * SECOND / count;
            for event in stall(start_ns, severity.unwrap_or(0), &mut chance, &mut told) {
                builder.event(&event, &mut names);
            }
        }
        // One kill as it begins, and many as it ends.
        let kills = if second == seconds * 3 / 4 { 20 } else { u64::from(second == seconds / 4) };
        for n in 0..kills {
            builder.event(&Event::Oom(oom(begin_ns + n * SECOND / 25)), &mut names);
        }
        builder.note(&Note::Look(look(begin_ns, severity.unwrap_or(0), &mut chance)));
        if second + 1 == seconds {
            builder.note(&Note::End(End {
                at_ns: EPOCH_NS.saturating_add_unsigned(begin_ns + SECOND),
                duration_ns: seconds * SECOND,
                counts: Counts { lost: 17, ..Counts::default() },
                ..End::default()
            }));
        }
        if builder.is_full() || second + 1 == seconds {
            let (raw, span) = builder.finish(EPOCH_NS);
            file::block(raw, number, span, &mut block);
            bytes.extend_from_slice(&block);
            number += 1;
        }
    }
    fs::write(path, &bytes)?;
    Ok((Recording::open(File::open(path)?)?, told))
}

fn stall(start_ns: u64, severity: u64, chance: &mut Chance, told: &mut Told) -> Vec<Event> {
    let which = chance.below(THREADS.len() as u64 * 4);
    let number = usize::try_from(which).unwrap_or_default();
    let name = HOSTILE.get(number).copied().unwrap_or(THREADS[number % THREADS.len()]);
    let tid = 1000 + u32::try_from(which * 40 + chance.below(40)).unwrap_or_default();
    // Most are short, some are very long.
    let doublings = chance.below(6) + chance.below(4) + severity / 14;
    let duration_ns = (20_000 + chance.below(20_000)) << doublings;
    let kind = chance.below(10);
    let (kind_name, detail) = match kind {
        0..=4 => ("direct", reclaim(ReclaimKind::Direct)),
        5..=7 => ("memcg-max", reclaim(ReclaimKind::Memcg)),
        _ => ("compaction", compaction()),
    };
    told.stalls += 1;
    *told.kinds.entry(kind_name).or_default() += duration_ns;
    *told.threads.entry(tid).or_default() += duration_ns;
    told.longest_ns = told.longest_ns.max(duration_ns);
    let order = if kind > 7 { 9 } else { i32::from(kind == 4) };
    let mut parts = Parts { shrinkers: vec![(0x9000, duration_ns / 10)], ..Parts::default() };
    parts.ns[part::THROTTLED] = duration_ns / 2;
    parts.ns[part::SCAN] = duration_ns - duration_ns / 10 - duration_ns / 2;
    let parts_ns = [parts.ns[part::THROTTLED], parts.ns[part::SCAN], duration_ns / 10];
    for (sum, ns) in told.parts_ns.iter_mut().zip(parts_ns) {
        *sum += ns;
    }
    let depth = 3 + chance.below(5);
    let stall = Stall {
        start_ns,
        duration_ns,
        pid: 1000 + u32::try_from(which).unwrap_or_default(),
        tid,
        uid: 1000,
        cpu: u32::try_from(chance.below(8)).unwrap_or_default(),
        comm: comm(name),
        order: Some(order),
        gfp: Some(0xcc0),
        cgroup_id: Some(70 + which % 4),
        detail,
        stack: (0..depth).map(|at| 0x1000 + at * 0x100).collect(),
        user_stack: Vec::new(),
    };
    let Stall { pid, uid, cpu, comm, cgroup_id, .. } = stall;
    let callers = Vec::new();
    let scope =
        Scope { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, parts, callers };
    vec![Event::Stall(stall), Event::Scope(scope)]
}

fn reclaim(kind: ReclaimKind) -> Detail {
    Detail::Reclaim(Reclaim {
        kind,
        limit: None,
        nr_scanned: Some(64),
        nr_reclaimed: 32,
        compaction_ready: false,
        priority: Some(12),
        target_cgroup_id: (kind == ReclaimKind::Memcg).then_some(71),
        free_pages: Some(20_000),
        node: None,
    })
}

fn compaction() -> Detail {
    Detail::Compaction(Compaction {
        cause: Cause::Direct,
        zone: Some(Zone { node: 0, name: "Normal".to_owned() }),
        mode: Some(0),
        status: 0,
        scanned: None,
        watermarks: None,
        frag_index: None,
    })
}

fn oom(at_ns: u64) -> Oom {
    Oom {
        at_ns,
        pid: 1001,
        tid: 1040,
        uid: 1000,
        comm: comm("java"),
        cgroup_id: Some(71),
        victim_pid: 1003,
        victim_comm: Some(comm(HOSTILE[0])),
        victim_cgroup_id: Some(71),
        stack: Vec::new(),
        user_stack: Vec::new(),
    }
}

fn look(at_ns: u64, severity: u64, chance: &mut Chance) -> Look {
    let (some, full) = (severity * 80 / 100, severity * 55 / 100);
    let free = |pages: u64, low: u64| (pages * (105 - severity.min(100)) / 100).max(low * 8 / 10);
    let zone = |name: &str, free: u64, min: u64| {
        let (low, high) = (min * 5 / 4, min * 3 / 2);
        format!(
            "Node 0, zone {name:>8}\n  pages free     {free}\n        min      {min}\n        low      {low}\n        high     {high}\n"
        )
    };
    let noise = chance.below(500);
    let normal = free(900_000, 16_000) + noise;
    let zones = [
        zone("DMA", 3840, 68),
        zone("DMA32", free(400_000, 14_000) + noise, 11_000),
        zone("Normal", normal, 13_000),
    ];
    let files = [
        (
            "/proc/pressure/memory",
            format!(
                "some avg10={some}.{:02} avg60=0.00 avg300=0.00 total=1\nfull avg10={full}.50 avg60=0.00 avg300=0.00 total=1\n",
                noise % 100
            ),
        ),
        (
            "/proc/meminfo",
            format!(
                "MemTotal: 8000000 kB\nMemFree: {} kB\nMemAvailable: {} kB\n",
                normal * 4,
                normal * 5
            ),
        ),
        ("/proc/zoneinfo", zones.concat()),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text)).into();
    let of_cgroup = [
        ("memory.current", "1048576\n".to_owned()),
        ("memory.events", format!("max {}\n", at_ns / SECOND * 10)),
    ];
    let cgroups = [(72, of_cgroup.map(|(name, text)| (name.to_owned(), text)).into())].into();
    Look { at_ns, files, cgroups, ..Look::default() }
}

fn comm(name: &str) -> Comm {
    let mut bytes = [0; Comm::LEN];
    let len = name.len().min(Comm::LEN - 1);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    Comm::new(bytes)
}

/// Of a recording whose trigger fired then, by `CLOCK_MONOTONIC`.
fn meta(fired_ns: u64) -> Meta {
    let mut coverage = Coverage::of(&Kind::ALL);
    coverage.lacks(Kind::Swapin, "no function `psi_memstall_enter`");
    let mut meta = Meta {
        memtrace: "0.1.0".to_owned(),
        host: "db1.example<i>".to_owned(),
        kernel: "6.12.57-amd64".to_owned(),
        boot: "0e3dcb37-97cc-4f4e-8f2c-92bd4a1d5f5e".to_owned(),
        cpus: 8,
        page_size: 4096,
        what: "all kinds of stalls of all processes".to_owned(),
        began_ns: EPOCH_NS.saturating_add_unsigned(BEGIN_NS),
        scopes: true,
        stacks: true,
        throttles: [(0, "writeback"), (1, "isolated")].map(|(n, it)| (n, it.to_owned())).into(),
        trigger: Some(Fired {
            trigger: "latency>2s or oom".to_owned(),
            cause: "OOM kill of <img src=x> (pid 1003)".to_owned(),
            at_ns: EPOCH_NS.saturating_add_unsigned(fired_ns),
            at_monotonic_ns: fired_ns,
        }),
        ..Meta::default()
    };
    meta.set_coverage(&coverage);
    meta
}

fn names() -> Names {
    let functions = (0_u64..).zip(FUNCTIONS);
    let functions = functions
        .map(|(at, name)| (0x1000 + at * 0x100, Frame::of_function(name, 0x40)))
        .chain([(0x9000, Frame::of_function("super_cache_scan", 0))]);
    Names {
        gfp: GfpNames::default(),
        modes: EnumNames::default(),
        statuses: EnumNames::default(),
        throttles: EnumNames::default(),
        cgroups: Cgroups::from_paths([
            (70, "/system.slice/postgresql.service".to_owned()),
            (71, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f3a.slice/cri-containerd-5d1.scope".to_owned()),
            (72, HOSTILE_PATH.to_owned()),
            (73, "/user.slice".to_owned()),
        ]),
        clock: WallClock::from_epoch(timestamp(EPOCH_NS)),
        symbols: Symbols::from_frames(functions),
        page_size: 4096,
    }
}
