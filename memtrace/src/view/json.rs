//! JSON: one object a line. The keys and what they mean are a stable interface: docs/json.md.

use std::{io, rc::Rc};

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use serde::ser::{Error as _, Serializer};
use serde_json::ser::Formatter;

use super::intervals::Interval;
use super::masks::Masks;
use super::second::Second;
use super::words::status_name;
use super::{Subject, Summary, ViewOptions, subject_of};
use crate::histogram::{By, Key, Times};
use crate::names::{GfpNames, Names};
use crate::stall::{Comm, Compaction, Detail, Reclaim, Stall};
use crate::symbols::Frame;
use crate::text::{Lossless, is_hidden, is_plain};

/// One object a line.
#[derive(Debug)]
pub struct Json {
    subject: Subject,
    stacks: bool,
    user_stacks: bool,
    second: Second,
    gfp: Masks,
}

impl Json {
    pub(super) fn new(options: &ViewOptions) -> Self {
        let ViewOptions { subject, stacks, user_stacks, .. } = *options;
        Self { subject, stacks, user_stacks, second: Second::default(), gfp: Masks::default() }
    }

    pub(super) fn stall(
        &mut self,
        stall: &Stall,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let mut object = Object::begin(out);
        object.text("type", subject_of(stall).name().as_bytes())?;
        let out = object.key("time");
        self.time(names.clock.at(stall.start_ns), out)?;
        object.entry("start_ns", stall.start_ns)?;
        object.entry("duration_ns", stall.duration_ns)?;
        object.text("comm", stall.comm.as_bytes())?;
        object.entry("pid", stall.pid)?;
        object.entry("tid", stall.tid)?;
        object.entry("uid", stall.uid)?;
        object.entry("cpu", stall.cpu)?;
        object.entry("order", stall.order)?;
        append_gfp(&mut self.gfp, stall.gfp, &names.gfp, object.key("gfp"))?;
        object.entry("cgroup_id", stall.cgroup_id)?;
        object.text("cgroup", stall.cgroup_id.and_then(|id| names.cgroups.path(id)))?;
        match &stall.detail {
            Detail::Reclaim(detail) => reclaim(detail, names, &mut object)?,
            Detail::Compaction(detail) => compaction(detail, names, &mut object)?,
        }
        self.stacks(stall.pid, &stall.stack, &stall.user_stack, names, &mut object)?;
        object.end();
        Ok(())
    }

    /// The stacks that were asked for, of a thread of process `pid`.
    pub(super) fn stacks(
        &self,
        pid: u32,
        kernel: &[u64],
        user: &[u64],
        names: &mut Names,
        object: &mut Object<'_>,
    ) -> io::Result<()> {
        if self.stacks {
            object.entry("stack", Frames(&names.symbols.kernel(kernel)))?;
        }
        if self.user_stacks {
            object.entry("user_stack", Frames(&names.symbols.user(pid, user)))?;
        }
        Ok(())
    }

    /// Appends a list of the names of flags.
    pub(super) fn gfp(
        &mut self,
        mask: Option<u32>,
        names: &GfpNames,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        append_gfp(&mut self.gfp, mask, names, out)
    }

    /// Appends what [`Time`] is as well.
    pub(super) fn time(&mut self, at: Timestamp, out: &mut Vec<u8>) -> io::Result<()> {
        out.push(b'"');
        let spell = |at| TimeZone::UTC.to_datetime(at).strftime("%FT%T");
        self.second.append(at, 9, spell, out)?;
        out.extend_from_slice(b"Z\"");
        Ok(())
    }

    pub(super) fn histogram(
        &self,
        interval: Interval,
        key: Key,
        times: &Times,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let percentiles = times.percentiles();
        let [p50_ns, p90_ns, p99_ns, p99_9_ns] =
            [0.5, 0.9, 0.99, 0.999].map(|quantile| percentiles.quantile_ns(quantile));
        let object = HistogramObject {
            r#type: "histogram",
            since: Time(interval.since),
            time: Time(interval.at),
            subject: self.subject.name(),
            by: by_name(interval.by, self.subject),
            key: KeyObject::new(key, names),
            count: times.count(),
            total_ns: times.total_ns(),
            mean_ns: times.mean_ns(),
            min_ns: times.min_ns(),
            max_ns: times.max_ns(),
            p50_ns,
            p90_ns,
            p99_ns,
            p99_9_ns,
            clamped: times.clamped(),
            buckets: Buckets(times),
            hdr: Hdr(percentiles.histogram()),
        };
        line(&object, out)
    }

    pub(super) fn summary(
        &self,
        summary: &Summary,
        at: Timestamp,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let Summary {
            stalls,
            lost,
            missed_begin,
            table_full,
            skipped,
            unfinished,
            duration,
            unavailable,
        } = summary;
        let object = SummaryObject {
            r#type: "summary",
            time: Time(at),
            subject: self.subject.name(),
            stalls: *stalls,
            lost: *lost,
            missed_begin: *missed_begin,
            table_full: *table_full,
            skipped: *skipped,
            unfinished: *unfinished,
            duration_ns: duration.as_nanos(),
            unavailable,
        };
        line(&object, out)
    }
}

/// Appends a list of the names of flags.
pub(super) fn append_gfp(
    masks: &mut Masks,
    mask: Option<u32>,
    names: &GfpNames,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let Some(mask) = mask else { return append((), out) };
    let mut written = Ok(());
    let spell = |out: &mut Vec<u8>| {
        let mut list = Vec::new();
        names.for_each(mask, |name| list.push(name.to_owned()));
        written = append(list, out);
    };
    masks.append(mask, spell, out);
    written
}

pub(crate) fn line(object: &impl Serialize, out: &mut Vec<u8>) -> io::Result<()> {
    append(object, out)?;
    out.push(b'\n');
    Ok(())
}

fn append(value: impl Serialize, out: &mut Vec<u8>) -> io::Result<()> {
    Ok(value.serialize(&mut serde_json::Serializer::with_formatter(out, Visible))?)
}

/// Compact JSON in which every character that is not to be seen is written as `\uNNNN`, so that it
/// does nothing to a terminal either.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        mut fragment: &str,
    ) -> io::Result<()> {
        // Most often there is none, which is soon told of ASCII.
        while !is_plain(fragment.as_bytes())
            && let Some((at, hidden)) = fragment.char_indices().find(|(_, c)| is_hidden(*c))
        {
            writer.write_all(&fragment.as_bytes()[..at])?;
            for unit in hidden.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            fragment = &fragment[at + hidden.len_utf8()..];
        }
        writer.write_all(fragment.as_bytes())
    }
}

/// An object in the making, as every stall is one, of two dozen entries. Their keys need no escapes;
/// texts that need none, either, are copied.
pub(super) struct Object<'a>(&'a mut Vec<u8>);

impl<'a> Object<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self(out)
    }

    pub(super) fn entry(&mut self, key: &'static str, value: impl Serialize) -> io::Result<()> {
        append(value, self.key(key))
    }

    pub(super) fn text<'t>(
        &mut self,
        key: &'static str,
        text: impl Into<Option<&'t [u8]>>,
    ) -> io::Result<()> {
        let out = self.key(key);
        match text.into() {
            Some(text) if is_plain(text) && memchr::memchr2(b'"', b'\\', text).is_none() => {
                out.push(b'"');
                out.extend_from_slice(text);
                out.push(b'"');
                Ok(())
            }
            text => append(text.map(Text), out),
        }
    }

    /// Begins an entry; where its value has to be appended.
    pub(super) fn key(&mut self, key: &'static str) -> &mut Vec<u8> {
        if !self.0.ends_with(b"{") {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
        self.0
    }

    /// Ends the object and its line.
    pub(super) fn end(self) {
        self.0.extend_from_slice(b"}\n");
    }
}

/// A stack, as the list of its frames' texts.
pub(super) struct Frames<'a>(pub(super) &'a [Rc<Frame>]);

impl Serialize for Frames<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|frame| frame.text()))
    }
}

fn reclaim(reclaim: &Reclaim, names: &mut Names, object: &mut Object<'_>) -> io::Result<()> {
    let Reclaim {
        kind,
        limit: _,
        nr_scanned,
        nr_reclaimed,
        compaction_ready,
        priority,
        target_cgroup_id,
        free_pages,
        node,
    } = *reclaim;
    let target_id = target_cgroup_id.filter(|&id| id != 0);
    object.text("kind", kind.name().as_bytes())?;
    object.entry("nr_scanned", nr_scanned)?;
    object.entry("nr_reclaimed", nr_reclaimed)?;
    object.entry("compaction_ready", compaction_ready)?;
    object.entry("priority", priority)?;
    object.entry("target_cgroup_id", target_id)?;
    object.text("target_cgroup", target_id.and_then(|id| names.cgroups.path(id)))?;
    object.entry("free_pages", free_pages)?;
    object.entry("node", node)
}

fn compaction(compaction: &Compaction, names: &Names, object: &mut Object<'_>) -> io::Result<()> {
    let Compaction { cause, zone, mode, status, scanned, watermarks, frag_index } = compaction;
    object.text("cause", cause.name().as_bytes())?;
    object.entry("node", zone.as_ref().map(|zone| zone.node))?;
    object.text("zone", zone.as_ref().map(|zone| zone.name.as_bytes()))?;
    object.entry("mode", mode.map(|value| names.modes.name(value)))?;
    object.entry("status", status_name(*status, &names.statuses))?;
    object.entry("migrate_scanned", scanned.map(|scanned| scanned.migrate))?;
    object.entry("free_scanned", scanned.map(|scanned| scanned.free))?;
    object.entry("frag_index", frag_index.map(|index| f64::from(index) / 1000.0))?;
    object.entry("watermark_min", watermarks.map(|at| at.min))?;
    object.entry("watermark_low", watermarks.map(|at| at.low))?;
    object.entry("watermark_high", watermarks.map(|at| at.high))?;
    object.entry("free_pages", watermarks.map(|at| at.free))
}

#[derive(Serialize)]
struct HistogramObject<'a> {
    r#type: &'static str,
    since: Time,
    time: Time,
    subject: &'static str,
    by: &'static str,
    key: KeyObject<'a>,
    count: u64,
    total_ns: u128,
    mean_ns: u64,
    min_ns: u64,
    max_ns: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p99_9_ns: u64,
    clamped: u64,
    buckets: Buckets<'a>,
    hdr: Hdr<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum KeyObject<'a> {
    Thread { tid: u32, pid: u32, comm: CommText },
    Process { pid: u32, comm: CommText },
    Comm { comm: CommText },
    Cgroup { cgroup_id: Option<u64>, cgroup: Option<Text<'a>> },
    Uid { uid: u32 },
    Kind { kind: &'static str },
    Cause { cause: &'static str },
    Order { order: Option<i32> },
    Other { other: bool },
}

impl<'a> KeyObject<'a> {
    fn new(key: Key, names: &'a mut Names) -> Self {
        match key {
            Key::Thread { tid, pid, comm } => Self::Thread { tid, pid, comm: CommText(comm) },
            Key::Process { pid, comm } => Self::Process { pid, comm: CommText(comm) },
            Key::Comm(comm) => Self::Comm { comm: CommText(comm) },
            Key::Cgroup(cgroup_id) => {
                let path = cgroup_id.and_then(|id| names.cgroups.path(id));
                Self::Cgroup { cgroup_id, cgroup: path.map(Text) }
            }
            Key::Uid(uid) => Self::Uid { uid },
            Key::Kind(kind) => Self::Kind { kind: kind.name() },
            Key::StallKind(kind) => Self::Kind { kind: kind.name() },
            Key::Cause(cause) => Self::Cause { cause: cause.name() },
            Key::Order(order) => Self::Order { order },
            Key::Other => Self::Other { other: true },
        }
    }
}

#[derive(Serialize)]
struct SummaryObject<'a> {
    r#type: &'static str,
    time: Time,
    subject: &'static str,
    stalls: u64,
    lost: u64,
    missed_begin: u64,
    table_full: u64,
    skipped: u64,
    unfinished: u64,
    duration_ns: u128,
    unavailable: &'a [String],
}

/// A string of any bytes.
pub(crate) struct Text<'a>(pub(crate) &'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Lossless(self.0).text())
    }
}

/// A thread's name.
struct CommText(Comm);

impl Serialize for CommText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Text(self.0.as_bytes()).serialize(serializer)
    }
}

/// RFC 3339 in UTC, always with nine decimals.
pub(crate) struct Time(pub(crate) Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.9}", self.0))
    }
}

/// The rows by powers of two.
struct Buckets<'a>(&'a Times);

#[derive(Serialize)]
struct Bucket {
    low_us: u64,
    high_us: u64,
    count: u64,
}

impl Serialize for Buckets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.slots().map(|slot| Bucket {
            low_us: slot.low_us,
            high_us: slot.high_us,
            count: slot.count,
        }))
    }
}

/// The percentiles' histogram as base64 of HdrHistogram's V2 encoding, not compressed.
struct Hdr<'a>(&'a Histogram<u64>);

impl Serialize for Hdr<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut encoded = Vec::new();
        V2Serializer::new().serialize(self.0, &mut encoded).map_err(S::Error::custom)?;
        serializer.collect_str(&Base64Display::new(&encoded, &STANDARD))
    }
}

/// What histograms are told apart by, in the words of their keys: kinds of compaction are causes.
fn by_name(by: By, subject: Subject) -> &'static str {
    match (by, subject) {
        (By::Kind, Subject::Compaction) => "cause",
        _ => by.name(),
    }
}

#[cfg(test)]
mod tests {
    use std::slice;
    use std::time::Duration;

    use base64::Engine as _;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use insta::assert_snapshot;
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::super::fixtures::{
        NO_PID, at, comm, compaction, episode, extreme, histograms, names, options, reclaim, shown,
        shown_episodes, unknown, unknown_episode,
    };
    use super::super::{Certificate, Format, View};
    use super::*;
    use crate::coverage::Coverage;
    use crate::episode::Episode;
    use crate::histogram::By;
    use crate::kind::Kind;

    const SCHEMA: &str = include_str!("../../../docs/json-schema.json");
    const DOCS: &str = include_str!("../../../docs/json.md");

    fn parsed(line: &str) -> Value {
        serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"))
    }

    /// The lines, each of them as the schema says.
    fn valid(text: &str) -> Vec<Value> {
        let validator = jsonschema::validator_for(&parsed(SCHEMA)).expect("a schema");
        let objects: Vec<_> = text.lines().map(parsed).collect();
        for object in &objects {
            assert!(validator.is_valid(object), "not as the schema says: {object}");
        }
        objects
    }

    fn stalls(stacks: bool, stalls: &[Stall]) -> String {
        let user_stacks = stacks;
        shown(
            ViewOptions { stacks, user_stacks, ..options(Subject::Reclaim, Format::Json) },
            stalls,
        )
    }

    fn one(stall: Stall) -> Value {
        valid(&stalls(false, &[stall])).remove(0)
    }

    #[test]
    fn reclaim_line() {
        assert_snapshot!(stalls(false, &[reclaim()]), @r#"{"type":"reclaim","time":"2026-03-01T12:00:05.123456789Z","start_ns":5123456789,"duration_ns":1234567,"comm":"postgres","pid":1234,"tid":1240,"uid":1000,"cpu":3,"order":0,"gfp":["GFP_HIGHUSER_MOVABLE"],"cgroup_id":70,"cgroup":"/system.slice/pg.service","kind":"memcg","nr_scanned":64,"nr_reclaimed":37,"compaction_ready":false,"priority":11,"target_cgroup_id":71,"target_cgroup":"/system.slice","free_pages":21565,"node":null}"#);
    }

    #[test]
    fn compaction_line() {
        assert_snapshot!(stalls(false, &[compaction()]), @r#"{"type":"compaction","time":"2026-03-01T12:00:05.123456789Z","start_ns":5123456789,"duration_ns":1234567,"comm":"summ","pid":1234,"tid":1240,"uid":1000,"cpu":3,"order":9,"gfp":["GFP_HIGHUSER_MOVABLE"],"cgroup_id":70,"cgroup":"/system.slice/pg.service","cause":"direct","node":1,"zone":"Normal","mode":"sync_light","status":"partial_skipped","migrate_scanned":1234,"free_scanned":5678,"frag_index":0.728,"watermark_min":11284,"watermark_low":14105,"watermark_high":16926,"free_pages":14193}"#);
    }

    #[test]
    fn histogram_line() {
        assert_snapshot!(shown(histograms(By::Thread, Format::Json), &[reclaim()]), @r#"{"type":"histogram","since":"2026-03-01T12:00:00.000000000Z","time":"2026-03-01T12:00:10.000000000Z","subject":"reclaim","by":"thread","key":{"tid":1240,"pid":1234,"comm":"postgres"},"count":1,"total_ns":1234567,"mean_ns":1234567,"min_ns":1234567,"max_ns":1234567,"p50_ns":1234567,"p90_ns":1234567,"p99_ns":1234567,"p99_9_ns":1234567,"clamped":0,"buckets":[{"low_us":0,"high_us":1,"count":0},{"low_us":2,"high_us":3,"count":0},{"low_us":4,"high_us":7,"count":0},{"low_us":8,"high_us":15,"count":0},{"low_us":16,"high_us":31,"count":0},{"low_us":32,"high_us":63,"count":0},{"low_us":64,"high_us":127,"count":0},{"low_us":128,"high_us":255,"count":0},{"low_us":256,"high_us":511,"count":0},{"low_us":512,"high_us":1023,"count":0},{"low_us":1024,"high_us":2047,"count":1}],"hdr":"HISTEwAAAAMAAAAAAAAAAgAAAAAAAAABAAAAAAAf//8/8AAAAAAAAKscAg=="}"#);
    }

    fn episodes(stacks: bool, all: &[Episode]) -> String {
        let options =
            ViewOptions { stacks, user_stacks: stacks, ..options(Subject::Stalls, Format::Json) };
        shown_episodes(options, all)
    }

    #[test]
    fn episode_line() {
        assert_snapshot!(episodes(false, &[episode()]), @r#"
        {"type":"stall","time":"2026-03-01T12:00:05.123456789Z","start_ns":5123456789,"end_ns":5125925932,"duration_ns":2469134,"comm":"summ","pid":1234,"tid":1240,"uid":1000,"cpu":3,"kind":"memcg-high","kinds":{"compaction":1234567,"memcg-high":1234567},"rounds":{"reclaim":1,"compaction":1,"other":0},"order":9,"gfp":["GFP_HIGHUSER_MOVABLE"],"cgroup_id":70,"cgroup":"/system.slice/pg.service","owner":{"name":"pg.service","unit":"pg.service","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"target_cgroup_id":71,"target_cgroup":"/system.slice","target_owner":{"name":"system.slice","unit":"system.slice","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"verdict":"slow","target_verdict":"hopeless","nr_scanned":64,"nr_reclaimed":37,"priority":11,"free_pages":21565,"node":1,"zone":"Normal","status":"partial_skipped","parts":{"compaction":1033567,"scan":1033567,"shrink:do_try_to_free_pages":2000,"throttled:writeback":400000}}
        {"type":"oom","time":"2026-03-01T12:00:05.123456789Z","at_ns":5123456789,"comm":"postgres","pid":1234,"tid":1240,"uid":1000,"cgroup_id":70,"cgroup":"/system.slice/pg.service","owner":{"name":"pg.service","unit":"pg.service","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"victim_pid":99,"victim_comm":"\u001b[2J\"'\\\n\\xff💩","victim_cgroup_id":71,"victim_cgroup":"/system.slice","victim_owner":{"name":"system.slice","unit":"system.slice","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null}}
        {"type":"verdict","time":"2026-03-01T12:00:06.000000000Z","target_cgroup_id":71,"target_cgroup":"/system.slice","target_owner":{"name":"system.slice","unit":"system.slice","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"verdict":"hopeless","rounds":12,"stalled_ns":1500000000,"nr_scanned":3000,"nr_reclaimed":0,"refaulted_per_1000":null,"priority":null}
        {"type":"verdict","time":"2026-03-01T12:00:06.000000000Z","target_cgroup_id":null,"target_cgroup":null,"target_owner":null,"verdict":null,"rounds":12,"stalled_ns":1500000000,"nr_scanned":3000,"nr_reclaimed":0,"refaulted_per_1000":null,"priority":null}
        "#);
    }

    #[test]
    fn every_episode_is_as_the_schema_says() {
        for stacks in [false, true] {
            let objects = valid(&episodes(stacks, &[episode(), unknown_episode()]));
            assert_eq!(objects.len(), 5);
            assert_eq!(objects[0].get("stack").is_some(), stacks);
        }
        for by in By::ALL {
            let options = ViewOptions { subject: Subject::Stalls, ..histograms(by, Format::Json) };
            let objects = valid(&shown_episodes(options, &[episode(), unknown_episode()]));
            assert!(!objects.is_empty(), "{by:?}");
        }
    }

    #[test]
    fn the_parts_are_the_whole() {
        let object = valid(&episodes(false, &[episode()])).remove(0);
        let parts = object["parts"].as_object().expect("an object");
        let sum: u64 = parts.values().filter_map(Value::as_u64).sum();
        assert_eq!(object["duration_ns"], sum);
    }

    #[test]
    fn coverage_line() {
        let mut coverage = Coverage::of(&[Kind::Direct, Kind::Penalty]);
        coverage.lacks(Kind::Penalty, "no such function");
        let mut view = View::new(options(Subject::Stalls, Format::Json));
        let mut out = Vec::new();
        let summary = Summary { lost: 3, duration: Duration::from_mins(1), ..Summary::default() };
        let none = Certificate::of(7, &coverage, &summary, 0);
        let some = Certificate { longest_ns: 5, filtered: true, has_ended: true, ..none.clone() };
        view.coverage(&coverage, &[none, some], at(10), &mut out);
        let text = String::from_utf8_lossy(&out);
        assert_eq!(valid(&text).len(), 3);
        assert_snapshot!(text, @r#"
        {"type":"coverage","time":"2026-03-01T12:00:10.000000000Z","watched":["direct"],"not_watched":[{"kind":"penalty","reason":"no such function"}]}
        {"type":"certificate","time":"2026-03-01T12:00:10.000000000Z","pid":7,"longest_ns":null,"duration_ns":60000000000,"watched":1,"kinds":14,"not_seen_whole":3,"filtered":false,"has_ended":false}
        {"type":"certificate","time":"2026-03-01T12:00:10.000000000Z","pid":7,"longest_ns":5,"duration_ns":60000000000,"watched":1,"kinds":14,"not_seen_whole":3,"filtered":true,"has_ended":true}
        "#);
    }

    #[test]
    fn summary_line() {
        let mut view = View::new(options(Subject::Compaction, Format::Json));
        let summary = Summary {
            stalls: 5,
            lost: 1,
            missed_begin: 2,
            table_full: 3,
            skipped: 6,
            unfinished: 4,
            duration: Duration::from_millis(10_001),
            unavailable: vec!["free memory (no symbol)".to_owned()],
        };
        let mut out = Vec::new();
        view.end(at(10), &summary, &mut out);
        let text = String::from_utf8_lossy(&out);
        assert_eq!(valid(&text).len(), 1);
        assert_snapshot!(text, @r#"{"type":"summary","time":"2026-03-01T12:00:10.000000000Z","subject":"compaction","stalls":5,"lost":1,"missed_begin":2,"table_full":3,"skipped":6,"unfinished":4,"duration_ns":10001000000,"unavailable":["free memory (no symbol)"]}"#);
    }

    #[test]
    fn every_stall_is_as_the_schema_says() {
        let made = [reclaim(), compaction()];
        let all: Vec<_> = made
            .iter()
            .flat_map(|stall| [stall.clone(), unknown(stall.clone()), extreme(stall.clone())])
            .collect();
        for stacks in [false, true] {
            let objects = valid(&stalls(stacks, &all));
            assert_eq!(objects.len(), 6);
            for object in objects {
                assert_eq!(object.get("stack").is_some(), stacks);
            }
        }
    }

    #[test]
    fn every_histogram_is_as_the_schema_says() {
        for by in By::ALL {
            let many: Vec<_> = (0..5)
                .map(|n| Stall { pid: NO_PID + n, tid: NO_PID + n, uid: n, ..reclaim() })
                .chain([
                    compaction(),
                    unknown(reclaim()),
                    extreme(reclaim()),
                    extreme(compaction()),
                ])
                .collect();
            let objects = valid(&shown(histograms(by, Format::Json), &many));
            assert!((1..=3).contains(&objects.len()), "{by:?}");
            for object in objects {
                assert_eq!(object["by"], by.name());
            }
        }
    }

    #[test]
    fn the_schema_is_strict() {
        let validator = jsonschema::validator_for(&parsed(SCHEMA)).expect("a schema");
        let mut text = stalls(false, &[reclaim(), compaction()]);
        text += &episodes(false, &[episode()]);
        text += &shown(histograms(By::Uid, Format::Json), &[reclaim()]);
        let mut view = View::new(options(Subject::Reclaim, Format::Json));
        let mut out = Vec::new();
        view.end(at(0), &Summary::default(), &mut out);
        text += &String::from_utf8_lossy(&out);
        let objects = valid(&text);
        assert_eq!(objects.len(), 8);
        for object in objects {
            let Value::Object(fields) = object else { panic!("not an object: {object}") };
            for name in fields.keys() {
                let mut renamed = fields.clone();
                let value = renamed.remove(name).unwrap_or_default();
                assert!(!validator.is_valid(&renamed.clone().into()), "{name} may be left out");
                renamed.insert(format!("{name}_"), value);
                assert!(!validator.is_valid(&renamed.into()), "{name} may be called {name}_");
            }
        }
    }

    #[test]
    fn the_docs_name_every_key() {
        fn each_name(value: &Value, visit: &mut impl FnMut(&str)) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::Object(properties)) = fields.get("properties") {
                        properties.keys().for_each(|name| visit(name));
                    }
                    fields.values().for_each(|field| each_name(field, visit));
                }
                Value::Array(items) => items.iter().for_each(|item| each_name(item, visit)),
                _ => {}
            }
        }
        let mut names = 0;
        each_name(&parsed(SCHEMA), &mut |name| {
            names += 1;
            assert!(DOCS.contains(&format!("`{name}`")), "docs/json.md does not name `{name}`");
        });
        assert!(names > 80, "{names} names found");
    }

    #[test]
    fn unknown_is_null() {
        let object = one(unknown(reclaim()));
        for name in [
            "order",
            "gfp",
            "cgroup_id",
            "cgroup",
            "nr_scanned",
            "priority",
            "target_cgroup_id",
            "target_cgroup",
            "free_pages",
            "node",
        ] {
            assert_eq!(object.get(name), Some(&Value::Null), "{name}");
        }
        let object = one(unknown(compaction()));
        for name in [
            "node",
            "zone",
            "mode",
            "migrate_scanned",
            "free_scanned",
            "frag_index",
            "watermark_min",
            "watermark_low",
            "watermark_high",
            "free_pages",
        ] {
            assert_eq!(object.get(name), Some(&Value::Null), "{name}");
        }
        assert_eq!(object["status"], "-1");
    }

    #[test]
    fn times_of_stalls_read_like_all_others() {
        let mut json = Json::new(&options(Subject::Reclaim, Format::Json));
        let since = [0, 1, 999_999_999, 1_000_000_000, 1_500_000_000, i64::MAX];
        let times = since.map(|ns| at(0) + SignedDuration::from_nanos(ns));
        for at in times.into_iter().chain([Timestamp::MAX, Timestamp::UNIX_EPOCH]) {
            let (mut quick, mut plain) = (Vec::new(), Vec::new());
            json.time(at, &mut quick).expect("memory");
            append(Time(at), &mut plain).expect("memory");
            assert_eq!(String::from_utf8_lossy(&quick), String::from_utf8_lossy(&plain));
        }
    }

    #[test]
    fn texts_that_are_copied_read_like_all_others() {
        let check = |text: &[u8]| {
            let (mut quick, mut plain) = (Vec::new(), b"{\"key\":".to_vec());
            let mut object = Object::begin(&mut quick);
            object.text("key", text).expect("memory");
            object.end();
            append(Text(text), &mut plain).expect("memory");
            plain.extend_from_slice(b"}\n");
            assert_eq!(String::from_utf8_lossy(&quick), String::from_utf8_lossy(&plain));
        };
        check(b"");
        for byte in 0..=u8::MAX {
            check(&[byte]);
            check(&[&[b'a'; 40][..], &[byte], &[b'a'; 40]].concat());
        }
    }

    #[test]
    fn a_cgroup_out_of_sight_has_its_id_alone() {
        let object = one(Stall { cgroup_id: Some(5), ..reclaim() });
        assert_eq!((&object["cgroup_id"], &object["cgroup"]), (&json!(5), &Value::Null));
    }

    #[test]
    fn a_global_reclaim_has_no_target() {
        let mut stall = reclaim();
        if let Detail::Reclaim(reclaim) = &mut stall.detail {
            reclaim.target_cgroup_id = Some(0);
        }
        let object = one(stall);
        assert_eq!(
            (&object["target_cgroup_id"], &object["target_cgroup"]),
            (&Value::Null, &Value::Null)
        );
    }

    #[test]
    fn a_target_is_not_left_from_the_stall_before() {
        let lines = stalls(false, &[reclaim(), unknown(reclaim()), reclaim()]);
        let targets: Vec<_> =
            valid(&lines).iter().map(|line| line["target_cgroup"].clone()).collect();
        assert_eq!(targets, [json!("/system.slice"), Value::Null, json!("/system.slice")]);
    }

    #[test]
    fn of_hostile_names_nothing_is_lost() {
        let stall = Stall { pid: NO_PID, ..extreme(reclaim()) };
        let object = one(stall.clone());
        assert_eq!(object["comm"], "\u{1b}[2J\"'\\\n\\xff💩");
        let path = object["cgroup"].as_str().unwrap_or_default();
        assert!(path.starts_with("/\u{1b}[2J\néé") && path.len() > 4000, "{path}");

        let key = |by| {
            valid(&shown(histograms(by, Format::Json), slice::from_ref(&stall))).remove(0)["key"]
                .take()
        };
        assert_eq!(key(By::Process), json!({ "pid": NO_PID, "comm": object["comm"] }));
        assert_eq!(key(By::Cgroup), json!({ "cgroup_id": 72, "cgroup": path }));
    }

    /// JSON's own escapes leave out what some terminals obey.
    #[test]
    fn nothing_hidden_is_in_the_output() {
        let comm = comm("\u{202e}\u{9b}\u{7f}\u{e0041}é".as_bytes());
        let shown = stalls(false, &[Stall { comm, ..reclaim() }]);
        assert!(shown.contains(r#""\u202e\u009b\u007f\udb40\udc41é""#), "{shown}");
        assert_eq!(valid(&shown)[0]["comm"], "\u{202e}\u{9b}\u{7f}\u{e0041}é");
    }

    #[test]
    fn stacks_are_lists_of_frames() {
        let object = valid(&stalls(true, &[reclaim()])).remove(0);
        assert_eq!(object["stack"], json!(["do_try_to_free_pages+0x1f", "try_charge_memcg+0x2a"]));
        assert_eq!(object["user_stack"], json!(["0x3b"]));
        let object = valid(&stalls(true, &[unknown(reclaim())])).remove(0);
        assert_eq!((&object["stack"], &object["user_stack"]), (&json!([]), &json!([])));
    }

    #[test]
    fn the_hdr_payload_holds_the_same_histogram() {
        let many: Vec<_> =
            (1..=1000).map(|n| Stall { duration_ns: n * 1_000, ..reclaim() }).collect();
        let object = valid(&shown(histograms(By::Uid, Format::Json), &many)).remove(0);
        let bytes = STANDARD.decode(object["hdr"].as_str().unwrap_or_default()).expect("base64");
        let hdr: Histogram<u64> =
            Deserializer::new().deserialize(&mut bytes.as_slice()).expect("V2");
        assert_eq!(object["count"], 1000);
        assert_eq!(hdr.len(), 1000);
        assert_eq!(object["p50_ns"], hdr.value_at_quantile(0.5));
        assert_eq!(object["p99_9_ns"], hdr.value_at_quantile(0.999));
        let counts = object["buckets"].as_array().map_or(0, |buckets| {
            buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum()
        });
        assert_eq!(counts, 1000);
    }

    #[test]
    fn intervals_follow_each_other() {
        let mut view = View::new(histograms(By::Uid, Format::Json));
        let (mut names, mut out) = (names(), Vec::new());
        view.begin(at(0), &mut out);
        view.interval(&mut names, at(10), &mut out);
        assert_eq!(out, b"", "nothing stalled");
        view.stall(&reclaim(), &mut names, &mut out);
        view.interval(&mut names, at(20), &mut out);
        view.stall(&reclaim(), &mut names, &mut out);
        view.last_interval(&mut names, at(25), &mut out);
        view.end(at(25), &Summary::default(), &mut out);
        let objects = valid(&String::from_utf8_lossy(&out));
        let spans: Vec<_> = objects.iter().map(|line| (&line["since"], &line["time"])).collect();
        let time = |seconds| json!(format!("{:.9}", at(seconds)));
        assert_eq!(
            spans,
            [(&time(10), &time(20)), (&time(20), &time(25)), (&Value::Null, &time(25)),]
        );
        assert_eq!(objects[1]["count"], 1);
        assert_eq!(objects[2]["type"], "summary");
    }
}
