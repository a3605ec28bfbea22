//! Times by key: of each cgroup, each order.
//!
//! There is room for so many keys, and so many buckets; once there are more, those with the least time become one.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use foldhash::fast::RandomState;

use super::times::{MOST_FEW, Times};

/// Keys of which each may have all buckets: at 29 KiB each, 30 MiB.
const FEW_KEYS: usize = 1024;
/// Of more keys than these few, there is room for as many buckets as they have where each has a list: what one block
/// adds does not make it more memory than that of the few with all buckets.
const FEW_BUCKETS: usize = MOST_FEW;
/// Most keys, in relation to the few, beside those of one block.
const MOST_KEYS: usize = 64;

/// Times by key.
#[derive(Clone, Debug)]
pub struct Table<K> {
    slots: HashMap<K, u32, RandomState>,
    rows: Vec<Times>,
    /// Those of keys for which there was no room.
    other: Times,
    /// Of all rows.
    width: usize,
    few_keys: usize,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self::for_few(FEW_KEYS)
    }
}

impl<K> Table<K> {
    /// A table of what there are few of: so many keys may have all buckets.
    #[must_use]
    pub fn for_few(few_keys: usize) -> Self {
        Self {
            slots: HashMap::default(),
            rows: Vec::new(),
            other: Times::default(),
            width: 0,
            few_keys,
        }
    }

    /// Whether that part of the room is enough for so many keys, and buckets in all: 1 is all of it, 2 the half.
    fn has_room(&self, part: usize, keys: usize, width: usize) -> bool {
        let few_keys = self.few_keys / part;
        keys <= few_keys || (keys <= few_keys * MOST_KEYS && width <= few_keys * FEW_BUCKETS)
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
        let row = &mut self.rows[slot as usize];
        let width = row.width();
        row.add(duration_ns, bucket);
        self.width += row.width() - width;
    }

    /// Makes room for the keys of another block.
    pub fn prune(&mut self) {
        if self.has_room(1, self.rows.len(), self.width) {
            return;
        }
        let mut rows = std::mem::take(&mut self.rows);
        let mut by_time: Vec<_> = std::mem::take(&mut self.slots).into_iter().collect();
        by_time.sort_unstable_by_key(|(_, slot)| Reverse(rows[*slot as usize].total_ns()));
        self.width = 0;
        let mut is_full = false;
        for (key, slot) in by_time {
            let row = std::mem::take(&mut rows[slot as usize]);
            // Half of it stays free, so that this is seldom done.
            is_full |= !self.has_room(2, self.rows.len() + 1, self.width + row.width());
            if is_full {
                self.other.merge(&row);
            } else {
                let slot = self.slot(key) as usize;
                self.width += row.width();
                self.rows[slot] = row;
            }
        }
    }

    /// Takes the times of later blocks.
    pub fn merge(&mut self, mut later: Self) {
        for (key, slot) in later.slots {
            let times = std::mem::take(&mut later.rows[slot as usize]);
            let slot = self.slot(key) as usize;
            let row = &mut self.rows[slot];
            let width = row.width();
            if row.count() == 0 {
                *row = times;
            } else {
                row.merge(&times);
            }
            self.width += row.width() - width;
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
    use memtrace_common::tally::{self, bucket};

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
        let mut table = Table::for_few(4);
        for key in 1..=260 {
            add(&mut table, key, u64::from(key) * 10);
        }
        table.prune();
        assert_eq!((table.len(), shown(&table)[0]), (2 * MOST_KEYS, (260, 1, 2600)));
        let other = table.other().expect("there was no room for all");
        assert_eq!((other.count(), other.total_ns()), (132, 10 * 132 * 133 / 2));
        add(&mut table, 1, 7);
        add(&mut table, 260, 7);
        table.prune();
        assert_eq!((table.len(), shown(&table)[0]), (2 * MOST_KEYS + 1, (260, 2, 2607)));
    }

    #[test]
    fn memory_has_a_bound_whatever_comes() {
        let all = usize::from(bucket(u64::MAX)) + 1;
        // What one block has: each of its stalls may take one bucket more.
        let block = 65_536;
        let mut table = Table::default();
        let (mut added, mut widest) = (0, 0);
        for round in 0..600_usize {
            // Cgroups by the thousand with stalls of all lengths, so that each has more than a list of buckets.
            for key in 0..4096_u32 {
                let at = (round * 12 + key as usize) % all;
                let at = u16::try_from(at).expect("a bucket");
                let slot = table.slot(key);
                table.add(slot, tally::shortest(at), at);
                added += 1;
                if added % block == 0 {
                    widest = widest.max(table.width);
                    table.prune();
                }
            }
        }
        let widths: usize = table.rows.iter().map(Times::width).sum();
        assert_eq!(widths, table.width);
        assert!(widest <= FEW_KEYS * all + block, "{widest} buckets");
        assert!(table.rows.len() >= FEW_KEYS / 2, "the longest are told apart");
        let all: u64 = table.iter().map(|(_, times)| times.count()).sum();
        assert_eq!(all + table.other().map_or(0, Times::count), added as u64, "none is lost");
    }

    #[test]
    fn few_of_all_lengths_or_many_of_few_are_told_apart() {
        let all = bucket(u64::MAX);
        let mut table = Table::for_few(16);
        for at in 0..=all {
            for key in 0..16 {
                let slot = table.slot(key);
                table.add(slot, tally::shortest(at), at);
            }
            table.prune();
        }
        assert_eq!((table.len(), table.other()), (16, None));
        let mut table = Table::for_few(16);
        for key in 0..1024 {
            for ns in 1..=8 {
                add(&mut table, key, ns);
            }
            table.prune();
        }
        assert_eq!((table.len(), table.other()), (1024, None));
    }
}
