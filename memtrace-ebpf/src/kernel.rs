//! Reading the kernel's structures at the offsets that user space found in its BTF.
//!
//! A read that fails, or a member that this kernel does not have, gives `None`: the record then
//! says that the field is not known.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel,
        generated::{self, bpf_get_current_task_btf},
    },
    programs::RawTracePointContext,
};

use memtrace_common::record::Comm;

use crate::settings::{config, layout, present};

/// Of `task_struct.flags`, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;
/// Deepest cgroup that the filter on cgroups looks up from.
const MAX_CGROUP_DEPTH: u32 = 64;
/// Largest number of zones in a node (`MAX_NR_ZONES`) over all architectures and configurations.
const MAX_ZONES: u32 = 6;
/// Largest number of nodes whose free pages are summed up one by one.
const MAX_NODES: u32 = 64;

/// Reads a `T` at `address + offset`.
#[inline(always)]
pub fn read<T>(address: u64, offset: u32) -> Option<T> {
    if !present(offset) || address == 0 {
        return None;
    }
    let pointer = address.wrapping_add(u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address itself and fails on one that cannot be read; every `T`
    // used here is an integer or an array of integers, valid for any bytes.
    unsafe { bpf_probe_read_kernel(pointer) }.ok()
}

/// Reads a word at `address + offset`, 0 where that fails, and then counts it in `failures`: many reads
/// in a row without a branch each, of which the verifier would follow every combination.
#[inline(always)]
pub fn read_or_zero(address: u64, offset: u32, failures: &mut u64) -> u64 {
    let mut word = 0;
    let from = address.wrapping_add(u64::from(offset)) as *const _;
    // SAFETY: the helper checks the address itself, and writes a word in any case.
    let error = unsafe {
        generated::bpf_probe_read_kernel((&raw mut word).cast(), size_of::<u64>() as u32, from)
    };
    *failures |= error as u64;
    word
}

/// Argument number `position` of the tracepoint, which comes from the kernel's BTF.
#[inline(always)]
pub fn arg(ctx: &RawTracePointContext, position: u32) -> Option<u64> {
    match position {
        0 => Some(arg_at::<0>(ctx)),
        1 => Some(arg_at::<1>(ctx)),
        2 => Some(arg_at::<2>(ctx)),
        3 => Some(arg_at::<3>(ctx)),
        4 => Some(arg_at::<4>(ctx)),
        5 => Some(arg_at::<5>(ctx)),
        6 => Some(arg_at::<6>(ctx)),
        7 => Some(arg_at::<7>(ctx)),
        _ => None,
    }
}

/// Reads an argument by an instruction of its own. LLVM would make one load at a computed offset
/// out of several, which the verifier refuses ("dereference of modified ctx ptr").
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn arg_at<const POSITION: usize>(ctx: &RawTracePointContext) -> u64 {
    let value;
    // SAFETY: the context has as many words as the tracepoint has arguments, and the kernel checks
    // that no more are read as it attaches the program.
    unsafe {
        core::arch::asm!(
            "{value} = *(u64 *)({ctx} + {offset})",
            value = out(reg) value,
            ctx = in(reg) ctx.as_ptr(),
            offset = const POSITION * size_of::<u64>(),
            options(nostack, pure, readonly),
        );
    }
    value
}

/// For the lints, which see this crate as a program of the host.
#[cfg(not(target_arch = "bpf"))]
fn arg_at<const POSITION: usize>(ctx: &RawTracePointContext) -> u64 {
    ctx.arg(POSITION)
}

/// Address of the current thread's `task_struct`.
#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_get_current_task() }
}

/// The current thread's `task_struct`.
#[derive(Clone, Copy)]
pub struct Task(*const u8);

impl Task {
    #[inline(always)]
    pub fn current() -> Self {
        if present(layout!(readable_task)) {
            // SAFETY: the helper has no precondition.
            Self(unsafe { bpf_get_current_task_btf() }.cast())
        } else {
            Self(core::ptr::without_provenance(current() as usize))
        }
    }

    /// Reads a `T`, a number, at `offset`. Where a probe may do that by itself, it costs a twentieth of
    /// a call of the helper that copies.
    #[inline(always)]
    fn read<T: Copy>(self, offset: u32) -> Option<T> {
        if !present(layout!(readable_task)) {
            return read(self.0.addr() as u64, offset);
        }
        if !present(offset) {
            return None;
        }
        let place = self.0.wrapping_add(offset as usize).cast::<T>();
        // SAFETY: the thread's own structure is there, and the verifier knows how long it is; volatile
        // as the kernel writes to it.
        Some(unsafe { place.read_volatile() })
    }

    /// The process and the thread, in the initial PID namespace.
    #[inline(always)]
    pub fn ids(self) -> (u32, u32) {
        if present(layout!(readable_task))
            && let Some(pid) = self.read(layout!(task_tgid))
            && let Some(tid) = self.read(layout!(task_pid))
        {
            return (pid, tid);
        }
        let pid_tgid = bpf_get_current_pid_tgid();
        ((pid_tgid >> 32) as u32, pid_tgid as u32)
    }

    /// The thread's name.
    #[inline(always)]
    pub fn comm(self) -> Option<Comm> {
        let offset = layout!(task_comm);
        Some([self.read(offset)?, self.read(offset.wrapping_add(8))?])
    }

    /// Whether it is in reclaim or in a memstall section.
    #[inline(always)]
    pub fn is_stalled(self) -> bool {
        self.read::<u64>(layout!(task_reclaim_state)).is_some_and(|state| state != 0)
            || self.is_in_memstall()
    }

    /// Whether it is in a memstall section; false where the kernel does not keep that.
    #[inline(always)]
    pub fn is_in_memstall(self) -> bool {
        let bits = self.read::<u8>(layout!(task_in_memstall));
        bits.is_some_and(|bits| u32::from(bits) & layout!(task_in_memstall_mask) != 0)
    }

    /// Nanoseconds that it has waited for a CPU; 0 where the kernel does not count them. As it stood
    /// when the thread last came onto one.
    #[inline(always)]
    pub fn run_delay_ns(self) -> u64 {
        self.read(layout!(task_run_delay)).unwrap_or(0)
    }

    /// Whether it is the kernel's own.
    #[inline(always)]
    pub fn is_kernel_thread(self) -> bool {
        self.read::<u32>(layout!(task_flags)).is_some_and(|flags| flags & PF_KTHREAD != 0)
    }

    /// The name of its process, which is that of its first thread.
    #[inline(always)]
    pub fn process_comm(self) -> Option<Comm> {
        read(self.read(layout!(task_group_leader))?, layout!(task_comm))
    }
}

/// As [`Task::is_stalled`], of another task, by its `task_struct`.
#[inline(always)]
pub fn is_stalled(task: u64) -> bool {
    if read::<u64>(task, layout!(task_reclaim_state)).is_some_and(|state| state != 0) {
        return true;
    }
    let bits = read::<u8>(task, layout!(task_in_memstall));
    bits.is_some_and(|bits| u32::from(bits) & layout!(task_in_memstall_mask) != 0)
}

/// Address of the `scan_control` that the thread reclaims with.
///
/// `task_struct.reclaim_state` points at a member of it between the begin and end tracepoints of
/// direct and memcg reclaim (`try_to_free_pages()` and `try_to_free_mem_cgroup_pages()` in
/// mm/vmscan.c); it does not for node reclaim, and belongs to the outer reclaim in soft-limit
/// reclaim.
#[inline(always)]
pub fn scan_control(task: Task) -> Option<u64> {
    let offset = layout!(scan_control_reclaim_state);
    if !present(offset) {
        return None;
    }
    match task.read::<u64>(layout!(task_reclaim_state))? {
        0 => None,
        reclaim_state => Some(reclaim_state.wrapping_sub(u64::from(offset))),
    }
}

/// Id of the cgroup behind a `struct cgroup *`.
#[inline(always)]
fn cgroup_id(cgroup: u64) -> Option<u64> {
    let node: u64 = read(cgroup, layout!(cgroup_kn))?;
    read(node, layout!(kernfs_node_id))
}

/// A thread's `struct cgroup *` in the memory controller's hierarchy.
#[inline(always)]
fn memory_cgroup(task: u64) -> Option<u64> {
    read(memory_css(task)?, layout!(css_cgroup))
}

/// A thread's `struct cgroup *` in cgroup v2.
#[inline(always)]
fn default_cgroup(task: u64) -> Option<u64> {
    let css_set: u64 = read(task, layout!(task_cgroups))?;
    read(css_set, layout!(css_set_dfl_cgrp))
}

/// A thread's `cgroup_subsys_state` of the memory controller.
#[inline(always)]
fn memory_css(task: u64) -> Option<u64> {
    let css_set: u64 = read(task, layout!(task_cgroups))?;
    read(css_set, layout!(css_set_memory))
}

/// Id of the cgroup that the current thread's memory is charged to.
#[inline(always)]
pub fn payer_id() -> Option<u64> {
    payer_id_of(current())
}

/// Id of the cgroup that the memory of the thread with the `task_struct` at `task` is charged to.
#[inline(always)]
pub fn payer_id_of(task: u64) -> Option<u64> {
    let cgroup =
        if present(layout!(css_set_memory)) { memory_cgroup(task) } else { default_cgroup(task) };
    cgroup_id(cgroup?)
}

/// Which limit makes a `struct mem_cgroup *` reclaim: its memory.high, unless it is so near to its limit
/// that a charge may have failed. That is at most a huge page's worth.
#[inline(always)]
pub fn limit(memcg: u64) -> Limit {
    const AT_ONCE: u64 = 512;
    let usage = read(memcg, layout!(mem_cgroup_usage)).unwrap_or(0_u64);
    let max = read(memcg, layout!(mem_cgroup_max)).unwrap_or(0_u64);
    let high = read(memcg, layout!(mem_cgroup_high)).unwrap_or(u64::MAX);
    if max == 0 {
        Limit::Unknown
    } else if high < max && usage.wrapping_add(AT_ONCE) <= max {
        Limit::High
    } else {
        Limit::Max
    }
}

/// Which of a cgroup's limits makes it reclaim.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Unknown,
    High,
    Max,
}

/// Id of the cgroup of a `struct mem_cgroup *`; 0 for a null pointer.
#[inline(always)]
pub fn memcg_id(memcg: u64) -> Option<u64> {
    if memcg == 0 {
        return Some(0);
    }
    let css = layout!(mem_cgroup_css);
    if !present(css) {
        return None;
    }
    cgroup_id(read(memcg.wrapping_add(u64::from(css)), layout!(css_cgroup))?)
}

/// Whether the current thread is in the cgroup `id` or below it, in cgroup v2 or, with `v1`, in
/// the memory controller's hierarchy.
#[inline(always)]
pub fn in_cgroup(id: u64, v1: bool) -> bool {
    is_in_cgroup(current(), id, v1)
}

/// The same of the thread with the `task_struct` at `task`.
#[inline(always)]
pub fn is_in_cgroup(task: u64, id: u64, v1: bool) -> bool {
    let found = if v1 { memory_cgroup(task) } else { default_cgroup(task) };
    let Some(mut cgroup) = found else { return false };
    for _ in 0..MAX_CGROUP_DEPTH {
        if cgroup_id(cgroup) == Some(id) {
            return true;
        }
        // The parent's `self`, which is embedded in the parent.
        match read::<u64>(cgroup, layout!(cgroup_self_parent)) {
            None | Some(0) => return false,
            Some(parent) => cgroup = parent.wrapping_sub(u64::from(layout!(cgroup_self))),
        }
    }
    false
}

/// The memory controller's root cgroup, as a `struct mem_cgroup *`.
#[inline(always)]
fn root_memcg() -> Option<u64> {
    let subsystem: u64 = read(memory_css(current())?, layout!(css_ss))?;
    let root: u64 = read(subsystem, layout!(cgroup_subsys_root))?;
    let css: u64 = read(root, layout!(cgroup_root_memory))?;
    Some(css.wrapping_sub(u64::from(layout!(mem_cgroup_css))))
}

/// Free pages in the whole system.
///
/// The sum of the zones' own counters; the root memory cgroup leads to every node. Where that way
/// is closed user space may have found the address of the kernel's own sum, a data symbol that many
/// kernels leave out of kallsyms.
#[inline(always)]
pub fn free_pages() -> Option<u64> {
    let address = config!(free_pages_address);
    if address != 0 {
        return read(address, 0);
    }
    let nodeinfo = layout!(mem_cgroup_nodeinfo);
    let (zones, zone_free) = (layout!(pgdat_node_zones), layout!(zone_free));
    if !(present(nodeinfo) && present(zones) && present(zone_free)) {
        return None;
    }
    let memcg = root_memcg()?;
    let mut sum = 0_u64;
    for node in 0..MAX_NODES {
        if layout!(memory_nodes[(node / 32) as usize]) & (1 << (node % 32)) == 0 {
            continue;
        }
        let info: u64 = read(memcg, nodeinfo + node * 8)?;
        // Zero until the root cgroup is first used on the node: better no sum than a part of it.
        let pgdat: u64 = read(info, layout!(memcg_node_pgdat))?;
        for zone in 0..MAX_ZONES {
            if zone >= layout!(pgdat_zones) {
                break;
            }
            let free: u64 = read(pgdat, zones + zone * layout!(zone_size) + zone_free)?;
            sum = sum.wrapping_add(free);
        }
    }
    Some(sum)
}
