//! What a tracepoint tells: a raw one in its arguments, a classic one in a record.

use aya_ebpf::{
    EbpfContext,
    programs::{RawTracePointContext, TracePointContext},
};
use memtrace_common::layout::{IsolateFields, ReclaimFields, ThrottledFields};

use crate::{kernel, settings::layout};

/// An event of a tracepoint. Fields that this kernel's does not have are `None`.
pub trait Event: EbpfContext {
    /// Where it has the fields of this mechanism's tracepoints.
    fn reclaim_fields(&self, mechanism: u32) -> ReclaimFields;

    /// Where it has the fields of `mm_vmscan_lru_isolate`.
    fn isolate_fields(&self) -> IsolateFields;

    /// Where it has the fields of `mm_vmscan_throttled`.
    fn throttled_fields(&self) -> ThrottledFields;

    /// The position, from 0, of the kernel's one reason for `reason` of `mm_vmscan_throttled`.
    fn throttled_reason(&self, reason: u32) -> u32;

    /// The `scan_objects` of the shrinker that `mm_shrink_slab_start` is about.
    fn scan_objects(&self) -> Option<u64>;

    /// A field of 32 bits, or the low 32 bits of a longer one.
    fn int(&self, field: u32) -> Option<u32>;

    /// A field of 64 bits.
    fn long(&self, field: u32) -> Option<u64>;

    /// The id of the cgroup that a field stands for; 0 where it stands for none.
    fn cgroup_id(&self, field: u32) -> Option<u64>;
}

impl Event for RawTracePointContext {
    #[inline(always)]
    fn reclaim_fields(&self, mechanism: u32) -> ReclaimFields {
        layout!(reclaim_args[mechanism as usize])
    }

    #[inline(always)]
    fn isolate_fields(&self) -> IsolateFields {
        layout!(isolate_args)
    }

    #[inline(always)]
    fn throttled_fields(&self) -> ThrottledFields {
        layout!(throttled_args)
    }

    #[inline(always)]
    fn throttled_reason(&self, reason: u32) -> u32 {
        reason
    }

    #[inline(always)]
    fn scan_objects(&self) -> Option<u64> {
        kernel::read(self.long(layout!(shrink_arg))?, layout!(shrinker_scan_objects))
    }

    #[inline(always)]
    fn int(&self, field: u32) -> Option<u32> {
        self.long(field).map(|word| word as u32)
    }

    #[inline(always)]
    fn long(&self, field: u32) -> Option<u64> {
        kernel::arg(self, field)
    }

    #[inline(always)]
    fn cgroup_id(&self, field: u32) -> Option<u64> {
        kernel::memcg_id(self.long(field)?)
    }
}

impl Event for TracePointContext {
    #[inline(always)]
    fn reclaim_fields(&self, mechanism: u32) -> ReclaimFields {
        layout!(reclaim_records[mechanism as usize])
    }

    #[inline(always)]
    fn isolate_fields(&self) -> IsolateFields {
        layout!(isolate_record)
    }

    #[inline(always)]
    fn throttled_fields(&self) -> ThrottledFields {
        layout!(throttled_record)
    }

    #[inline(always)]
    fn throttled_reason(&self, reason: u32) -> u32 {
        // The record has one bit for it.
        match reason {
            1 => 0,
            2 => 1,
            4 => 2,
            _ => 3,
        }
    }

    #[inline(always)]
    fn scan_objects(&self) -> Option<u64> {
        self.long(layout!(shrink_record))
    }

    #[inline(always)]
    fn int(&self, field: u32) -> Option<u32> {
        kernel::read(self.as_ptr() as u64, field)
    }

    #[inline(always)]
    fn long(&self, field: u32) -> Option<u64> {
        kernel::read(self.as_ptr() as u64, field)
    }

    #[inline(always)]
    fn cgroup_id(&self, field: u32) -> Option<u64> {
        self.long(field)
    }
}
