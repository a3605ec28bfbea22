//! Whole pages of made-up recordings.

use std::io::Write as _;
use std::sync::atomic::AtomicU64;

use crate::live::Event;
use crate::names::Names;
use crate::recording::{Builder, Counts, End, Look, Meta, Note, Recording, file};
use crate::scope::{Parts, Scope};
use crate::stall::{Detail, Stall};
use crate::view::fixtures::{self, HOSTILE, comm, compaction, names, reclaim};

const SECOND: u64 = 1_000_000_000;
/// When `CLOCK_MONOTONIC` was zero.
const EPOCH_NS: i64 = 1_770_000_000_000_000_000;

/// A recording in the making.
struct Maker {
    builder: Builder,
    names: Names,
    bytes: Vec<u8>,
    number: u64,
}

impl Maker {
    fn new(meta: &Meta) -> Self {
        let builder = Builder::new(EPOCH_NS, meta.scopes);
        Self { builder, names: names(), bytes: file::header(meta), number: 0 }
    }

    fn event(&mut self, event: &Event) {
        self.builder.event(event, &mut self.names);
        if self.builder.is_full() {
            self.block();
        }
    }

    fn block(&mut self) {
        let (raw, span) = self.builder.finish(EPOCH_NS);
        let mut block = Vec::new();
        file::block(raw, self.number, span, &mut block);
        self.bytes.extend_from_slice(&block);
        self.number += 1;
    }

    fn end(mut self) -> Recording {
        self.block();
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&self.bytes).expect("it takes what is written");
        std::io::Seek::rewind(&mut file).expect("it is a file");
        Recording::open(file).expect("it was just written")
    }
}

/// The file of a recording, with what would be an element if its name were HTML.
fn file_name(number: usize) -> Vec<u8> {
    format!("<img src={number}></title>.mtr").into_bytes()
}

fn page(recordings: &[Recording]) -> String {
    let files: Vec<_> = (0..recordings.len()).map(file_name).collect();
    let mut out = Vec::new();
    super::write(recordings, &files, &AtomicU64::new(0), &mut out).expect("memory takes all");
    String::from_utf8(out).expect("a page is UTF-8")
}

fn data(page: &str) -> serde_json::Value {
    let (_, data) = page.split_once("id=\"data\">").expect("data");
    let (data, _) = data.split_once("</script>").expect("an end");
    serde_json::from_str(data).expect("it is JSON")
}

fn meta() -> Meta {
    Meta {
        host: "db1</title><script>alert(1)</script>".to_owned(),
        kernel: "6.12".to_owned(),
        page_size: 4096,
        stacks: true,
        kinds: vec![
            ("direct".to_owned(), None),
            ("swapin".to_owned(), Some("no function <b>".to_owned())),
        ],
        ..Meta::default()
    }
}

#[test]
fn nothing_gets_out_of_where_it_belongs() {
    let mut maker = Maker::new(&meta());
    let names: [&[u8]; 3] = [b"</script><b>x", b"<!--<script>", HOSTILE];
    maker.names.cgroups.learn(70, Some(b"/</script><img src=x onerror=alert(1)>".to_vec()));
    for name in names {
        maker.event(&Event::Stall(Stall { comm: comm(name), ..reclaim() }));
        maker.event(&Event::Stall(Stall { comm: comm(name), ..fixtures::extreme(compaction()) }));
    }
    maker.event(&Event::Oom(fixtures::oom()));
    let page = page(&[maker.end()]);
    // Those of the page itself, and no others.
    for (part, count) in [("<script", 3), ("</script", 3), ("<!--", 0), ("<img", 0), ("<b>x", 0)] {
        assert_eq!(page.matches(part).count(), count, "{part}");
    }
    assert!(page.contains("<title>memtrace report: db1&lt;/title&gt;&lt;script&gt;alert(1)"));
    assert!(page.contains("no function &lt;b&gt;"));
    let data = data(&page);
    let all_names: Vec<_> =
        data["longest"].as_array().expect("rows").iter().map(|row| &row["name"]).collect();
    assert!(all_names.contains(&&serde_json::json!("</script><b>x")), "{all_names:?}");
    assert_eq!(data["killed"], 1);
    // A script has to have what nobody can know before.
    let (_, rest) = page.split_once("script-src 'nonce-").expect("a policy");
    let (nonce, _) = rest.split_once('\'').expect("an end");
    assert!(nonce.len() == 32 && page.matches(nonce).count() == 2);
}

#[test]
fn the_pages_own_parts_stay_within_their_elements() {
    assert!(!super::SCRIPT.contains("</script") && !super::SCRIPT.contains("<!--"));
    assert!(!super::STYLE.contains("</style"));
    for text in [super::SCRIPT, super::STYLE, super::PAGE] {
        assert!(!text.contains("http:") && !text.contains("https:"), "it would have to be fetched");
    }
    assert!(!super::SCRIPT.contains("innerHTML"));
}

#[test]
fn sums_are_those_of_the_stalls() {
    let mut maker = Maker::new(&meta());
    let mut total = 0;
    for n in 0..20_000_u64 {
        let duration_ns = 1000 + n;
        total += duration_ns;
        let tid = u32::try_from(n % 700).expect("small");
        let start_ns = SECOND + n * 1_000_000;
        let stall = if n % 3 == 0 { compaction() } else { reclaim() };
        let comm = reclaim().comm;
        maker.event(&Event::Stall(Stall {
            start_ns,
            duration_ns,
            tid,
            pid: tid / 7,
            comm,
            ..stall
        }));
    }
    let data = data(&page(&[maker.end()]));
    let sum = |rows: &serde_json::Value, at: usize| -> u64 {
        let rows = rows.as_array().expect("rows");
        rows.iter().map(|row| row["stat"][at].as_u64().expect("a number")).sum()
    };
    for table in ["kinds", "orders"] {
        assert_eq!((sum(&data[table], 0), sum(&data[table], 1)), (20_000, total), "{table}");
    }
    for (table, rows) in [("threads", 500), ("processes", 100), ("cgroups", 1)] {
        let table = &data[table];
        assert_eq!(table["rows"].as_array().expect("rows").len(), rows);
        let others = table["others_ns"].as_u64().expect("a number");
        assert_eq!(sum(&table["rows"], 1) + others, total);
    }
    assert_eq!(data["threads"]["others"], 200);
    assert_eq!(sum(&data["zones"], 0), 6667);
    assert_eq!(data["processes"]["rows"][0]["key"][3], "/system.slice/pg.service");
    let cells = data["heat"]
        .as_array()
        .expect("columns")
        .iter()
        .flat_map(|cells| cells.as_array().expect("cells").iter().skip(1).step_by(2));
    assert_eq!(cells.map(|count| count.as_u64().expect("a number")).sum::<u64>(), 20_000);
    assert_eq!(data["longest"].as_array().expect("rows").len(), 100);
    assert_eq!(data["longest"][0]["ns"], 20_999);
    assert_eq!(data["longest"][99]["ns"], 20_900);
    let frames = data["frames"].as_array().expect("frames");
    assert_eq!(frames[0], "do_try_to_free_pages+0x1f");
    let flame = data["flame"].as_str().expect("a flame graph");
    assert!(flame.contains("do_try_to_free_pages"));
    assert!(
        !flame.contains("script") && !flame.contains("onload"),
        "the page would have to refuse it"
    );
}

#[test]
fn stalls_that_reclaimed_from_nothing_are_no_row_and_no_others() {
    let mut maker = Maker::new(&meta());
    let mut reclaimed_ns = 0;
    for target in 0..700 {
        let Stall { mut detail, duration_ns, .. } = reclaim();
        if let Detail::Reclaim(reclaim) = &mut detail {
            reclaim.target_cgroup_id = Some(1000 + target);
        }
        reclaimed_ns += duration_ns;
        maker.event(&Event::Stall(Stall { detail, ..reclaim() }));
        if target % 7 == 0 {
            // Less than any other row has, so that it is not among those that are shown.
            maker.event(&Event::Stall(Stall { duration_ns: 1000, ..compaction() }));
        }
    }
    let data = data(&page(&[maker.end()]));
    let targets = &data["targets"];
    let rows = targets["rows"].as_array().expect("rows");
    let shown_ns: u64 = rows.iter().map(|row| row["stat"][1].as_u64().expect("a number")).sum();
    assert_eq!((rows.len(), &targets["others"]), (500, &200.into()));
    assert_eq!(targets["others_ns"], reclaimed_ns - shown_ns);
}

#[test]
fn each_recording_is_named_by_its_file() {
    let page = page(&[Maker::new(&meta()).end(), Maker::new(&meta()).end()]);
    for number in 0..2 {
        let shown = format!("<dt>File</dt><dd>&lt;img src={number}&gt;&lt;/title&gt;.mtr</dd>");
        assert_eq!(page.matches(&shown).count(), 1, "{shown}");
    }
}

#[test]
fn the_worst_second_is_told_as_in_the_text() {
    let mut maker = Maker::new(&meta());
    for second in 0..5 {
        let vmstat = format!("allocstall_normal {}\n", 7 * second);
        let events = format!("high 0\nmax {}\n", 3 * second);
        let mut look = look(second);
        look.files.insert("/proc/vmstat".to_owned(), vmstat);
        let buddyinfo = "Node 0, zone Normal 5 0 2 0\n".to_owned();
        look.files.insert("/proc/buddyinfo".to_owned(), buddyinfo);
        let of_cgroup = [("memory.current", "1048576\n".to_owned()), ("memory.events", events)];
        look.cgroups = [(70, of_cgroup.map(|(name, text)| (name.to_owned(), text)).into())].into();
        maker.builder.note(&Note::Look(look));
        let (start_ns, duration_ns) = ((second + 1) * SECOND, (second % 4 + 1) * 1_000_000);
        maker.event(&Event::Stall(Stall { start_ns, duration_ns, ..reclaim() }));
    }
    let recordings = [maker.end()];
    let worst = &data(&page(&recordings))["worst"];
    assert_eq!(worst["at_ms"], 1_770_000_004_000.0);
    assert_eq!(worst["lost"], "4.00 ms lost, 1 stall began in it");
    let then = &worst["then"];
    assert_eq!(then["apart"], "1.00 s after it began");
    let facts = serde_json::json!([
        ["memory", "available 229.1 MiB, free 120.6 MiB"],
        ["pressure of the last 10 s", "full 0.04 %, some 4.04 %"],
        ["counted in 1.00 s", "allocstall_normal 7"],
    ]);
    assert_eq!(then["facts"], facts);
    assert_eq!(
        then["cgroups"],
        serde_json::json!([["/system.slice/pg.service", "1.0 MiB, max +3"]])
    );
    let zone = serde_json::json!({"name": "0/Normal", "free": 41_676, "min": 11_284, "low": 14_105,
        "high": 16_926, "most_order": 2, "below": ""});
    assert_eq!(then["zones"][2], zone);
    let mut text = Vec::new();
    let findings =
        crate::report::Findings::gather(&recordings, &[file_name(0)], 10, &AtomicU64::new(0));
    findings.text(&jiff::tz::TimeZone::UTC, &mut text);
    let text = String::from_utf8(text).expect("text");
    for said in [&worst["lost"], &then["apart"], &then["facts"][2][0], &then["facts"][0][1]] {
        assert!(text.contains(said.as_str().expect("words")), "no {said} in {text}");
    }
}

#[test]
fn parts_and_what_is_lost_are_told() {
    let mut maker = Maker::new(&Meta { scopes: true, ..meta() });
    let stall = Stall { start_ns: SECOND, ..reclaim() };
    let Stall { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, .. } = stall;
    let mut parts = Parts { shrinkers: vec![(0x1f, 1000)], ..Parts::default() };
    parts.ns[memtrace_common::record::part::SCAN] = duration_ns - 1000;
    maker.event(&Event::Stall(stall));
    let callers = Vec::new();
    maker.event(&Event::Scope(Scope {
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
    }));
    let counts = Counts { lost: 12, ..Counts::default() };
    maker.builder.note(&Note::End(End { counts, ..End::default() }));
    let page = page(&[maker.end()]);
    assert!(page.contains("<dd>12 stalls lost (ring buffer full)</dd>"));
    let data = data(&page);
    let expected = serde_json::json!([["scan", 1_233_567], ["shrink:do_try_to_free_pages", 1000]]);
    assert_eq!(data["longest"][0]["parts"], expected);
    assert_eq!(data["parts"], expected);
    assert_eq!(data["worst"]["then"], serde_json::Value::Null, "there was no look");
}

#[test]
fn an_empty_recording_and_none_at_all_make_a_page() {
    for recordings in [vec![], vec![Maker::new(&meta()).end()]] {
        let page = page(&recordings);
        assert!(page.contains("No stall is in the recording."));
        assert_eq!(data(&page)["flame"], serde_json::Value::Null);
    }
}

#[test]
fn an_hour_is_small() {
    let mut maker = Maker::new(&meta());
    let path = "x/".repeat(200);
    for id in 0..900 {
        maker.names.cgroups.learn(id, Some(format!("/{id}{path}").into_bytes()));
    }
    // Of a million stalls a page has no more than of these.
    for second in 0..3599_u64 {
        for n in 0..16_u64 {
            let mixed = (second * 16 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            // From 1 us to a quarter of a second, as often in each doubling.
            let duration_ns = (1000 + mixed % 1000) << (mixed >> 60) << (n % 3);
            let tid = u32::try_from(mixed >> 20 & 0xfff).expect("small");
            let cgroup_id = u64::from(tid % 900);
            let stack = (0..30).map(|depth| 0xffff_8000 + (mixed % 50) * 100 + depth).collect();
            let start_ns = (second + 1) * SECOND + n * 60_000_000;
            let mut stall = Stall { start_ns, duration_ns, tid, pid: tid, stack, ..reclaim() };
            stall.cgroup_id = Some(cgroup_id);
            if n % 4 == 0 {
                stall.detail = compaction().detail;
            } else if let (Detail::Reclaim(reclaim), 1) = (&mut stall.detail, n % 4) {
                reclaim.kind = crate::stall::ReclaimKind::Direct;
            }
            maker.event(&Event::Stall(stall));
        }
        maker.builder.note(&Note::Look(look(second)));
    }
    let page = page(&[maker.end()]);
    let data = data(&page);
    assert_eq!((data["columns"].clone(), data["step_ms"].clone()), (1800.into(), 2000.0.into()));
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    assert!(page.len() > 800_000, "{} bytes: it is full", page.len());
}

fn look(second: u64) -> Look {
    let zone = |name: &str, free: u64| {
        format!(
            "Node 0, zone {name}\n  pages free {free}\n        min 11284\n        low {}\n        high 16926\n",
            14_105 + second / 600
        )
    };
    let zones = ["DMA", "DMA32", "Normal", "Movable"]
        .map(|name| zone(name, 10_000 + second * 7919 % 100_000));
    let files = [
        (
            "/proc/pressure/memory",
            format!(
                "some avg10={}.{:02} avg60=0.00 avg300=0.00\nfull avg10=0.{:02} avg60=0.00 avg300=0.00\n",
                second % 90,
                second % 100,
                second % 100
            ),
        ),
        (
            "/proc/meminfo",
            format!("MemFree: {} kB\nMemAvailable: {} kB\n", 123_456 + second, 234_567 + second),
        ),
        ("/proc/zoneinfo", zones.concat()),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text)).into();
    Look { at_ns: (second + 1) * SECOND, files, ..Look::default() }
}
