//! Options: those of the snoop commands, for episodes.

use anyhow::Result;
use tests::{
    episodes::{Episode, Stalls},
    host::is_guest,
    load::{Churning, Load, limited_cgroup},
    run::{Finished, Memtrace, command},
};

use super::{churning, episodes_of, memload, stopped};

const ENOUGH: usize = 100;

/// Filters work on threads, before there are episodes; kinds and latencies choose whole episodes.
#[test]
fn filters() -> Result<()> {
    // Some stalls are shorter, and some longer.
    let at_least_ns = if is_guest() { 2_000_000 } else { 100_000 };
    let cgroup = limited_cgroup()?;
    let named = Churning { threads: 2, comm: Some("stalled"), ..Churning::new(&cgroup) };
    let mut load = Load::churn(memload(), &named)?;
    let pid = load.id().to_string();
    let tid = load.workers()[0];
    let start =
        |args: &[&str]| Memtrace::start(&[&["stalls", "--json", "--rounds"], args].concat());
    let all = start(&["-p", &pid]);
    let one = start(&["-t", &tid.to_string()]);
    let of_cgroup = start(&["-c", &cgroup.name(), "-n", "stalled", "-u", "0"]);
    let long = start(&["-p", &pid, "-m", &format!("{}us", at_least_ns / 1000)]);
    let limits = start(&["-p", &pid, "--kind", "memcg-max,memcg-high"]);
    let others = start(&["-p", &pid, "--kind", "direct,compaction,node"]);
    load.work_until_shown(&all, ENOUGH, 2)?;
    load.stop()?;
    let all = stopped(all)?;
    let count = |stalls: &Stalls, of: &dyn Fn(&Episode) -> bool| {
        stalls.episodes.iter().filter(|episode| of(episode)).count()
    };
    let one = stopped(one)?;
    assert!(one.episodes.iter().all(|episode| episode.tid == tid));
    assert_eq!(one.episodes.len(), count(&all, &|episode| episode.tid == tid));
    // The main thread has another name.
    let of_cgroup = stopped(of_cgroup)?;
    let workers = count(&all, &|episode| episode.value["comm"] == "stalled");
    assert_eq!(of_cgroup.episodes.len(), workers);
    let long = stopped(long)?;
    assert!(long.episodes.iter().all(|episode| episode.duration_ns >= at_least_ns));
    // Each of the two has measured for itself.
    let slack = 1 + all.episodes.len() / 20;
    let longer_than = |ns| count(&all, &|episode| episode.duration_ns >= ns);
    let (least, most) = (longer_than(at_least_ns * 3 / 2), longer_than(at_least_ns / 2));
    assert!(
        (least.saturating_sub(slack)..=most + slack).contains(&long.episodes.len()),
        "{} of {least} to {most}",
        long.episodes.len()
    );
    let limits = stopped(limits)?;
    assert_eq!(limits.episodes.len(), count(&all, &|it| it.kind.starts_with("memcg-")));
    assert_eq!(limits.watched, ["memcg-max", "memcg-high"]);
    assert!(limits.not_watched.is_empty());
    assert_eq!(stopped(others)?.episodes.len(), 0);
    Ok(())
}

#[test]
fn histograms_by_kind() -> Result<()> {
    let (_cgroup, mut load) = churning(2)?;
    let pid = load.id().to_string();
    let shown = Memtrace::start(&["stalls", "--json", "-p", &pid]);
    let counted = Memtrace::start(&["stalls", "--json", "-H", "--by", "kind", "-p", &pid]);
    load.work_until_shown(&shown, ENOUGH, 2)?;
    load.stop()?;
    let (shown, counted) = (stopped(shown)?, stopped(counted)?);
    assert!(counted.episodes.is_empty());
    let mut kinds: Vec<_> = shown.episodes.iter().map(|episode| episode.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(counted.histograms.len(), kinds.len(), "{:?} of {kinds:?}", counted.histograms);
    for histogram in &counted.histograms {
        let kind = histogram["key"]["kind"].as_str().unwrap_or_default();
        let of_kind = shown.episodes.iter().filter(|episode| episode.kind == kind);
        let apart = histogram["count"].as_u64().unwrap_or(0).abs_diff(of_kind.count() as u64);
        // Gaps as long as `--gap` may seem longer to one of the two.
        assert!(apart <= 1 + shown.episodes.len() as u64 / 100, "{histogram}");
    }
    Ok(())
}

/// Rounds closer to one another than the gap are one episode.
#[test]
fn gaps() -> Result<()> {
    let (_cgroup, mut load) = churning(2)?;
    let pid = load.id().to_string();
    let start =
        |args: &[&str]| Memtrace::start(&[&["stalls", "--json", "-p", &pid], args].concat());
    let (rounds, merged) = (start(&["--rounds"]), start(&["--gap", "10m"]));
    load.work_until_shown(&rounds, ENOUGH, 2)?;
    load.stop()?;
    let (rounds, merged) = (stopped(rounds)?, stopped(merged)?);
    assert_eq!(merged.episodes.len(), episodes_of(&rounds));
    let count = |stalls: &Stalls| -> u64 {
        stalls.episodes.iter().flat_map(|episode| episode.rounds).sum()
    };
    assert_eq!(count(&merged), count(&rounds));
    Ok(())
}

#[test]
fn mistakes() {
    for (args, word) in [
        (&["--kind", "reclaim"][..], "reclaim"),
        (&["--gap", "soon"], "soon"),
        (&["--rounds", "--gap", "1ms"], "--gap"),
        (&["--by", "kind"], "--histogram"),
        (&["--by", "zone", "-H"], "zone"),
        (&["1"], "--histogram"),
        (&["--gap", "0s"], "more than zero"),
    ] {
        let finished = Finished::of(&mut command(&[&["stalls"], args].concat()));
        assert_eq!(finished.status.code(), Some(2), "{args:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(word), "{args:?}: {}", finished.stderr);
        assert!(finished.stdout.is_empty(), "{args:?}: {}", finished.stdout);
    }
}
