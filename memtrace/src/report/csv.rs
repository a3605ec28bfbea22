//! Stalls as comma-separated values (RFC 4180): a line for each, for spreadsheets, databases and data frames.
//!
//! Text is UTF-8. A name that is not is written as in JSON (docs/json.md), so that nothing of it is lost. What is not
//! known is empty. docs/exports.md has the columns.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::AtomicU64;

use csv::{Writer, WriterBuilder};
use memtrace_common::record::part;

use super::LeftOut;
use super::export::{Paths, Stacks, each_block, function, paths, since_1970_ns};
use crate::recording::{Block, Class, Recording, Thread, Told, meta::timestamp};
use crate::stall::Zone;
use crate::text::Lossless;

/// The columns in front of the parts.
const FIRST: [&str; 17] = [
    "time",
    "host",
    "start_ns",
    "duration_ns",
    "kind",
    "comm",
    "pid",
    "tid",
    "uid",
    "cpu",
    "order",
    "zone",
    "cgroup_id",
    "cgroup",
    "target_cgroup_id",
    "target_cgroup",
    "nr_reclaimed",
];

/// The parts, named as in JSON. All of them together are the duration: `shrink` is the time in all shrinkers.
const PARTS: [(&str, usize); part::COUNT] = [
    ("scan", part::SCAN),
    ("compaction", part::COMPACTION),
    ("blocked", part::BLOCKED),
    ("waiting", part::WAITING),
    ("throttled:pfmemalloc", part::PFMEMALLOC),
    ("throttled:writeback", part::THROTTLED),
    ("throttled:isolated", part::THROTTLED + 1),
    ("throttled:noprogress", part::THROTTLED + 2),
    ("throttled:congested", part::CONGESTED),
    ("other", part::OTHER),
    ("shrink", part::SHRINKERS),
];

/// The columns behind them: `FUNCTION=NS` for each shrinker that is told apart, and functions of the kernel.
const LAST: [&str; 2] = ["shrinkers", "stack"];

/// Writes all stalls, those of one recording in the order in which they ended. `done` counts the blocks as they are
/// done.
pub fn write(
    recordings: &[Recording],
    done: &AtomicU64,
    out: &mut dyn io::Write,
) -> io::Result<LeftOut> {
    let mut row = Row { out: WriterBuilder::new().from_writer(out), text: Vec::new() };
    row.out.write_record(columns()).map_err(cause)?;
    let left_out = each_block(recordings, done, |number, block, names| {
        let meta = &recordings[number].meta;
        let (paths, mut stacks) = (paths(block), Stacks::default());
        let mut result = Ok(());
        block.told(meta.scopes, |told| {
            if result.is_ok() {
                let stack = stacks.text(told.stack, block, names);
                result = row.write(&meta.host, block, &paths, told, stack);
            }
        });
        result
    })?;
    row.out.flush()?;
    Ok(left_out)
}

fn columns() -> impl Iterator<Item = &'static str> {
    let parts = PARTS.iter().map(|(name, _)| *name);
    FIRST.into_iter().chain(parts).chain(LAST)
}

/// Where lines are made, field by field.
struct Row<W: io::Write> {
    out: Writer<W>,
    text: Vec<u8>,
}

impl<W: io::Write> Row<W> {
    fn write(
        &mut self,
        host: &str,
        block: &Block,
        paths: &Paths<'_>,
        told: &Told<'_>,
        stack: &str,
    ) -> io::Result<()> {
        let Told { start_ns, duration_ns, thread, kind, class, cpu, nr_reclaimed, .. } = *told;
        let Thread { pid, tid, uid, ref comm, cgroup_id } = *thread;
        let at = timestamp(since_1970_ns(block.epoch_ns(), start_ns));
        self.shown(format_args!("{at:.9}"))?;
        self.bytes(host.as_bytes())?;
        self.number(start_ns)?;
        self.number(duration_ns)?;
        self.bytes(kind.name().as_bytes())?;
        self.bytes(comm.as_bytes())?;
        for id in [pid, tid, uid, cpu] {
            self.number(id)?;
        }
        self.if_known(class.and_then(Class::order))?;
        match class.and_then(|class| block.zone(class)) {
            Some(Zone { node, name }) => self.shown(format_args!("{node}/{name}"))?,
            None => self.bytes(b"")?,
        }
        let target = class.and_then(Class::target).filter(|id| *id != 0);
        for id in [cgroup_id, target] {
            self.if_known(id)?;
            self.bytes(id.and_then(|id| paths.get(&id).copied()).unwrap_or_default())?;
        }
        self.number(nr_reclaimed)?;
        self.parts(block, told)?;
        self.bytes(stack.as_bytes())?;
        self.out.write_record(None::<&[u8]>).map_err(cause)
    }

    fn parts(&mut self, block: &Block, told: &Told<'_>) -> io::Result<()> {
        let shrinkers = || told.scope.into_iter().flat_map(|scope| block.shrinkers(scope));
        let told_apart_ns = shrinkers().fold(0, |sum: u64, (_, ns)| sum.saturating_add(ns));
        for (_, index) in PARTS {
            let ns = told.parts.map(|parts| match index {
                part::SHRINKERS => parts[index].saturating_add(told_apart_ns),
                _ => parts[index],
            });
            self.if_known(ns)?;
        }
        self.text.clear();
        for (address, ns) in shrinkers() {
            let separator = if self.text.is_empty() { "" } else { ";" };
            let name = match block.function(address) {
                _ if address == 0 => "others".to_owned(),
                Some(frame) => function(frame).replace(';', ":"),
                None => format!("{address:#x}"),
            };
            write!(self.text, "{separator}{name}={ns}")?;
        }
        self.out.write_field(&self.text).map_err(cause)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_field(Lossless(bytes).text().as_bytes()).map_err(cause)
    }

    fn shown(&mut self, shown: fmt::Arguments<'_>) -> io::Result<()> {
        self.text.clear();
        self.text.write_fmt(shown)?;
        self.out.write_field(&self.text).map_err(cause)
    }

    fn number(&mut self, number: impl itoa::Integer) -> io::Result<()> {
        self.out.write_field(itoa::Buffer::new().format(number)).map_err(cause)
    }

    fn if_known(&mut self, number: Option<impl itoa::Integer>) -> io::Result<()> {
        match number {
            Some(number) => self.number(number),
            None => self.bytes(b""),
        }
    }
}

/// Why it could not be written, such as that nobody reads it any more.
fn cause(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_column_is_in_the_docs_in_its_place() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/exports.md");
        let page = fs::read_to_string(page).expect("docs of exports");
        let (_, rest) = page.split_once("\n## CSV\n").expect("a section");
        let (section, _) = rest.split_once("\n## ").expect("another one");
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let rows: Vec<_> = rows.collect();
        assert!(rows.iter().map(|(column, _)| *column).eq(columns()), "{rows:?}");
        for (column, rest) in rows {
            let is_ns = column.ends_with("_ns") || PARTS.iter().any(|(part, _)| *part == column);
            assert!(!is_ns || rest.starts_with("ns |"), "{column} is in nanoseconds");
        }
    }
}
