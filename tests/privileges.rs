//! What memtrace may do, and what is left of it once it traces. Without any tool of the host, so that
//! it runs in a guest as well.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use rustix::{fs::XattrFlags, thread::CapabilitySet};
use tests::{
    confined::{as_nobody, public_copy, unlimit_locked_memory},
    host::NOBODY,
    load::{Churning, HITS, Load, limited_cgroup},
    rows::{Output, Row, assert_same},
    run::{Finished, Memtrace},
};

/// What README says that memtrace needs.
const NEEDED: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// memtrace as an ordinary user with no capabilities but these, and with the memory to lock that
/// kernels before 5.11 want for eBPF.
fn by_nobody(memtrace: &Path, capabilities: CapabilitySet, args: &[&str]) -> Command {
    let mut command = Command::new(memtrace);
    command.args(args);
    // In this order: it takes root to raise the limit.
    unlimit_locked_memory(&mut command);
    as_nobody(&mut command, capabilities);
    command
}

/// Traces a load as root and, by `command`, as someone else at the same time.
fn assert_sees_the_same(mut command: impl FnMut(&[&str]) -> Command) -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id().to_string();
    let args = ["drsnoop", "--json", "-p", &pid];
    let pair = [Memtrace::start(&args), Memtrace::spawn(&mut command(&args))];
    assert_eq!(ids(pair[1].id())?, [NOBODY; 4], "not run by nobody");
    load.work_until_shown(&pair[0], 100, 1)?;
    load.stop()?;
    let [root, nobody] = pair.map(|memtrace| {
        let finished = memtrace.stop();
        finished.assert_success();
        Output::parse(&finished.stdout)
    });
    let (root, nobody) = (root?, nobody?);
    assert!(root.rows.len() >= 100, "only {} stalls", root.rows.len());
    assert_same(&root, &nobody);
    let name = cgroup.name();
    let is_named = |row: &Row| row.value["cgroup"] == name.as_str();
    assert!(nobody.rows.iter().all(is_named), "cgroups are found by a search");
    Ok(())
}

#[test]
fn two_capabilities_see_what_root_sees() -> Result<()> {
    let (_dir, memtrace) = public_copy()?;
    assert_sees_the_same(|args| by_nobody(&memtrace, NEEDED, args))
}

#[test]
fn two_capabilities_of_the_file_see_what_root_sees() -> Result<()> {
    let (_dir, memtrace) = public_copy()?;
    grant(&memtrace, NEEDED)?;
    assert_sees_the_same(|args| by_nobody(&memtrace, CapabilitySet::empty(), args))
}

/// Does what setcap(8) does with `=ep`.
fn grant(file: &Path, capabilities: CapabilitySet) -> Result<()> {
    // `struct vfs_cap_data` of revision 2, in include/uapi/linux/capability.h.
    const REVISION_2_EFFECTIVE: u32 = 0x0200_0001;
    let bits = capabilities.bits();
    let low = u32::try_from(bits & u64::from(u32::MAX))?;
    let high = u32::try_from(bits >> 32)?;
    let words = [REVISION_2_EFFECTIVE, low, 0, high, 0];
    let data: Vec<_> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    rustix::fs::setxattr(file, "security.capability", &data, XattrFlags::empty())
        .context("cannot give a file capabilities")
}

#[test]
fn compaction_needs_no_more() -> Result<()> {
    let (_dir, memtrace) = public_copy()?;
    let args = ["compactsnoop", "--json", "-e", "-K", "-d", "100ms"];
    Finished::of(&mut by_nobody(&memtrace, NEEDED, &args)).assert_success();
    Ok(())
}

#[test]
fn what_is_missing_is_named() -> Result<()> {
    let (_dir, memtrace) = public_copy()?;
    for (given, missing) in [
        (CapabilitySet::empty(), "lacks CAP_BPF and CAP_PERFMON;"),
        (CapabilitySet::PERFMON, "lacks CAP_BPF;"),
        (CapabilitySet::BPF, "lacks CAP_PERFMON;"),
    ] {
        let finished = Finished::of(&mut by_nobody(&memtrace, given, &["drsnoop"]));
        assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
        assert!(finished.stderr.contains(missing), "`{}`", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "`{}`", finished.stderr);
    }
    Ok(())
}

/// A field of /proc/PID/status.
fn status(pid: u32, key: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("memtrace is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(|line| line.trim().to_owned()).with_context(|| format!("no `{key}` in: {status}"))
}

/// Its real, effective, saved and file system's user id.
fn ids(pid: u32) -> Result<Vec<u32>> {
    status(pid, "Uid")?.split_whitespace().map(|id| Ok(id.parse()?)).collect()
}

fn capabilities(pid: u32, set: &str) -> Result<CapabilitySet> {
    let bits = u64::from_str_radix(&status(pid, set)?, 16)?;
    CapabilitySet::from_bits(bits).context("unknown capabilities")
}

/// Reads the sets of a memtrace that has attached, which wants `kept` at most.
fn assert_gave_up(memtrace: &Memtrace, kept: CapabilitySet) -> Result<()> {
    // Where the kernel wants it for reading maps.
    let kept = kept | CapabilitySet::BPF;
    for set in ["CapEff", "CapPrm"] {
        let left = capabilities(memtrace.id(), set)?;
        ensure!(kept.contains(left), "{set} has {left:?}, and {kept:?} is all that is needed");
    }
    for set in ["CapInh", "CapAmb"] {
        ensure!(capabilities(memtrace.id(), set)?.is_empty(), "{set} is not empty");
    }
    assert_eq!(status(memtrace.id(), "NoNewPrivs")?, "1");
    Ok(())
}

#[test]
fn what_is_not_needed_any_more_is_given_up() -> Result<()> {
    let memtrace = Memtrace::start(&["drsnoop", "-K", "-p", "1"]);
    assert_gave_up(&memtrace, CapabilitySet::empty())?;
    assert_eq!(status(memtrace.id(), "CapBnd")?, "0000000000000000");
    memtrace.stop().assert_success();

    let memtrace = Memtrace::start(&["drsnoop", "-e", "-p", "1"]);
    assert_gave_up(&memtrace, CapabilitySet::DAC_READ_SEARCH)?;
    memtrace.stop().assert_success();

    let (_dir, path) = public_copy()?;
    let more = NEEDED | CapabilitySet::SYSLOG | CapabilitySet::DAC_READ_SEARCH;
    let memtrace = Memtrace::spawn(&mut by_nobody(&path, more, &["compactsnoop", "-K"]));
    assert_gave_up(&memtrace, CapabilitySet::empty())?;
    memtrace.stop().assert_success();
    Ok(())
}

/// Names of functions were read while that was allowed.
#[test]
fn stacks_have_names_without_privileges() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let memtrace = Memtrace::start(&["drsnoop", "-K", "-p", &load.id().to_string()]);
    load.work(&cgroup, HITS / 8)?;
    load.stop()?;
    let finished = memtrace.stop();
    finished.assert_success();
    assert!(finished.stdout.contains("try_charge"), "{}", finished.stdout);
    Ok(())
}
