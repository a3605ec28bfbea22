//! The state of what is reclaimed from, as the kernel writes it: memory.stat of both versions of cgroups,
//! and of the host /proc/meminfo and /proc/vmstat. Names differ between kernels; what is not there stays
//! unknown.

use serde::{Deserialize, Serialize};

/// The state of a cgroup with all below it, or of the host. Sizes are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Swap that its anonymous pages could go to.
    pub swap_free: Option<u64>,
    /// Anonymous and shmem pages on the lists, and pages that cannot be reclaimed.
    pub anon: Option<u64>,
    /// File pages on the lists.
    pub file: Option<u64>,
    /// File pages that have to be written.
    pub dirty: Option<u64>,
    /// File pages that are being written.
    pub writeback: Option<u64>,
    /// File pages read back after they were reclaimed, so far, in pages.
    pub refaulted_file: Option<u64>,
    /// Anonymous pages read back, so far, in pages. Shown, but in no rule.
    pub refaulted_anon: Option<u64>,
    /// Pages reclaimed so far by whomever, in pages.
    pub stolen: Option<u64>,
    /// All memory in use; of a cgroup.
    pub current: Option<u64>,
    /// The lowest of a cgroup's limits.
    pub limit: Option<u64>,
}

/// A file of lines, each a name and a number.
#[derive(Clone, Copy, Debug)]
pub struct Stat<'a>(pub &'a str);

impl Stat<'_> {
    /// The number behind `name`; of one in kB, as in meminfo, the bytes.
    #[must_use]
    pub fn get(self, name: &str) -> Option<u64> {
        self.0.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            if words.next()?.trim_end_matches(':') != name {
                return None;
            }
            let number: u64 = words.next()?.parse().ok()?;
            match words.next() {
                Some("kB") => number.checked_mul(1024),
                _ => Some(number),
            }
        })
    }

    fn sum<const N: usize>(self, names: [&str; N]) -> Option<u64> {
        names.into_iter().try_fold(0_u64, |sum, name| sum.checked_add(self.get(name)?))
    }
}

impl State {
    /// What memory.stat of cgroup v2 says.
    #[must_use]
    pub fn of_v2(stat: Stat<'_>) -> Self {
        Self {
            anon: stat.sum(["inactive_anon", "active_anon", "unevictable"]),
            file: stat.sum(["inactive_file", "active_file"]),
            dirty: stat.get("file_dirty"),
            writeback: stat.get("file_writeback"),
            refaulted_file: stat.get("workingset_refault_file"),
            refaulted_anon: stat.get("workingset_refault_anon"),
            stolen: stat.get("pgsteal"),
            ..Self::default()
        }
    }

    /// What memory.stat of cgroup v1 says. It counts what was reclaimed nowhere, and before Linux 5.16 or
    /// so not what was read back.
    #[must_use]
    pub fn of_v1(stat: Stat<'_>) -> Self {
        Self {
            anon: stat.sum(["total_inactive_anon", "total_active_anon", "total_unevictable"]),
            file: stat.sum(["total_inactive_file", "total_active_file"]),
            dirty: stat.get("total_dirty"),
            writeback: stat.get("total_writeback"),
            refaulted_file: stat.get("total_workingset_refault_file"),
            refaulted_anon: stat.get("total_workingset_refault_anon"),
            ..Self::default()
        }
    }

    /// What the host's /proc/meminfo and /proc/vmstat say.
    #[must_use]
    pub fn of_host(meminfo: Stat<'_>, vmstat: Stat<'_>) -> Self {
        Self {
            swap_free: meminfo.get("SwapFree"),
            anon: meminfo.sum(["Active(anon)", "Inactive(anon)", "Unevictable"]),
            file: meminfo.sum(["Active(file)", "Inactive(file)"]),
            dirty: meminfo.get("Dirty"),
            writeback: meminfo.get("Writeback"),
            refaulted_file: vmstat.get("workingset_refault_file"),
            refaulted_anon: vmstat.get("workingset_refault_anon"),
            // Those by cause leave, before Linux 7, what was reclaimed for limits out.
            stolen: vmstat.sum(["pgsteal_anon", "pgsteal_file"]),
            current: None,
            limit: None,
        }
    }
}
