//! Times by key: of each thread, each cgroup, each order.
//!
//! There is room for so many keys; once there are more, the half with the least time becomes one.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use foldhash::fast::RandomState;

use super::times::Times;

/// Most keys beside those of one block.
const MOST_KEYS: usize = 1 << 18;

/// Times by key.
#[derive(Clone, Debug)]
pub struct Table<K> {
    slots: HashMap<K, u32, RandomState>,
    rows: Vec<Times>,
    /// Those of keys for which there was no room.
    other: Times,
    most_keys: usize,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self {
            slots: HashMap::default(),
            rows: Vec::new(),
            other: Times::default(),
            most_keys: MOST_KEYS,
        }
    }
}

impl<K: Clone + Eq + Hash> Table<K> {
    /// Where the key's row is until [`prune`](Self::prune) is called.
    pub fn slot(&mut self, key: K) -> u32 {
        match self.slots.entry(key) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                // A block has no more than some hundred thousand.
                let slot = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
                self.rows.push(Times::default());
                *new.insert(slot)
            }
        }
    }

    /// Adds a stall of that row's key.
    #[inline]
    pub fn add(&mut self, slot: u32, duration_ns: u64, bucket: u16) {
        self.rows[slot as usize].add(duration_ns, bucket);
    }

    /// Makes room for the keys of another block.
    pub fn prune(&mut self) {
        if self.rows.len() <= self.most_keys {
            return;
        }
        let mut by_time: Vec<_> = std::mem::take(&mut self.slots).into_iter().collect();
        let kept = self.most_keys / 2;
        let time = |(_, slot): &(K, u32)| std::cmp::Reverse(self.rows[*slot as usize].total_ns());
        if kept < by_time.len() {
            by_time.select_nth_unstable_by_key(kept, time);
        }
        let mut rows = Vec::with_capacity(self.most_keys);
        for (number, (key, slot)) in (0..).zip(by_time) {
            let row = std::mem::take(&mut self.rows[slot as usize]);
            if rows.len() < kept {
                rows.push(row);
                self.slots.insert(key, number);
            } else {
                self.other.merge(&row);
            }
        }
        self.rows = rows;
    }

    /// Takes the times of later blocks.
    pub fn merge(&mut self, mut later: Self) {
        for (key, slot) in later.slots {
            let times = std::mem::take(&mut later.rows[slot as usize]);
            let known = self.slot(key) as usize;
            if self.rows[known].count() == 0 {
                self.rows[known] = times;
            } else {
                self.rows[known].merge(&times);
            }
        }
        self.other.merge(&later.other);
        self.prune();
    }

    /// How many keys had stalls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// The stalls of keys for which there was no room, if there were any.
    #[must_use]
    pub fn other(&self) -> Option<&Times> {
        Some(&self.other).filter(|other| other.count() != 0)
    }

    /// All keys that had stalls, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Times)> {
        let all = self.slots.iter().map(|(key, slot)| (key, &self.rows[*slot as usize]));
        all.filter(|(_, times)| times.count() != 0)
    }

    /// The keys with the most time, at most so many, the longest first.
    pub fn top(&self, most: usize) -> Vec<(&K, &Times)>
    where
        K: Ord,
    {
        let mut all: Vec<_> = self.iter().collect();
        let by_time = |a: &(&K, &Times), b: &(&K, &Times)| {
            b.1.total_ns().cmp(&a.1.total_ns()).then_with(|| a.0.cmp(b.0))
        };
        if most < all.len() {
            all.select_nth_unstable_by(most, by_time);
            all.truncate(most);
        }
        all.sort_unstable_by(by_time);
        all
    }

    /// The same times by what is made of each key.
    pub fn folded<T: Ord>(&self, make: impl Fn(&K) -> T) -> BTreeMap<T, Times> {
        let mut folded: BTreeMap<T, Times> = BTreeMap::new();
        for (key, times) in self.iter() {
            folded.entry(make(key)).or_default().merge(times);
        }
        folded
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::tally::bucket;

    use super::*;

    fn add(table: &mut Table<u32>, key: u32, ns: u64) {
        let slot = table.slot(key);
        table.add(slot, ns, bucket(ns));
    }

    fn shown(table: &Table<u32>) -> Vec<(u32, u64, u64)> {
        table.top(9).iter().map(|(key, times)| (**key, times.count(), times.total_ns())).collect()
    }

    #[test]
    fn the_longest_come_first_and_no_more_than_asked_for() {
        let mut table = Table::default();
        for (key, ns) in [(1, 5), (2, 7), (1, 1), (3, 7), (4, 100)] {
            add(&mut table, key, ns);
        }
        assert_eq!(shown(&table), [(4, 1, 100), (2, 1, 7), (3, 1, 7), (1, 2, 6)]);
        assert_eq!(table.top(2).iter().map(|(key, _)| **key).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(table.top(0).len(), 0);
        let odd = table.folded(|key| key % 2 == 1);
        assert_eq!((odd[&true].total_ns(), odd[&false].count()), (13, 2));
    }

    #[test]
    fn merging_is_as_if_all_had_come_to_one() {
        let (mut first, mut second, mut whole) =
            (Table::default(), Table::default(), Table::default());
        for n in 0..100 {
            add(if n < 40 { &mut first } else { &mut second }, n % 7, n.into());
            add(&mut whole, n % 7, n.into());
        }
        first.merge(second);
        assert_eq!(shown(&first), shown(&whole));
    }

    #[test]
    fn where_there_are_too_many_keys_the_least_become_one() {
        let mut table = Table { most_keys: 4, ..Table::default() };
        for key in 1..=6 {
            add(&mut table, key, u64::from(key) * 10);
        }
        table.prune();
        assert_eq!(shown(&table), [(6, 1, 60), (5, 1, 50)]);
        let other = table.other().expect("there was no room for four");
        assert_eq!((other.count(), other.total_ns()), (4, 100));
        add(&mut table, 1, 7);
        add(&mut table, 6, 7);
        table.prune();
        assert_eq!(shown(&table), [(6, 2, 67), (5, 1, 50), (1, 1, 7)]);
    }
}
