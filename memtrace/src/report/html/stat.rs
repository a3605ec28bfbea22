//! How many stalls of one key there were, for how long, and how that was spread.

/// Stalls of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// How many.
    pub count: u64,
    /// How long all together, in nanoseconds.
    pub total_ns: u64,
    /// How long the longest, in nanoseconds.
    pub max_ns: u64,
    /// How many in each [`bin`], from the first to the last that has any.
    bins: Vec<u32>,
    /// Which that first one is.
    first: usize,
}

impl Stat {
    /// Counts a stall.
    #[inline]
    pub fn add(&mut self, ns: u64) {
        self.count += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
        self.add_to_bin(bin(ns), 1);
    }

    #[inline]
    fn add_to_bin(&mut self, bin: usize, count: u32) {
        self.widen(bin, bin + 1);
        let counted = &mut self.bins[bin - self.first];
        *counted = counted.saturating_add(count);
    }

    /// Makes sure of the bins from one to before another.
    fn widen(&mut self, from: usize, to: usize) {
        let Self { bins, first, .. } = self;
        if bins.is_empty() {
            *first = from;
        } else if from < *first {
            bins.splice(..0, std::iter::repeat_n(0, *first - from));
            *first = from;
        }
        if to - *first > bins.len() {
            bins.resize(to - *first, 0);
        }
    }

    /// Takes those of another.
    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        if other.bins.is_empty() {
            return;
        }
        self.widen(other.first, other.first + other.bins.len());
        let from = other.first - self.first;
        for (sum, count) in self.bins[from..].iter_mut().zip(&other.bins) {
            *sum = sum.saturating_add(*count);
        }
    }

    /// None again, for others to be counted in the same memory.
    pub fn clear(&mut self) {
        let mut bins = std::mem::take(&mut self.bins);
        bins.clear();
        *self = Self { bins, ..Self::default() };
    }

    /// How long those were at most that are this part of all, in nanoseconds: within a sixteenth, from 1 us to two
    /// minutes.
    pub fn percentile_ns(&self, per_cent: u64) -> u64 {
        let counted: u64 = self.bins.iter().map(|count| u64::from(*count)).sum();
        let wanted = u128::from(counted) * u128::from(per_cent);
        let mut below: u128 = 0;
        let found = self.bins.iter().position(|count| {
            below += u128::from(*count) * 100;
            *count != 0 && below >= wanted
        });
        found.map_or(0, |at| middle_ns(self.first + at)).min(self.max_ns)
    }
}

/// Bins: eight to each doubling, and what is shorter or longer than these in one each.
const OCTAVES: std::ops::Range<u32> = 10..37;
const LAST_BIN: usize = 8 * (OCTAVES.end - OCTAVES.start) as usize + 1;

/// The bin of a latency.
#[inline]
fn bin(ns: u64) -> usize {
    let octave = ns.max(1).ilog2();
    if octave < OCTAVES.start {
        return 0;
    }
    if octave >= OCTAVES.end {
        return LAST_BIN;
    }
    let eighth = usize::from((ns >> (octave - 3)).to_le_bytes()[0] & 7);
    1 + 8 * (octave - OCTAVES.start) as usize + eighth
}

/// The latency in the middle of a bin; beyond the last one whatever there was at most.
fn middle_ns(bin: usize) -> u64 {
    let Some(at) = bin.checked_sub(1) else { return 1 << (OCTAVES.start - 1) };
    if bin >= LAST_BIN {
        return u64::MAX;
    }
    let (octave, eighth) = (at / 8 + OCTAVES.start as usize, at as u64 % 8);
    ((8 + eighth) << (octave - 3)) + (1 << (octave - 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_in_order_and_narrow() {
        let mut latencies: Vec<u64> = (0..64)
            .flat_map(|bit| {
                let power = 1_u64 << bit;
                [power - 1, power, power + power / 3, power + power / 2]
            })
            .chain([u64::MAX])
            .collect();
        latencies.sort_unstable();
        assert!(latencies.is_sorted_by_key(|ns| bin(*ns)));
        let within = |ns: &u64| (1 << 10..1 << 37).contains(ns);
        for ns in latencies.into_iter().filter(within) {
            let middle = middle_ns(bin(ns));
            assert!(middle.abs_diff(ns) <= ns / 16, "{ns}: {middle}");
        }
        assert_eq!((bin(0), bin(1023), bin(1024)), (0, 0, 1));
        assert_eq!(
            (bin((1 << 37) - 1), bin(1 << 37), bin(u64::MAX)),
            (LAST_BIN - 1, LAST_BIN, LAST_BIN)
        );
    }

    #[test]
    fn percentiles_are_of_all_that_was_merged() {
        let (mut all, mut some) = (Stat::default(), Stat::default());
        for ms in 1..=90 {
            all.add(ms * 1_000_000);
        }
        for ms in 91..=100 {
            some.add(ms * 1_000_000);
        }
        all.merge(&some);
        assert_eq!((all.count, all.max_ns), (100, 100_000_000));
        assert_eq!(all.total_ns, 5_050_000_000);
        for (per_cent, expected) in [(50, 50_000_000), (99, 99_000_000), (100, 100_000_000)] {
            let found = all.percentile_ns(per_cent);
            assert!(found.abs_diff(expected) <= expected / 16, "{per_cent}: {found}");
        }
        all.clear();
        assert_eq!(all, Stat::default());
        assert_eq!(all.percentile_ns(50), 0);
    }

    #[test]
    fn bins_come_in_any_order() {
        let mut stat = Stat::default();
        for ns in [1 << 20, 5, 1 << 40, 1 << 15] {
            stat.add(ns);
        }
        assert_eq!((stat.count, stat.bins.iter().sum::<u32>()), (4, 4));
        let mut other = Stat::default();
        other.add(1 << 17);
        other.merge(&stat);
        stat.add(1 << 17);
        assert_eq!(stat, other);
        assert_eq!(stat.percentile_ns(100), 1 << 40);
        assert_eq!(stat.percentile_ns(1), 512);
    }

    #[test]
    fn nothing_overflows() {
        let mut stat = Stat::default();
        stat.add(u64::MAX);
        stat.add(u64::MAX);
        let other = stat.clone();
        stat.merge(&other);
        assert_eq!((stat.count, stat.total_ns, stat.max_ns), (4, u64::MAX, u64::MAX));
        assert!(stat.percentile_ns(99) > u64::MAX / 16 * 15);
    }
}
