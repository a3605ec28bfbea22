//! Slots of the per-CPU counter array `COUNTERS`: what a probe saw and could not deliver.

/// The ring buffer had no room for a finished stall.
pub const LOST: u32 = 0;
/// A stall ended that is not in the table of stalls in progress: it began before the probes were
/// attached, or is one of those counted in [`TABLE_FULL`].
pub const END_WITHOUT_BEGIN: u32 = 1;
/// A stall began and the table of stalls in progress had no room for it.
pub const TABLE_FULL: u32 = 2;
/// Number of slots.
pub const COUNT: u32 = 3;
