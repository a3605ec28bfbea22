//! What must hold of every recording, for tests and the fuzzer, which includes this file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use rustix::fs::{MemfdFlags, memfd_create};

use super::made::{Made, Source, Step, nameless};
use crate::kind::Kind;
use crate::live::Event;
use crate::names::Names;
use crate::recording::file::{BLOCK_HEADER, block, header};
use crate::recording::{Block, Builder, Class, Fired, Item, Meta, ReadError, Recording, Told};
use crate::scope::Scope;
use crate::stall::{Detail, Stall};
use crate::symbols::{Frame, Symbols};

/// Something that was read, with the names that its stack in user space had then.
type Named = (Item, Vec<Rc<Frame>>);

/// Records what was made; gives the blocks, and what has to be read from them.
fn record(made: &Made) -> (Vec<Vec<u8>>, Vec<Named>) {
    let mut builder = Builder::new(0, made.scopes);
    let mut names = made.names();
    let (mut blocks, mut expected) = (Vec::new(), Vec::new());
    let mut held: Vec<Stall> = Vec::new();
    for step in &made.steps {
        match step {
            Step::Name(pid, stack, frames) => names.symbols.learn_user(*pid, stack, frames),
            Step::Event(event) => {
                builder.event(event, &mut names);
                match event {
                    Event::Stall(stall) if made.scopes => {
                        held.push(stall.clone());
                        continue;
                    }
                    Event::Scope(scope) => {
                        for stall in held.extract_if(.., |stall| stall.tid == scope.tid) {
                            expected.push(named(Item::Event(Event::Stall(stall)), &mut names));
                        }
                    }
                    _ => {}
                }
                expected.push(named(Item::Event(event.clone()), &mut names));
            }
            Step::Note(note) => {
                builder.note(note);
                expected.push((Item::Note(note.clone()), Vec::new()));
            }
            Step::Cut => blocks.push(builder.finish(0).0.to_vec()),
        }
    }
    builder.release(&mut names);
    for stall in held {
        expected.push(named(Item::Event(Event::Stall(stall)), &mut names));
    }
    blocks.push(builder.finish(0).0.to_vec());
    (blocks, expected)
}

fn named(item: Item, names: &mut Names) -> Named {
    let frames = match &item {
        Item::Event(Event::Stall(stall)) => names.symbols.user(stall.pid, &stall.user_stack),
        Item::Event(Event::Oom(oom)) => names.symbols.user(oom.pid, &oom.user_stack),
        _ => Vec::new(),
    };
    (item, frames)
}

/// What is recorded comes back: everything in its order, and all names. Gives the blocks.
pub fn comes_back(made: &Made) -> Vec<Vec<u8>> {
    let (blocks, mut expected) = record(made);
    let mut known = made.names();
    let mut names = nameless(Symbols::from_frames([]));
    let mut expected = expected.drain(..);
    for raw in &blocks {
        let block = Block::decode(raw).expect("it was just written");
        block.teach(&mut names);
        block.each(&mut names, |item, names| {
            let (next, frames) = expected.next().expect("no more comes than was recorded");
            assert_eq!(item, next);
            names_come_back(&item, &frames, &mut known, names);
        });
        for scopes in [false, true] {
            told_agrees(&block, scopes, made.in_order, &mut names);
        }
    }
    assert!(expected.next().is_none(), "all comes that was recorded");
    blocks
}

fn names_come_back(item: &Item, frames: &[Rc<Frame>], known: &mut Names, names: &mut Names) {
    let mut cgroups = Vec::new();
    let mut addresses = Vec::new();
    match item {
        Item::Event(Event::Stall(stall)) => {
            assert_eq!(names.symbols.user(stall.pid, &stall.user_stack), frames);
            cgroups.extend(stall.cgroup_id);
            if let Detail::Reclaim(reclaim) = &stall.detail {
                cgroups.extend(reclaim.target_cgroup_id.filter(|id| *id != 0));
            }
            addresses.extend_from_slice(&stall.stack);
        }
        Item::Event(Event::Scope(scope)) => {
            cgroups.extend(scope.cgroup_id);
            addresses.extend_from_slice(&scope.callers);
            addresses.extend(scope.parts.shrinkers.iter().map(|(function, _)| *function));
        }
        Item::Event(Event::Oom(oom)) => {
            assert_eq!(names.symbols.user(oom.pid, &oom.user_stack), frames);
            cgroups.extend(oom.cgroup_id.into_iter().chain(oom.victim_cgroup_id));
            addresses.extend_from_slice(&oom.stack);
        }
        Item::Note(_) => {}
    }
    for id in cgroups {
        assert_eq!(names.cgroups.path(id), known.cgroups.path(id), "cgroup {id}");
    }
    for address in addresses {
        assert_eq!(names.symbols.at(address), known.symbols.at(address));
    }
}

/// What is told of the stalls is what follows from all that comes of them.
fn told_agrees(block: &Block, scopes: bool, in_order: bool, names: &mut Names) {
    let (mut stalls, mut expected) = (Vec::new(), Vec::new());
    block.each(names, |item, names| match item {
        Item::Event(Event::Stall(stall)) => {
            if scopes {
                stalls.push(stall);
            } else {
                expected.push(Expected::of_stall(&stall));
            }
        }
        Item::Event(Event::Scope(scope)) if scopes => {
            expected.push(Expected::of_scope(&scope, &std::mem::take(&mut stalls), names));
        }
        _ => {}
    });
    let mut told = Vec::new();
    block.told(scopes, |stall| told.push(Expected::of_told(stall, block)));
    if scopes && !in_order {
        for (told, expected) in told.iter_mut().zip(&expected) {
            told.by_rounds.clone_from(&expected.by_rounds);
        }
    }
    assert_eq!(told, expected);
}

/// A stall as reports count it, by itself.
#[derive(Debug, PartialEq)]
struct Expected {
    whose: (u32, u32, u32, Vec<u8>, Option<u64>),
    times: (u64, u64, u32),
    parts: Option<Vec<u64>>,
    shrinkers: Vec<(u64, u64)>,
    by_rounds: ByRounds,
}

#[derive(Clone, Debug, PartialEq)]
struct ByRounds {
    kind: Kind,
    nr_reclaimed: u64,
    order: Option<i32>,
    stack: Vec<u64>,
}

impl Expected {
    fn of_told(told: &Told<'_>, block: &Block) -> Self {
        let thread = told.thread;
        let comm = thread.comm.as_bytes().to_vec();
        Self {
            whose: (thread.pid, thread.tid, thread.uid, comm, thread.cgroup_id),
            times: (told.start_ns, told.duration_ns, told.cpu),
            parts: told.parts.map(|parts| parts.to_vec()),
            shrinkers: told.scope.map(|at| block.shrinkers(at).collect()).unwrap_or_default(),
            by_rounds: ByRounds {
                kind: told.kind,
                nr_reclaimed: told.nr_reclaimed,
                order: told.class.and_then(Class::order),
                stack: block.stack(told.stack).to_vec(),
            },
        }
    }

    fn of_stall(stall: &Stall) -> Self {
        let comm = stall.comm.as_bytes().to_vec();
        Self {
            whose: (stall.pid, stall.tid, stall.uid, comm, stall.cgroup_id),
            times: (stall.start_ns, stall.duration_ns, stall.cpu),
            parts: None,
            shrinkers: Vec::new(),
            by_rounds: ByRounds {
                kind: Kind::of(stall),
                nr_reclaimed: pages(stall),
                order: stall.order,
                stack: stall.stack.clone(),
            },
        }
    }

    fn of_scope(scope: &Scope, stalls: &[Stall], names: &mut Names) -> Self {
        let end_ns = |start_ns: u64, duration_ns: u64| start_ns.wrapping_add(duration_ns);
        let stall_end_ns = |stall: &Stall| end_ns(stall.start_ns, stall.duration_ns);
        let is_inside = |stall: &&Stall| {
            stall.tid == scope.tid
                && stall.start_ns >= scope.start_ns
                && stall_end_ns(stall) <= end_ns(scope.start_ns, scope.duration_ns)
        };
        let inside: Vec<_> = stalls.iter().filter(is_inside).collect();
        let is_nested_in = |stall: &Stall, other: &Stall| {
            Kind::of(stall) == Kind::Softlimit
                && Kind::of(other) != Kind::Softlimit
                && matches!(other.detail, Detail::Reclaim(_))
                && other.start_ns <= stall.start_ns
                && stall_end_ns(stall) <= stall_end_ns(other)
        };
        let is_nested = |stall: &&&Stall| !inside.iter().any(|other| is_nested_in(stall, other));
        let outer: Vec<_> = inside.iter().filter(is_nested).collect();
        let longest = outer.iter().max_by_key(|stall| stall.duration_ns);
        let mut callers = || {
            let functions = scope.callers.iter().map(|at| names.symbols.function(*at));
            let functions: Vec<_> = functions.collect();
            Kind::of_functions(functions.iter().map(String::as_str))
        };
        let comm = scope.comm.as_bytes().to_vec();
        Self {
            whose: (scope.pid, scope.tid, scope.uid, comm, scope.cgroup_id),
            times: (scope.start_ns, scope.duration_ns, scope.cpu),
            parts: Some(scope.parts.ns.to_vec()),
            shrinkers: scope.parts.shrinkers.clone(),
            by_rounds: ByRounds {
                kind: longest.map_or_else(&mut callers, |stall| Kind::of(stall)),
                nr_reclaimed: outer.iter().fold(0, |sum: u64, it| sum.saturating_add(pages(it))),
                order: longest.and_then(|stall| stall.order),
                stack: longest.map_or(scope.callers.clone(), |stall| stall.stack.clone()),
            },
        }
    }
}

fn pages(stall: &Stall) -> u64 {
    match &stall.detail {
        Detail::Reclaim(reclaim) if !reclaim.compaction_ready => reclaim.nr_reclaimed,
        _ => 0,
    }
}

/// A file of these bytes, in memory.
#[must_use]
pub fn file(bytes: &[u8]) -> File {
    let file = memfd_create("recording", MemfdFlags::CLOEXEC).expect("a file in memory");
    let file = File::from(file);
    file.write_all_at(bytes, 0).expect("memory");
    file
}

/// A whole file of these blocks.
#[must_use]
pub fn whole(meta: &Meta, blocks: &[Vec<u8>]) -> Vec<u8> {
    let (mut bytes, mut out) = (header(meta), Vec::new());
    for (raw, number) in blocks.iter().zip(0..) {
        block(raw, number, (number, number + 1), &mut out);
        bytes.extend_from_slice(&out);
    }
    bytes
}

/// Reads all that can be read of a file of these bytes; gives how many blocks could be.
pub fn read_file(bytes: &[u8]) -> Result<usize, ReadError> {
    let recording = Recording::open(file(bytes))?;
    let mut names = nameless(Symbols::from_frames([]));
    let mut read = 0;
    for place in &recording.places {
        if let Ok(block) = recording.block(place) {
            read_block(&block, &mut names);
            read += 1;
        }
    }
    Ok(read)
}

/// Reads all that is in a block.
pub fn read_block(block: &Block, names: &mut Names) {
    block.teach(names);
    let mut items = 0;
    block.each(names, |_, _| items += 1);
    assert!(items <= block.len());
    for scopes in [false, true] {
        block.told(scopes, |told| {
            let _parts = (block.stack(told.stack), block.user_frames(told.user_stack));
            let _zone = told.class.and_then(|class| block.zone(class));
            let _time = told.scope.map(|scope| block.shrinkers(scope).map(|(_, ns)| ns).max());
        });
    }
}

/// Reads the bytes of a block that was decompressed, if they make sense; gives whether.
#[must_use]
pub fn read_raw(raw: &[u8]) -> bool {
    let block = Block::decode(raw);
    if let Ok(block) = &block {
        read_block(block, &mut nameless(Symbols::from_frames([])));
    }
    block.is_ok()
}

/// Makes a recording of the first half of the bytes, which has to come back, and changes it by the second one, with
/// checksums that are right again: it can be read or not.
pub fn read_changed(bytes: &[u8]) {
    let (making, changing) = bytes.split_at(bytes.len() / 2);
    let made = Made::of(&mut Source(making), 32);
    let mut raws = comes_back(&made);
    let mut changes = Source(changing);
    for raw in &mut raws {
        for _ in 0..changes.byte() % 8 {
            change(raw, &mut changes);
        }
    }
    let mut bytes = whole(&Meta { scopes: made.scopes, ..Meta::default() }, &raws);
    for _ in 0..changes.byte() % 4 {
        change(&mut bytes, &mut changes);
    }
    // What the headers of blocks say.
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memmem::find(rest, MAGIC)) {
        at += found;
        let Some(front) = bytes.get_mut(at..at + BLOCK_HEADER) else { break };
        if changes.byte() % 4 == 3 {
            let field = 8 + 4 * usize::from(changes.byte() % 9);
            front[field..field + 4].copy_from_slice(&changes.number().to_le_bytes()[..4]);
        }
        let checksum = crc32fast::hash(&front[..BLOCK_HEADER - 4]);
        front[BLOCK_HEADER - 4..].copy_from_slice(&checksum.to_le_bytes());
        at += 1;
    }
    let _read: Result<usize, ReadError> = read_file(&bytes);
}

/// Makes one or two recordings of the first half of the bytes: their blocks are changed by the second one, come once or
/// several times, and are in both, or damaged.
///
/// # Panics
/// Where what was made cannot be opened.
#[must_use]
pub fn recordings(bytes: &[u8]) -> Vec<Recording> {
    let (making, changing) = bytes.split_at(bytes.len() / 2);
    let made = Made::of(&mut Source(making), 64);
    let (mut raws, _) = record(&made);
    let mut changes = Source(changing);
    for raw in &mut raws {
        for _ in 0..changes.byte() % 4 {
            change(raw, &mut changes);
        }
    }
    let meta = Meta {
        scopes: made.scopes,
        host: String::from_utf8_lossy(changes.bytes(30)).into_owned(),
        boot: String::from_utf8_lossy(changes.bytes(3)).into_owned(),
        throttles: vec![(0, String::from_utf8_lossy(changes.bytes(30)).into_owned())],
        began_ns: changes.number().cast_signed(),
        trigger: (changes.byte() % 4 == 3).then(Fired::default),
        ..Meta::default()
    };
    let mut files = vec![header(&meta); 1 + usize::from(changes.byte() % 2)];
    let (mut number, mut out) = (0, Vec::new());
    for raw in &raws {
        let is_often = changes.byte() > 247;
        let times = 1 + changes.byte() % if is_often { 128 } else { 3 };
        for _ in 0..times {
            // Most are as a recorder numbers them.
            let how = if is_often { 0 } else { changes.byte() };
            let first_ns = if how & 1 == 0 { number } else { changes.number() };
            let last_ns = if how & 2 == 0 { first_ns.saturating_add(1) } else { changes.number() };
            if how & 4 != 0 {
                number = changes.number();
            }
            block(raw, number, (first_ns, last_ns), &mut out);
            if how > 223 {
                let at = usize::try_from(changes.number()).unwrap_or_default() % out.len();
                out[at] ^= 1;
            }
            number = number.wrapping_add(1);
            for (at, file) in files.iter_mut().enumerate() {
                if (how >> 3 & 3) != u8::try_from(at + 1).unwrap_or_default() {
                    file.extend_from_slice(&out);
                }
            }
        }
    }
    let open = |bytes: &Vec<u8>| Recording::open(file(bytes)).expect("its header is right");
    files.iter().map(open).collect()
}

const MAGIC: &[u8] = b"\xb1mtblock";

fn change(bytes: &mut Vec<u8>, changes: &mut Source<'_>) {
    let places = bytes.len().max(1);
    let at = usize::try_from(changes.number()).unwrap_or_default() % places;
    match changes.byte() % 4 {
        0 | 1 => {
            let new = changes.number().to_le_bytes();
            let new = &new[..usize::from(changes.byte() % 8)];
            bytes.iter_mut().skip(at).zip(new).for_each(|(old, new)| *old = *new);
        }
        2 => {
            let new = changes.bytes(64).to_vec();
            bytes.splice(at.min(bytes.len())..at.min(bytes.len()), new);
        }
        _ => {
            let len = usize::from(changes.byte()).min(bytes.len().saturating_sub(at));
            bytes.drain(at.min(bytes.len())..at.min(bytes.len()) + len);
        }
    }
}
