//! Adding in one step, as other probes may come in between on other CPUs and, where tracepoints can be
//! preempted, on the same one. For this target Rust has no atomic types, and the kernel no other
//! atomic operation before 5.12.

/// Adds to a number in a map.
///
/// # Safety
/// `number` is a value, or a part of one, of a map.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn add(number: *mut u64, what: i64) {
    // SAFETY: the value is there as long as the map is, and so as the probe.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({number} + 0) += {what}",
            number = in(reg) number,
            what = in(reg) what,
            options(nostack),
        );
    }
}

/// Adds to a number in a map.
///
/// # Safety
/// As of [`add`].
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn add_u32(number: *mut u32, what: i32) {
    // SAFETY: as above. The operation takes the low half of the register.
    unsafe {
        core::arch::asm!(
            "lock *(u32 *)({number} + 0) += {what}",
            number = in(reg) number,
            what = in(reg) i64::from(what),
            options(nostack),
        );
    }
}

/// For the lints, which see this crate as a program of the host.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn add(number: *mut u64, what: i64) {
    // SAFETY: as above.
    unsafe { *number = (*number).wrapping_add_signed(what) };
}

/// For the lints, too.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn add_u32(number: *mut u32, what: i32) {
    // SAFETY: as above.
    unsafe { *number = (*number).wrapping_add_signed(what) };
}
