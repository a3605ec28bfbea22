//! Threads held up reclaiming pages: direct, memcg, soft-limit and node reclaim.
//!
//! Every program exists twice. A raw tracepoint costs less, but where tracepoints can be preempted,
//! as they can since 7.0, the kernel skips a raw one that another thread of the CPU is in the midst
//! of, and with it that thread's stall. It still disables preemption around classic ones
//! (include/trace/perf.h).

use aya_ebpf::{
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use memtrace_common::{
    config::{kind, wanted},
    counter,
    in_progress::{self, ReclaimKey},
    record::{Followed, Reclaim, ReclaimDetails, known, mechanism},
};

use crate::{
    begun,
    event::Event,
    kernel::{self, Limit},
    scope,
    settings::{config, layout, present, wanted},
    stall::{Thread, count, deliver, duration_since},
    tally,
};

/// `trace_mm_vmscan_lru_isolate()` passes the number of the list; the active ones are odd
/// (`enum lru_list` in include/linux/mmzone.h).
const LRU_ACTIVE: u32 = 1;

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
    let Thread { tid, task, .. } = Thread::current();
    for mechanism in mechanism::DIRECT..=mechanism::NODE {
        if let Some(begin) = begun::find(ReclaimKey { tid, mechanism }) {
            // SAFETY: the entry is this thread's, which is here and not at its end.
            let begin = unsafe { &mut *begin };
            begin.nr_scanned = begin.nr_scanned.wrapping_add(scanned);
            let control = match mechanism {
                // Between begin and end the thread leads to the control of node reclaim, too.
                mechanism::NODE => kernel::scan_control(task),
                _ => Some(begin.control),
            };
            if let Some(priority) = control.and_then(priority) {
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
    let control = control(thread, mechanism);
    let proactive = is_proactive(control);
    if !is_wanted(kind(mechanism, proactive)) {
        return;
    }
    let fields = event.reclaim_fields(mechanism);
    let mut begin = in_progress::Reclaim {
        start_ns: 0,
        control: control.unwrap_or(0),
        gfp: 0,
        known: if proactive { known::PROACTIVE } else { 0 },
        node: 0,
        reserved: 0,
        order: 0,
        priority: i8::MAX,
        nr_scanned: zero(),
        free_pages: zero(),
        target_cgroup_id: zero(),
    };
    if let Some(order) = event.int(fields.order) {
        begin.order = order as i8;
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
    if wanted(wanted::LIMIT) && mechanism == mechanism::MEMCG {
        begin.known |= limit(begin.control);
    }
    let at = scope::Moment::present(thread.task);
    begin.start_ns = at.now;
    if !begun::keep(ReclaimKey { tid: thread.tid, mechanism }, begin) {
        return not_kept(event, thread.tid, mechanism);
    }
    scope::enter(thread, mechanism, at);
}

/// Which limit of the cgroup it is for, as a bit of [`known`].
#[inline(always)]
fn limit(control: u64) -> u32 {
    let target = kernel::read(control, layout!(scan_control_target)).unwrap_or(0);
    match kernel::limit(target) {
        Limit::Unknown => 0,
        Limit::High => known::LIMIT_HIGH,
        Limit::Max => known::LIMIT_MAX,
    }
}

/// Out of line, as it is rare.
#[cold]
#[inline(never)]
fn not_kept(event: &impl Event, tid: u32, mechanism: u32) {
    count(counter::TABLE_FULL);
    debug!(event, "table full: thread {} began reclaim {}", tid, mechanism);
}

/// Likewise.
#[cold]
#[inline(never)]
fn not_begun(event: &impl Event, mechanism: u32) {
    let thread = Thread::current();
    let is_proactive = is_proactive(control(thread, mechanism));
    if thread.passes() && is_wanted(kind(mechanism, is_proactive)) {
        count(counter::END_WITHOUT_BEGIN);
        debug!(event, "no begin: thread {} ended reclaim {}", thread.tid, mechanism);
    }
}

#[inline(always)]
fn end(event: &impl Event, mechanism: u32) {
    let thread = Thread::current();
    let key = ReclaimKey { tid: thread.tid, mechanism };
    let Some(begin) = begun::take(key) else {
        return not_begun(event, mechanism);
    };
    let Some(duration_ns) = duration_since(begin.start_ns) else { return };
    let order = (begin.known & known::ORDER != 0).then_some(i64::from(begin.order));
    if tally::count(
        thread,
        duration_ns,
        kind(mechanism, begin.known & known::PROACTIVE != 0),
        order,
    ) {
        return;
    }
    let mut stall = thread.stall(begin.start_ns, duration_ns, mechanism);
    stall.order = begin.order;
    stall.gfp = begin.gfp;
    stall.known = begin.known;
    let fields = event.reclaim_fields(mechanism);
    let mut record =
        Reclaim { stall, nr_reclaimed: event.long(fields.end_reclaimed).unwrap_or_default() };
    // `do_try_to_free_pages()` returns 1 for "let compaction try" only if it reclaimed nothing.
    if record.nr_reclaimed == 1
        && kernel::read::<u64>(begin.control, layout!(scan_control_nr_reclaimed)) == Some(0)
    {
        record.stall.known |= known::COMPACTION_READY;
    }
    if wanted(wanted::EXTENDED | wanted::CGROUP) {
        let details = details(event, &begin, &mut record.stall.known);
        record.stall.known |= known::DETAILS;
        deliver(event, Followed { record, by: details });
    } else {
        deliver(event, record);
    }
    scope::leave(thread, mechanism, begin.start_ns.wrapping_add(duration_ns));
}

/// A zero that the compiler does not know: several in a row it would have written by a loop, byte by
/// byte.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn zero() -> u64 {
    let zero;
    // SAFETY: it only sets a register.
    unsafe {
        core::arch::asm!("{zero} = 0", zero = out(reg) zero, options(nostack, nomem, pure));
    }
    zero
}

/// For the lints, which see this crate as a program of the host.
#[cfg(not(target_arch = "bpf"))]
fn zero() -> u64 {
    0
}

/// The `scan_control` of this very reclaim, where the thread leads to it.
#[inline(always)]
fn control(thread: Thread, mechanism: u32) -> Option<u64> {
    match mechanism {
        mechanism::DIRECT | mechanism::MEMCG => kernel::scan_control(thread.task),
        _ => None,
    }
}

/// Whether a write to `memory.reclaim` asked for it; not known where the kernel has no bit for it.
#[inline(always)]
fn is_proactive(control: Option<u64>) -> bool {
    control
        .and_then(|control| kernel::read::<u8>(control, layout!(scan_control_proactive)))
        .is_some_and(|bits| u32::from(bits) & layout!(scan_control_proactive_mask) != 0)
}

/// One of [`kind`].
#[inline(always)]
fn kind(mechanism: u32, is_proactive: bool) -> u32 {
    if is_proactive { kind::PROACTIVE } else { mechanism }
}

#[inline(always)]
fn is_wanted(kind: u32) -> bool {
    config!(kinds) & (1 << kind) != 0
}

/// The priority that the reclaim is at; the kernel's loop leaves -1 behind once it is through.
#[inline(always)]
fn priority(control: u64) -> Option<i8> {
    kernel::read(control, layout!(scan_control_priority)).map(|priority: i8| priority.max(0))
}

/// What only some views show, and which of it is `known`.
#[inline(always)]
fn details(event: &impl Event, begin: &in_progress::Reclaim, known: &mut u32) -> ReclaimDetails {
    let mut details = ReclaimDetails {
        cgroup_id: 0,
        nr_scanned: 0,
        target_cgroup_id: begin.target_cgroup_id,
        free_pages: begin.free_pages,
        priority: 0,
        node: begin.node,
    };
    if wanted(wanted::CGROUP)
        && let Some(id) = kernel::payer_id()
    {
        details.cgroup_id = id;
        *known |= known::CGROUP;
    }
    if !wanted(wanted::EXTENDED) {
        return details;
    }
    let mut lowest = begin.priority;
    if let Some(priority) = priority(begin.control) {
        lowest = lowest.min(priority);
    }
    if lowest != i8::MAX {
        details.priority = i32::from(lowest);
        *known |= known::PRIORITY;
    }
    if let Some(scanned) = kernel::read(begin.control, layout!(scan_control_nr_scanned)) {
        details.nr_scanned = scanned;
        *known |= known::SCANNED;
    }
    if present(event.isolate_fields().scanned) {
        // Left as it is where no list was isolated from, as the multi-generational LRU of some
        // kernels does without the tracepoint.
        if begin.nr_scanned != 0 || *known & known::SCANNED == 0 {
            details.nr_scanned = begin.nr_scanned;
        }
        *known |= known::SCANNED;
    }
    if let Some(memcg) = kernel::read::<u64>(begin.control, layout!(scan_control_target))
        && let Some(id) = kernel::memcg_id(memcg)
    {
        details.target_cgroup_id = id;
        *known |= known::TARGET;
    }
    details
}
