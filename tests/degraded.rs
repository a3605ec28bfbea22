//! Kernels that lack what memtrace would like to have: it runs with what there is and names what is
//! missing, or refuses in one line that names the reason. Only in a guest.
//!
//! The modules are named after the boots of `cargo xtask guest` that they need. What a mount can
//! hide, such as BTF, is missing in `errors`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use tests::{
    cgroup::{Cgroup, Hierarchy, Version},
    compare::match_up,
    host::{Mount, require_guest},
    load::{Churning, Load, limited_cgroup},
    rows::{Output, Row},
    run::{Finished, Memtrace, command},
    watch::{Watched, watch},
};

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

#[track_caller]
fn assert_refused(finished: &Finished, parts: &[&str]) {
    let stderr = &finished.stderr;
    assert_eq!(finished.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "not one line: `{stderr}`");
    for part in parts {
        assert!(stderr.contains(part), "nothing of `{part}` in `{stderr}`");
    }
}

/// Traces a compaction of all memory by this test's child. Gives its rows, which agree with the
/// oracle's, and what memtrace says that it lacks.
fn compaction(
    args: &[&str],
    prepare: impl FnOnce(&Load) -> Result<()>,
) -> Result<(Vec<Row>, Vec<String>)> {
    let mut load = Load::compact(memload(), 2)?;
    prepare(&load)?;
    let pid = load.id();
    let watched = watch("compactsnoop", args, |_| {
        load.go()?;
        load.wait().map(drop)
    })?;
    let Watched { output: Output { rows, summary, histograms: _ }, trace, .. } = watched;
    summary.assert_nothing_lost();
    let rows: Vec<_> = rows.into_iter().filter(|row| row.pid == pid).collect();
    assert!(!rows.is_empty(), "no compaction");
    match_up(trace.stalls.iter().filter(|stall| stall.tid == pid), &rows).assert_same();
    Ok((rows, summary.unavailable))
}

/// No memory controller, no PSI.
mod bare {
    use super::*;

    /// Whether the kernel runs without what this boot takes away.
    #[track_caller]
    fn require_bare() {
        require_guest();
        let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        for word in ["cgroup_disable=memory", "psi=0"] {
            assert!(words.split_whitespace().any(|given| given == word), "`{words}`");
        }
        assert!(fs::read("/proc/pressure/memory").is_err(), "PSI is on");
        assert!(Hierarchy::memory().is_err(), "a memory controller is mounted");
    }

    /// Memory is short for all of the machine, as there are no limits.
    #[test]
    fn direct_reclaim() -> Result<()> {
        const ENOUGH: usize = 20;
        require_bare();
        let mut load = Load::stream(memload())?;
        let watched = watch("drsnoop", &[], |memtrace| {
            load.work_until_shown(memtrace, ENOUGH, 1)?;
            load.stop().map(drop)
        })?;
        watched.matched().assert_same();
        let Output { rows, summary, histograms: _ } = watched.output;
        summary.assert_nothing_lost();
        for row in &rows {
            assert_eq!(row.kind, "direct", "{}", row.value);
            assert_eq!(row.value["target_cgroup"], serde_json::Value::Null, "{}", row.value);
            assert!(
                row.value["free_pages"].as_u64().is_some_and(|pages| pages > 0),
                "{}",
                row.value
            );
        }
        for kind in ["memcg", "proactive"] {
            let names_it =
                |what: &String| what.starts_with(kind) && what.contains("memory controller");
            assert!(summary.unavailable.iter().any(names_it), "{kind}: {summary:?}");
        }
        Ok(())
    }

    /// A kernel that counts no pressure does not tell which of its sections are within others.
    #[test]
    fn kinds_without_pressure() {
        require_bare();
        let finished = Memtrace::start(&["stalls"]).stop();
        finished.assert_success();
        let lacks = "penalty, pfmemalloc, swapin, refault (this kernel counts no pressure";
        assert!(finished.stderr.contains(lacks), "{}", finished.stderr);
    }

    #[test]
    fn nothing_but_memory_limits() {
        require_bare();
        for kind in ["memcg", "proactive", "memcg,softlimit,proactive"] {
            let finished = Finished::of(&mut command(&["drsnoop", "--kind", kind]));
            assert_refused(&finished, &["memory controller", "disabled"]);
        }
    }

    /// Threads are still in cgroups, and can be told apart by them.
    #[test]
    fn compaction_by_cgroup() -> Result<()> {
        require_bare();
        let hierarchy = Hierarchy::of(Version::V2)?.context("cgroup v2 is not mounted")?;
        let cgroup = Cgroup::plain(&hierarchy)?;
        let path = cgroup.path().display().to_string();
        let (rows, _) = compaction(&["-c", &path], |load| cgroup.add(load.id()))?;
        for row in &rows {
            assert_eq!(row.value["cgroup"].as_str(), Some(cgroup.name().as_str()), "{}", row.value);
        }
        Ok(())
    }
}

/// Kernel lockdown, by the kernel's own word; nothing that needs eBPF can come after it.
mod locked_down {
    use super::*;

    const LOCKDOWN: &str = "lockdown";

    #[test]
    fn confidentiality() -> Result<()> {
        require_guest();
        let securityfs = Mount::new("securityfs")?;
        fs::write(securityfs.path().join(LOCKDOWN), "confidentiality")
            .context("this kernel cannot be locked down")?;
        let at_its_place = "/sys/kernel/security";
        let visible = || {
            let mut memtrace = command(&["drsnoop"]);
            tests::confined::with_bind_mount(
                &mut memtrace,
                securityfs.path(),
                Path::new(at_its_place),
            )
            .map(Finished::of)
        };
        assert_refused(&visible()?, &["lockdown", "confidentiality", "integrity"]);
        // It is found out even where securityfs is not mounted.
        assert!(!Path::new(at_its_place).join(LOCKDOWN).exists(), "securityfs is mounted");
        assert_refused(
            &Finished::of(&mut command(&["compactsnoop"])),
            &["lockdown", "confidentiality"],
        );
        Ok(())
    }
}

/// Cgroup v2 is not mounted.
mod v1 {
    use super::*;

    #[track_caller]
    fn require_no_cgroups() -> Result<()> {
        require_guest();
        assert_eq!(Hierarchy::all()?, [], "cgroups are mounted");
        Ok(())
    }

    #[test]
    fn no_cgroups_mounted() -> Result<()> {
        require_no_cgroups()?;
        let (rows, _) = compaction(&[], |_| Ok(()))?;
        for row in &rows {
            assert!(row.value["cgroup_id"].as_u64().is_some(), "{}", row.value);
            assert_eq!(row.value["cgroup"], serde_json::Value::Null, "{}", row.value);
        }
        let finished = Finished::of(&mut command(&["drsnoop", "-c", "/a"]));
        assert_refused(&finished, &["--cgroup", "/a"]);
        Ok(())
    }

    /// Newer kernels can be built without it: those have it for cgroup v2 only.
    #[test]
    fn memory_controller_of_v1() -> Result<()> {
        const ENOUGH: usize = 50;
        require_no_cgroups()?;
        let v1 = match Mount::with_options("cgroup", c"memory") {
            Err(err) if err.downcast_ref() == Some(&Errno::INVAL) => {
                let _v2 = Mount::new("cgroup2")?;
                assert_eq!(Hierarchy::memory()?.version, Version::V2);
                return Ok(());
            }
            v1 => v1?,
        };
        let cgroup = limited_cgroup()?;
        assert!(cgroup.path().starts_with(v1.path()));
        let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
        let pid = load.id();
        let (path, tids) = (cgroup.path().display().to_string(), load.tids().clone());
        let watched = watch("drsnoop", &["-c", &path], |memtrace| {
            load.work_until_shown(memtrace, ENOUGH, 1)?;
            load.stop().map(drop)
        })?;
        watched.output.summary.assert_nothing_lost();
        watched.matched_of(|stall| tids.contains(&stall.tid)).assert_same();
        for row in &watched.output.rows {
            assert_eq!((row.kind.as_str(), row.pid), ("memcg", pid), "{}", row.value);
            for key in ["cgroup", "target_cgroup"] {
                assert_eq!(row.value[key].as_str(), Some(cgroup.name().as_str()), "{}", row.value);
            }
        }
        Ok(())
    }
}
