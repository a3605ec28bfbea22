//! Stacks of all stalls with the time that each was held up for, for flame graphs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::AtomicU64;

use foldhash::fast::RandomState;

use super::LeftOut;
use super::export::{each_block, function};
use crate::kind::Kind;
use crate::recording::{Block, Recording};
use crate::stall::Comm;
use crate::view::{Folded, FoldedOptions};

/// How many distinct stacks there is room for.
const MAX_STACKS: usize = 65_536;

/// What stalls of one line have in common, by numbers of one block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    comm: Comm,
    kind: Kind,
    stack: u32,
    user_stack: u32,
}

/// Folds the stacks of all stalls: `comm;kind;frames`, those in user space outside of the kernel's where they were
/// recorded. `done` counts the blocks as they are done.
#[must_use]
pub fn fold(recordings: &[Recording], done: &AtomicU64) -> (Folded, LeftOut) {
    let mut folded =
        Folded::new(FoldedOptions { kernel: true, user: true, max_stacks: MAX_STACKS });
    let Ok(left_out) = each_block::<Infallible>(recordings, done, |number, block, names| {
        for (Key { comm, kind, stack, user_stack }, ns) in
            sums(block, recordings[number].meta.scopes)
        {
            let kernel = names.symbols.kernel(block.stack(stack));
            let user = block.user_frames(user_stack).iter().map(|frame| function(frame));
            let kernel = kernel.iter().map(|frame| function(frame));
            folded.frames(kind.name(), &comm, user, kernel, ns);
        }
        Ok(())
    });
    (folded, left_out)
}

/// The time of a block's stalls, in an order that is the same every time: which stacks there is no room for must
/// not change.
fn sums(block: &Block, scopes: bool) -> Vec<(Key, u128)> {
    let mut sums: HashMap<Key, u128, RandomState> = HashMap::default();
    block.told(scopes, |told| {
        let comm = told.thread.comm;
        let key = Key { comm, kind: told.kind, stack: told.stack, user_stack: told.user_stack };
        *sums.entry(key).or_default() += u128::from(told.duration_ns);
    });
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_unstable();
    sums
}
