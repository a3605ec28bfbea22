//! Threads held up reclaiming pages: direct, memcg, soft-limit and node reclaim.
//!
//! Every program exists twice. A raw tracepoint costs less, but where tracepoints can be preempted,
//! as they can since 7.0, the kernel skips a raw one that another thread of the CPU is in the midst
//! of, and with it that thread's stall. It still disables preemption around classic ones
//! (include/trace/perf.h).

use aya_ebpf::{
    macros::{map, raw_tracepoint, tracepoint},
    maps::HashMap,
    programs::{RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use memtrace_common::{
    config::{kind, wanted},
    counter,
    in_progress::{self, ReclaimKey},
    record::{Reclaim, known, mechanism},
};

use crate::{
    event::Event,
    kernel,
    settings::{KINDS, layout, present, wanted},
    stall::{Thread, count, deliver, now},
};

/// `trace_mm_vmscan_lru_isolate()` passes the number of the list; the active ones are odd
/// (`enum lru_list` in include/linux/mmzone.h).
const LRU_ACTIVE: u32 = 1;

/// Reclaims in progress; user space sets its size.
#[map]
static RECLAIMS: HashMap<ReclaimKey, in_progress::Reclaim> = HashMap::with_max_entries(1, 0);

/// Makes a pair of programs for a tracepoint: one of a raw, one of a classic tracepoint. User space
/// attaches one of the two.
macro_rules! programs {
    ($($tracepoint:tt => $raw:ident, $classic:ident: $work:ident($($mechanism:ident)?);)+) => {$(
        #[raw_tracepoint(tracepoint = $tracepoint)]
        fn $raw(ctx: RawTracePointContext) -> i32 {
            $work(&ctx $(, mechanism::$mechanism)?);
            0
        }

        #[tracepoint(category = "vmscan", name = $tracepoint)]
        fn $classic(ctx: TracePointContext) -> u32 {
            $work(&ctx $(, mechanism::$mechanism)?);
            0
        }
    )+};
}

programs! {
    "mm_vmscan_direct_reclaim_begin" => direct_begin, tp_direct_begin: begin(DIRECT);
    "mm_vmscan_direct_reclaim_end" => direct_end, tp_direct_end: end(DIRECT);
    "mm_vmscan_memcg_reclaim_begin" => memcg_begin, tp_memcg_begin: begin(MEMCG);
    "mm_vmscan_memcg_reclaim_end" => memcg_end, tp_memcg_end: end(MEMCG);
    "mm_vmscan_memcg_softlimit_reclaim_begin" => softlimit_begin, tp_soft_begin: begin(SOFTLIMIT);
    "mm_vmscan_memcg_softlimit_reclaim_end" => softlimit_end, tp_soft_end: end(SOFTLIMIT);
    "mm_vmscan_node_reclaim_begin" => node_begin, tp_node_begin: begin(NODE);
    "mm_vmscan_node_reclaim_end" => node_end, tp_node_end: end(NODE);
    "mm_vmscan_lru_isolate" => lru_isolate, tp_lru_isolate: isolate();
}

/// Keeps what the end cannot tell: the pages scanned, as `scan_control.nr_scanned` starts again at
/// every priority, and the lowest priority, as `do_try_to_free_pages()` may start again at the
/// highest. Counts what `pgscan_*` in /proc/vmstat counts: the inactive lists.
#[inline(always)]
fn isolate(event: &impl Event) {
    let fields = event.isolate_fields();
    let (Some(scanned), Some(lru)) = (event.long(fields.scanned), event.int(fields.lru)) else {
        return;
    };
    if lru & LRU_ACTIVE != 0 {
        return;
    }
    let Thread { tid, .. } = Thread::current();
    for mechanism in mechanism::DIRECT..=mechanism::NODE {
        if let Some(begin) = RECLAIMS.get_ptr_mut(ReclaimKey { tid, mechanism }) {
            // SAFETY: the entry is this thread's, which is here and not at its end.
            let begin = unsafe { &mut *begin };
            begin.nr_scanned = begin.nr_scanned.wrapping_add(scanned);
            // Between begin and end the thread leads to the control of node reclaim, too.
            if mechanism != mechanism::SOFTLIMIT
                && let Some(priority) = kernel::scan_control().and_then(priority)
            {
                begin.priority = begin.priority.min(priority);
            }
        }
    }
}

#[inline(always)]
fn begin(event: &impl Event, mechanism: u32) {
    let thread = Thread::current();
    if !thread.passes() {
        return;
    }
    let proactive = is_proactive(mechanism);
    if !wanted_kind(mechanism, proactive) {
        return;
    }
    let fields = event.reclaim_fields(mechanism);
    let mut begin = in_progress::Reclaim {
        start_ns: 0,
        nr_scanned: 0,
        free_pages: 0,
        target_cgroup_id: 0,
        order: 0,
        gfp: 0,
        node: 0,
        priority: i32::MAX,
        reserved: 0,
        known: if proactive { known::PROACTIVE } else { 0 },
    };
    if let Some(order) = event.int(fields.order) {
        begin.order = order.cast_signed();
        begin.known |= known::ORDER;
    }
    if let Some(gfp) = event.int(fields.gfp) {
        begin.gfp = gfp;
        begin.known |= known::GFP;
    }
    if let Some(node) = event.int(fields.node) {
        begin.node = node.cast_signed();
        begin.known |= known::RECLAIM_NODE;
    }
    if wanted(wanted::EXTENDED) {
        if let Some(id) = event.cgroup_id(fields.target) {
            begin.target_cgroup_id = id;
            begin.known |= known::TARGET;
        }
        if let Some(pages) = kernel::free_pages() {
            begin.free_pages = pages;
            begin.known |= known::FREE;
        }
    }
    begin.start_ns = now();
    if RECLAIMS.insert(ReclaimKey { tid: thread.tid, mechanism }, begin, 0).is_err() {
        count(counter::TABLE_FULL);
        debug!(event, "table full: thread {} began reclaim {}", thread.tid, mechanism);
    }
}

#[inline(always)]
fn end(event: &impl Event, mechanism: u32) {
    let thread = Thread::current();
    let key = ReclaimKey { tid: thread.tid, mechanism };
    let Some(begin) = RECLAIMS.get_ptr(key) else {
        if thread.passes() && wanted_kind(mechanism, is_proactive(mechanism)) {
            count(counter::END_WITHOUT_BEGIN);
            debug!(event, "no begin: thread {} ended reclaim {}", thread.tid, mechanism);
        }
        return;
    };
    // SAFETY: the entry is this thread's own, and only its end removes it.
    let begin = unsafe { *begin };
    // Should it fail, the thread's next begin replaces the entry.
    let _gone: Result<(), i32> = RECLAIMS.remove(key);

    let Some(mut stall) = thread.stalled_since(begin.start_ns, mechanism) else { return };
    stall.order = begin.order;
    stall.gfp = begin.gfp;
    stall.known |= begin.known;
    if begin.priority != i32::MAX {
        stall.known |= known::PRIORITY;
    }
    let fields = event.reclaim_fields(mechanism);
    let mut record = Reclaim {
        stall,
        nr_scanned: 0,
        nr_reclaimed: event.long(fields.end_reclaimed).unwrap_or_default(),
        target_cgroup_id: begin.target_cgroup_id,
        free_pages: begin.free_pages,
        priority: begin.priority,
        node: begin.node,
    };
    if let Some(control) = control(mechanism) {
        read_scan_control(&mut record, control);
    }
    if wanted(wanted::EXTENDED) && present(event.isolate_fields().scanned) {
        // Left as it is where no list was isolated from, as the multi-generational LRU of some
        // kernels does without the tracepoint.
        if begin.nr_scanned != 0 || record.stall.known & known::SCANNED == 0 {
            record.nr_scanned = begin.nr_scanned;
        }
        record.stall.known |= known::SCANNED;
    }
    deliver(event, record);
}

/// The `scan_control` of this very reclaim, where the thread leads to it.
#[inline(always)]
fn control(mechanism: u32) -> Option<u64> {
    match mechanism {
        mechanism::DIRECT | mechanism::MEMCG => kernel::scan_control(),
        _ => None,
    }
}

/// Whether a write to `memory.reclaim` asked for it; not known where the kernel has no bit for it.
#[inline(always)]
fn is_proactive(mechanism: u32) -> bool {
    control(mechanism)
        .and_then(|control| kernel::read::<u8>(control, layout!(scan_control_proactive)))
        .is_some_and(|bits| u32::from(bits) & layout!(scan_control_proactive_mask) != 0)
}

#[inline(always)]
fn wanted_kind(mechanism: u32, proactive: bool) -> bool {
    let kind = if proactive { kind::PROACTIVE } else { mechanism };
    KINDS.load() & (1 << kind) != 0
}

/// The priority that the reclaim is at; the kernel's loop leaves -1 behind once it is through.
#[inline(always)]
fn priority(control: u64) -> Option<i32> {
    let priority: i8 = kernel::read(control, layout!(scan_control_priority))?;
    Some(i32::from(priority).max(0))
}

/// Fills in what the `scan_control` knows at the end.
#[inline(always)]
fn read_scan_control(record: &mut Reclaim, control: u64) {
    // `do_try_to_free_pages()` returns 1 for "let compaction try" only if it reclaimed nothing.
    if record.nr_reclaimed == 1
        && kernel::read::<u64>(control, layout!(scan_control_nr_reclaimed)) == Some(0)
    {
        record.stall.known |= known::COMPACTION_READY;
    }
    if !wanted(wanted::EXTENDED) {
        return;
    }
    if let Some(priority) = priority(control) {
        record.priority = record.priority.min(priority);
        record.stall.known |= known::PRIORITY;
    }
    if let Some(scanned) = kernel::read(control, layout!(scan_control_nr_scanned)) {
        record.nr_scanned = scanned;
        record.stall.known |= known::SCANNED;
    }
    if let Some(memcg) = kernel::read::<u64>(control, layout!(scan_control_target))
        && let Some(id) = kernel::memcg_id(memcg)
    {
        record.target_cgroup_id = id;
        record.stall.known |= known::TARGET;
    }
}
