//! What the page's script works on: one JSON object.

use serde::Serialize;

use super::axis::Axis;
use super::charts::rows_ns;
use super::gathered::{CgroupKey, Gathered, Kill, Setting};
use super::keyed::Top;
use super::longest::Long;
use super::looks;
use super::stat::Stat;
use super::words::short;
use crate::kind::Kind;
use crate::recording::Recording;
use crate::view::{Folded, flame};

/// Most threads, processes and cgroups each.
const MOST_ROWS: usize = 500;
/// Most bytes of names of functions in stacks.
const MOST_FRAMES: usize = 256 << 10;
/// Most bytes of a flame graph.
const MOST_FLAME: usize = 400 << 10;
/// Most kills that are drawn and listed.
const MOST_KILLS: usize = 100;
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
    zones: Vec<Row<(usize, String)>>,
    pub threads: Table<(String, u32, u32, usize, Option<String>)>,
    processes: Table<(String, u32, usize)>,
    cgroups: Table<(Option<String>, usize)>,
    longest: Vec<LongRow>,
    frames: Vec<String>,
    kills: Vec<KillRow>,
    pub killed: u64,
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
    pub others: u64,
    /// Their total.
    others_ns: u64,
}

#[derive(Debug, Serialize)]
struct LongRow {
    at_ms: f64,
    #[serde(flatten)]
    long: Long,
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
    fn of(key: K, stat: &Stat) -> Self {
        let Stat { count, total_ns, max_ns, .. } = *stat;
        let [p50, p99] = [50, 99].map(|per_cent| stat.percentile_ns(per_cent));
        Self { key, stat: [count, total_ns, p50, p99, max_ns] }
    }
}

impl<K> Table<K> {
    fn of<L, N>(top: Top<L, N>, key: impl Fn(L, N) -> K) -> Self {
        let Top { rows, others, rest } = top;
        let rows = rows.into_iter().map(|(known, stat, name)| Row::of(key(known, name), &stat));
        Self { rows: rows.collect(), others, others_ns: rest.total_ns }
    }
}

/// Nanoseconds as milliseconds with all that a script can tell apart.
fn ms(ns: i64) -> f64 {
    ns.div_euclid(1000) as f64 / 1e3
}

impl Data {
    /// Puts together what was gathered.
    pub fn of(gathered: Gathered<'_>, setting: &Setting, recordings: &[Recording]) -> Self {
        let Axis { begin_ns, step_ns, columns, .. } = setting.axis;
        let by_total = |a: &[u64; 5], b: &[u64; 5]| b[1].cmp(&a[1]);
        let all_kinds = Kind::ALL.into_iter().chain([Kind::Memstall]);
        let kinds = all_kinds.map(|kind| Row::of(kind.name(), &gathered.kinds[kind as usize]));
        let mut kinds: Vec<_> = kinds.filter(|row| row.stat[0] != 0).collect();
        kinds.sort_by(|a, b| by_total(&a.stat, &b.stat));
        let orders = gathered.orders.iter().map(|(order, stat)| Row::of(*order, stat));
        let zones = gathered.zones.iter().map(|(zone, stat)| Row::of(zone.clone(), stat));
        let cgroup = |key: CgroupKey| match gathered.cgroups.name(&key) {
            Some(Some(path)) => Some(path.clone()),
            _ => key.1.map(|id| format!("id:{id}")),
        };
        let threads = Table::of(gathered.threads.top(MOST_ROWS), |(host, pid, tid), name| {
            (short(name.comm.as_bytes()), tid, pid, host, cgroup((host, name.cgroup_id)))
        });
        let processes = Table::of(gathered.processes.top(MOST_ROWS), |(host, pid), comm| {
            (short(comm.as_bytes()), pid, host)
        });
        let cgroups = Table::of(gathered.cgroups.top(MOST_ROWS), |(host, id), path| {
            (path.or_else(|| id.map(|id| format!("id:{id}"))), host)
        });
        let held = gathered
            .held
            .columns(&setting.axis)
            .map(|(kind, ns)| (kind.name(), ns.into_iter().map(|ns| ns / 1000).collect()));
        let mut frames = Frames::default();
        let longest = gathered.longest.into_rows().map(|long| LongRow::of(long, &mut frames));
        let longest = longest.collect();
        let page_size = recordings.first().map_or(4096, |recording| recording.meta.page_size);
        let (flame, flame_note) = flame_graph(&gathered.stacks.folded);
        let kills: Vec<_> = gathered.kills.iter().take(MOST_KILLS).map(KillRow::of).collect();
        Self {
            begin_ms: ms(begin_ns),
            step_ms: step_ns as f64 / 1e6,
            columns,
            hosts: hosts(setting, recordings),
            rows_ns: rows_ns().to_vec(),
            heat: gathered.heat.cells(),
            held: held.collect(),
            looks: gathered.looks.shown(&setting.axis, page_size),
            marks: marks(&kills, recordings),
            kinds,
            orders: orders.collect(),
            zones: zones.collect(),
            threads,
            processes,
            cgroups,
            longest,
            frames: frames.texts,
            kills,
            killed: gathered.killed,
            flame,
            flame_note,
            stacks: listed(&gathered.stacks.folded),
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
    pub fn longest(&self) -> Option<&Long> {
        self.longest.first().map(|row| &row.long)
    }
}

/// Each host's name, by its number.
fn hosts(setting: &Setting, recordings: &[Recording]) -> Vec<String> {
    let count = setting.hosts.iter().max().map_or(0, |last| last + 1);
    let name = |host| {
        let at = setting.hosts.iter().position(|known| *known == host);
        let recording = at.and_then(|at| recordings.get(at));
        recording.map_or_else(String::new, |recording| short(recording.meta.host.as_bytes()))
    };
    (0..count).map(name).collect()
}

fn marks(kills: &[KillRow], recordings: &[Recording]) -> Vec<Mark> {
    let fired = recordings.iter().filter_map(|recording| recording.meta.trigger.as_ref());
    let fired = fired.map(|fired| Mark { at_ms: ms(fired.at_ns), text: "trigger".to_owned() });
    let killed = kills.iter().map(|kill| Mark { at_ms: kill.at_ms, text: "OOM kill".to_owned() });
    fired.chain(killed).collect()
}

impl LongRow {
    fn of(mut long: Long, frames: &mut Frames) -> Self {
        let kernel_frames = frames.numbers(std::mem::take(&mut long.kernel));
        let user_frames = frames.numbers(std::mem::take(&mut long.user));
        Self { at_ms: ms(long.at_ns), long, kernel_frames, user_frames }
    }
}

impl KillRow {
    fn of(Kill { at_ns, host, oom }: &Kill) -> Self {
        Self {
            at_ms: ms(*at_ns),
            host: *host,
            name: short(oom.comm.as_bytes()),
            pid: oom.pid,
            victim: oom.victim_comm.map(|comm| short(comm.as_bytes())),
            victim_pid: oom.victim_pid,
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
    fn numbers(&mut self, texts: Vec<String>) -> Vec<usize> {
        texts.into_iter().map(|text| self.number(text)).collect()
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
