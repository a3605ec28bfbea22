//! The load that makes compaction happen: asking the kernel to compact all memory.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Has the calling thread compact all zones, `times` times with `pause` between, until `stop` says
/// so. Gives how often it was done.
pub fn compact(times: u32, pause: Duration, stop: impl Fn() -> bool) -> Result<u32> {
    let mut done = 0;
    while done < times && !stop() {
        if done > 0 {
            std::thread::sleep(pause);
        }
        fs::write("/proc/sys/vm/compact_memory", "1")
            .context("cannot write to /proc/sys/vm/compact_memory: run as root, on a kernel with CONFIG_COMPACTION")?;
        done += 1;
    }
    Ok(done)
}
