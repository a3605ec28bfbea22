//! Stacks in user space, folded stacks and flame graphs.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
};

use anyhow::{Context as _, Result};
use roxmltree::{Document, ParsingOptions};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::CapabilitySet,
};
use tests::{
    cgroup::Cgroup,
    confined::{as_nobody, public_copy, unlimit_locked_memory, without},
    host::{Mount, NOBODY, TempDir},
    load::{Churning, HITS, Load, limited_cgroup},
    rows::{Output, Row, strings},
    run::{Finished, Memtrace, command},
    wait::{wait_for, wait_until},
};

/// Stalls that are enough to look at.
const ENOUGH: usize = 50;
/// What the helper's processes are called.
const HELPER: &str = "memtrace-names";

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

fn churn(cgroup: &Cgroup) -> Result<Load> {
    Load::churn(memload(), &Churning::new(cgroup))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// Whether a frame is of a function that reads or writes, under whatever name this libc has for it. The
/// kernel has such functions as well.
fn is_churning(frame: &str) -> bool {
    !frame.contains("sys_") && ["pread", "pwrite"].iter().any(|name| frame.contains(name))
}

fn user_stack(row: &Row) -> Result<Vec<String>> {
    strings(&row.value, "user_stack")
}

/// How many stalls of a process memtrace has shown, as JSON, with the function that reads or writes.
fn named(memtrace: &Memtrace, pid: u32) -> usize {
    let pid = format!("\"pid\":{pid},");
    let is_named = |line: &&str| {
        let stack = line.split_once("\"user_stack\":");
        line.contains(&pid) && stack.is_some_and(|(_, stack)| is_churning(stack))
    };
    memtrace.stdout().lines().filter(is_named).count()
}

#[test]
fn programs_have_functions() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = churn(&cgroup)?;
    let pid = load.id();
    let args = ["drsnoop", "--json", "-K", "--user-stack", "-p", &pid.to_string()];
    let memtrace = Memtrace::start(&args);
    load.work_until("functions", || named(&memtrace, pid) >= ENOUGH)?;
    load.stop()?;
    let finished = memtrace.stop();
    finished.assert_success();
    let Output { rows, summary, .. } = Output::parse(&finished.stdout)?;
    summary.assert_nothing_lost();
    for row in &rows {
        let [kernel, user] = ["stack", "user_stack"].map(|key| strings(&row.value, key));
        let (kernel, user) = (kernel?, user?);
        assert!(kernel.iter().any(|frame| frame.contains("try_charge")), "{}", row.value);
        assert!(!user.is_empty() && user.iter().all(|frame| frame.contains("0x")), "{user:?}");
    }
    let churning = rows.iter().filter(|row| {
        user_stack(row).is_ok_and(|stack| stack.first().is_some_and(|frame| is_churning(frame)))
    });
    assert!(churning.count() >= ENOUGH, "innermost is the system call's function");
    Ok(())
}

#[test]
fn rows_have_both_stacks() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = churn(&cgroup)?;
    let pid = load.id().to_string();
    let both = Memtrace::start(&["drsnoop", "-K", "--user-stack", "-p", &pid]);
    let one = Memtrace::start(&["drsnoop", "--user-stack", "-p", &pid]);
    load.work_until("functions", || {
        [&both, &one].iter().all(|memtrace| memtrace.stdout().lines().any(is_churning))
    })?;
    load.stop()?;
    let [both, one] = [both, one].map(Memtrace::stop);
    both.assert_success();
    one.assert_success();
    let block = both.stdout.split("\n\n").find(|block| block.lines().any(is_churning));
    let (kernel, user) = block.and_then(|block| block.split_once("\n\t--\n")).context("a `--`")?;
    assert!(kernel.contains("\n\ttry_charge") && user.lines().next().is_some_and(is_churning));
    let kernels = |line: &str| line.contains("try_charge") || line == "\t--";
    assert!(!one.stdout.lines().any(kernels), "nobody asked for it: {}", one.stdout);
    Ok(())
}

/// memtrace does not get to run before the load is gone.
#[test]
fn of_a_process_that_is_gone_there_are_addresses() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = churn(&cgroup)?;
    let args = ["drsnoop", "--json", "--user-stack", "-p", &load.id().to_string()];
    let memtrace = Memtrace::start(&args);
    memtrace.signal(Signal::STOP);
    load.work(&cgroup, HITS / 8)?;
    load.stop()?;
    memtrace.signal(Signal::CONT);
    let finished = memtrace.stop();
    finished.assert_success();
    let Output { rows, .. } = Output::parse(&finished.stdout)?;
    assert!(!rows.is_empty());
    for row in &rows {
        let stack = user_stack(row)?;
        let is_address = |frame: &String| frame.starts_with("0x");
        assert!(!stack.is_empty() && stack.iter().all(is_address), "{stack:?}");
    }
    Ok(())
}

/// What may be looked into is what the user may look into, who is told.
#[test]
fn without_privileges_there_are_addresses() -> Result<()> {
    let (_dir, memtrace) = public_copy()?;
    let cgroup = limited_cgroup()?;
    let mut load = churn(&cgroup)?;
    let pid = load.id();
    let mut command = std::process::Command::new(memtrace);
    command.args(["drsnoop", "--json", "--user-stack", "-p", &pid.to_string()]);
    unlimit_locked_memory(&mut command);
    as_nobody(&mut command, CapabilitySet::BPF | CapabilitySet::PERFMON);
    let memtrace = Memtrace::spawn(&mut command);
    load.work_until_shown(&memtrace, ENOUGH, 1)?;
    load.stop()?;
    let finished = memtrace.stop();
    finished.assert_success();
    let Output { rows, summary, .. } = Output::parse(&finished.stdout)?;
    for row in &rows {
        assert!(user_stack(row)?.iter().all(|frame| frame.starts_with("0x")), "{}", row.value);
    }
    let lacking = "names of functions in user space (memtrace lacks CAP_SYS_PTRACE, ";
    let named = summary.unavailable.iter().filter(|feature| feature.starts_with(lacking)).count();
    assert_eq!(named, 1, "{:?}", summary.unavailable);
    Ok(())
}

/// A field of /proc/PID/status; nothing where the process is gone.
fn status(pid: u32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(|line| line.trim().to_owned())
}

/// The process that `pid` has started to find names, if it runs.
fn helper_of(pid: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").expect("cannot read /proc");
    let mut pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|&candidate| {
        status(candidate, "PPid") == Some(pid.to_string())
            && status(candidate, "Name").as_deref() == Some(HELPER)
            && runs(candidate)
    })
}

/// Whether a process has not ended. One that nobody has waited for yet has.
fn runs(pid: u32) -> bool {
    status(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// The process that memtrace has started to find names, and the one that does it.
fn helpers(memtrace: &Memtrace) -> (u32, u32) {
    let first = wait_for("a helper", || helper_of(memtrace.id()));
    (first, wait_for("its helper", || helper_of(first)))
}

#[test]
fn privileges_are_the_helpers() -> Result<()> {
    let memtrace = Memtrace::start(&["drsnoop", "--user-stack", "-p", "1"]);
    let (first, second) = helpers(&memtrace);
    let needed = CapabilitySet::SYS_PTRACE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::CHECKPOINT_RESTORE;
    for (pid, most) in [(memtrace.id(), CapabilitySet::BPF), (first, needed), (second, needed)] {
        for set in ["CapEff", "CapPrm"] {
            let bits = u64::from_str_radix(&status(pid, set).context("it is gone")?, 16)?;
            let has = CapabilitySet::from_bits(bits).context("unknown capabilities")?;
            assert!(most.contains(has), "{set} of {pid} has {has:?}");
        }
        assert_eq!(status(pid, "NoNewPrivs").as_deref(), Some("1"));
    }
    memtrace.stop().assert_success();
    assert!(!runs(first) && !runs(second), "they end with memtrace");
    Ok(())
}

#[test]
fn helpers_end_with_memtrace_however_that_ends() {
    let memtrace = Memtrace::start(&["drsnoop", "--user-stack", "-p", "1"]);
    let (first, second) = helpers(&memtrace);
    memtrace.signal(Signal::KILL);
    drop(memtrace);
    wait_until("the helpers to end", || !runs(first) && !runs(second));
}

#[test]
fn a_helper_that_dies_is_replaced() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let loads = [churn(&cgroup)?, churn(&cgroup)?];
    let pids = [loads[0].id(), loads[1].id()];
    let list = pids.map(|pid| pid.to_string()).join(",");
    let memtrace = Memtrace::start(&["drsnoop", "--json", "--user-stack", "-p", &list]);
    for (mut load, pid) in loads.into_iter().zip(pids) {
        let (first, second) = helpers(&memtrace);
        let dying = i32::try_from(second).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(dying, Signal::KILL)?;
        wait_until("another helper", || helper_of(first).is_some_and(|other| other != second));
        load.work_until("functions", || named(&memtrace, pid) > 0)?;
        load.stop()?;
    }
    memtrace.stop().assert_success();
    Ok(())
}

/// The microseconds of folded stacks, whose lines are as tools want them.
fn folded_us(text: &str) -> u64 {
    let us = |line: &str| {
        let (stack, us) = line.rsplit_once(' ').expect("a stack and a number");
        let frames: Vec<_> = stack.split(';').collect();
        assert!(frames.len() > 2 && !frames.contains(&""), "{line}");
        assert!(!stack.contains(' '), "{line}");
        assert_eq!(frames[1], "reclaim:memcg", "{line}");
        let kernel = frames.iter().position(|frame| frame.ends_with("_[k]"));
        let kernel = kernel.unwrap_or_else(|| panic!("no kernel stack: {line}"));
        assert!(frames[kernel..].iter().all(|frame| frame.ends_with("_[k]")), "{line}");
        us.parse::<u64>().expect("microseconds")
    };
    text.lines().map(us).sum()
}

/// The microseconds of a flame graph.
fn flame_us(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file).context("no flame graph")?;
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(&text, options)?;
    let total = document.descendants().find_map(|node| node.attribute("total_samples"));
    Ok(total.context("no total")?.parse()?)
}

/// Has a load traced with these options until its end, with a flame graph beside.
fn traced(options: &[&str]) -> Result<(Finished, u64, String)> {
    let dir = TempDir::new()?;
    let file = dir.path().join("flame.svg");
    let cgroup = limited_cgroup()?;
    let mut load = churn(&cgroup)?;
    let pid = load.id().to_string();
    let args = [&["drsnoop", "-p", &pid, "--flame", text(&file)], options].concat();
    let memtrace = Memtrace::start(&args);
    load.work(&cgroup, HITS / 4)?;
    load.stop()?;
    let finished = memtrace.stop();
    finished.assert_success();
    Ok((finished, flame_us(&file)?, fs::read_to_string(&file)?))
}

#[test]
fn a_flame_graph_has_all_that_folded_stacks_have() -> Result<()> {
    let (finished, flame_us, svg) = traced(&["-K", "--user-stack", "--folded"])?;
    assert!(finished.stdout.split(';').any(is_churning), "{}", finished.stdout);
    assert_eq!(folded_us(&finished.stdout), flame_us);
    assert!(svg.contains("microseconds") && svg.contains("Time held up in"), "{svg}");
    assert!(svg.contains("try_charge") && svg.contains("pread"), "{svg}");
    Ok(())
}

#[test]
fn a_flame_graph_has_the_time_of_all_stalls() -> Result<()> {
    let (finished, flame_us, _) = traced(&["--json"])?;
    let Output { rows, .. } = Output::parse(&finished.stdout)?;
    assert!(rows.iter().all(|row| row.value.get("stack").is_none()), "for the graph alone");
    let ns: u64 = rows.iter().map(|row| row.duration_ns).sum();
    assert!(ns > 0);
    assert_eq!((ns + 500) / 1000, flame_us);
    Ok(())
}

#[test]
fn too_many_stacks_are_one_line() -> Result<()> {
    let (finished, flame_us, _) = traced(&["--folded", "--max-keys", "1"])?;
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let us = |line: &str| line.rsplit_once(' ').and_then(|(_, us)| us.parse::<u64>().ok());
    assert!(lines[1].starts_with("[other] "), "{lines:?}");
    assert_eq!(lines.iter().map(|line| us(line)).sum::<Option<u64>>(), Some(flame_us));
    Ok(())
}

#[test]
fn flame_graphs_take_the_place_of_files() -> Result<()> {
    let dir = TempDir::new()?;
    let file = dir.path().join("flame.svg");
    // Not even root may write here once it has given up its privileges.
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).context("cannot give a folder away")?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    fs::write(&file, "before")?;
    fs::set_permissions(&file, Permissions::from_mode(0o640))?;
    let link = dir.path().join("link.svg");
    std::os::unix::fs::symlink(&file, &link)?;
    let refused = Finished::of(&mut command(&["drsnoop", "--flame", text(&link)]));
    assert!(refused.stderr.contains("it is a symbolic link"), "{}", refused.stderr);
    let cgroup = limited_cgroup()?;
    let mut load = churn(&cgroup)?;
    let args = ["drsnoop", "--json", "-p", &load.id().to_string(), "--flame", text(&file)];
    let memtrace = Memtrace::start(&args);
    load.work_until_shown(&memtrace, ENOUGH, 1)?;
    assert_eq!(fs::read_to_string(&file)?, "before", "written when all is known");
    assert_eq!(fs::read_dir(dir.path())?.count(), 2, "nothing else is there meanwhile");
    load.stop()?;
    memtrace.stop().assert_success();
    assert!(flame_us(&file)? > 0);
    assert_eq!(fs::metadata(&file)?.mode() & 0o777, 0o640, "as before");
    assert_eq!(fs::read_dir(dir.path())?.count(), 2, "nothing is left behind");
    Ok(())
}

#[test]
fn where_nothing_stalls_there_is_no_flame_graph() -> Result<()> {
    let dir = TempDir::new()?;
    let file = dir.path().join("flame.svg");
    let this = std::process::id().to_string();
    let args = ["drsnoop", "-d", "100ms", "-p", &this, "--flame", text(&file)];
    let finished = Finished::of(&mut command(&args));
    finished.assert_success();
    assert!(finished.stderr.contains("flame.svg` is not written"), "{}", finished.stderr);
    assert!(!file.exists());
    Ok(())
}

/// Checks that memtrace ended with this status, and said why in one line.
#[track_caller]
fn assert_error(finished: &Finished, status: i32, parts: &[&str]) {
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert_eq!(finished.status.code(), Some(status), "{}", finished.stderr);
    for part in ["memtrace: "].iter().chain(parts) {
        assert!(last.contains(part), "nothing of `{part}` in `{last}`");
    }
}

#[test]
fn what_cannot_be_written_is_an_error_at_once() -> Result<()> {
    let dir = TempDir::new()?;
    let missing = dir.path().join("missing/flame.svg");
    for (file, why) in [
        (text(&missing), "No such file or directory"),
        (text(dir.path()), "not a regular file"),
        ("/dev/null", "not a regular file"),
        ("/proc/flame.svg", "`/proc/flame.svg`"),
        ("..", "is a directory"),
    ] {
        let finished = Finished::of(&mut command(&["drsnoop", "--flame", file]));
        assert_error(&finished, 1, &[file, why]);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
    // Root without the right to do so is like anybody else.
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).context("cannot give a folder away")?;
    let file = dir.path().join("flame.svg");
    let mut command = command(&["drsnoop", "--flame", text(&file)]);
    let finished = Finished::of(without(&mut command, CapabilitySet::DAC_OVERRIDE));
    assert_error(&finished, 1, &["flame.svg", "Permission denied"]);
    Ok(())
}

#[test]
fn a_full_disk_is_an_error() -> Result<()> {
    let disk = Mount::with_options("tmpfs", c"size=8k")?;
    let file = disk.path().join("flame.svg");
    fs::write(&file, "before")?;
    let cgroup = limited_cgroup()?;
    let mut load = churn(&cgroup)?;
    let args = ["drsnoop", "--json", "-p", &load.id().to_string(), "--flame", text(&file)];
    let memtrace = Memtrace::start(&args);
    load.work_until_shown(&memtrace, ENOUGH, 1)?;
    load.stop()?;
    let finished = memtrace.stop();
    assert_error(&finished, 1, &["flame.svg", "No space left on device"]);
    assert_eq!(fs::read_to_string(&file)?, "before", "it is as it was");
    assert_eq!(fs::read_dir(disk.path())?.count(), 1, "nothing is left behind");
    Ok(())
}

#[test]
fn what_does_not_go_together_is_wrong_usage() {
    for args in [
        &["--folded", "--json"][..],
        &["--folded", "-H"],
        &["--folded", "-e"],
        &["--folded", "-T"],
        &["--folded", "-U"],
        &["--flame", "x.svg", "-H"],
        &["--user-stack", "-H"],
        &["--flame"],
    ] {
        for subject in ["drsnoop", "compactsnoop"] {
            let finished = Finished::of(&mut command(&[&[subject], args].concat()));
            assert_error(&finished, 2, &[args[0]]);
            assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        }
    }
}
