//! The running kernel as a source of stalls: loads and attaches the probes, and takes what they
//! deliver.

mod load;
mod mapping;
pub mod now;
mod probes;
mod ring;
mod tallies;
mod unfinished;

pub use probes::tracepoints;

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    EbpfError,
    maps::{MapData, MapError, PerCpuArray},
    programs::ProgramError,
};
use aya_log::EbpfLogger;
use memtrace_common::counter;
use thiserror::Error;

use probes::{Plan, SPARES};
use ring::Ring;
use tallies::Tallies;
use unfinished::Unfinished;

use crate::{
    cgroup::Cgroups,
    clock::WallClock,
    coverage::Coverage,
    decode,
    filter::Filter,
    histogram::{By, Tallied},
    kernel::Kernel,
    kind::Kind,
    names::Names,
    scope::{Oom, Scope},
    stall::{Cause, ReclaimKind, Stall},
    symbols::Symbols,
};

/// The programs for the kernel that are part of this one. Once they are loaded nothing reads them again.
pub static OBJECTS: [&[u8]; 2] = [load::OBJECT, now::OBJECT];

/// What to trace and how.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a part of the probes of its own")]
pub struct Request {
    /// Which mechanism.
    pub subject: Subject,
    /// Which threads and how long a stall at least.
    pub filter: Filter,
    /// Whether to read the fields beyond those of a plain row, but for the cgroup.
    pub extended: bool,
    /// Whether to read the cgroup that the thread is charged to.
    pub cgroups: bool,
    /// Whether to read the thread's user id.
    pub uids: bool,
    /// Whether to take kernel stacks.
    pub stacks: bool,
    /// Whether to take stacks in user space.
    pub user_stacks: bool,
    /// What to tell stalls apart by where only their histograms are wanted. They are counted in the
    /// kernel then, if it lets them be counted exactly.
    pub tell_apart: Option<By>,
    /// Size of the ring buffer in bytes; made a power of two of at least a page.
    pub buffer_size: u32,
    /// How many threads can be in a stall at once, at least.
    pub max_stalled: u32,
    /// Whether the probes log what they cannot deliver.
    pub log: bool,
}

/// The mechanism to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// These kinds of reclaim.
    Reclaim(Vec<ReclaimKind>),
    /// Compaction for these causes.
    Compaction(Vec<Cause>),
    /// All mechanisms together.
    Stalls(Stalls),
}

impl Subject {
    /// The kinds that it has.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        let is_of = |kind: &Kind| match self {
            Self::Reclaim(kinds) => {
                kinds.iter().any(|reclaim| kind.reclaim_name() == Some(reclaim.name()))
            }
            Self::Compaction(causes) => {
                causes.iter().any(|cause| Kind::of_compaction(*cause) == *kind)
            }
            Self::Stalls(stalls) => stalls.kinds.contains(kind),
        };
        Kind::ALL.into_iter().filter(is_of).collect()
    }
}

/// What of all mechanisms to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalls {
    /// The kinds of stalls.
    pub kinds: Vec<Kind>,
    /// Whether to tell how their time was spent, and with it those kinds that only this tells.
    pub parts: bool,
}

/// What the probes deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A finished reclaim or compaction.
    Stall(Stall),
    /// The end of the scope that the thread's last ones were in.
    Scope(Scope),
    /// A process was chosen to be killed.
    Oom(Oom),
}

/// Why tracing could not be started.
#[derive(Debug, Error)]
pub enum LiveError {
    /// The kernel has none of the tracepoints.
    #[error("this kernel cannot trace {what}: it has no {missing}")]
    NoTracepoint {
        /// What was to be traced.
        what: String,
        /// What the kernel lacks.
        missing: String,
    },
    /// The probes' maps could not be made.
    #[error("cannot set up the probes: {0}")]
    Load(#[source] Box<EbpfError>),
    /// The kernel does not let this process have them, whatever its capabilities.
    #[error(
        "the kernel does not permit eBPF here: a user namespace, a seccomp filter or a security module stands between; on kernels before 5.11 a limit on locked memory does as well (`ulimit -l unlimited`)"
    )]
    NotPermitted,
    /// The verifier refused a probe, or the kernel loading any.
    #[error("the kernel refused probe `{probe}` ({error}): {reason}")]
    Refused {
        /// The probe.
        probe: &'static str,
        /// The kernel's error.
        error: io::Error,
        /// The verifier's telling line.
        reason: String,
        /// All that the verifier wrote.
        log: String,
    },
    /// Nothing of what was asked for can be watched.
    #[error("nothing of what was asked for can be watched: {0}")]
    NothingWatched(String),
    /// A probe could not be attached.
    #[error("cannot attach probe `{probe}` to tracepoint `{tracepoint}`: {error}")]
    Attach {
        /// The probe.
        probe: &'static str,
        /// Its tracepoint.
        tracepoint: &'static str,
        /// What went wrong.
        error: Box<ProgramError>,
    },
    /// The kernel has no iterator over threads.
    #[error("this kernel has no eBPF iterator over threads, which Linux has since 5.8")]
    NoIterator,
    /// The kernel refused the iterator over threads.
    #[error("this kernel does not let memtrace iterate over threads: cannot {call}: {error}")]
    Iterator {
        /// What could not be done.
        call: &'static str,
        /// The kernel's error.
        error: io::Error,
    },
    /// The ring buffer could not be read.
    #[error("cannot read the ring buffer: {0}")]
    Ring(#[source] io::Error),
    /// A probe's descriptor could not be kept.
    #[error("cannot keep the descriptor of a probe: {0}; `ulimit -n` says how many may be open")]
    Descriptor(#[source] io::Error),
    /// A map could not be used.
    #[error("cannot use the probes' map `{map}`: {error}")]
    Map {
        /// The map.
        map: &'static str,
        /// What went wrong.
        error: Box<MapError>,
    },
}

impl LiveError {
    /// What is at the bottom of it, in a few words.
    fn reason(&self) -> String {
        let Self::Attach { tracepoint, error, .. } = self else { return self.to_string() };
        let causes =
            std::iter::successors(Some(&**error as &(dyn std::error::Error + 'static)), |error| {
                error.source()
            });
        let last = causes.last().map(ToString::to_string).unwrap_or_default();
        format!("function {tracepoint} cannot be probed: {last}")
    }

    fn map(map: &'static str, error: MapError) -> Self {
        if is_not_permitted(&error) {
            Self::NotPermitted
        } else {
            Self::Map { map, error: Box::new(error) }
        }
    }
}

/// Whether "operation not permitted" is at the bottom of it.
fn is_not_permitted(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// What was not delivered, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Stalls for which the ring buffer had no room.
    pub lost: u64,
    /// Stalls whose begin was not seen. Where the table was full, fewer than that by those that have
    /// not ended yet.
    pub missed_begin: u64,
    /// Stalls for which the table of those in progress had no room.
    pub table_full: u64,
    /// Runs of probes that the kernel skipped because the same probe was already running on the CPU
    /// or, for classic ones, because a map was used there just then (`bpf_disable_instrumentation()`).
    pub skipped: u64,
}

/// The probes, loaded and attached.
pub struct Live {
    ring: Ring,
    /// Records that made no sense.
    undecodable: u64,
    counters: PerCpuArray<MapData, u64>,
    /// Detach as they are dropped, which a vector does in the order of attaching.
    links: Vec<load::Link>,
    unavailable: Vec<String>,
    coverage: Coverage,
    attached: Vec<String>,
    /// Reads the probes' log.
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    unfinished: Unfinished,
    /// Where the probes count instead of delivering.
    tallies: Option<Tallies>,
    subject: Subject,
    tell_apart: Option<By>,
    programs: Vec<(String, OwnedFd)>,
}

impl Live {
    /// Loads and attaches the probes that `request` needs on this kernel. For a moment no thread of
    /// the process can open a file.
    pub fn start(request: &Request, kernel: &Kernel) -> Result<Self, LiveError> {
        let mut plan = Plan::make(request, kernel)?;
        let mut ebpf = load::load(request, &plan, kernel)?;
        for (map, keys) in [("PIDS", &request.filter.processes), ("TIDS", &request.filter.threads)]
        {
            load::fill(&mut ebpf, map, keys)?;
        }
        // Without its reader the log's map would be closed before the probes that use it are loaded.
        let logger = request.log.then(|| EbpfLogger::init(&mut ebpf).ok()).flatten();
        for probe in plan.probes.clone() {
            if let Err(error) = load::verify(&mut ebpf, probe) {
                plan.do_without(probe, error)?;
            }
        }
        let ring = load::ring(&mut ebpf, "STALLS")?;
        let counters = load::take(&mut ebpf, "COUNTERS", PerCpuArray::try_from)?;
        let unfinished = Unfinished::open(&mut ebpf)?;
        let counted = plan.counts && request.tell_apart.is_some();
        let tallies = counted.then(|| load::tallies(&mut ebpf)).transpose()?;
        let mut links = Vec::with_capacity(plan.probes.len());
        for probe in plan.probes.clone() {
            match load::attach(&mut ebpf, probe) {
                Ok(link) => links.push(link),
                Err(error) => plan.do_without(probe, error)?,
            }
        }
        plan.check_coverage()?;
        // Side by side where a tracepoint has a spare program.
        let mut attached: Vec<_> =
            plan.probes.iter().map(|probe| probe.tracepoint.to_owned()).collect();
        attached.dedup();
        Ok(Self {
            ring,
            undecodable: 0,
            counters,
            links,
            unavailable: plan.unavailable,
            coverage: plan.coverage,
            attached,
            logger,
            unfinished,
            tallies,
            subject: request.subject.clone(),
            tell_apart: request.tell_apart,
            // The rest, with the probes' code, is not needed any more.
            programs: load::descriptors(&ebpf)?,
        })
    }

    /// The next event, if one is waiting.
    pub fn next_event(&mut self) -> Result<Option<Event>, LiveError> {
        loop {
            match self.ring.next(decode::event) {
                // Nothing but our own probes writes here, and their records are of this very build.
                Ok(Some(None)) => self.undecodable += 1,
                Ok(Some(event)) => return Ok(event),
                Err(error) if self.links.is_empty() => return Err(LiveError::Ring(error)),
                // Where there is no memory to look further, there may be when it is looked again.
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }

    /// Whether the probes count stalls for histograms instead of delivering each.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.tallies.is_some()
    }

    /// Takes what the probes have counted instead of delivering it. This takes some milliseconds, in
    /// which they go on counting.
    pub fn take_tallies(&mut self, mut each: impl FnMut(Tallied)) -> Result<(), LiveError> {
        let (Some(tallies), Some(by)) = (&mut self.tallies, self.tell_apart) else { return Ok(()) };
        tallies.take(|key, tally| match decode::tally_key(&key, by, &self.subject) {
            Some(whose) => each(Tallied { key: whose, bucket: key.bucket, tally }),
            // As above.
            None => self.undecodable += tally.count,
        })
    }

    /// Whether all that the probes have begun to deliver was taken.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.ring.is_drained()
    }

    /// A descriptor to wait on: readable when the probes ask for the ring buffer to be read without
    /// waiting for the reader's next look.
    pub fn ring_descriptor(&self) -> io::Result<OwnedFd> {
        self.ring.descriptor()
    }

    /// Passes the probes' log on to the logger of the process.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Detaches the probes; what they delivered can still be taken.
    pub fn detach(&mut self) {
        // Ends first again: a stall that begins meanwhile is left in the table, where one that ended
        // without its begin would look like a loss.
        self.links.clear();
        tallies::wait_for_probes();
    }

    /// What was not delivered so far.
    pub fn losses(&self) -> Result<Losses, LiveError> {
        let table_full = sum(&self.counters, counter::TABLE_FULL)?;
        let ends = sum(&self.counters, counter::END_WITHOUT_BEGIN)?;
        Ok(Losses {
            lost: sum(&self.counters, counter::LOST)?.saturating_add(self.undecodable),
            // A stall that found the table full ends without a begin, too.
            missed_begin: ends.saturating_sub(table_full),
            table_full,
            skipped: self.skipped(),
        })
    }

    /// How many stalls have begun and not ended.
    pub fn unfinished(&self) -> Result<u64, LiveError> {
        self.unfinished.count()
    }

    /// When a thread that is held up began to be, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn begun_ns(&self, tid: u32) -> Option<u64> {
        self.unfinished.begun_ns(tid)
    }

    /// What was asked for and this kernel does not have, each with the reason.
    #[must_use]
    pub fn unavailable(&self) -> &[String] {
        &self.unavailable
    }

    /// Which kinds of stalls are watched, where all mechanisms are.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// The tracepoints and functions in use.
    #[must_use]
    pub fn attached(&self) -> &[String] {
        &self.attached
    }

    /// Sums up what the kernel reports of each program in its descriptor's information, since 5.12.
    /// Of a program and its spare only the fewer: a stall is missed where both were skipped.
    fn skipped(&self) -> u64 {
        skipped(
            &self
                .programs
                .iter()
                .map(|(name, program)| (name.as_str(), misses(program.as_fd())))
                .collect(),
        )
    }
}

/// Sums up how often each program was skipped, of those that have a spare one loaded the fewer.
fn skipped(misses: &HashMap<&str, u64>) -> u64 {
    let of_either = SPARES.iter().filter_map(|(first, spare)| {
        let (first, spare) = (misses.get(first)?, misses.get(spare)?);
        Some(first.max(spare))
    });
    misses.values().sum::<u64>() - of_either.sum::<u64>()
}

/// A counter's sum over all CPUs.
fn sum(counters: &PerCpuArray<MapData, u64>, slot: u32) -> Result<u64, LiveError> {
    let values = counters.get(&slot, 0).map_err(|error| LiveError::map("COUNTERS", error))?;
    Ok(values.iter().fold(0, |sum: u64, value| sum.saturating_add(*value)))
}

/// How often the kernel skipped a program.
fn misses(program: BorrowedFd<'_>) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()));
    let info = info.unwrap_or_default();
    let value = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

/// The names that go with the running kernel's stalls.
#[must_use]
pub fn names(kernel: &Kernel) -> Names {
    Names {
        gfp: kernel.gfp.clone(),
        modes: kernel.modes.clone(),
        statuses: kernel.statuses.clone(),
        throttles: kernel.throttles.clone(),
        cgroups: Cgroups::live(),
        clock: WallClock::now(),
        symbols: Symbols::live(),
        page_size: rustix::param::page_size() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_missed_where_the_spare_program_was_skipped_as_well() {
        let skipped = |misses: &[(&'static str, u64)]| skipped(&misses.iter().copied().collect());
        assert_eq!(skipped(&[("direct_end", 2), ("compact_end", 5)]), 7);
        assert_eq!(skipped(&[("direct_end", 2), ("compact_end", 5), ("spare_end", 3)]), 5);
        assert_eq!(skipped(&[("compact_begin", 0), ("spare_begin", 3), ("compact_end", 1)]), 1);
    }
}
