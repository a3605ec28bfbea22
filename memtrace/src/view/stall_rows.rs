//! Rows of `stalls`: one line for each episode, and for each OOM kill.

use std::io::{self, Write as _};

use super::line::Line;
use super::masks::Masks;
use super::second::Second;
use super::words::{CgroupName, Gfp, Millis, TimeOfDay, ZoneName, status_name};
use super::{ViewOptions, parts};
use crate::episode::Episode;
use crate::kind::Kind;
use crate::names::Names;
use crate::scope::{Oom, Parts};
use crate::text::Printable;

const TIME: &str = "TIME            ";
const UID: &str = "UID    ";
const COLUMNS: &str =
    "COMM             PID     TID     KIND       ORDER ROUNDS    LAT(ms)   PAGES ";
const EXTENDED: &str = "  SCANNED PRIO   FREE(KB) ZONE     STATUS            CGROUP                   TARGET                   GFP ";
const PARTS: &str = "PARTS(ms)";

/// One line for each episode.
#[derive(Debug)]
pub struct StallRows {
    options: ViewOptions,
    second: Second,
    gfp: Masks,
}

impl StallRows {
    pub(super) fn new(options: ViewOptions) -> Self {
        Self { options, second: Second::default(), gfp: Masks::default() }
    }

    pub(super) fn header(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let ViewOptions { timestamp, uid, extended, quiet, .. } = self.options;
        if quiet {
            return Ok(());
        }
        let time = if timestamp { TIME } else { "" };
        let uid = if uid { UID } else { "" };
        let more = if extended { EXTENDED } else { "" };
        writeln!(out, "{time}{uid}{COLUMNS}{more}{PARTS}")
    }

    pub(super) fn episode(
        &mut self,
        episode: &Episode,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.time(episode.start_ns, names, out)?;
        let mut line = Line::begin(out);
        if self.options.uid {
            line.left(6, episode.uid);
        }
        line.left(16, episode.comm)
            .left(7, episode.pid)
            .left(7, episode.tid)
            .left(10, episode.kind.name())
            .left(5, episode.order)
            .right(6, episode.rounds.total())
            .right(10, Millis(episode.duration_ns))
            .right(7, (episode.rounds.reclaim != 0).then_some(episode.nr_reclaimed));
        if self.options.extended {
            self.more(episode, names, &mut line);
        }
        match &episode.parts {
            Some(of) => append_parts(of, names, &mut line),
            None => {
                line.left(0, "-");
            }
        }
        line.end();
        self.stack(&episode.stack, names, out)
    }

    fn more(&mut self, episode: &Episode, names: &mut Names, line: &mut Line<'_>) {
        let bytes = |pages| u128::from(pages) * u128::from(names.page_size);
        let target = episode.target_cgroup_id.filter(|&id| id != 0);
        let status = episode.status.map(|status| status_name(status, &names.statuses));
        line.right(9, episode.nr_scanned)
            .right(4, episode.priority)
            .right(10, episode.free_pages.map(|pages| bytes(pages) / 1024))
            .left(8, episode.zone.as_ref().map(ZoneName))
            .left(17, status)
            .left(24, episode.cgroup_id.map(|id| CgroupName::of(id, &mut names.cgroups)))
            .left(24, target.map(|id| CgroupName::of(id, &mut names.cgroups)))
            .left(0, episode.gfp.map(|mask| Gfp(mask, &names.gfp, &mut self.gfp)));
    }

    /// The thread is the one that lacked memory, and it takes no time.
    pub(super) fn oom(
        &mut self,
        oom: &Oom,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.time(oom.at_ns, names, out)?;
        let mut line = Line::begin(out);
        if self.options.uid {
            line.left(6, oom.uid);
        }
        line.left(16, oom.comm)
            .left(7, oom.pid)
            .left(7, oom.tid)
            .left(10, Kind::Oom.name())
            .left(5, "-")
            .right(6, "-")
            .right(10, "-")
            .right(7, "-");
        let cgroup = oom.victim_cgroup_id.map(|id| CgroupName::of(id, &mut names.cgroups));
        line.left(0, "kills").left(0, oom.victim_pid);
        // What anyone may have chosen comes last.
        line.left(0, oom.victim_comm).left(0, cgroup);
        line.end();
        self.stack(&oom.stack, names, out)
    }

    fn time(&mut self, at_ns: u64, names: &Names, out: &mut Vec<u8>) -> io::Result<()> {
        let ViewOptions { timestamp, ref zone, .. } = self.options;
        if timestamp {
            let at = names.clock.at(at_ns);
            self.second.append(at, 6, |at| TimeOfDay(at, zone), out)?;
            out.push(b' ');
        }
        Ok(())
    }

    fn stack(&self, stack: &[u64], names: &mut Names, out: &mut Vec<u8>) -> io::Result<()> {
        if self.options.stacks {
            for frame in names.symbols.resolve(stack) {
                writeln!(out, "\t{frame}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// The parts with their times, the longest first.
fn append_parts(of: &Parts, names: &mut Names, line: &mut Line<'_>) {
    for (part, ns) in of.sorted() {
        let name = parts::name(part, names);
        line.left(0, Printable(name.as_bytes())).left(0, Millis(ns));
    }
}
