//! The kinds of stalls, over all mechanisms: what `memtrace stalls` watches, and which of them a stall
//! was of.

use crate::stall::{Cause, Detail, Limit, ReclaimKind, Stall};

/// What held a thread up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Direct reclaim: an allocation found no free page.
    Direct,
    /// Reclaim of a cgroup at its limit: memory.max, or v1's.
    MemcgMax,
    /// Reclaim of a cgroup above its memory.high.
    MemcgHigh,
    /// Soft-limit reclaim (cgroup v1).
    Softlimit,
    /// Reclaim of a NUMA node's own pages (`vm.zone_reclaim_mode`).
    Node,
    /// A write to memory.reclaim.
    Proactive,
    /// Compaction that an allocation had to wait for.
    Compaction,
    /// Compaction for any other cause: kcompactd, proactive, a write to `vm.compact_memory`.
    Background,
    /// Asleep in `reclaim_throttle()`, before 5.16 in `congestion_wait()`: a part of any reclaim.
    Throttled,
    /// The choice of a process to be killed.
    Oom,
    /// The sleep that memory.high imposes on its way back to user space.
    Penalty,
    /// Asleep in `throttle_direct_reclaim()`: a part of direct reclaim, before it can begin.
    Pfmemalloc,
    /// Waiting for pages from swap.
    Swapin,
    /// Waiting for pages of files that had been in memory shortly before.
    Refault,
    /// A memstall section of which nothing more is known.
    Memstall,
}

impl Kind {
    /// Those that can be watched and chosen.
    pub const ALL: [Self; 14] = [
        Self::Direct,
        Self::MemcgMax,
        Self::MemcgHigh,
        Self::Softlimit,
        Self::Node,
        Self::Proactive,
        Self::Compaction,
        Self::Background,
        Self::Throttled,
        Self::Oom,
        Self::Penalty,
        Self::Pfmemalloc,
        Self::Swapin,
        Self::Refault,
    ];

    /// Those for which a function of the kernel has to be probed, as it has no tracepoint.
    pub const OF_MEMSTALL: [Self; 4] =
        [Self::Penalty, Self::Pfmemalloc, Self::Swapin, Self::Refault];

    /// Number of kinds.
    pub const COUNT: usize = Self::ALL.len() + 1;

    /// Its name in options, columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::MemcgMax => "memcg-max",
            Self::MemcgHigh => "memcg-high",
            Self::Softlimit => "softlimit",
            Self::Node => "node",
            Self::Proactive => "proactive",
            Self::Compaction => "compaction",
            Self::Background => "background",
            Self::Throttled => "throttled",
            Self::Oom => "oom",
            Self::Penalty => "penalty",
            Self::Pfmemalloc => "pfmemalloc",
            Self::Swapin => "swapin",
            Self::Refault => "refault",
            Self::Memstall => "memstall",
        }
    }

    /// The [`ReclaimKind`] that has the kind, by name.
    #[must_use]
    pub(crate) fn reclaim_name(self) -> Option<&'static str> {
        let kind = match self {
            Self::Direct => ReclaimKind::Direct,
            Self::MemcgMax | Self::MemcgHigh => ReclaimKind::Memcg,
            Self::Softlimit => ReclaimKind::Softlimit,
            Self::Node => ReclaimKind::Node,
            Self::Proactive => ReclaimKind::Proactive,
            _ => return None,
        };
        Some(kind.name())
    }

    /// The kind of a reclaim or a compaction.
    #[must_use]
    pub fn of(stall: &Stall) -> Self {
        match &stall.detail {
            Detail::Reclaim(reclaim) => match reclaim.kind {
                ReclaimKind::Direct => Self::Direct,
                ReclaimKind::Memcg if reclaim.limit == Some(Limit::High) => Self::MemcgHigh,
                ReclaimKind::Memcg => Self::MemcgMax,
                ReclaimKind::Softlimit => Self::Softlimit,
                ReclaimKind::Node => Self::Node,
                ReclaimKind::Proactive => Self::Proactive,
            },
            Detail::Compaction(compaction) => Self::of_compaction(compaction.cause),
        }
    }

    /// The kind of compaction for that cause.
    #[must_use]
    pub fn of_compaction(cause: Cause) -> Self {
        match cause {
            Cause::Direct => Self::Compaction,
            Cause::Kcompactd | Cause::Proactive | Cause::Manual | Cause::Other => Self::Background,
        }
    }

    /// The kind of a memstall section without any reclaim or compaction, by the functions that lead to
    /// it, innermost first. Where the compiler made parts of a function they have suffixes.
    pub fn of_functions<'a>(functions: impl IntoIterator<Item = &'a str>) -> Self {
        // What the kernel inlines leaves its caller's name: of the two memstall sections in
        // `__alloc_pages_slowpath()` that of compaction often ends before it begins, as compaction is
        // deferred or no zone suits, that of reclaim only where a signal kills a throttled thread.
        const KNOWN: [(&str, Kind); 13] = [
            ("mem_cgroup_handle_over_high", Kind::Penalty),
            ("__mem_cgroup_handle_over_high", Kind::Penalty),
            ("__perform_reclaim", Kind::Pfmemalloc),
            ("__alloc_pages_direct_compact", Kind::Compaction),
            ("__alloc_pages_slowpath", Kind::Compaction),
            ("swap_readpage", Kind::Swapin),
            ("swap_read_folio", Kind::Swapin),
            ("do_swap_page", Kind::Swapin),
            ("wait_on_page_bit_common", Kind::Refault),
            ("folio_wait_bit_common", Kind::Refault),
            ("filemap_read_folio", Kind::Refault),
            ("read_pages", Kind::Refault),
            ("submit_bio", Kind::Refault),
        ];
        let functions = functions.into_iter();
        let functions: Vec<_> =
            functions.map(|function| function.split('.').next().unwrap_or(function)).collect();
        KNOWN
            .iter()
            .find(|(name, _)| functions.contains(name))
            .map_or(Self::Memstall, |(_, kind)| *kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_told_apart_by_who_began_them() {
        for (functions, kind) in [
            (&["mem_cgroup_handle_over_high", "resume_user_mode_work"][..], Kind::Penalty),
            (&["psi_inlined", "__mem_cgroup_handle_over_high.constprop.0"], Kind::Penalty),
            (&["folio_wait_bit_common", "filemap_fault"], Kind::Refault),
            (&["__alloc_pages_slowpath.constprop.0", "__alloc_pages"], Kind::Compaction),
            (&["swap_read_folio", "do_swap_page"], Kind::Swapin),
            (&["folio_wait_bit_common", "__folio_lock_or_retry", "do_swap_page"], Kind::Swapin),
            (&["something_else"], Kind::Memstall),
            (&[], Kind::Memstall),
        ] {
            assert_eq!(Kind::of_functions(functions.iter().copied()), kind, "{functions:?}");
        }
    }

    #[test]
    fn names_differ() {
        let names: std::collections::BTreeSet<_> =
            Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
