//! Exports of recordings, read by others than memtrace: Perfetto's own messages, HdrHistogram in Python, and Python's
//! readers of CSV and XML. What they find is compared with a sum over the stalls, one by one.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::{BufWriter, ErrorKind, Write},
    path::Path,
    process::Command,
    rc::Rc,
    sync::atomic::AtomicU64,
};

use anyhow::{Context as _, Result, ensure};
use memtrace::{
    cgroup::Cgroups,
    clock::WallClock,
    live::Event,
    names::{EnumNames, GfpNames, Names},
    recording::{Block, Builder, Look, Meta, Note, Recording, Told, file},
    report::{self, LeftOut},
    scope::{Oom, Parts, Scope},
    stall::{
        Cause, Comm, Compaction, Detail, Limit, Reclaim, ReclaimKind, Scanned, Stall, Watermarks,
        Zone,
    },
    symbols::{Frame, Symbols},
    view::flame,
};
use memtrace_common::record::part;
use serde_json::{Value, json};
use tests::host::TempDir;

const MILLI: u64 = 1_000_000;
/// Names of threads, none of them harmless.
const COMMS: [&[u8]; 4] = [b"post\"gres,\n;x", b"</script>", b"caf\xc3\\xff\r", b"=1+1"];
/// Their processes and ids.
const THREADS: [(u32, u32); 4] = [(100, 100), (100, 101), (200, 200), (300, 301)];
const PARTS: [(&str, usize); 11] = [
    ("scan", part::SCAN),
    ("compaction", part::COMPACTION),
    ("blocked", part::BLOCKED),
    ("waiting", part::WAITING),
    ("throttled:pfmemalloc", part::PFMEMALLOC),
    ("throttled:writeback", part::THROTTLED),
    ("throttled:isolated", part::THROTTLED + 1),
    ("throttled:noprogress", part::THROTTLED + 2),
    ("throttled:congested", part::CONGESTED),
    ("other", part::OTHER),
    ("shrink:others", part::SHRINKERS),
];
const FUNCTIONS: [(u64, &str); 5] = [
    (0x1f, "do_try_to_free_pages"),
    (0x2a, "f\"oo,<&>"),
    (0x3b, "folio_wait_bit_common"),
    (0x4c, "super_cache_scan"),
    (0x5d, "shadow=scan"),
];

fn comm(name: &[u8]) -> Comm {
    let mut bytes = [0; Comm::LEN];
    bytes[..name.len()].copy_from_slice(name);
    Comm::new(bytes)
}

fn names() -> Names {
    let mut cgroups = Cgroups::from_paths([(70, "/a,b/\"c\"\n;d".to_owned())]);
    cgroups.learn(71, Some(b"/x\xff\\xff".to_vec()));
    cgroups.learn(72, None);
    let frames = FUNCTIONS.map(|(address, name)| (address, Frame::of_function(name, address)));
    let mut symbols = Symbols::from_frames(frames);
    for (pid, _) in THREADS {
        let frames = ["alloc<T>", "main"].map(|name| Rc::new(Frame::of_function(name, 7)));
        symbols.learn_user(pid, &[0x1000, 0x2000], &frames);
    }
    Names {
        gfp: GfpNames::default(),
        modes: EnumNames::default(),
        statuses: EnumNames::default(),
        throttles: EnumNames::default(),
        cgroups,
        clock: WallClock::now(),
        symbols,
        page_size: 4096,
    }
}

fn meta(host: &str, boot: &str, scopes: bool) -> Meta {
    let throttles = ["writeback", "isolated", "noprogress", "congested"];
    Meta {
        host: host.to_owned(),
        boot: boot.to_owned(),
        began_ns: 7,
        scopes,
        throttles: (0..).zip(throttles.map(str::to_owned)).collect(),
        ..Meta::default()
    }
}

/// Numbers that look like chance, the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Makes blocks of stalls, which of one thread do not overlap.
struct Maker {
    epoch_ns: i64,
    scopes: bool,
    chance: Chance,
    /// How many stalls there were.
    count: u64,
    /// How long all of them lasted.
    total_ns: u64,
}

/// A block's bytes, with the times of its first and last event.
type Raw = (Vec<u8>, (u64, u64));

impl Maker {
    fn new(epoch_ns: i64, scopes: bool) -> Self {
        Self { epoch_ns, scopes, chance: Chance(42), count: 0, total_ns: 0 }
    }

    fn block(&mut self, notes: &[Note], oom: Option<Oom>) -> Raw {
        let (mut builder, mut names) = (Builder::new(self.epoch_ns, self.scopes), names());
        for note in notes {
            builder.note(note);
        }
        for _ in 0..100 {
            self.stall(&mut builder, &mut names);
        }
        if let Some(oom) = oom {
            builder.event(&Event::Oom(oom), &mut names);
        }
        builder.release(&mut names);
        let (raw, span) = builder.finish(self.epoch_ns);
        (raw.to_vec(), span)
    }

    fn stall(&mut self, builder: &mut Builder, names: &mut Names) {
        let at = self.count;
        let start_ns = 1_000_000 * MILLI + at * 20 * MILLI + self.chance.below(MILLI);
        let duration_ns = 1000 + self.chance.below(70 * MILLI);
        self.count += 1;
        self.total_ns += duration_ns;
        let thread = usize::try_from(at % 4).expect("it is small");
        let stack = [&[0x1f, 0x2a][..], &[0x2a], &[]][usize::try_from(at % 3).expect("small")];
        let stall = Stall {
            start_ns,
            duration_ns,
            pid: THREADS[thread].0,
            tid: THREADS[thread].1,
            uid: 1000,
            cpu: u32::try_from(self.chance.below(64)).expect("it is small"),
            comm: comm(COMMS[thread]),
            order: (!at.is_multiple_of(7)).then_some(3),
            gfp: Some(1),
            cgroup_id: [None, Some(70), Some(71), Some(72)][thread],
            detail: self.detail(at),
            stack: stack.to_vec(),
            user_stack: if at.is_multiple_of(2) { vec![0x1000, 0x2000] } else { Vec::new() },
        };
        if !self.scopes {
            return builder.event(&Event::Stall(stall), names);
        }
        let Stall { pid, tid, uid, cpu, comm, cgroup_id, .. } = stall;
        if !at.is_multiple_of(5) {
            let inside = [
                (start_ns + 10, duration_ns / 3, stall.detail.clone()),
                (start_ns + duration_ns / 2, duration_ns / 4, self.detail(at + 1)),
            ];
            for (start_ns, duration_ns, detail) in inside {
                let round = Stall { start_ns, duration_ns, detail, ..stall.clone() };
                builder.event(&Event::Stall(round), names);
            }
        }
        let parts = self.parts(duration_ns);
        let callers = vec![0x3b];
        let scope =
            Scope { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, parts, callers };
        builder.event(&Event::Scope(scope), names);
    }

    fn detail(&mut self, at: u64) -> Detail {
        if at.is_multiple_of(3) {
            return Detail::Compaction(Compaction {
                cause: if at.is_multiple_of(2) { Cause::Direct } else { Cause::Kcompactd },
                zone: at.is_multiple_of(2).then(|| Zone { node: 1, name: "Nor\"mal".to_owned() }),
                mode: Some(1),
                status: 6,
                scanned: Some(Scanned { migrate: 12, free: 34 }),
                watermarks: Some(Watermarks { min: 1, low: 2, high: 3, free: 4 }),
                frag_index: Some(-1000),
            });
        }
        let (kind, limit, target) = match at % 4 {
            0 => (ReclaimKind::Direct, None, 0),
            1 => (ReclaimKind::Memcg, Some(Limit::High), 71),
            2 => (ReclaimKind::Memcg, Some(Limit::Max), 72),
            _ => (ReclaimKind::Proactive, None, 70),
        };
        Detail::Reclaim(Reclaim {
            kind,
            limit,
            nr_scanned: Some(64),
            nr_reclaimed: self.chance.below(1000),
            compaction_ready: false,
            priority: Some(11),
            target_cgroup_id: Some(target),
            free_pages: Some(1),
            node: None,
        })
    }

    /// Parts that are the whole together, those of some shrinkers among them.
    fn parts(&mut self, whole_ns: u64) -> Parts {
        let mut parts = Parts::default();
        let mut left_ns = whole_ns;
        for index in (0..part::COUNT).filter(|index| *index != part::SCAN) {
            let ns = self.chance.below(left_ns / 4 + 1);
            parts.ns[index] = ns;
            left_ns -= ns;
        }
        for address in [0x4c, 0x5d].into_iter().take(usize::from(whole_ns.is_multiple_of(2)) + 1) {
            let ns = self.chance.below(left_ns / 2 + 1);
            parts.shrinkers.push((address, ns));
            left_ns -= ns;
        }
        parts.ns[part::SCAN] = left_ns;
        parts
    }
}

/// A recording of these blocks by their numbers, some of them damaged.
fn recording(
    dir: &Path,
    meta: &Meta,
    blocks: &[(u64, &Raw)],
    damaged: &[u64],
) -> Result<Recording> {
    let path = dir.join("recording");
    let mut bytes = file::header(meta);
    let mut block = Vec::new();
    for &(number, (raw, span)) in blocks {
        file::block(raw, number, *span, &mut block);
        if damaged.contains(&number)
            && let Some(last) = block.last_mut()
        {
            *last ^= 1;
        }
        bytes.extend_from_slice(&block);
    }
    fs::write(&path, &bytes)?;
    let recording = Recording::open(File::open(&path)?)?;
    fs::remove_file(&path)?;
    Ok(recording)
}

fn look(at_ns: u64, free: u64) -> Note {
    let files = [
        (
            "/proc/zoneinfo",
            format!("Node 0, zone   Normal\n  pages free     {free}\n        min  9\n"),
        ),
        ("/proc/meminfo", format!("MemFree: 1 kB\nMemAvailable:    {free} kB\n")),
        (
            "/proc/pressure/memory",
            "some avg10=12.50 avg60=1 total=1\nfull avg10=0.25 x\n".to_owned(),
        ),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text)).into();
    Note::Look(Look { at_ns, files, ..Look::default() })
}

fn oom(at_ns: u64) -> Oom {
    Oom {
        at_ns,
        pid: 100,
        tid: 101,
        uid: 0,
        comm: comm(b"asks"),
        cgroup_id: Some(70),
        victim_pid: 300,
        victim_comm: Some(comm(b"victim")),
        victim_cgroup_id: None,
        stack: vec![0x1f],
        user_stack: Vec::new(),
    }
}

/// Recordings of two hosts, one of them in two files that have much in common, and what is in them.
struct Made {
    dir: TempDir,
    recordings: Vec<Recording>,
    expected: Value,
}

impl Made {
    fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        let epoch_ns = 1_770_000_000_000_000_123;
        let mut maker = Maker::new(epoch_ns, true);
        let at_ns = |n: u64| 1_000_000 * MILLI + n * MILLI;
        let first: Vec<_> = (0..6)
            .map(|n| {
                let notes = [look(at_ns(n), 1000 + n)];
                maker.block(&notes, (n == 2).then(|| oom(at_ns(7))))
            })
            .collect();
        let numbered: Vec<_> = (0..).zip(&first).collect();
        let one = meta("host \"a\", <b>\n", "b1", true);
        // In each a block is damaged that the other has.
        let a = recording(dir.path(), &one, &numbered, &[2])?;
        let b = recording(dir.path(), &one, &numbered[1..5], &[3])?;

        // It booted earlier, and its processes have the same ids. A block of it is lost.
        let other_epoch_ns = epoch_ns - 1_000_000_000_000;
        let mut other = Maker::new(other_epoch_ns, false);
        let second: Vec<_> = (0..3).map(|_| other.block(&[], None)).collect();
        let numbered: Vec<_> = (0..).zip(&second).collect();
        let c = recording(dir.path(), &meta("b", "b2", false), &numbered, &[1])?;

        let mut stalls = Vec::new();
        let mut total_ns = 0;
        for (boot, scopes, blocks) in [(0, true, &first), (1, false, &second)] {
            for (number, (raw, _)) in blocks.iter().enumerate() {
                let block = Block::decode(raw)?;
                let host = if boot == 0 { &one.host } else { "b" };
                let mut told = Vec::new();
                block.told(scopes, |stall| {
                    told.push(expected(&block, boot, host, stall));
                    total_ns += stall.duration_ns;
                });
                if (boot, number) != (1, 1) {
                    stalls.extend(told);
                }
            }
        }
        ensure!(total_ns == maker.total_ns + other.total_ns, "no stall is missing in a block");
        ensure!(stalls.len() == 800);
        let kinds: BTreeSet<_> = stalls.iter().map(|stall| stall["kind"].to_string()).collect();
        ensure!(kinds.len() >= 6, "{kinds:?}");

        let time_ns = |n: u64| epoch_ns.saturating_add_unsigned(at_ns(n));
        let series = |value: fn(u64) -> Value| -> Value {
            (0..6).map(|n| json!([time_ns(n), value(n)])).collect()
        };
        let expected = json!({
            "stalls": stalls,
            "parts": PARTS[..10].iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "names": COMMS.len() + 1,
            "counters": {
                "free pages 0/Normal": series(|n| (1000 + n).into()),
                "MemAvailable": series(|n| ((1000 + n) * 1024).into()),
                "PSI memory some avg10": series(|_| 12.5.into()),
                "PSI memory full avg10": series(|_| 0.25.into()),
            },
            "kills": [[time_ns(7), 300, "victim", 100]],
        });
        Ok(Self { dir, recordings: vec![a, b, c], expected })
    }

    fn export(
        &self,
        name: &str,
        write: impl FnOnce(&[Recording], &AtomicU64, &mut dyn Write) -> std::io::Result<LeftOut>,
    ) -> Result<()> {
        let mut out = BufWriter::new(File::create(self.dir.path().join(name))?);
        let done = AtomicU64::new(0);
        let left_out = write(&self.recordings, &done, &mut out)?;
        // What is damaged in one of the first two is in the other.
        ensure!(left_out == [0, 0, 1], "{left_out:?}");
        let all: u64 = report::blocks(&self.recordings).map(|_| 1).sum();
        ensure!(done.into_inner() == all, "all blocks were counted");
        Ok(out.flush()?)
    }

    fn check(&self, what: &str) -> Result<()> {
        check(what, self.dir.path(), &self.expected)
    }
}

/// All that is to be found of a stall.
fn expected(block: &Block, boot: u32, host: &str, told: &Told<'_>) -> Value {
    let path = |id: Option<u64>| {
        let mut paths = block.paths().filter(|(known, _)| Some(*known) == id);
        paths.next().and_then(|(_, path)| path)
    };
    let shown = |id: Option<u64>| match (id, path(id)) {
        (_, Some(path)) => memtrace::text::Printable(path).to_string(),
        (Some(id), None) => format!("id:{id}"),
        (None, None) => String::new(),
    };
    let target = told.class.and_then(memtrace::recording::Class::target).filter(|id| *id != 0);
    let function = |address: u64| block.function(address).map(Frame::function).unwrap_or_default();
    let stack: Vec<_> = block.stack(told.stack).iter().rev().map(|it| function(*it)).collect();
    let user = block.user_frames(told.user_stack).iter().rev();
    let user_stack: Vec<_> = user.map(|frame| frame.function()).collect();
    let shrinkers: serde_json::Map<_, _> = told
        .scope
        .into_iter()
        .flat_map(|scope| block.shrinkers(scope))
        .map(|(address, ns)| (function(address).to_owned(), ns.into()))
        .collect();
    let parts = told.parts.map(|parts| {
        let parts = PARTS.map(|(name, index)| (name.to_owned(), parts[index].into()));
        serde_json::Map::from_iter(parts)
    });
    let zone = told.class.and_then(|class| block.zone(class));
    json!({
        "boot": boot,
        "time_ns": block.epoch_ns().saturating_add_unsigned(told.start_ns),
        "host": hex(host.as_bytes()),
        "start_ns": told.start_ns,
        "duration_ns": told.duration_ns,
        "kind": told.kind.name(),
        "comm": hex(told.thread.comm.as_bytes()),
        "comm_shown": told.thread.comm.to_string(),
        "pid": told.thread.pid,
        "tid": told.thread.tid,
        "uid": told.thread.uid,
        "cpu": told.cpu,
        "order": told.class.and_then(memtrace::recording::Class::order),
        "zone": zone.map_or_else(String::new, |zone| format!("{}/{}", zone.node, zone.name)),
        "cgroup_id": told.thread.cgroup_id,
        "cgroup": hex(path(told.thread.cgroup_id).unwrap_or_default()),
        "cgroup_shown": shown(told.thread.cgroup_id),
        "target_cgroup_id": target,
        "target_cgroup": hex(path(target).unwrap_or_default()),
        "target_cgroup_shown": shown(target),
        "nr_reclaimed": told.nr_reclaimed,
        "parts": parts,
        "shrinkers": shrinkers,
        "stack": stack,
        "user_stack": user_stack,
    })
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

/// Has another reader look at an export.
fn check(what: &str, dir: &Path, expected: &Value) -> Result<()> {
    fs::write(dir.join("expected.json"), expected.to_string())?;
    let python = env::var_os("MEMTRACE_READERS").context(
        "MEMTRACE_READERS is not set: run the tests with `cargo xtask test`, which installs the readers and sets it",
    )?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("readers/check.py");
    let output = Command::new(python).arg(script).arg(what).arg(dir).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {stderr}");
    Ok(())
}

#[test]
fn csv_has_every_stall() -> Result<()> {
    let made = Made::new()?;
    made.export("stalls.csv", report::csv::write)?;
    made.check("csv")
}

#[test]
fn perfetto_shows_every_stall_with_its_parts() -> Result<()> {
    let made = Made::new()?;
    made.export("trace.pftrace", report::perfetto::write)?;
    made.check("perfetto")
}

#[test]
fn histograms_have_every_stall() -> Result<()> {
    let made = Made::new()?;
    made.export("stalls.hlog", report::hlog::write)?;
    made.check("hlog")
}

#[test]
fn folded_stacks_have_every_stall() -> Result<()> {
    let made = Made::new()?;
    made.export("stalls.folded", |recordings, done, out| {
        let (folded, left_out) = report::stacks::fold(recordings, done);
        folded.lines().try_for_each(|(line, us)| writeln!(out, "{line} {us}"))?;
        Ok(left_out)
    })?;
    made.export("flame.svg", |recordings, done, out| {
        let (folded, left_out) = report::stacks::fold(recordings, done);
        flame::write(&folded, "Stalls", out)?;
        Ok(left_out)
    })?;
    made.check("stacks")
}

/// A direct reclaim of which little is known.
fn plain(name: &[u8], start_ns: u64, duration_ns: u64) -> Stall {
    Stall {
        start_ns,
        duration_ns,
        pid: 1,
        tid: 1,
        uid: 0,
        cpu: 0,
        comm: comm(name),
        order: None,
        gfp: None,
        cgroup_id: None,
        detail: Maker::new(0, false).detail(4),
        stack: Vec::new(),
        user_stack: Vec::new(),
    }
}

/// A block of these spans, all of one thread.
fn overlapping(spans: &[(u64, u64)]) -> Raw {
    let (mut builder, mut names) = (Builder::new(0, false), names());
    for &(start_ns, end_ns) in spans {
        let stall = plain(b"overlaps", start_ns, end_ns - start_ns);
        builder.event(&Event::Stall(stall), &mut names);
    }
    let (raw, span) = builder.finish(0);
    (raw.to_vec(), span)
}

#[test]
fn stalls_that_overlap_are_cut() -> Result<()> {
    let dir = TempDir::new()?;
    let blocks = [
        overlapping(&[(0, 100), (50, 150), (60, 70), (200, 300)]),
        overlapping(&[(250, 400), (10, 20), (u64::MAX - 5, u64::MAX), (u64::MAX, u64::MAX)]),
    ];
    let numbered: Vec<_> = (0..).zip(&blocks).collect();
    let recordings = [recording(dir.path(), &meta("a", "b", false), &numbered, &[])?];
    let mut out = Vec::new();
    report::perfetto::write(&recordings, &AtomicU64::new(0), &mut out)?;
    fs::write(dir.path().join("trace.pftrace"), out)?;
    check("nested", dir.path(), &json!({ "slices": 8, "span": [0, i64::MAX] }))
}

/// The blocks of many recordings with nothing but damage, and none at all.
#[test]
fn where_nothing_can_be_read_exports_are_empty() -> Result<()> {
    let dir = TempDir::new()?;
    let block = overlapping(&[(0, 100)]);
    let damaged = recording(dir.path(), &meta("a", "b", true), &[(0, &block)], &[0])?;
    for recordings in [&[][..], &[damaged]] {
        let (done, mut csv) = (AtomicU64::new(0), Vec::new());
        report::csv::write(recordings, &done, &mut csv)?;
        assert_eq!(csv.split(|byte| *byte == b'\n').count(), 2, "a header");
        let mut log = Vec::new();
        report::hlog::write(recordings, &done, &mut log)?;
        let log = String::from_utf8(log)?;
        assert!(log.contains("[StartTime: ") && !log.contains("Tag="), "{log}");
        let mut trace = Vec::new();
        report::perfetto::write(recordings, &done, &mut trace)?;
        assert!((1..100).contains(&trace.len()), "{}", trace.len());
        assert_eq!(report::stacks::fold(recordings, &done).0.lines().count(), 0);
    }
    Ok(())
}

#[test]
fn too_many_stacks_keep_the_total() -> Result<()> {
    let dir = TempDir::new()?;
    let mut names = names();
    let mut blocks = Vec::new();
    for block in 0..9_u64 {
        let mut builder = Builder::new(0, false);
        for number in 0..8000 {
            let name = (block * 8000 + number).to_string();
            let stall = plain(name.as_bytes(), block * 8000 + number, 1000);
            builder.event(&Event::Stall(stall), &mut names);
        }
        let (raw, span) = builder.finish(0);
        blocks.push((raw.to_vec(), span));
    }
    let numbered: Vec<_> = (0..).zip(&blocks).collect();
    let recordings = [recording(dir.path(), &meta("a", "b", false), &numbered, &[])?];
    let (folded, _) = report::stacks::fold(&recordings, &AtomicU64::new(0));
    let lines: Vec<_> = folded.lines().collect();
    assert_eq!(lines.len(), 65_537);
    assert_eq!(lines.last(), Some(&("[other]", 72_000 - 65_536)));
    assert_eq!(lines.iter().map(|(_, us)| us).sum::<u128>(), 72_000);
    Ok(())
}

#[test]
fn a_full_disk_is_an_error() -> Result<()> {
    let made = Made::new()?;
    for write in [report::csv::write, report::perfetto::write, report::hlog::write] {
        let mut full = File::options().write(true).open("/dev/full")?;
        let done = AtomicU64::new(0);
        let error = write(&made.recordings, &done, &mut full).expect_err("there is no room");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }
    Ok(())
}
