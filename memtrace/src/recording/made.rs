//! Recordings made of any bytes, for tests and the fuzzer, which includes this file. What is made of no bytes at all is
//! short and all zero.

use std::collections::BTreeMap;
use std::rc::Rc;

use memtrace_common::record::{CALLERS, SHRINKERS, STACK_DEPTH, part};

use crate::cgroup::Cgroups;
use crate::clock::WallClock;
use crate::live::Event;
use crate::names::{EnumNames, GfpNames, Names};
use crate::recording::{Counts, End, Look, Note, Settled};
use crate::scope::{Oom, Parts, Scope};
use crate::stall::{
    Cause, Comm, Compaction, Detail, Limit, Reclaim, ReclaimKind, Scanned, Stall, Watermarks, Zone,
};
use crate::symbols::{Frame, Symbols};
use crate::verdict::State;

/// Bytes that choose what is made; zeros once they are used up.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a>(pub &'a [u8]);

impl<'a> Source<'a> {
    /// Whether there are none left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next of them.
    pub fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// The next so many, or as many as there are.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let count = self.count(16).min(most);
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// A number, often a small or an extreme one.
    pub fn number(&mut self) -> u64 {
        match self.byte() % 8 {
            0..4 => self.byte().into(),
            4 => u64::MAX - u64::from(self.byte()),
            5 => (1 << (self.byte() % 64)) - u64::from(self.byte() % 2),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    fn number32(&mut self) -> u32 {
        let number = self.number();
        u32::try_from(number & 0xffff_ffff).unwrap_or_default() | u32::from(number == u64::MAX)
    }

    fn signed(&mut self) -> i32 {
        self.number32().rotate_right(1).cast_signed()
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    fn few<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.count(4).min(most)).map(|_| make(self)).collect()
    }

    /// Mostly less than `few`, at times up to 255.
    fn count(&mut self, few: usize) -> usize {
        let count = usize::from(self.byte());
        if count < 248 { count % few } else { count }
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes(300)).into_owned()
    }
}

/// What is done while a recording is made.
#[derive(Clone, Debug)]
pub enum Step {
    /// A stack in user space goes by these names from now on.
    Name(u32, Vec<u64>, Vec<Rc<Frame>>),
    /// Something comes.
    Event(Event),
    /// A note is taken.
    Note(Note),
    /// A block ends.
    Cut,
}

/// What a recording is made of.
#[derive(Clone, Debug)]
pub struct Made {
    /// Whether scopes come.
    pub scopes: bool,
    /// Whether times are as they are in life: whatever ends, ends after what came before it.
    pub in_order: bool,
    /// Paths of cgroups; those that are not there are not found.
    pub paths: BTreeMap<u64, Vec<u8>>,
    /// In this order.
    pub steps: Vec<Step>,
}

/// The kernel's functions that have names, from address 1 on.
const FUNCTIONS: [&str; 6] =
    ["swap_readpage", "filemap_read_folio", "", "psi_memstall_enter", "\u{1b}[2J\"\\", "é"];

impl Made {
    /// Makes up to `most` steps.
    pub fn of(source: &mut Source<'_>, most: usize) -> Self {
        let (scopes, in_order) = (source.flag(), source.flag());
        let paths = source.few(6, |source| source.bytes(80).to_vec());
        let mut made =
            Self { scopes, in_order, paths: (0..).zip(paths).collect(), steps: Vec::new() };
        let mut clock_ns = 1 << 40;
        while !source.is_empty() && made.steps.len() < most {
            let times = if in_order {
                clock_ns += 1 + u64::from(source.byte());
                let duration_ns = u64::from(source.byte()) << (source.byte() % 5);
                [clock_ns - duration_ns, duration_ns]
            } else {
                [source.number(), source.number()]
            };
            let step = match source.byte() % 16 {
                0..6 => Step::Event(Event::Stall(stall(source, times))),
                6..10 => Step::Event(Event::Scope(scope(source, times))),
                10 => Step::Event(Event::Oom(oom(source, times[0]))),
                11 | 12 => Step::Note(note(source, times[0])),
                13 | 14 => {
                    let stack = user_stack(source);
                    let frame = |source: &mut Source<'_>| Rc::new(frame(source));
                    let frames = source.few(stack.len(), frame);
                    Step::Name(id(source), stack, frames)
                }
                _ => Step::Cut,
            };
            made.steps.push(step);
        }
        made
    }

    /// The names that go with it.
    #[must_use]
    pub fn names(&self) -> Names {
        let functions = FUNCTIONS.iter().zip(1..);
        let functions = functions.map(|(name, at)| (at, Frame::of_function(name, at)));
        let mut names = nameless(Symbols::from_frames(functions));
        for (id, path) in &self.paths {
            names.cgroups.learn(*id, Some(path.clone()));
        }
        names
    }
}

/// Names of functions alone.
#[must_use]
pub fn nameless(symbols: Symbols) -> Names {
    Names {
        gfp: GfpNames::default(),
        modes: EnumNames::default(),
        statuses: EnumNames::default(),
        throttles: EnumNames::default(),
        cgroups: Cgroups::default(),
        clock: WallClock::now(),
        symbols,
        page_size: 4096,
    }
}

/// The same ones come again and again.
fn id(source: &mut Source<'_>) -> u32 {
    let id = source.byte();
    if id < 224 { u32::from(id % 4) } else { source.number32() }
}

fn cgroup(source: &mut Source<'_>) -> u64 {
    id(source).into()
}

fn address(source: &mut Source<'_>) -> u64 {
    let address = source.byte();
    if address < 224 { u64::from(address % 8) } else { source.number() }
}

fn stack(source: &mut Source<'_>) -> Vec<u64> {
    source.few(STACK_DEPTH, address)
}

fn user_stack(source: &mut Source<'_>) -> Vec<u64> {
    source.few(STACK_DEPTH, |source| u64::from(source.byte() % 2))
}

fn frame(source: &mut Source<'_>) -> Frame {
    let offset = source.number();
    match source.byte() % 3 {
        0 => Frame::of_function(&source.text(), offset),
        1 => Frame::of_module(&source.text(), offset),
        _ => Frame::nameless(offset),
    }
}

fn comm(source: &mut Source<'_>) -> Comm {
    let name = source.bytes(Comm::LEN);
    Comm::new(std::array::from_fn(|at| name.get(at).copied().unwrap_or_default()))
}

fn stall(source: &mut Source<'_>, [start_ns, duration_ns]: [u64; 2]) -> Stall {
    Stall {
        start_ns,
        duration_ns,
        pid: id(source),
        tid: id(source),
        uid: id(source),
        cpu: source.number32(),
        comm: comm(source),
        order: source.maybe(Source::signed),
        gfp: source.maybe(Source::number32),
        cgroup_id: source.maybe(cgroup),
        detail: if source.flag() {
            Detail::Compaction(compaction(source))
        } else {
            Detail::Reclaim(reclaim(source))
        },
        stack: stack(source),
        user_stack: user_stack(source),
    }
}

fn reclaim(source: &mut Source<'_>) -> Reclaim {
    Reclaim {
        kind: source.one_of(&ReclaimKind::ALL),
        limit: source.one_of(&[None, Some(Limit::High), Some(Limit::Max)]),
        nr_scanned: source.maybe(Source::number),
        nr_reclaimed: source.number(),
        compaction_ready: source.flag(),
        priority: source.maybe(Source::signed),
        target_cgroup_id: source.maybe(cgroup),
        free_pages: source.maybe(Source::number),
        node: source.maybe(Source::signed),
    }
}

fn compaction(source: &mut Source<'_>) -> Compaction {
    let zone = |source: &mut Source<'_>| Zone {
        node: source.signed(),
        name: source.one_of(&["DMA", "Normal", "", "\u{1b}[2J"]).to_owned(),
    };
    Compaction {
        cause: source.one_of(&Cause::ALL),
        zone: source.maybe(zone),
        mode: source.maybe(Source::number32),
        status: source.signed(),
        scanned: source.maybe(|source| Scanned { migrate: source.number(), free: source.number() }),
        watermarks: source.maybe(|source| Watermarks {
            min: source.number(),
            low: source.number(),
            high: source.number(),
            free: source.number(),
        }),
        frag_index: source.maybe(Source::signed),
    }
}

fn scope(source: &mut Source<'_>, [start_ns, duration_ns]: [u64; 2]) -> Scope {
    let parts = [(); part::COUNT].map(|()| source.number());
    let shrinkers = source.few(SHRINKERS, |source| (u64::from(source.byte() % 8), source.number()));
    Scope {
        start_ns,
        duration_ns,
        pid: id(source),
        tid: id(source),
        uid: id(source),
        cpu: source.number32(),
        comm: comm(source),
        cgroup_id: source.maybe(cgroup),
        parts: Parts { ns: parts, shrinkers },
        callers: source.few(CALLERS, address),
    }
}

fn oom(source: &mut Source<'_>, at_ns: u64) -> Oom {
    Oom {
        at_ns,
        pid: id(source),
        tid: id(source),
        uid: id(source),
        comm: comm(source),
        cgroup_id: source.maybe(cgroup),
        victim_pid: source.number32(),
        victim_comm: source.maybe(comm),
        victim_cgroup_id: source.maybe(cgroup),
        stack: stack(source),
        user_stack: user_stack(source),
    }
}

fn note(source: &mut Source<'_>, at_ns: u64) -> Note {
    let counts = |source: &mut Source<'_>| Counts {
        lost: source.number(),
        missed_begin: source.number(),
        table_full: source.number(),
        skipped: source.number(),
        unfinished: source.number(),
    };
    match source.byte() % 6 {
        0 => Note::Clock(source.number().cast_signed()),
        1 => Note::Settled(Settled {
            now_ns: at_ns,
            held: source.few(20, |source| (id(source), source.number())),
        }),
        2 => {
            let state = |source: &mut Source<'_>| State {
                swap_free: source.maybe(Source::number),
                current: source.maybe(Source::number),
                ..State::default()
            };
            Note::State(source.number(), source.maybe(state))
        }
        3 => Note::Interval(source.number().cast_signed(), source.number()),
        4 => {
            let files = |source: &mut Source<'_>| {
                source.few(8, |source| (source.text(), source.text())).into_iter().collect()
            };
            let cgroups = source.few(8, |source| (cgroup(source), files(source)));
            Note::Look(Look {
                at_ns,
                files: files(source),
                cgroups: cgroups.into_iter().collect(),
                counts: counts(source),
            })
        }
        _ => Note::End(End {
            at_ns: source.number().cast_signed(),
            duration_ns: source.number(),
            counts: counts(source),
            unavailable: source.few(8, Source::text),
            gone: source.few(20, Source::number32),
        }),
    }
}
