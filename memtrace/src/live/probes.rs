//! Which probes a request needs on this kernel, and what of it this kernel does not have.

use memtrace_common::layout::ABSENT;

use super::{LiveError, Request, Subject, tallies};
use crate::{
    kernel::{Kernel, tracefs},
    stall::ReclaimKind,
    symbols,
};

/// A program and the tracepoint it belongs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) program: &'static str,
    pub(super) tracepoint: &'static str,
    pub(super) kind: ProgramKind,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProgramKind {
    /// To a raw tracepoint.
    Raw,
    /// To a classic tracepoint, which all of memtrace's are of the system `vmscan`.
    Classic,
}

const fn probe(program: &'static str, tracepoint: &'static str) -> Probe {
    Probe { program, tracepoint, kind: ProgramKind::Raw }
}

/// A tracepoint with a program of either kind.
#[derive(Clone, Copy, Debug)]
struct Either {
    raw: &'static str,
    classic: &'static str,
    tracepoint: &'static str,
}

impl Either {
    fn of(self, kind: ProgramKind) -> Probe {
        let program = match kind {
            ProgramKind::Raw => self.raw,
            ProgramKind::Classic => self.classic,
        };
        Probe { program, tracepoint: self.tracepoint, kind }
    }
}

const fn either(raw: &'static str, classic: &'static str, tracepoint: &'static str) -> Either {
    Either { raw, classic, tracepoint }
}

/// Begin and end of each kind of reclaim, by [`mechanism`](memtrace_common::record::mechanism).
const RECLAIM: [(ReclaimKind, Either, Either); 4] = [
    (
        ReclaimKind::Direct,
        either("direct_begin", "tp_direct_begin", "mm_vmscan_direct_reclaim_begin"),
        either("direct_end", "tp_direct_end", "mm_vmscan_direct_reclaim_end"),
    ),
    (
        ReclaimKind::Memcg,
        either("memcg_begin", "tp_memcg_begin", "mm_vmscan_memcg_reclaim_begin"),
        either("memcg_end", "tp_memcg_end", "mm_vmscan_memcg_reclaim_end"),
    ),
    (
        ReclaimKind::Softlimit,
        either("softlimit_begin", "tp_soft_begin", "mm_vmscan_memcg_softlimit_reclaim_begin"),
        either("softlimit_end", "tp_soft_end", "mm_vmscan_memcg_softlimit_reclaim_end"),
    ),
    (
        ReclaimKind::Node,
        either("node_begin", "tp_node_begin", "mm_vmscan_node_reclaim_begin"),
        either("node_end", "tp_node_end", "mm_vmscan_node_reclaim_end"),
    ),
];
const LRU_ISOLATE: Either = either("lru_isolate", "tp_lru_isolate", "mm_vmscan_lru_isolate");
const COMPACT_BEGIN: Probe = probe("compact_begin", "mm_compaction_begin");
const COMPACT_END: Probe = probe("compact_end", "mm_compaction_end");
/// Run after the two above, and do their work where the kernel skipped them.
const SPARE_BEGIN: Probe = probe("spare_begin", "mm_compaction_begin");
const SPARE_END: Probe = probe("spare_end", "mm_compaction_end");
/// Programs that have a spare one, with that.
pub(super) const SPARES: [(&str, &str); 2] =
    [(COMPACT_BEGIN.program, SPARE_BEGIN.program), (COMPACT_END.program, SPARE_END.program)];
const ZONE_SUITABLE: Probe = probe("zone_suitable", "mm_compaction_suitable");
const COMPACT_TRY: Probe = probe("compact_try", "mm_compaction_try_to_compact_pages");

/// Every tracepoint that a probe can be attached to.
#[must_use]
pub fn tracepoints() -> Vec<&'static str> {
    let pairs = RECLAIM.iter().flat_map(|(_, begin, end)| [begin, end]);
    let others = [COMPACT_BEGIN, COMPACT_END, ZONE_SUITABLE, COMPACT_TRY];
    pairs
        .chain([&LRU_ISOLATE])
        .map(|probe| probe.tracepoint)
        .chain(others.iter().map(|probe| probe.tracepoint))
        .collect()
}

/// What memory limits need and the kernel's command line can take away.
const NO_CONTROLLER: &str = "memory controller, which is disabled by cgroup_disable=memory";

/// Which probes to attach, in which order, and what this kernel does not have of what was asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In the order in which they are attached: ends first, so that every begin finds its end.
    pub(super) probes: Vec<Probe>,
    pub(super) unavailable: Vec<String>,
    /// Whether the probes can keep histograms: no two may write to the same part of one at once, and
    /// taking them must not get in the way of any. The kernel leaves classic ones out on a CPU on which
    /// a map's elements are looked up or removed just then (`bpf_disable_instrumentation()`).
    pub(super) counts: bool,
}

impl Plan {
    pub(super) fn make(request: &Request, kernel: &Kernel) -> Result<Self, LiveError> {
        let mut plan = Self::default();
        match &request.subject {
            Subject::Reclaim(kinds) => plan.reclaim(kinds, request.extended, kernel)?,
            Subject::Compaction(_) => plan.compaction(request.extended, kernel)?,
        }
        plan.counts = !kernel.has_preemptible_tracepoints && tallies::can_be_taken();
        if request.cgroups {
            plan.lacks(kernel.layout.kernfs_node_id, "cgroups", "cgroups are not in its BTF");
        }
        if request.stacks && !symbols::are_visible() {
            plan.unavailable.push(
                "names of functions (kernel.kptr_restrict or privileges hide /proc/kallsyms)"
                    .to_owned(),
            );
        }
        if request.user_stacks
            && let Err(why) = symbols::can_name_programs()
        {
            plan.unavailable.push(format!("names of functions in user space ({why})"));
        }
        if request.extended && kernel.gfp.0.is_empty() {
            let reason = "names of gfp flags (no tracefs that may be read, none in its BTF)";
            plan.unavailable.push(reason.to_owned());
        }
        Ok(plan)
    }

    fn reclaim(
        &mut self,
        kinds: &[ReclaimKind],
        extended: bool,
        kernel: &Kernel,
    ) -> Result<(), LiveError> {
        let layout = &kernel.layout;
        let program = self.program_kind(kernel.has_preemptible_tracepoints, tracefs::is_mounted());
        let (fields, isolate) = match program {
            ProgramKind::Raw => (&layout.reclaim_args, layout.isolate_args),
            ProgramKind::Classic => (&layout.reclaim_records, layout.isolate_record),
        };
        let has_proactive = layout.scan_control_proactive != ABSENT && kernel.limits_memory;
        let mut missing = Vec::new();
        let mut begins = Vec::new();
        for (number, (kind, begin, end)) in RECLAIM.into_iter().enumerate() {
            let for_proactive = kind == ReclaimKind::Memcg
                && kinds.contains(&ReclaimKind::Proactive)
                && has_proactive;
            if !(kinds.contains(&kind) || for_proactive) {
                continue;
            }
            if !kernel.limits_memory && matches!(kind, ReclaimKind::Memcg | ReclaimKind::Softlimit)
            {
                missing.push((kind.name(), NO_CONTROLLER.to_owned()));
                continue;
            }
            let fields = fields[number];
            let (begin, end) = (begin.of(program), end.of(program));
            let absent =
                [begin, end].into_iter().find(|probe| !kernel.has_tracepoint(probe.tracepoint));
            if let Some(probe) = absent {
                missing.push((kind.name(), format!("tracepoint {}", probe.tracepoint)));
            } else if [fields.order, fields.gfp, fields.end_reclaimed].contains(&ABSENT) {
                let what = format!("tracepoint {} with known fields", begin.tracepoint);
                missing.push((kind.name(), what));
            } else {
                self.probes.push(end);
                begins.push(begin);
            }
        }
        if kinds.contains(&ReclaimKind::Proactive) && !has_proactive {
            let what = if kernel.limits_memory { "scan_control.proactive" } else { NO_CONTROLLER };
            missing.push((ReclaimKind::Proactive.name(), what.to_owned()));
        }
        if begins.is_empty() {
            let (kinds, what): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
            return Err(LiveError::NoTracepoint {
                what: format!("{} reclaim", kinds.join(", ")),
                missing: what.join(", "),
            });
        }
        for (kind, what) in missing {
            self.unavailable.push(format!("{kind} reclaim (no {what})"));
        }
        if extended {
            self.lacks(layout.scan_control_priority, "priority", "no scan_control.priority");
            self.lacks(
                layout.scan_control_target,
                "target cgroup",
                "no scan_control.target_mem_cgroup",
            );
            if !kernel.tells_free_pages {
                self.unavailable.push("free memory (no vm_zone_stat in kallsyms)".to_owned());
            }
            if !kernel.has_tracepoint(LRU_ISOLATE.tracepoint) {
                self.unavailable
                    .push("pages scanned (no tracepoint mm_vmscan_lru_isolate)".to_owned());
            } else if isolate.scanned == ABSENT {
                self.unavailable
                    .push("pages scanned (mm_vmscan_lru_isolate has unknown fields)".to_owned());
            } else {
                self.probes.push(LRU_ISOLATE.of(program));
            }
        }
        self.probes.extend(begins);
        Ok(())
    }

    /// Raw tracepoints cost less, but where a thread can be preempted in the midst of one, the kernel
    /// skips it for all other threads of that CPU until the thread goes on.
    fn program_kind(&mut self, are_preemptible: bool, has_tracefs: bool) -> ProgramKind {
        match (are_preemptible, has_tracefs) {
            (false, _) => ProgramKind::Raw,
            (true, true) => ProgramKind::Classic,
            (true, false) => {
                self.unavailable.push(
                    "some of the stalls of threads that preempt one another (no tracefs at /sys/kernel/tracing that may be read)"
                        .to_owned(),
                );
                ProgramKind::Raw
            }
        }
    }

    fn compaction(&mut self, extended: bool, kernel: &Kernel) -> Result<(), LiveError> {
        let layout = &kernel.layout;
        for probe in [COMPACT_BEGIN, COMPACT_END] {
            if !kernel.has_tracepoint(probe.tracepoint) {
                return Err(LiveError::NoTracepoint {
                    what: "compaction".to_owned(),
                    missing: format!(
                        "tracepoint {} (it needs CONFIG_COMPACTION=y)",
                        probe.tracepoint
                    ),
                });
            }
        }
        if layout.compaction_args.end_status == ABSENT {
            return Err(LiveError::NoTracepoint {
                what: "compaction".to_owned(),
                missing: format!("tracepoint {} with known arguments", COMPACT_END.tracepoint),
            });
        }
        self.probes.push(COMPACT_END);
        if layout.compaction_args.begin_cc == ABSENT {
            for (probe, what) in
                [(ZONE_SUITABLE, "zone, order, mode and cause"), (COMPACT_TRY, "gfp flags")]
            {
                if kernel.has_tracepoint(probe.tracepoint) {
                    self.probes.push(probe);
                } else {
                    self.unavailable.push(format!("{what} (no tracepoint {})", probe.tracepoint));
                }
            }
        }
        if extended {
            self.lacks(
                layout.compaction_args.end_cc,
                "pages scanned",
                "before 5.18 mm_compaction_end does not pass the compact_control",
            );
            self.lacks(layout.zone_watermark, "watermarks", "no zone._watermark");
            self.lacks(layout.zone_nr_free, "fragmentation index", "no zone.free_area");
        }
        if kernel.has_preemptible_tracepoints {
            self.probes.push(SPARE_END);
        }
        self.probes.push(COMPACT_BEGIN);
        if kernel.has_preemptible_tracepoints {
            self.probes.push(SPARE_BEGIN);
        }
        Ok(())
    }

    fn lacks(&mut self, offset: u32, feature: &str, reason: &str) {
        if offset == ABSENT {
            self.unavailable.push(format!("{feature} ({reason})"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracepoints_that_can_be_preempted_are_the_classic_ones_where_there_is_a_tracefs() {
        let cases = [
            (false, false, ProgramKind::Raw),
            (false, true, ProgramKind::Raw),
            (true, true, ProgramKind::Classic),
            (true, false, ProgramKind::Raw),
        ];
        for (are_preemptible, has_tracefs, kind) in cases {
            let case = format!("preemptible: {are_preemptible}, tracefs: {has_tracefs}");
            let mut plan = Plan::default();
            assert_eq!(plan.program_kind(are_preemptible, has_tracefs), kind, "{case}");
            let loses_some = are_preemptible && !has_tracefs;
            assert_eq!(plan.unavailable.len(), usize::from(loses_some), "{case}");
        }
    }

    #[test]
    fn programs_are_for_the_kind_of_their_tracepoint() {
        for (_, begin, end) in RECLAIM {
            for either in [begin, end, LRU_ISOLATE] {
                let [raw, classic] =
                    [ProgramKind::Raw, ProgramKind::Classic].map(|kind| either.of(kind));
                assert_eq!(raw.tracepoint, classic.tracepoint);
                assert!(!raw.program.starts_with("tp_"), "{raw:?}");
                assert!(classic.program.starts_with("tp_"), "{classic:?}");
            }
        }
    }
}
