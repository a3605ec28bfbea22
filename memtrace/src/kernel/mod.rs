//! What the running kernel tells about itself: its types, its symbols, its names for flags, and
//! what it allows.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
};

use memtrace_common::layout::{ABSENT, KernelLayout};
use memtrace_common::record::part;
use thiserror::Error;

use crate::names::{EnumNames, GfpNames};
use btf::{Btf, BtfError};

pub mod btf;
#[cfg(test)]
pub(crate) mod btf_builder;
mod detached;
pub mod gfp;
pub mod layout;
pub mod preflight;
pub mod tracefs;

/// Where the kernel offers its own type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Pressure stall information of the whole system, which can be read only where it is switched on.
const PRESSURE: &str = "/proc/pressure/memory";

/// Facts about the running kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Where it keeps what the probes read.
    pub layout: KernelLayout,
    /// Names of allocation flags.
    pub gfp: GfpNames,
    /// Names of `enum migrate_mode`, without prefix and in small letters.
    pub modes: EnumNames,
    /// Names of `enum compact_result`, without prefix and in small letters.
    pub statuses: EnumNames,
    /// Names of `enum vmscan_throttle_state`, likewise.
    pub throttles: EnumNames,
    /// Whether memory can be limited by cgroup: the memory controller may be switched off at boot.
    pub limits_memory: bool,
    /// Whether the probes can tell the free pages of the whole system.
    pub tells_free_pages: bool,
    /// Address of the counter of free pages where they cannot be summed up.
    pub free_pages_address: Option<u64>,
    /// Whether a thread can be preempted while a tracepoint's programs run.
    pub has_preemptible_tracepoints: bool,
    tracepoints: Vec<&'static str>,
}

/// Why the running kernel could not be read.
#[derive(Debug, Error)]
pub enum KernelError {
    /// No BTF.
    #[error(
        "cannot read the kernel's type information `{BTF_PATH}`: {0}; memtrace needs a kernel built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf(#[source] io::Error),
    /// BTF that this process cannot read.
    #[error("cannot read the kernel's type information `{BTF_PATH}`: {0}")]
    Unreadable(#[source] io::Error),
    /// BTF that makes no sense.
    #[error(
        "cannot use the kernel's type information `{BTF_PATH}`: {0}; please report this with the output of `uname -r`"
    )]
    BadBtf(#[from] BtfError),
}

impl Kernel {
    /// Reads the facts about the running kernel, and which of `tracepoints` it has.
    pub fn running(tracepoints: &[&'static str]) -> Result<Self, KernelError> {
        Self::running_with(tracepoints, |_| ()).map(|(kernel, ())| kernel)
    }

    /// The same, and what `look_up` finds in its types, which take too much memory to be kept.
    pub fn running_with<T>(
        tracepoints: &[&'static str],
        look_up: impl FnOnce(&Btf<'_>) -> T,
    ) -> Result<(Self, T), KernelError> {
        let file = File::open(BTF_PATH).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => KernelError::NoBtf(error),
            _ => KernelError::Unreadable(error),
        })?;
        let btf = Btf::parse(&file)?;
        let mut layout = layout::find(&btf, &memory_nodes());
        let limits_memory = limits_memory(
            &fs::read_to_string("/proc/cgroups").unwrap_or_default(),
            &fs::read_to_string("/proc/cmdline").unwrap_or_default(),
        );
        if !limits_memory {
            // All threads are in the root cgroup of a controller that is switched off.
            layout.css_set_memory = ABSENT;
        }
        if fs::read(PRESSURE).is_err() {
            // The bit is there, but is not kept up.
            layout.task_in_memstall = ABSENT;
        }
        let sums_free_pages = limits_memory && sums_free_pages(&layout);
        let free_pages_address = if sums_free_pages { None } else { free_pages_address() };
        let has = |tracepoint: &&&'static str| btf.tracepoint_args(tracepoint).is_some();
        let kernel = Self {
            gfp: gfp_names(&btf),
            modes: enum_names(&btf, "migrate_mode", "MIGRATE_"),
            statuses: enum_names(&btf, "compact_result", "COMPACT_"),
            throttles: throttle_names(&btf),
            limits_memory,
            tells_free_pages: sums_free_pages || free_pages_address.is_some(),
            free_pages_address,
            has_preemptible_tracepoints: has_preemptible_tracepoints(&btf),
            tracepoints: tracepoints.iter().filter(has).copied().collect(),
            layout,
        };
        Ok((kernel, look_up(&btf)))
    }

    /// Whether the kernel has this tracepoint, one of those asked for at the start.
    #[must_use]
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.tracepoints.contains(&name)
    }
}

/// Since 7.0 SRCU guards tracepoints, where preemption was disabled before (`__DECLARE_TRACE()` in
/// include/linux/tracepoint.h). Up to 6.12 there was a `tracepoint_srcu`, too, for a few of them; it
/// went with the same release that brought `struct tracepoint_ext`.
fn has_preemptible_tracepoints(btf: &Btf<'_>) -> bool {
    btf.has_variable("tracepoint_srcu_srcu_data") && btf.member("tracepoint", "ext").is_some()
}

fn gfp_names(btf: &Btf<'_>) -> GfpNames {
    let names = tracefs::event_format(gfp::EVENT).map(|format| gfp::from_format(&format));
    match names {
        Ok(names) if !names.0.is_empty() => names,
        _ => gfp::from_btf(btf),
    }
}

/// Before 5.16 there was one reason only, and no enumeration.
fn throttle_names(btf: &Btf<'_>) -> EnumNames {
    let EnumNames(names) = enum_names(btf, "vmscan_throttle_state", "VMSCAN_THROTTLE_");
    if names.is_empty() {
        let congested = u32::try_from(part::CONGESTED - part::THROTTLED).unwrap_or(u32::MAX);
        return EnumNames(vec![(congested, "congested".to_owned())]);
    }
    EnumNames(names)
}

fn enum_names(btf: &Btf<'_>, enumeration: &str, prefix: &str) -> EnumNames {
    let names = btf.enumerators(enumeration).map(|(name, value)| {
        (value, name.strip_prefix(prefix).unwrap_or(&name).to_ascii_lowercase())
    });
    EnumNames(names.collect())
}

/// NUMA nodes that have memory.
fn memory_nodes() -> Vec<u32> {
    let list = fs::read_to_string("/sys/devices/system/node/has_memory");
    list.map_or_else(|_| vec![0], |list| parse_list(&list))
}

/// Reads the kernel's form of a list of numbers: `0-3,7`.
fn parse_list(list: &str) -> Vec<u32> {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Some(from.parse().ok()?..=to.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// Whether free pages can be summed up over the zones.
fn sums_free_pages(layout: &KernelLayout) -> bool {
    let way = [
        layout.css_ss,
        layout.cgroup_subsys_root,
        layout.cgroup_root_memory,
        layout.mem_cgroup_nodeinfo,
        layout.memcg_node_pgdat,
        layout.pgdat_node_zones,
        layout.zone_free,
    ];
    !way.contains(&ABSENT)
}

/// Whether the memory controller is on, by /proc/cgroups, which some kernels leave it out of where
/// cgroup v1 cannot have it, and else by the kernel's command line.
fn limits_memory(controllers: &str, command_line: &str) -> bool {
    if let Some(line) = controllers.lines().find(|line| line.starts_with("memory\t")) {
        return line.ends_with("\t1");
    }
    let words = command_line.split_whitespace();
    let mut disabled = words.filter_map(|word| word.strip_prefix("cgroup_disable="));
    !disabled.any(|names| names.split(',').any(|name| name == "memory"))
}

/// Address of `vm_zone_stat[NR_FREE_PAGES]` from kallsyms, which takes long to read.
fn free_pages_address() -> Option<u64> {
    let symbols = BufReader::new(File::open("/proc/kallsyms").ok()?);
    let line =
        symbols.lines().map_while(Result::ok).find(|line| line.ends_with(" vm_zone_stat"))?;
    let address = u64::from_str_radix(line.split(' ').next()?, 16).ok()?;
    (address != 0).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_of_nodes() {
        assert_eq!(parse_list("0\n"), [0]);
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list("\n"), Vec::<u32>::new());
    }

    #[test]
    fn tells_kernels_apart_whose_tracepoints_can_be_preempted() {
        let kernel = |has_srcu: bool, has_ext: bool| {
            let mut builder = btf_builder::Builder::default();
            let pointer = builder.pointer(0);
            let members = [("name", pointer, 0), ("ext", pointer, 64)];
            builder.structure("tracepoint", 16, &members[..=usize::from(has_ext)]);
            if has_srcu {
                builder.variable("tracepoint_srcu_srcu_data", pointer);
            }
            builder.blob()
        };
        let preemptible =
            |blob: Vec<u8>| has_preemptible_tracepoints(&Btf::parse(&blob).expect("well-formed"));
        // As up to 6.12, from 6.13 to 6.19, and since 7.0.
        assert!(!preemptible(kernel(true, false)));
        assert!(!preemptible(kernel(false, true)));
        assert!(preemptible(kernel(true, true)));
    }

    #[test]
    fn a_controller_may_be_off() {
        let controllers = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t0\n";
        let (on, off) = ("memory\t6\t42\t1\n", "memory\t0\t1\t0\n");
        assert!(limits_memory(&format!("{controllers}{on}"), ""));
        assert!(!limits_memory(&format!("{controllers}{off}"), ""));
        assert!(limits_memory(controllers, "quiet cgroup_disable=cpu,memory_too"));
        assert!(!limits_memory(controllers, "cgroup_disable=cpu,memory quiet"));
    }

    #[test]
    fn knows_the_kernel_that_runs() {
        let kernel = Kernel::running(&["mm_vmscan_direct_reclaim_begin", "no_such_tracepoint"])
            .expect("a kernel with BTF");
        assert!(kernel.has_tracepoint("mm_vmscan_direct_reclaim_begin"));
        assert!(!kernel.has_tracepoint("no_such_tracepoint"));
        assert_eq!(kernel.modes.name(0), "async");
        assert_eq!(kernel.statuses.name(5), "complete");
        assert_eq!(kernel.statuses.name(99), "99");
    }
}
