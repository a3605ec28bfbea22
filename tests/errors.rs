//! Every error: one line that says what is wrong and what to do, status 1, or 2 for a command line
//! that makes no sense.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result};
use rustix::thread::CapabilitySet;
use tests::{
    confined::{
        as_nobody, limit_locked_memory, public_copy, unlimit_locked_memory, with_bind_mount,
        without,
    },
    host::TempDir,
    load::{Churning, HITS, Load, limited_cgroup},
    run::{Finished, Memtrace, binary, command},
};

/// More than any process id.
const NO_PID: &str = "4194305";

/// Where the kernel describes its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// An event that a kernel without it is made from, and what it is called in BTF.
const EVENT: &str = "mm_vmscan_memcg_reclaim_begin";

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// Checks for an error of one line that contains all of `parts`.
#[track_caller]
fn assert_error(finished: &Finished, code: i32, parts: &[&str]) {
    let stderr = &finished.stderr;
    assert_eq!(finished.status.code(), Some(code), "{stderr}");
    assert!(stderr.ends_with('\n') && stderr.lines().count() == 1, "not one line: `{stderr}`");
    assert!(stderr.starts_with("memtrace: "), "`{stderr}`");
    for part in parts {
        assert!(stderr.contains(part), "nothing of `{part}` in `{stderr}`");
    }
    assert_eq!(finished.stdout, "", "nothing on the standard output");
}

#[track_caller]
fn assert_refused(args: &[&str], parts: &[&str]) {
    assert_error(&Finished::of(&mut command(args)), 1, parts);
}

#[track_caller]
fn assert_usage(args: &[&str], parts: &[&str]) {
    assert_error(&Finished::of(&mut command(args)), 2, parts);
}

/// Runs memtrace where `from` is seen at the place of `to`.
fn mounted(from: &Path, to: &str, args: &[&str]) -> Result<Finished> {
    Ok(Finished::of(with_bind_mount(&mut command(args), from, Path::new(to))?))
}

#[test]
fn not_root() -> Result<()> {
    let (_dir, memtrace) = public_copy()?;
    for subject in ["drsnoop", "compactsnoop", "now"] {
        let mut command = Command::new(&memtrace);
        let finished = Finished::of(as_nobody(command.arg(subject), CapabilitySet::empty()));
        assert_error(&finished, 1, &["CAP_BPF", "CAP_PERFMON", "sudo"]);
    }
    Ok(())
}

#[test]
fn one_capability_missing() {
    for (dropped, missing, present) in [
        (CapabilitySet::PERFMON, "CAP_PERFMON", "CAP_BPF"),
        (CapabilitySet::BPF, "CAP_BPF", "CAP_PERFMON"),
    ] {
        let dropped = dropped | CapabilitySet::SYS_ADMIN;
        let finished = Finished::of(without(&mut command(&["drsnoop"]), dropped));
        assert_error(&finished, 1, &[missing]);
        let what = finished.stderr.split(';').next().unwrap_or_default();
        assert!(!what.contains(present), "`{present}` is not missing: `{what}`");
    }
}

/// The two that it asks for are all that it needs, and before 5.11 the limit that it names.
#[test]
fn two_capabilities_are_enough() -> Result<()> {
    let (_dir, memtrace) = public_copy()?;
    for subject in ["drsnoop", "compactsnoop"] {
        let mut command = Command::new(&memtrace);
        command.args([subject, "--json", "-p", "1", "-d", "100ms"]);
        let both = CapabilitySet::BPF | CapabilitySet::PERFMON;
        let mut finished = Finished::of(as_nobody(&mut command, both));
        if finished.stderr.contains("ulimit -l unlimited") {
            let mut command = Command::new(&memtrace);
            command.args([subject, "--json", "-p", "1", "-d", "100ms"]);
            let command = unlimit_locked_memory(&mut command);
            finished = Finished::of(as_nobody(command, both));
        }
        finished.assert_success();
    }
    Ok(())
}

#[test]
fn no_btf() -> Result<()> {
    let empty = TempDir::new()?;
    let finished = mounted(empty.path(), "/sys/kernel/btf", &["drsnoop"])?;
    assert_error(&finished, 1, &[BTF, "CONFIG_DEBUG_INFO_BTF"]);
    Ok(())
}

#[test]
fn btf_that_is_cut_off() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("vmlinux");
    let btf = fs::read(BTF).context("cannot read the kernel's BTF")?;
    for len in [0, 10, btf.len() / 2] {
        fs::write(&path, &btf[..len]).context("cannot write a BTF")?;
        let finished = mounted(&path, BTF, &["drsnoop"])?;
        assert_error(&finished, 1, &[BTF, "uname -r"]);
    }
    Ok(())
}

/// Makes a BTF that lacks [`EVENT`].
fn without_event(dir: &TempDir) -> Result<PathBuf> {
    let name = format!("btf_trace_{EVENT}\0").into_bytes();
    let mut btf = fs::read(BTF).context("cannot read the kernel's BTF")?;
    let at = btf
        .windows(name.len())
        .position(|window| window == name)
        .context("the kernel lacks the event already")?;
    btf[at..at + 3].copy_from_slice(b"xxx");
    let path = dir.path().join("vmlinux");
    fs::write(&path, btf).context("cannot write a BTF")?;
    Ok(path)
}

/// What is there is traced, and what is not is named at the end.
#[test]
fn kernel_without_one_of_the_tracepoints() -> Result<()> {
    let dir = TempDir::new()?;
    let finished = mounted(&without_event(&dir)?, BTF, &["drsnoop", "-d", "100ms"])?;
    finished.assert_success();
    let summary = finished.stderr.lines().last().unwrap_or_default();
    assert!(summary.contains("not available") && summary.contains(EVENT), "`{}`", finished.stderr);
    Ok(())
}

#[test]
fn kernel_without_the_only_tracepoint() -> Result<()> {
    let dir = TempDir::new()?;
    let finished = mounted(&without_event(&dir)?, BTF, &["drsnoop", "--kind", "memcg"])?;
    assert_error(&finished, 1, &[EVENT]);
    Ok(())
}

#[test]
fn lockdown() -> Result<()> {
    let dir = TempDir::new()?;
    for (state, refused) in
        [("none integrity [confidentiality]", true), ("none [integrity] confidentiality", false)]
    {
        fs::write(dir.path().join("lockdown"), state).context("cannot write a state")?;
        let finished = mounted(dir.path(), "/sys/kernel/security", &["drsnoop", "-d", "100ms"])?;
        if refused {
            assert_error(&finished, 1, &["lockdown", "confidentiality", "integrity"]);
        } else {
            finished.assert_success();
        }
    }
    Ok(())
}

/// Kernels since 5.11 charge the memory of eBPF to cgroups instead.
#[test]
fn no_memory_may_be_locked() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id().to_string();
    let memtrace = Memtrace::spawn(limit_locked_memory(&mut command(&["drsnoop", "-p", &pid]), 0));
    load.work(&cgroup, HITS / 8)?;
    load.stop()?;
    let finished = memtrace.stop();
    finished.assert_success();
    assert!(finished.summary().stalls > 0, "{}", finished.stderr);
    assert_eq!(
        finished.stderr.lines().count(),
        2,
        "what is traced, and the summary: {}",
        finished.stderr
    );
    Ok(())
}

#[test]
fn unknown_processes_and_threads() -> Result<()> {
    for subject in ["drsnoop", "compactsnoop", "now"] {
        assert_refused(&[subject, "-p", NO_PID], &["--pid", NO_PID, "ps -e"]);
        assert_refused(&[subject, "-t", NO_PID], &["--tid", NO_PID, "ps -eL"]);
    }
    // A thread is no process.
    let cgroup = limited_cgroup()?;
    let load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let (pid, tid) = (load.id().to_string(), load.workers()[0].to_string());
    assert_refused(&["drsnoop", "-p", &tid], &["--pid", &tid, &format!("--tid {tid}"), &pid]);
    assert_usage(&["drsnoop", "-p", "one"], &["one", "--pid"]);
    assert_usage(&["drsnoop", "-t", "4294967296"], &["4294967296", "--tid"]);
    Ok(())
}

#[test]
fn process_ids_of_another_namespace() {
    for option in ["--pid=1", "--tid=1"] {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc"]).arg(binary()).args(["drsnoop", option]);
        let finished = Finished::of(&mut unshare);
        assert_error(&finished, 1, &["PID namespace", "run it on the host"]);
    }
}

/// On a busy host some of a list are gone before memtrace looks.
#[test]
fn some_processes_of_a_list_are_gone() {
    let list = format!("{NO_PID},{}", process::id());
    let finished = Finished::of(&mut command(&["drsnoop", "-d", "0.1", "-p", &list]));
    finished.assert_success();
    assert!(finished.stderr.contains("left out: no process has PID"), "{}", finished.stderr);
}

#[test]
fn unknown_users() {
    assert_refused(&["drsnoop", "-u", "no-such-user"], &["--uid", "no-such-user", "getent"]);
    assert_refused(&["drsnoop", "-u", "4294967296"], &["--uid", "4294967296"]);
}

#[test]
fn impossible_names() {
    assert_refused(
        &["drsnoop", "-n", "longer-than-fifteen"],
        &["--comm", "longer-than-fifteen", "15"],
    );
    assert_refused(&["drsnoop", "-n", ""], &["--comm", "15"]);
}

#[test]
fn unknown_cgroups() {
    assert_refused(
        &["drsnoop", "-c", "/no/such/cgroup"],
        &["--cgroup", "/no/such/cgroup", "/proc/PID/cgroup"],
    );
    assert_refused(&["drsnoop", "-c", "/var/tmp"], &["--cgroup", "/var/tmp", "not a cgroup"]);
    // Another controller's hierarchy of cgroup v1, on hosts that have one.
    let cpu = Path::new("/sys/fs/cgroup/cpu");
    if cpu.join("cgroup.procs").exists() && !cpu.join("memory.limit_in_bytes").exists() {
        assert_refused(
            &["drsnoop", "-c", "/sys/fs/cgroup/cpu"],
            &["--cgroup", "/sys/fs/cgroup/cpu", "memory"],
        );
    }
}

#[test]
fn bad_durations() {
    for bad in ["abc", "0", "10parsecs", ""] {
        assert_usage(&["drsnoop", "-d", bad], &["--duration", bad]);
        assert_usage(&["compactsnoop", "-m", bad], &["--min-latency", bad]);
    }
    assert_usage(&["drsnoop", "-m", "10"], &["--min-latency", "10ms"]);
    assert_usage(&["now", "-i", "0ms"], &["--interval", "0ms"]);
    assert_usage(&["drsnoop", "-d", "-1"], &["-1"]);
}

#[test]
fn contradictions() {
    for subject in ["drsnoop", "now"] {
        assert_usage(&[subject, "-q", "-v"], &["--quiet", "--verbose"]);
    }
    assert_usage(&["drsnoop", "--by", "comm"], &["--histogram"]);
    assert_usage(&["drsnoop", "--max-keys", "5"], &["--histogram"]);
    assert_usage(&["drsnoop", "1"], &["--histogram"]);
    assert_usage(&["compactsnoop", "1", "5"], &["--histogram"]);
    assert_usage(&["drsnoop", "-H", "-e"], &["--histogram", "--extended"]);
    assert_usage(&["drsnoop", "-H", "-K"], &["--histogram", "--kernel-stack"]);
    assert_usage(&["drsnoop", "-H", "-U"], &["--histogram", "--print-uid"]);
}

#[test]
fn bad_values() {
    assert_usage(&["drsnoop", "-H", "1", "0"], &["0", "COUNT"]);
    assert_usage(&["drsnoop", "-H", "0"], &["0", "INTERVAL"]);
    assert_usage(&["drsnoop", "-H", "--max-keys", "0"], &["--max-keys"]);
    assert_usage(&["drsnoop", "-H", "--by", "shoe-size"], &["--by", "shoe-size", "cgroup"]);
    assert_usage(&["drsnoop", "--kind", "sorry"], &["--kind", "sorry", "memcg"]);
    assert_usage(&["compactsnoop", "--cause", "sorry"], &["--cause", "sorry", "kcompactd"]);
    assert_usage(&["compactsnoop", "--kind", "direct"], &["--kind"]);
    assert_usage(&["drsnoop", "--cause", "direct"], &["--cause"]);
    assert_usage(&["drsnoop", "--buffer-size", "lots"], &["--buffer-size", "lots", "4M"]);
    assert_usage(&["drsnoop", "--max-stalled", "0"], &["--max-stalled"]);
    assert_usage(&["drsnoop", "--no-such-option"], &["--no-such-option"]);
    assert_usage(&["snoop"], &["snoop"]);
}

/// What may go together does.
#[test]
fn no_contradictions() {
    for args in [
        &["drsnoop", "--json", "-K"][..],
        &["drsnoop", "--json", "-e", "-T", "-U"],
        &["drsnoop", "-H", "-T"],
        &["drsnoop", "-q", "-H", "--by", "cause", "--max-keys", "1"],
        &["compactsnoop", "-v", "-K", "-e", "-U", "-T"],
    ] {
        Finished::of(&mut command(&[args, &["-d", "50ms"]].concat())).assert_success();
    }
}
