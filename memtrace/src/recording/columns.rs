//! The tables of a block, made of its columns. Whatever they say stays within what a block can have.

use std::rc::Rc;

use memtrace_common::record::{SHRINKERS, STACK_DEPTH, part};

use super::sections::{Column, Damaged, Id, Sections, unzigzag};
use super::tables::{Class, Thread, comm, known};
use crate::names::Names;
use crate::symbols::Frame;

/// Most addresses in all stacks of a block: more than fit into one that is not too long.
const MOST_IN_STACKS: usize = 1 << 19;

/// The rounds' numbers.
#[derive(Debug)]
pub(super) struct Rounds {
    pub end: Vec<u64>,
    pub duration: Column,
    pub thread: Column,
    pub class: Column,
    pub cpu: Column,
    pub gained: Column,
    pub scanned: Column,
    pub free: Column,
    pub marks: [Column; 3],
    pub index: Column,
    pub stack: Column,
    pub user_stack: Column,
}

/// The scopes' numbers.
#[derive(Debug)]
pub(super) struct Scopes {
    pub end: Vec<u64>,
    pub duration: Column,
    pub thread: Column,
    pub cpu: Column,
    pub callers: Column,
    /// Where those of each begin among all; one more than there are scopes.
    pub first_shrinker: Vec<usize>,
    pub shrinker: Column,
    pub shrinker_ns: Column,
    pub parts: Vec<Column>,
}

impl Rounds {
    pub(super) fn read(sections: &Sections<'_>, rows: usize) -> Result<Self, Damaged> {
        let column = |id| sections.column(id, rows);
        Ok(Self {
            end: ends(&column(Id::RoundEnd)?, rows),
            duration: column(Id::RoundDuration)?,
            thread: column(Id::RoundThread)?,
            class: column(Id::RoundClass)?,
            cpu: column(Id::RoundCpu)?,
            gained: column(Id::RoundGained)?,
            scanned: column(Id::RoundScanned)?,
            free: column(Id::RoundFree)?,
            marks: [column(Id::RoundMin)?, column(Id::RoundLow)?, column(Id::RoundHigh)?],
            index: column(Id::RoundIndex)?,
            stack: column(Id::RoundStack)?,
            user_stack: column(Id::RoundUserStack)?,
        })
    }
}

impl Scopes {
    pub(super) fn read(sections: &Sections<'_>, rows: usize) -> Result<Self, Damaged> {
        let column = |id| sections.column(id, rows);
        let counts = column(Id::ScopeShrinkers)?;
        let mut first_shrinker = Vec::with_capacity(rows + 1);
        let mut sum: usize = 0;
        for row in 0..rows {
            first_shrinker.push(sum);
            sum += counted(&counts, row, SHRINKERS)?;
        }
        first_shrinker.push(sum);
        let parts = (0..part::COUNT).zip(Id::ScopePart.number()..);
        let parts = parts.map(|(_, number)| sections.numbered(number, rows));
        Ok(Self {
            end: ends(&column(Id::ScopeEnd)?, rows),
            duration: column(Id::ScopeDuration)?,
            thread: column(Id::ScopeThread)?,
            cpu: column(Id::ScopeCpu)?,
            callers: column(Id::ScopeCallers)?,
            first_shrinker,
            shrinker: sections.column(Id::ShrinkerFunction, sum)?,
            shrinker_ns: sections.column(Id::ShrinkerTime, sum)?,
            parts: parts.collect::<Result<_, _>>()?,
        })
    }
}

/// The table of threads.
pub(super) fn threads(sections: &Sections<'_>, rows: usize) -> Result<Vec<Thread>, Damaged> {
    let column = |id| sections.column(id, rows);
    let (pid, tid, uid) = (column(Id::ThreadPid)?, column(Id::ThreadTid)?, column(Id::ThreadUid)?);
    let comms = [column(Id::ThreadComm0)?, column(Id::ThreadComm1)?];
    let (cgroup, is_known) = (column(Id::ThreadCgroup)?, column(Id::ThreadKnown)?);
    let thread = |row| Thread {
        pid: pid.get32(row),
        tid: tid.get32(row),
        uid: uid.get32(row),
        comm: comm(comms.each_ref().map(|column| column.get(row))),
        cgroup_id: (is_known.get(row) != 0).then(|| cgroup.get(row)),
    };
    Ok((0..rows).map(thread).collect())
}

/// The table of classes.
pub(super) fn classes(
    sections: &Sections<'_>,
    rows: usize,
    zones: usize,
) -> Result<Vec<Class>, Damaged> {
    let column = |id| sections.column(id, rows);
    let (what, is_known, order) =
        (column(Id::ClassWhat)?, column(Id::ClassKnown)?, column(Id::ClassOrder)?);
    let (gfp, priority, node) =
        (column(Id::ClassGfp)?, column(Id::ClassPriority)?, column(Id::ClassNode)?);
    let (zone, mode, status) =
        (column(Id::ClassZone)?, column(Id::ClassMode)?, column(Id::ClassStatus)?);
    let target = column(Id::ClassTarget)?;
    let class = |row| {
        let class = Class {
            what: u8::try_from(what.get(row)).unwrap_or_default(),
            known: u16::try_from(is_known.get(row))
                .map_err(|_| Damaged("a kind makes no sense"))?,
            order: signed(order.get(row)),
            gfp: gfp.get32(row),
            priority: signed(priority.get(row)),
            node: signed(node.get(row)),
            zone: zone.get32(row),
            mode: mode.get32(row),
            status: signed(status.get(row)),
            target: target.get(row),
        };
        if class.is_known(known::ZONE) && class.zone as usize >= zones {
            return Err(Damaged("a zone has no name"));
        }
        Ok(class)
    };
    (0..rows).map(class).collect()
}

/// Lists that lie one behind the other.
#[derive(Debug)]
pub(super) struct Lists<T> {
    /// Where each ends.
    ends: Vec<usize>,
    all: Vec<T>,
}

impl<T> Lists<T> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The list of that number, which counts from 1; 0 is none.
    pub(super) fn get(&self, number: usize) -> &[T] {
        let Some(index) = number.checked_sub(1) else { return &[] };
        let from = index.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied());
        let range = from.zip(self.ends.get(index)).map(|(from, to)| from..*to);
        range.and_then(|range| self.all.get(range)).unwrap_or_default()
    }
}

/// Lists whose lengths are in one column and what is in them in another one.
pub(super) fn lists(
    sections: &Sections<'_>,
    rows: usize,
    lengths: Id,
    values: Id,
) -> Result<Lists<u64>, Damaged> {
    let lengths = sections.column(lengths, rows)?;
    let mut total = 0;
    let ends = (0..rows).map(|row| {
        total += counted(&lengths, row, STACK_DEPTH)?;
        Ok(total)
    });
    let ends = ends.collect::<Result<_, _>>()?;
    if total > MOST_IN_STACKS {
        return Err(Damaged("its stacks are longer than they can be"));
    }
    let all = match sections.column(values, total)? {
        Column::Same(value) => vec![value; total],
        Column::Each(values) => values,
    };
    Ok(Lists { ends, all })
}

/// The stacks in user space, with their names.
#[derive(Debug)]
pub(super) struct UserStacks {
    pub pids: Column,
    pub addresses: Lists<u64>,
    pub frames: Lists<Rc<Frame>>,
}

impl UserStacks {
    pub(super) fn read(
        sections: &Sections<'_>,
        rows: usize,
        names: Vec<Frame>,
    ) -> Result<Self, Damaged> {
        let names: Vec<_> = names.into_iter().map(Rc::new).collect();
        let Lists { ends, all } = lists(sections, rows, Id::UserStackFrames, Id::UserStackFrame)?;
        let frame = |number: u64| usize::try_from(number).ok().and_then(|at| names.get(at));
        let all = all.into_iter().map(|number| frame(number).cloned());
        let all = all.collect::<Option<_>>().ok_or(Damaged("a function has no name"))?;
        Ok(Self {
            pids: sections.column(Id::UserStackPid, rows)?,
            addresses: lists(sections, rows, Id::UserStackLength, Id::UserStackAddress)?,
            frames: Lists { ends, all },
        })
    }

    /// Has the stack of that number go by its names.
    pub(super) fn teach(&self, number: usize, names: &mut Names) {
        if let Some(row) = number.checked_sub(1)
            && row < self.addresses.len()
        {
            let (addresses, frames) = (self.addresses.get(number), self.frames.get(number));
            names.symbols.learn_user(self.pids.get32(row), addresses, frames);
        }
    }
}

fn counted(counts: &Column, row: usize, most: usize) -> Result<usize, Damaged> {
    let count = usize::try_from(counts.get(row)).ok().filter(|count| *count <= most);
    count.ok_or(Damaged("a list is longer than it can be"))
}

/// Ends from their differences.
fn ends(differences: &Column, rows: usize) -> Vec<u64> {
    let mut end: u64 = 0;
    let ends = (0..rows).map(|row| {
        end = end.wrapping_add(unzigzag(differences.get(row)).cast_unsigned());
        end
    });
    ends.collect()
}

/// A number with a sign that was zigzagged.
pub(super) fn signed(zigzagged: u64) -> i32 {
    i32::try_from(unzigzag(zigzagged)).unwrap_or_default()
}
