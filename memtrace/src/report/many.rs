//! Times by key where there are very many keys, few of which are shown: threads.
//!
//! Each key has a sum, next to it in memory. For percentiles there is a log of all stalls, four bytes each; those of
//! the keys that are shown are counted from it at the end. So a block looks each of its threads up once, and a stall
//! of any of a hundred thousand threads touches no memory of its own.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::mem;

use foldhash::fast::RandomState;

use super::times::{Sum, Times};

/// Most keys beside those of one block. With those of one block, and once more when what two threads have gathered
/// is put together, they are numbers below 2^19.
const MOST_KEYS: usize = 1 << 17;

/// Low bits of an entry of the log, which are the bucket; the others are the slot.
const BUCKET_BITS: u32 = 13;

/// Entries of the log after which those that are alike are counted together.
const MOST_FRESH: usize = 1 << 23;
/// Most distinct entries; where there are more, keys are given up.
const MOST_COUNTED: usize = 1 << 22;

/// What is remembered of a key beside its times.
pub trait Label: Copy + Default {
    /// Takes what was learnt later.
    fn merge(&mut self, later: Self);
}

/// Times by key.
#[derive(Clone, Debug)]
pub struct Many<K, L> {
    rows: HashMap<K, Row<L>, RandomState>,
    log: Log,
    most_keys: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row<L> {
    /// The number of the key in the log.
    slot: u32,
    label: L,
    sum: Sum,
}

/// Which slots had stalls of which buckets.
#[derive(Clone, Debug, Default)]
struct Log {
    fresh: Vec<u32>,
    /// Entries, and how often there was each.
    counted: Vec<(u32, u32)>,
    /// Where those of the present block begin: instead of slots they have numbers of the block.
    block: usize,
}

/// Where keys go for which there is no room.
pub trait Rest<K, L> {
    /// Takes a key's sum, and tells under which number its buckets are to come.
    fn take(&mut self, key: &K, sum: &Sum, label: L) -> u32;
    /// Takes a bucket of so many stalls.
    fn log(&mut self, number: u32, bucket: u16, count: u32);
}

/// All of them become one.
impl<K, L> Rest<K, L> for Times {
    fn take(&mut self, _key: &K, sum: &Sum, _label: L) -> u32 {
        self.add_sum(sum);
        0
    }

    fn log(&mut self, _number: u32, bucket: u16, count: u32) {
        self.add_bucket(bucket, count);
    }
}

impl<K, L> Default for Many<K, L> {
    fn default() -> Self {
        Self { rows: HashMap::default(), log: Log::default(), most_keys: MOST_KEYS }
    }
}

impl<K: Clone + Eq + Hash + Ord, L: Label> Many<K, L> {
    /// Adds the time of stalls of a key, and gives its number in the log.
    pub fn add(&mut self, key: K, sum: &Sum, label: L) -> u32 {
        // There is room for more of them than there can be.
        let next = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let row = self.rows.entry(key).or_insert_with(|| Row { slot: next, ..Row::default() });
        row.sum.merge(sum);
        row.label.merge(label);
        row.slot
    }

    /// Adds the bucket of a stall of the key of that number of the present block.
    #[inline]
    pub fn log(&mut self, number: u32, bucket: u16) {
        self.log.fresh.push(entry(number, bucket));
    }

    /// Adds buckets of the key of that number in the log.
    pub fn log_counted(&mut self, slot: u32, bucket: u16, count: u32) {
        self.log.counted.push((entry(slot, bucket), count));
    }

    /// Ends a block, given by the number in the log of each number in the block.
    pub fn end_block(&mut self, slots: &[u32]) {
        let Log { fresh, block, .. } = &mut self.log;
        for logged in &mut fresh[*block..] {
            let (number, bucket) = parts(*logged);
            *logged = entry(slots.get(number as usize).copied().unwrap_or_default(), bucket);
        }
        *block = fresh.len();
    }

    /// Makes room for another block. Where it takes half of the keys to be given up this does so, once: until it does
    /// not, it is to be called again, and the rest has to be made room in each time.
    #[must_use]
    pub fn prune(&mut self, rest: &mut impl Rest<K, L>) -> bool {
        if self.log.fresh.len() > MOST_FRESH || self.log.counted.len() > MOST_COUNTED {
            self.log.count();
        }
        let is_full = self.rows.len() > self.most_keys
            || (self.log.counted.len() > MOST_COUNTED && self.rows.len() > 1);
        if is_full {
            self.halve(rest);
        }
        is_full
    }

    /// Gives up the half of the keys with the least time.
    fn halve(&mut self, rest: &mut impl Rest<K, L>) {
        let mut by_time: Vec<_> = mem::take(&mut self.rows).into_iter().collect();
        let (kept, count) = (by_time.len() / 2, by_time.len());
        if kept < count {
            by_time.select_nth_unstable_by_key(kept, |(_, row)| Reverse(row.sum.total_ns));
        }
        let (mut stay, mut go) = (vec![None; count], vec![None; count]);
        for (number, (key, row)) in by_time.into_iter().enumerate() {
            let Row { slot, label, sum } = row;
            if number < kept {
                stay[slot as usize] = Some(self.add(key, &sum, label));
            } else {
                go[slot as usize] = Some(rest.take(&key, &sum, label));
            }
        }
        self.log.each(|slot, bucket, count| {
            if let Some(number) = go.get(slot as usize).copied().flatten() {
                rest.log(number, bucket, count);
            }
        });
        self.log.move_to(&stay);
    }

    /// Takes the times of later blocks.
    pub fn merge(&mut self, mut later: Self) {
        let mut slots = vec![None; later.rows.len()];
        for (key, Row { slot, label, sum }) in mem::take(&mut later.rows) {
            slots[slot as usize] = Some(self.add(key, &sum, label));
        }
        later.log.move_to(&slots);
        self.log.append(later.log);
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// All keys, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Sum, &L)> {
        self.rows.iter().map(|(key, row)| (key, &row.sum, &row.label))
    }

    /// The keys with the most time, at most so many, the longest first.
    pub fn top(&self, most: usize) -> Vec<(K, Times, L)> {
        let all = self.iter().map(|(key, sum, label)| (key.clone(), *sum, *label));
        let top = top(all.collect(), most);
        let numbers: HashMap<_, _> = (0..).zip(&top).map(|(n, (key, ..))| (key, n)).collect();
        let mut times = vec![Times::default(); top.len()];
        self.add_to(&mut times, |key| numbers.get(key).copied());
        top.iter().zip(times).map(|((key, _, label), times)| (key.clone(), times, *label)).collect()
    }

    /// Adds the times of all keys to those of the groups that they are in.
    pub fn add_to(&self, times: &mut [Times], group: impl Fn(&K) -> Option<usize>) {
        let mut groups = vec![None; self.rows.len()];
        for (key, row) in &self.rows {
            if let Some(group) = group(key)
                && let Some(times) = times.get_mut(group)
            {
                times.add_sum(&row.sum);
                groups[row.slot as usize] = Some(group);
            }
        }
        self.log.each(|slot, bucket, count| {
            if let Some(group) = groups.get(slot as usize).copied().flatten() {
                times[group].add_bucket(bucket, count);
            }
        });
    }
}

/// Those with the most time, at most so many, the longest first.
pub fn top<K: Ord, L>(mut all: Vec<(K, Sum, L)>, most: usize) -> Vec<(K, Sum, L)> {
    let by_time = |a: &(K, Sum, L), b: &(K, Sum, L)| {
        b.1.total_ns.cmp(&a.1.total_ns).then_with(|| a.0.cmp(&b.0))
    };
    if most < all.len() {
        all.select_nth_unstable_by(most, by_time);
        all.truncate(most);
    }
    all.sort_unstable_by(by_time);
    all
}

/// An entry of the log.
fn entry(slot: u32, bucket: u16) -> u32 {
    slot << BUCKET_BITS | u32::from(bucket)
}

/// The slot and the bucket of an entry.
fn parts(entry: u32) -> (u32, u16) {
    let bucket = entry & ((1 << BUCKET_BITS) - 1);
    (entry >> BUCKET_BITS, u16::try_from(bucket).unwrap_or_default())
}

impl Log {
    /// Counts entries that are alike together.
    fn count(&mut self) {
        self.fresh.sort_unstable();
        let alike = self.fresh.chunk_by(|a, b| a == b);
        let count = |alike: &[u32]| u32::try_from(alike.len()).unwrap_or(u32::MAX);
        self.counted.extend(alike.map(|alike| (alike[0], count(alike))));
        self.fresh.clear();
        self.block = 0;
        self.join();
    }

    /// Puts those that are counted into order, each once.
    fn join(&mut self) {
        self.counted.sort_unstable();
        self.counted.dedup_by(|later, known| {
            let is_alike = later.0 == known.0;
            known.1 = known.1.saturating_add(if is_alike { later.1 } else { 0 });
            is_alike
        });
    }

    /// Each slot and bucket with its number of stalls; some come several times.
    fn each(&self, mut each: impl FnMut(u32, u16, u32)) {
        let fresh = self.fresh.iter().map(|fresh| (*fresh, 1));
        for (entry, count) in fresh.chain(self.counted.iter().copied()) {
            let (slot, bucket) = parts(entry);
            each(slot, bucket, count);
        }
    }

    /// Gives entries other slots; those that have none are left out. In place, as this may be most of the memory
    /// that there is.
    fn move_to(&mut self, slots: &[Option<u32>]) {
        let moves = |logged: &mut u32| {
            let (slot, bucket) = parts(*logged);
            let slot = slots.get(slot as usize).copied().flatten();
            *logged = entry(slot.unwrap_or_default(), bucket);
            slot.is_some()
        };
        self.fresh.retain_mut(|logged| moves(logged));
        self.counted.retain_mut(|(logged, _)| moves(logged));
        self.block = self.fresh.len();
    }

    /// Takes later entries.
    fn append(&mut self, mut later: Self) {
        self.fresh.append(&mut later.fresh);
        self.block = self.fresh.len();
        self.counted.append(&mut later.counted);
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::tally::bucket;

    use super::*;

    impl Label for () {
        fn merge(&mut self, (): Self) {}
    }

    fn add(many: &mut Many<u32, ()>, key: u32, ns: u64) {
        many.log(0, bucket(ns));
        let slot = many.add(key, &Sum::one(ns), ());
        many.end_block(&[slot]);
    }

    fn shown(many: &Many<u32, ()>) -> Vec<(u32, u64, u64, u64)> {
        let top = many.top(9).into_iter();
        top.map(|(key, it, ())| (key, it.count(), it.total_ns(), it.quantile_ns(500))).collect()
    }

    #[test]
    fn the_longest_come_first_and_no_more_than_asked_for() {
        let mut many = Many::default();
        for (key, ns) in [(1, 5), (2, 7), (1, 1), (3, 7), (4, 100)] {
            add(&mut many, key, ns);
        }
        assert_eq!(shown(&many), [(4, 1, 100, 100), (2, 1, 7, 7), (3, 1, 7, 7), (1, 2, 6, 1)]);
        assert_eq!(many.top(2).iter().map(|(key, ..)| *key).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(many.top(0).len(), 0);
        let mut times = vec![Times::default(); 2];
        many.add_to(&mut times, |key| (*key != 4).then_some(*key as usize % 2));
        assert_eq!(times.iter().map(Times::total_ns).collect::<Vec<_>>(), [7, 13]);
        assert_eq!(times[1].quantile_ns(500), 5);
    }

    #[test]
    fn merging_and_counting_is_as_if_all_had_come_to_one() {
        let (mut first, mut second, mut whole) =
            (Many::default(), Many::default(), Many::default());
        for n in 0..1000_u32 {
            add(if n < 400 { &mut first } else { &mut second }, n * n % 7, (n % 90).into());
            add(&mut whole, n * n % 7, (n % 90).into());
            if n % 130 == 0 {
                first.log.count();
                second.log.count();
            }
        }
        first.merge(second);
        assert_eq!(shown(&first), shown(&whole));
        first.log.count();
        assert_eq!(shown(&first), shown(&whole));
        assert!(first.log.fresh.is_empty() && first.log.counted.is_sorted_by_key(|it| it.0));
        assert!(first.log.counted.len() <= 7 * 90);
    }

    #[test]
    fn where_there_are_too_many_keys_the_least_become_one() {
        let mut many = Many { most_keys: 4, ..Many::default() };
        let mut other = Times::default();
        for key in 1..=6 {
            add(&mut many, key, u64::from(key) * 10);
        }
        while many.prune(&mut other) {}
        assert_eq!(shown(&many), [(6, 1, 60, 60), (5, 1, 50, 50), (4, 1, 40, 40)]);
        assert_eq!((other.count(), other.total_ns(), other.quantile_ns(500)), (3, 60, 20));
        add(&mut many, 1, 7);
        add(&mut many, 6, 7);
        while many.prune(&mut other) {}
        assert_eq!(shown(&many)[0], (6, 2, 67, 7));
        assert_eq!(shown(&many)[3], (1, 1, 7, 7));
    }

    #[test]
    fn an_entry_has_room_for_every_slot_and_bucket() {
        const SLOTS: usize = 1 << (u32::BITS - BUCKET_BITS);
        /// As many rows as a table of a block may have.
        const MOST_OF_BLOCK: usize = 8 * crate::recording::encode::MOST_ROWS;
        /// As many as two threads have gathered.
        const GATHERED: usize = 2 * (MOST_KEYS + MOST_OF_BLOCK);
        const { assert!(GATHERED <= SLOTS) };
        // Half of them come to what two threads have as a rest.
        const { assert!(2 * MOST_KEYS + GATHERED / 2 <= SLOTS) };
        assert!(u32::from(bucket(u64::MAX)) < 1 << BUCKET_BITS);
    }
}
