//! The kernel side of memtrace: tracepoint programs that measure stalls and send them to user space.
//!
//! `reclaim`, `compaction` and `oom` each hold the probes of one mechanism, `scope` those that tell how a
//! stall's time was spent. What they share stands in
//! `settings` (what user space asked for), `event` (what a tracepoint tells), `kernel` (reading the
//! kernel's structures), `begun` (reclaims in progress), `tally` (histograms), `stall` (filters,
//! counters and delivery) and `atomic` (adding).

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "a call costs more than what it calls, and old verifiers do not follow all of them"
)]
#![expect(clippy::needless_pass_by_value, reason = "the macros pass the context by value")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the kernel passes every argument in a word of 64 bits, whatever its type"
)]

mod atomic;
mod begun;
mod compaction;
mod event;
mod kernel;
mod oom;
mod reclaim;
mod scope;
mod settings;
mod stall;
mod tally;

/// The kernel gives the helpers that read its memory to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
