//! Loading the probes: their settings, their maps, and what the verifier says of them.

use std::{
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, HashMap, Map, MapError},
    programs::{
        KProbe, Program, ProgramError, RawTracePoint, TracePoint, kprobe::KProbeLink,
        raw_trace_point::RawTracePointLink, trace_point::TracePointLink,
    },
};
use memtrace_common::{
    config::{Config, filter, wanted},
    tally::by,
};
use rustix::mm::{Advice, madvise};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zerocopy::IntoBytes as _;

use super::{
    LiveError, Request, Subject, is_not_permitted,
    probes::{Plan, Probe, ProgramKind},
    ring::Ring,
    tallies::Tallies,
};
use crate::{
    cgroup::Hierarchy,
    decode,
    filter::{CommText, Filter},
    histogram::By,
    kernel::Kernel,
};

/// Most slots for reclaims in progress, of 64 bytes each.
const SLOTS: u32 = 16384;
/// Entries for histograms, of some 112 bytes each: a thousand threads with some 16 lengths of stalls
/// each second. More of them go through the ring buffer.
const TALLIES: u32 = 16384;

/// Sets what the probes are to do and makes their maps.
pub(super) fn load(request: &Request, plan: &Plan, kernel: &Kernel) -> Result<Ebpf, LiveError> {
    let Filter { processes, threads, uid, comm, cgroup, min_ns } = &request.filter;
    let filters = [
        (!processes.is_empty(), filter::PID),
        (!threads.is_empty(), filter::TID),
        (uid.is_some(), filter::UID),
        (comm.is_some(), filter::COMM),
        (cgroup.is_some_and(|cgroup| cgroup.hierarchy == Hierarchy::V2), filter::CGROUP_V2),
        (cgroup.is_some_and(|cgroup| cgroup.hierarchy == Hierarchy::V1Memory), filter::CGROUP_V1),
    ];
    let filters = bits(filters);
    let wanted = bits([
        (request.extended, wanted::EXTENDED),
        (request.cgroups, wanted::CGROUP),
        (request.stacks, wanted::STACK),
        (request.user_stacks, wanted::USER_STACK),
        (request.uids, wanted::UID),
        (request.tell_apart == Some(By::Process), wanted::PROCESS_NAME),
        (matches!(&request.subject, Subject::Stalls(stalls) if stalls.parts), wanted::PARTS),
        (matches!(&request.subject, Subject::Stalls(_)), wanted::LIMIT),
    ]);
    let by =
        if plan.counts { request.tell_apart.map_or(by::NOTHING, by_number) } else { by::NOTHING };
    let tallies = if by == by::NOTHING { 1 } else { TALLIES };
    let (kinds, causes) = match &request.subject {
        Subject::Reclaim(kinds) => {
            (kinds.iter().fold(0, |bits, kind| bits | 1 << decode::kind_number(*kind)), 0)
        }
        Subject::Compaction(causes) => {
            (0, causes.iter().fold(0, |bits, cause| bits | 1 << decode::cause_number(*cause)))
        }
        // Of a scope all that is in it.
        Subject::Stalls(_) => (u32::MAX, u32::MAX),
    };
    let (comm_text, comm_mask) = comm.as_ref().map(CommText::words).unwrap_or_default();
    let buffer_size = buffer_size(request.buffer_size);
    let log_level = if request.log { aya_log::Level::Debug as u8 } else { 0 };
    let stalled = request.max_stalled;
    let most_slots = stalled.min(SLOTS).next_power_of_two();
    let (slots, reclaims, compactions, scopes) = match &request.subject {
        Subject::Reclaim(_) => (most_slots, stalled, 1, 1),
        Subject::Compaction(_) => (1, 1, stalled, 1),
        Subject::Stalls(stalls) => {
            (most_slots, stalled, stalled, if stalls.parts { stalled } else { 1 })
        }
    };

    let config = Config {
        min_ns: *min_ns,
        wakeup_bytes: u64::from(buffer_size / 4),
        filters,
        wanted,
        kinds,
        causes,
        by,
        slots_mask: slots - 1,
        layout: kernel.layout,
        uid: uid.unwrap_or_default(),
        reserved: 0,
        cgroup: cgroup.map_or(0, |cgroup| cgroup.id),
        comm_text,
        comm_mask,
        free_pages_address: kernel.free_pages_address.unwrap_or_default(),
    };

    let mut loader = without_files(EbpfLoader::new);
    loader
        // The probes have no relocations against the kernel's types.
        .btf(None)
        .override_global("CONFIG", config.as_bytes(), true)
        .override_global(aya_log::LEVEL, &log_level, true)
        .map_max_entries("STALLS", buffer_size)
        .map_max_entries("SLOTS", slots)
        .map_max_entries("TALLIES", tallies)
        .map_max_entries("RECLAIMS", reclaims)
        .map_max_entries("COMPACTIONS", compactions)
        .map_max_entries("SCOPES", scopes)
        .map_max_entries("PIDS", map_size(processes))
        .map_max_entries("TIDS", map_size(threads));
    let ebpf = loader.load(OBJECT);
    let_go(OBJECT);
    ebpf.map_err(|error| {
        if is_not_permitted(&error) {
            LiveError::NotPermitted
        } else {
            LiveError::Load(Box::new(error))
        }
    })
}

/// The probes, as they were built.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memtrace-ebpf"));

/// Lets go of the pages of a part of this program that is not going to be read again.
fn let_go(bytes: &'static [u8]) {
    let page = rustix::param::page_size();
    let Range { start, end } = bytes.as_ptr_range();
    let (start, end) = (start.addr().next_multiple_of(page), end.addr() & !(page - 1));
    if start < end {
        // SAFETY: the pages are the program's file, never written to: should they be read after all,
        // they are read from it again.
        let _spared: rustix::io::Result<()> = unsafe {
            madvise(bytes.as_ptr().with_addr(start) as *mut _, end - start, Advice::LinuxDontNeed)
        };
    }
}

/// Calls `make` while no file can be opened. A new loader reads the kernel's types and builds all of
/// them, which takes 20 MiB, whether they are wanted or not; it does without where it cannot.
fn without_files<T>(make: impl FnOnce() -> T) -> T {
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(0), ..limit };
    // Where this is refused, there is memory to spare.
    let limited = setrlimit(Resource::Nofile, none);
    let value = make();
    if limited.is_ok() {
        let restored = setrlimit(Resource::Nofile, limit);
        debug_assert!(restored.is_ok(), "a soft limit can be raised up to the hard one");
    }
    value
}

/// The ring buffer's size as the kernel takes it: a power of two, and whole pages.
fn buffer_size(asked: u32) -> u32 {
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    asked.max(page).checked_next_power_of_two().unwrap_or(1 << 31)
}

fn bits<const N: usize>(flags: [(bool, u32); N]) -> u32 {
    flags.into_iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit)
}

fn by_number(by: By) -> u32 {
    match by {
        By::Thread => by::THREAD,
        By::Process => by::PROCESS,
        By::Comm => by::COMM,
        By::Cgroup => by::CGROUP,
        By::Uid => by::UID,
        By::Kind => by::KIND,
        By::Order => by::ORDER,
    }
}

/// A map cannot be empty.
fn map_size(keys: &[u32]) -> u32 {
    u32::try_from(keys.len()).unwrap_or(u32::MAX).max(1)
}

pub(super) fn fill(ebpf: &mut Ebpf, name: &'static str, keys: &[u32]) -> Result<(), LiveError> {
    let error = |error| LiveError::map(name, error);
    let map = ebpf.map_mut(name).ok_or_else(|| error(missing_map(name)))?;
    let mut map = HashMap::<_, u32, u8>::try_from(map).map_err(error)?;
    keys.iter().try_for_each(|key| map.insert(key, 1, 0).map_err(error))
}

pub(super) fn take<T>(
    ebpf: &mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(Map) -> Result<T, MapError>,
) -> Result<T, LiveError> {
    let error = |error| LiveError::map(name, error);
    let map = ebpf.take_map(name).ok_or_else(|| error(missing_map(name)))?;
    convert(map).map_err(error)
}

/// Opens the ring buffer `name`.
pub(super) fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<Ring, LiveError> {
    take(ebpf, name, |map| match map {
        Map::RingBuf(map) => {
            let info = map.info()?;
            Ring::open(&map, info.max_entries()).map_err(MapError::from)
        }
        _ => Err(missing_map(name)),
    })
}

/// Opens the histograms that the probes keep.
pub(super) fn tallies(ebpf: &mut Ebpf) -> Result<Tallies, LiveError> {
    let epochs = take(ebpf, "EPOCH", Array::try_from)?;
    take(ebpf, "TALLIES", |map| match map {
        Map::HashMap(map) => Tallies::new(map, epochs),
        _ => Err(missing_map("TALLIES")),
    })
}

/// The names and descriptors of the loaded probes.
pub(super) fn descriptors(ebpf: &Ebpf) -> Result<Vec<(String, OwnedFd)>, LiveError> {
    let loaded = ebpf.programs().filter_map(|(name, program)| Some((name, program.fd().ok()?)));
    let owned = loaded.map(|(name, fd)| Ok((name.to_owned(), fd.as_fd().try_clone_to_owned()?)));
    owned.collect::<Result<_, _>>().map_err(LiveError::Descriptor)
}

fn missing_map(name: &str) -> MapError {
    MapError::InvalidName { name: name.to_owned() }
}

/// Has the kernel verify and compile a probe.
pub(super) fn verify(ebpf: &mut Ebpf, probe: Probe) -> Result<(), LiveError> {
    match probe.kind {
        ProgramKind::Raw => program::<RawTracePoint>(ebpf, probe)?.load(),
        ProgramKind::Classic => program::<TracePoint>(ebpf, probe)?.load(),
        ProgramKind::Function => program::<KProbe>(ebpf, probe)?.load(),
    }
    .map_err(|error| refused(probe, error))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, probe: Probe) -> Result<&'a mut P, LiveError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(probe.program).ok_or(ProgramError::NotLoaded);
    program.and_then(TryInto::try_into).map_err(|error| not_attached(probe, error))
}

/// A probe on its tracepoint, detached when dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "they are kept to be dropped")]
pub(super) enum Link {
    Raw(RawTracePointLink),
    Classic(TracePointLink),
    Function(KProbeLink),
}

pub(super) fn attach(ebpf: &mut Ebpf, probe: Probe) -> Result<Link, LiveError> {
    let link = match probe.kind {
        ProgramKind::Raw => {
            let program = program::<RawTracePoint>(ebpf, probe)?;
            let link = program.attach(probe.tracepoint).and_then(|id| program.take_link(id));
            link.map(Link::Raw)
        }
        ProgramKind::Classic => {
            let program = program::<TracePoint>(ebpf, probe)?;
            let link = program.attach("vmscan", probe.tracepoint);
            link.and_then(|id| program.take_link(id)).map(Link::Classic)
        }
        ProgramKind::Function => {
            let program = program::<KProbe>(ebpf, probe)?;
            let link = program.attach(probe.tracepoint, 0);
            link.and_then(|id| program.take_link(id)).map(Link::Function)
        }
    };
    link.map_err(|error| not_attached(probe, error))
}

fn not_attached(probe: Probe, error: ProgramError) -> LiveError {
    LiveError::Attach { probe: probe.program, tracepoint: probe.tracepoint, error: Box::new(error) }
}

fn refused(probe: Probe, error: ProgramError) -> LiveError {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return not_attached(probe, error);
    };
    let log = verifier_log.to_string();
    LiveError::Refused {
        probe: probe.program,
        error: io_error,
        reason: telling_line(&log).to_owned(),
        log,
    }
}

/// The verifier ends with what it objects to, and after that some statistics.
pub(super) fn telling_line(log: &str) -> &str {
    const STATISTICS: [&str; 4] = ["processed ", "verification time", "stack depth", "max_states"];
    let is_telling =
        |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines().rev().map(str::trim).find(is_telling).unwrap_or("it gave no reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_the_verifier_objects_to() {
        let log = "0: (79) r1 = *(u64 *)(r1 +0)\nR1 invalid mem access 'scalar'\n\
                   verification time 70 usec\nstack depth 0\nprocessed 2 insns (limit 1000000)\n\n";
        assert_eq!(telling_line(log), "R1 invalid mem access 'scalar'");
        assert_eq!(telling_line(""), "it gave no reason");
    }

    #[test]
    fn a_buffer_is_a_power_of_two_of_pages() {
        assert_eq!(buffer_size(1), u32::try_from(rustix::param::page_size()).expect("small"));
        assert_eq!(buffer_size(4 << 20), 4 << 20);
        assert_eq!(buffer_size((4 << 20) + 1), 8 << 20);
        assert_eq!(buffer_size(u32::MAX), 1 << 31);
    }
}
