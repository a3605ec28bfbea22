//! Time by stack, for the flame graph.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;

use crate::kind::Kind;
use crate::names::Names;
use crate::recording::{Block, Told};
use crate::stall::Comm;
use crate::view::folded::{append_frame, append_frames, append_name};
use crate::view::{Folded, FoldedOptions};

/// Most distinct stacks; those beyond are one.
const MOST: usize = 8192;

/// Time by stack.
#[derive(Debug)]
pub struct Stacks {
    /// Of all blocks so far.
    pub folded: Folded,
    /// Of this block, by the numbers that its stacks have there.
    of_block: HashMap<(Comm, Kind, u32, u32), u128, RandomState>,
}

impl Default for Stacks {
    fn default() -> Self {
        let options = FoldedOptions { kernel: true, user: true, max_stacks: MOST };
        Self { folded: Folded::new(options), of_block: HashMap::default() }
    }
}

impl Stacks {
    /// Counts a stall that has a stack.
    #[inline]
    pub fn add(&mut self, told: &Told<'_>) {
        if told.stack != 0 || told.user_stack != 0 {
            let key = (told.thread.comm, told.kind, told.stack, told.user_stack);
            *self.of_block.entry(key).or_default() += u128::from(told.duration_ns);
        }
    }

    /// Whether the block that is being read has any.
    pub fn has_some(&self) -> bool {
        !self.of_block.is_empty()
    }

    /// Gives the stacks of a block their names: each once, as many threads share them.
    pub fn end_block(&mut self, block: &Block, names: &mut Names) {
        let (mut kernel, mut user): (HashMap<_, Vec<u8>>, HashMap<_, Vec<u8>>) = Default::default();
        let mut line = Vec::new();
        for ((comm, kind, stack, user_stack), ns) in self.of_block.drain() {
            line.clear();
            append_name(&comm, &mut line);
            append_frame(kind.name(), "", &mut line);
            line.extend_from_slice(match user.entry(user_stack) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let mut frames = Vec::new();
                    append_frames(block.user_frames(user_stack), false, &mut frames);
                    new.insert(frames)
                }
            });
            line.extend_from_slice(match kernel.entry(stack) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let mut frames = Vec::new();
                    let resolved = names.symbols.kernel(block.stack(stack));
                    append_frames(&resolved, true, &mut frames);
                    new.insert(frames)
                }
            });
            self.folded.line(&String::from_utf8_lossy(&line), ns);
        }
    }
}
