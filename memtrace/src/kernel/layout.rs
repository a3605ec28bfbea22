//! Finds in a kernel's BTF what the probes need to know: offsets of members and positions of
//! arguments, by name and type and never by the kernel's version.

use memtrace_common::layout::{
    ABSENT, CompactionArgs, IsolateFields, KernelLayout, ReclaimFields, ThrottledFields,
};

use super::btf::{ArgType, Btf};

/// The begin tracepoints of reclaim, by [`memtrace_common::record::mechanism`].
pub const RECLAIM_BEGIN: [&str; 4] = [
    "mm_vmscan_direct_reclaim_begin",
    "mm_vmscan_memcg_reclaim_begin",
    "mm_vmscan_memcg_softlimit_reclaim_begin",
    "mm_vmscan_node_reclaim_begin",
];

/// The layout of the kernel that `btf` describes, on a host whose NUMA nodes `memory_nodes` have
/// memory; nothing is summed up over nodes where one has a number above 63.
#[must_use]
pub fn find(btf: &Btf<'_>, memory_nodes: &[u32]) -> KernelLayout {
    let offset = |name, path| btf.member(name, path).map_or(ABSENT, |member| member.offset());
    let element = |base: u32, index: Option<u32>, size: u32| match index {
        Some(index) if base != ABSENT => base + index * size,
        _ => ABSENT,
    };
    let memory_id = btf.enumerator("cgroup_subsys_id", "memory_cgrp_id");
    let proactive = btf.member("scan_control", "proactive").filter(|member| member.bits == 1);
    let free_area = btf.member("zone", "free_area");
    let node_zones = btf.member("pglist_data", "node_zones");
    let in_memstall = btf.member("task_struct", "in_memstall").filter(|member| member.bits == 1);

    KernelLayout {
        readable_task: btf
            .enumerator("bpf_func_id", "BPF_FUNC_get_current_task_btf")
            .map_or(ABSENT, |_| 0),
        task_reclaim_state: offset("task_struct", "reclaim_state"),
        task_cgroups: offset("task_struct", "cgroups"),
        task_group_leader: offset("task_struct", "group_leader"),
        task_flags: offset("task_struct", "flags"),
        task_run_delay: offset("task_struct", "sched_info.run_delay"),
        task_in_memstall: in_memstall.map_or(ABSENT, |member| member.offset()),
        task_in_memstall_mask: in_memstall.map_or(0, |member| 1 << (member.bit_offset % 8)),
        task_comm: offset("task_struct", "comm"),
        task_pid: offset("task_struct", "pid"),
        task_tgid: offset("task_struct", "tgid"),
        css_set_memory: element(offset("css_set", "subsys"), memory_id, WORD),
        css_set_dfl_cgrp: offset("css_set", "dfl_cgrp"),
        css_cgroup: offset("cgroup_subsys_state", "cgroup"),
        css_ss: offset("cgroup_subsys_state", "ss"),
        cgroup_subsys_root: offset("cgroup_subsys", "root"),
        cgroup_root_memory: element(offset("cgroup_root", "cgrp.subsys"), memory_id, WORD),
        cgroup_kn: offset("cgroup", "kn"),
        cgroup_self: offset("cgroup", "self"),
        cgroup_self_parent: offset("cgroup", "self.parent"),
        kernfs_node_id: offset("kernfs_node", "id"),
        mem_cgroup_css: offset("mem_cgroup", "css"),
        mem_cgroup_usage: offset("mem_cgroup", "memory.usage"),
        mem_cgroup_high: offset("mem_cgroup", "memory.high"),
        mem_cgroup_max: offset("mem_cgroup", "memory.max"),

        scan_control_reclaim_state: offset("scan_control", "reclaim_state"),
        scan_control_priority: offset("scan_control", "priority"),
        scan_control_nr_scanned: offset("scan_control", "nr_scanned"),
        scan_control_nr_reclaimed: offset("scan_control", "nr_reclaimed"),
        scan_control_target: offset("scan_control", "target_mem_cgroup"),
        scan_control_proactive: proactive.map_or(ABSENT, |member| member.offset()),
        scan_control_proactive_mask: proactive.map_or(0, |member| 1 << (member.bit_offset % 8)),

        compact_control_zone: offset("compact_control", "zone"),
        compact_control_order: offset("compact_control", "order"),
        compact_control_gfp: offset("compact_control", "gfp_mask"),
        compact_control_mode: offset("compact_control", "mode"),
        compact_control_direct: offset("compact_control", "direct_compaction"),
        compact_control_proactive: offset("compact_control", "proactive_compaction"),
        compact_control_migrate_scanned: offset("compact_control", "total_migrate_scanned"),
        compact_control_free_scanned: offset("compact_control", "total_free_scanned"),

        zone_pgdat: offset("zone", "zone_pgdat"),
        zone_name: offset("zone", "name"),
        zone_watermark: offset("zone", "_watermark"),
        zone_watermark_boost: offset("zone", "watermark_boost"),
        zone_free: element(
            offset("zone", "vm_stat"),
            btf.enumerator("zone_stat_item", "NR_FREE_PAGES"),
            WORD,
        ),
        zone_nr_free: match (free_area, btf.member("free_area", "nr_free")) {
            (Some(areas), Some(nr_free)) => areas.offset() + nr_free.offset(),
            _ => ABSENT,
        },
        free_area_size: btf.size_of("free_area").unwrap_or(ABSENT),
        free_area_len: free_area.and_then(|member| btf.array_len(member)).unwrap_or(0),
        pgdat_node_id: offset("pglist_data", "node_id"),
        pgdat_kcompactd: offset("pglist_data", "kcompactd"),
        pgdat_node_zones: offset("pglist_data", "node_zones"),
        pgdat_zones: node_zones.and_then(|member| btf.array_len(member)).unwrap_or(0),
        zone_size: btf.size_of("zone").unwrap_or(ABSENT),
        mem_cgroup_nodeinfo: match node_mask(memory_nodes) {
            Some(_) => offset("mem_cgroup", "nodeinfo"),
            None => ABSENT,
        },
        memcg_node_pgdat: offset("mem_cgroup_per_node", "lruvec.pgdat"),
        memory_nodes: node_mask(memory_nodes).unwrap_or_default(),

        migrate_async: btf.enumerator("migrate_mode", "MIGRATE_ASYNC").unwrap_or(0),
        migrate_sync_light: btf.enumerator("migrate_mode", "MIGRATE_SYNC_LIGHT").unwrap_or(1),
        migrate_sync: btf.enumerator("migrate_mode", "MIGRATE_SYNC").unwrap_or(2),
        ..tracepoints(btf)
    }
}

/// What the tracepoints tell, and nothing else.
fn tracepoints(btf: &Btf<'_>) -> KernelLayout {
    let offset = |name, path| btf.member(name, path).map_or(ABSENT, |member| member.offset());
    let args = |event| btf.tracepoint_args(event).unwrap_or_default();
    let isolate = args("mm_vmscan_lru_isolate");
    KernelLayout {
        reclaim_args: RECLAIM_BEGIN.map(|event| reclaim_args(btf, event)),
        reclaim_records: RECLAIM_BEGIN.map(|event| reclaim_record(btf, event)),
        compaction_args: compaction_args(btf),
        isolate_args: IsolateFields {
            scanned: position(&isolate, &UNSIGNED_LONG, 1),
            lru: last_position(&isolate, "int"),
        },
        isolate_record: IsolateFields {
            scanned: offset("trace_event_raw_mm_vmscan_lru_isolate", "nr_scanned"),
            lru: offset("trace_event_raw_mm_vmscan_lru_isolate", "lru"),
        },
        throttled_args: throttled_args(&args("mm_vmscan_throttled")),
        throttled_record: ThrottledFields {
            delayed: offset("trace_event_raw_mm_vmscan_throttled", "usec_delayed"),
            reason: offset("trace_event_raw_mm_vmscan_throttled", "reason"),
        },
        shrink_arg: pointer_position(&args("mm_shrink_slab_start"), "shrinker"),
        shrink_record: offset("trace_event_raw_mm_shrink_slab_start", "shrink"),
        shrinker_scan_objects: offset("shrinker", "scan_objects"),
        switch_next_arg: last_pointer_position(&args("sched_switch"), "task_struct"),
        victim_task_arg: pointer_position(&args("mark_victim"), "task_struct"),
        victim_pid_arg: position(&args("mark_victim"), &["int"], 0),
        ..KernelLayout::ABSENT
    }
}

/// Size of a pointer and of an `unsigned long`.
const WORD: u32 = 8;
/// As gcc and as clang call it.
const UNSIGNED_LONG: [&str; 2] = ["long unsigned int", "unsigned long"];

fn node_mask(nodes: &[u32]) -> Option<[u32; 2]> {
    let mut mask = [0; 2];
    for node in nodes {
        *mask.get_mut((node / 32) as usize)? |= 1 << (node % 32);
    }
    Some(mask)
}

/// Position of the `nth` argument of one of the types called `names`.
fn position(args: &[ArgType], names: &[&str], nth: usize) -> u32 {
    let mut matching = args
        .iter()
        .enumerate()
        .filter(|(_, arg)| matches!(arg, ArgType::Named(name) if names.contains(&name.as_str())));
    matching.nth(nth).map_or(ABSENT, |(position, _)| number(position))
}

fn number(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(ABSENT)
}

fn last_position(args: &[ArgType], name: &str) -> u32 {
    let is_name = |arg: &ArgType| matches!(arg, ArgType::Named(candidate) if candidate == name);
    args.iter().rposition(is_name).map_or(ABSENT, number)
}

fn pointer_position(args: &[ArgType], name: &str) -> u32 {
    let is_pointer = |arg: &ArgType| matches!(arg, ArgType::Pointer(target) if target == name);
    args.iter().position(is_pointer).map_or(ABSENT, number)
}

fn last_pointer_position(args: &[ArgType], name: &str) -> u32 {
    let is_pointer = |arg: &ArgType| matches!(arg, ArgType::Pointer(target) if target == name);
    args.iter().rposition(is_pointer).map_or(ABSENT, number)
}

/// All four arguments are `int`s: node, timeout, delay, reason. Any other shape is left alone.
fn throttled_args(args: &[ArgType]) -> ThrottledFields {
    let is_int = |arg: &ArgType| matches!(arg, ArgType::Named(name) if name == "int");
    let is_known = args.len() == 4 && args.iter().all(is_int);
    let (delayed, reason) = if is_known { (2, 3) } else { (ABSENT, ABSENT) };
    ThrottledFields { delayed, reason }
}

/// Node reclaim has two `int`s, `nid` and `order`, the others have one. A tracepoint of any other
/// shape, as before 5.5, is left alone.
fn reclaim_args(btf: &Btf<'_>, begin: &str) -> ReclaimFields {
    let args = btf.tracepoint_args(begin).unwrap_or_default();
    let end = begin.strip_suffix("begin").map(|event| format!("{event}end"));
    let end = end.and_then(|end| btf.tracepoint_args(&end)).unwrap_or_default();
    let ints = (0..).map(|nth| position(&args, &["int"], nth)).take_while(|at| *at != ABSENT);
    let (node, order) = match *ints.collect::<Vec<_>>() {
        [order] => (ABSENT, order),
        [node, order] if begin == RECLAIM_BEGIN[3] => (node, order),
        _ => (ABSENT, ABSENT),
    };
    ReclaimFields {
        order,
        gfp: position(&args, &["gfp_t"], 0),
        node,
        target: pointer_position(&args, "mem_cgroup"),
        end_reclaimed: position(&end, &UNSIGNED_LONG, 0),
    }
}

/// An event's record is a structure of its own name, or of that of the class of events it is of.
fn reclaim_record(btf: &Btf<'_>, begin: &str) -> ReclaimFields {
    let record = |event: &str, class| {
        let own = format!("trace_event_raw_{event}");
        if btf.size_of(&own).is_some() { own } else { format!("trace_event_raw_{class}") }
    };
    let end = begin.replace("_begin", "_end");
    let end_record = record(&end, "mm_vmscan_direct_reclaim_end_template");
    let begin_record = record(begin, "mm_vmscan_direct_reclaim_begin_template");
    let offset = |name: &str, field| btf.member(name, field).map_or(ABSENT, |field| field.offset());
    ReclaimFields {
        order: offset(&begin_record, "order"),
        gfp: offset(&begin_record, "gfp_flags"),
        node: offset(&begin_record, "nid"),
        target: offset(&begin_record, "memcg_id"),
        end_reclaimed: offset(&end_record, "nr_reclaimed"),
    }
}

fn compaction_args(btf: &Btf<'_>) -> CompactionArgs {
    let begin = btf.tracepoint_args("mm_compaction_begin").unwrap_or_default();
    let end = btf.tracepoint_args("mm_compaction_end").unwrap_or_default();
    CompactionArgs {
        begin_cc: pointer_position(&begin, "compact_control"),
        begin_sync: position(&begin, &["bool", "_Bool"], 0),
        end_cc: pointer_position(&end, "compact_control"),
        end_status: last_position(&end, "int"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::btf_builder::Builder, *};

    fn args(order: u32, gfp: u32, node: u32, target: u32) -> ReclaimFields {
        ReclaimFields { order, gfp, node, target, end_reclaimed: ABSENT }
    }

    #[test]
    fn finds_arguments_wherever_they_stand() {
        let mut builder = Builder::default();
        let int = builder.int("int", 4);
        let unsigned = builder.int("unsigned int", 4);
        let gfp = builder.typedef("gfp_t", unsigned);
        let memcg = builder.structure("mem_cgroup", 8, &[]);
        let memcg = builder.pointer(memcg);
        // As in 5.10 to 7.0, and as in 7.1.
        builder.tracepoint(RECLAIM_BEGIN[0], &[int, gfp]);
        builder.tracepoint(RECLAIM_BEGIN[1], &[gfp, int, memcg]);
        builder.tracepoint(RECLAIM_BEGIN[3], &[int, int, gfp]);
        let blob = builder.blob();
        let layout = find(&Btf::parse(&blob).expect("well-formed"), &[0]);
        assert_eq!(layout.reclaim_args[0], args(0, 1, ABSENT, ABSENT));
        assert_eq!(layout.reclaim_args[1], args(1, 0, ABSENT, 2));
        assert_eq!(layout.reclaim_args[2], args(ABSENT, ABSENT, ABSENT, ABSENT));
        assert_eq!(layout.reclaim_args[3], args(1, 2, 0, ABSENT));
    }

    #[test]
    fn leaves_shapes_alone_that_it_does_not_know() {
        let mut builder = Builder::default();
        let int = builder.int("int", 4);
        let gfp = builder.typedef("gfp_t", int);
        // As in 4.18: order, may_writepage, gfp, classzone_idx.
        builder.tracepoint(RECLAIM_BEGIN[0], &[int, int, gfp, int]);
        builder.tracepoint(RECLAIM_BEGIN[1], &[int, int, gfp]);
        let blob = builder.blob();
        let layout = find(&Btf::parse(&blob).expect("well-formed"), &[0]);
        assert_eq!(layout.reclaim_args[0], args(ABSENT, 2, ABSENT, ABSENT));
        assert_eq!(layout.reclaim_args[1], args(ABSENT, 2, ABSENT, ABSENT));
    }

    #[test]
    fn knows_the_names_of_both_compilers() {
        for name in ["long unsigned int", "unsigned long"] {
            let mut builder = Builder::default();
            let int = builder.int("int", 4);
            let long = builder.int(name, 8);
            builder.tracepoint("mm_vmscan_lru_isolate", &[int, int, long, long, long, long, int]);
            builder.tracepoint("mm_vmscan_direct_reclaim_end", &[long]);
            let blob = builder.blob();
            let layout = find(&Btf::parse(&blob).expect("well-formed"), &[0]);
            assert_eq!((layout.isolate_args.scanned, layout.isolate_args.lru), (3, 6), "{name}");
            assert_eq!(layout.reclaim_args[0].end_reclaimed, 0, "{name}");
        }
    }

    #[test]
    fn finds_records_of_an_event_or_of_its_class() {
        let mut builder = Builder::default();
        let int = builder.int("int", 4);
        let long = builder.int("long unsigned int", 8);
        // As in 7.1.
        let begin = [("gfp_flags", long, 64), ("memcg_id", long, 128), ("order", int, 192)];
        builder.structure("trace_event_raw_mm_vmscan_direct_reclaim_begin_template", 32, &begin);
        let end = [("nr_reclaimed", long, 64), ("memcg_id", long, 128)];
        builder.structure("trace_event_raw_mm_vmscan_direct_reclaim_end_template", 24, &end);
        let node = [("nid", int, 64), ("order", int, 96), ("gfp_flags", long, 128)];
        builder.structure("trace_event_raw_mm_vmscan_node_reclaim_begin", 24, &node);
        let isolate = [("nr_scanned", long, 192), ("lru", int, 384)];
        builder.structure("trace_event_raw_mm_vmscan_lru_isolate", 56, &isolate);
        let blob = builder.blob();
        let layout = find(&Btf::parse(&blob).expect("well-formed"), &[0]);
        let memcg = ReclaimFields { order: 24, gfp: 8, node: ABSENT, target: 16, end_reclaimed: 8 };
        assert_eq!(layout.reclaim_records[..3], [memcg; 3]);
        let node = ReclaimFields { order: 12, gfp: 16, node: 8, target: ABSENT, end_reclaimed: 8 };
        assert_eq!(layout.reclaim_records[3], node);
        assert_eq!(layout.isolate_record, IsolateFields { scanned: 24, lru: 48 });
    }

    #[test]
    fn finds_compaction_by_both_shapes() {
        let mut builder = Builder::default();
        let int = builder.int("int", 4);
        let long = builder.int("long unsigned int", 8);
        let bool = builder.int("_Bool", 1);
        let bool = builder.typedef("bool", bool);
        let control = builder.structure("compact_control", 8, &[]);
        let control = builder.pointer(control);
        let mut old = builder.clone();
        old.tracepoint("mm_compaction_begin", &[long, long, long, long, bool]);
        old.tracepoint("mm_compaction_end", &[long, long, long, long, bool, int]);
        builder.tracepoint("mm_compaction_begin", &[control, long, long, bool]);
        builder.tracepoint("mm_compaction_end", &[control, long, long, bool, int]);
        let shape = |builder: &Builder| {
            let blob = builder.blob();
            find(&Btf::parse(&blob).expect("well-formed"), &[0]).compaction_args
        };
        let expected = CompactionArgs { begin_cc: 0, begin_sync: 3, end_cc: 0, end_status: 4 };
        assert_eq!(shape(&builder), expected);
        let expected =
            CompactionArgs { begin_cc: ABSENT, begin_sync: 4, end_cc: ABSENT, end_status: 5 };
        assert_eq!(shape(&old), expected);
    }

    #[test]
    fn a_kernel_without_anything_has_nothing() {
        let blob = Builder::default().blob();
        let layout = find(&Btf::parse(&blob).expect("well-formed"), &[0]);
        assert_eq!(layout.task_cgroups, ABSENT);
        assert_eq!(layout.css_set_memory, ABSENT);
        assert_eq!(layout.zone_free, ABSENT);
        assert_eq!(layout.scan_control_proactive, ABSENT);
        assert_eq!(layout.reclaim_args, [args(ABSENT, ABSENT, ABSENT, ABSENT); 4]);
    }

    #[test]
    fn sums_no_nodes_up_where_one_has_no_bit() {
        assert_eq!(node_mask(&[0, 1, 33]), Some([0b11, 0b10]));
        assert_eq!(node_mask(&[0, 64]), None);
    }
}
