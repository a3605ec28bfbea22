//! The kernel side of memtrace: raw tracepoints that measure stalls and send them to user space.
//!
//! `reclaim` and `compaction` each hold the probes of one mechanism. What they share stands in
//! `settings` (what user space asked for), `kernel` (reading the kernel's structures) and `stall`
//! (filters, counters and delivery).

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![no_main]

mod compaction;
mod kernel;
mod reclaim;
mod settings;
mod stall;

/// The kernel gives the helpers that read its memory to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
