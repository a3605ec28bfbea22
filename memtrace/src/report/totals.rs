//! All that a report counts, gathered from blocks.
//!
//! A stall costs a few additions: what it has in common with others of its block, its thread and its class, is
//! looked up once for each of them, and their rows are found by their numbers from then on.

use std::collections::HashMap;
use std::mem;

use foldhash::fast::RandomState;
use memtrace_common::record::part;
use memtrace_common::tally;

use super::keys::{CgroupKey, Payer, ProcessKey, ThreadKey, Who};
use super::longest::Longest;
use super::many::{self, Label as _, Many};
use super::seconds::Seconds;
use super::table::Table;
use super::times::{Sum, Times};
use super::{Gather, time_of_day};
use crate::kind::Kind;
use crate::recording::{Block, Class, Counts, End, Meta, Note, Recording, Thread};
use crate::scope::Oom;

/// Most OOM kills that are kept; all are counted.
const MOST_KILLS: usize = 1000;
/// Orders and zones of which each may have stalls of all lengths.
const FEW_CLASSES: usize = 64;
/// Most shrinkers that are told apart.
const MOST_SHRINKERS: usize = 64;
/// Most looks at the system whose times are kept: of more, every second one.
const MOST_LOOKS: usize = 1 << 18;
/// Most bytes of the paths of cgroups.
const MOST_PATH_BYTES: usize = 32 << 20;
/// What a path takes beside its text.
const PATH_BYTES: usize = 64;

/// A look at the system around the stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookAt {
    /// The recording that has it.
    pub recording: usize,
    /// When it was, in nanoseconds since 1970.
    pub at_ns: i64,
    /// The same in nanoseconds of `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
}

/// A process was chosen to be killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The number of the boot.
    pub boot: u32,
    /// When, in nanoseconds since 1970.
    pub at_ns: i64,
    /// Who and why, without stacks.
    pub oom: Oom,
}

/// What was found in the blocks of one recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Stalls in them.
    pub stalls: u64,
    /// Time of day when `CLOCK_MONOTONIC` was zero, in nanoseconds since 1970, by the first and the last block.
    pub epoch_ns: Option<(i64, i64)>,
    /// When the first stall began and the last one ended, in nanoseconds since 1970.
    pub span_ns: Option<(i64, i64)>,
    /// How it ended.
    pub end: Option<End>,
    /// What had been lost by the last look.
    pub counts: Option<Counts>,
}

impl Seen {
    fn merge(&mut self, later: Self) {
        self.stalls += later.stalls;
        self.epoch_ns = match (self.epoch_ns, later.epoch_ns) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (known, other) => known.or(other),
        };
        self.span_ns = joined(self.span_ns, later.span_ns);
        self.end = later.end.or(self.end.take());
        self.counts = later.counts.or(self.counts);
    }
}

/// From the begin of the first to the end of the last.
pub fn joined(a: Option<(i64, i64)>, b: Option<(i64, i64)>) -> Option<(i64, i64)> {
    match (a, b) {
        (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
        (known, other) => known.or(other),
    }
}

/// A thread of the present block.
#[derive(Clone, Copy, Debug, Default)]
struct ThreadRow {
    /// The row of its cgroup.
    cgroup: Option<u32>,
    /// Its stalls in the block.
    sum: Sum,
}

/// What recordings come to, in numbers.
#[derive(Debug)]
pub struct Totals {
    /// The boot of each recording.
    boots: Vec<u32>,
    pub threads: Many<ThreadKey, Payer>,
    /// By process, threads for which there was no room.
    rest: Many<ProcessKey, Who>,
    /// Processes for which there was none, either.
    other: Times,
    pub cgroups: Table<CgroupKey>,
    /// By the kind's number.
    pub kinds: Vec<Times>,
    pub orders: Table<Option<i32>>,
    /// By node and name.
    pub zones: Table<Option<(i32, String)>>,
    pub targets: Table<CgroupKey>,
    /// Nanoseconds, by [`part`]; nothing where no stall had any.
    pub parts: Option<[u64; part::COUNT]>,
    /// Nanoseconds, by the shrinker's function.
    pub shrinkers: HashMap<String, u64, RandomState>,
    pub longest: Longest,
    pub kills: Vec<Kill>,
    pub nr_kills: u64,
    pub seconds: Seconds,
    pub looks: Vec<LookAt>,
    /// Of each recording.
    pub seen: Vec<Seen>,
    paths: HashMap<(u32, u64), Box<[u8]>, RandomState>,
    path_bytes: usize,
    /// The rows of the threads and classes of the present block.
    thread_rows: Vec<ThreadRow>,
    slots: Vec<u32>,
    class_rows: Vec<Option<[u32; 3]>>,
}

/// The boot of each recording, by numbers that are the same for the same boot of the same host.
#[must_use]
pub fn boots(recordings: &[Recording]) -> Vec<u32> {
    let mut known = HashMap::new();
    let number = |(number, recording): (u32, &Recording)| {
        let Meta { host, boot, .. } = &recording.meta;
        // What is not known is another one for each.
        let apart = if boot.is_empty() { number } else { 0 };
        *known.entry((host.clone(), boot.clone(), apart)).or_insert(number)
    };
    (0..).zip(recordings).map(number).collect()
}

impl Totals {
    /// Nothing yet of recordings of these [`boots`], with room for so many of the longest stalls.
    #[must_use]
    pub fn new(boots: &[u32], longest: usize) -> Self {
        Self {
            boots: boots.to_vec(),
            threads: Many::default(),
            rest: Many::default(),
            other: Times::default(),
            cgroups: Table::default(),
            kinds: vec![Times::default(); Kind::COUNT],
            orders: Table::for_few(FEW_CLASSES),
            zones: Table::for_few(FEW_CLASSES),
            targets: Table::default(),
            parts: None,
            shrinkers: HashMap::default(),
            longest: Longest::new(longest),
            kills: Vec::new(),
            nr_kills: 0,
            seconds: Seconds::default(),
            looks: Vec::new(),
            seen: vec![Seen::default(); boots.len()],
            paths: HashMap::default(),
            path_bytes: 0,
            thread_rows: Vec::new(),
            slots: Vec::new(),
            class_rows: Vec::new(),
        }
    }

    /// The path of a cgroup, if a block named it.
    #[must_use]
    pub fn path(&self, boot: u32, id: u64) -> Option<&[u8]> {
        self.paths.get(&(boot, id)).map(|path| &**path)
    }

    /// All stalls.
    #[must_use]
    pub fn all(&self) -> Times {
        let mut all = Times::default();
        self.kinds.iter().for_each(|times| all.merge(times));
        all
    }

    /// Stalls of threads that were too many to be told apart, if there were any.
    #[must_use]
    pub fn other_threads(&self) -> Option<Times> {
        let mut other = [self.other.clone()];
        self.rest.add_to(&mut other, |_| Some(0));
        other.into_iter().find(|other| other.count() != 0)
    }

    /// Stalls of processes that were too many to be told apart, if there were any.
    #[must_use]
    pub fn other_processes(&self) -> Option<Times> {
        Some(self.other.clone()).filter(|other| other.count() != 0)
    }

    /// How many processes stalled, and those with the most time, at most so many, the longest first.
    #[must_use]
    pub fn processes(&self, most: usize) -> (usize, Vec<(ProcessKey, Times, Who)>) {
        let threads = self.threads.iter();
        let threads = threads
            .map(|(thread, sum, payer)| (thread.process(), *sum, Who::of(thread, sum, *payer)));
        let rest = self.rest.iter().map(|(process, sum, who)| (*process, *sum, *who));
        let mut all: HashMap<_, (Sum, Who), RandomState> = HashMap::default();
        for (process, sum, who) in threads.chain(rest) {
            let known = all.entry(process).or_default();
            known.0.merge(&sum);
            known.1.merge(who);
        }
        let count = all.len();
        let all = all.into_iter().map(|(process, (sum, who))| (process, sum, who)).collect();
        let top = many::top(all, most);
        let numbers: HashMap<_, _> = (0..).zip(&top).map(|(n, (key, ..))| (*key, n)).collect();
        let mut times = vec![Times::default(); top.len()];
        self.threads.add_to(&mut times, |thread| numbers.get(&thread.process()).copied());
        self.rest.add_to(&mut times, |process| numbers.get(process).copied());
        let top = top.into_iter().zip(times);
        (count, top.map(|((process, _, who), times)| (process, times, who)).collect())
    }

    /// The kinds with their times.
    pub fn kinds(&self) -> impl Iterator<Item = (Kind, &Times)> {
        Kind::ALL.into_iter().chain([Kind::Memstall]).zip(&self.kinds)
    }

    fn learn(&mut self, boot: u32, id: u64, path: &[u8]) {
        let size = path.len() + PATH_BYTES;
        if self.path_bytes + size <= MOST_PATH_BYTES && !self.paths.contains_key(&(boot, id)) {
            self.path_bytes += size;
            self.paths.insert((boot, id), path.into());
        }
    }

    fn note(&mut self, recording: usize, boot: u32, block: &Block, note: &Note) {
        let seen = &mut self.seen[recording];
        match note {
            Note::Oom(oom) => {
                self.nr_kills += 1;
                if self.kills.len() < MOST_KILLS {
                    let at_ns = time_of_day(block, oom.at_ns);
                    let oom = Oom { stack: Vec::new(), user_stack: Vec::new(), ..(**oom).clone() };
                    self.kills.push(Kill { boot, at_ns, oom });
                }
            }
            Note::Look(look) => {
                seen.counts = Some(look.counts);
                let monotonic_ns = look.at_ns;
                let at_ns = time_of_day(block, monotonic_ns);
                self.looks.push(LookAt { recording, at_ns, monotonic_ns });
                thin(&mut self.looks);
            }
            Note::End(end) => seen.end = Some(end.clone()),
            Note::Clock(_) | Note::Settled(_) | Note::State(..) | Note::Interval(..) => {}
        }
    }

    fn prune(&mut self) {
        // What is given up of the threads must not be more than the rest has numbers for.
        loop {
            let is_again = self.threads.prune(&mut self.rest);
            while self.rest.prune(&mut self.other) {}
            if !is_again {
                break;
            }
        }
        self.cgroups.prune();
        self.orders.prune();
        self.zones.prune();
        self.targets.prune();
    }

    /// The rows of a class's order, zone and target.
    fn rows_of_class(&mut self, boot: u32, class: Option<&Class>, block: &Block) -> [u32; 3] {
        let zone = class.and_then(|class| block.zone(class)).map(|zone| (zone.node, zone.name));
        let id = class.and_then(Class::target);
        let order = self.orders.slot(class.and_then(Class::order));
        let zone = self.zones.slot(zone);
        let target = self.targets.slot(CgroupKey { boot, id });
        [order, zone, target]
    }

    fn stalls(&mut self, recording: usize, boot: u32, meta: &Meta, block: &Block) {
        let (mut thread_rows, mut class_rows) =
            (mem::take(&mut self.thread_rows), mem::take(&mut self.class_rows));
        thread_rows.clear();
        thread_rows.resize(block.threads().len(), ThreadRow::default());
        class_rows.clear();
        // The last is of those that had no round.
        let classless = block.classes().len();
        class_rows.resize(classless + 1, None);
        let mut candidates = self.longest.candidates();
        let (mut shrinkers, mut others_ns): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
        let (mut stalls, mut span_ns) = (0, (u64::MAX, 0));
        block.told(meta.scopes, |told| {
            let duration_ns = told.duration_ns;
            let bucket = tally::bucket(duration_ns);
            let ThreadRow { cgroup, sum } = &mut thread_rows[told.thread_number as usize];
            sum.merge(&Sum::one(duration_ns));
            self.threads.log(told.thread_number, bucket);
            let id = told.thread.cgroup_id;
            let cgroup = *cgroup.get_or_insert_with(|| self.cgroups.slot(CgroupKey { boot, id }));
            self.cgroups.add(cgroup, duration_ns, bucket);
            let number = told.class.map_or(classless, |_| told.class_number as usize);
            let rows = &mut class_rows[number];
            let [order, zone, target] =
                *rows.get_or_insert_with(|| self.rows_of_class(boot, told.class, block));
            self.orders.add(order, duration_ns, bucket);
            self.zones.add(zone, duration_ns, bucket);
            self.targets.add(target, duration_ns, bucket);
            self.kinds[told.kind as usize].add(duration_ns, bucket);
            if let Some(parts) = &told.parts {
                let sums = self.parts.get_or_insert_default();
                for (sum, ns) in sums.iter_mut().zip(parts) {
                    *sum = sum.saturating_add(*ns);
                }
            }
            for (address, ns) in told.scope.into_iter().flat_map(|scope| block.shrinkers(scope)) {
                let has_room = shrinkers.len() < MOST_SHRINKERS;
                match shrinkers.iter_mut().find(|(known, _)| *known == address) {
                    Some((_, sum)) => *sum = sum.saturating_add(ns),
                    None if has_room => shrinkers.push((address, ns)),
                    None => others_ns = others_ns.saturating_add(ns),
                }
            }
            let start_ns = time_of_day(block, told.start_ns);
            self.seconds.add(boot, start_ns, duration_ns);
            candidates.see(told);
            stalls += 1;
            let end_ns = told.start_ns.saturating_add(duration_ns);
            span_ns = (span_ns.0.min(told.start_ns), span_ns.1.max(end_ns));
        });
        self.end_block(boot, block.threads(), &thread_rows);
        self.longest.take(boot, meta, block, candidates);
        for (address, ns) in shrinkers.into_iter().chain([(0, others_ns)]) {
            self.add_shrinker(block, address, ns);
        }
        (self.thread_rows, self.class_rows) = (thread_rows, class_rows);
        let wall = |ns| time_of_day(block, ns);
        let span_ns = (stalls != 0).then(|| (wall(span_ns.0), wall(span_ns.1)));
        self.seen[recording].merge(Seen {
            stalls,
            epoch_ns: Some((block.epoch_ns(), block.epoch_ns())),
            span_ns,
            ..Seen::default()
        });
    }

    /// Adds up what came of each thread.
    fn end_block(&mut self, boot: u32, threads: &[Thread], rows: &[ThreadRow]) {
        let mut slots = mem::take(&mut self.slots);
        slots.clear();
        // One after the other, so that what they wait for comes together.
        slots.extend(threads.iter().zip(rows).map(|(thread, row)| {
            let Thread { pid, tid, uid: _, comm, cgroup_id } = *thread;
            // Those that had rounds, but no scope, did not stall.
            let did_stall = row.sum.count != 0;
            let payer = Payer(cgroup_id.unwrap_or_default());
            let mut add = || self.threads.add(ThreadKey { boot, pid, tid, comm }, &row.sum, payer);
            if did_stall { add() } else { 0 }
        }));
        self.threads.end_block(&slots);
        self.slots = slots;
    }

    fn add_shrinker(&mut self, block: &Block, address: u64, ns: u64) {
        if ns == 0 {
            return;
        }
        let name = || match block.function(address) {
            Some(frame) => frame.function().to_owned(),
            None => format!("{address:#x}"),
        };
        self.add_named_shrinker((address != 0).then(name), ns);
    }

    /// Those beyond the ones that are told apart have no name.
    fn add_named_shrinker(&mut self, name: Option<String>, ns: u64) {
        let has_room = self.shrinkers.len() < MOST_SHRINKERS;
        let sum = match name.filter(|name| has_room || self.shrinkers.contains_key(name)) {
            Some(name) => self.shrinkers.entry(name).or_default(),
            None => &mut self.parts.get_or_insert_default()[part::SHRINKERS],
        };
        *sum = sum.saturating_add(ns);
    }
}

/// Leaves every second one out where there are too many.
fn thin(looks: &mut Vec<LookAt>) {
    while looks.len() > MOST_LOOKS {
        let mut stays = false;
        looks.retain(|_| {
            stays = !stays;
            stays
        });
    }
}

impl Gather for Totals {
    fn block(&mut self, recording: usize, meta: &Meta, block: &Block) {
        let Some(boot) = self.boots.get(recording).copied() else { return };
        self.prune();
        for (id, path) in block.paths() {
            if let Some(path) = path {
                self.learn(boot, id, path);
            }
        }
        for note in block.notes() {
            self.note(recording, boot, block, note);
        }
        self.stalls(recording, boot, meta, block);
    }

    fn merge(&mut self, later: Self) {
        let Self {
            boots: _,
            threads,
            rest,
            other,
            cgroups,
            kinds,
            orders,
            zones,
            targets,
            parts,
            shrinkers,
            longest,
            kills,
            nr_kills,
            seconds,
            looks,
            seen,
            paths,
            path_bytes: _,
            thread_rows: _,
            slots: _,
            class_rows: _,
        } = later;
        self.threads.merge(threads);
        self.rest.merge(rest);
        self.other.merge(&other);
        self.cgroups.merge(cgroups);
        for (sum, times) in self.kinds.iter_mut().zip(&kinds) {
            sum.merge(times);
        }
        self.orders.merge(orders);
        self.zones.merge(zones);
        self.targets.merge(targets);
        self.prune();
        if let Some(parts) = parts {
            for (sum, ns) in self.parts.get_or_insert_default().iter_mut().zip(parts) {
                *sum = sum.saturating_add(ns);
            }
        }
        for (name, ns) in shrinkers {
            self.add_named_shrinker(Some(name), ns);
        }
        self.longest.merge(longest);
        self.kills.extend(kills);
        self.kills.truncate(MOST_KILLS);
        self.nr_kills = self.nr_kills.saturating_add(nr_kills);
        self.seconds.merge(seconds);
        self.looks.extend(looks);
        thin(&mut self.looks);
        for (known, later) in self.seen.iter_mut().zip(seen) {
            known.merge(later);
        }
        for ((boot, id), path) in paths {
            self.learn(boot, id, &path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stall::Comm;

    /// Distinct for processes of distinct numbers, as far as buckets go.
    fn ns(pid: u32) -> u64 {
        tally::shortest(200 + u16::try_from(pid % 5000).expect("small"))
    }

    /// What one worker may have at most: processes of one thread from `first` on, of which as many as there is room
    /// for are among the rest already.
    fn full(first: u32) -> Totals {
        const ROOM: u32 = 1 << 17;
        let mut totals = Totals::new(&[0], 0);
        let comm = Comm::new([0; Comm::LEN]);
        for pid in first..first + ROOM {
            let slot =
                totals.rest.add(ProcessKey { boot: 0, pid }, &Sum::one(ns(pid)), Who::default());
            totals.rest.log_counted(slot, tally::bucket(ns(pid)), 1);
        }
        // Those of the last block are not looked at any more.
        for pid in first + ROOM..first + 2 * ROOM + (1 << 16) {
            let key = ThreadKey { boot: 0, pid, tid: pid, comm };
            totals.threads.log(0, tally::bucket(ns(pid)));
            let slot = totals.threads.add(key, &Sum::one(ns(pid)), Payer(0));
            totals.threads.end_block(&[slot]);
        }
        totals
    }

    #[test]
    fn what_is_poured_into_the_rest_keeps_its_percentiles() {
        let mut totals = full(0);
        totals.merge(full(1 << 20));
        let (count, top) = totals.processes(usize::MAX);
        assert!(count > 1 << 17, "{count} processes are told apart");
        for (ProcessKey { pid, .. }, times, _) in top {
            let bucket = tally::bucket(ns(pid));
            assert_eq!(times.count(), 1, "{pid}");
            assert_eq!(tally::bucket(times.quantile_ns(500)), bucket, "{pid}");
            assert_eq!(times.width(), 1, "{pid} has stalls of another");
        }
        let others = totals.other_processes().expect("there is no room for all");
        assert_eq!(others.count() + count as u64, 2 * ((1 << 18) + (1 << 16)));
    }
}
