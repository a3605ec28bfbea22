//! The flight recorder: files that are written when something happens, and only then.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    host::{Mount, TempDir},
    load::{Churning, Load, limited_cgroup},
    run::{Finished, Memtrace, command},
    wait::wait_until,
};

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// The recordings that are complete, the oldest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "mtr"))
        .collect();
    files.sort();
    files
}

/// How many stalls memtrace shows of a recording that is whole.
#[track_caller]
fn stalls_of(path: &Path) -> u64 {
    let finished = Finished::of(&mut command(&["stalls", "--from", text(path), "--rounds"]));
    finished.assert_success();
    for missing in ["not all of it", "it has no end"] {
        assert!(!finished.stderr.contains(missing), "{}", finished.stderr);
    }
    finished.summary().stalls
}

/// The recorder with a trigger, writing to `dir`.
fn recorder(dir: &Path, trigger: &str, more: &[&str]) -> Memtrace {
    let args = ["record", "-o", text(dir), "--trigger", trigger, "--after", "300ms"];
    Memtrace::start(&[&args, more].concat())
}

/// A load in a cgroup of its own.
fn churn() -> Result<(Cgroup, Load)> {
    let cgroup = limited_cgroup()?;
    let load = Load::churn(memload(), &Churning::new(&cgroup))?;
    Ok((cgroup, load))
}

#[test]
fn a_file_has_what_was_before_and_after() -> Result<()> {
    let dir = TempDir::new()?;
    let (cgroup, mut load) = churn()?;
    let recorder = recorder(dir.path(), "rate>20/s", &["--before", "60s"]);
    load.work(&cgroup, 500)?;
    wait_until("a file", || !files(dir.path()).is_empty());
    load.stop()?;
    let finished = recorder.stop();
    finished.assert_success();
    let [file] = &files(dir.path())[..] else { panic!("{:?}", files(dir.path())) };
    let name = file.file_name().context("a name")?.to_string_lossy().into_owned();
    assert!(name.starts_with("memtrace-2") && name.ends_with("Z-rate.mtr"), "{name}");
    assert_eq!(fs::metadata(file)?.mode() & 0o777, 0o600);
    assert!(stalls_of(file) > 20);
    assert!(finished.stderr.contains("in a second, more than 20"), "{}", finished.stderr);
    assert!(finished.stderr.contains("recordings written: 1"), "{}", finished.stderr);
    Ok(())
}

#[test]
fn many_short_rounds_are_one_long_stall() -> Result<()> {
    const LONG_NS: u64 = 15_000_000;
    let dir = TempDir::new()?;
    let recorder = recorder(dir.path(), "latency>15ms", &[]);
    let mut load = Load::of(memload(), &["hopeless", "--duration", "5m"])?;
    load.go()?;
    wait_until("a file", || !files(dir.path()).is_empty());
    load.stop()?;
    recorder.stop().assert_success();
    let files = files(dir.path());
    let args = ["stalls", "-m", "15ms", "--json", "--from", text(&files[0])];
    let shown = Finished::of(&mut command(&args));
    shown.assert_success();
    let stalls = shown.stdout.lines().filter_map(|line| {
        let object: Value = serde_json::from_str(line).ok()?;
        Some((object["duration_ns"].as_u64()?, object["rounds"]["reclaim"].as_u64()?))
    });
    let long: Vec<_> = stalls.filter(|(duration_ns, _)| *duration_ns > LONG_NS).collect();
    assert!(long.iter().any(|(_, rounds)| *rounds > 1), "{long:?}");
    Ok(())
}

#[test]
fn what_does_not_happen_writes_nothing() -> Result<()> {
    let dir = TempDir::new()?;
    let (cgroup, mut load) = churn()?;
    let recorder = recorder(dir.path(), "latency>1h or p99.9(1m) > 1h", &[]);
    load.work(&cgroup, 500)?;
    load.stop()?;
    let finished = recorder.stop();
    finished.assert_success();
    assert!(finished.summary().stalls > 0);
    assert_eq!(fs::read_dir(dir.path())?.count(), 0);
    Ok(())
}

#[test]
fn each_file_runs_a_command_and_the_oldest_give_way() -> Result<()> {
    let dir = TempDir::new()?;
    let log = dir.path().join("log");
    let exec =
        format!("echo \"$1 $MEMTRACE_CAUSE $(cat /proc/self/oom_score_adj)\" >> {}", text(&log));
    let (_cgroup, mut load) = churn()?;
    let more = ["--cooldown", "100ms", "--keep", "2", "--exec", &exec];
    let recorder = recorder(dir.path(), "latency>1us", &more);
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    load.work_until("files", || lines() >= 4)?;
    load.stop()?;
    let finished = recorder.stop();
    finished.assert_success();
    let files = files(dir.path());
    assert_eq!(files.len(), 2, "{files:?}");
    for file in &files {
        assert!(stalls_of(file) > 0);
    }
    let log = fs::read_to_string(&log)?;
    for line in log.lines() {
        assert!(line.starts_with(text(dir.path())) && line.contains("longer than 1 us"), "{line}");
        assert!(line.ends_with(" 0"), "it is killed as late as memtrace: {line}");
    }
    let newest = files.last().context("a file")?;
    assert!(log.contains(text(newest)), "{log}");
    Ok(())
}

#[test]
fn what_a_killed_one_has_left_is_completed() -> Result<()> {
    let dir = TempDir::new()?;
    let (_cgroup, mut load) = churn()?;
    let args = ["record", "-o", text(dir.path()), "--trigger", "latency>1us", "--after", "1h"];
    let killed = Memtrace::start(&args);
    let part = || {
        let mut entries = fs::read_dir(dir.path()).ok()?.flatten().map(|entry| entry.path());
        let part = entries.find(|path| path.extension().is_some_and(|it| it == "part"))?;
        (fs::metadata(&part).ok()?.len() > 1 << 16).then_some(part)
    };
    load.work_until("blocks", || part().is_some())?;
    // One that starts beside it leaves it alone.
    let beside = recorder(dir.path(), "latency>1h", &[]);
    beside.stop().assert_success();
    assert!(part().is_some() && files(dir.path()).is_empty());
    killed.signal(Signal::KILL);
    assert!(!killed.wait().status.success());
    load.stop()?;
    let next = recorder(dir.path(), "latency>1h", &[]).stop();
    next.assert_success();
    let [file] = &files(dir.path())[..] else { panic!("{:?}", files(dir.path())) };
    assert!(next.stderr.contains(&format!("`{}` completed", file.display())), "{}", next.stderr);
    let shown = Finished::of(&mut command(&["stalls", "--from", text(file), "--rounds"]));
    shown.assert_success();
    assert!(shown.summary().stalls > 0 && shown.stderr.contains("it has no end"));
    assert!(part().is_none());
    Ok(())
}

#[test]
fn a_full_disk_ends_no_flight() -> Result<()> {
    let disk = Mount::with_options("tmpfs", c"size=16k")?;
    let (_cgroup, mut load) = churn()?;
    let recorder = recorder(disk.path(), "latency>1us", &["--cooldown", "100ms"]);
    load.go()?;
    wait_until("a file for which there is no room", || recorder.stderr().contains("No space left"));
    load.stop()?;
    let finished = recorder.stop();
    finished.assert_success();
    assert!(finished.stderr.contains("failed: "), "{}", finished.stderr);
    // Nothing is left but what has found room as a whole.
    for left in fs::read_dir(disk.path())? {
        assert!(stalls_of(&left?.path()) > 0);
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> Result<()> {
    let dir = TempDir::new()?;
    let file = dir.path().join("file");
    fs::write(&file, "")?;
    for (args, code, part) in [
        (&["-o", text(dir.path()), "--trigger", "latency"][..], 2, "latency>100ms"),
        (
            &["-o", text(dir.path()), "--trigger", "oom", "--kind", "direct"],
            1,
            "cannot wait for `oom`",
        ),
        (&["-o", text(&file), "--trigger", "oom"], 1, text(&file)),
        (&["-o", text(&file), "--keep", "3"], 2, "--trigger"),
        (&["-o", text(dir.path()), "--trigger", "oom", "--memory", "1M"], 2, "4M"),
    ] {
        let finished = Finished::of(&mut command(&[&["record"], args].concat()));
        let stderr = &finished.stderr;
        assert_eq!(finished.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
    Ok(())
}
