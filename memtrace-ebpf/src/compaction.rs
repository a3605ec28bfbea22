//! Threads held up compacting a zone.
//!
//! Since 5.18 the tracepoints pass the `compact_control`. Before, they pass page frame numbers
//! only: there zone and order come from `mm_compaction_suitable`, which `compact_zone()` calls
//! just before, and the allocation's flags from `mm_compaction_try_to_compact_pages`.
//!
//! Where tracepoints can be preempted, begin and end have a spare program each: see [`Turn`]. The
//! classic tracepoints, which help `reclaim` there, do not pass the `compact_control`.

use aya_ebpf::{
    macros::{map, raw_tracepoint},
    maps::{HashMap, LruHashMap},
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use memtrace_common::{
    config::wanted,
    counter, in_progress,
    record::{Compaction, CompactionDetails, Followed, ZONE_NAME_LEN, cause, known, mechanism},
};

use crate::{
    kernel, scope,
    settings::{config, layout, present, wanted},
    stall::{Thread, count, deliver, duration_since},
    tally,
};

/// Order that the kernel gives to the compaction of a whole zone.
const WHOLE_ZONE: i32 = -1;
/// Upper bound for the length of `zone.free_area` over all architectures and configurations.
const MAX_ORDERS: u32 = 16;
/// Hints about threads that may be about to compact.
const MAX_HINTS: u32 = 4096;

/// What kernels before 5.18 tell ahead of the begin.
#[derive(Clone, Copy)]
#[repr(C)]
struct Hint {
    zone: u64,
    /// Of the last zone found suitable.
    order: i32,
    /// Of the last direct attempt, to which `gfp` belongs.
    tried_order: i32,
    gfp: u32,
}

/// Compactions in progress by thread; user space sets its size.
#[map]
static COMPACTIONS: HashMap<u32, in_progress::Compaction> = HashMap::with_max_entries(1, 0);

/// Hints by thread. Most are never followed by a begin, so old ones make room for new ones.
#[map]
static HINTS: LruHashMap<u32, Hint> = LruHashMap::with_max_entries(MAX_HINTS, 0);

#[raw_tracepoint(tracepoint = "mm_compaction_suitable")]
fn zone_suitable(ctx: RawTracePointContext) -> i32 {
    let Thread { tid, .. } = Thread::current();
    let mut hint = hint(tid);
    hint.zone = ctx.arg(0);
    hint.order = ctx.arg(1);
    remember(tid, hint);
    0
}

#[raw_tracepoint(tracepoint = "mm_compaction_try_to_compact_pages")]
fn compact_try(ctx: RawTracePointContext) -> i32 {
    let Thread { tid, .. } = Thread::current();
    let mut hint = hint(tid);
    hint.tried_order = ctx.arg(0);
    hint.gfp = ctx.arg(1);
    remember(tid, hint);
    0
}

#[raw_tracepoint(tracepoint = "mm_compaction_begin")]
fn compact_begin(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, Turn::First);
    0
}

#[raw_tracepoint(tracepoint = "mm_compaction_end")]
fn compact_end(ctx: RawTracePointContext) -> i32 {
    end(&ctx, Turn::First);
    0
}

#[raw_tracepoint(tracepoint = "mm_compaction_begin")]
fn spare_begin(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, Turn::Spare);
    0
}

#[raw_tracepoint(tracepoint = "mm_compaction_end")]
fn spare_end(ctx: RawTracePointContext) -> i32 {
    end(&ctx, Turn::Spare);
    0
}

/// Which of a tracepoint's two programs runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    /// Does the work where the first was skipped.
    Spare,
}

#[inline(always)]
fn begin(ctx: &RawTracePointContext, turn: Turn) {
    let thread = Thread::current();
    if turn == Turn::Spare
        && let Some(begin) = COMPACTIONS.get_ptr_mut(thread.tid)
    {
        // SAFETY: the entry is this thread's own, and only its end removes it.
        let is_new = unsafe { &mut (*begin).is_new };
        if *is_new != 0 {
            *is_new = 0;
            return;
        }
    }
    if !thread.passes() {
        return;
    }
    let mut begin = match kernel::arg(ctx, layout!(compaction_args.begin_cc)) {
        Some(control) => from_control(control),
        None => from_hint(ctx, thread.tid),
    };
    if !wanted_cause(begin.cause) {
        return;
    }
    if wanted(wanted::EXTENDED) {
        read_zone(&mut begin);
    }
    begin.is_new = u32::from(turn == Turn::First);
    let at = scope::Moment::present(thread.task);
    begin.start_ns = at.now;
    // Should the spare program find room after all, the stall is counted here and delivered.
    if COMPACTIONS.insert(thread.tid, begin, 0).is_ok() {
        scope::enter(thread, mechanism::COMPACTION, at);
    } else if turn == Turn::First {
        count(counter::TABLE_FULL);
        debug!(ctx, "table full: thread {} began to compact", thread.tid);
    }
}

#[inline(always)]
fn end(ctx: &RawTracePointContext, turn: Turn) {
    let thread = Thread::current();
    // Zero where the tracepoint passes none: LLVM leaves the inside of a `None` unset, and reads it
    // all the same where it makes no difference, which the verifier of 5.10 refuses.
    let control = kernel::arg(ctx, layout!(compaction_args.end_cc)).unwrap_or(0);
    let Some(begin) = COMPACTIONS.get_ptr(thread.tid) else {
        if turn == Turn::Spare {
            return;
        }
        let begin = if control == 0 { from_hint(ctx, thread.tid) } else { from_control(control) };
        if thread.passes() && wanted_cause(begin.cause) {
            count(counter::END_WITHOUT_BEGIN);
            debug!(ctx, "no begin: thread {} ended compaction", thread.tid);
        }
        return;
    };
    // SAFETY: the entry is this thread's own, and only its end removes it.
    let begin = unsafe { *begin };
    // Should it fail, the thread's next begin replaces the entry.
    let _gone: Result<(), i32> = COMPACTIONS.remove(thread.tid);

    let Some(duration_ns) = duration_since(begin.start_ns) else { return };
    let order = (begin.known & known::ORDER != 0).then_some(i64::from(begin.order));
    if tally::count(thread, duration_ns, begin.cause, order) {
        return;
    }
    let mut stall = thread.stall(begin.start_ns, duration_ns, mechanism::COMPACTION);
    stall.order = begin.order as i8;
    stall.gfp = begin.gfp;
    stall.known = begin.known;
    let mut record = Compaction {
        stall,
        zone: [0; ZONE_NAME_LEN],
        node: 0,
        mode: begin.mode,
        status: kernel::arg(ctx, layout!(compaction_args.end_status)).unwrap_or_default() as i32,
        cause: begin.cause,
    };
    if let Some(name) = kernel::read::<u64>(begin.zone, layout!(zone_name))
        && let Some(name) = kernel::read(name, 0)
        && let Some(pgdat) = kernel::read::<u64>(begin.zone, layout!(zone_pgdat))
        && let Some(node) = kernel::read(pgdat, layout!(pgdat_node_id))
    {
        record.zone = name;
        record.node = node;
        record.stall.known |= known::ZONE;
    }
    if wanted(wanted::EXTENDED | wanted::CGROUP) {
        let details = details(control, &begin, &mut record.stall.known);
        record.stall.known |= known::DETAILS;
        deliver(ctx, Followed { record, by: details });
    } else {
        deliver(ctx, record);
    }
    scope::leave(thread, mechanism::COMPACTION, begin.start_ns.wrapping_add(duration_ns));
}

/// What only some views show, and which of it is `known`.
#[inline(always)]
fn details(control: u64, begin: &in_progress::Compaction, known: &mut u32) -> CompactionDetails {
    let [watermark_min, watermark_low, watermark_high] = begin.watermarks;
    let mut details = CompactionDetails {
        cgroup_id: 0,
        migrate_scanned: 0,
        free_scanned: 0,
        watermark_min,
        watermark_low,
        watermark_high,
        free_pages: begin.free_pages,
        frag_index: begin.frag_index,
        reserved: 0,
    };
    if wanted(wanted::CGROUP)
        && let Some(id) = kernel::payer_id()
    {
        details.cgroup_id = id;
        *known |= known::CGROUP;
    }
    if wanted(wanted::EXTENDED)
        && let Some(migrate) = kernel::read(control, layout!(compact_control_migrate_scanned))
        && let Some(free) = kernel::read(control, layout!(compact_control_free_scanned))
    {
        details.migrate_scanned = migrate;
        details.free_scanned = free;
        *known |= known::COMPACT_SCANNED;
    }
    details
}

/// Reads the begin out of a `struct compact_control`.
#[inline(always)]
fn from_control(control: u64) -> in_progress::Compaction {
    let mut begin = begin_in(kernel::read(control, layout!(compact_control_zone)).unwrap_or(0));
    if let Some(order) = kernel::read(control, layout!(compact_control_order)) {
        begin.order = order;
        begin.known |= known::ORDER;
    }
    if let Some(gfp) = kernel::read(control, layout!(compact_control_gfp)) {
        begin.gfp = gfp;
        begin.known |= known::GFP;
    }
    if let Some(mode) = kernel::read(control, layout!(compact_control_mode)) {
        begin.mode = mode;
        begin.known |= known::MODE;
    }
    begin.cause = cause_of(control, begin.zone, begin.order);
    begin
}

/// Puts the begin together from what went before it, on kernels that pass page frame numbers.
#[inline(always)]
fn from_hint(ctx: &RawTracePointContext, tid: u32) -> in_progress::Compaction {
    let hint = hint(tid);
    let mut begin = begin_in(hint.zone);
    if hint.zone == 0 {
        return begin;
    }
    begin.order = hint.order;
    begin.known |= known::ORDER | known::MODE;
    let sync =
        kernel::arg(ctx, layout!(compaction_args.begin_sync)).is_some_and(|sync| sync & 1 != 0);
    let in_kcompactd = is_kcompactd(hint.zone);
    begin.cause = match (in_kcompactd, hint.order) {
        (true, WHOLE_ZONE) => cause::PROACTIVE,
        (true, _) => cause::KCOMPACTD,
        (false, WHOLE_ZONE) => cause::MANUAL,
        // Only an allocation asks for an order outside of kcompactd.
        (false, _) => cause::DIRECT,
    };
    if begin.cause == cause::DIRECT && hint.tried_order == hint.order {
        begin.gfp = hint.gfp;
        begin.known |= known::GFP;
    }
    begin.mode = match (sync, begin.cause) {
        (false, _) => layout!(migrate_async),
        (true, cause::MANUAL) => layout!(migrate_sync),
        (true, _) => layout!(migrate_sync_light),
    };
    begin
}

/// A begin of which nothing is known but the zone.
#[inline(always)]
fn begin_in(zone: u64) -> in_progress::Compaction {
    in_progress::Compaction {
        start_ns: 0,
        zone,
        watermarks: [0; 3],
        free_pages: 0,
        frag_index: 0,
        order: 0,
        gfp: 0,
        cause: cause::OTHER,
        mode: 0,
        known: 0,
        is_new: 0,
        reserved: 0,
    }
}

/// Who asked for the compaction that a `struct compact_control` describes.
#[inline(always)]
fn cause_of(control: u64, zone: u64, order: i32) -> u32 {
    if kernel::read::<u8>(control, layout!(compact_control_direct)).unwrap_or(0) != 0 {
        cause::DIRECT
    } else if kernel::read::<u8>(control, layout!(compact_control_proactive)).unwrap_or(0) != 0 {
        cause::PROACTIVE
    } else if is_kcompactd(zone) {
        cause::KCOMPACTD
    } else if order == WHOLE_ZONE {
        cause::MANUAL
    } else {
        cause::OTHER
    }
}

#[inline(always)]
fn wanted_cause(cause: u32) -> bool {
    config!(causes) & (1 << cause) != 0
}

/// Whether the current thread is the kcompactd of the zone's node.
#[inline(always)]
fn is_kcompactd(zone: u64) -> bool {
    let Some(pgdat) = kernel::read::<u64>(zone, layout!(zone_pgdat)) else { return false };
    kernel::read(pgdat, layout!(pgdat_kcompactd)) == Some(kernel::current())
}

/// Reads the zone's watermarks, free pages and fragmentation index.
#[inline(always)]
fn read_zone(begin: &mut in_progress::Compaction) {
    let boost = kernel::read::<u64>(begin.zone, layout!(zone_watermark_boost)).unwrap_or(0);
    if let Some(watermarks) = kernel::read::<[u64; 3]>(begin.zone, layout!(zone_watermark))
        && let Some(free) = kernel::read(begin.zone, layout!(zone_free))
    {
        begin.watermarks = watermarks.map(|watermark| watermark.wrapping_add(boost));
        begin.free_pages = free;
        begin.known |= known::WATERMARKS;
    }
    if begin.known & known::ORDER != 0
        && begin.order >= 0
        && let Some(index) = frag_index(begin.zone, begin.order as u32)
    {
        begin.frag_index = index;
        begin.known |= known::FRAG_INDEX;
    }
}

/// The fragmentation index of `order` in the zone, times 1000: what `fragmentation_index()` in
/// mm/vmstat.c computes, which many kernels inline.
#[inline(always)]
fn frag_index(zone: u64, order: u32) -> Option<i32> {
    let (first, size, len) =
        (layout!(zone_nr_free), layout!(free_area_size), layout!(free_area_len));
    if !present(first) || !present(size) || order >= MAX_ORDERS {
        return None;
    }
    let (mut blocks, mut pages, mut suitable, mut failures) = (0_u64, 0_u64, 0_u64, 0_u64);
    for candidate in 0..MAX_ORDERS {
        if candidate >= len {
            break;
        }
        let free = kernel::read_or_zero(zone, first + candidate * size, &mut failures);
        blocks = blocks.wrapping_add(free);
        pages = pages.wrapping_add(free << candidate);
        // All bits set from `order` on, without a branch.
        let from_order = !(i64::from(candidate).wrapping_sub(i64::from(order)) >> 63);
        suitable |= free & from_order as u64;
    }
    if failures != 0 {
        return None;
    }
    if blocks == 0 {
        return Some(0);
    }
    if suitable != 0 {
        return Some(-1000);
    }
    let requested = 1_u64 << order;
    let per_request = pages.wrapping_mul(1000) / requested;
    Some(1000_i32.wrapping_sub(((1000 + per_request) / blocks) as i32))
}

#[inline(always)]
fn hint(tid: u32) -> Hint {
    // SAFETY: the value is there as long as the map is, and any bytes are a hint. That it is given
    // to another thread at this very moment takes thousands of threads at once; the zone or order
    // would then be that of the other.
    let found = HINTS.get_ptr(tid).map(|hint| unsafe { *hint });
    found.unwrap_or(Hint { zone: 0, order: 0, tried_order: 0, gfp: 0 })
}

#[inline(always)]
fn remember(tid: u32, hint: Hint) {
    // An LRU map makes room by itself; a failure leaves the begin without its hint, and the record
    // then says that zone and order are not known.
    let _kept: Result<(), i32> = HINTS.insert(tid, hint, 0);
}
