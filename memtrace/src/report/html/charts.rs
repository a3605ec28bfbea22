//! What is drawn over time: how many stalls of each latency began, and how long threads were held up by each kind.

use super::axis::{Axis, MOST_COLUMNS};
use crate::kind::Kind;

/// Rows of the heat map: two to each doubling, from 1 us to a minute, and what is beyond either in the outermost.
pub const ROWS: usize = 2 * (LAST_OCTAVE - FIRST_OCTAVE) as usize;
const FIRST_OCTAVE: u32 = 10;
const LAST_OCTAVE: u32 = 37;

/// How many stalls of each latency began in each column.
#[derive(Debug)]
pub struct Heat(Vec<[u32; ROWS]>);

impl Heat {
    /// None yet.
    pub fn new(axis: &Axis) -> Self {
        Self(vec![[0; ROWS]; axis.columns])
    }

    /// Counts a stall that began in a column.
    #[inline]
    pub fn add(&mut self, column: usize, duration_ns: u64) {
        let cell = &mut self.0[column][row(duration_ns)];
        *cell = cell.saturating_add(1);
    }

    /// Takes those of another.
    pub fn merge(&mut self, other: &Self) {
        for (cell, more) in self.0.as_flattened_mut().iter_mut().zip(other.0.as_flattened()) {
            *cell = cell.saturating_add(*more);
        }
    }

    /// By column, the rows that have any with their counts, one after the other.
    pub fn cells(&self) -> Vec<Vec<u32>> {
        let any = |column: &[u32; ROWS]| {
            let rows = (0..).zip(column).filter(|(_, count)| **count != 0);
            rows.flat_map(|(row, count)| [row, *count]).collect()
        };
        self.0.iter().map(any).collect()
    }
}

#[inline]
fn row(ns: u64) -> usize {
    let octave = ns.max(1).ilog2();
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let half = usize::from((ns >> (octave - 1)) & 1 != 0);
    (2 * (octave - FIRST_OCTAVE) as usize + half).min(ROWS - 1)
}

/// The shortest latency of each row, in nanoseconds; the first has those below as well.
pub fn rows_ns() -> [u64; ROWS] {
    std::array::from_fn(|row| (2 + row as u64 % 2) << (FIRST_OCTAVE - 1) << (row / 2))
}

/// How long threads were held up in each column, by kind. A stall counts where it was, not only where it began.
#[derive(Debug)]
pub struct Held(Box<[Columns; Kind::COUNT]>);

#[derive(Clone, Debug, Default)]
struct Columns {
    /// Nanoseconds of stalls that did not last the whole column.
    part_ns: Vec<u64>,
    /// How many more stalls last the whole column than the one before; they may be many columns long, so this is
    /// added up when all of them are known.
    more: Vec<i64>,
}

impl Held {
    /// None yet.
    pub fn new() -> Self {
        Self(Box::default())
    }

    /// Counts a stall that began so long after the axis did.
    #[inline]
    pub fn add(&mut self, kind: Kind, start_ns: u64, duration_ns: u64, axis: &Axis) {
        let Columns { part_ns, more } = &mut self.0[kind as usize];
        if part_ns.is_empty() {
            part_ns.resize(axis.columns, 0);
            more.resize(axis.columns + 1, 0);
        }
        let step_ns = axis.step_ns;
        let end_ns = start_ns.saturating_add(duration_ns).min(axis.length_ns());
        let start_ns = start_ns.min(end_ns);
        let (first, last) = (axis.column(start_ns), axis.column(end_ns));
        let begin_ns = |column: usize| step_ns.saturating_mul(column as u64);
        if first == last {
            part_ns[first] = part_ns[first].saturating_add(end_ns - start_ns);
            return;
        }
        part_ns[first] = part_ns[first].saturating_add(begin_ns(first + 1) - start_ns);
        part_ns[last] = part_ns[last].saturating_add(end_ns - begin_ns(last));
        more[first + 1] += 1;
        more[last] -= 1;
    }

    /// Takes those of another.
    pub fn merge(&mut self, other: Self) {
        for (sum, other) in self.0.iter_mut().zip(*other.0) {
            if sum.part_ns.is_empty() {
                *sum = other;
                continue;
            }
            for (sum, ns) in sum.part_ns.iter_mut().zip(other.part_ns) {
                *sum = sum.saturating_add(ns);
            }
            for (sum, more) in sum.more.iter_mut().zip(other.more) {
                *sum += more;
            }
        }
    }

    /// The kinds of which there was any, each with its nanoseconds in every column.
    pub fn columns<'a>(&'a self, axis: &'a Axis) -> impl Iterator<Item = (Kind, Vec<u64>)> + 'a {
        let kinds = Kind::ALL.into_iter().chain([Kind::Memstall]);
        kinds.filter_map(|kind| {
            let Columns { part_ns, more } = &self.0[kind as usize];
            let mut whole: i64 = 0;
            let in_columns = part_ns.iter().zip(more).map(|(part_ns, more)| {
                whole += more;
                let whole_ns = u64::try_from(whole).unwrap_or(0).saturating_mul(axis.step_ns);
                part_ns.saturating_add(whole_ns)
            });
            let in_columns: Vec<_> = in_columns.collect();
            (!in_columns.is_empty()).then_some((kind, in_columns))
        })
    }
}

const _: () = assert!(MOST_COLUMNS * ROWS < 100_000, "a page has to stay small");

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn axis(columns: i64) -> Axis {
        let axis = Axis::over((0, (columns - 1) * 1_000_000), vec![0]);
        assert_eq!((axis.step_ns, axis.columns as u64), (MS, columns.unsigned_abs()));
        axis
    }

    #[test]
    fn rows_begin_where_they_say() {
        let rows = rows_ns();
        assert_eq!(rows[..4], [1024, 1536, 2048, 3072]);
        for (at, first_ns) in rows.into_iter().enumerate().skip(1) {
            assert_eq!((row(first_ns - 1), row(first_ns)), (at - 1, at));
        }
        assert_eq!((row(0), row(u64::MAX)), (0, ROWS - 1));
    }

    #[test]
    fn only_cells_with_something_are_told() {
        let axis = axis(3);
        let (mut heat, mut other) = (Heat::new(&axis), Heat::new(&axis));
        heat.add(1, 1600);
        other.add(1, 1600);
        other.add(1, 5);
        heat.merge(&other);
        assert_eq!(heat.cells(), [vec![], vec![0, 1, 1, 2], vec![]]);
    }

    #[test]
    fn a_stall_counts_in_every_column_that_it_was_in() {
        let axis = axis(5);
        let mut held = Held::new();
        held.add(Kind::Direct, MS / 2, 3 * MS, &axis);
        held.add(Kind::Direct, MS, MS / 4, &axis);
        held.add(Kind::Oom, 4 * MS, u64::MAX, &axis);
        held.add(Kind::Oom, u64::MAX, 7, &axis);
        let mut more = Held::new();
        more.add(Kind::Direct, 2 * MS, MS, &axis);
        held.merge(more);
        let columns: Vec<_> = held.columns(&axis).collect();
        let ms = |halves: [u64; 5]| halves.map(|quarters| quarters * MS / 4).to_vec();
        assert_eq!(
            columns,
            [(Kind::Direct, ms([2, 5, 8, 2, 0])), (Kind::Oom, ms([0, 0, 0, 0, 4]))]
        );
    }
}
