//! What user space sets before the probes are loaded. All of it is read-only to the probes and
//! constant to the verifier, which drops what is switched off.

use aya_ebpf::{macros::map, maps::HashMap};
use memtrace_common::{config::Config, layout::ABSENT};

/// Read through [`config`] and [`layout`].
#[unsafe(no_mangle)]
pub static CONFIG: Config = Config::NOTHING;

/// Processes of the filter on processes; user space sets its size.
#[map]
pub static PIDS: HashMap<u32, u8> = HashMap::with_max_entries(1, 0);
/// Threads of the filter on threads; user space sets its size.
#[map]
pub static TIDS: HashMap<u32, u8> = HashMap::with_max_entries(1, 0);

/// Reads a field of [`CONFIG`] as a constant of the verifier.
macro_rules! config {
    ($($field:tt)+) => {{
        // SAFETY: the static is initialised and valid for reads; volatile because user space
        // replaces its value after compilation.
        unsafe { core::ptr::read_volatile(&raw const crate::settings::CONFIG.$($field)+) }
    }};
}
pub(crate) use config;

/// Reads a field of the kernel's layout likewise.
macro_rules! layout {
    ($($field:tt)+) => { crate::settings::config!(layout.$($field)+) };
}
pub(crate) use layout;

/// Whether this kernel has what `offset_or_position` stands for.
#[inline(always)]
pub fn present(offset_or_position: u32) -> bool {
    offset_or_position != ABSENT
}

/// Whether any of these bits of [`memtrace_common::config::wanted`] is set.
#[inline(always)]
pub fn wanted(bits: u32) -> bool {
    config!(wanted) & bits != 0
}
