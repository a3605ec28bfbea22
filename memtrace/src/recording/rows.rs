//! The rows of a block in the making: rounds and scopes. They are taken apart into columns as they come, as each
//! column is read several times when it is laid out.

use memtrace_common::record::part;

use super::sections::{Id, Writer, zigzag};

/// Rows on a page: few enough that the page stays in the CPU's nearest cache while it fills, and no power of two, or
/// the numbers of a row would compete for the same places there.
const PAGE_ROWS: usize = 72;

/// Rows of `N` numbers, the first of which is when something ended. They are on pages, and there by column: to
/// append a row to as many columns of their own length takes longer.
#[derive(Debug)]
pub(super) struct Columns<const N: usize> {
    pages: Vec<[[u64; PAGE_ROWS]; N]>,
    len: usize,
}

impl<const N: usize> Default for Columns<N> {
    fn default() -> Self {
        Self { pages: Vec::new(), len: 0 }
    }
}

impl<const N: usize> Columns<N> {
    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, row: [u64; N]) {
        let (page, at) = (self.len / PAGE_ROWS, self.len % PAGE_ROWS);
        if page == self.pages.len() {
            self.pages.push([[0; PAGE_ROWS]; N]);
        }
        for (column, number) in self.pages[page].iter_mut().zip(row) {
            column[at] = number;
        }
        self.len += 1;
    }

    /// Appends them to a block as the columns of those numbers.
    pub(super) fn write(&self, numbers: impl IntoIterator<Item = u8>, writer: &mut Writer) {
        let mut values = Vec::with_capacity(self.len.next_multiple_of(PAGE_ROWS));
        for (column, number) in numbers.into_iter().enumerate() {
            values.clear();
            for page in &self.pages[..self.len.div_ceil(PAGE_ROWS)] {
                values.extend_from_slice(&page[column]);
            }
            values.truncate(self.len);
            if column == 0 {
                writer.numbered(number, differences(&values));
            } else {
                writer.numbers(number, &values);
            }
        }
    }

    /// Takes all rows away, and keeps their room.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}

/// Each as its difference to the one before.
fn differences(ends: &[u64]) -> impl Iterator<Item = u64> {
    let before = std::iter::once(&0).chain(ends);
    ends.iter().zip(before).map(|(end, before)| zigzag(end.wrapping_sub(*before).cast_signed()))
}

/// A round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    pub end_ns: u64,
    pub duration_ns: u64,
    pub thread: u32,
    pub class: u32,
    pub cpu: u32,
    /// Pages that were reclaimed, or migrated.
    pub gained: u64,
    pub scanned: u64,
    pub free: u64,
    /// The zone's watermarks in pages.
    pub min: u64,
    pub low: u64,
    pub high: u64,
    pub frag_index: i32,
    pub stack: u32,
    pub user_stack: u32,
}

impl Round {
    /// The numbers of its columns.
    pub(super) fn columns() -> impl Iterator<Item = u8> {
        Id::RoundEnd.number()..=Id::RoundUserStack.number()
    }

    pub(super) fn row(self) -> [u64; 14] {
        [
            self.end_ns,
            self.duration_ns,
            self.thread.into(),
            self.class.into(),
            self.cpu.into(),
            self.gained,
            self.scanned,
            self.free,
            self.min,
            self.low,
            self.high,
            zigzag(self.frag_index.into()),
            self.stack.into(),
            self.user_stack.into(),
        ]
    }
}

/// A scope.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    pub end_ns: u64,
    pub duration_ns: u64,
    pub thread: u32,
    pub cpu: u32,
    pub callers: u32,
    /// How many of the shrinkers are its own.
    pub shrinkers: u32,
    /// Nanoseconds.
    pub parts: [u64; part::COUNT],
}

impl Spent {
    /// The numbers of its columns.
    pub(super) fn columns() -> impl Iterator<Item = u8> {
        let parts = (Id::ScopePart.number()..).take(part::COUNT);
        (Id::ScopeEnd.number()..=Id::ScopeShrinkers.number()).chain(parts)
    }

    pub(super) fn row(self) -> [u64; 6 + part::COUNT] {
        let mut row = [0; 6 + part::COUNT];
        row[..6].copy_from_slice(&[
            self.end_ns,
            self.duration_ns,
            self.thread.into(),
            self.cpu.into(),
            self.callers.into(),
            self.shrinkers.into(),
        ]);
        row[6..].copy_from_slice(&self.parts);
        row
    }
}
