//! Rows: one line of fixed columns for each stall, in the look of bcc's drsnoop and compactsnoop.

use std::io::{self, Write as _};

use super::line::Line;
use super::masks::Masks;
use super::second::Second;
use super::stacks::Stacks;
use super::words::{
    CgroupName, Gfp, Millis, ScannedPages, Thousandths, TimeOfDay, ZoneName, status_name,
};
use super::{Subject, ViewOptions};
use crate::names::Names;
use crate::stall::{Compaction, Detail, Reclaim, Stall, Watermarks};

// The columns are as wide as those of the lines below. A value too long pushes the rest.
const TIME: &str = "TIME            ";
const UID: &str = "UID    ";
const RECLAIM: &str = "COMM             PID     TID     KIND      ORDER    LAT(ms)   PAGES";
const RECLAIM_EXTENDED: &str =
    "   SCANNED PRIO   FREE(KB) CGROUP                   TARGET                   GFP";
const COMPACTION: &str =
    "COMM            PID    TID    ZONE     ORDER CAUSE     MODE   LAT(ms) STATUS";
const COMPACTION_EXTENDED: &str = concat!(
    "COMM            PID    TID    ZONE     ORDER CAUSE     MODE        LAT(ms) STATUS           ",
    " FRAGIDX      MIN      LOW     HIGH     FREE SCANNED         CGROUP                   GFP",
);

/// One line for each stall.
#[derive(Debug)]
pub struct Rows {
    options: ViewOptions,
    second: Second,
    gfp: Masks,
}

impl Rows {
    pub(super) fn new(options: ViewOptions) -> Self {
        Self { options, second: Second::default(), gfp: Masks::default() }
    }

    pub(super) fn header(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let ViewOptions { subject, timestamp, uid, extended, quiet, .. } = self.options;
        if quiet {
            return Ok(());
        }
        let time = if timestamp { TIME } else { "" };
        let uid = if uid { UID } else { "" };
        let (columns, more) = match (subject, extended) {
            (Subject::Reclaim, false) => (RECLAIM, ""),
            (Subject::Reclaim, true) => (RECLAIM, RECLAIM_EXTENDED),
            (Subject::Compaction, false) => (COMPACTION, ""),
            (Subject::Compaction, true) => (COMPACTION_EXTENDED, ""),
            // They have rows of their own.
            (Subject::Stalls, _) => return Ok(()),
        };
        writeln!(out, "{time}{uid}{columns}{more}")
    }

    pub(super) fn stall(
        &mut self,
        stall: &Stall,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let ViewOptions { timestamp, ref zone, uid, extended, .. } = self.options;
        if timestamp {
            let start = names.clock.at(stall.start_ns);
            self.second.append(start, 6, |at| TimeOfDay(at, zone), out)?;
            out.push(b' ');
        }
        let mut line = Line::begin(out);
        if uid {
            line.left(6, stall.uid);
        }
        match &stall.detail {
            Detail::Reclaim(reclaim) => {
                Self::reclaim(stall, reclaim, &mut line);
                if extended {
                    self.more_of_reclaim(stall, reclaim, names, &mut line);
                }
            }
            Detail::Compaction(compaction) if extended => {
                self.extended_compaction(stall, compaction, names, &mut line);
            }
            Detail::Compaction(compaction) => {
                Self::compaction(stall, compaction, names, &mut line);
            }
        }
        line.end();
        let stacks = Stacks { pid: stall.pid, kernel: &stall.stack, user: &stall.user_stack };
        stacks.append(&self.options, names, out)
    }

    fn reclaim(stall: &Stall, reclaim: &Reclaim, line: &mut Line<'_>) {
        // The page that the kernel reports to let compaction try was not reclaimed.
        let pages = if reclaim.compaction_ready { 0 } else { reclaim.nr_reclaimed };
        line.left(16, stall.comm)
            .left(7, stall.pid)
            .left(7, stall.tid)
            .left(9, reclaim.kind.name())
            .left(5, stall.order)
            .right(10, Millis(stall.duration_ns))
            .right(7, pages);
    }

    fn more_of_reclaim(
        &mut self,
        stall: &Stall,
        reclaim: &Reclaim,
        names: &mut Names,
        line: &mut Line<'_>,
    ) {
        let bytes = |pages| u128::from(pages) * u128::from(names.page_size);
        let target = reclaim.target_cgroup_id.filter(|&id| id != 0);
        line.right(9, reclaim.nr_scanned)
            .right(4, reclaim.priority)
            .right(10, reclaim.free_pages.map(|pages| bytes(pages) / 1024))
            .left(24, stall.cgroup_id.map(|id| CgroupName::of(id, &mut names.cgroups)))
            .left(24, target.map(|id| CgroupName::of(id, &mut names.cgroups)))
            .left(0, stall.gfp.map(|mask| Gfp(mask, &names.gfp, &mut self.gfp)));
    }

    fn compaction(stall: &Stall, compaction: &Compaction, names: &Names, line: &mut Line<'_>) {
        let mode = compaction.mode.map(|value| names.modes.name(value));
        Self::start_of_compaction(stall, compaction, line);
        line.left(5, mode.as_deref().map(shortened))
            .right(8, Millis(stall.duration_ns))
            .left(0, shortened(&status_name(compaction.status, &names.statuses)));
    }

    fn extended_compaction(
        &mut self,
        stall: &Stall,
        compaction: &Compaction,
        names: &mut Names,
        line: &mut Line<'_>,
    ) {
        let [min, low, high, free] = match compaction.watermarks {
            Some(Watermarks { min, low, high, free }) => [min, low, high, free].map(Some),
            None => [None; 4],
        };
        Self::start_of_compaction(stall, compaction, line);
        line.left(10, compaction.mode.map(|value| names.modes.name(value)))
            .right(8, Millis(stall.duration_ns))
            .left(17, status_name(compaction.status, &names.statuses))
            .right(7, compaction.frag_index.map(Thousandths))
            .right(8, min)
            .right(8, low)
            .right(8, high)
            .right(8, free)
            .left(15, compaction.scanned.map(ScannedPages))
            .left(24, stall.cgroup_id.map(|id| CgroupName::of(id, &mut names.cgroups)))
            .left(0, stall.gfp.map(|mask| Gfp(mask, &names.gfp, &mut self.gfp)));
    }

    fn start_of_compaction(stall: &Stall, compaction: &Compaction, line: &mut Line<'_>) {
        line.left(15, stall.comm)
            .left(6, stall.pid)
            .left(6, stall.tid)
            .left(8, compaction.zone.as_ref().map(ZoneName))
            .left(5, stall.order)
            .left(9, compaction.cause.name());
    }
}

/// The kernel's two longest words, cut so that the plain row fits 80 columns.
fn shortened(name: &str) -> &str {
    match name {
        "sync_light" => "light",
        "partial_skipped" => "partial",
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::fixtures::{comm, compaction, extreme, options, reclaim, shown, unknown};
    use super::super::{Format, Subject, ViewOptions};
    use crate::stall::{Cause, Detail, ReclaimKind, Stall, Zone};

    fn rows(subject: Subject) -> ViewOptions {
        options(subject, Format::Text)
    }

    #[test]
    fn plain_reclaim() {
        assert_snapshot!(shown(rows(Subject::Reclaim), &[reclaim(), unknown(reclaim())]), @"
        COMM             PID     TID     KIND      ORDER    LAT(ms)   PAGES
        postgres         1234    1240    memcg     0          1.235      37
        postgres         1234    1240    memcg     -          1.235      37
        ");
    }

    #[test]
    fn plain_compaction() {
        assert_snapshot!(shown(rows(Subject::Compaction), &[compaction(), unknown(compaction())]), @"
        COMM            PID    TID    ZONE     ORDER CAUSE     MODE   LAT(ms) STATUS
        summ            1234   1240   1/Normal 9     direct    light    1.235 partial
        summ            1234   1240   -        -     direct    -        1.235 -1
        ");
    }

    #[test]
    fn extended_reclaim() {
        let mut global = reclaim();
        if let Detail::Reclaim(reclaim) = &mut global.detail {
            reclaim.kind = ReclaimKind::Direct;
            reclaim.target_cgroup_id = Some(0);
        }
        global.gfp = Some(0x4_0cc0);
        global.cgroup_id = Some(1234);
        let options = ViewOptions { extended: true, ..rows(Subject::Reclaim) };
        assert_snapshot!(shown(options, &[reclaim(), global, unknown(reclaim())]), @"
        COMM             PID     TID     KIND      ORDER    LAT(ms)   PAGES   SCANNED PRIO   FREE(KB) CGROUP                   TARGET                   GFP
        postgres         1234    1240    memcg     0          1.235      37        64   11      86260 /system.slice/pg.service /system.slice            GFP_HIGHUSER_MOVABLE
        postgres         1234    1240    direct    0          1.235      37        64   11      86260 id:1234                  -                        GFP_KERNEL|__GFP_COMP
        postgres         1234    1240    memcg     -          1.235      37         -    -          - -                        -                        -
        ");
    }

    #[test]
    fn extended_compaction() {
        let mut whole_zone = compaction();
        whole_zone.order = Some(-1);
        if let Detail::Compaction(compaction) = &mut whole_zone.detail {
            compaction.cause = Cause::Manual;
            compaction.status = 5;
            compaction.frag_index = Some(-5);
        }
        let options = ViewOptions { extended: true, ..rows(Subject::Compaction) };
        assert_snapshot!(shown(options, &[compaction(), whole_zone, unknown(compaction())]), @"
        COMM            PID    TID    ZONE     ORDER CAUSE     MODE        LAT(ms) STATUS            FRAGIDX      MIN      LOW     HIGH     FREE SCANNED         CGROUP                   GFP
        summ            1234   1240   1/Normal 9     direct    sync_light    1.235 partial_skipped     0.728    11284    14105    16926    14193 1234/5678       /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        summ            1234   1240   1/Normal -1    manual    sync_light    1.235 complete           -0.005    11284    14105    16926    14193 1234/5678       /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        summ            1234   1240   -        -     direct    -             1.235 -1                      -        -        -        -        - -               -                        -
        ");
    }

    #[test]
    fn time_and_user_come_first() {
        let options = |subject| ViewOptions { timestamp: true, uid: true, ..rows(subject) };
        assert_snapshot!(shown(options(Subject::Reclaim), &[reclaim()]), @"
        TIME            UID    COMM             PID     TID     KIND      ORDER    LAT(ms)   PAGES
        14:00:05.123456 1000   postgres         1234    1240    memcg     0          1.235      37
        ");
        assert_snapshot!(shown(options(Subject::Compaction), &[compaction()]), @"
        TIME            UID    COMM            PID    TID    ZONE     ORDER CAUSE     MODE   LAT(ms) STATUS
        14:00:05.123456 1000   summ            1234   1240   1/Normal 9     direct    light    1.235 partial
        ");
    }

    #[test]
    fn quiet_has_no_header() {
        let options = ViewOptions { quiet: true, ..rows(Subject::Reclaim) };
        assert_eq!(shown(options.clone(), &[]), "");
        assert!(shown(options, &[reclaim()]).starts_with("postgres "));
    }

    #[test]
    fn a_stack_follows_its_row() {
        let options = ViewOptions { stacks: true, quiet: true, ..rows(Subject::Reclaim) };
        let text = shown(options, &[reclaim(), unknown(reclaim())]);
        let (_, stack) = text.split_once('\n').expect("a row");
        assert!(
            stack.starts_with("\tdo_try_to_free_pages+0x1f\n\ttry_charge_memcg+0x2a\n\npostgres "),
            "{stack:?}"
        );
        // Without a stack there is the empty line alone.
        assert!(stack.ends_with("37\n\n"), "{stack:?}");
    }

    #[test]
    fn the_stack_in_user_space_is_beneath_the_kernels() {
        let mut options = ViewOptions { user_stacks: true, quiet: true, ..rows(Subject::Reclaim) };
        let stack = |options: &ViewOptions| {
            let text = shown(options.clone(), &[reclaim()]);
            text.split_once('\n').map(|(_, stack)| stack.to_owned()).unwrap_or_default()
        };
        assert_eq!(stack(&options), "\t0x3b\n\n");
        options.stacks = true;
        let kernel = "\tdo_try_to_free_pages+0x1f\n\ttry_charge_memcg+0x2a\n";
        assert_eq!(stack(&options), format!("{kernel}\t--\n\t0x3b\n\n"));
    }

    #[test]
    fn the_page_that_lets_compaction_try_is_not_reclaimed() {
        let mut stall = reclaim();
        if let Detail::Reclaim(reclaim) = &mut stall.detail {
            reclaim.nr_reclaimed = 1;
            reclaim.compaction_ready = true;
        }
        let text = shown(rows(Subject::Reclaim), &[stall]);
        assert_eq!(text.split_whitespace().last(), Some("0"));
    }

    #[test]
    fn plain_rows_fit_80_columns() {
        let mut stalls = Vec::new();
        for kind in ReclaimKind::ALL {
            let mut stall = Stall {
                comm: comm(b"kworker/u512:10"),
                pid: 4_194_303,
                tid: 4_194_303,
                duration_ns: 99_999_999_000,
                order: Some(10),
                ..reclaim()
            };
            if let Detail::Reclaim(reclaim) = &mut stall.detail {
                reclaim.kind = kind;
                reclaim.nr_reclaimed = 9_999_999;
            }
            stalls.push((Subject::Reclaim, stall));
        }
        for (cause, status) in
            Cause::ALL.into_iter().flat_map(|cause| (5..=8).map(move |status| (cause, status)))
        {
            let mut stall = Stall {
                comm: comm(b"kcompactd999999"),
                pid: 999_999,
                tid: 999_999,
                duration_ns: 9_999_999_000,
                order: Some(-1),
                ..compaction()
            };
            if let Detail::Compaction(compaction) = &mut stall.detail {
                compaction.cause = cause;
                compaction.status = status;
                compaction.zone = Some(Zone { node: 0, name: "Movable".to_owned() });
            }
            stalls.push((Subject::Compaction, stall));
        }
        for (subject, stall) in stalls {
            for line in shown(rows(subject), &[stall]).lines() {
                assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
            }
        }
    }

    #[test]
    fn hostile_names_and_extreme_numbers_stay_on_one_line() {
        for (subject, stall) in [(Subject::Reclaim, reclaim()), (Subject::Compaction, compaction())]
        {
            let options = ViewOptions {
                timestamp: true,
                uid: true,
                extended: true,
                quiet: true,
                ..rows(subject)
            };
            let text = shown(options, &[extreme(stall)]);
            assert!(text.contains(" 4294967295 \\x1b[2J\"'\\\\x0a\\xff💩 "), "{text}");
            assert!(text.contains("/\\x1b[2J\\x0aééé"), "{text}");
            assert!(text.contains(" 18446744073709.552 "), "{text}");
            assert!(text.ends_with('\n'));
            assert!(!text.trim_end_matches('\n').contains(char::is_control), "{text}");
        }
    }

    #[test]
    fn columns_are_those_of_a_terminal() {
        let mut stall = reclaim();
        stall.comm = comm("é日💩".as_bytes());
        let text = shown(rows(Subject::Reclaim), &[stall]);
        let columns_before = |name| {
            let before =
                text.lines().find_map(|line| line.split_once(name)).map(|(before, _)| before);
            before.map(unicode_width::UnicodeWidthStr::width)
        };
        assert_eq!((columns_before("PID"), columns_before("1234")), (Some(17), Some(17)));
    }

    #[test]
    fn latency_is_rounded_half_up() {
        let latency = |duration_ns| {
            let text = shown(rows(Subject::Reclaim), &[Stall { duration_ns, ..reclaim() }]);
            text.lines().nth(1).and_then(|row| row.split_whitespace().nth(5)).map(str::to_owned)
        };
        for (ns, ms) in [
            (0, "0.000"),
            (499, "0.000"),
            (500, "0.001"),
            (1_499, "0.001"),
            (1_500, "0.002"),
            (999_499, "0.999"),
            (999_500, "1.000"),
            (u64::MAX, "18446744073709.552"),
        ] {
            assert_eq!(latency(ns).as_deref(), Some(ms), "{ns} ns");
        }
    }
}
