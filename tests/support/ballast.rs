//! Ballast: memory that is taken away, so that what is left gets short at once.

use anyhow::{Context as _, Result};
use memmap2::{Advice, MmapMut};

use crate::vmstat::meminfo;

/// Locked memory, given back when dropped.
#[derive(Debug)]
pub struct Ballast(Option<MmapMut>);

impl Ballast {
    /// Takes all available memory but `bytes`.
    pub fn leaving(bytes: u64) -> Result<Self> {
        let too_much = meminfo("MemAvailable")?.saturating_sub(bytes);
        if too_much == 0 {
            return Ok(Self(None));
        }
        let memory = MmapMut::map_anon(usize::try_from(too_much).context("too much memory")?)
            .context("cannot map memory")?;
        // Faster where the kernel has huge pages; where it has none, it is as well.
        let _advised: std::io::Result<()> = memory.advise(Advice::HugePage);
        memory.lock().context("cannot lock memory: run as root")?;
        Ok(Self(Some(memory)))
    }

    /// How many bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |memory| memory.len())
    }
}
