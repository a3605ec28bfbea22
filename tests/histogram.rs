//! Histograms against the rows of another memtrace that runs at the same time.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hdrhistogram::{Histogram, serialization::Deserializer};
use serde_json::Value;
use tests::{
    host::{NOBODY, is_guest},
    load::{Churning, HITS, Load, limited_cgroup},
    rows::{Output, Row, number, string},
    run::Memtrace,
    wait::wait_until,
};

/// Each memtrace measures by itself. Where two of them look at the same stall, they differ by the
/// time that their probes take, in a guest by what their turns on a CPU take.
fn probes_ns() -> u64 {
    if is_guest() { 1_000_000 } else { 5_000 }
}

/// How many of so many stalls may differ by more, as the thread was interrupted between the probes of
/// the two; so many ranks a percentile may be off.
fn interrupted(stalls: usize) -> usize {
    if is_guest() { 2 + stalls / 20 } else { 2 }
}

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// Name of a key in JSON: its members except the paths and names that go with an id.
fn key_of(histogram: &Value) -> String {
    let mut key = histogram["key"].clone();
    if let Some(key) = key.as_object_mut() {
        key.remove("cgroup");
        if key.contains_key("pid") {
            key.remove("comm");
        }
    }
    key.to_string()
}

/// The name that a row's key would have, as [`key_of`].
fn key_of_row(by: &str, row: &Row) -> String {
    let key = match by {
        "thread" => serde_json::json!({ "tid": row.tid, "pid": row.pid }),
        "process" => serde_json::json!({ "pid": row.pid }),
        "comm" => serde_json::json!({ "comm": row.comm }),
        "cgroup" => serde_json::json!({ "cgroup_id": row.value["cgroup_id"] }),
        "uid" => serde_json::json!({ "uid": row.uid }),
        "kind" => serde_json::json!({ "kind": row.kind }),
        "order" => serde_json::json!({ "order": row.value["order"] }),
        other => unreachable!("no key `{other}`"),
    };
    key.to_string()
}

/// Number of stalls by key.
fn counts(histograms: &[Value]) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for histogram in histograms {
        let previous = counts.insert(key_of(histogram), number(histogram, "count")?);
        assert_eq!(previous, None, "the same key twice: {}", key_of(histogram));
    }
    Ok(counts)
}

fn decode(histogram: &Value) -> Result<Histogram<u64>> {
    let bytes = STANDARD.decode(string(histogram, "hdr")?).context("`hdr` is not base64")?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).context("`hdr` is no HdrHistogram")
}

/// Where in the sorted values the first is that this part of them does not exceed.
fn rank(sorted: &[u64], per_mille: usize) -> usize {
    (sorted.len() * per_mille).div_ceil(1000) - 1
}

/// Two loads that differ in every key.
struct Scene {
    loads: [Load; 2],
    cgroups: [tests::cgroup::Cgroup; 2],
}

impl Scene {
    fn new() -> Result<Self> {
        let cgroups = [limited_cgroup()?, limited_cgroup()?];
        let first = Churning { threads: 2, comm: Some("mt-first"), ..Churning::new(&cgroups[0]) };
        let second = Churning { threads: 2, uid: Some(NOBODY), ..Churning::new(&cgroups[1]) };
        Ok(Self {
            loads: [Load::churn(memload(), &first)?, Load::churn(memload(), &second)?],
            cgroups,
        })
    }

    fn pids(&self) -> String {
        format!("{},{}", self.loads[0].id(), self.loads[1].id())
    }

    fn run(mut self) -> Result<()> {
        self.loads[0].go()?;
        self.loads[1].work(&self.cgroups[1], HITS / 2)?;
        wait_until("the first load", || {
            self.cgroups[0].limit_hits().is_ok_and(|hits| hits >= HITS / 4)
        });
        self.loads.into_iter().try_for_each(|load| load.stop().map(|_| ()))
    }
}

/// Runs the two loads under a memtrace that shows rows and others that show histograms.
fn observe(histograms: &[&[&str]]) -> Result<(Output, Vec<Output>)> {
    let scene = Scene::new()?;
    let pids = scene.pids();
    let common = ["drsnoop", "--json", "-p", &pids];
    let rows = Memtrace::start(&common);
    let running: Vec<_> = histograms
        .iter()
        .map(|args| Memtrace::start(&[&common[..], &["-H"], args].concat()))
        .collect();
    scene.run()?;
    let mut outputs = Vec::new();
    for memtrace in running {
        let finished = memtrace.stop();
        finished.assert_success();
        outputs.push(Output::parse(&finished.stdout)?);
    }
    let rows = rows.stop();
    rows.assert_success();
    let rows = Output::parse(&rows.stdout)?;
    for output in outputs.iter().chain([&rows]) {
        output.summary.assert_nothing_lost();
        assert_eq!(
            (output.summary.stalls, output.summary.missed_begin),
            (rows.rows.len() as u64, 0),
            "{:?}",
            output.summary
        );
    }
    assert!(rows.rows.len() >= 100, "only {} stalls", rows.rows.len());
    Ok((rows, outputs))
}

#[test]
fn counts_by_every_key() -> Result<()> {
    const KEYS: [&str; 7] = ["thread", "process", "comm", "cgroup", "uid", "kind", "order"];
    let args = KEYS.map(|by| ["--by", by]);
    let args: Vec<&[&str]> = args.iter().map(<[&str; 2]>::as_slice).collect();
    let (rows, outputs) = observe(&args)?;
    for (by, output) in KEYS.into_iter().zip(outputs) {
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for row in &rows.rows {
            *expected.entry(key_of_row(by, row)).or_default() += 1;
        }
        assert_eq!(counts(&output.histograms)?, expected, "by {by}");
        let keys = match by {
            "thread" => 4,
            "kind" | "order" => 1,
            _ => 2,
        };
        assert_eq!(expected.len(), keys, "keys by {by}");
        for histogram in &output.histograms {
            assert_eq!(string(histogram, "by")?, by);
        }
    }
    Ok(())
}

#[test]
fn numbers_are_those_of_the_rows() -> Result<()> {
    let (rows, outputs) = observe(&[&[]])?;
    let mut totals = Vec::new();
    for histogram in &outputs[0].histograms {
        let of_key = |row: &&Row| key_of_row("thread", row) == key_of(histogram);
        let mut durations: Vec<_> =
            rows.rows.iter().filter(of_key).map(|row| row.duration_ns).collect();
        durations.sort_unstable();
        let count = durations.len() as u64;
        assert_eq!(number::<u64>(histogram, "count")?, count);

        let between = |name: &str, low: u64, high: u64| -> Result<()> {
            let found: u64 = number(histogram, name)?;
            let low = (low - low / 100).saturating_sub(probes_ns());
            let high = high + high / 100 + probes_ns();
            assert!(
                (low..=high).contains(&found),
                "{name} is {found}, of the rows {low} to {high}"
            );
            Ok(())
        };
        let total: u64 = durations.iter().sum();
        let probes = count * probes_ns();
        between("total_ns", total - probes.min(total), total + probes)?;
        between("mean_ns", (total - probes.min(total)) / count, (total + probes) / count)?;
        let last = durations.len() - 1;
        for (name, rank) in [
            ("min_ns", 0),
            ("p50_ns", rank(&durations, 500)),
            ("p90_ns", rank(&durations, 900)),
            ("p99_ns", rank(&durations, 990)),
            ("p99_9_ns", rank(&durations, 999)),
            ("max_ns", last),
        ] {
            let low = durations[rank.saturating_sub(interrupted(durations.len()))];
            let high = durations[(rank + interrupted(durations.len())).min(last)];
            between(name, low, high)?;
        }

        let buckets = histogram["buckets"].as_array().context("no `buckets`")?;
        let in_buckets: Vec<u64> =
            buckets.iter().map(|bucket| number(bucket, "count")).collect::<Result<_>>()?;
        assert_eq!(in_buckets.iter().sum::<u64>(), count, "stalls in the rows of powers of two");
        totals.push(number::<u64>(histogram, "total_ns")?);
    }
    assert!(totals.is_sorted_by(|a, b| a >= b), "not sorted by total time: {totals:?}");
    Ok(())
}

#[test]
fn encoded_histograms_decode_and_merge() -> Result<()> {
    let (_, outputs) = observe(&[&[], &["--by", "kind"]])?;
    // Resizes itself, as what is decoded does not.
    let mut merged = Histogram::<u64>::new(2)?;
    for histogram in &outputs[0].histograms {
        let decoded = decode(histogram)?;
        assert_eq!(decoded.len(), number::<u64>(histogram, "count")?);
        for (name, quantile) in
            [("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99), ("p99_9_ns", 0.999)]
        {
            let max: u64 = number(histogram, "max_ns")?;
            assert_eq!(
                decoded.value_at_quantile(quantile).min(max),
                number::<u64>(histogram, name)?,
                "{name}"
            );
        }
        merged.add(&decoded).context("cannot merge")?;
    }
    let all = &outputs[1].histograms[0];
    assert_eq!(merged.len(), number::<u64>(all, "count")?);
    let (merged_p50, all_p50): (u64, u64) = (merged.value_at_quantile(0.5), number(all, "p50_ns")?);
    assert!(
        merged_p50.abs_diff(all_p50) <= all_p50 / 100 + probes_ns(),
        "median {merged_p50}, of all at once {all_p50}"
    );
    Ok(())
}

#[test]
fn keys_beyond_the_greatest_number_are_folded() -> Result<()> {
    let (rows, outputs) = observe(&[&["--max-keys", "2"]])?;
    let counts = counts(&outputs[0].histograms)?;
    assert_eq!(counts.len(), 3, "two threads and the others: {counts:?}");
    assert!(counts.contains_key(r#"{"other":true}"#), "{counts:?}");
    assert_eq!(counts.values().sum::<u64>(), rows.rows.len() as u64);
    Ok(())
}

#[test]
fn intervals() -> Result<()> {
    let mut scene = Scene::new()?;
    // At work before the first interval, so that none is empty.
    for (load, cgroup) in scene.loads.iter_mut().zip(&scene.cgroups) {
        load.work(cgroup, 1)?;
    }
    let memtrace = Memtrace::start(&[
        "drsnoop",
        "--json",
        "-p",
        &scene.pids(),
        "-H",
        "--by",
        "kind",
        "1",
        "3",
    ]);
    let finished = memtrace.wait();
    finished.assert_success();
    let traced = finished.traced();
    assert!(
        traced >= Duration::from_millis(2900) && traced < Duration::from_secs(5),
        "three intervals in {traced:?}"
    );
    let output = Output::parse(&finished.stdout)?;
    output.summary.assert_nothing_lost();
    let histograms = &output.histograms;
    assert_eq!(histograms.len(), 3, "histograms of intervals of 1 s");
    for pair in histograms.windows(2) {
        assert_eq!(pair[0]["time"], pair[1]["since"], "intervals that do not follow each other");
    }
    let counts = histograms
        .iter()
        .map(|histogram| number(histogram, "count"))
        .collect::<Result<Vec<u64>>>()?;
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    // What ends between the last interval and the end is in the summary only if it is shown.
    assert_eq!(counts.iter().sum::<u64>(), output.summary.stalls);
    Ok(())
}

#[test]
fn as_text() -> Result<()> {
    let scene = Scene::new()?;
    let memtrace = Memtrace::start(&["drsnoop", "-p", &scene.pids(), "-H", "--by", "comm"]);
    scene.run()?;
    let finished = memtrace.stop();
    finished.assert_success();
    let text = &finished.stdout;
    for comm in ["mt-first", "memload"] {
        assert!(
            text.lines().any(|line| line == format!("comm = {comm}")),
            "no block for `{comm}`: {text}"
        );
    }
    let counts = text.lines().filter_map(|line| {
        line.trim().strip_prefix("count ")?.split(',').next()?.parse::<u64>().ok()
    });
    assert_eq!(counts.sum::<u64>(), finished.summary().stalls, "{text}");
    Ok(())
}
