//! Where the running kernel keeps what the probes read: offsets and argument positions that user
//! space finds in the kernel's BTF, as they differ from kernel to kernel.
//!
//! The probes see them as constants, so code for a part that is [`ABSENT`] never runs and is
//! dropped by the verifier.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Value of an offset or position that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Where a reclaim's tracepoints tell what: of a raw tracepoint the position of the argument, of a
/// classic one the offset in the event's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ReclaimFields {
    /// `int order`.
    pub order: u32,
    /// `gfp_t gfp_flags`; before `order` since 7.1. At most 32 of its bits are used, however wide a
    /// record keeps it.
    pub gfp: u32,
    /// `int nid`, of node reclaim only.
    pub node: u32,
    /// The cgroup that is reclaimed from, since 7.1: `struct mem_cgroup *memcg`, in records the
    /// cgroup's id.
    pub target: u32,
    /// `unsigned long nr_reclaimed` of the end tracepoint.
    pub end_reclaimed: u32,
}

/// The same of `mm_vmscan_lru_isolate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IsolateFields {
    /// `unsigned long nr_scanned`.
    pub scanned: u32,
    /// `int lru`, the list's number.
    pub lru: u32,
}

/// The same of `mm_vmscan_throttled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ThrottledFields {
    /// `int usec_delayed`.
    pub delayed: u32,
    /// `int reason`, of the kernel's `enum vmscan_throttle_state`; its bit in records.
    pub reason: u32,
}

/// Arguments of the compaction tracepoints, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CompactionArgs {
    /// `mm_compaction_begin`: `struct compact_control *cc`, since 5.18.
    pub begin_cc: u32,
    /// `mm_compaction_begin`: `bool sync`.
    pub begin_sync: u32,
    /// `mm_compaction_end`: `struct compact_control *cc`, since 5.18.
    pub end_cc: u32,
    /// `mm_compaction_end`: `int status`.
    pub end_status: u32,
}

/// Offsets in bytes unless said otherwise; each [`ABSENT`] where the kernel has no such member. What
/// every probe reads comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct KernelLayout {
    /// 0 where a probe may read the current thread's `task_struct` by itself, by the helper
    /// `bpf_get_current_task_btf`, since 5.11.
    pub readable_task: u32,
    /// `task_struct.reclaim_state`, a pointer into the reclaiming task's `scan_control`.
    pub task_reclaim_state: u32,
    /// `scan_control.reclaim_state`.
    pub scan_control_reclaim_state: u32,
    /// The byte that holds the bit-field `scan_control.proactive`.
    pub scan_control_proactive: u32,
    /// That bit, as a mask for the byte.
    pub scan_control_proactive_mask: u32,
    /// `task_struct.comm`.
    pub task_comm: u32,
    /// `task_struct.pid`, a thread's.
    pub task_pid: u32,
    /// `task_struct.tgid`, a process's.
    pub task_tgid: u32,

    /// Arguments of the tracepoints of reclaim, by [`crate::record::mechanism`].
    pub reclaim_args: [ReclaimFields; 4],
    /// Their records.
    pub reclaim_records: [ReclaimFields; 4],
    /// Arguments of the compaction tracepoints.
    pub compaction_args: CompactionArgs,
    /// Arguments of `mm_vmscan_lru_isolate`.
    pub isolate_args: IsolateFields,
    /// Its record.
    pub isolate_record: IsolateFields,
    /// Arguments of `mm_vmscan_throttled`, since 5.16.
    pub throttled_args: ThrottledFields,
    /// Its record.
    pub throttled_record: ThrottledFields,
    /// `mm_shrink_slab_start`: position of `struct shrinker *shr`.
    pub shrink_arg: u32,
    /// Its record: `void *shrink`, the shrinker's `scan_objects`.
    pub shrink_record: u32,
    /// `shrinker.scan_objects`.
    pub shrinker_scan_objects: u32,
    /// `sched_switch`: position of `struct task_struct *next`.
    pub switch_next_arg: u32,
    /// `mark_victim`: position of `struct task_struct *task`, since 6.8 and in some kernels before.
    pub victim_task_arg: u32,
    /// `mark_victim`: position of `int pid` where it does not pass the task.
    pub victim_pid_arg: u32,

    /// `task_struct.cgroups`.
    pub task_cgroups: u32,
    /// `task_struct.group_leader`.
    pub task_group_leader: u32,
    /// `task_struct.flags`.
    pub task_flags: u32,
    /// `task_struct.sched_info.run_delay`, nanoseconds that the thread has waited for a CPU.
    pub task_run_delay: u32,
    /// The byte that holds the bit-field `task_struct.in_memstall`; absent also where the kernel does
    /// not keep it up, as its pressure stall information is switched off.
    pub task_in_memstall: u32,
    /// That bit, as a mask for the byte.
    pub task_in_memstall_mask: u32,
    /// The memory controller's element of `css_set.subsys`.
    pub css_set_memory: u32,
    /// `css_set.dfl_cgrp`.
    pub css_set_dfl_cgrp: u32,
    /// `cgroup_subsys_state.cgroup`.
    pub css_cgroup: u32,
    /// `cgroup_subsys_state.ss`.
    pub css_ss: u32,
    /// `cgroup_subsys.root`.
    pub cgroup_subsys_root: u32,
    /// `cgroup_root.cgrp`, and in it the memory controller's element of `subsys`.
    pub cgroup_root_memory: u32,
    /// `cgroup.kn`.
    pub cgroup_kn: u32,
    /// `cgroup.self`.
    pub cgroup_self: u32,
    /// `cgroup.self.parent`, a pointer to the `self` of the cgroup above.
    pub cgroup_self_parent: u32,
    /// `kernfs_node.id`.
    pub kernfs_node_id: u32,
    /// `mem_cgroup.css`.
    pub mem_cgroup_css: u32,
    /// `mem_cgroup.memory.usage`, in pages as the next two.
    pub mem_cgroup_usage: u32,
    /// `mem_cgroup.memory.high`.
    pub mem_cgroup_high: u32,
    /// `mem_cgroup.memory.max`.
    pub mem_cgroup_max: u32,

    /// `scan_control.priority`, one signed byte.
    pub scan_control_priority: u32,
    /// `scan_control.nr_scanned`, of the last priority only.
    pub scan_control_nr_scanned: u32,
    /// `scan_control.nr_reclaimed`.
    pub scan_control_nr_reclaimed: u32,
    /// `scan_control.target_mem_cgroup`.
    pub scan_control_target: u32,

    /// `compact_control.zone`.
    pub compact_control_zone: u32,
    /// `compact_control.order`.
    pub compact_control_order: u32,
    /// `compact_control.gfp_mask`.
    pub compact_control_gfp: u32,
    /// `compact_control.mode`.
    pub compact_control_mode: u32,
    /// `compact_control.direct_compaction`, one byte.
    pub compact_control_direct: u32,
    /// `compact_control.proactive_compaction`, one byte.
    pub compact_control_proactive: u32,
    /// `compact_control.total_migrate_scanned`.
    pub compact_control_migrate_scanned: u32,
    /// `compact_control.total_free_scanned`.
    pub compact_control_free_scanned: u32,

    /// `zone.zone_pgdat`.
    pub zone_pgdat: u32,
    /// `zone.name`, a pointer to a string.
    pub zone_name: u32,
    /// `zone._watermark`, an array of `unsigned long`: min, low, high.
    pub zone_watermark: u32,
    /// `zone.watermark_boost`.
    pub zone_watermark_boost: u32,
    /// `zone.vm_stat[NR_FREE_PAGES]`.
    pub zone_free: u32,
    /// `zone.free_area[0].nr_free`.
    pub zone_nr_free: u32,
    /// Distance between two elements of `zone.free_area`.
    pub free_area_size: u32,
    /// Number of elements of `zone.free_area`: one more than the largest order.
    pub free_area_len: u32,
    /// `pglist_data.node_id`.
    pub pgdat_node_id: u32,
    /// `pglist_data.kcompactd`.
    pub pgdat_kcompactd: u32,
    /// `pglist_data.node_zones`.
    pub pgdat_node_zones: u32,
    /// Number of elements of `pglist_data.node_zones`.
    pub pgdat_zones: u32,
    /// Size of `struct zone`.
    pub zone_size: u32,
    /// `mem_cgroup.nodeinfo`, an array of pointers by node.
    pub mem_cgroup_nodeinfo: u32,
    /// `mem_cgroup_per_node.lruvec.pgdat`.
    pub memcg_node_pgdat: u32,
    /// NUMA nodes that have memory: bit n of word n / 32 for node n.
    pub memory_nodes: [u32; 2],
    /// The kernel's `MIGRATE_ASYNC`.
    pub migrate_async: u32,
    /// The kernel's `MIGRATE_SYNC_LIGHT`.
    pub migrate_sync_light: u32,
    /// The kernel's `MIGRATE_SYNC`.
    pub migrate_sync: u32,
}

impl KernelLayout {
    /// A kernel of which nothing is known: every field is [`ABSENT`].
    pub const ABSENT: Self = zerocopy::transmute!([ABSENT; size_of::<Self>() / size_of::<u32>()]);
}
