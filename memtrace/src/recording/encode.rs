//! A block in the making: stalls in columns, and once each the threads, allocations and stacks that they share.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::hash::Hash;
use std::mem;
use std::rc::Rc;

use foldhash::fast::RandomState;
use memtrace_common::record::{SHRINKERS, STACK_DEPTH, part};
use serde::Serialize;

use super::meta::Note;
use super::rows::{Columns, Round, Spent};
use super::sections::{Id, Writer, zigzag};
use super::tables::{Class, Head, NamedPath, PathText, Rows, Thread, What, item, known};
use crate::live::Event;
use crate::names::Names;
use crate::scope::Scope;
use crate::stall::{Detail, Stall};
use crate::symbols::Frame;

/// Rows after which a block is full.
pub const MOST_ROWS: usize = 8192;
/// Bytes of stacks, names and notes after which it is.
const MOST_BYTES: usize = 1 << 20;
/// Times as many bytes after which it takes no new stacks and names, which many rounds at once may bring: a reader would
/// refuse it.
const FAR_TOO_MANY: usize = 2;
/// Longest note: with any more in front of it a reader would refuse the block.
const MOST_NOTE: usize = 2 * MOST_BYTES;
/// What a name takes in the head beside its text, at most.
const NAME_BYTES: usize = 72;

/// Most rounds of a scope that wait for it.
const MOST_INSIDE: usize = 1024;
/// Rounds for which a thread keeps the room until the block ends.
const MOST_SPARE: usize = 4;
/// Most threads whose rounds wait.
const MOST_HELD: usize = 4096;
/// Memory that all rounds that wait may take, roughly, beside 1 KiB for each thread that has none just now.
const MOST_HELD_BYTES: usize = 8 << 20;

/// Numbers for the distinct values of a table, in the order in which they came.
#[derive(Debug)]
struct Table<T> {
    numbers: HashMap<T, u32, RandomState>,
    rows: Vec<T>,
    /// Neighbours are often the same.
    last: u32,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { numbers: HashMap::default(), rows: Vec::new(), last: 0 }
    }
}

impl<T: Clone + Eq + Hash> Table<T> {
    /// The value's number, and whether it is a new one.
    fn number<Q>(&mut self, value: &Q) -> (u32, bool)
    where
        T: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = T> + ?Sized,
    {
        if self.rows.get(self.last as usize).is_some_and(|last| last.borrow() == value) {
            return (self.last, false);
        }
        let known = self.numbers.get(value).copied();
        self.last = known.unwrap_or_else(|| {
            // There are no more than rows in a block.
            let number = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
            self.numbers.insert(value.to_owned(), number);
            self.rows.push(value.to_owned());
            number
        });
        (self.last, known.is_none())
    }

    fn clear(&mut self) {
        self.numbers.clear();
        self.rows.clear();
        self.last = 0;
    }
}

/// What a stack in user space looked like when it was taken.
type UserStack = (u32, Vec<u64>, Vec<Rc<Frame>>);

/// A block in the making.
#[derive(Debug, Default)]
pub struct Builder {
    order: Vec<u64>,
    /// Whether scopes come, each after what was in it: rounds wait for them, so that they stand together.
    scopes_come: bool,
    /// By thread, what waits, with its place among all that came; of many threads that is nothing at the moment.
    inside: HashMap<u32, Vec<(u64, Stall)>, RandomState>,
    came: u64,
    held_bytes: usize,
    threads: Table<Thread>,
    classes: Table<Class>,
    zones: Table<String>,
    rounds: Columns<14>,
    scopes: Columns<{ 6 + part::COUNT }>,
    shrinkers: Vec<(u64, u64)>,
    stacks: Table<Vec<u64>>,
    user_stacks: Vec<UserStack>,
    user_frames: Table<Rc<Frame>>,
    /// Of all stacks in user space, one behind the other.
    user_frame_numbers: Vec<u32>,
    /// By process and addresses, the latest of them.
    user_numbers: HashMap<(u32, Vec<u64>), u32, RandomState>,
    notes: Vec<u8>,
    /// Of each note, the number of its stack in user space.
    note_stacks: Vec<u32>,
    paths: BTreeMap<u64, Option<Vec<u8>>>,
    functions: BTreeMap<u64, Rc<Frame>>,
    /// The zero of `CLOCK_MONOTONIC` as the block begins.
    epoch_ns: i64,
    /// When the first thing in it began, and the last one ended.
    span_ns: Option<(u64, u64)>,
    bytes: usize,
    /// Rows, and bytes of stacks, names and notes, after which it is full.
    most_rows: usize,
    most_bytes: usize,
    writer: Writer,
    json: Vec<u8>,
}

impl Builder {
    /// An empty one.
    #[must_use]
    pub fn new(epoch_ns: i64, scopes_come: bool) -> Self {
        let (most_rows, most_bytes) = (MOST_ROWS, MOST_BYTES);
        Self { scopes_come, epoch_ns, most_rows, most_bytes, ..Self::default() }
    }

    /// Has it full with so many rows, or bytes of stacks, names and notes, if it is not before.
    #[must_use]
    pub fn at_most(self, rows: usize, bytes: usize) -> Self {
        Self { most_rows: rows.min(MOST_ROWS), most_bytes: bytes.min(MOST_BYTES), ..self }
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether no more should be put into it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.order.len() >= self.most_rows || self.bytes >= self.most_bytes
    }

    /// When the first thing in it began, and the last one ended, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn span_ns(&self) -> Option<(u64, u64)> {
        self.span_ns
    }

    /// Takes an event. Names of what it mentions for the first time are asked for.
    pub fn event(&mut self, event: &Event, names: &mut Names) {
        match event {
            Event::Stall(stall) if self.scopes_come => self.hold(stall, names),
            Event::Stall(stall) => self.round(stall, names),
            Event::Scope(scope) => {
                self.release_thread(scope.tid, names);
                self.scope(scope, names);
            }
            Event::Oom(oom) => {
                for id in oom.cgroup_id.into_iter().chain(oom.victim_cgroup_id) {
                    self.path(id, names);
                }
                // For the names of its functions.
                let _number: u32 = self.stack(&oom.stack, names);
                let user_stack = self.user_stack(oom.pid, &oom.user_stack, names);
                self.spans(oom.at_ns, oom.at_ns);
                self.push_note(&Note::Oom(Box::new(oom.clone())), user_stack);
            }
        }
    }

    fn hold(&mut self, stall: &Stall, names: &mut Names) {
        let tid = stall.tid;
        self.held_bytes += held_bytes(stall);
        let inside = self.inside.entry(tid).or_default();
        inside.push((self.came, stall.clone()));
        self.came += 1;
        // Those of scopes that were lost.
        if inside.len() >= MOST_INSIDE {
            self.release_thread(tid, names);
        } else if self.held_bytes >= MOST_HELD_BYTES {
            self.release(names);
        } else if self.inside.len() > MOST_HELD {
            self.inside.retain(|_, inside| !inside.is_empty());
            if self.inside.len() > MOST_HELD {
                self.release(names);
            }
        }
    }

    /// The rounds of a thread that wait for their scope.
    pub fn held(&self, tid: u32) -> impl Iterator<Item = &Stall> {
        self.inside.get(&tid).into_iter().flatten().map(|(_, stall)| stall)
    }

    /// Leaves out the rounds of a thread that wait for their scope.
    pub fn forget(&mut self, tid: u32) {
        for (_, stall) in self.inside.remove(&tid).unwrap_or_default() {
            self.held_bytes -= held_bytes(&stall);
        }
    }

    /// Leaves out all rounds that wait for their scopes.
    pub fn forget_all(&mut self) {
        self.inside.clear();
        self.held_bytes = 0;
    }

    fn release_thread(&mut self, tid: u32, names: &mut Names) {
        let Some(inside) = self.inside.get_mut(&tid) else { return };
        let mut inside = mem::take(inside);
        for (_, stall) in inside.drain(..) {
            self.held_bytes -= held_bytes(&stall);
            self.round(&stall, names);
        }
        // The thread's next ones will need the room.
        if inside.capacity() <= MOST_SPARE
            && let Some(empty) = self.inside.get_mut(&tid)
        {
            *empty = inside;
        }
    }

    /// Takes the rounds whose scopes have not come.
    pub fn release(&mut self, names: &mut Names) {
        let mut held: Vec<_> = mem::take(&mut self.inside).into_values().flatten().collect();
        held.sort_unstable_by_key(|(came, _)| *came);
        self.held_bytes = 0;
        for (_, stall) in &held {
            self.round(stall, names);
        }
    }

    /// Takes a note, unless it is longer than two MiB.
    pub fn note(&mut self, note: &Note) {
        if let Note::Look(look) = note {
            self.spans(look.at_ns, look.at_ns);
        }
        self.push_note(note, 0);
    }

    fn push_note(&mut self, note: &Note, user_stack: u32) {
        let start = self.notes.len();
        self.notes.push(if start == 0 { b'[' } else { b',' });
        append_json(note, &mut self.notes);
        let len = self.notes.len() - start;
        if len > MOST_NOTE {
            return self.notes.truncate(start);
        }
        self.bytes += len;
        self.note_stacks.push(user_stack);
        self.order.push(item::NOTE);
    }

    /// Ends the block and begins another; gives its bytes, not compressed, and its span, zero where it has none.
    pub fn finish(&mut self, epoch_ns: i64) -> (&[u8], (u64, u64)) {
        self.write();
        let span_ns = self.span_ns.unwrap_or_default();
        self.threads.clear();
        self.classes.clear();
        self.zones.clear();
        self.stacks.clear();
        self.order.clear();
        self.rounds.clear();
        self.scopes.clear();
        self.shrinkers.clear();
        self.inside.retain(|_, inside| !inside.is_empty());
        self.user_stacks.clear();
        self.user_frames.clear();
        self.user_frame_numbers.clear();
        self.user_numbers.clear();
        self.notes.clear();
        self.note_stacks.clear();
        self.paths.clear();
        self.functions.clear();
        (self.epoch_ns, self.span_ns, self.bytes) = (epoch_ns, None, 0);
        (&self.writer.out, span_ns)
    }

    fn spans(&mut self, from_ns: u64, to_ns: u64) {
        let (first, last) = self.span_ns.unwrap_or((from_ns, to_ns));
        self.span_ns = Some((first.min(from_ns), last.max(to_ns)));
    }

    fn path(&mut self, id: u64, names: &mut Names) {
        if !self.has_room() {
            return;
        }
        if let Entry::Vacant(entry) = self.paths.entry(id) {
            let path = names.cgroups.path(id).map(<[u8]>::to_vec);
            self.bytes += NAME_BYTES + path.as_deref().map_or(0, json_len);
            entry.insert(path);
        }
    }

    /// Whether new stacks and names may be put into the block.
    fn has_room(&self) -> bool {
        self.bytes < FAR_TOO_MANY * self.most_bytes
    }

    fn thread(&mut self, thread: Thread, names: &mut Names) -> u32 {
        let (number, is_new) = self.threads.number(&thread);
        if is_new && let Some(id) = thread.cgroup_id {
            self.path(id, names);
        }
        number
    }

    /// The number of a stack of the kernel's; 0 is none.
    fn stack(&mut self, stack: &[u64], names: &mut Names) -> u32 {
        let stack = &stack[..stack.len().min(STACK_DEPTH)];
        if stack.is_empty() {
            return 0;
        }
        if !self.has_room() {
            return self.stacks.numbers.get(stack).map_or(0, |number| number + 1);
        }
        let (number, is_new) = self.stacks.number(stack);
        if is_new {
            self.bytes += size_of_val(stack);
            for address in stack {
                self.function(*address, names);
            }
        }
        number + 1
    }

    fn function(&mut self, address: u64, names: &mut Names) {
        if let Entry::Vacant(entry) = self.functions.entry(address) {
            self.bytes += name_bytes(entry.insert(names.symbols.at(address)));
        }
    }

    /// The number of a stack in user space as it is named now; 0 is none.
    fn user_stack(&mut self, pid: u32, stack: &[u64], names: &mut Names) -> u32 {
        let stack = &stack[..stack.len().min(STACK_DEPTH)];
        if stack.is_empty() {
            return 0;
        }
        let frames = names.symbols.user(pid, stack);
        let key = (pid, stack.to_vec());
        let is_it = |number: &&u32| {
            let known = self.user_stacks.get(**number as usize);
            known.is_some_and(|(_, _, known)| *known == frames)
        };
        if let Some(number) = self.user_numbers.get(&key).filter(is_it) {
            return number + 1;
        }
        if !self.has_room() {
            return 0;
        }
        for frame in &frames {
            let (number, is_new) = self.user_frames.number(frame);
            self.user_frame_numbers.push(number);
            self.bytes += if is_new { name_bytes(frame) } else { size_of_val(&number) };
        }
        self.bytes += size_of_val(stack);
        let number = u32::try_from(self.user_stacks.len()).unwrap_or(u32::MAX);
        self.user_stacks.push((pid, stack.to_vec(), frames));
        self.user_numbers.insert(key, number);
        number + 1
    }

    fn round(&mut self, stall: &Stall, names: &mut Names) {
        let Stall { pid, tid, uid, comm, cgroup_id, .. } = *stall;
        let thread = self.thread(Thread { pid, tid, uid, comm, cgroup_id }, names);
        let mut round = Round {
            end_ns: stall.start_ns.wrapping_add(stall.duration_ns),
            duration_ns: stall.duration_ns,
            thread,
            cpu: stall.cpu,
            stack: self.stack(&stall.stack, names),
            user_stack: self.user_stack(pid, &stall.user_stack, names),
            ..Round::default()
        };
        let mut class = Class::default();
        let mut is_known = |bit: u16, known: bool| class.known |= if known { bit } else { 0 };
        is_known(known::ORDER, stall.order.is_some());
        is_known(known::GFP, stall.gfp.is_some());
        match &stall.detail {
            Detail::Reclaim(reclaim) => {
                is_known(known::SCANNED, reclaim.nr_scanned.is_some());
                is_known(known::PRIORITY, reclaim.priority.is_some());
                is_known(known::TARGET, reclaim.target_cgroup_id.is_some());
                is_known(known::FREE, reclaim.free_pages.is_some());
                is_known(known::NODE, reclaim.node.is_some());
                is_known(known::READY, reclaim.compaction_ready);
                is_known(known::of_limit(reclaim.limit), true);
                class.what = What::Reclaim(reclaim.kind).number();
                class.priority = reclaim.priority.unwrap_or_default();
                class.node = reclaim.node.unwrap_or_default();
                class.target = reclaim.target_cgroup_id.unwrap_or_default();
                round.gained = reclaim.nr_reclaimed;
                round.scanned = reclaim.nr_scanned.unwrap_or_default();
                round.free = reclaim.free_pages.unwrap_or_default();
            }
            Detail::Compaction(compaction) => {
                is_known(known::ZONE, compaction.zone.is_some());
                is_known(known::MODE, compaction.mode.is_some());
                is_known(known::SCANNED, compaction.scanned.is_some());
                is_known(known::FREE, compaction.watermarks.is_some());
                is_known(known::INDEX, compaction.frag_index.is_some());
                class.what = What::Compaction(compaction.cause).number();
                class.mode = compaction.mode.unwrap_or_default();
                class.status = compaction.status;
                if let Some(zone) = &compaction.zone {
                    class.node = zone.node;
                    class.zone = self.zones.number(&zone.name).0;
                }
                if let Some(scanned) = compaction.scanned {
                    (round.gained, round.scanned) = (scanned.migrate, scanned.free);
                }
                if let Some(marks) = compaction.watermarks {
                    (round.min, round.low) = (marks.min, marks.low);
                    (round.high, round.free) = (marks.high, marks.free);
                }
                round.frag_index = compaction.frag_index.unwrap_or_default();
            }
        }
        class.order = stall.order.unwrap_or_default();
        class.gfp = stall.gfp.unwrap_or_default();
        let (number, is_new) = self.classes.number(&class);
        if is_new && class.target != 0 {
            self.path(class.target, names);
        }
        round.class = number;
        self.spans(stall.start_ns, stall.start_ns.saturating_add(stall.duration_ns));
        self.rounds.push(round.row());
        self.order.push(item::ROUND);
    }

    fn scope(&mut self, scope: &Scope, names: &mut Names) {
        let Scope { pid, tid, uid, comm, cgroup_id, .. } = *scope;
        let thread = self.thread(Thread { pid, tid, uid, comm, cgroup_id }, names);
        let callers = self.stack(&scope.callers, names);
        let mut parts = scope.parts.ns;
        let apart = scope.parts.shrinkers.len().min(SHRINKERS);
        let (apart, more) = scope.parts.shrinkers.split_at(apart);
        for (function, ns) in apart {
            if *function != 0 {
                self.function(*function, names);
            }
            self.shrinkers.push((*function, *ns));
        }
        for (_, ns) in more {
            parts[part::SHRINKERS] = parts[part::SHRINKERS].saturating_add(*ns);
        }
        self.spans(scope.start_ns, scope.start_ns.saturating_add(scope.duration_ns));
        let spent = Spent {
            end_ns: scope.start_ns.wrapping_add(scope.duration_ns),
            duration_ns: scope.duration_ns,
            thread,
            cpu: scope.cpu,
            callers,
            shrinkers: u32::try_from(apart.len()).unwrap_or(u32::MAX),
            parts,
        };
        self.scopes.push(spent.row());
        self.order.push(item::SCOPE);
    }

    fn write(&mut self) {
        let Self { writer, json, order, .. } = self;
        writer.out.clear();
        let path =
            |(id, path): (&u64, &Option<Vec<u8>>)| NamedPath(*id, path.clone().map(PathText::from));
        let head = Head {
            epoch_ns: self.epoch_ns,
            rows: Rows {
                rounds: self.rounds.len(),
                scopes: self.scopes.len(),
                threads: self.threads.rows.len(),
                classes: self.classes.rows.len(),
                stacks: self.stacks.rows.len(),
                user_stacks: self.user_stacks.len(),
            },
            zones: self.zones.rows.clone(),
            cgroups: self.paths.iter().map(path).collect(),
            functions: self.functions.iter().map(|(at, frame)| (*at, (**frame).clone())).collect(),
            user_frames: self.user_frames.rows.iter().map(|frame| (**frame).clone()).collect(),
        };
        json.clear();
        append_json(&head, json);
        writer.bytes(Id::Head, json);
        writer.column(Id::Order, order.iter().copied());
        if !self.notes.is_empty() {
            self.notes.push(b']');
        }
        writer.bytes(Id::Notes, &self.notes);
        writer.column(Id::NoteUserStack, self.note_stacks.iter().map(|stack| (*stack).into()));
        self.write_tables();
        self.write_stacks();
        let Self { writer, rounds, scopes, shrinkers, .. } = self;
        rounds.write(Round::columns(), writer);
        scopes.write(Spent::columns(), writer);
        writer.column(Id::ShrinkerFunction, shrinkers.iter().map(|(function, _)| *function));
        writer.column(Id::ShrinkerTime, shrinkers.iter().map(|(_, ns)| *ns));
    }

    fn write_tables(&mut self) {
        let Self { writer, threads, classes, .. } = self;
        let rows = || threads.rows.iter();
        writer.column(Id::ThreadPid, rows().map(|it| it.pid.into()));
        writer.column(Id::ThreadTid, rows().map(|it| it.tid.into()));
        writer.column(Id::ThreadUid, rows().map(|it| it.uid.into()));
        writer.column(Id::ThreadComm0, rows().map(|it| it.words()[0]));
        writer.column(Id::ThreadComm1, rows().map(|it| it.words()[1]));
        writer.column(Id::ThreadCgroup, rows().map(|it| it.cgroup_id.unwrap_or_default()));
        writer.column(Id::ThreadKnown, rows().map(|it| it.cgroup_id.is_some().into()));
        let rows = || classes.rows.iter();
        writer.column(Id::ClassWhat, rows().map(|it| it.what.into()));
        writer.column(Id::ClassKnown, rows().map(|it| it.known.into()));
        writer.column(Id::ClassOrder, rows().map(|it| zigzag(it.order.into())));
        writer.column(Id::ClassGfp, rows().map(|it| it.gfp.into()));
        writer.column(Id::ClassPriority, rows().map(|it| zigzag(it.priority.into())));
        writer.column(Id::ClassNode, rows().map(|it| zigzag(it.node.into())));
        writer.column(Id::ClassZone, rows().map(|it| it.zone.into()));
        writer.column(Id::ClassMode, rows().map(|it| it.mode.into()));
        writer.column(Id::ClassStatus, rows().map(|it| zigzag(it.status.into())));
        writer.column(Id::ClassTarget, rows().map(|it| it.target));
    }

    fn write_stacks(&mut self) {
        let Self { writer, stacks, user_stacks, user_frame_numbers, .. } = self;
        writer.column(Id::StackLength, stacks.rows.iter().map(|stack| stack.len() as u64));
        writer.column(Id::StackAddress, stacks.rows.iter().flatten().copied());
        let stacks = || user_stacks.iter();
        writer.column(Id::UserStackPid, stacks().map(|(pid, _, _)| (*pid).into()));
        writer.column(Id::UserStackLength, stacks().map(|(_, stack, _)| stack.len() as u64));
        writer.column(Id::UserStackAddress, stacks().flat_map(|(_, stack, _)| stack).copied());
        writer.column(Id::UserStackFrames, stacks().map(|(_, _, frames)| frames.len() as u64));
        writer.column(Id::UserStackFrame, user_frame_numbers.iter().map(|frame| (*frame).into()));
    }
}

/// Memory that a round takes while it waits, roughly.
fn held_bytes(stall: &Stall) -> usize {
    size_of::<Stall>() + size_of_val(&stall.stack[..]) + size_of_val(&stall.user_stack[..])
}

/// Bytes that a function's name takes in the head, at most.
fn name_bytes(frame: &Frame) -> usize {
    NAME_BYTES + json_len(frame.text().as_bytes())
}

/// How long text is in JSON; what is not UTF-8 is a list of numbers there.
fn json_len(text: &[u8]) -> usize {
    if str::from_utf8(text).is_err() {
        return 4 * text.len();
    }
    let len = |byte: &u8| match byte {
        b'"' | b'\\' => 2,
        ..b' ' => 6,
        _ => 1,
    };
    text.iter().map(len).sum()
}

fn append_json(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value)
        .expect("writing into memory does not fail, and every key is a text or a number");
}
