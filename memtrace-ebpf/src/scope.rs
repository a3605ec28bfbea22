//! Scopes: the outermost span in which a thread is held up, and how its time is spent.
//!
//! A scope begins with the first section that a thread enters, a memstall section or a reclaim or a
//! compaction, and ends with the last that it leaves. Every event in between charges the time since the
//! one before to the part that it belongs to, so that the parts always add up.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::bpf_get_stack,
    macros::{kprobe, map, raw_tracepoint, tracepoint},
    maps::HashMap,
    programs::{ProbeContext, RawTracePointContext, TracePointContext},
};
use memtrace_common::{
    config::wanted,
    counter,
    in_progress::{Scope, off},
    record::{self, CALLERS, Parts, SHRINKERS, known, mechanism, part},
};

use crate::{
    event::Event,
    kernel::{self, Task},
    settings::{layout, present, wanted},
    stall::{Thread, count, deliver_in_place, now},
};

/// Scopes in progress by thread; user space sets its size.
#[map]
static SCOPES: HashMap<u32, Scope> = HashMap::with_max_entries(1, 0);

/// What a new scope is made of: there is no room for one on the stack.
static EMPTY: Scope = Scope::EMPTY;

/// How much longer a throttled thread may have slept than the kernel says, which counts in jiffies.
const JIFFY_NS: u64 = 10_000_000;

/// When the current thread enters a section.
#[derive(Clone, Copy)]
pub struct Moment {
    /// By the kernel's monotonic clock, in nanoseconds.
    pub now: u64,
    /// How long it had waited for a CPU before.
    run_delay_ns: u64,
}

impl Moment {
    /// That of now. The clock comes last: the time until then is not the kernel's.
    #[inline(always)]
    pub fn present(task: Task) -> Self {
        let run_delay_ns = if wanted(wanted::PARTS) { task.run_delay_ns() } else { 0 };
        Self { now: now(), run_delay_ns }
    }
}

/// The current thread enters a section, one of [`mechanism`].
#[inline(always)]
pub fn enter(thread: Thread, section: u32, at: Moment) {
    if wanted(wanted::PARTS) {
        begin_or_nest(thread.tid, section, at.now, at.run_delay_ns);
    }
}

/// The current thread leaves the section at `now`.
#[inline(always)]
pub fn leave(thread: Thread, section: u32, now: u64) {
    if wanted(wanted::PARTS)
        && let Some(scope) = leave_section(thread.tid, thread.task, section, now)
    {
        deliver(thread, scope);
        forget(thread.tid);
    }
}

#[raw_tracepoint(tracepoint = "sched_switch")]
fn sched_switch(ctx: RawTracePointContext) -> i32 {
    // The one that goes. Nearly all are not stalled, which costs a look at each.
    let task = Task::current();
    if task.is_stalled() {
        let (_, tid) = task.ids();
        if let Some(scope) = find(tid) {
            charge(scope, task, now());
            // `(bool preempt, ...)`: who was made to go could have run on. A bool is one byte.
            let is_preempted = kernel::arg(&ctx, 0).is_some_and(|preempt| preempt as u8 != 0);
            scope.is_off = if is_preempted { off::PREEMPTED } else { off::ASLEEP };
        }
    }
    let Some(next) = kernel::arg(&ctx, layout!(switch_next_arg)) else { return 0 };
    if kernel::is_stalled(next)
        && let Some(tid) = kernel::read(next, layout!(task_pid))
        && let Some(scope) = find(tid)
        && scope.is_off != 0
    {
        back_on_cpu(scope, now());
    }
    0
}

/// Makes a program of a raw and one of a classic tracepoint, as in `reclaim`.
macro_rules! programs {
    ($($tracepoint:tt => $raw:ident, $classic:ident: $work:ident;)+) => {$(
        #[raw_tracepoint(tracepoint = $tracepoint)]
        fn $raw(ctx: RawTracePointContext) -> i32 {
            $work(&ctx);
            0
        }

        #[tracepoint(category = "vmscan", name = $tracepoint)]
        fn $classic(ctx: TracePointContext) -> u32 {
            $work(&ctx);
            0
        }
    )+};
}

programs! {
    "mm_shrink_slab_start" => shrink_start, tp_shrink_start: shrinker_starts;
    "mm_shrink_slab_end" => shrink_end, tp_shrink_end: shrinker_ends;
    "mm_vmscan_throttled" => throttled, tp_throttled: was_throttled;
}

/// Before 5.16 all throttling was this.
#[raw_tracepoint(tracepoint = "writeback_congestion_wait")]
fn congestion_wait(ctx: RawTracePointContext) -> i32 {
    was_congested(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "writeback_wait_iff_congested")]
fn wait_iff_congest(ctx: RawTracePointContext) -> i32 {
    was_congested(&ctx);
    0
}

#[kprobe]
fn memstall_enter(ctx: ProbeContext) -> u32 {
    let thread = Thread::current();
    // kswapd and kcompactd are nobody's stall, and what holds others up has a tracepoint. Inside of
    // another memstall section the kernel lets one pass.
    if thread.task.is_kernel_thread() || thread.task.is_in_memstall() || !thread.passes() {
        return 0;
    }
    if let Some(scope) = find(thread.tid)
        && scope.sections & MEMSTALL == 0
    {
        begin_or_nest(thread.tid, mechanism::SCOPE, now(), 0);
        return 0;
    }
    // One whose end was not seen.
    forget(thread.tid);
    begin_or_nest(thread.tid, mechanism::SCOPE, 0, thread.task.run_delay_ns());
    if let Some(scope) = find(thread.tid) {
        let mut frames = [0_u64; CALLERS + 1];
        let size = size_of_val(&frames) as u32;
        // SAFETY: the helper writes at most `size` bytes, the size of the frames.
        unsafe { bpf_get_stack(ctx.as_ptr(), (&raw mut frames).cast(), size, 0) };
        // The innermost is the probed function itself.
        let [_, callers @ ..] = frames;
        scope.callers = callers;
        // Last, as the time until here is not the kernel's. Nobody preempts a kprobe.
        let now = now();
        scope.start_ns = now;
        scope.charged_ns = now;
    }
    0
}

#[kprobe]
fn memstall_leave(ctx: ProbeContext) -> u32 {
    let thread = Thread::current();
    // What the begin has kept there: not zero where it was inside of another section.
    let flags = ctx.arg::<u64>(0).and_then(|flags| kernel::read::<u64>(flags, 0));
    if present(layout!(task_in_memstall)) && flags != Some(0) {
        return 0;
    }
    // Only those that would have been followed are missed.
    if find(thread.tid).is_none() && (thread.task.is_kernel_thread() || !thread.passes()) {
        return 0;
    }
    leave(thread, mechanism::SCOPE, now());
    0
}

#[inline(always)]
fn shrinker_starts(event: &impl Event) {
    let task = Task::current();
    let (_, tid) = task.ids();
    if let Some(scope) = find(tid) {
        charge_event(scope, task, now());
        scope.shrinker = event.scan_objects().unwrap_or(0);
    }
}

#[inline(always)]
fn shrinker_ends(_event: &impl Event) {
    let task = Task::current();
    let (_, tid) = task.ids();
    if let Some(scope) = find(tid) {
        charge_event(scope, task, now());
        scope.shrinker = 0;
    }
}

/// The event comes after the sleep.
#[inline(always)]
fn was_throttled(event: &impl Event) {
    let fields = event.throttled_fields();
    if let Some(delayed_us) = event.int(fields.delayed)
        && let Some(reason) = event.int(fields.reason)
    {
        throttle(delayed_us, part::THROTTLED + event.throttled_reason(reason) as usize);
    }
}

#[inline(always)]
fn was_congested(ctx: &RawTracePointContext) {
    // `(unsigned int usec_timeout, unsigned int usec_delayed)`.
    if let Some(delayed_us) = kernel::arg(ctx, 1)
        // It need not sleep.
        && delayed_us as u32 != 0
    {
        throttle(delayed_us as u32, part::CONGESTED);
    }
}

/// Takes the thread's last sleep for what it was: throttling.
#[inline(always)]
fn throttle(delayed_us: u32, to: usize) {
    let task = Task::current();
    let (_, tid) = task.ids();
    let Some(scope) = find(tid) else { return };
    charge(scope, task, now());
    let most_ns = u64::from(delayed_us).wrapping_mul(1000).wrapping_add(JIFFY_NS);
    let slept_ns = scope.blocked_ns.min(most_ns);
    scope.blocked_ns = 0;
    let from = off_part(scope);
    if scope.shrinker == 0 {
        take(&mut scope.parts, from, to, slept_ns);
    }
}

/// Moves time from one part to another, as far as there is any.
#[inline(always)]
fn take(parts: &mut Parts, from: usize, to: usize, ns: u64) {
    let Some(from) = parts.ns.get_mut(from) else { return };
    let ns = ns.min(*from);
    *from = from.wrapping_sub(ns);
    if let Some(to) = parts.ns.get_mut(to) {
        *to = to.wrapping_add(ns);
    }
}

#[inline(always)]
fn find(tid: u32) -> Option<&'static mut Scope> {
    // SAFETY: the value is there as long as the map is. Only the thread itself and the scheduler, while
    // that does not run, look at it.
    SCOPES.get_ptr_mut(tid).map(|scope| unsafe { &mut *scope })
}

#[inline(always)]
fn forget(tid: u32) {
    // Should it fail, there was none.
    let _gone: Result<(), i32> = SCOPES.remove(tid);
}

/// Out of line, as the three mechanisms' probes would hold it twice each.
#[inline(never)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "an empty scope by value would be put on the stack, which has no room for it"
)]
fn begin_or_nest(tid: u32, section: u32, now: u64, run_delay_ns: u64) {
    let task = Task::current();
    let bit = 1 << section;
    if let Some(scope) = find(tid)
        // Else the end of that one was not seen.
        && scope.sections & bit == 0
    {
        charge_event(scope, task, now);
        if section == mechanism::DIRECT && scope.rounds == 0 {
            // Between the two the kernel does nothing but `throttle_direct_reclaim()`.
            take(&mut scope.parts, part::BLOCKED, part::PFMEMALLOC, u64::MAX);
        }
        scope.sections |= bit;
        return;
    }
    if SCOPES.insert(tid, &EMPTY, 0).is_err() {
        return count(counter::TABLE_FULL);
    }
    if let Some(scope) = find(tid) {
        scope.start_ns = now;
        scope.charged_ns = now;
        scope.run_delay_ns = task.run_delay_ns();
        scope.sections = bit;
        // A newer kernel may preempt a probe, here before the scheduler's could find the scope.
        let waited_ns = scope.run_delay_ns.wrapping_sub(run_delay_ns);
        if waited_ns != 0 && off_part(scope) == part::BLOCKED {
            spend(scope, part::WAITING, now.wrapping_add(waited_ns).min(self::now()));
        }
    }
}

/// The scope, if that was its last section.
#[inline(always)]
fn leave_section(tid: u32, task: Task, section: u32, now: u64) -> Option<&'static mut Scope> {
    let bit = 1 << section;
    let Some(scope) = find(tid) else {
        count(counter::END_WITHOUT_BEGIN);
        return None;
    };
    if scope.sections & bit == 0 {
        return None;
    }
    charge_event(scope, task, now);
    scope.sections &= !bit;
    if section == mechanism::SCOPE && scope.callers[0] != 0 {
        // It was the first. What is still in it has ended unseen.
        scope.sections = 0;
    }
    if section != mechanism::SCOPE {
        scope.rounds = scope.rounds.wrapping_add(1);
    }
    (scope.sections == 0).then_some(scope)
}

/// Charges the time up to an event that is none of the scheduler's.
#[inline(always)]
fn charge_event(scope: &mut Scope, task: Task, now: u64) {
    charge(scope, task, now);
    scope.blocked_ns = 0;
}

/// Charges the time up to `now`, in which the thread was on the CPU, and tells what it was off for
/// before: the scheduler has said by now how long it waited for a CPU.
#[inline(always)]
fn charge(scope: &mut Scope, task: Task, now: u64) {
    if scope.is_off != 0 {
        // Its return was not seen.
        back_on_cpu(scope, now);
    }
    let run_delay_ns = task.run_delay_ns();
    let delay_ns = run_delay_ns.wrapping_sub(scope.run_delay_ns);
    let delay_ns = delay_ns.saturating_sub(scope.preempted_ns);
    let waited_ns = delay_ns.min(scope.unsettled_ns);
    scope.run_delay_ns = run_delay_ns;
    scope.preempted_ns = 0;
    if scope.unsettled_ns != 0 {
        scope.blocked_ns = scope.unsettled_ns.wrapping_sub(waited_ns);
        scope.unsettled_ns = 0;
    }
    if scope.shrinker == 0 && off_part(scope) == part::BLOCKED {
        take(&mut scope.parts, part::BLOCKED, part::WAITING, waited_ns);
        // Preempted as soon as the probe was over, before the kernel has marked the thread as stalled.
        let unseen_ns = delay_ns.wrapping_sub(waited_ns);
        if unseen_ns != 0 {
            spend(scope, part::WAITING, scope.charged_ns.wrapping_add(unseen_ns).min(now));
        }
    }
    spend(scope, on_part(scope), now);
}

/// Charges the time for which the thread was off the CPU.
#[inline(always)]
fn back_on_cpu(scope: &mut Scope, now: u64) {
    let is_preempted = scope.is_off == off::PREEMPTED;
    scope.is_off = 0;
    match off_part(scope) {
        // The scheduler's own count lacks what it took to choose who runs next.
        part::BLOCKED if is_preempted => {
            let waited_ns = now.saturating_sub(scope.charged_ns);
            scope.preempted_ns = scope.preempted_ns.wrapping_add(waited_ns);
            spend(scope, part::WAITING, now);
        }
        part => {
            scope.unsettled_ns = now.saturating_sub(scope.charged_ns);
            spend(scope, part, now);
        }
    }
}

/// Shrinkers and compaction keep what they are off the CPU for.
#[inline(always)]
fn spend(scope: &mut Scope, to: usize, now: u64) {
    // Where the probe was preempted since it looked at the clock, the scheduler has charged more.
    let Some(ns) = now.checked_sub(scope.charged_ns) else { return };
    scope.charged_ns = now;
    let shrinker = scope.shrinker;
    if shrinker != 0 {
        for slot in 0..SHRINKERS {
            let slot = &mut scope.parts.shrinkers[slot];
            if slot.scan_objects == 0 {
                slot.scan_objects = shrinker;
            }
            if slot.scan_objects == shrinker {
                slot.ns = slot.ns.wrapping_add(ns);
                return;
            }
        }
        scope.parts.ns[part::SHRINKERS] = scope.parts.ns[part::SHRINKERS].wrapping_add(ns);
    } else if let Some(part) = scope.parts.ns.get_mut(to) {
        *part = part.wrapping_add(ns);
    }
}

const COMPACTION: u32 = 1 << mechanism::COMPACTION;
const MEMSTALL: u32 = 1 << mechanism::SCOPE;

/// The part of a thread on the CPU that is in no shrinker.
#[inline(always)]
fn on_part(scope: &Scope) -> usize {
    match scope.sections {
        sections if sections & COMPACTION != 0 => part::COMPACTION,
        sections if sections & !MEMSTALL != 0 => part::SCAN,
        _ => part::OTHER,
    }
}

/// The same of one off the CPU.
#[inline(always)]
fn off_part(scope: &Scope) -> usize {
    if scope.sections & COMPACTION != 0 { part::COMPACTION } else { part::BLOCKED }
}

/// Words of all parts.
const PARTS_WORDS: usize = size_of::<Parts>() / size_of::<u64>();

/// Delivers a scope that has ended, and not for long as it stands there.
#[inline(always)]
fn deliver(thread: Thread, scope: &Scope) {
    deliver_in_place(|place: *mut record::Scope| {
        let duration_ns = scope.charged_ns.wrapping_sub(scope.start_ns);
        let mut stall = thread.stall(scope.start_ns, duration_ns, mechanism::SCOPE);
        let mut cgroup_id = 0;
        if wanted(wanted::CGROUP)
            && let Some(id) = kernel::payer_id()
        {
            cgroup_id = id;
            stall.known |= known::CGROUP;
        }
        if scope.callers[0] != 0 {
            stall.known |= known::MEMSTALL;
        }
        // SAFETY: only addresses of parts of the place are taken, here and below.
        let to = unsafe { &raw mut (*place).stall };
        // SAFETY: the place has room for it, as for the others below.
        unsafe { to.write(stall) };
        // SAFETY: as above.
        let to = unsafe { &raw mut (*place).cgroup_id };
        // SAFETY: as above.
        unsafe { to.write(cgroup_id) };
        // SAFETY: as above.
        let to = unsafe { &raw mut (*place).callers };
        // SAFETY: as above.
        unsafe { to.write(scope.callers) };
        // SAFETY: as above.
        let to = unsafe { &raw mut (*place).parts }.cast::<u64>();
        let from = (&raw const scope.parts).cast::<u64>();
        for word in 0..PARTS_WORDS {
            // SAFETY: it is a word of `Parts`; volatile, or the compiler would call a function for all.
            let ns = unsafe { from.wrapping_add(word).read_volatile() };
            // SAFETY: likewise.
            unsafe { to.wrapping_add(word).write_volatile(ns) };
        }
    });
}
