//! How long the stalls of one thread, cgroup or kind lasted: their number, their time together, and percentiles.
//!
//! There may be tens of thousands of cgroups that stalled a hundred times each, and a kind with millions of stalls: few
//! buckets are a sorted list, many are a range of counts.

use memtrace_common::tally;

/// Most buckets that are a list: of more, a range seldom takes more memory, and no search.
pub const MOST_FEW: usize = 512;

/// How many stalls there were, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub count: u64,
    /// Their time together, in nanoseconds; no more than 2^64 - 1.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Sum {
    /// One stall.
    #[must_use]
    pub fn one(duration_ns: u64) -> Self {
        Self { count: 1, total_ns: duration_ns, max_ns: duration_ns }
    }

    /// Adds other stalls.
    #[inline]
    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

/// How long stalls lasted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    sum: Sum,
    buckets: Buckets,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Buckets {
    /// Bucket and count, sorted.
    Few(Vec<(u16, u32)>),
    /// The counts of the buckets from the first on.
    Many(u16, Vec<u32>),
}

impl Default for Buckets {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Times {
    /// Adds a stall, whose [`bucket`](tally::bucket) the caller knows.
    #[inline]
    pub fn add(&mut self, duration_ns: u64, bucket: u16) {
        self.sum.merge(&Sum::one(duration_ns));
        self.buckets.add(bucket, 1);
    }

    /// Adds other stalls.
    pub fn merge(&mut self, other: &Self) {
        self.sum.merge(&other.sum);
        other.buckets.each(|bucket, count| self.buckets.add(bucket, count));
    }

    /// Adds the time of stalls, whose buckets come by themselves.
    pub fn add_sum(&mut self, sum: &Sum) {
        self.sum.merge(sum);
    }

    /// Adds the bucket of so many stalls, whose time comes by itself.
    pub fn add_bucket(&mut self, bucket: u16, count: u32) {
        self.buckets.add(bucket, count);
    }

    /// How many buckets it takes memory for, of at most eight bytes each.
    #[must_use]
    #[inline]
    pub fn width(&self) -> usize {
        match &self.buckets {
            Buckets::Few(list) => list.len(),
            Buckets::Many(_, counts) => counts.len(),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.sum.count
    }

    /// Their time together, in nanoseconds; no more than 2^64 - 1.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.sum.total_ns
    }

    /// The longest, in nanoseconds.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.sum.max_ns
    }

    /// What so many of 1,000 stalls did not exceed, in nanoseconds: at most 1 % too long, and never beyond the longest.
    #[must_use]
    pub fn quantile_ns(&self, of_1000: u64) -> u64 {
        let rank = (u128::from(self.sum.count) * u128::from(of_1000)).div_ceil(1000).max(1);
        let (mut seen, mut found) = (0, None);
        self.buckets.each(|bucket, count| {
            seen += u128::from(count);
            if seen >= rank && found.is_none() {
                found = Some(longest(bucket));
            }
        });
        found.unwrap_or(u64::MAX).min(self.sum.max_ns)
    }
}

impl Buckets {
    #[inline]
    fn add(&mut self, bucket: u16, count: u32) {
        match self {
            Self::Many(first, counts) => {
                let index = usize::from(bucket.wrapping_sub(*first));
                match counts.get_mut(index) {
                    Some(sum) => *sum = sum.saturating_add(count),
                    None => extend(first, counts, bucket, count),
                }
            }
            Self::Few(list) => {
                if !add_to_list(list, bucket, count) {
                    self.spread();
                    self.add(bucket, count);
                }
            }
        }
    }

    /// Makes a range of the list.
    #[cold]
    fn spread(&mut self) {
        let mut many = Self::Many(0, Vec::new());
        self.each(|bucket, count| many.add(bucket, count));
        *self = many;
    }

    /// Those that are not empty, in order.
    fn each(&self, mut each: impl FnMut(u16, u32)) {
        match self {
            Self::Few(list) => list.iter().for_each(|&(bucket, count)| each(bucket, count)),
            Self::Many(first, counts) => {
                let filled = (*first..).zip(counts).filter(|(_, count)| **count != 0);
                filled.for_each(|(bucket, &count)| each(bucket, count));
            }
        }
    }
}

/// Whether there was room.
#[inline]
fn add_to_list(list: &mut Vec<(u16, u32)>, bucket: u16, count: u32) -> bool {
    match list.binary_search_by_key(&bucket, |(known, _)| *known) {
        Ok(at) => {
            list[at].1 = list[at].1.saturating_add(count);
            true
        }
        Err(at) if list.len() < MOST_FEW => {
            list.insert(at, (bucket, count));
            true
        }
        Err(_) => false,
    }
}

/// Makes a range reach to a bucket outside of it.
#[cold]
fn extend(first: &mut u16, counts: &mut Vec<u32>, bucket: u16, count: u32) {
    if counts.is_empty() {
        *first = bucket;
    }
    if bucket < *first {
        let missing = usize::from(*first - bucket);
        counts.splice(..0, std::iter::repeat_n(0, missing));
        *first = bucket;
    }
    let index = usize::from(bucket - *first);
    if index >= counts.len() {
        counts.resize(index + 1, 0);
    }
    counts[index] = counts[index].saturating_add(count);
}

/// The longest duration of a bucket, in nanoseconds.
fn longest(bucket: u16) -> u64 {
    let next = bucket + 1;
    if next > tally::bucket(u64::MAX) { u64::MAX } else { tally::shortest(next) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(values: &[u64]) -> Times {
        let mut times = Times::default();
        for &ns in values {
            times.add(ns, tally::bucket(ns));
        }
        times
    }

    /// Spread over many orders of magnitude, as stalls are.
    fn spread(count: usize) -> Vec<u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let values = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 22) >> (state % 41)
        });
        values.take(count).collect()
    }

    #[test]
    fn percentiles_are_exact_to_one_percent() {
        for count in [1, 2, 3, 10, 99, 1000, 100_003] {
            let mut values = spread(count);
            let times = times(&values);
            values.sort_unstable();
            assert_eq!(times.count(), count as u64);
            assert_eq!(times.total_ns(), values.iter().sum::<u64>());
            assert_eq!(times.max_ns(), values[count - 1]);
            for of_1000 in [500, 900, 990, 999, 1000] {
                let rank = (count * usize::try_from(of_1000).expect("small")).div_ceil(1000);
                let (exact, found) = (values[rank - 1], times.quantile_ns(of_1000));
                assert!(
                    found >= exact && (found - exact) * 100 <= exact,
                    "{of_1000} of {count}: {found}, exact {exact}"
                );
            }
        }
    }

    #[test]
    fn merging_is_as_if_each_had_come() {
        let values = spread(50_000);
        for at in [0, 1, 100, 300, 25_000] {
            let (before, after) = values.split_at(at);
            let mut sum = times(before);
            sum.merge(&times(after));
            let whole = times(&values);
            assert_eq!(sum.sum, whole.sum);
            for of_1000 in [0, 1, 10, 500, 990] {
                assert_eq!(sum.quantile_ns(of_1000), whole.quantile_ns(of_1000));
            }
        }
    }

    #[test]
    fn very_many_of_one_bucket() {
        let times = times(&vec![5_000; 200_000]);
        assert_eq!((times.count(), times.total_ns()), (200_000, 1_000_000_000));
        assert_eq!((times.quantile_ns(1), times.quantile_ns(999)), (5_000, 5_000));
        let mut twice = times.clone();
        twice.merge(&times);
        let mut counted = 0;
        twice.buckets.each(|_, count| counted += count);
        assert_eq!(counted, 400_000);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let times = times(&[u64::MAX, 0, u64::MAX]);
        assert_eq!((times.count(), times.total_ns(), times.max_ns()), (3, u64::MAX, u64::MAX));
        assert_eq!((times.quantile_ns(100), times.quantile_ns(990)), (0, u64::MAX));
        assert_eq!(Times::default().quantile_ns(990), 0);
    }

    #[test]
    fn a_range_grows_both_ways() {
        let mut times = times(&(0..1000).map(|n| 1_000_000 + 20_000 * n).collect::<Vec<_>>());
        assert!(matches!(times.buckets, Buckets::Few(_)));
        for ns in (0..2_000_u64).map(|n| n * n * n * 10) {
            times.add(ns, tally::bucket(ns));
        }
        assert!(matches!(times.buckets, Buckets::Many(0, _)));
        let mut counted = 0;
        times.buckets.each(|_, count| counted += count);
        assert_eq!(counted, 3_000);
    }
}
