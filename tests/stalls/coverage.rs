//! What a run says that it watched, and what not.

use anyhow::Result;
use tests::{
    host::kprobes_work,
    run::{Finished, Memtrace, command},
};

use super::{churning, stopped};

/// All kinds, in their order.
const KINDS: [&str; 14] = [
    "direct",
    "memcg-max",
    "memcg-high",
    "softlimit",
    "node",
    "proactive",
    "compaction",
    "background",
    "throttled",
    "oom",
    "penalty",
    "pfmemalloc",
    "swapin",
    "refault",
];

/// Those that only a probe on a function sees.
const OF_FUNCTIONS: [&str; 4] = ["penalty", "pfmemalloc", "swapin", "refault"];

/// Whether the kernel marks reclaim that memory.reclaim asked for.
fn tells_proactive() -> bool {
    let alone = Finished::of(&mut command(&["drsnoop", "--kind", "proactive", "-d", "1ms"]));
    alone.status.success()
}

#[test]
fn of_all_kinds() -> Result<()> {
    let lacking = |kind: &&str| {
        !kprobes_work() && OF_FUNCTIONS.contains(kind) || *kind == "proactive" && !tells_proactive()
    };
    let (missing, watched): (Vec<_>, Vec<_>) = KINDS.into_iter().partition(lacking);
    let memtrace = Memtrace::start(&["stalls", "--json"]).stop();
    memtrace.assert_success();
    let stalls = tests::episodes::Stalls::parse(&memtrace.stdout)?;
    assert_eq!(stalls.watched, watched);
    let not_watched: std::collections::BTreeSet<_> =
        stalls.not_watched.keys().map(String::as_str).collect();
    assert_eq!(not_watched, missing.iter().copied().collect());

    let line = memtrace.stderr.lines().last().unwrap_or_default();
    let watched =
        format!("memtrace: {} of 14 kinds watched: {}", watched.len(), watched.join(", "));
    let rest = line.strip_prefix(&watched).unwrap_or_else(|| panic!("not {watched}: {line}"));
    assert_eq!(rest.is_empty(), missing.is_empty(), "{line}");
    for (kind, reason) in &stalls.not_watched {
        assert!(!reason.is_empty() && rest.contains(kind) && rest.contains(reason), "{line}");
    }
    Ok(())
}

/// Without parts nothing of the kinds that need them, and of the others as much as before.
#[test]
fn without_parts() -> Result<()> {
    let (_cgroup, mut load) = churning(2)?;
    let pid = load.id().to_string();
    let memtrace = Memtrace::start(&["stalls", "--json", "--no-parts", "-p", &pid]);
    load.work_until_shown(&memtrace, 100, 2)?;
    load.stop()?;
    let stalls = stopped(memtrace)?;
    assert!(stalls.episodes.iter().all(|episode| episode.parts.is_none()));
    for kind in OF_FUNCTIONS.into_iter().chain(["throttled"]) {
        assert_eq!(stalls.not_watched.get(kind).map(String::as_str), Some("--no-parts"), "{kind}");
    }
    Ok(())
}

/// The certificate for a process: its longest stall, and no more than was watched.
#[test]
fn certificate() -> Result<()> {
    let (_cgroup, mut load) = churning(2)?;
    let (pid, own) = (load.id(), std::process::id());
    let memtrace = Memtrace::start(&["stalls", "--json", "-p", &format!("{pid},{own}")]);
    load.work_until_shown(&memtrace, 100, 2)?;
    load.stop()?;
    let finished = memtrace.stop();
    finished.assert_success();
    let stalls = tests::episodes::Stalls::parse(&finished.stdout)?;
    let longest = stalls.of(pid).map(|episode| episode.duration_ns).max().unwrap_or_default();
    let certified = |pid: u32| {
        let mut certificates = stalls.certificates.iter().filter(move |it| it["pid"] == pid);
        let certificate = certificates.next().expect("a certificate");
        assert_eq!(certificates.next(), None, "another of PID {pid}");
        assert_eq!(certificate["watched"], stalls.watched.len());
        assert_eq!(certificate["kinds"], KINDS.len());
        assert_eq!(certificate["duration_ns"], stalls.summary.duration_ns);
        assert_eq!(certificate["filtered"], false);
        (&certificate["longest_ns"], &certificate["has_ended"])
    };
    assert_eq!(certified(pid), (&longest.into(), &true.into()));
    let own_longest = stalls.of(own).map(|episode| episode.duration_ns).max();
    assert_eq!(certified(own), (&own_longest.into(), &false.into()));
    let seconds = stalls.summary.duration_ns as f64 / 1e9;
    let kinds = format!("{} of 14 kinds watched", stalls.watched.len());
    let expected = format!(
        "memtrace: longest stall of PID {pid} in {seconds:.1} s: {:.2} ms; {kinds}",
        longest as f64 / 1e6
    );
    assert!(finished.stderr.contains(&expected), "no `{expected}` in: {}", finished.stderr);
    if stalls.of(own).next().is_none() {
        let none =
            format!("memtrace: longest stall of PID {own} in {seconds:.1} s: none seen; {kinds}");
        assert!(finished.stderr.contains(&none), "no `{none}` in: {}", finished.stderr);
    }
    Ok(())
}
