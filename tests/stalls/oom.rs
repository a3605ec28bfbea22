//! OOM kills.

use std::{fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result};
use tests::{cgroup::Hierarchy, load::Load, rows::number, run::Memtrace};

use super::{memload, stopped};

/// Two processes, one after the other, which lack memory themselves and are killed for it.
#[test]
fn in_a_cgroup() -> Result<()> {
    const KILLS: usize = 2;
    let mut load =
        Load::of(memload(), &["oom", "--limit", "16M", "--kills", "2", "--duration", "5m"])?;
    // Its path may be gone before memtrace looks for it.
    let cgroup = Hierarchy::memory()?.mount.join(format!("memload-{}-0", load.id()));
    let cgroup = fs::metadata(&cgroup).with_context(|| format!("no `{}`", cgroup.display()))?.ino();
    let memtrace = Memtrace::start(&["stalls", "--json", "--kind", "oom"]);
    load.go()?;
    let said = load.wait()?;
    println!("{said}");
    let stalls = stopped(memtrace)?;
    assert!(stalls.episodes.is_empty(), "stalls of other kinds: {:?}", stalls.episodes);
    let of_load = |oom: &&serde_json::Value| {
        oom["cgroup_id"] == cgroup || said.contains(&format!("({})", oom["victim_pid"]))
    };
    let ooms: Vec<_> = stalls.ooms.iter().filter(of_load).collect();
    assert_eq!(ooms.len(), KILLS, "{:?}", stalls.ooms);
    for oom in ooms {
        let victim: u32 = number(oom, "victim_pid")?;
        assert!(said.contains(&format!("memload ({victim})")), "{victim} is not of: {said}");
        assert_eq!(oom["victim_comm"], "memload", "{oom}");
        // It has no other threads.
        assert_eq!((number(oom, "pid")?, number(oom, "tid")?), (victim, victim), "{oom}");
        assert_eq!(oom["comm"], "memload", "{oom}");
        assert_eq!(oom["cgroup_id"], cgroup, "{oom}");
        assert_eq!(oom["victim_cgroup_id"], cgroup, "{oom}");
    }
    Ok(())
}
