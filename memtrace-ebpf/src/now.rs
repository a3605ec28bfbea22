//! `memtrace now`: an iterator that looks at every thread and tells of those that may be stalled.
//!
//! An object of its own, so that it needs none of the probes' maps. The kernel runs it for one thread
//! after the other while user space reads. The thread goes on meanwhile, and what is read of its stack
//! may be gone: the last thing read is therefore whether it still does what it did at first, and user
//! space checks the range of every value.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "a call costs more than what it calls, and old verifiers do not follow all of them"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the kernel passes every argument in a word of 64 bits, whatever its type"
)]

#[expect(dead_code, reason = "the probes use the rest")]
mod kernel;
#[expect(dead_code, reason = "the probes use the rest")]
mod settings;

use core::{ffi::c_void, mem::offset_of, ptr};

use aya_ebpf::{
    helpers::generated::{bpf_get_task_stack, bpf_seq_write},
    macros::map,
    maps::Array,
};
use memtrace_common::{
    config::filter,
    now::{Record, Thread, ThreadLayout, activity, mark},
    record::{STACK_DEPTH, known},
};

use kernel::{memcg_id, read};
use settings::{config, layout, present};

/// Read through [`offset`].
#[unsafe(no_mangle)]
pub static NOW: ThreadLayout = ThreadLayout::ABSENT;

/// The record in the making, which is too large for the stack. Only one thread reads the iterator.
#[map]
static RECORD: Array<Record> = Array::with_max_entries(1, 0);

/// `TASK_UNINTERRUPTIBLE` in include/linux/sched.h, also of threads that only a kill wakes up.
const UNINTERRUPTIBLE: u32 = 0x2;
/// `TASK_NOLOAD`, of threads of the kernel that are idle.
const NOLOAD: u32 = 0x400;
/// No kernel stack is larger.
const LARGEST_STACK: u64 = 64 << 10;
/// Bytes of frames in a record.
const FRAMES: u32 = (STACK_DEPTH * size_of::<u64>()) as u32;

/// Reads a field of [`NOW`] as a constant of the verifier.
macro_rules! offset {
    ($field:ident) => {{
        // SAFETY: the static is initialised and valid for reads; volatile because user space replaces its
        // value after compilation.
        unsafe { ptr::read_volatile(&raw const NOW.$field) }
    }};
}

/// Words of `struct bpf_iter__task`: the iterator's own structure, and the thread, null when all have been
/// looked at.
const META: usize = 0;
const TASK: usize = 1;
/// Words of `struct bpf_iter_meta`: where to write, and how many threads have been looked at.
const SEQ: usize = 0;
const SEQ_NUM: usize = 2;

/// Reads a word of a structure that the verifier knows, where a pointer stays one that it knows as well.
#[inline(always)]
fn word<T: Copy>(of: *const c_void, at: usize) -> T {
    // SAFETY: the kernel passes structures of this shape; every `T` used here is a number or a pointer.
    unsafe { of.cast::<T>().wrapping_add(at).read_volatile() }
}

#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
extern "C" fn now(ctx: *const c_void) -> i32 {
    let meta: *const c_void = word(ctx, META);
    let task: *mut c_void = word(ctx, TASK);
    let seq: *mut c_void = word(meta, SEQ);
    let Some(record) = RECORD.get_ptr_mut(0) else { return 0 };
    // SAFETY: the entry lives as long as the map, and no one else uses it.
    let record = unsafe { &mut *record };
    let mut len = size_of::<Thread>() as u32;
    if task.is_null() {
        clear(&mut record.thread);
        record.thread.activity = activity::END;
        record.thread.threads = word(meta, SEQ_NUM);
    } else if look_at(task.addr() as u64, &mut record.thread) {
        // SAFETY: the task is the one that the kernel has passed, and there is room for so many bytes.
        let stack =
            unsafe { bpf_get_task_stack(task.cast(), (&raw mut record.frames).cast(), FRAMES, 0) };
        record.thread.stack = stack as i32;
        if (0..=i64::from(FRAMES)).contains(&stack) {
            len += stack as u32;
        }
    } else {
        return 0;
    }
    // Where there is no room for it the kernel comes back for this thread.
    // SAFETY: so many bytes of the record are set, as the entry began as zeros.
    let _written = unsafe { bpf_seq_write(seq.cast(), ptr::from_ref(record).cast(), len) };
    0
}

/// Makes a new record of the one before; by words, as the compiler would do it byte by byte.
#[inline(always)]
fn clear(thread: &mut Thread) {
    let words = ptr::from_mut(thread).cast::<u64>();
    for at in 0..size_of::<Thread>() / size_of::<u64>() {
        // SAFETY: the word lies within the record, of which any bytes are a valid one.
        unsafe { words.wrapping_add(at).write_volatile(0) };
    }
}

/// Whether a thread may be stalled, and with what.
#[inline(always)]
fn look_at(task: u64, thread: &mut Thread) -> bool {
    let state: u32 = read(task, offset!(task_state)).unwrap_or(0);
    let memstall: u8 = read(task, offset!(task_in_memstall)).unwrap_or(0);
    let memstall = u32::from(memstall) & offset!(task_in_memstall_mask) != 0;
    let reclaim_state: u64 = read(task, layout!(task_reclaim_state)).unwrap_or(0);
    let capture: u64 = read(task, offset!(task_capture_control)).unwrap_or(0);
    let waits = state & (UNINTERRUPTIBLE | NOLOAD) == UNINTERRUPTIBLE;
    if reclaim_state == 0 && capture == 0 && !waits && !memstall {
        return false;
    }
    if !passes(task) {
        return false;
    }
    clear(thread);
    thread.state = state;
    thread.marks = if memstall { mark::MEMSTALL } else { 0 };
    who(task, thread);
    if reclaim_state != 0 {
        thread.activity = activity::RECLAIM;
        if reclaim(task, reclaim_state, thread).is_none() {
            thread.marks |= mark::TORN;
        }
    } else if capture != 0 {
        thread.activity = activity::COMPACTION;
        if compaction(task, capture, thread).is_none() {
            thread.marks |= mark::TORN;
        }
    } else {
        thread.activity = activity::WAIT;
    }
    true
}

/// The filter on cgroups. User space has the others, as there are few threads left.
#[inline(always)]
fn passes(task: u64) -> bool {
    let filters = config!(filters);
    if filters & filter::CGROUP_V2 != 0 {
        return kernel::is_in_cgroup(task, config!(cgroup), false);
    }
    if filters & filter::CGROUP_V1 != 0 {
        return kernel::is_in_cgroup(task, config!(cgroup), true);
    }
    true
}

#[inline(always)]
fn who(task: u64, thread: &mut Thread) {
    thread.pid = read(task, layout!(task_tgid)).unwrap_or(0);
    thread.tid = read(task, layout!(task_pid)).unwrap_or(0);
    thread.comm = read(task, layout!(task_comm)).unwrap_or_default();
    thread.flags = read(task, offset!(task_flags)).unwrap_or(0);
    let cred = read(task, offset!(task_real_cred)).unwrap_or(0);
    thread.uid = read(cred, offset!(cred_uid)).unwrap_or(0);
    if let Some(id) = kernel::payer_id_of(task) {
        thread.cgroup_id = id;
        thread.known |= known::CGROUP;
    }
}

/// Whether something lies on the thread's own kernel stack, where all that is read here does.
#[inline(always)]
fn is_on_stack(task: u64, address: u64) -> bool {
    let stack: u64 = read(task, offset!(task_stack)).unwrap_or(0);
    address.wrapping_sub(stack) < LARGEST_STACK
}

/// Fills in what the thread reclaims for; nothing where it is over.
#[inline(always)]
fn reclaim(task: u64, reclaim_state: u64, thread: &mut Thread) -> Option<()> {
    let control = reclaim_state.wrapping_sub(u64::from(layout!(scan_control_reclaim_state)));
    if !present(layout!(scan_control_reclaim_state)) || !is_on_stack(task, control) {
        return None;
    }
    thread.control = control;
    let target = read(control, layout!(scan_control_target))?;
    thread.order = i32::from(read::<i8>(control, offset!(scan_control_order))?);
    thread.gfp = read(control, offset!(scan_control_gfp))?;
    thread.priority = i32::from(read::<i8>(control, layout!(scan_control_priority))?);
    thread.nr_scanned = read(control, layout!(scan_control_nr_scanned))?;
    thread.nr_reclaimed = read(control, layout!(scan_control_nr_reclaimed))?;
    thread.known |= known::ORDER | known::GFP | known::PRIORITY | known::SCANNED;
    if let Some(byte) = read::<u8>(control, layout!(scan_control_proactive))
        && u32::from(byte) & layout!(scan_control_proactive_mask) != 0
    {
        thread.known |= known::PROACTIVE;
    }
    if present(layout!(mem_cgroup_css)) {
        thread.target_cgroup_id = memcg_id(target)?;
        thread.known |= known::TARGET;
    }
    (read::<u64>(task, layout!(task_reclaim_state))? == reclaim_state).then_some(())
}

/// Fills in what the thread compacts; nothing where it is over.
#[inline(always)]
fn compaction(task: u64, capture: u64, thread: &mut Thread) -> Option<()> {
    let control: u64 = read(capture, offset!(capture_control_cc))?;
    if !is_on_stack(task, capture) || !is_on_stack(task, control) {
        return None;
    }
    thread.control = control;
    thread.order = read(control, layout!(compact_control_order))?;
    thread.gfp = read(control, layout!(compact_control_gfp))?;
    thread.mode = read(control, layout!(compact_control_mode))?;
    thread.nr_scanned = read(control, layout!(compact_control_migrate_scanned))?;
    thread.free_scanned = read(control, layout!(compact_control_free_scanned))?;
    let zone = read(control, layout!(compact_control_zone))?;
    let name = read(zone, layout!(zone_name))?;
    thread.zone = read(name, 0)?;
    let node = read(zone, layout!(zone_pgdat))?;
    thread.node = read(node, layout!(pgdat_node_id))?;
    thread.known |= known::ORDER | known::GFP | known::MODE | known::COMPACT_SCANNED | known::ZONE;
    (read::<u64>(task, offset!(task_capture_control))? == capture).then_some(())
}

const _: () = assert!(offset_of!(Record, frames) == size_of::<Thread>());
const _: () = assert!(size_of::<Thread>().is_multiple_of(size_of::<u64>()));

/// The kernel gives the helpers that read its memory to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
