//! The eBPF programs load and attach on this kernel, in every combination of options that changes
//! them. The verifier sees options as constants and judges only the code that they leave.
//!
//! Filters are separate branches, one after the other, of all programs, so each subset of them is
//! tried with all the rest switched on. What is shown, and the log, is tried with no filter and with
//! all of them. A guest takes seconds for each, so there the subsets are those of no filter, all but
//! one, and all, which have every pair of them in each of its four states; and what is shown is tried
//! with all filters and the log, which leaves the most code, as other tests load what is left with none.

use std::process;

use anyhow::Result;
use tests::{
    cgroup::{Cgroup, Hierarchy},
    host::is_guest,
    run::{Finished, command},
};

const DRSNOOP_KINDS: [&str; 6] =
    ["direct", "memcg", "softlimit", "node", "proactive", "direct,memcg,softlimit,node,proactive"];
const COMPACTSNOOP_CAUSES: [&str; 6] = [
    "direct",
    "kcompactd",
    "proactive",
    "manual",
    "other",
    "direct,kcompactd,proactive,manual,other",
];

/// What changes the programs beside filters: the extended fields and the stack.
const SHOWN: [&[&str]; 6] =
    [&[], &["-e"], &["--json"], &["-K"], &["-e", "-K"], &["-H", "--by", "cgroup"]];

/// All subsets of the filters, at most one of them on cgroups.
fn filters(cgroups: &[Cgroup]) -> Vec<Vec<String>> {
    let pid = process::id().to_string();
    let simple = [["-p", &pid], ["-t", &pid], ["-u", "0"], ["-n", "memload"], ["-m", "1us"]];
    let mut subsets = vec![Vec::new()];
    for filter in simple {
        let with: Vec<_> = subsets
            .iter()
            .map(|subset: &Vec<String>| [&subset[..], &filter.map(str::to_owned)].concat())
            .collect();
        subsets.extend(with);
    }
    let without_cgroup = subsets.clone();
    for cgroup in cgroups {
        let filter = ["-c".to_owned(), cgroup.path().display().to_string()];
        subsets.extend(without_cgroup.iter().map(|subset| [&subset[..], &filter].concat()));
    }
    if is_guest() {
        let most = simple.len() + usize::from(!cgroups.is_empty());
        subsets.retain(|subset| [0, most - 1, most].contains(&(subset.len() / 2)));
    }
    subsets
}

fn cgroups() -> Result<Vec<Cgroup>> {
    Hierarchy::all()?.iter().map(Cgroup::plain).collect()
}

/// Runs memtrace for a moment. It says why it does not load, should it not.
#[track_caller]
fn assert_loads(subject: &str, options: &[&[&str]], filter: &[String]) {
    let (args, finished) = run(subject, options, filter);
    assert!(finished.status.success(), "{args:?}: {}", finished.stderr);
}

/// As [`assert_loads`], of a kind or cause that the kernel may not have.
#[track_caller]
fn assert_loads_or_lacks(subject: &str, options: &[&[&str]], kind: &str) {
    let (args, finished) = run(subject, options, &[]);
    let lacks = format!("memtrace: this kernel cannot trace {kind} ");
    let is_lacking = finished.status.code() == Some(1) && finished.stderr.starts_with(&lacks);
    assert!(finished.status.success() || is_lacking, "{args:?}: {}", finished.stderr);
}

fn run(subject: &str, options: &[&[&str]], filter: &[String]) -> (Vec<String>, Finished) {
    let args = [subject, "-d", "1ms"].into_iter().chain(options.iter().copied().flatten().copied());
    let args: Vec<_> = args.map(str::to_owned).chain(filter.iter().cloned()).collect();
    let finished = Finished::of(&mut command(&args));
    (args, finished)
}

fn every_filter(subject: &str) -> Result<()> {
    let cgroups = cgroups()?;
    assert!(!cgroups.is_empty(), "this host has no cgroups");
    for filter in filters(&cgroups) {
        assert_loads(subject, &[&["--json", "-K"]], &filter);
    }
    Ok(())
}

fn everything_else(subject: &str, option: &str, kinds: &[&str]) -> Result<()> {
    let cgroups = cgroups()?;
    let (all, none) = (filters(&cgroups).pop().unwrap_or_default(), Vec::new());
    for shown in SHOWN {
        for (filter, verbose) in [(&none, false), (&all, true), (&none, true), (&all, false)] {
            if !is_guest() || (verbose && !filter.is_empty()) {
                assert_loads(subject, &[shown, if verbose { &["-v"] } else { &[] }], filter);
            }
        }
    }
    for (number, kind) in kinds.iter().enumerate() {
        for (turn, shown) in [SHOWN[0], SHOWN[4]].into_iter().enumerate() {
            // In turns where time is short.
            if !is_guest() || turn == number % 2 {
                assert_loads_or_lacks(subject, &[&[option, kind], shown], kind);
            }
        }
    }
    Ok(())
}

#[test]
fn drsnoop_with_every_filter() -> Result<()> {
    every_filter("drsnoop")
}

#[test]
fn compactsnoop_with_every_filter() -> Result<()> {
    every_filter("compactsnoop")
}

#[test]
fn drsnoop_with_everything_else() -> Result<()> {
    everything_else("drsnoop", "--kind", &DRSNOOP_KINDS)
}

#[test]
fn compactsnoop_with_everything_else() -> Result<()> {
    everything_else("compactsnoop", "--cause", &COMPACTSNOOP_CAUSES)
}
