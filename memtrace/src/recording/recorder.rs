//! Makes blocks of what a run delivers, with the names that go with it.

use std::collections::HashMap;
use std::rc::Rc;

use super::encode::Builder;
use super::file;
use super::meta::{End, Note, since_1970_ns};
use crate::episode::Episode;
use crate::kind::Kind;
use crate::live::Event;
use crate::names::Names;
use crate::scope::Scope;
use crate::symbols::Frame;

/// How long a block with stalls in it may wait to be full, in nanoseconds: what the end of the
/// process may cost.
const STALLS_WAIT_NS: u64 = 1_000_000_000;
/// The same of one with looks at the system alone.
const LOOKS_WAIT_NS: u64 = 10_000_000_000;
/// Bytes of a file for each row of a block: some ten times what a row takes.
const BYTES_FOR_ROW: u64 = 128;
/// Blocks for which a file has room, by the bytes of their stacks, names and notes alone, before these are compressed.
const BLOCKS: u64 = 4;
/// Most stacks in user space whose names wait for their scope.
const MOST_PINS: usize = 4096;

/// A stack in user space with the names that it had when it was taken.
type Pin = (u32, Vec<u64>, Vec<Rc<Frame>>);

/// Makes blocks.
#[derive(Debug)]
pub struct Recorder {
    builder: Builder,
    scopes: bool,
    /// Shortest stall to take, in nanoseconds.
    min_ns: u64,
    /// The kinds of stalls to take.
    kinds: Vec<Kind>,
    /// Whether there is a stall in the present block.
    has_stalls: bool,
    /// When the present block began.
    since_ns: u64,
    epoch_ns: i64,
    /// Of the next block.
    number: u64,
    block: Vec<u8>,
    /// By thread.
    pins: HashMap<u32, Vec<Pin>>,
    pinned: usize,
}

impl Recorder {
    /// Begins at `now_ns`. Rounds come in scopes or not. Stalls shorter than `min_ns` are not to be taken.
    #[must_use]
    pub fn new(names: &Names, scopes: bool, min_ns: u64, now_ns: u64) -> Self {
        let epoch_ns = since_1970_ns(names.clock.epoch());
        Self {
            builder: Builder::new(epoch_ns, scopes),
            scopes,
            min_ns,
            kinds: Kind::ALL.to_vec(),
            has_stalls: false,
            since_ns: now_ns,
            epoch_ns,
            number: 0,
            block: Vec::new(),
            pins: HashMap::new(),
            pinned: 0,
        }
    }

    /// Has blocks small enough that a file of so many bytes has room for several, and gives up few stalls at a time.
    #[must_use]
    pub fn for_size(self, bytes: u64) -> Self {
        let share = |of: u64| usize::try_from(bytes / of).unwrap_or(usize::MAX);
        Self { builder: self.builder.at_most(share(BYTES_FOR_ROW), share(BLOCKS)), ..self }
    }

    /// Has only stalls of these kinds taken, be they so in part.
    #[must_use]
    pub fn of_kinds(self, kinds: Vec<Kind>) -> Self {
        Self { kinds, ..self }
    }

    /// Whether an event is to be taken: it is long enough, and of a kind that was asked for. A scope decides for the rounds in
    /// it, by the rule that episodes are shown by: where it is not to be taken, those that wait for it are left out.
    pub fn takes(&mut self, event: &Event, names: &mut Names) -> bool {
        match event {
            Event::Oom(_) => self.kinds.contains(&Kind::Oom),
            Event::Stall(_) if self.scopes => true,
            Event::Stall(stall) => {
                stall.duration_ns >= self.min_ns
                    && (self.has_all_kinds() || Episode::of_round(stall).is_of_any(&self.kinds))
            }
            Event::Scope(scope) => {
                let is_taken = scope.duration_ns >= self.min_ns
                    && (self.has_all_kinds() || self.is_asked_for(scope, names));
                if !is_taken {
                    self.builder.forget(scope.tid);
                    self.pinned -= self.pins.remove(&scope.tid).map_or(0, |pins| pins.len());
                }
                is_taken
            }
        }
    }

    fn has_all_kinds(&self) -> bool {
        self.kinds.len() == Kind::ALL.len()
    }

    fn is_asked_for(&self, scope: &Scope, names: &mut Names) -> bool {
        let inside = self.builder.held(scope.tid).cloned().collect();
        Episode::of_scope(scope.clone(), inside, &mut names.symbols).is_of_any(&self.kinds)
    }

    /// Takes note of the clock of `names`, which the next stalls go by.
    pub fn clock(&mut self, names: &Names) {
        let epoch_ns = since_1970_ns(names.clock.epoch());
        if epoch_ns != self.epoch_ns {
            self.epoch_ns = epoch_ns;
            self.builder.note(&Note::Clock(epoch_ns));
        }
    }

    /// Finds names for the stack in user space of an event before anything shows it: what is shown and what is
    /// recorded have to be the same, and programs are soon gone.
    pub fn name_stacks(&mut self, event: &Event, names: &mut Names) {
        let (pid, stack) = match event {
            Event::Stall(stall) => (stall.pid, &stall.user_stack),
            Event::Oom(oom) => (oom.pid, &oom.user_stack),
            Event::Scope(_) if self.pinned == 0 => return,
            Event::Scope(scope) => {
                for (pid, stack, frames) in self.pins.remove(&scope.tid).unwrap_or_default() {
                    self.pinned -= 1;
                    names.symbols.learn_user(pid, &stack, &frames);
                }
                return;
            }
        };
        if stack.is_empty() {
            return;
        }
        let frames = names.symbols.look_up_user(pid, stack);
        match event {
            Event::Stall(stall) if self.scopes => {
                if self.pinned >= MOST_PINS {
                    self.pins.clear();
                    self.pinned = 0;
                }
                self.pinned += 1;
                self.pins.entry(stall.tid).or_default().push((pid, stack.clone(), frames));
            }
            _ => names.symbols.learn_user(pid, stack, &frames),
        }
    }

    /// Takes an event whose stacks have names.
    pub fn event(&mut self, event: &Event, names: &mut Names) {
        self.has_stalls = true;
        self.builder.event(event, names);
    }

    /// Takes a note.
    pub fn note(&mut self, note: &Note) {
        self.builder.note(note);
    }

    /// Takes the rounds whose scopes have not come, unless those might not have been taken.
    pub fn release(&mut self, names: &mut Names) {
        if self.min_ns == 0 && self.has_all_kinds() {
            self.builder.release(names);
        } else {
            self.builder.forget_all();
        }
    }

    /// Whether the present block should be finished at `now_ns`.
    #[must_use]
    pub fn is_due(&self, now_ns: u64) -> bool {
        let wait_ns = if self.has_stalls { STALLS_WAIT_NS } else { LOOKS_WAIT_NS };
        self.is_full()
            || !self.builder.is_empty() && now_ns.saturating_sub(self.since_ns) >= wait_ns
    }

    /// Whether the present block is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.builder.is_full()
    }

    /// A block with nothing but how a recording ended, at `now_ns`, that is not a part of this one: it has the number
    /// of the next block.
    #[must_use]
    pub fn end_alone(&self, end: End, now_ns: u64) -> Vec<u8> {
        let (mut builder, mut bytes) = (Builder::new(self.epoch_ns, self.scopes), Vec::new());
        builder.note(&Note::End(end));
        let (raw, _) = builder.finish(self.epoch_ns);
        file::block(raw, self.number, (now_ns, now_ns), &mut bytes);
        bytes
    }

    /// Ends the present block at `now_ns` and gives it as it stands in a file; nothing where it is empty.
    pub fn finish(&mut self, now_ns: u64) -> Option<&[u8]> {
        if self.builder.is_empty() {
            return None;
        }
        let span_ns = self.builder.span_ns().unwrap_or((now_ns, now_ns));
        let (raw, _) = self.builder.finish(self.epoch_ns);
        file::block(raw, self.number, span_ns, &mut self.block);
        self.number += 1;
        self.since_ns = now_ns;
        self.has_stalls = false;
        Some(&self.block)
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::record::part;

    use super::super::check::file as file_of;
    use super::super::decode::Item;
    use super::super::file::{Recording, header};
    use super::super::made::nameless;
    use super::super::meta::Meta;
    use super::*;
    use crate::scope::Parts;
    use crate::stall::Stall;
    use crate::symbols::Symbols;
    use crate::view::fixtures::{compaction, oom, reclaim};

    /// What is recorded of these events: how many rounds, scopes and OOM kills.
    fn recorded(
        kinds: &[Kind],
        scopes: bool,
        min_ns: u64,
        events: impl IntoIterator<Item = Event>,
    ) -> [usize; 3] {
        let mut names = nameless(Symbols::from_frames([]));
        let mut recorder = Recorder::new(&names, scopes, min_ns, 0).of_kinds(kinds.to_vec());
        for event in events {
            if recorder.takes(&event, &mut names) {
                recorder.name_stacks(&event, &mut names);
                recorder.event(&event, &mut names);
            }
        }
        recorder.release(&mut names);
        assert_eq!((recorder.pins.len(), recorder.pinned), (0, 0), "nothing waits");
        let mut count = [0; 3];
        let Some(block) = recorder.finish(0) else { return count };
        let bytes = [&header(&Meta::default())[..], block].concat();
        let recording = Recording::open(file_of(&bytes)).expect("a recording");
        let block = recording.block(&recording.places[0]).expect("it was just written");
        block.each(&mut names, |item, _| match item {
            Item::Event(Event::Stall(_)) => count[0] += 1,
            Item::Event(Event::Scope(_)) => count[1] += 1,
            _ => count[2] += 1,
        });
        count
    }

    /// A scope around these rounds, which follow one another.
    fn scope(rounds: &[Stall]) -> Scope {
        let Stall { start_ns, pid, tid, uid, cpu, comm, cgroup_id, .. } = reclaim();
        let duration_ns = rounds.iter().map(|round| round.duration_ns).sum::<u64>().max(10);
        let (parts, callers) = (Parts::default(), Vec::new());
        Scope { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, parts, callers }
    }

    /// A reclaim for a limit and a compaction after it, in one scope.
    fn mixed() -> Vec<Event> {
        let first = reclaim();
        let then = Stall { start_ns: first.start_ns + first.duration_ns, ..compaction() };
        let scope = scope(&[first.clone(), then.clone()]);
        vec![Event::Stall(first), Event::Stall(then), Event::Scope(scope)]
    }

    #[test]
    fn a_scope_is_taken_as_a_whole_if_a_round_of_it_is_of_a_kind() {
        for kind in [Kind::MemcgMax, Kind::Compaction] {
            assert_eq!(recorded(&[kind], true, 0, mixed()), [2, 1, 0], "{kind:?}");
        }
        for kinds in [&[Kind::Direct, Kind::MemcgHigh][..], &[]] {
            assert_eq!(recorded(kinds, true, 0, mixed()), [0; 3], "{kinds:?}");
        }
        // The thread's next one is taken, and what was in the one before stays out.
        let other = Stall { start_ns: reclaim().start_ns + 10_000_000, ..compaction() };
        let mut after = scope(&[]);
        (after.start_ns, after.duration_ns) = (other.start_ns, other.duration_ns);
        let first = [reclaim()];
        let events = [
            Event::Stall(first[0].clone()),
            Event::Scope(scope(&first)),
            Event::Stall(other),
            Event::Scope(after),
        ];
        assert_eq!(recorded(&[Kind::Compaction], true, 0, events), [1, 1, 0]);
    }

    #[test]
    fn what_a_part_or_a_caller_tells_counts() {
        let mut throttled = scope(&[]);
        throttled.parts.ns[part::THROTTLED] = 5;
        let event = || [Event::Scope(throttled.clone())];
        assert_eq!(recorded(&[Kind::Throttled], true, 0, event()), [0, 1, 0]);
        assert_eq!(recorded(&[Kind::Direct], true, 0, event()), [0; 3]);
        // It is of no kind that can be asked for.
        assert_eq!(recorded(&Kind::ALL, true, 0, event()), [0, 1, 0]);
    }

    #[test]
    fn rounds_without_scopes_and_kills_are_taken_by_their_kind() {
        let events = || [Event::Stall(reclaim()), Event::Stall(compaction()), Event::Oom(oom())];
        assert_eq!(recorded(&[Kind::Compaction], false, 0, events()), [1, 0, 0]);
        assert_eq!(recorded(&[Kind::MemcgMax, Kind::Oom], false, 0, events()), [1, 0, 1]);
        assert_eq!(recorded(&Kind::ALL, false, 0, events()), [2, 0, 1]);
    }

    #[test]
    fn what_is_shorter_is_not_taken() {
        let min_ns = reclaim().duration_ns + 1;
        let long = Stall { duration_ns: min_ns, ..reclaim() };
        let both = [Event::Stall(reclaim()), Event::Stall(long)];
        assert_eq!(recorded(&Kind::ALL, false, min_ns, both), [1, 0, 0]);
        let short = [reclaim()];
        let events = [Event::Stall(short[0].clone()), Event::Scope(scope(&short))];
        assert_eq!(recorded(&Kind::ALL, true, min_ns, events), [0; 3]);
        assert_eq!(recorded(&Kind::ALL, true, 0, mixed()), [2, 1, 0]);
    }

    #[test]
    fn a_small_file_has_room_for_any_block() {
        const SIZE: u64 = 64 << 10;
        let mut names = nameless(Symbols::from_frames([]));
        let mut recorder = Recorder::new(&names, true, 0, 0).for_size(SIZE);
        let mut blocks = Vec::new();
        // Functions whose names tell nothing of one another.
        let mut random = 1_u64;
        for _ in 0..40 {
            let rounds = (0..20).map(|_| {
                let stack: Vec<u64> = (0..100)
                    .map(|_| {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        random
                    })
                    .collect();
                Stall { user_stack: stack, ..reclaim() }
            });
            for stall in rounds {
                let stack = &stall.user_stack;
                let frame = |at: &u64| Frame::of_function(&format!("{at:x}{:x}", !at), *at).into();
                let frames: Vec<_> = stack.iter().map(frame).collect();
                names.symbols.learn_user(stall.pid, stack, &frames);
                recorder.event(&Event::Stall(stall), &mut names);
            }
            recorder.event(&Event::Scope(scope(&[])), &mut names);
            if recorder.is_full() {
                blocks.extend(recorder.finish(0).map(<[u8]>::len));
            }
        }
        assert_eq!(blocks.len(), 40, "each is full at once");
        let longest = blocks.iter().max().copied().unwrap_or_default() as u64;
        assert!((SIZE / 8..SIZE * 3 / 4).contains(&longest), "{longest}");
    }

    #[test]
    fn of_a_scope_that_does_not_end_it_is_not_known() {
        let round = || [Event::Stall(Stall { user_stack: Vec::new(), ..reclaim() })];
        assert_eq!(recorded(&[Kind::MemcgMax], true, 0, round()), [0; 3]);
        assert_eq!(recorded(&Kind::ALL, true, 1, round()), [0; 3]);
        assert_eq!(recorded(&Kind::ALL, true, 0, round()), [1, 0, 0]);
    }
}
