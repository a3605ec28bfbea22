//! A block that was read: its stalls again, as they were delivered or a few numbers of each.

use std::ops::ControlFlow;
use std::rc::Rc;

use serde_json::value::RawValue;

use super::columns::{Lists, Rounds, Scopes, UserStacks, classes, lists, signed, threads};
use super::encode::MOST_ROWS;
use super::meta::{Meta, Note, timestamp};
use super::sections::{Column, Damaged, Id, Sections};
use super::tables::{Class, Head, PathText, Rows, Thread, What, at_most, item, known};
use crate::clock::WallClock;
use crate::live::Event;
use crate::names::Names;
use crate::scope::{Parts, Scope};
use crate::stall::{Compaction, Detail, Reclaim, Scanned, Stall, Watermarks, Zone};
use crate::symbols::Frame;

/// Most rows of any table of a block: what a writer puts there where many rounds are released at once, and some more.
const MOST: usize = 8 * MOST_ROWS;

/// Longest text of names, and of notes, in bytes: they may take twelve times as much memory.
const MOST_TEXT: usize = 4 << 20;

/// Longest name of a function, in bytes.
const MOST_NAME: usize = 1024;
/// Longest name of a zone.
const MOST_ZONE_NAME: usize = 64;

/// A block of a recording.
#[derive(Debug)]
pub struct Block {
    pub(super) head: Head,
    pub(super) order: Column,
    pub(super) items: usize,
    notes: Notes,
    pub(super) threads: Vec<Thread>,
    pub(super) classes: Vec<Class>,
    pub(super) rounds: Rounds,
    pub(super) scopes: Scopes,
    stacks: Lists<u64>,
    user_stacks: UserStacks,
}

#[derive(Debug)]
struct Notes {
    known: Vec<Note>,
    /// By the place of a note, its index in `known`; nothing where the note is of a kind that a newer memtrace writes.
    index: Vec<Option<usize>>,
    /// By its place, the stack in user space that goes with it.
    user_stack: Column,
}

/// How a stack in user space was named when it was taken; nothing where there is none.
#[derive(Clone, Copy, Debug)]
pub struct UserNames<'a> {
    stacks: &'a UserStacks,
    number: usize,
}

impl UserNames<'_> {
    /// Has it go by these names from now on.
    pub fn teach(self, names: &mut Names) {
        self.stacks.teach(self.number, names);
    }
}

/// Something in a recording, in the order in which it came.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// What the probes delivered.
    Event(Event),
    /// What stands between.
    Note(Note),
}

impl Block {
    /// Decodes what was decompressed.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let sections = Sections::parse(bytes)?;
        let head = sections.bytes(Id::Head)?;
        if head.len() > MOST_TEXT {
            return Err(Damaged("its names are longer than they can be"));
        }
        let mut head: Head =
            serde_json::from_slice(head).map_err(|_| Damaged("its names make no sense"))?;
        check_names(&head)?;
        let user_frames = std::mem::take(&mut head.user_frames);
        let rows = &head.rows;
        rows.check()?;
        let notes = Notes::read(&sections)?;
        let threads = threads(&sections, rows.threads)?;
        let classes = classes(&sections, rows.classes, head.zones.len())?;
        let stacks = lists(&sections, rows.stacks, Id::StackLength, Id::StackAddress)?;
        let user_stacks = UserStacks::read(&sections, rows.user_stacks, user_frames)?;
        let user_stack_count = rows.user_stacks + 1;
        let items = rows.rounds + rows.scopes + notes.index.len();
        let order = sections.column(Id::Order, items)?;
        check_order(&order, items, [rows.rounds, rows.scopes, notes.index.len()])?;
        notes.user_stack.check_below(user_stack_count, "a stack is missing")?;
        let rounds = Rounds::read(&sections, rows.rounds)?;
        if rows.rounds != 0 {
            rounds.thread.check_below(threads.len(), "a stall is of no thread")?;
            rounds.class.check_below(classes.len(), "a stall is of no kind")?;
            rounds.stack.check_below(stacks.len() + 1, "a stack is missing")?;
            rounds.user_stack.check_below(user_stack_count, "a stack is missing")?;
        }
        let scopes = Scopes::read(&sections, rows.scopes)?;
        if rows.scopes != 0 {
            scopes.thread.check_below(threads.len(), "a stall is of no thread")?;
            scopes.callers.check_below(stacks.len() + 1, "a stack is missing")?;
        }
        Ok(Self {
            head,
            order,
            items,
            notes,
            threads,
            classes,
            rounds,
            scopes,
            stacks,
            user_stacks,
        })
    }

    /// Time of day when `CLOCK_MONOTONIC` was zero, in nanoseconds since 1970, as the block begins.
    #[must_use]
    pub fn epoch_ns(&self) -> i64 {
        self.head.epoch_ns
    }

    /// The names of what is in the block, of a recording of which this is known: every block has all of its own.
    #[must_use]
    pub fn names(&self, meta: &Meta) -> Names {
        let clock = WallClock::from_epoch(timestamp(self.epoch_ns()));
        let mut names = Names { clock, ..meta.names() };
        self.teach(&mut names);
        names
    }

    /// Gives what the block knows of cgroups and functions to those who ask for names.
    pub fn teach(&self, names: &mut Names) {
        for (id, path) in self.paths() {
            names.cgroups.learn(id, path.map(<[u8]>::to_vec));
        }
        for (address, frame) in &self.head.functions {
            names.symbols.learn(*address, frame.clone());
        }
    }

    /// The cgroups that it names, with the paths that were found.
    pub fn paths(&self) -> impl Iterator<Item = (u64, Option<&[u8]>)> {
        self.head.cgroups.iter().map(|named| (named.0, named.1.as_ref().map(PathText::as_bytes)))
    }

    /// The threads of the block.
    #[must_use]
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    /// The classes of the block.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The name of a zone of a class, with its node; nothing where it had none.
    #[must_use]
    pub fn zone(&self, class: &Class) -> Option<Zone> {
        let name = || self.head.zones.get(class.zone as usize).cloned();
        class
            .is_known(known::ZONE)
            .then(|| Zone { node: class.node, name: name().unwrap_or_default() })
    }

    /// The notes of the block, in order, as far as they are of kinds that this version knows.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.notes.known
    }

    /// The addresses of the kernel stack of that number, innermost first; 0 is none.
    #[must_use]
    pub fn stack(&self, number: u32) -> &[u64] {
        self.stacks.get(number as usize)
    }

    /// The frames of the stack in user space of that number, innermost first; 0 is none.
    #[must_use]
    pub fn user_frames(&self, number: u32) -> &[Rc<Frame>] {
        self.user_stacks.frames.get(number as usize)
    }

    /// The shrinkers in which a scope spent time, each by its function's address with its nanoseconds.
    pub fn shrinkers(&self, scope: usize) -> impl Iterator<Item = (u64, u64)> {
        let Scopes { first_shrinker, shrinker, shrinker_ns, .. } = &self.scopes;
        let from = first_shrinker.get(scope).copied().unwrap_or_default();
        let to = first_shrinker.get(scope + 1).copied().unwrap_or(from);
        (from..to).map(|at| (shrinker.get(at), shrinker_ns.get(at)))
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Everything in the order in which it came, until `each` breaks. With a stall comes how its stack in user space
    /// was named when it was taken, which is to be taught before it is shown: it may be named otherwise later.
    pub fn items<B>(
        &self,
        mut each: impl FnMut(Item, UserNames<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let named = |number| UserNames { stacks: &self.user_stacks, number: number as usize };
        let (mut round, mut scope, mut note) = (0, 0, 0);
        for at in 0..self.items {
            match self.order.get(at) {
                item::ROUND => {
                    let stack = named(self.rounds.user_stack.get32(round));
                    each(Item::Event(Event::Stall(self.stall(round))), stack)?;
                    round += 1;
                }
                item::SCOPE => {
                    each(Item::Event(Event::Scope(self.scope(scope))), named(0))?;
                    scope += 1;
                }
                _ => {
                    let stack = named(self.notes.user_stack.get32(note));
                    match self.notes.get(note) {
                        Some(Note::Oom(oom)) => {
                            each(Item::Event(Event::Oom((**oom).clone())), stack)?;
                        }
                        Some(note) => each(Item::Note(note.clone()), stack)?,
                        None => {}
                    }
                    note += 1;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The same, all of it, teaching `names` what belongs to it.
    pub fn each(&self, names: &mut Names, mut each: impl FnMut(Item, &mut Names)) {
        let _all: ControlFlow<()> = self.items(|item, user_names| {
            user_names.teach(names);
            each(item, names);
            ControlFlow::Continue(())
        });
    }

    /// The name of the kernel's function at an address, if the block has it.
    #[must_use]
    pub fn function(&self, address: u64) -> Option<&Frame> {
        let at = self.head.functions.binary_search_by_key(&address, |(known, _)| *known);
        at.ok().map(|at| &self.head.functions[at].1)
    }

    fn stall(&self, round: usize) -> Stall {
        let rounds = &self.rounds;
        let class = &self.classes[rounds.class.get32(round) as usize];
        let Thread { pid, tid, uid, comm, cgroup_id } =
            self.threads[rounds.thread.get32(round) as usize];
        let duration_ns = rounds.duration.get(round);
        let if_known = |bit, column: &Column| class.is_known(bit).then(|| column.get(round));
        let detail = match What::of(class.what) {
            What::Reclaim(kind) => Detail::Reclaim(Reclaim {
                kind,
                limit: class.limit(),
                nr_scanned: if_known(known::SCANNED, &rounds.scanned),
                nr_reclaimed: rounds.gained.get(round),
                compaction_ready: class.is_known(known::READY),
                priority: class.is_known(known::PRIORITY).then_some(class.priority),
                target_cgroup_id: class.target(),
                free_pages: if_known(known::FREE, &rounds.free),
                node: class.is_known(known::NODE).then_some(class.node),
            }),
            What::Compaction(cause) => Detail::Compaction(Compaction {
                cause,
                zone: self.zone(class),
                mode: class.is_known(known::MODE).then_some(class.mode),
                status: class.status,
                scanned: class.is_known(known::SCANNED).then(|| Scanned {
                    migrate: rounds.gained.get(round),
                    free: rounds.scanned.get(round),
                }),
                watermarks: class.is_known(known::FREE).then(|| {
                    let [min, low, high] = rounds.marks.each_ref().map(|column| column.get(round));
                    Watermarks { min, low, high, free: rounds.free.get(round) }
                }),
                frag_index: class.is_known(known::INDEX).then(|| signed(rounds.index.get(round))),
            }),
        };
        let user_stack = self.user_stacks.addresses.get(rounds.user_stack.get32(round) as usize);
        Stall {
            start_ns: rounds.end[round].wrapping_sub(duration_ns),
            duration_ns,
            pid,
            tid,
            uid,
            cpu: rounds.cpu.get32(round),
            comm,
            order: class.order(),
            gfp: class.is_known(known::GFP).then_some(class.gfp),
            cgroup_id,
            detail,
            stack: self.stack(rounds.stack.get32(round)).to_vec(),
            user_stack: user_stack.to_vec(),
        }
    }

    fn scope(&self, scope: usize) -> Scope {
        let scopes = &self.scopes;
        let Thread { pid, tid, uid, comm, cgroup_id } =
            self.threads[scopes.thread.get32(scope) as usize];
        let duration_ns = scopes.duration.get(scope);
        let mut parts = Parts { shrinkers: self.shrinkers(scope).collect(), ..Parts::default() };
        for (part, column) in parts.ns.iter_mut().zip(&scopes.parts) {
            *part = column.get(scope);
        }
        Scope {
            start_ns: scopes.end[scope].wrapping_sub(duration_ns),
            duration_ns,
            pid,
            tid,
            uid,
            cpu: scopes.cpu.get32(scope),
            comm,
            cgroup_id,
            parts,
            callers: self.stack(scopes.callers.get32(scope)).to_vec(),
        }
    }
}

impl Notes {
    fn read(sections: &Sections<'_>) -> Result<Self, Damaged> {
        let text = sections.bytes(Id::Notes)?;
        if text.len() > MOST_TEXT {
            return Err(Damaged("its notes are longer than they can be"));
        }
        let all = match text {
            [] => Vec::new(),
            text => {
                let mut text = serde_json::Deserializer::from_slice(text);
                let all = at_most::<_, &RawValue, MOST>(&mut text);
                let all = all.and_then(|all| text.end().map(|()| all));
                all.map_err(|_| Damaged("its notes make no sense"))?
            }
        };
        let mut known = Vec::new();
        let index = all.iter().map(|note| {
            known.push(serde_json::from_str(note.get()).ok()?);
            Some(known.len() - 1)
        });
        let index: Vec<_> = index.collect();
        let user_stack = sections.column(Id::NoteUserStack, index.len())?;
        Ok(Self { known, index, user_stack })
    }

    /// The note in that place.
    fn get(&self, place: usize) -> Option<&Note> {
        self.known.get((*self.index.get(place)?)?)
    }
}

impl Rows {
    fn check(&self) -> Result<(), Damaged> {
        let Self { rounds, scopes, threads, classes, stacks, user_stacks } = *self;
        let are_few =
            [rounds, scopes, threads, classes, stacks, user_stacks].iter().all(|n| *n <= MOST);
        if are_few { Ok(()) } else { Err(Damaged("a table has too many rows")) }
    }
}

/// Makes sure that what is copied for every stall is short.
fn check_names(head: &Head) -> Result<(), Damaged> {
    let mut functions = head.functions.iter().map(|(_, frame)| frame).chain(&head.user_frames);
    let are_short = functions.all(|frame| frame.text().len() <= MOST_NAME)
        && head.zones.iter().all(|name| name.len() <= MOST_ZONE_NAME);
    if are_short { Ok(()) } else { Err(Damaged("a name is longer than it can be")) }
}

fn check_order(order: &Column, items: usize, expected: [usize; 3]) -> Result<(), Damaged> {
    let mut counts = [0_usize; 3];
    for at in 0..items {
        let count = usize::try_from(order.get(at)).ok().and_then(|kind| counts.get_mut(kind));
        *count.ok_or(Damaged("something of an unknown kind is in it"))? += 1;
    }
    if counts == expected {
        Ok(())
    } else {
        Err(Damaged("it has more or fewer stalls than it says"))
    }
}
