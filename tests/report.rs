//! `memtrace report` of what was really recorded: its sums are those of the stalls, in every output.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{
    host::TempDir,
    load::{Churning, HITS, Load, limited_cgroup},
    rows::Output,
    run::{Finished, Memtrace, binary, command},
};

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

#[track_caller]
fn memtrace(args: &[&str]) -> Finished {
    let finished = Finished::of(&mut command(args));
    finished.assert_success();
    finished
}

/// A recording of a load, and the load's process. `args` are more options of `memtrace record`.
fn recorded(dir: &TempDir, name: &str, args: &[&str]) -> Result<(PathBuf, u32)> {
    let path = dir.path().join(name);
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id();
    let recorder =
        Memtrace::start(&[&["record", "-p", &pid.to_string(), "-o", text(&path)], args].concat());
    load.work(&cgroup, HITS / 4)?;
    load.stop()?;
    recorder.stop().assert_success();
    Ok((path, pid))
}

fn parsed(finished: &Finished) -> Result<Value> {
    serde_json::from_str(&finished.stdout).context("not one JSON object")
}

fn number(value: &Value, key: &str) -> Result<u64> {
    value[key].as_u64().with_context(|| format!("no number `{key}` in {value}"))
}

#[test]
fn its_sums_are_those_of_the_stalls() -> Result<()> {
    let dir = TempDir::new()?;
    let (path, pid) = recorded(&dir, "sums.mtr", &["--no-parts", "-K"])?;
    // Without parts each round is a stall.
    let rows = Output::parse(&memtrace(&["drsnoop", "--json", "--from", text(&path)]).stdout)?.rows;
    let total_ns: u64 = rows.iter().map(|row| row.duration_ns).sum();
    let max_ns = rows.iter().map(|row| row.duration_ns).max().context("no stalls")?;
    let report = parsed(&memtrace(&["report", "--json", text(&path)]))?;
    for stats in [&report, &report["processes"][0], &report["kinds"][0], &report["cgroups"][0]] {
        assert_eq!(number(stats, "count")?, rows.len() as u64);
        assert_eq!(number(stats, "total_ns")?, total_ns);
        assert_eq!(number(stats, "max_ns")?, max_ns);
        let (p50, p99) = (number(stats, "p50_ns")?, number(stats, "p99_ns")?);
        assert!(p50 <= p99 && p99 <= max_ns, "{stats}");
    }
    assert_eq!(number(&report["processes"][0], "pid")?, u64::from(pid));
    let longest = report["longest"][0]["stack"].as_array().context("a stack")?;
    assert!(longest.iter().any(|frame| frame.to_string().contains("try_charge")), "{longest:?}");
    let system = &report["worst_second"]["system"];
    assert!(number(system, "mem_free_bytes")? > 0 && system["zones"].is_array(), "{system}");
    // Text has the same, for people.
    let printed = memtrace(&["report", text(&path)]).stdout;
    for part in [&format!("in {} stalls", rows.len()), "memload", "memcg-max", "Longest stalls"] {
        assert!(printed.contains(part), "nothing of `{part}` in {printed}");
    }
    // And so has CSV, a line for each.
    let csv = memtrace(&["report", "--csv", text(&path)]).stdout;
    let durations = csv.lines().skip(1).filter_map(|line| line.split(',').nth(3)?.parse().ok());
    assert_eq!(durations.collect::<Vec<u64>>().iter().sum::<u64>(), total_ns);
    // Folded stacks are in microseconds, of which none is lost.
    let folded = memtrace(&["report", "--folded", text(&path)]).stdout;
    let us = folded.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
    assert_eq!(us.sum::<u64>(), (total_ns + 500) / 1000);
    Ok(())
}

#[test]
fn parts_add_up() -> Result<()> {
    let dir = TempDir::new()?;
    let (path, _) = recorded(&dir, "parts.mtr", &[])?;
    let report = parsed(&memtrace(&["report", "--json", text(&path)]))?;
    let parts = report["parts"].as_object().context("parts")?;
    let sum: u64 = parts.values().filter_map(Value::as_u64).sum();
    assert_eq!(sum, number(&report, "total_ns")?, "{parts:?}");
    assert!(parts.contains_key("scan"), "{parts:?}");
    Ok(())
}

#[test]
fn files_are_written_as_a_whole() -> Result<()> {
    let dir = TempDir::new()?;
    let (path, _) = recorded(&dir, "files.mtr", &["-K"])?;
    let outputs = [
        ("--html", "page.html", &b"<!doctype html>"[..]),
        ("--perfetto", "trace.pb", b""),
        ("--flame", "flame.svg", b"<?xml"),
        ("--hlog", "log.hlog", b"#["),
    ];
    let places = outputs.map(|(_, name, _)| dir.path().join(name));
    let mut args = vec!["report", text(&path)];
    for ((option, _, _), place) in outputs.iter().zip(&places) {
        args.extend([*option, text(place)]);
    }
    assert_eq!(memtrace(&args).stdout, "", "files were asked for");
    for ((_, name, begin), place) in outputs.iter().zip(&places) {
        let bytes = fs::read(place)?;
        assert!(bytes.to_ascii_lowercase().starts_with(begin) && bytes.len() > 100, "{name}");
        assert_eq!(fs::metadata(place)?.permissions().mode() & 0o777, 0o600);
    }
    let left: Vec<_> = fs::read_dir(dir.path())?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 5, "{left:?}");
    Ok(())
}

#[test]
fn two_are_compared() -> Result<()> {
    let dir = TempDir::new()?;
    let [before, after] = ["before.mtr", "after.mtr"].map(|name| recorded(&dir, name, &[]));
    let (before, after) = (before?.0, after?.0);
    let same = memtrace(&["report", "--diff", text(&before), text(&before)]).stdout;
    assert!(
        same.contains("memcg-max") && !same.contains("new") && !same.contains("gone"),
        "{same}"
    );
    let diff = parsed(&memtrace(&["report", "--diff", "--json", text(&before), text(&after)]))?;
    for (side, path) in [("before", &before), ("after", &after)] {
        let report = parsed(&memtrace(&["report", "--json", text(path)]))?;
        assert_eq!(number(&diff[side], "stalls")?, number(&report, "count")?);
    }
    Ok(())
}

#[test]
fn several_files_are_one_report() -> Result<()> {
    let dir = TempDir::new()?;
    let [one, other] = ["one.mtr", "other.mtr"].map(|name| recorded(&dir, name, &[]));
    let (one, other) = (one?.0, other?.0);
    let count = |files: &[&str]| -> Result<u64> {
        number(&parsed(&memtrace(&[&["report", "--json"], files].concat()))?, "count")
    };
    let both = count(&[text(&one), text(&other)])?;
    assert_eq!(both, count(&[text(&one)])? + count(&[text(&other)])?);
    // The same one twice is the same.
    assert_eq!(count(&[text(&one), text(&one)])?, count(&[text(&one)])?);
    let mut child = Command::new(binary())
        .args(["report", "--json", "-"])
        .stdin(fs::File::open(&one)?)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().context("a pipe")?, &mut printed)?;
    assert!(child.wait()?.success());
    let piped: Value = serde_json::from_str(&printed)?;
    assert_eq!(number(&piped, "count")?, count(&[text(&one)])?);
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_in_one_line() -> Result<()> {
    let dir = TempDir::new()?;
    let other = dir.path().join("other");
    fs::write(&other, "something else")?;
    let recording = dir.path().join("empty.mtr");
    memtrace(&["record", "-d", "0.1", "-o", text(&recording)]);
    for (args, code, part) in [
        (&["/nonexistent"][..], 1, "/nonexistent"),
        (&[text(&other)], 1, "not a recording"),
        (&["-", "-"], 2, "once"),
        (&["--diff", text(&recording)], 2, "two"),
        (&["--html", "/nonexistent/page.html", text(&recording)], 1, "/nonexistent"),
        (&["--csv", "--json", text(&recording)], 2, "--json"),
        (&[], 2, "FILE"),
    ] {
        let finished = Finished::of(&mut command(&[&["report"], args].concat()));
        let stderr = &finished.stderr;
        assert_eq!(finished.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
    // No stalls are no error.
    assert!(memtrace(&["report", text(&recording)]).stdout.contains("No stalls"));
    Ok(())
}

#[test]
fn times_are_those_of_the_place_or_utc() -> Result<()> {
    let dir = TempDir::new()?;
    let recording = dir.path().join("empty.mtr");
    memtrace(&["record", "-d", "0.1", "-o", text(&recording)]);
    let since = |args: &[&str]| {
        let args = [&["report", text(&recording)], args].concat();
        let finished = Finished::of(command(&args).env("TZ", "XXX-9"));
        let line =
            finished.stdout.lines().find(|line| line.starts_with("From ")).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no time: {finished:?}"))
    };
    assert_eq!(since(&[]).matches(" +09:00").count(), 2);
    assert_eq!(since(&["--utc"]).matches(" +00:00").count(), 2);
    Ok(())
}
