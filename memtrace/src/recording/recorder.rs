//! Makes blocks of what a run delivers, with the names that go with it.

use std::collections::HashMap;
use std::rc::Rc;

use super::encode::Builder;
use super::file;
use super::meta::{End, Note, since_1970_ns};
use crate::live::Event;
use crate::names::Names;
use crate::symbols::Frame;

/// How long a block with stalls in it may wait to be full, in nanoseconds: what a crash may cost.
const STALLS_WAIT_NS: u64 = 1_000_000_000;
/// The same of one with looks at the system alone.
const LOOKS_WAIT_NS: u64 = 10_000_000_000;
/// Bytes of a file for each row of a block: some ten times what a row takes.
const BYTES_FOR_ROW: u64 = 128;
/// Most stacks in user space whose names wait for their scope.
const MOST_PINS: usize = 4096;

/// A stack in user space with the names that it had when it was taken.
type Pin = (u32, Vec<u64>, Vec<Rc<Frame>>);

/// Makes blocks.
#[derive(Debug)]
pub struct Recorder {
    builder: Builder,
    /// Rows after which a block is finished, if it is not full before.
    most_rows: usize,
    scopes: bool,
    /// Shortest stall to take, in nanoseconds.
    min_ns: u64,
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
    /// Begins at `now_ns`. Rounds come in scopes or not. Stalls shorter than `min_ns` are left out.
    #[must_use]
    pub fn new(names: &Names, scopes: bool, min_ns: u64, now_ns: u64) -> Self {
        let epoch_ns = since_1970_ns(names.clock.epoch());
        Self {
            builder: Builder::new(epoch_ns, scopes),
            most_rows: usize::MAX,
            scopes,
            min_ns,
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
        let rows = usize::try_from(bytes / BYTES_FOR_ROW).unwrap_or(usize::MAX);
        Self { most_rows: rows, ..self }
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
    pub fn event(&mut self, event: Event, names: &mut Names) {
        match &event {
            Event::Scope(scope) if scope.duration_ns < self.min_ns => {
                return self.builder.forget(scope.tid);
            }
            Event::Stall(stall) if !self.scopes && stall.duration_ns < self.min_ns => return,
            _ => {}
        }
        self.has_stalls = true;
        self.builder.event(event, names);
    }

    /// Takes a note.
    pub fn note(&mut self, note: &Note) {
        self.builder.note(note);
    }

    /// Takes the rounds whose scopes have not come.
    pub fn release(&mut self, names: &mut Names) {
        self.builder.release(names);
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
        self.builder.is_full() || self.builder.len() >= self.most_rows
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
