//! A report for people: sections of at most some 100 columns.

use std::io::{self, Write as _};

use jiff::tz::TimeZone;

use super::findings::Findings;
use super::rows::{Cgroup, Host, KillRow, LongRow, Recorded, Stats, WhoRow, at};
use crate::recording::Counts;
use crate::text::Printable;
use crate::view::line::Line;
use crate::view::parts;
use crate::view::words::{CgroupName, OrDash, Span};

/// Columns that lines of many words are broken at.
const WIDTH: usize = 98;

/// One of how many parts of the time, waited for a CPU, is worth a word.
const MUCH_WAITING: u64 = 5;
/// What that word is.
const SHORT_OF_CPU: &str =
    "waiting for a CPU: CPUs were short then, or a cgroup's cpu.max reached, not memory";

/// The columns in front of every name.
const STATS: &str = "    TOTAL     %    COUNT       P50       P99       MAX";

/// Shows findings as text.
#[derive(Debug)]
pub struct Text<'a> {
    findings: &'a Findings,
    /// Where the time of day is that of.
    zone: &'a TimeZone,
    /// Whether there are several hosts, so that each row says which it is of.
    hosts: bool,
    pub(super) out: &'a mut Vec<u8>,
}

impl<'a> Text<'a> {
    /// Appends all of it to `out`.
    pub fn append(findings: &'a Findings, zone: &'a TimeZone, out: &'a mut Vec<u8>) {
        let mut hosts = findings.recordings.iter().map(|recorded| &recorded.host);
        let first = hosts.next();
        let hosts = hosts.any(|host| Some(host) != first);
        let written = Self { findings, zone, hosts, out }.all();
        debug_assert!(written.is_ok(), "writing into memory does not fail");
    }

    fn all(&mut self) -> io::Result<()> {
        let findings = self.findings;
        self.recordings()?;
        self.totals()?;
        self.threads()?;
        self.processes()?;
        self.cgroups()?;
        self.classes()?;
        self.parts()?;
        self.longest()?;
        self.kills()?;
        if let Some(worst) = &findings.worst_second {
            self.worst_second(worst)?;
        }
        self.triggers()?;
        self.coverage()?;
        self.losses()
    }

    fn recordings(&mut self) -> io::Result<()> {
        let Findings { recordings, since, time, duration_ns, .. } = self.findings;
        for recorded in recordings {
            let Recorded { file, host, kernel, cpus, memtrace, what, filters, .. } = recorded;
            let s = if *cpus == 1 { "" } else { "s" };
            let with = if filters.is_empty() { "" } else { " with " };
            let (what, filters) = (printable(what), printable(filters));
            writeln!(self.out, "{}: {what}{with}{filters}", Printable(file))?;
            write!(
                self.out,
                "  on {}, Linux {}, {cpus} CPU{s}, ",
                printable(&host.host),
                printable(kernel)
            )?;
            writeln!(self.out, "by memtrace {}", printable(memtrace))?;
        }
        if let (Some(since), Some(time)) = (since, time) {
            let (since, time) = (self.time_and_offset(*since), self.time_and_offset(*time));
            write!(self.out, "From {since} to {time}, ")?;
        }
        writeln!(self.out, "{} recorded", Span((*duration_ns).into()))
    }

    fn totals(&mut self) -> io::Result<()> {
        let Findings { stats, stalls_per_s, stalled_ns_per_s, first, last, .. } = self.findings;
        let Stats { count, total_ns, p50_ns, p99_ns, max_ns } = *stats;
        if count == 0 {
            return writeln!(self.out, "\nNo stalls");
        }
        let s = if count == 1 { "" } else { "s" };
        write!(self.out, "\n{} lost in {count} stall{s}", Span(total_ns.into()))?;
        if let (Some(stalls), Some(ns)) = (stalls_per_s, stalled_ns_per_s) {
            write!(self.out, ": {stalls:.1} stalls and {} a second", span(*ns))?;
        }
        let [p50, p99, max] = [p50_ns, p99_ns, max_ns].map(|ns| Span(ns.into()));
        writeln!(self.out, "\n  p50 {p50}, p99 {p99}, max {max}")?;
        if let (Some(first), Some(last)) = (first, last) {
            let (first, last) = (self.time(*first, 3), self.time(*last, 3));
            writeln!(self.out, "  from {first} to {last}")?;
        }
        Ok(())
    }

    fn threads(&mut self) -> io::Result<()> {
        let Findings { threads, nr_threads, .. } = self.findings;
        let columns = " TID     PID     THREAD";
        self.title("Threads", threads.len(), *nr_threads, columns)?;
        for row in threads {
            let host = self.host(&row.host);
            let line = &mut self.stats(&row.stats);
            line.left(7, row.tid).left(7, row.pid).left(0, &*format!("{}{host}", row.comm)).end();
        }
        self.others(self.findings.other_threads);
        Ok(())
    }

    fn processes(&mut self) -> io::Result<()> {
        let Findings { processes, nr_processes, .. } = self.findings;
        let columns = " PID     PROCESS          PAYER";
        self.title("Processes", processes.len(), *nr_processes, columns)?;
        for row in processes {
            let WhoRow { comm, pid, tid: _, host, cgroup, stats } = row;
            let payer = format!("{}{}", payer(cgroup), self.host(host));
            self.stats(stats).left(7, *pid).left(16, *comm).left(0, &*payer).end();
        }
        self.others(self.findings.other_processes);
        Ok(())
    }

    fn cgroups(&mut self) -> io::Result<()> {
        let Findings { cgroups, nr_cgroups, targets, nr_targets, .. } = self.findings;
        self.title("Cgroups that paid", cgroups.len(), *nr_cgroups, " CGROUP")?;
        for row in cgroups {
            let name = format!("{}{}", name_and_owner(&row.cgroup), self.host(&row.host));
            self.stats(&row.stats).left(0, &*name).end();
        }
        self.others(self.findings.other_cgroups);
        // Without those of stalls that reclaimed from nothing.
        let known: Vec<_> = targets.iter().filter_map(|row| Some((row, row.global?))).collect();
        let all = nr_targets.saturating_sub(targets.len() - known.len());
        self.title("Reclaimed from", known.len(), all, " TARGET")?;
        for (row, global) in known {
            let name = if global { "the host".to_owned() } else { name_and_owner(&row.cgroup) };
            let name = format!("{name}{}", self.host(&row.host));
            self.stats(&row.stats).left(0, &*name).end();
        }
        Ok(())
    }

    /// By kind, order and zone.
    fn classes(&mut self) -> io::Result<()> {
        let Findings { kinds, orders, zones, .. } = self.findings;
        self.title("Kinds", kinds.len(), kinds.len(), " KIND")?;
        for row in kinds {
            self.stats(&row.stats).left(0, row.kind.name()).end();
        }
        self.title("Orders", orders.len(), orders.len(), " ORDER")?;
        for row in orders {
            self.stats(&row.stats).left(0, row.order).end();
        }
        // Likewise without those of stalls that compacted nothing.
        let known: Vec<_> =
            zones.iter().filter_map(|row| Some((row, row.zone.as_ref()?))).collect();
        self.title("Zones that were compacted", known.len(), known.len(), " ZONE")?;
        for (row, zone) in known {
            let name = format!("{}/{}", OrDash(row.node), Printable(zone.as_bytes()));
            self.stats(&row.stats).left(0, &*name).end();
        }
        Ok(())
    }

    fn parts(&mut self) -> io::Result<()> {
        let Some(parts) = self.findings.parts.as_ref().filter(|parts| !parts.is_empty()) else {
            return Ok(());
        };
        let whole = parts.iter().fold(0_u64, |sum, (_, ns)| sum.saturating_add(*ns));
        writeln!(self.out, "\nWhere the time went\n    TOTAL     % PART")?;
        for (name, ns) in parts {
            let total = Span((*ns).into()).to_string();
            let mut line = Line::begin(self.out);
            line.right(9, &*total).right(5, &*share(*ns, whole));
            line.left(0, Printable(name.as_bytes())).end();
        }
        let waiting = parts.iter().find(|(name, _)| name == parts::WAITING);
        let waiting_ns = waiting.map_or(0, |(_, ns)| *ns);
        if waiting_ns > whole / MUCH_WAITING {
            let share = share(waiting_ns, whole);
            writeln!(self.out, "  {share} % of it was {SHORT_OF_CPU}")?;
        }
        Ok(())
    }

    fn longest(&mut self) -> io::Result<()> {
        let longest = &self.findings.longest;
        if longest.is_empty() {
            return Ok(());
        }
        writeln!(self.out, "\nLongest stalls")?;
        let stacks: Vec<_> =
            longest.iter().map(|LongRow { long, .. }| [&*long.stack, &*long.user_stack]).collect();
        for (at, LongRow { long, host, cgroup, target }) in longest.iter().enumerate() {
            let thread = &long.thread;
            let span = Span(long.duration_ns.into()).to_string();
            let (time, kind, order) =
                (self.time(long.at_ns, 3), long.kind.name(), OrDash(long.order));
            write!(self.out, "{:>3}. {span:>9}  {time}  {kind} order {order}, ", at + 1)?;
            write!(self.out, "pid {} tid {} {}", thread.pid, thread.tid, thread.comm)?;
            writeln!(self.out, "{}", self.host(host))?;
            let mut facts = Vec::new();
            if long.nr_reclaimed != 0 || long.kind.reclaim_name().is_some() {
                facts.push(format!("{} pages reclaimed", long.nr_reclaimed));
            }
            facts.extend(cgroup.id.map(|_| format!("paid by {}", payer(cgroup))));
            facts.extend(target.id.map(|_| format!("from {}", payer(target))));
            facts.extend(
                long.zone
                    .as_ref()
                    .map(|zone| format!("zone {}/{}", zone.node, Printable(zone.name.as_bytes()))),
            );
            self.list("", &facts)?;
            let parts = long.parts.iter().flatten();
            let parts = parts
                .map(|(name, ns)| format!("{} {}", Printable(name.as_bytes()), Span((*ns).into())));
            self.list("", &parts.collect::<Vec<_>>())?;
            for (which, name) in ["kernel: ", "user: "].into_iter().enumerate() {
                let stack = stacks[at][which];
                let first = stacks.iter().position(|stacks| stacks[which] == stack);
                let shown = match first.filter(|first| *first != at && !stack.is_empty()) {
                    Some(first) => vec![format!("as of {}.", first + 1)],
                    None => stack.iter().map(|frame| printable(frame)).collect(),
                };
                self.list(name, &shown)?;
            }
        }
        Ok(())
    }

    fn kills(&mut self) -> io::Result<()> {
        let Findings { oom_kills, nr_oom_kills, .. } = self.findings;
        if oom_kills.is_empty() {
            return Ok(());
        }
        let s = if *nr_oom_kills == 1 { "" } else { "s" };
        writeln!(self.out, "\n{nr_oom_kills} OOM kill{s}")?;
        for row in oom_kills {
            let KillRow { time, host, comm, pid, cgroup, victim_pid, victim_comm, .. } = row;
            let (time, host) = (self.time(*time, 3), self.host(host));
            let (victim, of) = (OrDash(*victim_comm), payer(&row.victim_cgroup));
            writeln!(self.out, "  {time}  pid {victim_pid} {victim} of {of}{host}")?;
            writeln!(self.out, "    for pid {pid} {comm} of {}", payer(cgroup))?;
        }
        let more = nr_oom_kills.saturating_sub(oom_kills.len() as u64);
        if more != 0 {
            writeln!(self.out, "  and {more} more")?;
        }
        Ok(())
    }

    fn triggers(&mut self) -> io::Result<()> {
        for Recorded { file, trigger, .. } in &self.findings.recordings {
            let Some(fired) = trigger else { continue };
            let [trigger, cause] =
                [&fired.trigger, &fired.cause].map(|text| Printable(text.as_bytes()));
            let time = self.time(fired.time, 3);
            writeln!(self.out, "\n{} was written as a trigger fired", Printable(file))?;
            writeln!(self.out, "  {time}: {trigger}: {cause}")?;
        }
        Ok(())
    }

    fn coverage(&mut self) -> io::Result<()> {
        let mut known: Vec<&Recorded> = Vec::new();
        for recorded in &self.findings.recordings {
            let is_it = |known: &&Recorded| {
                (&known.watched, &known.not_watched) == (&recorded.watched, &recorded.not_watched)
            };
            if !known.iter().any(is_it) {
                known.push(recorded);
            }
        }
        let several = known.len() > 1;
        for Recorded { file, watched, not_watched, .. } in known {
            if watched.is_empty() && not_watched.is_empty() {
                continue;
            }
            let of = if several { format!(" in {}", Printable(file)) } else { String::new() };
            writeln!(self.out, "\nKinds that were watched{of}")?;
            self.list("", &watched.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>())?;
            let lacking = not_watched.iter();
            let lacking = lacking
                .map(|it| format!("{} ({})", it.kind, Printable(it.reason.as_bytes())))
                .collect::<Vec<_>>();
            self.list("not: ", &lacking)?;
        }
        Ok(())
    }

    fn losses(&mut self) -> io::Result<()> {
        writeln!(self.out, "\nWhat is not in it")?;
        let Counts { lost, missed_begin, table_full, skipped, unfinished } = self.findings.counts;
        let counts = [
            (lost, "lost (ring buffer full)"),
            (missed_begin, "began before tracing"),
            (table_full, "without room (too many at once)"),
            (skipped, "runs of probes skipped (by the kernel)"),
            (unfinished, "still stalled at the end"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count != 0);
        let counts: Vec<_> = counts.map(|(count, what)| format!("{count} {what}")).collect();
        let all_there = self.findings.recordings.iter().all(|recorded| {
            let is_whole = recorded.ended && recorded.filters.is_empty();
            is_whole && !recorded.is_damaged() && recorded.dropped_blocks == 0
        });
        if counts.is_empty() && all_there {
            return writeln!(self.out, "  nothing: every stall was recorded");
        }
        self.list("", &counts)?;
        for recorded in &self.findings.recordings {
            let Recorded { file, ended, dropped_blocks, lost_blocks, .. } = recorded;
            let Recorded { damaged_blocks, stray_bytes, filters, .. } = recorded;
            let file = format!("{}: ", Printable(file));
            let mut facts = Vec::new();
            if !filters.is_empty() {
                facts.push(format!("only what passed {}", printable(filters)));
            }
            if !ended {
                facts.push("has no end: it was cut, or is still being written".to_owned());
            }
            for (count, what) in [
                (dropped_blocks, "oldest blocks given up for its size"),
                (lost_blocks, "blocks lost in between"),
                (damaged_blocks, "damaged blocks"),
                (stray_bytes, "bytes that belong to no block"),
            ] {
                facts.extend((*count != 0).then(|| format!("{what}: {count}")));
            }
            self.list(&file, &facts)?;
        }
        Ok(())
    }

    /// What the rows below are of, and the header above them.
    fn title(&mut self, what: &str, shown: usize, all: usize, columns: &str) -> io::Result<()> {
        if shown == 0 {
            return Ok(());
        }
        write!(self.out, "\n{what}")?;
        if shown < all {
            write!(self.out, ", {shown} of {all}")?;
        }
        writeln!(self.out, "\n{STATS}{columns}")
    }

    /// A row of those that were too many to be told apart.
    fn others(&mut self, stats: Option<Stats>) {
        if let Some(stats) = stats {
            self.stats(&stats).left(0, "others, too many to be told apart").end();
        }
    }

    /// Begins a row.
    fn stats(&mut self, stats: &Stats) -> Line<'_> {
        let Stats { count, total_ns, p50_ns, p99_ns, max_ns } = *stats;
        let share = share(total_ns, self.findings.stats.total_ns);
        let mut line = Line::begin(self.out);
        let span = |ns: u64| Span(ns.into()).to_string();
        line.right(9, &*span(total_ns)).right(5, &*share).right(8, count);
        for ns in [p50_ns, p99_ns, max_ns] {
            line.right(9, &*span(ns));
        }
        line
    }

    /// Appends a list, if there is anything in it, broken into lines.
    pub(super) fn list(&mut self, name: &str, words: &[String]) -> io::Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        write!(self.out, "    {name}")?;
        let mut column = 4 + name.len();
        for (number, word) in words.iter().enumerate() {
            // With the blank before it and the comma behind.
            let width = word.len() + 2;
            if number != 0 {
                let is_full = column + width > WIDTH;
                write!(self.out, "{}", if is_full { ",\n      " } else { ", " })?;
                if is_full {
                    column = 6;
                }
            }
            write!(self.out, "{word}")?;
            column += width;
        }
        writeln!(self.out)
    }

    /// ` on HOST` where there are several.
    pub(super) fn host(&self, host: &Host) -> String {
        let host = Printable(host.host.as_bytes());
        if self.hosts { format!(" on {host}") } else { String::new() }
    }

    /// Date and time, and how far that is from UTC.
    fn time_and_offset(&self, since_1970_ns: i64) -> String {
        let time = at(since_1970_ns).to_zoned(self.zone.clone());
        time.strftime("%F %T %:z").to_string()
    }

    /// Date and time with so many decimals of its seconds.
    pub(super) fn time(&self, since_1970_ns: i64, decimals: usize) -> String {
        let time = self.zone.to_datetime(at(since_1970_ns));
        let format = if decimals == 0 { "%F %T" } else { "%F %T%.3f" };
        time.strftime(format).to_string()
    }
}

/// A text without anything that a terminal would obey.
fn printable(text: &str) -> String {
    Printable(text.as_bytes()).to_string()
}

/// The share of a whole, in percent.
pub(super) fn share(part: u64, whole: u64) -> String {
    format!("{:.1}", part as f64 * 100.0 / whole.max(1) as f64)
}

/// Nanoseconds that need not be whole.
pub(super) fn span(ns: f64) -> Span {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it ends at the limits"
    )]
    let whole = ns.round() as u128;
    Span(whole)
}

/// A cgroup's path or id.
pub(super) fn name(cgroup: &Cgroup) -> String {
    match (&cgroup.path, cgroup.id) {
        (Some(path), _) => CgroupName::Path(path).to_string(),
        (None, Some(id)) => CgroupName::Id(id).to_string(),
        (None, None) => "-".to_owned(),
    }
}

/// What people call a cgroup, or its path.
fn payer(cgroup: &Cgroup) -> String {
    cgroup.owner().map_or_else(|| name(cgroup), |owner| owner.to_string())
}

/// The path, and what people call it where that is something else.
pub(super) fn name_and_owner(cgroup: &Cgroup) -> String {
    let name = name(cgroup);
    match cgroup.owner().map(|owner| owner.to_string()) {
        Some(owner) if !name.ends_with(&owner) => format!("{name} ({owner})"),
        _ => name,
    }
}
