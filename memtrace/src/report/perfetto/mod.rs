//! Stalls as a trace for Perfetto, which <https://ui.perfetto.dev> opens: a track for each thread with a slice for
//! each stall and its parts in it, counters of memory and pressure, and OOM kills.
//!
//! The trace's clock is CLOCK_MONOTONIC of the host that booted first; a snapshot tells what time of day that was.
//! Times of other boots are put where their time of day is. Perfetto knows processes by their ids alone, so those of
//! another boot are set apart from them by a multiple of 2^22, which is more than a kernel has.

mod nest;
mod proto;
mod readings;
mod texts;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash};
use std::io;
use std::sync::atomic::AtomicU64;

use foldhash::fast::RandomState;
use foldhash::quality::FixedState;

use self::nest::{Slice, nest};
use self::proto::{
    BuiltinClock, Clock, ClockSnapshot, CounterDescriptor, DebugAnnotation, EventType,
    ProcessDescriptor, ThreadDescriptor, TracePacket, TrackDescriptor, TrackEvent, Unit,
};
use self::readings::{Value, readings};
use self::texts::{Arg, Text, Texts};
use super::export::{self, Boot, Paths, boots, each_block, paths, since_1970_ns};
use super::{LeftOut, blocks};
use crate::names::Names;
use crate::recording::{Block, Class, Look, Meta, Note, Recording, Thread, Told};
use crate::scope::{Oom, Part, Parts};
use crate::text::Printable;
use crate::view::parts;

/// All packets are of one sequence.
const SEQUENCE: u32 = 1;
/// Bits of a process id.
const PID_BITS: u32 = 22;
/// Most boots whose process ids there is room for.
const MOST_BOOTS: usize = 1 << (31 - PID_BITS);
/// Most tracks of which the end is remembered.
const MOST_TRACKS: usize = 1 << 16;

const NOTE: &str = "how much of the stall this took in all, the longest first: not when";

/// Writes all stalls, readings and OOM kills. `done` counts the blocks as they are done.
pub fn write(
    recordings: &[Recording],
    done: &AtomicU64,
    out: &mut dyn io::Write,
) -> io::Result<LeftOut> {
    let boots = boots(recordings);
    let epoch_ns = boots.iter().map(|boot| boot.epoch_ns).min().unwrap_or_default();
    let has_several = boots.iter().any(|boot| boot.number > 0);
    let mut trace = Trace {
        out,
        packet: Vec::new(),
        epoch_ns,
        has_several,
        texts: Texts::new(),
        described: HashSet::default(),
        leaders: HashMap::default(),
        ends: HashMap::default(),
    };
    let begins = blocks(recordings).map(|(number, place)| trace.at(&boots[number], place.first_ns));
    let begin = begins.min().unwrap_or_default();
    trace.clocks(begin)?;
    each_block(recordings, done, |number, block, names| {
        trace.block(&recordings[number].meta, &boots[number], block, names)
    })
}

/// A trace that is being written.
struct Trace<'a> {
    out: &'a mut dyn io::Write,
    /// Room for a packet.
    packet: Vec<u8>,
    /// Time of day when the trace's clock was zero, in nanoseconds since 1970.
    epoch_ns: i64,
    /// Whether there are several boots.
    has_several: bool,
    /// Those of the block.
    texts: Texts,
    /// Tracks that the block has a description of.
    described: HashSet<u64, RandomState>,
    /// Processes that have a name, and whether it is that of their first thread.
    leaders: HashMap<u64, bool, RandomState>,
    /// By track, the slice that has ended last.
    ends: HashMap<u64, (u64, u64), RandomState>,
}

/// A block with all that it takes to understand it.
struct Source<'a> {
    meta: &'a Meta,
    boot: &'a Boot,
    block: &'a Block,
    paths: Paths<'a>,
}

/// What a slice is of.
#[derive(Clone, Copy)]
enum Of<'a> {
    Stall(&'a Told<'a>),
    Part(Part),
}

impl Trace<'_> {
    /// The trace's time at `ns` nanoseconds of a boot.
    fn at(&self, boot: &Boot, ns: u64) -> u64 {
        let at = i128::from(boot.epoch_ns) - i128::from(self.epoch_ns) + i128::from(ns);
        u64::try_from(at.clamp(0, i64::MAX.into())).unwrap_or_default()
    }

    fn write(&mut self, packet: TracePacket) -> io::Result<()> {
        let packet = TracePacket { trusted_packet_sequence_id: Some(SEQUENCE), ..packet };
        self.packet.clear();
        prost::encoding::message::encode(TracePacket::PACKET, &packet, &mut self.packet);
        self.out.write_all(&self.packet)
    }

    /// Says which clock the trace has, and its time of day.
    fn clocks(&mut self, at: u64) -> io::Result<()> {
        let since_1970_ns = since_1970_ns(self.epoch_ns, at);
        let clock = |clock: BuiltinClock, timestamp| Clock {
            clock_id: u32::try_from(clock as i32).ok(),
            timestamp: Some(timestamp),
        };
        let clocks = vec![
            clock(BuiltinClock::Monotonic, at),
            clock(BuiltinClock::Realtime, u64::try_from(since_1970_ns).unwrap_or_default()),
        ];
        let primary_trace_clock = Some(BuiltinClock::Monotonic.into());
        let clock_snapshot = Some(ClockSnapshot { clocks, primary_trace_clock });
        self.write(TracePacket { clock_snapshot, ..TracePacket::default() })
    }

    fn event(&mut self, at: u64, event: TrackEvent) -> io::Result<()> {
        let interned_data = self.texts.take();
        self.write(TracePacket {
            timestamp: Some(at),
            timestamp_clock_id: u32::try_from(BuiltinClock::Monotonic as i32).ok(),
            sequence_flags: Some(TracePacket::NEEDS_STATE),
            interned_data,
            track_event: Some(event),
            ..TracePacket::default()
        })
    }

    fn track(&mut self, track: TrackDescriptor) -> io::Result<()> {
        self.write(TracePacket { track_descriptor: Some(track), ..TracePacket::default() })
    }

    fn block(
        &mut self,
        meta: &Meta,
        boot: &Boot,
        block: &Block,
        names: &mut Names,
    ) -> io::Result<()> {
        self.texts = Texts::new();
        self.described.clear();
        let interned_data = self.texts.take();
        let sequence_flags = Some(TracePacket::CLEARED);
        self.write(TracePacket { interned_data, sequence_flags, ..TracePacket::default() })?;

        let source = Source { meta, boot, block, paths: paths(block) };
        let mut stalls = Vec::new();
        block.told(meta.scopes, |told| stalls.push(*told));
        let key = |told: &Told<'_>| (told.thread.pid, told.thread.tid);
        stalls.sort_by_key(|told| {
            (key(told), told.start_ns, Reverse(told.start_ns.saturating_add(told.duration_ns)))
        });
        for process in stalls.chunk_by(|a, b| a.thread.pid == b.thread.pid) {
            self.process(process, &source)?;
            for thread in process.chunk_by(|a, b| a.thread.tid == b.thread.tid) {
                self.thread(thread, &source, names)?;
            }
        }
        for (number, note) in block.notes().iter().enumerate() {
            match note {
                Note::Oom(oom) => self.oom(number, oom, &source, names)?,
                Note::Look(look) => self.look(look, &source)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Names a process: as its first thread is called, or while that is not known any other.
    fn process(&mut self, stalls: &[Told<'_>], source: &Source<'_>) -> io::Result<()> {
        let leader = stalls.iter().rfind(|told| told.thread.tid == told.thread.pid);
        let Some(told) = leader.or(stalls.first()) else { return Ok(()) };
        let Thread { pid, comm, .. } = told.thread;
        let uuid = uuid(("process", source.boot.number, pid));
        if self.leaders.get(&uuid).is_some_and(|is_leader| *is_leader || leader.is_none()) {
            return Ok(());
        }
        if self.leaders.len() >= MOST_TRACKS {
            self.leaders.clear();
        }
        self.leaders.insert(uuid, leader.is_some());
        let name = if self.has_several {
            format!("{comm} ({pid} on {})", Printable(source.meta.host.as_bytes()))
        } else {
            comm.to_string()
        };
        let pid = Some(apart(*pid, source.boot));
        let process = Some(ProcessDescriptor { pid, process_name: Some(name) });
        self.track(TrackDescriptor { uuid: Some(uuid), process, ..TrackDescriptor::default() })
    }

    /// The stalls of a thread, in order of time.
    fn thread(
        &mut self,
        stalls: &[Told<'_>],
        source: &Source<'_>,
        names: &mut Names,
    ) -> io::Result<()> {
        let Some(Thread { pid, tid, comm, .. }) = stalls.last().map(|told| told.thread) else {
            return Ok(());
        };
        let uuid = uuid(("thread", source.boot.number, pid, tid));
        let thread = ThreadDescriptor {
            pid: Some(apart(*pid, source.boot)),
            tid: Some(apart(*tid, source.boot)),
            thread_name: Some(comm.to_string()),
        };
        let thread = Some(thread);
        self.track(TrackDescriptor { uuid: Some(uuid), thread, ..TrackDescriptor::default() })?;

        let mut slices = Vec::new();
        for told in stalls {
            let mut start = self.at(source.boot, told.start_ns);
            let end = self.at(source.boot, told.start_ns.saturating_add(told.duration_ns));
            // A thread is held up in one place at a time; what says otherwise does not come from a kernel.
            let last = self.ends.get(&uuid).copied().unwrap_or_default();
            if (last.0..last.1).contains(&start) && end > last.1 {
                start = last.1;
            }
            if end >= last.1 {
                if self.ends.len() >= MOST_TRACKS {
                    self.ends.clear();
                }
                self.ends.insert(uuid, (start, end));
            }
            slices.push(Slice { start, end, what: Of::Stall(told) });
            slices.extend(part_slices(told, source.block, start, end));
        }
        nest(slices, |at, what| {
            let mut event = TrackEvent { track_uuid: Some(uuid), ..TrackEvent::default() };
            match what {
                Some(what) => {
                    event.r#type = Some(EventType::SliceBegin.into());
                    self.describe(what, source, names, &mut event);
                }
                None => event.r#type = Some(EventType::SliceEnd.into()),
            }
            self.event(at, event)
        })
    }

    fn describe(
        &mut self,
        what: Of<'_>,
        source: &Source<'_>,
        names: &mut Names,
        event: &mut TrackEvent,
    ) {
        let args = &mut event.debug_annotations;
        let told = match what {
            Of::Part(part) => {
                let spell = || Printable(parts::name(part, names).as_bytes()).to_string();
                event.name_iid = Some(self.texts.iid(Text::Part(part), spell));
                args.push(self.text(Arg::Note, Text::Note, || NOTE.to_owned()));
                return;
            }
            Of::Stall(told) => told,
        };
        let kind = told.kind;
        event.name_iid = Some(self.texts.iid(Text::Kind(kind), || kind.name().to_owned()));
        let comm = Text::Thread(told.thread_number);
        args.push(self.text(Arg::Comm, comm, || told.thread.comm.to_string()));
        args.push(number(Arg::Cpu, told.cpu));
        args.push(number(Arg::NrReclaimed, told.nr_reclaimed));
        if let Some(order) = told.class.and_then(Class::order) {
            args.push(signed(Arg::Order, order));
        }
        if let Some(zone) = told.class.and_then(|class| source.block.zone(class)) {
            let spell = || format!("{}/{}", zone.node, Printable(zone.name.as_bytes()));
            args.push(self.text(Arg::Zone, Text::Zone(told.class_number), spell));
        }
        let target = told.class.and_then(Class::target).filter(|id| *id != 0);
        for (arg, id) in [(Arg::Cgroup, told.thread.cgroup_id), (Arg::TargetCgroup, target)] {
            args.extend(id.map(|id| self.cgroup(arg, id, &source.paths)));
        }
        if told.stack != 0 {
            let addresses = source.block.stack(told.stack);
            args.push(self.stack(Text::Stack(told.stack), addresses, names));
        }
    }

    fn text(&mut self, arg: Arg, text: Text, spell: impl FnOnce() -> String) -> DebugAnnotation {
        let string_value_iid = Some(self.texts.iid(text, spell));
        DebugAnnotation {
            name_iid: Some(arg.iid()),
            string_value_iid,
            ..DebugAnnotation::default()
        }
    }

    fn stack(&mut self, text: Text, addresses: &[u64], names: &mut Names) -> DebugAnnotation {
        self.text(Arg::Stack, text, || {
            let stack = export::text(&names.symbols.kernel(addresses));
            Printable(stack.as_bytes()).to_string()
        })
    }

    fn cgroup(&mut self, arg: Arg, id: u64, paths: &Paths<'_>) -> DebugAnnotation {
        self.text(arg, Text::Cgroup(id), || {
            paths.get(&id).map_or_else(|| format!("id:{id}"), |path| Printable(path).to_string())
        })
    }

    fn oom(
        &mut self,
        number_in_block: usize,
        oom: &Oom,
        source: &Source<'_>,
        names: &mut Names,
    ) -> io::Result<()> {
        let track_uuid = Some(self.host_track(source, "OOM kills", None)?);
        let mut args = vec![
            number(Arg::VictimPid, oom.victim_pid),
            number(Arg::Pid, oom.pid),
            number(Arg::Tid, oom.tid),
            self.text(Arg::Comm, Text::Killer(number_in_block), || oom.comm.to_string()),
        ];
        if let Some(comm) = &oom.victim_comm {
            let victim = Text::Victim(number_in_block);
            args.push(self.text(Arg::VictimComm, victim, || comm.to_string()));
        }
        for (arg, id) in [(Arg::Cgroup, oom.cgroup_id), (Arg::VictimCgroup, oom.victim_cgroup_id)] {
            args.extend(id.map(|id| self.cgroup(arg, id, &source.paths)));
        }
        if !oom.stack.is_empty() {
            args.push(self.stack(Text::OomStack(number_in_block), &oom.stack, names));
        }
        let name_iid = Some(self.texts.iid(Text::OomKill, || "OOM kill".to_owned()));
        let event = TrackEvent {
            r#type: Some(EventType::Instant.into()),
            track_uuid,
            name_iid,
            debug_annotations: args,
            ..TrackEvent::default()
        };
        self.event(self.at(source.boot, oom.at_ns), event)
    }

    fn look(&mut self, look: &Look, source: &Source<'_>) -> io::Result<()> {
        for (name, value) in readings(&look.files) {
            let (unit, unit_name) = match value {
                Value::Pages(_) => (None, Some("pages".to_owned())),
                Value::Bytes(_) => (Some(Unit::SizeBytes.into()), None),
                Value::Percent(_) => (None, Some("%".to_owned())),
            };
            let counter = CounterDescriptor { unit, unit_name };
            let mut event = TrackEvent {
                r#type: Some(EventType::Counter.into()),
                track_uuid: Some(self.host_track(source, &name, Some(counter))?),
                ..TrackEvent::default()
            };
            match value {
                Value::Pages(count) | Value::Bytes(count) => {
                    event.counter_value = Some(i64::try_from(count).unwrap_or(i64::MAX));
                }
                Value::Percent(percent) => event.double_counter_value = Some(percent),
            }
            self.event(self.at(source.boot, look.at_ns), event)?;
        }
        Ok(())
    }

    /// A track below that of the host, by its name.
    fn host_track(
        &mut self,
        source: &Source<'_>,
        name: &str,
        counter: Option<CounterDescriptor>,
    ) -> io::Result<u64> {
        let host = uuid(("host", source.boot.number));
        if self.described.insert(host) {
            let Meta { host: of, boot, .. } = source.meta;
            let [of, boot] = [of, boot].map(|text| Printable(text.as_bytes()));
            let name = Some(format!("{of} (boot {boot})"));
            self.track(TrackDescriptor { uuid: Some(host), name, ..TrackDescriptor::default() })?;
        }
        let uuid = uuid(("below host", source.boot.number, name));
        if self.described.insert(uuid) {
            self.track(TrackDescriptor {
                uuid: Some(uuid),
                name: Some(name.to_owned()),
                parent_uuid: Some(host),
                counter,
                ..TrackDescriptor::default()
            })?;
        }
        Ok(uuid)
    }
}

/// The parts of a stall from `start` on, one after the other, as far as there is room.
fn part_slices<'a>(
    told: &Told<'_>,
    block: &Block,
    start: u64,
    end: u64,
) -> impl Iterator<Item = Slice<Of<'a>>> {
    let shrinkers = told.scope.into_iter().flat_map(|scope| block.shrinkers(scope)).collect();
    let parts = Parts { ns: told.parts.unwrap_or_default(), shrinkers };
    parts.sorted().into_iter().scan(start, move |at, (part, ns)| {
        let start = *at;
        *at = start.saturating_add(ns).min(end);
        (start < end).then_some(Slice { start, end: *at, what: Of::Part(part) })
    })
}

/// A number that is a track's alone.
fn uuid(of: impl Hash) -> u64 {
    FixedState::default().hash_one(of).max(1)
}

/// The id of a process or thread, apart from those of other boots.
fn apart(id: u32, boot: &Boot) -> i32 {
    let boot = u32::try_from(boot.number % MOST_BOOTS).unwrap_or_default();
    let id = (id & ((1 << PID_BITS) - 1)) | (boot << PID_BITS);
    i32::try_from(id).unwrap_or_default()
}

fn number(arg: Arg, value: impl Into<u64>) -> DebugAnnotation {
    let uint_value = Some(value.into());
    DebugAnnotation { name_iid: Some(arg.iid()), uint_value, ..DebugAnnotation::default() }
}

fn signed(arg: Arg, value: i32) -> DebugAnnotation {
    let int_value = Some(value.into());
    DebugAnnotation { name_iid: Some(arg.iid()), int_value, ..DebugAnnotation::default() }
}
