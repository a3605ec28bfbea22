//! What a tracepoint tells: a raw one in its arguments, a classic one in a record.

use aya_ebpf::{
    EbpfContext,
    programs::{RawTracePointContext, TracePointContext},
};
use memtrace_common::layout::{IsolateFields, ReclaimFields};

use crate::{kernel, settings::layout};

/// An event of a tracepoint. Fields that this kernel's does not have are `None`.
pub trait Event: EbpfContext {
    /// Where it has the fields of this mechanism's tracepoints.
    fn reclaim_fields(&self, mechanism: u32) -> ReclaimFields;

    /// Where it has the fields of `mm_vmscan_lru_isolate`.
    fn isolate_fields(&self) -> IsolateFields;

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
