//! The state of the running kernel's cgroups and of the host, from files that everyone may read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Stat, State, States};
use crate::cgroup::{Cgroups, Hierarchy};

/// Swap limits are looked for in so many cgroups, from the target upwards.
const MOST_LEVELS: usize = 16;

/// Reads states by the ids of cgroups.
#[derive(Debug)]
pub struct Live<'a> {
    /// Where their directories are.
    pub cgroups: &'a mut Cgroups,
}

impl States for Live<'_> {
    fn read(&mut self, cgroup: u64) -> Option<State> {
        if cgroup == 0 {
            let [meminfo, vmstat] = ["/proc/meminfo", "/proc/vmstat"].map(fs::read_to_string);
            return Some(State::of_host(Stat(&meminfo.ok()?), Stat(&vmstat.ok()?)));
        }
        let place = self.cgroups.directory(cgroup)?;
        match place.hierarchy {
            Hierarchy::V2 => v2(&place.directory, &place.root),
            Hierarchy::V1Memory => v1(&place.directory),
        }
    }
}

fn v2(directory: &Path, root: &Path) -> Option<State> {
    let state = State::of_v2(Stat(&text(directory, "memory.stat")?));
    let limits = ["memory.max", "memory.high"].map(|file| number(directory, file));
    let own_and_above = directory.ancestors().take_while(|above| above.starts_with(root));
    let rooms = own_and_above.take(MOST_LEVELS).filter_map(|cgroup| {
        let limit = number(cgroup, "memory.swap.max")?;
        Some(limit.saturating_sub(number(cgroup, "memory.swap.current")?))
    });
    Some(State {
        swap_free: swap_free(rooms.min(), number(Path::new("/proc/sys/vm"), "swappiness")),
        current: number(directory, "memory.current"),
        limit: limits.into_iter().flatten().min(),
        ..state
    })
}

fn v1(directory: &Path) -> Option<State> {
    let stat = text(directory, "memory.stat")?;
    let stat = Stat(&stat);
    // The limit to memory and swap together: where it is reached, nothing is gained by swapping.
    let used = number(directory, "memory.memsw.usage_in_bytes");
    let limit = stat.get("hierarchical_memsw_limit");
    let room = limit.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    Some(State {
        swap_free: swap_free(room, number(directory, "memory.swappiness")),
        current: number(directory, "memory.usage_in_bytes"),
        limit: stat.get("hierarchical_memory_limit"),
        ..State::of_v1(stat)
    })
}

/// The host's free swap, as far as a cgroup may use it. For a limit the kernel swaps nothing out where
/// `swappiness` is 0.
fn swap_free(room: Option<u64>, swappiness: Option<u64>) -> Option<u64> {
    if swappiness == Some(0) {
        return Some(0);
    }
    let free = Stat(&fs::read_to_string("/proc/meminfo").ok()?).get("SwapFree")?;
    Some(room.map_or(free, |room| room.min(free)))
}

fn text(directory: &Path, file: &str) -> Option<String> {
    let path: PathBuf = directory.join(file);
    fs::read_to_string(path).ok()
}

/// The number in a file; none where it is `max`.
fn number(directory: &Path, file: &str) -> Option<u64> {
    text(directory, file)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_can_be_read() {
        let state = Live { cgroups: &mut Cgroups::live() }.read(0).expect("no /proc");
        let State { anon, file, refaulted_file, stolen, swap_free, .. } = state;
        assert!(anon.is_some() && file.is_some() && refaulted_file.is_some(), "{state:?}");
        assert!(stolen.is_some() && swap_free.is_some(), "{state:?}");
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_state() {
        assert_eq!(Live { cgroups: &mut Cgroups::live() }.read(u64::MAX), None);
    }

    #[test]
    fn swap_is_what_the_cgroup_may_use() {
        assert_eq!(swap_free(None, Some(0)), Some(0));
        assert_eq!(swap_free(Some(0), Some(60)), Some(0));
        assert!(swap_free(Some(u64::MAX), None).is_some());
    }
}
