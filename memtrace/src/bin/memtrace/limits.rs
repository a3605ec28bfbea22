//! What the limits of this process (`ulimit`) leave room for: checked before anything else, as too
//! little of it shows anywhere and in words that do not say why.

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that maps, probes and what they are attached with take at most while they are loaded,
/// with some to spare.
const FILES: u64 = 128;
/// Bytes of memory that starting and tracing take at most, with some to spare: the most is taken by the names of
/// the kernel's functions.
const MEMORY: u64 = 32 << 20;

/// Checks the limits, where `more` bytes of memory are needed than for tracing. A soft limit on open files that is
/// too low is raised, as every process may.
pub fn check(more: usize) -> Result<()> {
    let files = getrlimit(Resource::Nofile);
    if files.current.is_some_and(|soft| soft < FILES) {
        let enough = Rlimit { current: Some(FILES), ..files };
        if files.maximum.is_some_and(|hard| hard < FILES)
            || setrlimit(Resource::Nofile, enough).is_err()
        {
            let allowed = files.maximum.unwrap_or_default();
            bail!("{FILES} open files are needed, and {allowed} allowed: raise `ulimit -n`");
        }
    }
    let needed = MEMORY + more as u64;
    for (resource, option) in [(Resource::As, 'v'), (Resource::Data, 'd')] {
        if let Some(allowed) = getrlimit(resource).current
            && allowed < needed
        {
            let [needed, allowed] = [needed, allowed].map(|bytes| bytes >> 10);
            bail!(
                "{needed} KiB of memory are needed, and {allowed} allowed: raise `ulimit -{option}`"
            );
        }
    }
    Ok(())
}
