//! Threads that are stalled at this moment: a table of each look, or an object for each thread and one
//! for the look.

use std::io::{self, Write as _};

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use super::json::{self, Object, Time};
use super::line::Line;
use super::masks::Masks;
use super::words::{CgroupName, Gfp, ScannedPages, TimeOfDay, ZoneName};
use super::{Format, in_memory};
use crate::names::Names;
use crate::now::{Compacting, Reclaiming, Row, Sample, Stalled, Work, compare};
use crate::owner::Owner;
use crate::verdict::Verdict;

// The columns are as wide as those of the lines below. A value too long pushes the rest.
const HEADER: &str = "COMM             PID     TID     KIND       STATE     SEEN   ";
const SINCE: &str = "  FOR(s) ";
const MORE: &str = concat!(
    "ORDER PRIO   SCANNED RECLAIMED    SCAN/s   RECL/s VERDICT         TARGET                  ",
    " CGROUP",
    "                   GFP",
);

/// What is shown and how.
#[derive(Clone, Copy, Debug)]
pub struct NowOptions {
    /// For whom.
    pub format: Format,
    /// Show how long threads have been seen.
    pub since: bool,
    /// Show kernel stacks.
    pub stacks: bool,
    /// Leave out headers.
    pub quiet: bool,
}

/// Shows looks at all threads, one after the other.
#[derive(Debug)]
pub struct NowView {
    options: NowOptions,
    /// Where the time of day of a table is that of.
    zone: TimeZone,
    tables: u64,
    gfp: Masks,
}

impl NowView {
    /// The view that the options describe.
    #[must_use]
    pub fn new(options: NowOptions, zone: TimeZone) -> Self {
        Self { options, zone, tables: 0, gfp: Masks::default() }
    }

    /// Shows what two looks tell.
    pub fn show(&mut self, first: &Sample, second: &Sample, names: &mut Names, out: &mut Vec<u8>) {
        let rows = compare(first, second);
        in_memory(match self.options.format {
            Format::Text => self.table(&rows, second, names, out),
            Format::Json => self.objects(&rows, first, second, names, out),
        });
        self.tables += 1;
    }

    fn table(
        &mut self,
        rows: &[Row<'_>],
        second: &Sample,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let NowOptions { since, stacks, quiet, .. } = self.options;
        if self.tables > 0 {
            writeln!(out)?;
        }
        if since {
            writeln!(out, "{}", TimeOfDay(names.clock.at(second.at_ns), &self.zone))?;
        }
        if !quiet {
            writeln!(out, "{HEADER}{}{MORE}", if since { SINCE } else { "" })?;
        }
        for row in rows {
            self.row(row, second, names, out);
            if stacks {
                for frame in names.symbols.kernel(&row.thread.stack) {
                    writeln!(out, "\t{}", frame.text())?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &Row<'_>, second: &Sample, names: &mut Names, out: &mut Vec<u8>) {
        let Row { thread, seen, pace } = *row;
        let mut line = Line::begin(out);
        line.left(16, thread.comm)
            .left(7, thread.pid)
            .left(7, thread.tid)
            .left(10, thread.kind.name())
            .left(9, thread.state.name())
            .left(6, seen.name());
        if self.options.since {
            line.right(8, since_ns(row, second).map(|ns| format!("{:.1}", seconds(ns))).as_deref());
        }
        line.left(5, thread.order);
        match &thread.work {
            Work::Reclaim(Reclaiming { priority, nr_scanned, nr_reclaimed, .. }) => {
                line.right(4, *priority).right(9, *nr_scanned).right(9, *nr_reclaimed)
            }
            Work::Compaction(Compacting { scanned, .. }) => {
                line.right(4, "-").right(9, ScannedPages(*scanned)).right(9, "-")
            }
            Work::Unknown => line.right(4, "-").right(9, "-").right(9, "-"),
        };
        line.right(9, pace.and_then(|pace| pace.scanned))
            .right(8, pace.and_then(|pace| pace.reclaimed))
            .left(15, thread.verdict.map(Verdict::name));
        if let Work::Compaction(Compacting { zone, .. }) = &thread.work {
            line.left(24, ZoneName(zone));
        } else {
            line.left(24, target(thread).map(|id| CgroupName::of(id, &mut names.cgroups)));
        }
        line.left(24, thread.cgroup_id.map(|id| CgroupName::of(id, &mut names.cgroups)))
            .left(0, thread.gfp.map(|mask| Gfp(mask, &names.gfp, &mut self.gfp)))
            .end();
    }

    fn objects(
        &mut self,
        rows: &[Row<'_>],
        first: &Sample,
        second: &Sample,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        for row in rows {
            self.object(row, second, names, out)?;
        }
        let [at, before] = [second, first].map(|sample| names.clock.at(sample.at_ns));
        let summary = LookObject::new(rows, first, second, at, before);
        json::line(&summary, out)
    }

    fn object(
        &mut self,
        row: &Row<'_>,
        second: &Sample,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let Row { thread, seen, pace } = *row;
        let Stalled { pid, tid, uid, comm, kind, state, order, gfp, cgroup_id, .. } = *thread;
        let target = target(thread);
        let mut object = Object::begin(out);
        object.text("type", b"stalled".as_slice())?;
        object.entry("time", Time(names.clock.at(second.at_ns)))?;
        object.text("comm", comm.as_bytes())?;
        object.entry("pid", pid)?;
        object.entry("tid", tid)?;
        object.entry("uid", uid)?;
        object.text("kind", kind.name().as_bytes())?;
        object.entry("worker", kind.is_worker())?;
        object.text("state", state.name().as_bytes())?;
        object.text("seen", seen.name().as_bytes())?;
        object.entry("seen_for_ns", since_ns(row, second).filter(|_| self.options.since))?;
        object.entry("order", order)?;
        json::append_gfp(&mut self.gfp, gfp, &names.gfp, object.key("gfp"))?;
        object.entry("cgroup_id", cgroup_id)?;
        let path = cgroup_id.and_then(|id| names.cgroups.path(id));
        object.text("cgroup", path)?;
        object.entry("owner", path.and_then(Owner::of))?;
        object.entry("target_cgroup_id", target)?;
        let path = target.and_then(|id| names.cgroups.path(id));
        object.text("target_cgroup", path)?;
        object.entry("target_owner", path.and_then(Owner::of))?;
        object.entry("verdict", thread.verdict)?;
        let (reclaim, compaction) = match &thread.work {
            Work::Reclaim(reclaim) => (Some(reclaim), None),
            Work::Compaction(compaction) => (None, Some(compaction)),
            Work::Unknown => (None, None),
        };
        object.entry("priority", reclaim.map(|work| work.priority))?;
        object.entry("nr_scanned", reclaim.map(|work| work.nr_scanned))?;
        object.entry("nr_reclaimed", reclaim.map(|work| work.nr_reclaimed))?;
        object.entry("node", compaction.map(|work| work.zone.node))?;
        object.text("zone", compaction.map(|work| work.zone.name.as_bytes()))?;
        object.entry("mode", compaction.map(|work| names.modes.name(work.mode)))?;
        object.entry("migrate_scanned", compaction.map(|work| work.scanned.migrate))?;
        object.entry("free_scanned", compaction.map(|work| work.scanned.free))?;
        object.entry("scanned_per_s", pace.and_then(|pace| pace.scanned))?;
        object.entry("reclaimed_per_s", pace.and_then(|pace| pace.reclaimed))?;
        if self.options.stacks {
            object.entry("stack", json::Frames(&names.symbols.kernel(&thread.stack)))?;
        }
        object.end();
        Ok(())
    }
}

/// The cgroup whose limit asks for the reclaim.
fn target(thread: &Stalled) -> Option<u64> {
    match thread.work {
        Work::Reclaim(Reclaiming { target_cgroup_id, .. }) => {
            target_cgroup_id.filter(|&id| id != 0)
        }
        Work::Compaction(_) | Work::Unknown => None,
    }
}

/// How long a thread has been seen stalled: nothing where it was seen once only.
fn since_ns(row: &Row<'_>, second: &Sample) -> Option<u64> {
    Some(second.at_ns.saturating_sub(row.thread.since_ns))
        .filter(|ns| *ns != 0 && row.seen == crate::now::Seen::Both)
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// What is behind the objects of one look.
#[derive(Serialize)]
struct LookObject<'a> {
    r#type: &'static str,
    time: Time,
    since: Time,
    at_ns: u64,
    since_ns: u64,
    stalled: usize,
    workers: usize,
    looked_at: u64,
    took_ns: u64,
    torn: u64,
    left_out: u64,
    unavailable: &'a [String],
}

impl<'a> LookObject<'a> {
    fn new(
        rows: &[Row<'_>],
        first: &Sample,
        second: &'a Sample,
        at: Timestamp,
        since: Timestamp,
    ) -> Self {
        let workers = rows.iter().filter(|row| row.thread.kind.is_worker()).count();
        Self {
            r#type: "look",
            time: Time(at),
            since: Time(since),
            at_ns: second.at_ns,
            since_ns: first.at_ns,
            stalled: rows.len() - workers,
            workers,
            looked_at: second.looked_at,
            took_ns: second.took_ns,
            torn: first.torn + second.torn,
            left_out: first.left_out + second.left_out,
            unavailable: &second.unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use jsonschema::Validator;
    use serde_json::Value;

    use super::super::fixtures::{HOSTILE, comm, names};
    use super::*;
    use crate::now::{Kind, State};
    use crate::stall::{Scanned, Zone};

    fn thread(tid: u32, kind: Kind, work: Work) -> Stalled {
        Stalled {
            pid: 1234,
            tid,
            uid: 1000,
            comm: comm(b"postgres"),
            kind,
            state: State::Running,
            order: Some(0),
            gfp: Some(0x140_cca),
            cgroup_id: Some(70),
            work,
            control: 1,
            since_ns: 5_000_000_000,
            verdict: None,
            stack: vec![0x1f, 0x2a],
        }
    }

    fn reclaim(nr_scanned: u64, nr_reclaimed: u64, target: u64) -> Work {
        let target_cgroup_id = Some(target);
        Work::Reclaim(Reclaiming { priority: 11, nr_scanned, nr_reclaimed, target_cgroup_id })
    }

    fn compaction(migrate: u64) -> Work {
        Work::Compaction(Compacting {
            zone: Zone { node: 1, name: "Normal".to_owned() },
            mode: 1,
            scanned: Scanned { migrate, free: 20 },
        })
    }

    fn samples() -> [Sample; 2] {
        let sleeping = Stalled {
            state: State::Waiting,
            order: None,
            gfp: None,
            ..thread(1242, Kind::Penalty, Work::Unknown)
        };
        let hostile =
            Stalled { comm: comm(HOSTILE), ..thread(1243, Kind::Direct, reclaim(0, 0, 0)) };
        let first = vec![
            thread(9, Kind::Kswapd, reclaim(1, 2, 0)),
            thread(1240, Kind::Memcg, reclaim(64, 32, 71)),
            thread(1241, Kind::Compaction, compaction(100)),
            sleeping.clone(),
            thread(1244, Kind::Proactive, reclaim(9, 8, 71)),
        ];
        let second = vec![
            thread(9, Kind::Kswapd, reclaim(1, 2, 0)),
            thread(1240, Kind::Memcg, reclaim(96, 33, 71)),
            thread(1241, Kind::Compaction, compaction(1100)),
            sleeping,
            hostile,
        ];
        let sample = |at_ns, threads| Sample { at_ns, threads, ..Sample::default() };
        let mut first = sample(5_000_000_000, first);
        first.torn = 1;
        let mut second = sample(5_250_000_000, second);
        second.looked_at = 321;
        second.took_ns = 1_234_567;
        second.left_out = 2;
        second.unavailable = vec!["refaults (no PSI)".to_owned()];
        for thread in &mut second.threads {
            thread.since_ns = second.at_ns;
        }
        second.follow(&first);
        [first, second]
    }

    fn shown(options: NowOptions, times: usize) -> String {
        let [first, second] = samples();
        let mut view = NowView::new(options, TimeZone::UTC);
        let (mut names, mut out) = (names(), Vec::new());
        for _ in 0..times {
            view.show(&first, &second, &mut names, &mut out);
        }
        String::from_utf8(out).expect("all of it is UTF-8")
    }

    const TEXT: NowOptions =
        NowOptions { format: Format::Text, since: false, stacks: false, quiet: false };

    #[test]
    fn a_table() {
        assert_snapshot!(shown(TEXT, 1), @r#"
        COMM             PID     TID     KIND       STATE     SEEN   ORDER PRIO   SCANNED RECLAIMED    SCAN/s   RECL/s VERDICT         TARGET                   CGROUP                   GFP
        postgres         1234    1240    memcg      running   both   0       11        96        33       128        4 -               /system.slice            /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1241    compaction running   both   0        -   1100/20         -      4000        - -               1/Normal                 /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1242    penalty    waiting   both   -        -         -         -         -        - -               -                        /system.slice/pg.service -
        \x1b[2J"'\\x0a\xff💩 1234    1243    direct     running   second 0       11         0         0         -        - -               -                        /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1244    proactive  running   first  0       11         9         8         -        - -               /system.slice            /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    9       kswapd     running   both   0       11         1         2         0        0 -               -                        /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        "#);
    }

    #[test]
    fn tables_one_after_the_other() {
        assert_snapshot!(shown(NowOptions { since: true, ..TEXT }, 2), @r#"
        12:00:05
        COMM             PID     TID     KIND       STATE     SEEN     FOR(s) ORDER PRIO   SCANNED RECLAIMED    SCAN/s   RECL/s VERDICT         TARGET                   CGROUP                   GFP
        postgres         1234    1240    memcg      running   both        0.2 0       11        96        33       128        4 -               /system.slice            /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1241    compaction running   both        0.2 0        -   1100/20         -      4000        - -               1/Normal                 /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1242    penalty    waiting   both        0.2 -        -         -         -         -        - -               -                        /system.slice/pg.service -
        \x1b[2J"'\\x0a\xff💩 1234    1243    direct     running   second        - 0       11         0         0         -        - -               -                        /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1244    proactive  running   first         - 0       11         9         8         -        - -               /system.slice            /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    9       kswapd     running   both        0.2 0       11         1         2         0        0 -               -                        /system.slice/pg.service GFP_HIGHUSER_MOVABLE

        12:00:05
        COMM             PID     TID     KIND       STATE     SEEN     FOR(s) ORDER PRIO   SCANNED RECLAIMED    SCAN/s   RECL/s VERDICT         TARGET                   CGROUP                   GFP
        postgres         1234    1240    memcg      running   both        0.2 0       11        96        33       128        4 -               /system.slice            /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1241    compaction running   both        0.2 0        -   1100/20         -      4000        - -               1/Normal                 /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1242    penalty    waiting   both        0.2 -        -         -         -         -        - -               -                        /system.slice/pg.service -
        \x1b[2J"'\\x0a\xff💩 1234    1243    direct     running   second        - 0       11         0         0         -        - -               -                        /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    1244    proactive  running   first         - 0       11         9         8         -        - -               /system.slice            /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        postgres         1234    9       kswapd     running   both        0.2 0       11         1         2         0        0 -               -                        /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        "#);
    }

    #[test]
    fn stacks_stand_beneath_and_quiet_has_no_header() {
        assert_snapshot!(shown(NowOptions { stacks: true, quiet: true, ..TEXT }, 1), @r#"
        postgres         1234    1240    memcg      running   both   0       11        96        33       128        4 -               /system.slice            /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        	do_try_to_free_pages+0x1f
        	try_charge_memcg+0x2a

        postgres         1234    1241    compaction running   both   0        -   1100/20         -      4000        - -               1/Normal                 /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        	do_try_to_free_pages+0x1f
        	try_charge_memcg+0x2a

        postgres         1234    1242    penalty    waiting   both   -        -         -         -         -        - -               -                        /system.slice/pg.service -
        	do_try_to_free_pages+0x1f
        	try_charge_memcg+0x2a

        \x1b[2J"'\\x0a\xff💩 1234    1243    direct     running   second 0       11         0         0         -        - -               -                        /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        	do_try_to_free_pages+0x1f
        	try_charge_memcg+0x2a

        postgres         1234    1244    proactive  running   first  0       11         9         8         -        - -               /system.slice            /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        	do_try_to_free_pages+0x1f
        	try_charge_memcg+0x2a

        postgres         1234    9       kswapd     running   both   0       11         1         2         0        0 -               -                        /system.slice/pg.service GFP_HIGHUSER_MOVABLE
        	do_try_to_free_pages+0x1f
        	try_charge_memcg+0x2a
        "#);
    }

    #[test]
    fn objects() {
        let text = shown(NowOptions { format: Format::Json, ..TEXT }, 1);
        assert_snapshot!(text, @r#"
        {"type":"stalled","time":"2026-03-01T12:00:05.250000000Z","comm":"postgres","pid":1234,"tid":1240,"uid":1000,"kind":"memcg","worker":false,"state":"running","seen":"both","seen_for_ns":null,"order":0,"gfp":["GFP_HIGHUSER_MOVABLE"],"cgroup_id":70,"cgroup":"/system.slice/pg.service","owner":{"name":"pg.service","unit":"pg.service","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"target_cgroup_id":71,"target_cgroup":"/system.slice","target_owner":{"name":"system.slice","unit":"system.slice","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"verdict":null,"priority":11,"nr_scanned":96,"nr_reclaimed":33,"node":null,"zone":null,"mode":null,"migrate_scanned":null,"free_scanned":null,"scanned_per_s":128,"reclaimed_per_s":4}
        {"type":"stalled","time":"2026-03-01T12:00:05.250000000Z","comm":"postgres","pid":1234,"tid":1241,"uid":1000,"kind":"compaction","worker":false,"state":"running","seen":"both","seen_for_ns":null,"order":0,"gfp":["GFP_HIGHUSER_MOVABLE"],"cgroup_id":70,"cgroup":"/system.slice/pg.service","owner":{"name":"pg.service","unit":"pg.service","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"target_cgroup_id":null,"target_cgroup":null,"target_owner":null,"verdict":null,"priority":null,"nr_scanned":null,"nr_reclaimed":null,"node":1,"zone":"Normal","mode":"sync_light","migrate_scanned":1100,"free_scanned":20,"scanned_per_s":4000,"reclaimed_per_s":null}
        {"type":"stalled","time":"2026-03-01T12:00:05.250000000Z","comm":"postgres","pid":1234,"tid":1242,"uid":1000,"kind":"penalty","worker":false,"state":"waiting","seen":"both","seen_for_ns":null,"order":null,"gfp":null,"cgroup_id":70,"cgroup":"/system.slice/pg.service","owner":{"name":"pg.service","unit":"pg.service","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"target_cgroup_id":null,"target_cgroup":null,"target_owner":null,"verdict":null,"priority":null,"nr_scanned":null,"nr_reclaimed":null,"node":null,"zone":null,"mode":null,"migrate_scanned":null,"free_scanned":null,"scanned_per_s":null,"reclaimed_per_s":null}
        {"type":"stalled","time":"2026-03-01T12:00:05.250000000Z","comm":"\u001b[2J\"'\\\n\\xff💩","pid":1234,"tid":1243,"uid":1000,"kind":"direct","worker":false,"state":"running","seen":"second","seen_for_ns":null,"order":0,"gfp":["GFP_HIGHUSER_MOVABLE"],"cgroup_id":70,"cgroup":"/system.slice/pg.service","owner":{"name":"pg.service","unit":"pg.service","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"target_cgroup_id":null,"target_cgroup":null,"target_owner":null,"verdict":null,"priority":11,"nr_scanned":0,"nr_reclaimed":0,"node":null,"zone":null,"mode":null,"migrate_scanned":null,"free_scanned":null,"scanned_per_s":null,"reclaimed_per_s":null}
        {"type":"stalled","time":"2026-03-01T12:00:05.250000000Z","comm":"postgres","pid":1234,"tid":1244,"uid":1000,"kind":"proactive","worker":false,"state":"running","seen":"first","seen_for_ns":null,"order":0,"gfp":["GFP_HIGHUSER_MOVABLE"],"cgroup_id":70,"cgroup":"/system.slice/pg.service","owner":{"name":"pg.service","unit":"pg.service","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"target_cgroup_id":71,"target_cgroup":"/system.slice","target_owner":{"name":"system.slice","unit":"system.slice","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"verdict":null,"priority":11,"nr_scanned":9,"nr_reclaimed":8,"node":null,"zone":null,"mode":null,"migrate_scanned":null,"free_scanned":null,"scanned_per_s":null,"reclaimed_per_s":null}
        {"type":"stalled","time":"2026-03-01T12:00:05.250000000Z","comm":"postgres","pid":1234,"tid":9,"uid":1000,"kind":"kswapd","worker":true,"state":"running","seen":"both","seen_for_ns":null,"order":0,"gfp":["GFP_HIGHUSER_MOVABLE"],"cgroup_id":70,"cgroup":"/system.slice/pg.service","owner":{"name":"pg.service","unit":"pg.service","user":null,"runtime":null,"container":null,"monitor":false,"pod":null,"qos":null},"target_cgroup_id":null,"target_cgroup":null,"target_owner":null,"verdict":null,"priority":11,"nr_scanned":1,"nr_reclaimed":2,"node":null,"zone":null,"mode":null,"migrate_scanned":null,"free_scanned":null,"scanned_per_s":0,"reclaimed_per_s":0}
        {"type":"look","time":"2026-03-01T12:00:05.250000000Z","since":"2026-03-01T12:00:05.000000000Z","at_ns":5250000000,"since_ns":5000000000,"stalled":5,"workers":1,"looked_at":321,"took_ns":1234567,"torn":1,"left_out":2,"unavailable":["refaults (no PSI)"]}
        "#);
    }

    #[test]
    fn every_object_is_as_the_schema_says() {
        let schema = serde_json::from_str(include_str!("../../../docs/json-schema.json"));
        let schema = schema.expect("the schema is JSON");
        let validator: Validator = jsonschema::validator_for(&schema).expect("a schema");
        for since in [false, true] {
            for stacks in [false, true] {
                let options = NowOptions { format: Format::Json, since, stacks, quiet: true };
                for line in shown(options, 1).lines() {
                    let object: Value = serde_json::from_str(line).expect("JSON");
                    assert!(validator.is_valid(&object), "{line}");
                }
            }
        }
    }
}
