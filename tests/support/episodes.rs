//! What `memtrace stalls --json` prints, read back.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::rows::{Summary, number, signed, string};

/// All of it.
#[derive(Clone, Debug)]
pub struct Stalls {
    /// Its episodes.
    pub episodes: Vec<Episode>,
    /// OOM kills.
    pub ooms: Vec<Value>,
    /// Histograms.
    pub histograms: Vec<Value>,
    /// Kinds that were watched.
    pub watched: Vec<String>,
    /// Kinds that were not, with the reason.
    pub not_watched: BTreeMap<String, String>,
    /// What it certifies of the processes that were asked for.
    pub certificates: Vec<Value>,
    /// Its last line.
    pub summary: Summary,
}

/// An episode.
#[derive(Clone, Debug)]
pub struct Episode {
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Its kind.
    pub kind: String,
    /// Nanoseconds in each kind.
    pub kinds: BTreeMap<String, u64>,
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// What its rounds took together.
    pub duration_ns: u64,
    /// Rounds of reclaim, and of compaction, and others.
    pub rounds: [u64; 3],
    /// Order of the allocation.
    pub order: Option<i64>,
    /// Nanoseconds in each part, where that was measured.
    pub parts: Option<BTreeMap<String, u64>>,
    /// All of it.
    pub value: Value,
}

impl Stalls {
    /// Reads what memtrace printed.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut episodes, mut ooms, mut histograms) = (Vec::new(), Vec::new(), Vec::new());
        let (mut coverage, mut certificates, mut summary) = (None, Vec::new(), None);
        for line in text.lines() {
            ensure!(summary.is_none(), "a line after the summary: `{line}`");
            let value: Value =
                serde_json::from_str(line).with_context(|| format!("not JSON: `{line}`"))?;
            let context = || format!("in `{line}`");
            match string(&value, "type").with_context(context)?.as_str() {
                "stall" => episodes.push(Episode::parse(value).with_context(context)?),
                "oom" => ooms.push(value),
                "histogram" => histograms.push(value),
                "coverage" => {
                    let not_watched = list(&value, "not_watched")?
                        .iter()
                        .map(|it| Ok((string(it, "kind")?, string(it, "reason")?)))
                        .collect::<Result<_>>()
                        .with_context(context)?;
                    let again =
                        coverage.replace((crate::rows::strings(&value, "watched")?, not_watched));
                    ensure!(again.is_none(), "another coverage: `{line}`");
                }
                "certificate" => certificates.push(value),
                // Of cgroups, beside the stalls.
                "verdict" => {}
                "summary" => summary = Some(Summary::parse(&value).with_context(context)?),
                other => anyhow::bail!("unknown type `{other}` in `{line}`"),
            }
        }
        let (watched, not_watched) = coverage.context("no coverage")?;
        let summary = summary.context("no summary at the end")?;
        let shown = episodes.len() + ooms.len();
        ensure!(
            !histograms.is_empty() || summary.stalls == shown as u64,
            "{shown} episodes and OOM kills, and {} in the summary",
            summary.stalls
        );
        Ok(Self { episodes, ooms, histograms, watched, not_watched, certificates, summary })
    }

    /// The episodes of a process.
    pub fn of(&self, pid: u32) -> impl Iterator<Item = &Episode> {
        self.episodes.iter().filter(move |episode| episode.pid == pid)
    }
}

impl Episode {
    /// Nanoseconds in a part; 0 where it had none.
    #[must_use]
    pub fn part(&self, name: &str) -> u64 {
        self.parts.as_ref().and_then(|parts| parts.get(name)).copied().unwrap_or(0)
    }

    /// Nanoseconds in all parts whose names begin with `prefix`.
    #[must_use]
    pub fn parts_with(&self, prefix: &str) -> u64 {
        let parts = self.parts.iter().flatten();
        parts.filter(|(name, _)| name.starts_with(prefix)).map(|(_, ns)| ns).sum()
    }

    fn parse(value: Value) -> Result<Self> {
        let rounds = &value["rounds"];
        let parts = &value["parts"];
        Ok(Self {
            pid: number(&value, "pid")?,
            tid: number(&value, "tid")?,
            kind: string(&value, "kind")?,
            kinds: times(&value["kinds"])?,
            start_ns: number(&value, "start_ns")?,
            end_ns: number(&value, "end_ns")?,
            duration_ns: number(&value, "duration_ns")?,
            rounds: [
                number(rounds, "reclaim")?,
                number(rounds, "compaction")?,
                number(rounds, "other")?,
            ],
            order: if value["order"].is_null() { None } else { Some(signed(&value, "order")?) },
            parts: if parts.is_null() { None } else { Some(times(parts)?) },
            value,
        })
    }
}

/// Checks that the parts of each episode are as long as it together, to the nanosecond, and none of
/// them empty.
///
/// # Panics
/// When they are not.
#[track_caller]
pub fn assert_parts_add_up<'a>(episodes: impl IntoIterator<Item = &'a Episode>) {
    for episode in episodes {
        let parts = episode.parts.as_ref();
        let parts = parts.unwrap_or_else(|| panic!("no parts: {}", episode.value));
        let sum: u64 = parts.values().sum();
        assert_eq!(sum, episode.duration_ns, "parts do not add up: {}", episode.value);
        assert!(!parts.values().any(|ns| *ns == 0), "an empty part: {}", episode.value);
        let span = episode.end_ns - episode.start_ns;
        assert!(episode.duration_ns <= span, "longer than it lasted: {}", episode.value);
    }
}

fn times(value: &Value) -> Result<BTreeMap<String, u64>> {
    let map = value.as_object().context("no object of times")?;
    map.iter().map(|(name, ns)| Ok((name.clone(), ns.as_u64().context("no time")?))).collect()
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    value[key].as_array().map(Vec::as_slice).with_context(|| format!("`{key}` is no list"))
}
