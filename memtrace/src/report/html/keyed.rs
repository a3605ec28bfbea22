//! Stalls by whose they were, as far as there is room: those that were held up the least give way.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

use super::stat::Stat;

/// Most keys that are told apart at a time.
const MOST: usize = 1 << 15;

/// Stalls by key, and what a key is called.
#[derive(Debug)]
pub struct Keyed<K, N> {
    by_key: HashMap<K, (Stat, N), RandomState>,
    /// Those of keys that gave way.
    rest: Stat,
    given_up: u64,
    most: usize,
}

/// The keys that were held up longest.
#[derive(Debug)]
pub struct Top<K, N> {
    /// In order.
    pub rows: Vec<(K, Stat, N)>,
    /// How many others there were; a key that came back counts again.
    pub others: u64,
    /// All of theirs.
    pub rest: Stat,
}

impl<K: Copy + Eq + Hash + Ord, N> Default for Keyed<K, N> {
    fn default() -> Self {
        Self { by_key: HashMap::default(), rest: Stat::default(), given_up: 0, most: MOST }
    }
}

impl<K: Copy + Eq + Hash + Ord, N> Keyed<K, N> {
    /// Takes stalls of a key, by their nanoseconds. Gives what it is called, which is made up if it is new.
    pub fn add(
        &mut self,
        key: K,
        stalls: impl Iterator<Item = u64>,
        make: impl FnOnce() -> N,
    ) -> &mut N {
        if self.by_key.len() >= self.most && !self.by_key.contains_key(&key) {
            self.make_room();
        }
        let (stat, name) = self.by_key.entry(key).or_insert_with(|| (Stat::default(), make()));
        for ns in stalls {
            stat.add(ns);
        }
        name
    }

    /// What a key is called.
    pub fn name(&self, key: &K) -> Option<&N> {
        self.by_key.get(key).map(|(_, name)| name)
    }

    /// The half that was held up the least goes.
    fn make_room(&mut self) {
        let mut order: Vec<_> =
            self.by_key.iter().map(|(key, (stat, _))| (stat.total_ns, *key)).collect();
        let half = order.len() / 2;
        order.select_nth_unstable(half);
        for (_, key) in &order[..half] {
            if let Some((stat, _)) = self.by_key.remove(key) {
                self.rest.merge(&stat);
                self.given_up += 1;
            }
        }
    }

    /// Takes those of another.
    pub fn merge(&mut self, other: Self, mend: impl Fn(&mut N, N)) {
        let Self { by_key, rest, given_up, most: _ } = other;
        self.rest.merge(&rest);
        self.given_up += given_up;
        for (key, (stat, name)) in by_key {
            let mut name = Some(name);
            match self.by_key.get_mut(&key) {
                Some((sum, known)) => {
                    sum.merge(&stat);
                    name.take().into_iter().for_each(|name| mend(known, name));
                }
                None => {
                    self.by_key.extend(name.map(|name| (key, (stat, name))));
                }
            }
        }
        if self.by_key.len() > self.most {
            self.make_room();
        }
    }

    /// Those that were held up longest, so many at most.
    pub fn top(self, most: usize) -> Top<K, N> {
        let Self { by_key, mut rest, given_up, most: _ } = self;
        let mut rows: Vec<_> =
            by_key.into_iter().map(|(key, (stat, name))| (key, stat, name)).collect();
        rows.sort_unstable_by(|(a_key, a, _), (b_key, b, _)| {
            b.total_ns.cmp(&a.total_ns).then(a_key.cmp(b_key))
        });
        let others = given_up + rows.len().saturating_sub(most) as u64;
        for (_, stat, _) in rows.iter().skip(most) {
            rest.merge(stat);
        }
        rows.truncate(most);
        Top { rows, others, rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_held_up_longest_stay_and_nothing_is_lost() {
        let mut keyed = Keyed { most: 10, ..Keyed::default() };
        let mut sum = 0;
        for round in 0..100_u64 {
            for (key, ns) in [(1, 1000), (2, 900), (100 + round, round)] {
                keyed.add(key, [ns].into_iter(), || key);
                sum += ns;
            }
        }
        let top = keyed.top(2);
        assert_eq!(
            top.rows.iter().map(|row| (row.0, row.1.count)).collect::<Vec<_>>(),
            [(1, 100), (2, 100)]
        );
        let shown: u64 = top.rows.iter().map(|row| row.1.total_ns).sum();
        assert_eq!(shown + top.rest.total_ns, sum);
        assert_eq!((top.others, top.rest.count), (100, 100));
    }

    #[test]
    fn the_same_key_is_one_after_a_merge() {
        let (mut one, mut two) = (Keyed::default(), Keyed::default());
        one.add(1, [2, 3].into_iter(), || "old");
        two.add(1, [7].into_iter(), || "new");
        two.add(2, [1].into_iter(), || "other");
        one.merge(two, |known, new| *known = new);
        assert_eq!(one.name(&1), Some(&"new"));
        let rows: Vec<_> =
            one.top(9).rows.into_iter().map(|(key, stat, _)| (key, stat.total_ns)).collect();
        assert_eq!(rows, [(1, 12), (2, 1)]);
    }
}
