//! What a page is made of, gathered from all blocks.

use std::collections::BTreeMap;

use super::axis::Axis;
use super::charts::{Heat, Held};
use super::keyed::Keyed;
use super::longest::{self, Longest};
use super::looks::Looks;
use super::stacks::Stacks;
use super::stat::Stat;
use super::words::{short, zone_name};
use crate::kind::Kind;
use crate::recording::{Block, Counts, End, Meta, Note, Recording, Told};
use crate::report::Gather;
use crate::scope::Oom;
use crate::stall::Comm;

/// Most kills that are told.
pub const MOST_KILLS: usize = 500;
/// Most orders and zones.
const MOST_FEW: usize = 256;

/// What all blocks are seen against.
#[derive(Debug)]
pub struct Setting {
    /// The axis of time.
    pub axis: Axis,
    /// By recording, the number of its host as it was between two boots: ids mean the same there.
    pub hosts: Vec<usize>,
}

/// A thread: its host, its process and itself.
pub type ThreadKey = (usize, u32, u32);
/// A process on its host.
pub type ProcessKey = (usize, u32);
/// A cgroup on its host; nothing where it was not looked for.
pub type CgroupKey = (usize, Option<u64>);

/// What a thread is called, and its cgroup.
#[derive(Clone, Copy, Debug)]
pub struct ThreadName {
    /// Its name when it was last held up.
    pub comm: Comm,
    /// Its cgroup then.
    pub cgroup_id: Option<u64>,
}

/// A kill for lack of memory, in words.
#[derive(Clone, Debug)]
pub struct Kill {
    /// When, in nanoseconds since 1970.
    pub at_ns: i64,
    /// Whose host, by number.
    pub host: usize,
    /// Who lacked memory.
    pub oom: Oom,
}

/// What was gathered.
#[derive(Debug)]
pub struct Gathered<'a> {
    setting: &'a Setting,
    /// Latencies over time.
    pub heat: Heat,
    /// Stalled time over time.
    pub held: Held,
    /// The system over time.
    pub looks: Looks,
    /// By kind, as [`Kind`] numbers them.
    pub kinds: Box<[Stat; Kind::COUNT]>,
    /// By order of the allocation.
    pub orders: BTreeMap<Option<i32>, Stat>,
    /// By zone that was compacted, on its host.
    pub zones: BTreeMap<(usize, String), Stat>,
    /// By thread.
    pub threads: Keyed<ThreadKey, ThreadName>,
    /// By process; the name is that of its first thread, if that was held up.
    pub processes: Keyed<ProcessKey, Comm>,
    /// By cgroup, with the path.
    pub cgroups: Keyed<CgroupKey, Option<String>>,
    /// The longest stalls.
    pub longest: Longest,
    /// Time by stack.
    pub stacks: Stacks,
    /// The first kills.
    pub kills: Vec<Kill>,
    /// How many there were.
    pub killed: u64,
    /// By recording, how it ended.
    pub ends: BTreeMap<usize, End>,
    /// By recording, what was lost when that was last looked at.
    pub counts: BTreeMap<usize, Counts>,
    of_block: OfBlock,
}

/// Stalls of one block, by the numbers that their threads and classes have there.
#[derive(Debug, Default)]
struct OfBlock {
    /// Each with the number of its thread, of which there may be many, and its nanoseconds.
    threads: Vec<(u32, u64)>,
    classes: Numbered,
    without_class: Stat,
}

/// Stalls by number: each is found at once, and its memory is used again.
#[derive(Debug, Default)]
struct Numbered {
    stats: Vec<Stat>,
    used: Vec<u32>,
}

impl Numbered {
    #[inline]
    fn add(&mut self, number: u32, ns: u64) {
        let at = number as usize;
        if at >= self.stats.len() {
            self.stats.resize_with(at + 1, Stat::default);
        }
        let stat = &mut self.stats[at];
        if stat.count == 0 {
            self.used.push(number);
        }
        stat.add(ns);
    }

    fn drain(&mut self, mut each: impl FnMut(usize, &Stat)) {
        for number in self.used.drain(..) {
            let stat = &mut self.stats[number as usize];
            each(number as usize, stat);
            stat.clear();
        }
    }
}

impl<'a> Gathered<'a> {
    /// Nothing yet.
    pub fn new(setting: &'a Setting) -> Self {
        Self {
            setting,
            heat: Heat::new(&setting.axis),
            held: Held::new(),
            looks: Looks::default(),
            kinds: Box::default(),
            orders: BTreeMap::new(),
            zones: BTreeMap::new(),
            threads: Keyed::default(),
            processes: Keyed::default(),
            cgroups: Keyed::default(),
            longest: Longest::default(),
            stacks: Stacks::default(),
            kills: Vec::new(),
            killed: 0,
            ends: BTreeMap::new(),
            counts: BTreeMap::new(),
            of_block: OfBlock::default(),
        }
    }

    /// From when to when a recording goes, in nanoseconds since 1970.
    pub fn span_ns(&self, number: usize, recording: &Recording) -> (i64, i64) {
        let axis = &self.setting.axis;
        let first_ns = recording.places.iter().map(|place| place.first_ns).min();
        let last_ns = recording.places.iter().map(|place| place.last_ns).max();
        match (first_ns, last_ns) {
            (Some(first_ns), Some(last_ns)) => {
                (axis.at(number, first_ns), axis.at(number, last_ns))
            }
            _ => (recording.meta.began_ns, recording.meta.began_ns),
        }
    }

    fn host(&self, recording: usize) -> usize {
        self.setting.hosts.get(recording).copied().unwrap_or(recording)
    }

    /// Counts all stalls of a block; gives those that may be among the longest.
    fn stalls<'b>(&mut self, recording: usize, meta: &Meta, block: &'b Block) -> Vec<Told<'b>> {
        let axis = &self.setting.axis;
        let OfBlock { threads, classes, without_class } = &mut self.of_block;
        let mut least_ns = self.longest.least_ns();
        let mut long: Vec<Told<'b>> = Vec::new();
        block.told(meta.scopes, |told| {
            let ns = told.duration_ns;
            let start_ns = axis.since_begin(recording, told.start_ns);
            self.heat.add(axis.column(start_ns), ns);
            self.held.add(told.kind, start_ns, ns, axis);
            self.kinds[told.kind as usize].add(ns);
            threads.push((told.thread_number, ns));
            match told.class {
                Some(_) => classes.add(told.class_number, ns),
                None => without_class.add(ns),
            }
            self.stacks.add(told);
            if ns >= least_ns {
                long.push(*told);
                if long.len() >= 2 * longest::MOST {
                    long.sort_by_key(|told| std::cmp::Reverse(told.duration_ns));
                    long.truncate(longest::MOST);
                    least_ns = long.last().map_or(0, |told| told.duration_ns).saturating_add(1);
                }
            }
        });
        long
    }

    /// Puts what was counted by numbers of a block under the names that they stand for.
    fn end_block(&mut self, recording: usize, block: &Block) {
        let host = self.host(recording);
        let OfBlock { threads, classes, without_class } = &mut self.of_block;
        let paths: BTreeMap<_, _> = block.paths().collect();
        // All of a thread's one after the other: it is looked for once.
        threads.sort_unstable();
        for stalls in threads.chunk_by(|a, b| a.0 == b.0) {
            let Some(thread) = block.threads().get(stalls[0].0 as usize) else { continue };
            let (pid, tid, comm, cgroup_id) =
                (thread.pid, thread.tid, thread.comm, thread.cgroup_id);
            let stalls = || stalls.iter().map(|(_, ns)| *ns);
            let name = ThreadName { comm, cgroup_id };
            *self.threads.add((host, pid, tid), stalls(), || name) = name;
            let of_process = self.processes.add((host, pid), stalls(), || comm);
            if pid == tid {
                *of_process = comm;
            }
            let path = self.cgroups.add((host, cgroup_id), stalls(), || None);
            if path.is_none() {
                let known = cgroup_id.and_then(|id| paths.get(&id).copied().flatten());
                *path = known.map(short);
            }
        }
        threads.clear();
        let (orders, zones) = (&mut self.orders, &mut self.zones);
        classes.drain(|number, stat| {
            let Some(class) = block.classes().get(number) else { return };
            add_to_few(orders, class.order(), stat);
            if let Some(zone) = block.zone(class) {
                add_to_few(zones, (host, zone_name(&zone)), stat);
            }
        });
        if without_class.count != 0 {
            add_to_few(orders, None, without_class);
            without_class.clear();
        }
    }

    fn note(&mut self, recording: usize, note: &Note) {
        let axis = &self.setting.axis;
        match note {
            Note::Oom(oom) => {
                self.killed += 1;
                if self.kills.len() < MOST_KILLS {
                    let host = self.host(recording);
                    let (stack, user_stack) = (Vec::new(), Vec::new());
                    let oom = Oom { stack, user_stack, ..(**oom).clone() };
                    self.kills.push(Kill { at_ns: axis.at(recording, oom.at_ns), host, oom });
                }
            }
            Note::Look(look) => {
                let column = axis.column(axis.since_begin(recording, look.at_ns));
                self.looks.add(column, look);
                self.counts.insert(recording, look.counts);
            }
            Note::End(end) => {
                self.counts.insert(recording, end.counts);
                self.ends.insert(recording, end.clone());
            }
            Note::Clock(_) | Note::Settled(_) | Note::State(..) | Note::Interval(..) => {}
        }
    }
}

/// Counts under a key of which there are few.
fn add_to_few<K: Ord>(few: &mut BTreeMap<K, Stat>, key: K, stat: &Stat) {
    if few.len() < MOST_FEW || few.contains_key(&key) {
        few.entry(key).or_default().merge(stat);
    }
}

impl Gather for Gathered<'_> {
    fn block(&mut self, recording: usize, meta: &Meta, block: &Block) {
        for note in block.notes() {
            self.note(recording, note);
        }
        let long = self.stalls(recording, meta, block);
        self.end_block(recording, block);
        if !long.is_empty() || self.stacks.has_some() {
            let mut names = block.names(meta);
            let host = self.host(recording);
            self.longest.take(&long, (recording, host), &self.setting.axis, block, &mut names);
            self.stacks.end_block(block, &mut names);
        }
    }

    fn merge(&mut self, later: Self) {
        let Self {
            setting: _,
            heat,
            held,
            looks,
            kinds,
            orders,
            zones,
            threads,
            processes,
            cgroups,
            longest,
            stacks,
            kills,
            killed,
            ends,
            counts,
            of_block: _,
        } = later;
        self.heat.merge(&heat);
        self.held.merge(held);
        self.looks.merge(looks);
        for (sum, stat) in self.kinds.iter_mut().zip(*kinds) {
            sum.merge(&stat);
        }
        for (order, stat) in orders {
            add_to_few(&mut self.orders, order, &stat);
        }
        for (zone, stat) in zones {
            add_to_few(&mut self.zones, zone, &stat);
        }
        self.threads.merge(threads, |known, name| *known = name);
        self.processes.merge(processes, |_, _| {});
        self.cgroups.merge(cgroups, |known, name| *known = known.take().or(name));
        self.longest.merge(longest);
        self.stacks.folded.merge(stacks.folded);
        self.kills.extend(kills);
        self.kills.truncate(MOST_KILLS);
        self.killed += killed;
        self.ends.extend(ends);
        self.counts.extend(counts);
    }
}
