//! Recordings: what was shown is shown again, and what is left of a recording that was cut, killed or bounded.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tests::{
    host::{Mount, TempDir},
    load::{Churning, HITS, Load, limited_cgroup},
    rows::{Output, assert_same},
    run::{Finished, Memtrace, binary, command},
    wait::wait_until,
};

/// Fewer stalls than this prove nothing.
const ENOUGH: usize = 200;

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// Runs memtrace to its end.
#[track_caller]
fn memtrace(args: &[&str]) -> Finished {
    let finished = Finished::of(&mut command(args));
    finished.assert_success();
    finished
}

/// The same, refused in one line.
#[track_caller]
fn assert_refused(args: &[&str], parts: &[&str]) {
    let finished = Finished::of(&mut command(args));
    let stderr = &finished.stderr;
    assert_eq!(finished.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "nothing of `{part}` in `{stderr}`");
    }
}

/// Records a load with `args` until its limit was hit `hits` times; gives what memtrace left behind and the load's
/// process.
fn record_churn(args: &[&str], hits: u64) -> Result<(Finished, u32)> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id();
    let memtrace = Memtrace::start(args);
    load.work(&cgroup, hits)?;
    load.stop()?;
    let finished = memtrace.stop();
    finished.assert_success();
    Ok((finished, pid))
}

/// A recording of several blocks, of a load with kernel stacks, and the load's process.
fn recorded(dir: &TempDir) -> Result<(PathBuf, u32)> {
    let path = dir.path().join("load.mtr");
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id();
    let recorder = Memtrace::start(&["record", "-K", "-o", text(&path)]);
    let mut sizes = BTreeSet::new();
    load.work_until("blocks", || {
        sizes.insert(fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or_default());
        sizes.len() > 4
    })?;
    load.stop()?;
    recorder.stop().assert_success();
    Ok((path, pid))
}

/// How many stalls memtrace shows of a recording.
#[track_caller]
fn stalls_of(path: &Path) -> (u64, Finished) {
    let finished = memtrace(&["stalls", "--from", text(path), "--rounds"]);
    (finished.summary().stalls, finished)
}

#[test]
fn what_was_shown_is_shown_again() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("same.mtr");
    for args in [
        &["drsnoop", "--json"][..],
        &["drsnoop", "--json", "-K", "--user-stack"],
        &["drsnoop", "-e", "-U", "-T", "-K"],
        &["drsnoop", "--folded", "-K", "--user-stack"],
        &["drsnoop", "-H", "--by", "cgroup", "--json", "1"],
        // It ends before the first interval does.
        &["drsnoop", "-H", "--json", "600"],
        &["stalls", "--json", "-K"],
        &["stalls", "-e", "-T", "--no-parts"],
        &["stalls", "-H", "--by", "kind", "1"],
        &["stalls", "--rounds", "-m", "50us", "--json"],
    ] {
        let (live, _) = record_churn(&[args, &["--record", text(&path)]].concat(), HITS / 8)?;
        let again = memtrace(&[args, &["--from", text(&path)]].concat());
        assert!(live.summary().stalls >= 1, "{args:?}: {}", live.stderr);
        assert_eq!(live.summary(), again.summary(), "{args:?}");
        if live.stdout != again.stdout {
            let pairs = live.stdout.lines().zip(again.stdout.lines());
            let differs = pairs.filter(|(live, again)| live != again).take(3);
            panic!("{args:?} shows otherwise: {:#?}", differs.collect::<Vec<_>>());
        }
    }
    Ok(())
}

#[test]
fn a_recording_has_what_another_memtrace_saw() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("beside.mtr");
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id().to_string();
    let live = Memtrace::start(&["drsnoop", "--json", "-K", "-p", &pid]);
    let recorder = Memtrace::start(&["record", "-K", "-p", &pid, "-o", text(&path)]);
    load.work_until_shown(&live, ENOUGH, 4)?;
    load.stop()?;
    let (live, recorder) = (live.stop(), recorder.stop());
    recorder.assert_success();
    assert!(recorder.stderr.contains(text(&path)), "{}", recorder.stderr);
    let again = memtrace(&["drsnoop", "--json", "-K", "--from", text(&path)]);
    let [live, again] = [live.stdout, again.stdout].map(|text| Output::parse(&text));
    let (live, again) = (live?, again?);
    assert!(again.rows.len() >= ENOUGH, "{} stalls", again.rows.len());
    assert_same(&live, &again);
    Ok(())
}

#[test]
fn one_recording_is_for_all_commands_and_filters() -> Result<()> {
    let dir = TempDir::new()?;
    let (path, pid) = recorded(&dir)?;
    let from = |args: &[&str]| memtrace(&[args, &["--from", text(&path)]].concat());
    let pid = pid.to_string();
    let all = Output::parse(&from(&["drsnoop", "--json"]).stdout)?;
    let of_load = all.rows.iter().filter(|row| row.pid.to_string() == pid).count();
    assert!(of_load >= ENOUGH, "{of_load}");
    let row = all.rows.iter().find(|row| row.pid.to_string() == pid).context("a row")?;
    let cgroup = row.value["cgroup"].as_str().context("a cgroup")?;
    for filter in [["-p", pid.as_str()], ["-n", "memload"], ["-c", cgroup]] {
        let some = Output::parse(&from(&["drsnoop", "--json", filter[0], filter[1]]).stdout)?;
        assert_eq!(some.rows.len(), of_load, "{filter:?}");
    }
    let long = all.rows.iter().filter(|row| row.duration_ns >= 100_000).count();
    let some = Output::parse(&from(&["drsnoop", "--json", "-m", "100us"]).stdout)?;
    assert_eq!(some.rows.len(), long);
    assert_eq!(from(&["drsnoop", "-p", "4194304"]).summary().stalls, 0);
    let stalls = from(&["stalls", "--json"]).stdout;
    assert!(stalls.contains("\"parts\":") && stalls.contains("memcg-max"), "{stalls}");
    assert!(from(&["drsnoop", "-H"]).stdout.contains("memload"));
    assert_eq!(from(&["compactsnoop", "--cause", "manual"]).summary().lost, 0);
    Ok(())
}

/// What is not asked for is neither recorded nor counted nor told to the trigger.
#[test]
fn kinds_and_latencies_choose_what_is_recorded() -> Result<()> {
    let dir = TempDir::new()?;
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id().to_string();
    let record = |name: &str, args: &[&str]| {
        let path = dir.path().join(name);
        let all = [&["record", "-p", &pid, "-o", text(&path)], args].concat();
        (Memtrace::start(&all), path)
    };
    let others = "direct,compaction,node,oom";
    let limits = record("limits.mtr", &["--kind", "memcg-max,memcg-high"]);
    let long = record("long.mtr", &["-m", "100us"]);
    let no_parts = record("long-rounds.mtr", &["-m", "100us", "--no-parts"]);
    let without = record("others.mtr", &["--kind", others]);
    let rounds = record("other-rounds.mtr", &["--kind", others, "--no-parts"]);
    let on_others = ["--kind", others, "--trigger", "latency>1us or rate>1/m"];
    let (flight, flights) = record("flights", &on_others);
    load.work(&cgroup, HITS / 4)?;
    load.stop()?;
    for (recorder, path) in [limits, long, no_parts] {
        let recorded = recorder.stop();
        recorded.assert_success();
        let (stalls, finished) = stalls_of(&path);
        assert!(stalls > 0, "{}: {}", path.display(), finished.stderr);
        assert_eq!(recorded.summary().stalls, stalls, "{}", path.display());
    }
    for (recorder, path) in [without, rounds] {
        let recorded = recorder.stop();
        recorded.assert_success();
        assert_eq!((recorded.summary().stalls, stalls_of(&path).0), (0, 0), "{}", path.display());
        let reclaim = memtrace(&["drsnoop", "--from", text(&path)]);
        assert_eq!(reclaim.summary().stalls, 0, "{}", path.display());
    }
    let flight = flight.stop();
    flight.assert_success();
    assert_eq!(flight.summary().stalls, 0);
    assert_eq!(fs::read_dir(flights)?.count(), 0, "{}", flight.stderr);
    Ok(())
}

#[test]
fn what_was_not_recorded_is_told() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("filtered.mtr");
    let from = |args: &[&str]| memtrace(&[args, &["--from", text(&path)]].concat()).stderr;
    let me = std::process::id().to_string();
    record_churn(&["record", "-o", text(&path), "-n", "memload", "-m", "10us"], HITS / 8)?;
    let told = from(&["stalls", "-p", &me]);
    assert!(told.contains(" with --comm memload --min-latency 10us..."), "{told}");
    assert!(told.contains("longest stall of what the other filters let pass of PID"), "{told}");

    record_churn(&["drsnoop", "--record", text(&path), "-p", &me], HITS / 8)?;
    let told = from(&["stalls", "-p", &me, "-p", "1"]);
    assert!(told.contains(&format!("with --pid {me}...")), "{told}");
    // Of the one process all was recorded, of the other nothing.
    assert!(told.contains(&format!("longest stall of PID {me}")), "{told}");
    assert!(told.contains("longest stall of what the other filters let pass of PID 1"), "{told}");
    assert!(told.contains("6 of 14 kinds watched") && told.contains("not recorded"), "{told}");
    let told = from(&["compactsnoop"]);
    assert!(told.contains("only: not compaction, background"), "{told}");
    let told = from(&["drsnoop"]);
    assert!(!told.contains("only: not"), "{told}");
    Ok(())
}

#[test]
fn verdicts_do_not_depend_on_what_else_is_shown() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("thrash.mtr");
    let mut load = Load::of(memload(), &["thrash", "--duration", "5m"])?;
    let recorder = Memtrace::start(&["record", "-o", text(&path)]);
    let begun = fs::metadata(&path)?.len();
    load.go()?;
    let verdicts = |args: &[&str]| {
        let finished = memtrace(&[&["stalls", "--json", "--from", text(&path)], args].concat());
        let is_verdict = |line: &&str| line.starts_with(r#"{"type":"verdict""#);
        finished.stdout.lines().filter(is_verdict).map(str::to_owned).collect::<Vec<_>>()
    };
    wait_until("a verdict", || {
        fs::metadata(&path).is_ok_and(|now| now.len() > begun) && !verdicts(&[]).is_empty()
    });
    load.stop()?;
    recorder.stop().assert_success();
    let all = verdicts(&[]);
    assert!(!all.is_empty());
    for args in [&["-m", "1ms"][..], &["-m", "1h"], &["--rounds"], &["--kind", "oom"]] {
        assert_eq!(verdicts(args), all, "{args:?}");
    }
    Ok(())
}

#[test]
fn standard_input_is_as_good_as_a_file() -> Result<()> {
    let dir = TempDir::new()?;
    let (path, _) = recorded(&dir)?;
    let of_file = memtrace(&["stalls", "--json", "--from", text(&path)]);
    let mut child = Command::new(binary())
        .args(["stalls", "--json", "--from", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(&fs::read(&path)?)?;
    drop(stdin);
    let piped = child.wait_with_output()?;
    assert!(piped.status.success() && !piped.stdout.is_empty());
    assert_eq!(String::from_utf8(piped.stdout)?, of_file.stdout);
    Ok(())
}

#[test]
fn what_was_written_before_a_kill_is_there() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("killed.mtr");
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let recorder = Memtrace::start(&["record", "-o", text(&path)]);
    load.go()?;
    // Blocks are ended once a second; more than the first may be there in part.
    let size = || fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or_default();
    let begun = size();
    wait_until("a block", || size() > begun + 4096 && stalls_of(&path).0 > 0);
    recorder.signal(Signal::KILL);
    let killed = recorder.wait();
    assert!(!killed.status.success());
    load.stop()?;
    let (stalls, finished) = stalls_of(&path);
    assert!(stalls > 0, "{}", finished.stderr);
    assert!(finished.stderr.contains("it has no end"), "{}", finished.stderr);
    Ok(())
}

#[test]
fn what_is_before_a_cut_is_there() -> Result<()> {
    let dir = TempDir::new()?;
    let (path, _) = recorded(&dir)?;
    let whole = fs::read(&path)?;
    let (all, _) = stalls_of(&path);
    let cut = dir.path().join("cut.mtr");
    let mut before = 0;
    for eighths in 2..8 {
        fs::write(&cut, &whole[..whole.len() * eighths / 8])?;
        let (stalls, finished) = stalls_of(&cut);
        assert!((before..=all).contains(&stalls), "{stalls} after {before}, of {all}");
        assert!(finished.stderr.contains("it has no end"), "{}", finished.stderr);
        before = stalls;
    }
    assert!(before > 0 && before < all, "{before} of {all}");
    // Damage in the middle costs the block that it is in.
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    fs::write(&cut, &damaged)?;
    let (stalls, finished) = stalls_of(&cut);
    assert!(stalls > 0 && stalls < all, "{stalls} of {all}");
    assert!(finished.stderr.contains("damaged"), "{}", finished.stderr);
    Ok(())
}

#[test]
fn a_full_disk_leaves_what_came_before() -> Result<()> {
    let disk = Mount::with_options("tmpfs", c"size=256k")?;
    let path = disk.path().join("full.mtr");
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let recorder = Memtrace::start(&["record", "-K", "-o", text(&path)]);
    load.go()?;
    let finished = recorder.wait();
    load.stop()?;
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    let error = finished.stderr.lines().last().context("an error")?;
    assert!(error.contains("full.mtr") && error.contains("No space left"), "{error}");
    let (stalls, finished) = stalls_of(&path);
    assert!(stalls > 0, "{}", finished.stderr);
    assert!(!finished.stderr.contains("belong to no whole block"), "{}", finished.stderr);
    Ok(())
}

#[test]
fn the_oldest_stalls_make_room() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("small.mtr");
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let recorder = Memtrace::start(&["record", "-K", "--max-size", "64K", "-o", text(&path)]);
    // Each block that goes over older ones begins with its number.
    let mut sizes = Vec::new();
    load.work_until("the file to begin again", || {
        sizes.push(fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or_default());
        !sizes.is_sorted()
    })?;
    load.stop()?;
    let finished = recorder.stop();
    finished.assert_success();
    assert!(sizes.iter().all(|size| *size <= 64 << 10), "{sizes:?}");
    let all = finished.summary().stalls;
    let (stalls, shown) = stalls_of(&path);
    assert!(stalls > 0 && stalls < all, "{stalls} of {all}");
    assert!(shown.stderr.contains("gave way to newer ones"), "{}", shown.stderr);
    assert!(!shown.stderr.contains("it has no end"), "{}", shown.stderr);
    Ok(())
}

#[test]
fn others_may_not_read_it() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("mode.mtr");
    File::create(&path)?.set_permissions(fs::Permissions::from_mode(0o644))?;
    memtrace(&["record", "-d", "0.1", "-o", text(&path)]);
    assert_eq!(fs::metadata(&path)?.mode() & 0o777, 0o600);
    Ok(())
}

#[test]
fn a_stale_recording_is_replaced_and_nothing_else_is() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("twice.mtr");
    for _ in 0..2 {
        memtrace(&["record", "-d", "0.1", "-o", text(&path)]);
        assert_eq!(stalls_of(&path).1.stderr.matches("it has no end").count(), 0);
    }
    let other = dir.path().join("notes.txt");
    fs::write(&other, "dear diary")?;
    assert_refused(&["record", "-o", text(&other)], &["notes.txt", "not a recording"]);
    assert_eq!(fs::read_to_string(&other)?, "dear diary");
    assert_refused(&["record", "-o", text(dir.path())], &[text(dir.path()), "--trigger"]);
    let flight = ["record", "-o", text(&other), "--trigger", "oom"];
    assert_refused(&flight, &["notes.txt", "not a directory", "--trigger"]);
    Ok(())
}

#[test]
fn what_is_no_recording_is_refused() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("bad.mtr");
    let from = |bytes: &[u8], parts: &[&str]| -> Result<()> {
        fs::write(&path, bytes)?;
        assert_refused(&["stalls", "--from", text(&path)], &[&["bad.mtr"], parts].concat());
        Ok(())
    };
    from(b"", &["not a recording"])?;
    from(b"something else altogether", &["not a recording"])?;
    from(b"memtrace\x02\0\0\0\0\0\0\0\0\0\0\0", &["version 2", "newer"])?;
    from(b"memtrace\x01\0\0\0\xff\0\0\0\0\0\0\0", &["header", "cut"])?;
    assert_refused(&["stalls", "--from", "/nonexistent"], &["/nonexistent", "No such file"]);
    Ok(())
}
