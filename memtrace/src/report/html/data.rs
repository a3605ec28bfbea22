//! What the page's script works on: one JSON object.

use std::fmt::Display;

use serde::Serialize;

use super::axis::Axis;
use super::charts::rows_ns;
use super::drawn::Drawn;
use super::looks;
use super::words::short;
use super::worst::Worst;
use crate::recording::Recording;
use crate::report::findings::Findings;
use crate::report::rows::{self, Cgroup, Host, Stats};
use crate::report::text::name_and_owner;
use crate::report::totals::Totals;
use crate::view::{Folded, flame};

/// Most threads, processes and cgroups each.
pub const MOST_ROWS: usize = 500;
/// Most of the longest stalls.
pub const MOST_LONGEST: usize = 100;
/// Most bytes of names of functions in stacks.
const MOST_FRAMES: usize = 256 << 10;
/// Most bytes of a flame graph.
const MOST_FLAME: usize = 400 << 10;
/// Most kills that are drawn and listed.
const MOST_KILLS: usize = 100;
/// Most parts of the time that are told apart; kernels have fewer.
const MOST_PARTS: usize = 200;
/// How many stacks a flame graph is made of, fewer if it gets too large.
const STACKS: [usize; 4] = [usize::MAX, 1000, 300, 100];
/// Most stacks in the table beneath it, and bytes of each.
const LISTED_STACKS: usize = 30;
const MOST_STACK: usize = 2000;

/// All of it. Times are in milliseconds since 1970, spans in nanoseconds.
#[derive(Debug, Serialize)]
pub struct Data {
    begin_ms: f64,
    step_ms: f64,
    columns: usize,
    hosts: Vec<String>,
    /// The shortest latency of each row of the heat map.
    rows_ns: Vec<u64>,
    heat: Vec<Vec<u32>>,
    /// By kind, how long threads were held up in each column, in microseconds.
    held: Vec<(&'static str, Vec<u64>)>,
    looks: Option<looks::Shown>,
    marks: Vec<Mark>,
    pub kinds: Vec<Row<&'static str>>,
    orders: Vec<Row<Option<i32>>>,
    zones: Vec<Row<String>>,
    pub threads: Table<(String, u32, u32, usize, Option<String>)>,
    processes: Table<(String, u32, usize, Option<String>)>,
    cgroups: Table<(Option<String>, usize)>,
    targets: Table<(Option<String>, usize)>,
    /// How the time was spent, the longest part first, each with its nanoseconds.
    parts: Vec<(String, u64)>,
    longest: Vec<LongRow>,
    frames: Vec<String>,
    kills: Vec<KillRow>,
    pub killed: u64,
    worst: Option<Worst>,
    flame: Option<String>,
    flame_note: String,
    stacks: Vec<(String, u64)>,
}

/// A line across the charts.
#[derive(Debug, Serialize)]
struct Mark {
    at_ms: f64,
    text: String,
}

/// A row of a table.
#[derive(Debug, Serialize)]
pub struct Row<K> {
    /// What it is of.
    pub key: K,
    /// Count, total, median, 99th percentile, longest.
    pub stat: [u64; 5],
}

/// A table that may have had more rows.
#[derive(Debug, Serialize)]
pub struct Table<K> {
    /// Those of the greatest total.
    pub rows: Vec<Row<K>>,
    /// How many others there were.
    pub others: usize,
    /// Their total.
    others_ns: u64,
}

/// One of the longest stalls.
#[derive(Debug, Serialize)]
pub struct LongRow {
    /// When it began, in nanoseconds since 1970.
    #[serde(skip)]
    pub at_ns: i64,
    at_ms: f64,
    /// How long it lasted.
    pub ns: u64,
    /// The thread's name.
    pub name: String,
    /// The thread.
    pub tid: u32,
    /// Its process.
    pub pid: u32,
    uid: u32,
    cpu: u32,
    host: usize,
    cgroup: Option<String>,
    /// What held it up.
    pub kind: &'static str,
    order: Option<i32>,
    zone: Option<String>,
    target: Option<String>,
    reclaimed: u64,
    /// How the time was spent, the longest part first, each with its nanoseconds.
    parts: Vec<(String, u64)>,
    kernel_frames: Vec<usize>,
    user_frames: Vec<usize>,
}

#[derive(Debug, Serialize)]
struct KillRow {
    at_ms: f64,
    host: usize,
    name: String,
    pid: u32,
    victim: Option<String>,
    victim_pid: u32,
}

impl<K> Row<K> {
    fn of(key: K, stats: &Stats) -> Self {
        let Stats { count, total_ns, p50_ns, p99_ns, max_ns } = *stats;
        Self { key, stat: [count, total_ns, p50_ns, p99_ns, max_ns] }
    }
}

impl<K> Table<K> {
    /// Of some rows of so many, of stalls that lasted so long all together.
    fn of(rows: impl Iterator<Item = Row<K>>, count: usize, total_ns: u64) -> Self {
        let rows: Vec<_> = rows.collect();
        let shown_ns = rows.iter().fold(0, |sum: u64, row| sum.saturating_add(row.stat[1]));
        let others = count.saturating_sub(rows.len());
        Self { rows, others, others_ns: total_ns.saturating_sub(shown_ns) }
    }
}

/// Nanoseconds as milliseconds with all that a script can tell apart.
pub fn ms(ns: i64) -> f64 {
    ns.div_euclid(1000) as f64 / 1e3
}

impl Data {
    /// Puts together what was gathered.
    pub fn of(
        findings: &Findings,
        totals: &Totals,
        drawn: &Drawn<'_>,
        axis: &Axis,
        recordings: &[Recording],
    ) -> Self {
        let Axis { begin_ns, step_ns, columns, .. } = *axis;
        let hosts = Hosts::of(findings);
        let total_ns = findings.stats.total_ns;
        let Findings { kinds, orders, zones, threads, processes, cgroups, targets, .. } = findings;
        let kinds = kinds.iter().map(|row| Row::of(row.kind.name(), &row.stats));
        let orders = orders.iter().map(|row| Row::of(row.order, &row.stats));
        let zones = zones
            .iter()
            .filter_map(|row| Some(Row::of(zone_name(row.node?, row.zone.as_ref()?), &row.stats)));
        let threads = threads.iter().map(|row| {
            let (name, tid) = (short(row.comm.as_bytes()), row.tid.unwrap_or_default());
            let (host, cgroup) = (hosts.number(&row.host), cgroup_name(&row.cgroup));
            Row::of((name, tid, row.pid, host, cgroup), &row.stats)
        });
        let processes = processes.iter().map(|row| {
            let (host, cgroup) = (hosts.number(&row.host), cgroup_name(&row.cgroup));
            Row::of((short(row.comm.as_bytes()), row.pid, host, cgroup), &row.stats)
        });
        let cgroups = cgroups
            .iter()
            .map(|row| Row::of((cgroup_name(&row.cgroup), hosts.number(&row.host)), &row.stats));
        let targets = targets.iter().filter_map(|row| {
            let name =
                if row.global? { Some("the host".to_owned()) } else { cgroup_name(&row.cgroup) };
            Some(Row::of((name, hosts.number(&row.host)), &row.stats))
        });
        // Stalls that reclaimed from nothing are not among the others either.
        let untargeted = totals.targets.iter().filter(|(key, _)| key.id.is_none());
        let (nr_untargeted, untargeted_ns) = untargeted
            .fold((0, 0), |(count, sum): (usize, u64), (_, it)| {
                (count + 1, sum.saturating_add(it.total_ns()))
            });
        let held = drawn
            .held
            .columns(axis)
            .map(|(kind, ns)| (kind.name(), ns.into_iter().map(|ns| ns / 1000).collect()));
        let mut frames = Frames::default();
        let longest = findings.longest.iter().map(|row| LongRow::of(row, &hosts, &mut frames));
        let longest = longest.collect();
        let page_size = recordings.first().map_or(4096, |recording| recording.meta.page_size);
        let (flame, flame_note) = flame_graph(&drawn.stacks.folded);
        let kills = findings.oom_kills.iter().take(MOST_KILLS);
        let kills: Vec<_> = kills.map(|row| KillRow::of(row, &hosts)).collect();
        Self {
            begin_ms: ms(begin_ns),
            step_ms: step_ns as f64 / 1e6,
            columns,
            rows_ns: rows_ns().to_vec(),
            heat: drawn.heat.cells(),
            held: held.collect(),
            looks: drawn.looks.shown(axis, page_size),
            marks: marks(&kills, recordings),
            kinds: kinds.collect(),
            orders: orders.collect(),
            zones: zones.collect(),
            threads: Table::of(threads, findings.nr_threads, total_ns),
            processes: Table::of(processes, findings.nr_processes, total_ns),
            cgroups: Table::of(cgroups, findings.nr_cgroups, total_ns),
            targets: Table::of(
                targets,
                findings.nr_targets.saturating_sub(nr_untargeted),
                total_ns.saturating_sub(untargeted_ns),
            ),
            parts: parts(findings),
            longest,
            frames: frames.texts,
            kills,
            killed: findings.nr_oom_kills,
            worst: findings.worst_second.as_ref().map(|worst| Worst::of(worst, &hosts)),
            flame,
            flame_note,
            stacks: listed(&drawn.stacks.folded),
            hosts: hosts.names(),
        }
    }

    /// How many stalls there were, how long all together and the longest, in nanoseconds.
    pub fn total(&self) -> (u64, u64, u64) {
        self.kinds.iter().fold((0, 0, 0), |(count, total, max): (u64, u64, u64), row| {
            let [more, ns, .., longest] = row.stat;
            (count.saturating_add(more), total.saturating_add(ns), max.max(longest))
        })
    }

    /// The longest stall.
    pub fn longest(&self) -> Option<&LongRow> {
        self.longest.first()
    }
}

/// Hosts by number, each as it was booted once.
pub struct Hosts<'a>(Vec<&'a Host>);

impl<'a> Hosts<'a> {
    fn of(findings: &'a Findings) -> Self {
        let mut known: Vec<&Host> = Vec::new();
        for recorded in &findings.recordings {
            if !known.contains(&&recorded.host) {
                known.push(&recorded.host);
            }
        }
        Self(known)
    }

    pub fn number(&self, host: &Host) -> usize {
        self.0.iter().position(|known| *known == host).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|host| short(host.host.as_bytes())).collect()
    }
}

/// What a cgroup is called, if it is known at all.
pub fn cgroup_name(cgroup: &Cgroup) -> Option<String> {
    let is_known = cgroup.id.is_some() || cgroup.path.is_some();
    is_known.then(|| short(name_and_owner(cgroup).as_bytes()))
}

/// A zone as `node/name`.
pub fn zone_name(node: impl Display, name: &str) -> String {
    short(format!("{node}/{name}").as_bytes())
}

/// The parts of the time, the longest first.
fn parts(findings: &Findings) -> Vec<(String, u64)> {
    let parts = findings.parts.as_deref().unwrap_or_default();
    let (told, others) = parts.split_at(parts.len().min(MOST_PARTS));
    let told = told.iter().map(|(part, ns)| (short(part.as_bytes()), *ns));
    let others_ns = others.iter().fold(0, |sum: u64, (_, ns)| sum.saturating_add(*ns));
    told.chain((others_ns != 0).then(|| ("others".to_owned(), others_ns))).collect()
}

fn marks(kills: &[KillRow], recordings: &[Recording]) -> Vec<Mark> {
    let fired = recordings.iter().filter_map(|recording| recording.meta.trigger.as_ref());
    let fired = fired.map(|fired| Mark { at_ms: ms(fired.at_ns), text: "trigger".to_owned() });
    let killed = kills.iter().map(|kill| Mark { at_ms: kill.at_ms, text: "OOM kill".to_owned() });
    fired.chain(killed).collect()
}

impl LongRow {
    fn of(row: &rows::LongRow, hosts: &Hosts<'_>, frames: &mut Frames) -> Self {
        let rows::LongRow { long, host, cgroup, target } = row;
        let parts = long.parts.iter().flatten();
        Self {
            at_ns: long.at_ns,
            at_ms: ms(long.at_ns),
            ns: long.duration_ns,
            name: short(long.thread.comm.as_bytes()),
            tid: long.thread.tid,
            pid: long.thread.pid,
            uid: long.thread.uid,
            cpu: long.cpu,
            host: hosts.number(host),
            cgroup: cgroup_name(cgroup),
            kind: long.kind.name(),
            order: long.order,
            zone: long.zone.as_ref().map(|zone| zone_name(zone.node, &zone.name)),
            target: cgroup_name(target),
            reclaimed: long.nr_reclaimed,
            parts: parts.map(|(part, ns)| (short(part.as_bytes()), *ns)).collect(),
            kernel_frames: frames.numbers(&long.stack),
            user_frames: frames.numbers(&long.user_stack),
        }
    }
}

impl KillRow {
    fn of(row: &rows::KillRow, hosts: &Hosts<'_>) -> Self {
        Self {
            at_ms: ms(row.time),
            host: hosts.number(&row.host),
            name: short(row.comm.as_bytes()),
            pid: row.pid,
            victim: row.victim_comm.map(|comm| short(comm.as_bytes())),
            victim_pid: row.victim_pid,
        }
    }
}

/// Frames of stacks, each text once.
#[derive(Debug, Default)]
struct Frames {
    texts: Vec<String>,
    numbers: std::collections::HashMap<String, usize>,
    bytes: usize,
}

impl Frames {
    fn numbers(&mut self, texts: &[String]) -> Vec<usize> {
        texts.iter().map(|text| self.number(short(text.as_bytes()))).collect()
    }

    fn number(&mut self, text: String) -> usize {
        if let Some(number) = self.numbers.get(&text) {
            return *number;
        }
        let text = if self.bytes < MOST_FRAMES { text } else { "[left out: too many]".to_owned() };
        let Self { texts, numbers, bytes } = self;
        *numbers.entry(text).or_insert_with_key(|text| {
            *bytes += text.len();
            texts.push(text.clone());
            texts.len() - 1
        })
    }
}

/// A flame graph that is not too large, and what is to be said of it.
fn flame_graph(folded: &Folded) -> (Option<String>, String) {
    let (count, us) =
        folded.lines().fold((0_usize, 0), |(count, sum), (_, us)| (count + 1, sum + us));
    if us == 0 {
        return (None, "There are no stacks in the recording.".to_owned());
    }
    let steps = STACKS.into_iter().filter(|most| *most == usize::MAX || *most < count);
    for most in steps {
        let mut svg = Vec::new();
        let written = flame::write(&folded.longest(most), "Stalled time by stack", &mut svg);
        let svg = written.ok().and_then(|()| still(&String::from_utf8_lossy(&svg)));
        let Some(svg) = svg.filter(|svg| svg.len() <= MOST_FLAME) else { continue };
        let note = if most < count {
            format!(
                "It shows the {most} stacks of {count} that were held up longest; all others are [other]."
            )
        } else {
            String::new()
        };
        return (Some(svg), note);
    }
    let note = "The flame graph is left out, as it would be larger than 400 KB.";
    (None, note.to_owned())
}

/// The picture without its script: the page has its own, and lets no other run. What names could be taken for an
/// element is escaped in it.
fn still(svg: &str) -> Option<String> {
    let (before, rest) = svg.split_once("<script")?;
    let (_, after) = rest.split_once("</script>")?;
    Some([&before.replacen(" onload=\"init(evt)\"", "", 1), after].concat())
}

/// The stacks that were held up longest, as lines with their microseconds.
fn listed(folded: &Folded) -> Vec<(String, u64)> {
    let longest = folded.longest(LISTED_STACKS);
    let lines = longest.lines().filter(|(line, _)| *line != "[other]").map(|(line, us)| {
        let end = line.floor_char_boundary(MOST_STACK);
        let rest = if end < line.len() { ";…" } else { "" };
        (format!("{}{rest}", &line[..end]), u64::try_from(us).unwrap_or(u64::MAX))
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort_by_key(|(_, us)| std::cmp::Reverse(*us));
    lines
}
