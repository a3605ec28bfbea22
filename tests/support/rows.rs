//! memtrace's JSON output, read back.

use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::oracle::{Detail, Mechanism};

/// All that memtrace printed with `--json`.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its stalls.
    pub rows: Vec<Row>,
    /// Its histograms.
    pub histograms: Vec<Value>,
    /// Its last line.
    pub summary: Summary,
}

/// A stall as memtrace saw it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The pair of tracepoints that it was measured with.
    pub mechanism: Mechanism,
    /// Its `kind` or `cause`.
    pub kind: String,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The user.
    pub uid: u32,
    /// The CPU of the end.
    pub cpu: u32,
    /// The thread's name.
    pub comm: String,
    /// Time of the begin, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// How long it lasted.
    pub duration_ns: u64,
    /// What the oracle has too.
    pub detail: Detail,
    /// All of it.
    pub value: Value,
}

/// memtrace's summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Stalls shown.
    pub stalls: u64,
    /// Lost in the ring buffer.
    pub lost: u64,
    /// Begun before tracing.
    pub missed_begin: u64,
    /// Without room in the table of stalls in progress.
    pub table_full: u64,
    /// Runs of probes that the kernel left out.
    pub skipped: u64,
    /// Not ended when tracing did.
    pub unfinished: u64,
    /// How long was traced.
    pub duration_ns: u64,
    /// What the kernel lacks.
    pub unavailable: Vec<String>,
}

impl Summary {
    /// Checks that nothing was lost between the begin of tracing and its end.
    ///
    /// # Panics
    /// When something was.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert_eq!(
            (self.lost, self.table_full, self.skipped),
            (0, 0, 0),
            "memtrace could not deliver all that it saw: {self:?}"
        );
    }
}

impl Output {
    /// The stalls of each thread in their order.
    fn in_order(&self) -> Vec<(u32, &str, Detail)> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|row| (row.tid, row.start_ns));
        let without_flags = |detail: &Detail| match detail.clone() {
            Detail::Reclaim { order, nr_reclaimed, nr_scanned, gfp: _ } => {
                Detail::Reclaim { order, nr_reclaimed, nr_scanned, gfp: Vec::new() }
            }
            other @ Detail::Compaction { .. } => other,
        };
        let stalls =
            rows.into_iter().map(|row| (row.tid, row.kind.as_str(), without_flags(&row.detail)));
        stalls.collect()
    }

    /// Reads what memtrace printed.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(
            text.ends_with('\n'),
            "the last line is not whole: `{}`",
            text.lines().last().unwrap_or_default()
        );
        let (mut rows, mut histograms, mut summary) = (Vec::new(), Vec::new(), None);
        for line in text.lines() {
            ensure!(summary.is_none(), "a line after the summary: `{line}`");
            let value: Value =
                serde_json::from_str(line).with_context(|| format!("not JSON: `{line}`"))?;
            match string(&value, "type").with_context(|| format!("no object: `{line}`"))?.as_str() {
                "summary" => {
                    summary = Some(Summary::parse(&value).with_context(|| format!("in `{line}`"))?);
                }
                "histogram" => histograms.push(value),
                _ => rows.push(Row::parse(value).with_context(|| format!("in `{line}`"))?),
            }
        }
        Ok(Self { rows, histograms, summary: summary.context("no summary at the end")? })
    }
}

/// The threads in JSON that is still being written, of stalls of process `pid` or of all.
#[must_use]
pub fn tids(text: &str, pid: Option<u32>) -> Vec<u32> {
    let pid = pid.map(|pid| format!("\"pid\":{pid},"));
    let is_of_pid = |line: &&str| pid.as_ref().is_none_or(|pid| line.contains(pid));
    numbers(text.lines().filter(is_of_pid), "tid")
}

/// How long the stalls lasted, in nanoseconds, in JSON that is still being written.
#[must_use]
pub fn durations_ns(text: &str) -> Vec<u64> {
    numbers(text.lines(), "duration_ns")
}

/// The numbers under `key`, without reading the rest: there may be much of it, and to be read often.
fn numbers<'a, T: FromStr>(lines: impl Iterator<Item = &'a str>, key: &str) -> Vec<T> {
    let key = format!("\"{key}\":");
    // A line that is not whole may end in half a number.
    let number = |line: &str| line.split_once(&key)?.1.split_once(',')?.0.parse().ok();
    lines.filter_map(number).collect()
}

/// Checks that two that traced the same load saw the same stalls of each thread in the same order,
/// apart from those that the kernel did not let them see. Times are taken by each for itself, and
/// flags are named as each may.
///
/// # Panics
/// When they did not.
#[track_caller]
pub fn assert_same(one: &Output, other: &Output) {
    for Summary { lost, table_full, .. } in [&one.summary, &other.summary] {
        assert_eq!((*lost, *table_full), (0, 0), "one of them could not deliver all that it saw");
    }
    let skipped = one.summary.skipped + other.summary.skipped;
    if skipped == 0 {
        assert_eq!(one.in_order(), other.in_order());
    } else {
        let difference = one.rows.len().abs_diff(other.rows.len()) as u64;
        assert!(difference <= skipped, "{difference} stalls more, and {skipped} probes skipped");
    }
}

impl Summary {
    pub(crate) fn parse(value: &Value) -> Result<Self> {
        Ok(Self {
            stalls: number(value, "stalls")?,
            lost: number(value, "lost")?,
            missed_begin: number(value, "missed_begin")?,
            table_full: number(value, "table_full")?,
            skipped: number(value, "skipped")?,
            unfinished: number(value, "unfinished")?,
            duration_ns: number(value, "duration_ns")?,
            unavailable: strings(value, "unavailable")?,
        })
    }
}

impl Row {
    /// Time of the end, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn end_ns(&self) -> u64 {
        self.start_ns + self.duration_ns
    }

    fn parse(value: Value) -> Result<Self> {
        let is_reclaim = match string(&value, "type")?.as_str() {
            "reclaim" => true,
            "compaction" => false,
            other => anyhow::bail!("unknown type `{other}`"),
        };
        let kind = string(&value, if is_reclaim { "kind" } else { "cause" })?;
        let mechanism = match (is_reclaim, kind.as_str()) {
            (false, _) => Mechanism::Compaction,
            (true, "direct") => Mechanism::Direct,
            // Told apart from the others by the probe, not by the tracepoint.
            (true, "memcg" | "proactive") => Mechanism::Memcg,
            (true, "softlimit") => Mechanism::Softlimit,
            (true, "node") => Mechanism::Node,
            (true, other) => anyhow::bail!("unknown kind `{other}`"),
        };
        let detail = if is_reclaim { reclaim(&value)? } else { compaction(&value)? };
        Ok(Self {
            mechanism,
            kind,
            pid: number(&value, "pid")?,
            tid: number(&value, "tid")?,
            uid: number(&value, "uid")?,
            cpu: number(&value, "cpu")?,
            comm: string(&value, "comm")?,
            start_ns: number(&value, "start_ns")?,
            duration_ns: number(&value, "duration_ns")?,
            detail,
            value,
        })
    }
}

fn reclaim(value: &Value) -> Result<Detail> {
    let mut gfp = strings(value, "gfp")?;
    gfp.sort();
    Ok(Detail::Reclaim {
        order: signed(value, "order")?,
        gfp,
        nr_reclaimed: number(value, "nr_reclaimed")?,
        nr_scanned: number(value, "nr_scanned")?,
    })
}

fn compaction(value: &Value) -> Result<Detail> {
    Ok(Detail::Compaction {
        node: signed(value, "node")?,
        zone: string(value, "zone")?,
        sync: string(value, "mode")? != "async",
        status: string(value, "status")?,
    })
}

/// A string of an object.
pub fn string(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).with_context(|| format!("`{key}` is no string"))
}

/// A list of strings of an object.
pub fn strings(value: &Value, key: &str) -> Result<Vec<String>> {
    let list = value[key].as_array().with_context(|| format!("`{key}` is no list"))?;
    list.iter()
        .map(|item| {
            item.as_str()
                .map(str::to_owned)
                .with_context(|| format!("`{key}` is no list of strings"))
        })
        .collect()
}

/// A number of an object that is not negative.
pub fn number<T: TryFrom<u64>>(value: &Value, key: &str) -> Result<T> {
    value[key]
        .as_u64()
        .and_then(|number| number.try_into().ok())
        .with_context(|| format!("`{key}` is no such number"))
}

/// A number of an object.
pub fn signed(value: &Value, key: &str) -> Result<i64> {
    value[key].as_i64().with_context(|| format!("`{key}` is no number"))
}
