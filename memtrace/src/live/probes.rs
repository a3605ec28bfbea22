//! Which probes a request needs on this kernel, and what of it this kernel does not have.

use std::path::Path;

use memtrace_common::layout::ABSENT;

use super::{LiveError, Request, Stalls, Subject, tallies};
use crate::{
    coverage::Coverage,
    kernel::{Kernel, tracefs},
    kind::Kind,
    stall::ReclaimKind,
    symbols,
};

/// A program and the tracepoint it belongs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) program: &'static str,
    /// Or a function's name.
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
    /// To the beginning of a function, which a kernel may have inlined or not let be probed. It is done
    /// without where that fails.
    Function,
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
        let program = if kind == ProgramKind::Classic { self.classic } else { self.raw };
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

const SCHED_SWITCH: Probe = probe("sched_switch", "sched_switch");
const SHRINK_START: Either = either("shrink_start", "tp_shrink_start", "mm_shrink_slab_start");
const SHRINK_END: Either = either("shrink_end", "tp_shrink_end", "mm_shrink_slab_end");
const THROTTLED: Either = either("throttled", "tp_throttled", "mm_vmscan_throttled");
/// What there was in its place before 5.16.
const CONGESTION: [Probe; 2] = [
    probe("congestion_wait", "writeback_congestion_wait"),
    probe("wait_iff_congest", "writeback_wait_iff_congested"),
];
const MARK_VICTIM: Probe = probe("mark_victim", "mark_victim");
const MEMSTALL_ENTER: Probe = Probe {
    program: "memstall_enter",
    tracepoint: "psi_memstall_enter",
    kind: ProgramKind::Function,
};
const MEMSTALL_LEAVE: Probe = Probe {
    program: "memstall_leave",
    tracepoint: "psi_memstall_leave",
    kind: ProgramKind::Function,
};

/// Every tracepoint that a probe can be attached to.
#[must_use]
pub fn tracepoints() -> Vec<&'static str> {
    let pairs = RECLAIM.iter().flat_map(|(_, begin, end)| [begin, end]);
    let others =
        [COMPACT_BEGIN, COMPACT_END, ZONE_SUITABLE, COMPACT_TRY, SCHED_SWITCH, MARK_VICTIM];
    pairs
        .chain([&LRU_ISOLATE, &SHRINK_START, &SHRINK_END, &THROTTLED])
        .map(|probe| probe.tracepoint)
        .chain(others.iter().chain(&CONGESTION).map(|probe| probe.tracepoint))
        .collect()
}

/// What there is where the kernel counts pressure.
const PRESSURE: &str = "/proc/pressure/memory";
/// Where the kernel says how to probe functions, if it lets them be probed.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";

/// What memory limits need and the kernel's command line can take away.
const NO_CONTROLLER: &str = "memory controller, which is disabled by cgroup_disable=memory";

/// Which probes to attach, in which order, and what this kernel does not have of what was asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In the order in which they are attached: ends first, so that every begin finds its end.
    pub(super) probes: Vec<Probe>,
    pub(super) unavailable: Vec<String>,
    /// Where all mechanisms are traced, which of them are.
    pub(super) coverage: Coverage,
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
            Subject::Stalls(stalls) => plan.stalls(stalls, request.extended, kernel)?,
        }
        plan.counts = !matches!(request.subject, Subject::Stalls(_))
            && !kernel.has_preemptible_tracepoints
            && tallies::can_be_taken();
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
            ProgramKind::Raw | ProgramKind::Function => (&layout.reclaim_args, layout.isolate_args),
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
            if self.coverage.is_empty() {
                self.unavailable.push(format!("{kind} reclaim (no {what})"));
            } else {
                for kind in Kind::ALL.into_iter().filter(|of| of.reclaim_name() == Some(kind)) {
                    self.coverage.lacks(kind, &format!("no {what}"));
                }
            }
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

    /// All mechanisms that this kernel has.
    fn stalls(
        &mut self,
        stalls: &Stalls,
        extended: bool,
        kernel: &Kernel,
    ) -> Result<(), LiveError> {
        self.coverage = Coverage::of(&stalls.kinds);
        if !stalls.parts {
            for kind in Kind::OF_MEMSTALL.into_iter().chain([Kind::Throttled]) {
                self.coverage.lacks(kind, "--no-parts");
            }
        }
        if stalls.parts {
            self.parts(kernel);
        }
        let layout = &kernel.layout;
        let limits = [
            layout.scan_control_target,
            layout.mem_cgroup_usage,
            layout.mem_cgroup_max,
            layout.mem_cgroup_high,
        ];
        if limits.contains(&ABSENT) {
            let lack =
                "no limits in struct mem_cgroup: what is reclaimed for it counts as memcg-max";
            self.coverage.lacks(Kind::MemcgHigh, lack);
        }
        // Close to one another, so that few stalls end before their begin can be seen.
        self.reclaim(&ReclaimKind::ALL, extended, kernel)?;
        if let Err(LiveError::NoTracepoint { missing, .. }) = self.compaction(extended, kernel) {
            for kind in [Kind::Compaction, Kind::Background] {
                self.coverage.lacks(kind, &format!("no {missing}"));
            }
        }
        if kernel.has_tracepoint(MARK_VICTIM.tracepoint) {
            self.probes.push(MARK_VICTIM);
        } else {
            self.coverage.lacks(Kind::Oom, "no tracepoint mark_victim");
        }
        if self.probes.contains(&MEMSTALL_LEAVE) {
            self.probes.push(MEMSTALL_ENTER);
        }
        Ok(())
    }

    /// What tells how time was spent. Begins and ends of scopes are those of the mechanisms.
    fn parts(&mut self, kernel: &Kernel) {
        let layout = &kernel.layout;
        let program = self.program_kind(kernel.has_preemptible_tracepoints, tracefs::is_mounted());
        if kernel.has_tracepoint(SCHED_SWITCH.tracepoint) && layout.switch_next_arg != ABSENT {
            self.probes.push(SCHED_SWITCH);
            self.lacks(
                layout.task_run_delay,
                "time waiting for a CPU, which counts as blocked",
                "no task_struct.sched_info.run_delay",
            );
        } else {
            self.unavailable.push("time off the CPU (no tracepoint sched_switch)".to_owned());
        }
        let can_tell_shrinkers = match program {
            ProgramKind::Classic => layout.shrink_record != ABSENT,
            ProgramKind::Raw | ProgramKind::Function => {
                ![layout.shrink_arg, layout.shrinker_scan_objects].contains(&ABSENT)
            }
        };
        let has_shrinkers = kernel.has_tracepoint(SHRINK_START.tracepoint)
            && kernel.has_tracepoint(SHRINK_END.tracepoint);
        if has_shrinkers && can_tell_shrinkers {
            self.probes.extend([SHRINK_END, SHRINK_START].map(|probe| probe.of(program)));
        } else {
            self.unavailable
                .push("time in shrinkers (no tracepoint mm_shrink_slab_start)".to_owned());
        }
        let fields = match program {
            ProgramKind::Classic => layout.throttled_record,
            ProgramKind::Raw | ProgramKind::Function => layout.throttled_args,
        };
        let congestion = CONGESTION.into_iter().filter(|it| kernel.has_tracepoint(it.tracepoint));
        if kernel.has_tracepoint(THROTTLED.tracepoint)
            && ![fields.delayed, fields.reason].contains(&ABSENT)
        {
            self.probes.push(THROTTLED.of(program));
        } else if let probes = congestion.collect::<Vec<_>>()
            && !probes.is_empty()
        {
            self.probes.extend(probes);
        } else {
            self.coverage.lacks(Kind::Throttled, "no tracepoint mm_vmscan_throttled");
        }
        if !Path::new(KPROBES).exists() {
            self.does_without_functions("this kernel has no kprobes");
        } else if !Path::new(PRESSURE).exists() {
            // It does not tell which of its sections are within others, either.
            self.does_without_functions("this kernel counts no pressure: boot it with psi=1");
        } else {
            self.probes.push(MEMSTALL_LEAVE);
        }
    }

    /// Leaves a probe out that this kernel refuses, if the rest makes sense without.
    pub(super) fn do_without(&mut self, probe: Probe, error: LiveError) -> Result<(), LiveError> {
        if probe.kind != ProgramKind::Function {
            return Err(error);
        }
        self.probes.retain(|other| other.kind != ProgramKind::Function);
        self.does_without_functions(&error.reason());
        Ok(())
    }

    /// Whether anything is left to watch, where kinds were asked for.
    pub(super) fn check_coverage(&self) -> Result<(), LiveError> {
        if self.coverage.is_empty() || self.coverage.watched().next().is_some() {
            return Ok(());
        }
        let missing = self.coverage.missing().map(|(kind, why)| format!("{} ({why})", kind.name()));
        Err(LiveError::NothingWatched(missing.collect::<Vec<_>>().join(", ")))
    }

    fn does_without_functions(&mut self, why: &str) {
        for kind in Kind::OF_MEMSTALL {
            self.coverage.lacks(kind, why);
        }
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
