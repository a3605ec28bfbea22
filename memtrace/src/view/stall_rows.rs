//! Rows of `stalls`: one line for each episode, and for each OOM kill.

use std::io::{self, Write as _};

use super::line::Line;
use super::masks::Masks;
use super::second::Second;
use super::stacks::Stacks;
use super::words::{CgroupName, Gfp, Millis, Span, TimeOfDay, Whose, ZoneName, status_name};
use super::{Judged, ViewOptions, parts};
use crate::episode::Episode;
use crate::kind::Kind;
use crate::names::Names;
use crate::owner::Owner;
use crate::scope::{Oom, Parts};
use crate::text::Printable;
use crate::verdict::Verdict;

const TIME: &str = "TIME            ";
const UID: &str = "UID    ";
const COLUMNS: &str = concat!(
    "COMM             PID     TID     KIND       ORDER ROUNDS    LAT(ms)   PAGES",
    " VERDICT         PAYER                    ",
);
const EXTENDED: &str = concat!(
    "  SCANNED PRIO   FREE(KB) ZONE     STATUS            CGROUP                  ",
    " TARGET                   FORCER                   GFP ",
);
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
            .right(7, (episode.rounds.reclaim != 0).then_some(episode.nr_reclaimed))
            .left(15, episode.target_verdict.or(episode.verdict).map(Verdict::name))
            .left(24, episode.cgroup_id.map(|id| Whose(id, &mut names.cgroups)));
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
        let Episode { pid, stack: kernel, user_stack: user, .. } = episode;
        Stacks { pid: *pid, kernel, user }.append(&self.options, names, out)
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
            .left(24, target.map(|id| Whose(id, &mut names.cgroups)))
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
            .right(7, "-")
            .left(15, "-")
            .left(24, oom.cgroup_id.map(|id| Whose(id, &mut names.cgroups)));
        let cgroup = oom.victim_cgroup_id.map(|id| CgroupName::of(id, &mut names.cgroups));
        line.left(0, "kills").left(0, oom.victim_pid);
        // What anyone may have chosen comes last.
        line.left(0, oom.victim_comm).left(0, cgroup);
        line.end();
        let Oom { pid, stack: kernel, user_stack: user, .. } = oom;
        Stacks { pid: *pid, kernel, user }.append(&self.options, names, out)
    }

    /// A line between the rows.
    pub(super) fn verdict(
        &mut self,
        judged: &Judged,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let Judged { target, at_ns, verdict, evidence } = judged;
        self.time(*at_ns, names, out)?;
        write!(out, "-- ")?;
        match verdict {
            Some(verdict) => write!(out, "{verdict}")?,
            None => write!(out, "no verdict any more")?,
        }
        if let Some(reclaimed) = evidence.reclaimed_per_1000() {
            write!(out, "; {reclaimed} pages reclaimed per 1000 scanned")?;
        }
        if let Some(refaulted) = evidence.refaulted_per_1000() {
            write!(out, ", {refaulted} file pages read back per 1000 reclaimed")?;
        }
        write!(out, ", {} rounds, {} lost", evidence.rounds, Span(evidence.stalled_ns.into()))?;
        // What anyone may have chosen comes last.
        match target {
            0 => writeln!(out, ": the host"),
            id => {
                write!(out, ": {}", CgroupName::of(*id, &mut names.cgroups))?;
                let path = names.cgroups.path(*id).unwrap_or_default();
                match Owner::of(path) {
                    Some(owner) => writeln!(out, " ({owner})"),
                    None => writeln!(out),
                }
            }
        }
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
}

/// The parts with their times, the longest first.
fn append_parts(of: &Parts, names: &mut Names, line: &mut Line<'_>) {
    for (part, ns) in of.sorted() {
        let name = parts::name(part, names);
        line.left(0, Printable(name.as_bytes())).left(0, Millis(ns));
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::fixtures::{
        episode, judged, names, options, shown_episodes, unknown_episode,
    };
    use super::super::{Format, Subject, View, ViewOptions};
    use crate::verdict::{Refaults, Verdict};

    fn rows() -> ViewOptions {
        options(Subject::Stalls, Format::Text)
    }

    #[test]
    fn plain() {
        assert_snapshot!(shown_episodes(rows(), &[episode(), unknown_episode()]), @r#"
        COMM             PID     TID     KIND       ORDER ROUNDS    LAT(ms)   PAGES VERDICT         PAYER                    PARTS(ms)
        summ             1234    1240    memcg-high 9          2      2.469      37 hopeless        pg.service               scan 1.034 compaction 1.034 throttled:writeback 0.400 shrink:do_try_to_free_pages 0.002
        postgres         1234    1240    memstall   -          1      1.235       - -               -                        -
        postgres         1234    1240    oom        -          -          -       - -               pg.service               kills 99 \x1b[2J"'\\x0a\xff💩 /system.slice
        -- hopeless: anonymous only, no swap; 0 pages reclaimed per 1000 scanned, 12 rounds, 1.50 s lost: /system.slice (system.slice)
        -- no verdict any more; 0 pages reclaimed per 1000 scanned, 12 rounds, 1.50 s lost: the host
        "#);
    }

    #[test]
    fn extended() {
        let options = ViewOptions { extended: true, timestamp: true, uid: true, ..rows() };
        assert_snapshot!(shown_episodes(options, &[episode(), unknown_episode()]), @r#"
        TIME            UID    COMM             PID     TID     KIND       ORDER ROUNDS    LAT(ms)   PAGES VERDICT         PAYER                      SCANNED PRIO   FREE(KB) ZONE     STATUS            CGROUP                   TARGET                   FORCER                   GFP PARTS(ms)
        14:00:05.123456 1000   summ             1234    1240    memcg-high 9          2      2.469      37 hopeless        pg.service                      64   11      86260 1/Normal partial_skipped   /system.slice/pg.service /system.slice            system.slice             GFP_HIGHUSER_MOVABLE scan 1.034 compaction 1.034 throttled:writeback 0.400 shrink:do_try_to_free_pages 0.002
        14:00:05.123456 1000   postgres         1234    1240    memstall   -          1      1.235       - -               -                                -    -          - -        -                 -                        -                        -                        - -
        14:00:05.123456 1000   postgres         1234    1240    oom        -          -          -       - -               pg.service               kills 99 \x1b[2J"'\\x0a\xff💩 /system.slice
        14:00:06.000000 -- hopeless: anonymous only, no swap; 0 pages reclaimed per 1000 scanned, 12 rounds, 1.50 s lost: /system.slice (system.slice)
        14:00:06.000000 -- no verdict any more; 0 pages reclaimed per 1000 scanned, 12 rounds, 1.50 s lost: the host
        "#);
    }

    #[test]
    fn more_may_be_read_back_than_was_reclaimed() {
        let mut judged = judged(0, Some(Verdict::Thrash));
        judged.evidence.reclaimed = 3000;
        judged.evidence.refaults = Some(Refaults { refaulted: 922, reclaimed: 500 });
        let (mut view, mut out) = (View::new(rows()), Vec::new());
        view.verdict(&judged, &mut names(), &mut out);
        let line = String::from_utf8(out).expect("views show UTF-8");
        assert!(line.contains(
            "; 1000 pages reclaimed per 1000 scanned, 1844 file pages read back per 1000 reclaimed, 12 rounds"
        ), "{line}");
    }

    #[test]
    fn with_stacks_and_without_header() {
        let options = ViewOptions { stacks: true, quiet: true, ..rows() };
        assert_snapshot!(shown_episodes(options, &[episode()]), @r#"
        summ             1234    1240    memcg-high 9          2      2.469      37 hopeless        pg.service               scan 1.034 compaction 1.034 throttled:writeback 0.400 shrink:do_try_to_free_pages 0.002
        	do_try_to_free_pages+0x1f
        	try_charge_memcg+0x2a

        postgres         1234    1240    oom        -          -          -       - -               pg.service               kills 99 \x1b[2J"'\\x0a\xff💩 /system.slice

        -- hopeless: anonymous only, no swap; 0 pages reclaimed per 1000 scanned, 12 rounds, 1.50 s lost: /system.slice (system.slice)
        -- no verdict any more; 0 pages reclaimed per 1000 scanned, 12 rounds, 1.50 s lost: the host
        "#);
    }
}
