//! Made-up recordings, and what they come to by hand.

mod schema;
mod sources;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use insta::assert_snapshot;
use jiff::tz::TimeZone;
use memtrace_common::record::part;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::check::all_outputs;
use super::findings::Findings;
use super::keys::{CgroupKey, ThreadKey};
use super::totals::{Totals, boots};
use super::{Diff, blocks, gather};
use crate::kind::Kind;
use crate::live::Event;
use crate::recording::check;
use crate::recording::{Builder, Counts, End, Fired, Look, Meta, Note, Recording, file};
use crate::scope::{Parts, Scope};
use crate::stall::{Detail, Limit, Stall};
use crate::view::fixtures::{HOSTILE, comm, compaction, names, oom, reclaim};

/// 2026-03-01T12:00:00Z.
const NOON_NS: i64 = 1_772_366_400_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;

enum Put {
    Event(Event),
    Note(Note),
}

fn meta(host: &str, scopes: bool) -> Meta {
    Meta {
        memtrace: "0.1.0".to_owned(),
        host: host.to_owned(),
        kernel: "6.12.1".to_owned(),
        boot: format!("boot of {host}"),
        cpus: 8,
        page_size: 4096,
        what: "all stalls".to_owned(),
        began_ns: NOON_NS,
        scopes,
        kinds: vec![
            ("direct".to_owned(), None),
            ("oom".to_owned(), None),
            ("refault".to_owned(), Some("no BTF\n".to_owned())),
        ],
        throttles: vec![(0, "writeback".to_owned()), (1, "isolated".to_owned())],
        ..Meta::default()
    }
}

/// A recording in a file, of blocks with these numbers.
fn recording(meta: &Meta, blocks: impl IntoIterator<Item = (u64, Vec<Put>)>) -> Recording {
    opened(&written(meta, blocks))
}

fn written(meta: &Meta, blocks: impl IntoIterator<Item = (u64, Vec<Put>)>) -> Vec<u8> {
    written_by(meta, blocks.into_iter().map(|(number, block)| (number, NOON_NS, block)))
}

/// Each block has the time of day when `CLOCK_MONOTONIC` was zero, too.
fn written_by(meta: &Meta, blocks: impl IntoIterator<Item = (u64, i64, Vec<Put>)>) -> Vec<u8> {
    let (mut names, mut whole, mut out) = (names(), file::header(meta), Vec::new());
    for (number, epoch_ns, block) in blocks {
        let mut builder = Builder::new(epoch_ns, meta.scopes);
        for put in block {
            match put {
                Put::Event(event) => builder.event(&event, &mut names),
                Put::Note(note) => builder.note(&note),
            }
        }
        let (raw, span_ns) = builder.finish(epoch_ns);
        file::block(raw, number, span_ns, &mut out);
        whole.extend_from_slice(&out);
    }
    whole
}

fn opened(bytes: &[u8]) -> Recording {
    let mut file = tempfile::tempfile().expect("room for a file");
    file.write_all(bytes).expect("room for a file");
    file.rewind().expect("a file");
    Recording::open(file).expect("it was just written")
}

fn stall(tid: u32, start_ns: u64, duration_ns: u64) -> Put {
    Put::Event(Event::Stall(Stall { start_ns, duration_ns, tid, ..reclaim() }))
}

/// A scope, all of whose time went into scanning, but for a tenth in a shrinker.
fn scope(tid: u32, start_ns: u64, duration_ns: u64, callers: &[u64]) -> Put {
    let Stall { pid, uid, cpu, comm, cgroup_id, .. } = reclaim();
    let mut parts = Parts { shrinkers: vec![(0x1f, duration_ns / 10)], ..Parts::default() };
    parts.ns[part::SCAN] = duration_ns - duration_ns / 10;
    let callers = callers.to_vec();
    Put::Event(Event::Scope(Scope {
        start_ns,
        duration_ns,
        pid,
        tid,
        uid,
        cpu,
        comm,
        cgroup_id,
        parts,
        callers,
    }))
}

fn end(seconds: u64, counts: Counts) -> Put {
    let duration_ns = seconds * SECOND_NS;
    let at_ns = NOON_NS.saturating_add_unsigned(duration_ns);
    Put::Note(Note::End(End { at_ns, duration_ns, counts, ..End::default() }))
}

/// Numbers that are always the same.
fn random() -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    }
}

fn one_of<T: Copy, const N: usize>(all: [T; N], number: u64) -> T {
    all[usize::try_from(number).expect("small")]
}

/// Many stalls of all sorts, in blocks.
fn many(seed: u64, scopes: bool) -> Vec<(u64, Vec<Put>)> {
    let mut random = random();
    let _skipped: Vec<_> = (0..seed).map(|_| random(2)).collect();
    let mut now_ns = 0;
    let mut block = |number| {
        let mut puts = Vec::new();
        for _ in 0..500 {
            now_ns += random(20_000_000);
            let tid = u32::try_from(1240 + random(40)).expect("small");
            let lasts_ns = (random(3_000_000_000) >> random(20)) + 100;
            let mut start_ns = now_ns;
            for _ in 0..random(4) {
                let mut stall = if random(3) == 0 { compaction() } else { reclaim() };
                stall.cgroup_id = one_of([None, Some(70), Some(71)], u64::from(tid) % 3);
                stall.order = one_of([None, Some(0), Some(3)], random(3));
                if let Detail::Reclaim(reclaim) = &mut stall.detail {
                    reclaim.limit = one_of([None, Some(Limit::High)], random(2));
                    reclaim.target_cgroup_id = one_of([None, Some(0), Some(71)], random(3));
                }
                let duration_ns = lasts_ns / 4;
                puts.push(Put::Event(Event::Stall(Stall { start_ns, duration_ns, tid, ..stall })));
                start_ns += duration_ns;
            }
            if scopes {
                puts.push(scope(tid, now_ns, lasts_ns, &[0x2a]));
            }
        }
        (number, puts)
    };
    (0..5).map(&mut block).collect()
}

fn totals(recordings: &[Recording]) -> Totals {
    let boots = boots(recordings);
    gather(recordings, || Totals::new(&boots, 10), &AtomicU64::new(0)).0
}

/// Number and time, of several.
fn sums<K: Ord>(each: impl IntoIterator<Item = (K, u64)>) -> BTreeMap<K, (u64, u64)> {
    let mut sums = BTreeMap::new();
    for (key, ns) in each {
        let (count, sum): &mut (u64, u64) = sums.entry(key).or_default();
        *count += 1;
        *sum += ns;
    }
    sums
}

/// A stall as the blocks tell of it.
struct Plain {
    thread: ThreadKey,
    cgroup: CgroupKey,
    kind: Kind,
    order: Option<i32>,
    zone: Option<(i32, String)>,
    target: CgroupKey,
    start_ns: u64,
    duration_ns: u64,
    parts: u64,
    shrunk: u64,
}

fn plain(recordings: &[Recording]) -> Vec<Plain> {
    let mut all = Vec::new();
    for (boot, recording) in boots(recordings).into_iter().zip(recordings) {
        for place in &recording.places {
            let block = recording.block(place).expect("it is whole");
            block.told(recording.meta.scopes, |told| {
                let crate::recording::Thread { pid, tid, comm, cgroup_id, .. } = *told.thread;
                let zone = told.class.and_then(|class| block.zone(class));
                let shrunk = told.scope.into_iter().flat_map(|scope| block.shrinkers(scope));
                all.push(Plain {
                    thread: ThreadKey { boot, pid, tid, comm },
                    cgroup: CgroupKey { boot, id: cgroup_id },
                    kind: told.kind,
                    order: told.class.and_then(crate::recording::Class::order),
                    zone: zone.map(|zone| (zone.node, zone.name)),
                    target: CgroupKey {
                        boot,
                        id: told.class.and_then(crate::recording::Class::target),
                    },
                    start_ns: told.start_ns,
                    duration_ns: told.duration_ns,
                    parts: told.parts.map(|parts| parts.iter().sum()).unwrap_or_default(),
                    shrunk: shrunk.map(|(_, ns)| ns).sum(),
                });
            });
        }
    }
    all
}

#[test]
fn totals_are_the_sums_of_all_stalls() {
    for scopes in [true, false] {
        let recordings = [
            recording(&meta("a", scopes), many(0, scopes)),
            recording(&meta("b", scopes), many(7, scopes)),
            recording(&Meta { began_ns: NOON_NS + 5, ..meta("a", scopes) }, many(9, scopes)),
        ];
        let (totals, all) = (totals(&recordings), plain(&recordings));
        let of = |count: &super::times::Times| (count.count(), count.total_ns());
        assert!(all.len() > 1000);
        assert_eq!(totals.all().count(), all.len() as u64);
        let by = all.iter().map(|it| (it.thread, it.duration_ns));
        let found = totals.threads.top(usize::MAX);
        let found = found.iter().map(|(key, times, _)| (*key, of(times)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), sums(by));
        let by = all.iter().map(|it| ((it.thread.boot, it.thread.pid), it.duration_ns));
        let found = totals.processes(usize::MAX).1;
        let found = found.iter().map(|(key, times, _)| ((key.boot, key.pid), of(times)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), sums(by));
        let by = all.iter().map(|it| (it.cgroup, it.duration_ns));
        let found = totals.cgroups.iter().map(|(key, times)| (*key, of(times)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), sums(by));
        let by = all.iter().map(|it| (it.target, it.duration_ns));
        let found = totals.targets.iter().map(|(key, times)| (*key, of(times)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), sums(by));
        let by = all.iter().map(|it| (it.order, it.duration_ns));
        let found = totals.orders.iter().map(|(key, times)| (*key, of(times)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), sums(by));
        let by = all.iter().map(|it| (it.zone.clone(), it.duration_ns));
        let found = totals.zones.iter().map(|(key, times)| (key.clone(), of(times)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), sums(by));
        let by = all.iter().map(|it| (it.kind, it.duration_ns));
        let found = totals.kinds().filter(|(_, times)| times.count() != 0);
        let found = found.map(|(kind, times)| (kind, of(times)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), sums(by));

        let parts: u64 = all.iter().map(|it| it.parts).sum();
        assert_eq!(totals.parts.map(|parts| parts.iter().sum()), scopes.then_some(parts));
        let shrunk: u64 = all.iter().map(|it| it.shrunk).sum();
        let found = totals.shrinkers.get("do_try_to_free_pages").copied();
        assert_eq!(found, scopes.then_some(shrunk));
        let mut longest: Vec<_> = all.iter().map(|it| it.duration_ns).collect();
        longest.sort_unstable_by(|a, b| b.cmp(a));
        let found: Vec<_> = totals.longest.sorted().iter().map(|it| it.duration_ns).collect();
        assert_eq!(found, longest[..10]);

        let worst = totals.seconds.worst().expect("there are stalls");
        let in_second = |it: &Plain| {
            let second = (worst.second * 1_000_000_000 - NOON_NS).cast_unsigned();
            let end = (it.start_ns + it.duration_ns).min(second + SECOND_NS);
            if it.thread.boot == worst.boot {
                end.saturating_sub(it.start_ns.max(second))
            } else {
                0
            }
        };
        assert_eq!(worst.stalled_ns, all.iter().map(in_second).sum::<u64>());
        let seen: u64 = totals.seen.iter().map(|seen| seen.stalls).sum();
        assert_eq!(seen, all.len() as u64);
    }
}

fn findings(recordings: &[Recording]) -> Findings {
    let files: Vec<_> =
        (1..=recordings.len()).map(|number| format!("{number}.mtr").into_bytes()).collect();
    Findings::gather(recordings, &files, 3, &AtomicU64::new(0))
}

fn text(findings: &Findings) -> String {
    let mut out = Vec::new();
    findings.text(&TimeZone::UTC, &mut out);
    String::from_utf8(out).expect("views show UTF-8")
}

fn parsed(findings: &Findings) -> Value {
    let mut out = Vec::new();
    findings.json(&mut out);
    assert_eq!(memchr::memchr_iter(b'\n', &out).count(), 1);
    serde_json::from_slice(&out).expect("JSON")
}

fn look(at_ns: u64, allocstall: u64) -> Put {
    let files = [
        ("/proc/meminfo", "MemTotal: 2097152 kB\nMemAvailable: 10240 kB\nMemFree: 5120 kB\n"),
        ("/proc/pressure/memory", "some avg10=12.34 avg60=5.00 avg300=1.00 total=1234\n"),
        (
            "/proc/zoneinfo",
            "Node 0, zone Normal\n pages free 80\n min 67\n low 84\n high 101\n managed 4000\n",
        ),
        ("/proc/buddyinfo", "Node 0, zone   Normal      5      3      0      1      0\n"),
    ];
    let files = files.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned()));
    let vmstat = format!("allocstall_normal {allocstall}\nnr_free_pages 1\n");
    let files = files.chain([("/proc/vmstat".to_owned(), vmstat)]).collect();
    let cgroup = [
        ("memory.current".to_owned(), "1048576\n".to_owned()),
        ("memory.events".to_owned(), format!("low 0\nmax {allocstall}\n")),
    ];
    let counts = Counts { lost: 9, ..Counts::default() };
    let cgroups = [(70, cgroup.into())].into();
    Put::Note(Note::Look(Look { at_ns, files, cgroups, counts }))
}

/// Something of everything.
fn rich() -> Recording {
    let ms = SECOND_NS / 1000;
    let fired = Fired {
        trigger: "stall>1s".to_owned(),
        cause: "pid 1234 stalled for 1.5 s".to_owned(),
        at_ns: NOON_NS + 7_000_000_000,
        at_monotonic_ns: 7 * SECOND_NS,
    };
    let meta = Meta { trigger: Some(fired), ..meta("db1", true) };
    let first = vec![
        look(SECOND_NS, 5),
        stall(1240, 2 * SECOND_NS, 4 * ms),
        scope(1240, 2 * SECOND_NS, 5 * ms, &[]),
        look(2 * SECOND_NS, 7),
        scope(1241, 3 * SECOND_NS, 100 * ms, &[0x2a]),
        look(5 * SECOND_NS, 9),
    ];
    let big = Stall { start_ns: 6 * SECOND_NS, duration_ns: 1500 * ms, ..compaction() };
    let second = vec![
        Put::Event(Event::Stall(big)),
        scope(1240, 6 * SECOND_NS, 1500 * ms, &[]),
        Put::Event(Event::Oom(oom())),
        look(7 * SECOND_NS + 10 * ms, 19),
        end(10, Counts { unfinished: 2, ..Counts::default() }),
    ];
    recording(&meta, [(0, first), (1, second)])
}

#[test]
fn a_report_as_text() {
    assert_snapshot!(text(&findings(&[rich()])), @r#"
    1.mtr: all stalls
      on db1, Linux 6.12.1, 8 CPUs, by memtrace 0.1.0
    From 2026-03-01 12:00:00 +00:00 to 2026-03-01 12:00:10 +00:00, 10.00 s recorded

    1.61 s lost in 3 stalls: 0.3 stalls and 160.50 ms a second
      p50 100.14 ms, p99 1.50 s, max 1.50 s
      from 2026-03-01 12:00:02.000 to 2026-03-01 12:00:07.500

    Threads
        TOTAL     %    COUNT       P50       P99       MAX TID     PID     THREAD
       1.51 s  93.8        2   5.01 ms    1.50 s    1.50 s 1240    1234    postgres
    100.00 ms   6.2        1 100.00 ms 100.00 ms 100.00 ms 1241    1234    postgres

    Processes
        TOTAL     %    COUNT       P50       P99       MAX PID     PROCESS          PAYER
       1.61 s 100.0        3 100.14 ms    1.50 s    1.50 s 1234    postgres         pg.service

    Cgroups that paid
        TOTAL     %    COUNT       P50       P99       MAX CGROUP
       1.61 s 100.0        3 100.14 ms    1.50 s    1.50 s /system.slice/pg.service

    Reclaimed from
        TOTAL     %    COUNT       P50       P99       MAX TARGET
      5.00 ms   0.3        1   5.00 ms   5.00 ms   5.00 ms /system.slice

    Kinds
        TOTAL     %    COUNT       P50       P99       MAX KIND
       1.50 s  93.5        1    1.50 s    1.50 s    1.50 s compaction
    100.00 ms   6.2        1 100.00 ms 100.00 ms 100.00 ms memstall
      5.00 ms   0.3        1   5.00 ms   5.00 ms   5.00 ms memcg-max

    Orders
        TOTAL     %    COUNT       P50       P99       MAX ORDER
       1.50 s  93.5        1    1.50 s    1.50 s    1.50 s 9
    100.00 ms   6.2        1 100.00 ms 100.00 ms 100.00 ms -
      5.00 ms   0.3        1   5.00 ms   5.00 ms   5.00 ms 0

    Zones that were compacted
        TOTAL     %    COUNT       P50       P99       MAX ZONE
       1.50 s  93.5        1    1.50 s    1.50 s    1.50 s 1/Normal

    Where the time went
        TOTAL     % PART
       1.44 s  90.0 scan
    160.50 ms  10.0 shrink:do_try_to_free_pages

    Longest stalls
      1.    1.50 s  2026-03-01 12:00:06.000  compaction order 9, pid 1234 tid 1240 postgres
        paid by pg.service, zone 1/Normal
        scan 1.35 s, shrink:do_try_to_free_pages 150.00 ms
        kernel: do_try_to_free_pages+0x1f, try_charge_memcg+0x2a
        user: 0x3b
      2. 100.00 ms  2026-03-01 12:00:03.000  memstall order -, pid 1234 tid 1241 postgres
        paid by pg.service
        scan 90.00 ms, shrink:do_try_to_free_pages 10.00 ms
        kernel: try_charge_memcg+0x2a
      3.   5.00 ms  2026-03-01 12:00:02.000  memcg-max order 0, pid 1234 tid 1240 postgres
        37 pages reclaimed, paid by pg.service, from system.slice
        scan 4.50 ms, shrink:do_try_to_free_pages 500.0 us
        kernel: as of 1.
        user: as of 1.

    1 OOM kill
      2026-03-01 12:00:05.123  pid 99 \x1b[2J"'\\x0a\xff💩 of system.slice
        for pid 1234 postgres of pg.service

    Worst second
      2026-03-01 12:00:06: 1.00 s lost, 1 stall began in it
      The system 1.01 s after it began:
        memory: available 10.0 MiB of 2.0 GiB, free 5.0 MiB
        pressure of the last 10 s: some 12.34 %
        FREE(pages)      MIN      LOW     HIGH MOST ORDER ZONE
                 80       67       84      101          3 0/Normal below low
        counted in 2.01 s: allocstall_normal 10
        /system.slice/pg.service: 1.0 MiB, max +10

    1.mtr was written as a trigger fired
      2026-03-01 12:00:07.000: stall>1s: pid 1234 stalled for 1.5 s

    Kinds that were watched
        direct, oom
        not: refault (no BTF\x0a)

    What is not in it
        2 still stalled at the end
    "#);
}

#[test]
fn the_time_of_day_says_whose_it_is() {
    let mut out = Vec::new();
    let zone = TimeZone::fixed(jiff::tz::offset(9));
    findings(&[rich()]).text(&zone, &mut out);
    let text = String::from_utf8(out).expect("views show UTF-8");
    let line = "\nFrom 2026-03-01 21:00:00 +09:00 to 2026-03-01 21:00:10 +09:00, ";
    assert!(text.contains(line), "{text}");
}

#[test]
fn a_stack_is_shown_once_and_no_line_ends_in_a_blank() {
    let frames: Vec<_> = (0..10).map(|at| 0x10_0000 + at).collect();
    let deep = |tid: u32| {
        let stack = frames.clone();
        let duration_ns = u64::from(tid) * 1000;
        Put::Event(Event::Stall(Stall { duration_ns, tid, stack, ..reclaim() }))
    };
    let bare = Stall { tid: 4, duration_ns: 4000, stack: Vec::new(), ..reclaim() };
    let puts = vec![deep(1), stall(2, 2, 2000), deep(3), Put::Event(Event::Stall(bare))];
    let recording = recording(&meta("a", false), [(0, puts)]);
    let findings = Findings::gather(&[recording], &[b"a.mtr".to_vec()], 9, &AtomicU64::new(0));
    let text = text(&findings);
    let kernel: Vec<_> = text.lines().filter(|line| line.starts_with("    kernel: ")).collect();
    // The longest has none, so that of the second is the first.
    let [first, other, again] = kernel[..] else { panic!("{text}") };
    assert!(first.starts_with("    kernel: 0x100000, ") && first.ends_with(','), "{text}");
    assert!(other.contains("try_charge_memcg"), "{text}");
    assert_eq!(again, "    kernel: as of 2.");
    let user = text.lines().filter(|line| line.starts_with("    user: "));
    assert_eq!(user.collect::<Vec<_>>()[1..], ["    user: as of 1."; 3]);
    assert!(!text.lines().any(|line| line.ends_with(' ')), "{text}");
}

#[test]
fn what_was_waited_for_a_cpu_is_pointed_out() {
    let waited = |percent: u64| {
        let mut put = scope(1, 1, 1000, &[]);
        let Put::Event(Event::Scope(scope)) = &mut put else { panic!("it is a scope") };
        scope.parts = Parts::default();
        scope.parts.ns[part::WAITING] = percent * 10;
        scope.parts.ns[part::SCAN] = 1000 - percent * 10;
        text(&findings(&[recording(&meta("a", true), [(0, vec![put])])]))
    };
    let (much, little) = (waited(21), waited(20));
    assert!(much.contains("\n  21.0 % of it was waiting for a CPU: CPUs were short"), "{much}");
    assert!(!little.contains("CPUs were short"), "{little}");
}

#[test]
fn what_takes_no_zone_and_no_target_is_in_no_table_of_them() {
    let stalls = |stall: Stall| {
        text(&findings(&[recording(
            &meta("a", false),
            [(0, vec![Put::Event(Event::Stall(stall))])],
        )]))
    };
    let (reclaimed, compacted) = (stalls(reclaim()), stalls(compaction()));
    for (text, is_there) in [(&reclaimed, true), (&compacted, false)] {
        assert_eq!(text.contains("\nReclaimed from\n"), is_there, "{text}");
        assert_eq!(text.contains("\nZones that were compacted\n"), !is_there, "{text}");
        assert_eq!(text.contains(" pages reclaimed"), is_there, "{text}");
    }
}

#[test]
fn a_report_as_json() {
    let object = parsed(&findings(&[rich()]));
    let keys: Vec<_> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        keys.join(" "),
        "cgroups count duration_ns first kinds last longest lost max_ns missed_begin nr_cgroups \
         nr_oom_kills nr_processes nr_targets nr_threads oom_kills orders other_cgroups \
         other_processes other_threads p50_ns p99_ns parts processes recordings since skipped \
         stalled_ns_per_s stalls_per_s table_full targets threads time total_ns type unfinished \
         worst_second zones"
    );
    let at = |pointer: &str| object.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"));
    for (pointer, value) in [
        ("/type", json!("report")),
        ("/since", json!("2026-03-01T12:00:00.000000000Z")),
        ("/first", json!("2026-03-01T12:00:02.000000000Z")),
        ("/last", json!("2026-03-01T12:00:07.500000000Z")),
        ("/duration_ns", json!(10 * SECOND_NS)),
        ("/count", json!(3)),
        ("/total_ns", json!(1_605_000_000)),
        ("/stalls_per_s", json!(0.3)),
        ("/unfinished", json!(2)),
        ("/lost", json!(0)),
        ("/recordings/0/file", json!("1.mtr")),
        ("/recordings/0/host", json!("db1")),
        ("/recordings/0/ended", json!(true)),
        ("/recordings/0/trigger/trigger", json!("stall>1s")),
        ("/recordings/0/watched", json!(["direct", "oom"])),
        ("/recordings/0/not_watched/0", json!({"kind": "refault", "reason": "no BTF\n"})),
        ("/threads/0/tid", json!(1240)),
        ("/threads/0/count", json!(2)),
        ("/threads/0/max_ns", json!(1_500_000_000)),
        ("/threads/0/owner/unit", json!("pg.service")),
        ("/processes/0/comm", json!("postgres")),
        ("/cgroups/0/cgroup", json!("/system.slice/pg.service")),
        ("/kinds/0/kind", json!("compaction")),
        ("/orders/0/order", json!(9)),
        ("/zones/0/zone", json!("Normal")),
        ("/targets/0/global", Value::Null),
        ("/targets/1/target_cgroup", json!("/system.slice")),
        ("/parts/shrink:do_try_to_free_pages", json!(160_500_000)),
        ("/longest/0/duration_ns", json!(1_500_000_000)),
        ("/longest/0/stack/1", json!("try_charge_memcg+0x2a")),
        ("/longest/0/user_stack/0", json!("0x3b")),
        ("/longest/0/parts/scan", json!(1_350_000_000)),
        ("/oom_kills/0/victim_pid", json!(99)),
        ("/worst_second/time", json!("2026-03-01T12:00:06.000000000Z")),
        ("/worst_second/system/vmstat", json!({"allocstall_normal": 10})),
        ("/worst_second/system/pressure/some/avg10", json!(12.34)),
        ("/worst_second/system/cgroups/0/events_grown", json!({"max": 10})),
    ] {
        assert_eq!(at(pointer), &value, "{pointer}");
    }
    assert!(!at("/processes/0").as_object().expect("an object").contains_key("tid"));
}

#[test]
fn a_recording_without_stalls_is_a_report_too() {
    let findings = findings(&[recording(&meta("a", true), [])]);
    let text = text(&findings);
    assert!(text.contains("\nNo stalls\n"), "{text}");
    assert!(text.contains("1.mtr: has no end: it was cut, or is still being written"), "{text}");
    assert_eq!(parsed(&findings)["worst_second"], Value::Null);
    assert_eq!(parsed(&Findings::gather(&[], &[], 3, &AtomicU64::new(0)))["count"], json!(0));
}

#[test]
fn what_is_in_several_files_counts_once() {
    let some =
        |from: u64, to: u64| (from..to).map(|n| (n, vec![stall(1, n * SECOND_NS, SECOND_NS / 2)]));
    let meta = meta("a", false);
    let [first, second] = [(0, 6), (3, 9)].map(|(from, to)| recording(&meta, some(from, to)));
    let another = Meta { began_ns: NOON_NS + 1, run_ns: 1, ..meta.clone() };
    let recordings = [first, second, recording(&meta, some(0, 6)), recording(&another, some(0, 1))];
    assert_eq!(blocks(&recordings).count(), 6 + 3 + 1);
    let findings = findings(&recordings);
    assert_eq!((findings.stats.count, findings.nr_threads), (10, 1));
    assert_eq!(findings.duration_ns, 8 * SECOND_NS + SECOND_NS / 2);
}

#[test]
fn cgroups_of_different_boots_are_different_cgroups() {
    let [a, b] = ["a", "b"].map(|host| {
        let blocks =
            [(0, vec![stall(1, 5, 1_000), end(10, Counts { lost: 1, ..Counts::default() })])];
        recording(&meta(host, false), blocks)
    });
    let findings = findings(&[a, b]);
    let hosts: Vec<_> = findings.cgroups.iter().map(|row| row.host.host.as_str()).collect();
    assert_eq!((hosts.as_slice(), findings.nr_cgroups), (&["a", "b"][..], 2));
    assert_eq!((findings.duration_ns, findings.counts.lost), (20 * SECOND_NS, 2));
    assert!(text(&findings).contains("/system.slice/pg.service on b\n"));
}

#[test]
fn the_last_word_on_what_was_lost_counts() {
    let looked = recording(&meta("a", false), [(0, vec![look(SECOND_NS, 1)])]);
    assert_eq!(findings(&[looked]).counts.lost, 9);
    let ended = |lost| {
        let counts = Counts { lost, ..Counts::default() };
        recording(&meta("a", false), [(0, vec![look(SECOND_NS, 1), end(lost, counts)])])
    };
    assert_eq!(findings(&[ended(11)]).counts.lost, 11);
    // Two files of one tracing, the earlier one given last.
    let both = findings(&[ended(30), ended(20)]);
    assert_eq!(both.counts.lost, 30);
    assert!(text(&both).contains("30 lost (ring buffer full)"));
}

#[test]
fn what_is_damaged_is_left_out_and_told() {
    let meta = meta("a", false);
    let blocks = |n| (n, vec![stall(1, n * SECOND_NS, 1_000)]);
    let mut bytes = written(&meta, [blocks(2), blocks(3), blocks(5)]);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let findings = findings(&[opened(&bytes)]);
    let recorded = &findings.recordings[0];
    assert_eq!((recorded.dropped_blocks, recorded.lost_blocks, recorded.damaged_blocks), (2, 1, 1));
    assert_eq!(findings.stats.count, 2);
    let text = text(&findings);
    assert!(
        text.contains("oldest blocks given up for its size: 2, blocks lost in between: 1"),
        "{text}"
    );
}

#[test]
fn names_that_anyone_chose_break_nothing() {
    let puts = (0..20).map(|tid| {
        let thread = Stall { tid, comm: comm(HOSTILE), cgroup_id: Some(72), ..reclaim() };
        Put::Event(Event::Stall(Stall { duration_ns: 1_000, ..thread }))
    });
    let fired =
        Fired { trigger: "\u{1b}[2J".to_owned(), cause: "\n".to_owned(), ..Fired::default() };
    let meta = Meta {
        kernel: "\u{1b}]0;\u{7}".to_owned(),
        what: "\r\u{202e}".to_owned(),
        trigger: Some(fired),
        ..meta("\u{9b}31m", false)
    };
    let findings = findings(&[recording(&meta, [(0, puts.collect())])]);
    let text = text(&findings);
    let hidden = |c: char| c != '\n' && crate::text::is_hidden(c);
    assert!(!text.contains(hidden), "{text}");
    let mut out = Vec::new();
    findings.json(&mut out);
    assert!(!String::from_utf8(out).expect("UTF-8").contains(hidden));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn of_what_was_changed_all_outputs_can_be_made(bytes in vec(any::<u8>(), 0..4000)) {
        all_outputs(&check::recordings(&bytes));
    }
}

/// What the fuzzer has found to lead to different places.
#[test]
fn of_what_the_fuzzer_has_collected_all_outputs_can_be_made() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/report");
    let files = fs::read_dir(corpus).expect("there is a corpus");
    let files = files.map(|file| fs::read(file.expect("a file").path()).expect("a file"));
    let recordings = files.map(|bytes| check::recordings(&bytes));
    let count = recordings.map(|recordings| all_outputs(&recordings)).count();
    assert!(count > 10, "{count}");
}

fn diff(before: &Recording, after: &Recording) -> Diff {
    let files = [b"before.mtr".to_vec(), b"after.mtr".to_vec()];
    Diff::gather([before, after], &files, 3, &AtomicU64::new(0))
}

/// Two recordings, of which the second is twice as long and has a cgroup without a path.
fn before_and_after() -> [Recording; 2] {
    let compact = |ns| {
        let cgroup_id = Some(9999);
        let stall =
            Stall { duration_ns: ns, comm: comm(b"new"), pid: 7, cgroup_id, ..compaction() };
        Put::Event(Event::Stall(stall))
    };
    let before =
        vec![stall(1, 1, 100_000_000), stall(2, 1, 300_000_000), end(10, Counts::default())];
    let after = vec![stall(1, 1, 200_000_000), compact(50_000_000), end(20, Counts::default())];
    [recording(&meta("a", false), [(0, before)]), recording(&meta("b", false), [(0, after)])]
}

#[test]
fn a_difference_as_text() {
    let [before, after] = before_and_after();
    let mut out = Vec::new();
    diff(&before, &after).text(&mut out);
    assert_snapshot!(String::from_utf8(out).expect("views show UTF-8"), @r#"
    before before.mtr: a, Linux 6.12.1, 10.00 s recorded
    after  after.mtr: b, Linux 6.12.1, 20.00 s recorded

    2 stalls before, 2 after; a second 0.2 before, 0.1 after: -50%

            STALLED TIME                   P99                  LOST A SECOND
       BEFORE     AFTER  CHANGE    BEFORE     AFTER  CHANGE    BEFORE     AFTER  CHANGE KIND
    400.00 ms 250.00 ms    -38% 300.00 ms 200.00 ms    -33%  40.00 ms  12.50 ms    -69% all
    400.00 ms 200.00 ms    -50% 300.00 ms 200.00 ms    -33%  40.00 ms  10.00 ms    -75% memcg-max
       0.0 us  50.00 ms     new    0.0 us  50.00 ms     new    0.0 us   2.50 ms     new compaction

            STALLED TIME                   P99                  LOST A SECOND
       BEFORE     AFTER  CHANGE    BEFORE     AFTER  CHANGE    BEFORE     AFTER  CHANGE PROCESS
    400.00 ms 200.00 ms    -50% 300.00 ms 200.00 ms    -33%  40.00 ms  10.00 ms    -75% postgres
       0.0 us  50.00 ms     new    0.0 us  50.00 ms     new    0.0 us   2.50 ms     new new

            STALLED TIME                   P99                  LOST A SECOND
       BEFORE     AFTER  CHANGE    BEFORE     AFTER  CHANGE    BEFORE     AFTER  CHANGE CGROUP
    400.00 ms 200.00 ms    -50% 300.00 ms 200.00 ms    -33%  40.00 ms  10.00 ms    -75% /system.slice/pg.service
       0.0 us  50.00 ms     new    0.0 us  50.00 ms     new    0.0 us   2.50 ms     new id:9999
    "#);
}

#[test]
fn a_difference_as_json() {
    let [before, after] = before_and_after();
    let mut out = Vec::new();
    diff(&before, &after).json(&mut out);
    let object: Value = serde_json::from_slice(&out).expect("JSON");
    for (pointer, value) in [
        ("/type", json!("diff")),
        ("/before/file", json!("before.mtr")),
        ("/duration_ns", json!([10 * SECOND_NS, 20 * SECOND_NS])),
        ("/all/before/total_ns", json!(400_000_000)),
        ("/all/change/total_ns", json!(-150_000_000)),
        ("/all/before/stalled_ns_per_s", json!(40_000_000.0)),
        ("/all/change/stalled_ns_per_s", json!(-27_500_000.0)),
        ("/all/change/stalls_per_s", json!(0.1 - 0.2)),
        ("/all/change/p99_ns", json!(-100_000_000)),
        ("/kinds/0/kind", json!("memcg-max")),
        ("/kinds/1/before/count", json!(0)),
        ("/processes/0/comm", json!("postgres")),
        ("/processes/0/change/total_ns", json!(-200_000_000)),
        ("/cgroups/0/cgroup", json!("/system.slice/pg.service")),
        ("/cgroups/1/cgroup_id", json!(9999)),
    ] {
        assert_eq!(object.pointer(pointer), Some(&value), "{pointer}");
    }
}

#[test]
fn cgroups_without_a_path_match_in_one_boot_only() {
    let unnamed = |host: &str| {
        let stall = Stall { cgroup_id: Some(9999), ..reclaim() };
        recording(&meta(host, false), [(0, vec![Put::Event(Event::Stall(stall))])])
    };
    assert_eq!(diff(&unnamed("a"), &unnamed("a")).cgroups.len(), 1);
    assert_eq!(diff(&unnamed("a"), &unnamed("b")).cgroups.len(), 2);
}
