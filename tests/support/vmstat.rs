//! The kernel's own counters: /proc/vmstat and /proc/meminfo.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};

/// Counters of /proc/vmstat, or how far they moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmstat(BTreeMap<String, u64>);

impl Vmstat {
    /// Reads them; the kernel adds up those of all CPUs for each reader.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/vmstat").context("cannot read /proc/vmstat")?;
        let counters = text.lines().map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        counters.collect::<Option<_>>().map(Self).context("unknown form of /proc/vmstat")
    }

    /// How far they have moved since `before`.
    pub fn moved_since(before: &Self) -> Result<Self> {
        let mut now = Self::read()?;
        for (name, value) in &mut now.0 {
            *value = value.saturating_sub(before.get(name).unwrap_or(0));
        }
        Ok(now)
    }

    /// The counter `name`, where the kernel has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// The sum of all counters whose names begin with `prefix`: one for each zone, say.
    #[must_use]
    pub fn sum(&self, prefix: &str) -> u64 {
        self.beginning_with(prefix).map(|(_, value)| value).sum()
    }

    /// All counters whose names begin with `prefix`.
    pub fn beginning_with(&self, prefix: &str) -> impl Iterator<Item = (&str, u64)> {
        let counters = self.0.iter().map(|(name, value)| (name.as_str(), *value));
        counters.filter(move |(name, _)| name.starts_with(prefix))
    }
}

/// Bytes that /proc/meminfo gives for `name`, such as `MemAvailable`.
pub fn meminfo(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib = text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    kib.map(|kib| kib << 10).with_context(|| format!("no `{name}` in /proc/meminfo"))
}
