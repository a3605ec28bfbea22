//! What a page draws, gathered from all blocks beside the totals that every report has.

use super::axis::Axis;
use super::charts::{Heat, Held};
use super::looks::Looks;
use super::stacks::Stacks;
use crate::recording::{Block, Meta, Note};
use crate::report::Gather;

/// What is drawn over time, and the flame graph.
#[derive(Debug)]
pub struct Drawn<'a> {
    axis: &'a Axis,
    /// Latencies over time.
    pub heat: Heat,
    /// Stalled time over time.
    pub held: Held,
    /// The system over time.
    pub looks: Looks,
    /// Time by stack.
    pub stacks: Stacks,
}

impl<'a> Drawn<'a> {
    /// Nothing yet.
    pub fn new(axis: &'a Axis) -> Self {
        Self {
            axis,
            heat: Heat::new(axis),
            held: Held::new(),
            looks: Looks::default(),
            stacks: Stacks::default(),
        }
    }
}

impl Gather for Drawn<'_> {
    fn block(&mut self, recording: usize, meta: &Meta, block: &Block) {
        let axis = self.axis;
        for note in block.notes() {
            if let Note::Look(look) = note {
                let column = axis.column(axis.since_begin(recording, look.at_ns));
                self.looks.add(column, look);
            }
        }
        block.told(meta.scopes, |told| {
            let start_ns = axis.since_begin(recording, told.start_ns);
            self.heat.add(axis.column(start_ns), told.duration_ns);
            self.held.add(told.kind, start_ns, told.duration_ns, axis);
            self.stacks.add(told);
        });
        if self.stacks.has_some() {
            self.stacks.end_block(block, &mut block.names(meta));
        }
    }

    fn merge(&mut self, later: Self) {
        let Self { axis: _, heat, held, looks, stacks } = later;
        self.heat.merge(&heat);
        self.held.merge(held);
        self.looks.merge(looks);
        self.stacks.folded.merge(stacks.folded);
    }
}
