//! Stalls as reports count them: a few numbers of each, without making it whole again.

use std::ops::Range;

use memtrace_common::record::part;

use super::decode::Block;
use super::tables::{Class, Thread, What, item, known};
use crate::kind::Kind;
use crate::stall::ReclaimKind;
use crate::symbols::Frame;

/// A stall as reports count it, without its names: one scope, or where there are none one round.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// How long it lasted, in nanoseconds.
    pub duration_ns: u64,
    /// Whose it is.
    pub thread: &'a Thread,
    /// The thread's number in its block.
    pub thread_number: u32,
    /// What it was by its longest round; [`Kind::Memstall`] where it had none and its callers are not known.
    pub kind: Kind,
    /// What its longest round has in common with others; nothing where it had none.
    pub class: Option<&'a Class>,
    /// That class's number in its block.
    pub class_number: u32,
    /// The CPU on which it ended.
    pub cpu: u32,
    /// Pages reclaimed, over all its rounds.
    pub nr_reclaimed: u64,
    /// How the time was spent, by [`part`], where that was recorded; shrinkers that are told apart are not in it.
    pub parts: Option<[u64; part::COUNT]>,
    /// The scope's number in its block, for [`Block::shrinkers`].
    pub scope: Option<usize>,
    /// The number of the kernel stack of its longest round, for [`Block::stack`].
    pub stack: u32,
    /// The number of that in user space, for [`Block::user_frames`].
    pub user_stack: u32,
}

/// What the rounds of a scope tell together.
#[derive(Default)]
struct Inside {
    /// The number of the longest, of equal ones the last.
    longest: Option<usize>,
    nr_reclaimed: u64,
}

impl Block {
    /// Each stall as reports count it: where `scopes`, each scope with what its rounds tell, else each round.
    pub fn told<'a>(&'a self, scopes: bool, mut each: impl FnMut(&Told<'a>)) {
        if !scopes {
            for round in 0..self.rounds.end.len() {
                each(&self.told_round(round));
            }
            return;
        }
        let (mut round, mut scope, mut first) = (0, 0, 0);
        for at in 0..self.items {
            match self.order.get(at) {
                item::ROUND => round += 1,
                item::SCOPE => {
                    each(&self.told_scope(scope, first..round));
                    first = round;
                    scope += 1;
                }
                _ => {}
            }
        }
    }

    fn told_round(&self, round: usize) -> Told<'_> {
        let rounds = &self.rounds;
        let duration_ns = rounds.duration.get(round);
        let (thread_number, class_number) = (rounds.thread.get32(round), rounds.class.get32(round));
        let class = &self.classes[class_number as usize];
        Told {
            start_ns: rounds.end[round].wrapping_sub(duration_ns),
            duration_ns,
            thread: &self.threads[thread_number as usize],
            thread_number,
            kind: class.kind(),
            class: Some(class),
            class_number,
            cpu: rounds.cpu.get32(round),
            nr_reclaimed: self.reclaimed(round),
            parts: None,
            scope: None,
            stack: rounds.stack.get32(round),
            user_stack: rounds.user_stack.get32(round),
        }
    }

    fn told_scope(&self, scope: usize, before: Range<usize>) -> Told<'_> {
        let scopes = &self.scopes;
        let thread_number = scopes.thread.get32(scope);
        let duration_ns = scopes.duration.get(scope);
        let start_ns = scopes.end[scope].wrapping_sub(duration_ns);
        let mut parts = [0; part::COUNT];
        for (part, column) in parts.iter_mut().zip(&scopes.parts) {
            *part = column.get(scope);
        }
        let inside = self.inside(scope, before);
        let class_number =
            inside.longest.map(|round| self.rounds.class.get32(round)).unwrap_or_default();
        let class = inside.longest.map(|_| &self.classes[class_number as usize]);
        let callers = scopes.callers.get32(scope);
        Told {
            start_ns,
            duration_ns,
            thread: &self.threads[thread_number as usize],
            thread_number,
            kind: class.map_or_else(|| self.kind_of_callers(callers), Class::kind),
            class,
            class_number,
            cpu: scopes.cpu.get32(scope),
            nr_reclaimed: inside.nr_reclaimed,
            parts: Some(parts),
            scope: Some(scope),
            stack: inside.longest.map_or(callers, |round| self.rounds.stack.get32(round)),
            user_stack: inside
                .longest
                .map(|round| self.rounds.user_stack.get32(round))
                .unwrap_or_default(),
        }
    }

    /// What those of the rounds before a scope tell that are of it. Others are those of scopes that were lost, of
    /// this thread or of another one.
    fn inside(&self, scope: usize, before: Range<usize>) -> Inside {
        let (scopes, rounds) = (&self.scopes, &self.rounds);
        let tid = self.threads[scopes.thread.get32(scope) as usize].tid;
        let end_ns = scopes.end[scope];
        let start_ns = end_ns.wrapping_sub(scopes.duration.get(scope));
        let mut inside = Inside::default();
        let mut longest_ns = 0;
        // Where the earliest reclaim begins that a soft-limit reclaim may be nested in. It ends after what is in it.
        let mut outer_start_ns = u64::MAX;
        for round in before.rev() {
            let round_end_ns = rounds.end[round];
            let round_ns = rounds.duration.get(round);
            let round_start_ns = round_end_ns.wrapping_sub(round_ns);
            let thread = &self.threads[rounds.thread.get32(round) as usize];
            if thread.tid != tid || round_start_ns < start_ns || round_end_ns > end_ns {
                continue;
            }
            let class = &self.classes[rounds.class.get32(round) as usize];
            match What::of(class.what) {
                // What it is nested in has its pages, and is longer.
                What::Reclaim(ReclaimKind::Softlimit) if outer_start_ns <= round_start_ns => {
                    continue;
                }
                What::Reclaim(ReclaimKind::Softlimit) | What::Compaction(_) => {}
                What::Reclaim(_) => outer_start_ns = outer_start_ns.min(round_start_ns),
            }
            inside.nr_reclaimed = inside.nr_reclaimed.saturating_add(self.reclaimed(round));
            if inside.longest.is_none() || round_ns > longest_ns {
                (inside.longest, longest_ns) = (Some(round), round_ns);
            }
        }
        inside
    }

    /// Pages reclaimed in a round.
    fn reclaimed(&self, round: usize) -> u64 {
        let class = &self.classes[self.rounds.class.get32(round) as usize];
        let counts =
            matches!(What::of(class.what), What::Reclaim(_)) && !class.is_known(known::READY);
        if counts { self.rounds.gained.get(round) } else { 0 }
    }

    /// The kind of a memstall section without rounds.
    fn kind_of_callers(&self, callers: u32) -> Kind {
        let functions = self.stack(callers).iter();
        let functions =
            functions.map(|address| self.function(*address).map_or("", Frame::function));
        Kind::of_functions(functions)
    }
}
