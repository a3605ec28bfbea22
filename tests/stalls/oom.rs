//! OOM kills.

use std::{fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result};
use tests::{cgroup::Hierarchy, host::Mount, load::Load, rows::number, run::Memtrace};

use super::{memload, stopped};

/// Whether the kernel tells more of a victim than its process id.
fn tells_victim() -> Result<bool> {
    let tracefs = Mount::new("tracefs")?;
    let format = tracefs.path().join("events/oom/mark_victim/format");
    let format = fs::read_to_string(format).context("no tracepoint mark_victim")?;
    Ok(format.contains(" comm"))
}

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
        let comm =
            if tells_victim()? { serde_json::json!("memload") } else { serde_json::Value::Null };
        assert_eq!(oom["victim_comm"], comm, "{oom}");
        // It has no other threads.
        assert_eq!((number(oom, "pid")?, number(oom, "tid")?), (victim, victim), "{oom}");
        assert_eq!(oom["comm"], "memload", "{oom}");
        assert_eq!(oom["cgroup_id"], cgroup, "{oom}");
        // Kernels whose tracepoint does not pass the victim itself have no cgroup of it.
        let victim_cgroup = &oom["victim_cgroup_id"];
        assert!(victim_cgroup.is_null() || *victim_cgroup == cgroup, "{oom}");
    }
    Ok(())
}
