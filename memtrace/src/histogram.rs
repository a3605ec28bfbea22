//! Latency histograms of stalls, one for each key: aggregation only, [`crate::view`] shows them.
//!
//! Memory is bounded by the number of keys and the range of the percentiles; whatever falls outside
//! of either is counted and can be told apart.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::mem;

use hdrhistogram::Histogram;
use memtrace_common::tally::{self, Tally};

use crate::episode::Episode;
use crate::kind::Kind;
use crate::stall::{Cause, Comm, Detail, ReclaimKind, Stall};

/// What stalls are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The thread.
    Thread,
    /// The process.
    Process,
    /// The thread's name.
    Comm,
    /// The cgroup that the thread's memory is charged to.
    Cgroup,
    /// The thread's real user id.
    Uid,
    /// Kind of reclaim or cause of compaction.
    Kind,
    /// Order of the allocation.
    Order,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Thread, Self::Process, Self::Comm, Self::Cgroup, Self::Uid, Self::Kind, Self::Order];

    /// Its name in options and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Process => "process",
            Self::Comm => "comm",
            Self::Cgroup => "cgroup",
            Self::Uid => "uid",
            Self::Kind => "kind",
            Self::Order => "order",
        }
    }
}

/// Whose stalls one histogram holds. A process goes by its pid; its name comes along to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the fields are those of `Stall`")]
pub enum Key {
    Thread {
        tid: u32,
        pid: u32,
        comm: Comm,
    },
    Process {
        pid: u32,
        comm: Comm,
    },
    Comm(Comm),
    Cgroup(Option<u64>),
    Uid(u32),
    Kind(ReclaimKind),
    Cause(Cause),
    StallKind(Kind),
    Order(Option<i32>),
    /// Every key that came after the greatest number of keys was reached.
    Other,
}

/// Stalls of one key that lasted about as long, counted by the source they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tallied {
    /// Whose they are.
    pub key: Key,
    /// The [`bucket`](tally::bucket) of all of them; none exceeds [`Times::MAX_NS`].
    pub bucket: u16,
    /// How many, and how long.
    pub tally: Tally,
}

/// One histogram for each key.
#[derive(Debug)]
pub struct Histograms {
    by: By,
    max_keys: usize,
    /// Boxed, as half of a table may be empty.
    known: HashMap<Key, Box<Times>>,
    /// Names of the processes in `known`, as they were first.
    processes: HashMap<u32, Comm>,
    other: Times,
}

impl Histograms {
    /// Room for `max_keys` keys; the stalls of all later keys go together.
    #[must_use]
    pub fn new(by: By, max_keys: usize) -> Self {
        Self { by, max_keys, known: HashMap::new(), processes: HashMap::new(), other: Times::new() }
    }

    /// What stalls are told apart by.
    #[must_use]
    pub fn by(&self) -> By {
        self.by
    }

    /// How many keys there is room for.
    #[must_use]
    pub fn max_keys(&self) -> usize {
        self.max_keys
    }

    /// Counts a stall. A process goes by the name that it had first.
    pub fn record(&mut self, stall: &Stall) {
        let key = match self.by {
            By::Thread => Key::Thread { tid: stall.tid, pid: stall.pid, comm: stall.comm },
            By::Process => Key::Process { pid: stall.pid, comm: stall.comm },
            By::Comm => Key::Comm(stall.comm),
            By::Cgroup => Key::Cgroup(stall.cgroup_id),
            By::Uid => Key::Uid(stall.uid),
            By::Kind => match &stall.detail {
                Detail::Reclaim(reclaim) => Key::Kind(reclaim.kind),
                Detail::Compaction(compaction) => Key::Cause(compaction.cause),
            },
            By::Order => Key::Order(stall.order),
        };
        self.times(key).add(tally::bucket(stall.duration_ns), &Tally::one(stall.duration_ns));
    }

    /// Counts an episode likewise.
    pub fn record_episode(&mut self, episode: &Episode) {
        let Episode { tid, pid, uid, comm, cgroup_id, kind, order, duration_ns, .. } = *episode;
        let key = match self.by {
            By::Thread => Key::Thread { tid, pid, comm },
            By::Process => Key::Process { pid, comm },
            By::Comm => Key::Comm(comm),
            By::Cgroup => Key::Cgroup(cgroup_id),
            By::Uid => Key::Uid(uid),
            By::Kind => Key::StallKind(kind),
            By::Order => Key::Order(order),
        };
        self.times(key).add(tally::bucket(duration_ns), &Tally::one(duration_ns));
    }

    /// Adds stalls that were counted elsewhere.
    pub fn add(&mut self, tallied: &Tallied) {
        self.times(tallied.key).add(tallied.bucket, &tallied.tally);
    }

    fn times(&mut self, mut key: Key) -> &mut Times {
        let full = self.known.len() >= self.max_keys;
        if let Key::Process { pid, comm } = &mut key {
            match self.processes.entry(*pid) {
                Entry::Occupied(known) => *comm = *known.get(),
                Entry::Vacant(_) if full => return &mut self.other,
                Entry::Vacant(new) => drop(new.insert(*comm)),
            }
        }
        match self.known.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if full => &mut self.other,
            Entry::Vacant(new) => new.insert(Box::new(Times::new())),
        }
    }

    /// Whether nothing was recorded since the last [`take`](Self::take).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.other.count == 0
    }

    /// Takes all keys, the longest total time first, and starts from nothing.
    #[must_use]
    pub fn take(&mut self) -> Vec<(Key, Box<Times>)> {
        self.processes.clear();
        let other = mem::replace(&mut self.other, Times::new());
        let other = (other.count > 0).then(|| (Key::Other, Box::new(other)));
        let mut all: Vec<_> = self.known.drain().chain(other).collect();
        all.sort_unstable_by(|(a_key, a), (b_key, b)| {
            b.total_ns.cmp(&a.total_ns).then_with(|| a_key.cmp(b_key))
        });
        all
    }
}

/// How long the stalls of one key lasted.
#[derive(Debug)]
pub struct Times {
    count: u64,
    /// 2^64 times of 2^64 ns fit.
    total_ns: u128,
    min_ns: u64,
    max_ns: u64,
    clamped: u64,
    /// An HDR histogram without its empty buckets: most threads' stalls are in a few dozen of
    /// thousands.
    buckets: BTreeMap<u16, u64>,
}

/// The times of one key as a histogram with percentiles.
#[derive(Debug)]
pub struct Percentiles {
    histogram: Histogram<u64>,
    max_ns: u64,
}

impl Percentiles {
    /// The time that `quantile` (0 to 1) of all stalls did not exceed, at most 1 % too long.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        // A bucket reaches beyond the longest time in it.
        self.histogram.value_at_quantile(quantile).min(self.max_ns)
    }

    /// The histogram in nanoseconds.
    #[must_use]
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

/// One row of a histogram by powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whole microseconds of its shortest stall.
    pub low_us: u64,
    /// Whole microseconds of its longest stall.
    pub high_us: u64,
    /// Number of stalls.
    pub count: u64,
}

impl Times {
    /// Percentiles reach up to one hour, in fewer than 4608 buckets of some 20 bytes for each key.
    pub const MAX_NS: u64 = tally::LONGEST_NS;
    /// Makes the relative error of percentiles at most 1/128.
    const DIGITS: u8 = 2;

    fn new() -> Self {
        Self {
            count: 0,
            total_ns: 0,
            min_ns: u64::MAX,
            max_ns: 0,
            clamped: 0,
            buckets: BTreeMap::new(),
        }
    }

    /// Adds stalls of one bucket: one, or several that are within [`MAX_NS`](Self::MAX_NS).
    fn add(&mut self, bucket: u16, tally: &Tally) {
        let Tally { count, total_ns, min_ns, max_ns } = *tally;
        self.count += count;
        self.total_ns += u128::from(total_ns);
        self.min_ns = self.min_ns.min(min_ns);
        self.max_ns = self.max_ns.max(max_ns);
        self.clamped += if min_ns > Self::MAX_NS { count } else { 0 };
        *self.buckets.entry(bucket).or_default() += count;
    }

    /// Number of stalls.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their time together.
    #[must_use]
    pub fn total_ns(&self) -> u128 {
        self.total_ns
    }

    /// Their mean, without the fraction.
    #[must_use]
    pub fn mean_ns(&self) -> u64 {
        let mean = self.total_ns / u128::from(self.count.max(1));
        u64::try_from(mean).unwrap_or(u64::MAX)
    }

    /// The shortest.
    #[must_use]
    pub fn min_ns(&self) -> u64 {
        self.min_ns
    }

    /// The longest.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// How many stalls were longer than [`MAX_NS`](Self::MAX_NS). They count as that long in the
    /// percentiles, and only there.
    #[must_use]
    pub fn clamped(&self) -> u64 {
        self.clamped
    }

    /// The percentiles.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        Percentiles { histogram: self.histogram(), max_ns: self.max_ns }
    }

    fn histogram(&self) -> Histogram<u64> {
        let mut histogram = Histogram::new(Self::DIGITS).expect("up to 5 digits are allowed");
        let last = tally::bucket(Self::MAX_NS);
        for (&bucket, &count) in &self.buckets {
            let ns = tally::shortest(bucket.min(last));
            histogram.record_n(ns, count).expect("it grows up to any value");
        }
        histogram
    }

    /// The rows by powers of two, from the first to the last with a stall in it.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        let mut counts: Vec<u64> = Vec::new();
        for (&bucket, &count) in &self.buckets {
            // No bucket lies across a power of two of whole microseconds.
            let power = (tally::shortest(bucket) / 1000).checked_ilog2().unwrap_or(0) as usize;
            counts.resize(counts.len().max(power + 1), 0);
            counts[power] += count;
        }
        counts.into_iter().zip(0_u32..).map(|(count, power)| Slot {
            low_us: if power == 0 { 0 } else { 1 << power },
            high_us: (2 << power) - 1,
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::tally::{bucket, shortest};

    use super::*;
    use crate::stall::Reclaim;

    fn stall(tid: u32, duration_ns: u64) -> Stall {
        Stall {
            start_ns: 0,
            duration_ns,
            pid: tid / 10,
            tid,
            uid: 0,
            cpu: 0,
            comm: comm(b"thread"),
            order: None,
            gfp: None,
            cgroup_id: None,
            detail: Detail::Reclaim(Reclaim {
                kind: ReclaimKind::Direct,
                limit: None,
                nr_scanned: None,
                nr_reclaimed: 0,
                compaction_ready: false,
                priority: None,
                target_cgroup_id: None,
                free_pages: None,
                node: None,
            }),
            stack: Vec::new(),
            user_stack: Vec::new(),
        }
    }

    fn comm(name: &[u8]) -> Comm {
        let mut bytes = [0; Comm::LEN];
        bytes[..name.len()].copy_from_slice(name);
        Comm::new(bytes)
    }

    fn times(values: &[u64]) -> Times {
        let mut times = Times::new();
        for &ns in values {
            times.add(bucket(ns), &Tally::one(ns));
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
        values.take(count).map(|ns| ns.min(Times::MAX_NS)).collect()
    }

    #[test]
    fn percentiles_are_exact_to_one_percent() {
        for count in [1, 2, 3, 10, 99, 1000, 100_003] {
            let mut values = spread(count);
            let percentiles = times(&values).percentiles();
            values.sort_unstable();
            for (numerator, denominator, quantile) in
                [(1, 2, 0.5), (9, 10, 0.9), (99, 100, 0.99), (999, 1000, 0.999), (1, 1, 1.0)]
            {
                let exact = values[(count * numerator).div_ceil(denominator) - 1];
                let found = percentiles.quantile_ns(quantile);
                assert!(
                    found >= exact && (found - exact) * 100 <= exact,
                    "{quantile} of {count}: {found}, exact {exact}"
                );
            }
        }
    }

    #[test]
    fn count_total_and_limits_are_exact() {
        let times = times(&[u64::MAX, u64::MAX, 7]);
        assert_eq!(times.count(), 3);
        assert_eq!(times.total_ns(), 2 * u128::from(u64::MAX) + 7);
        assert_eq!(times.mean_ns(), 12_297_829_382_473_034_412);
        assert_eq!((times.min_ns(), times.max_ns()), (7, u64::MAX));
        assert_eq!(times.percentiles().quantile_ns(0.1), 7);
    }

    #[test]
    fn no_percentile_exceeds_the_longest() {
        let times = times(&[1_000_003]);
        assert_eq!(times.percentiles().quantile_ns(0.999), 1_000_003);
    }

    #[test]
    fn what_percentiles_cannot_hold_is_counted() {
        let times = times(&[Times::MAX_NS, Times::MAX_NS + 1, u64::MAX]);
        assert_eq!(times.clamped(), 2);
        assert_eq!(times.max_ns(), u64::MAX);
        assert!(times.percentiles().histogram().max() < Times::MAX_NS / 100 * 101);
        assert!(bucket(Times::MAX_NS) < 4608, "the documented size");
    }

    #[test]
    fn percentiles_are_those_of_a_histogram_with_every_bucket() {
        let values = spread(100_003);
        let mut whole = Histogram::<u64>::new(Times::DIGITS).expect("two digits");
        for &ns in &values {
            whole.record(ns).expect("it grows");
            let shortest = shortest(bucket(ns));
            assert!(shortest <= ns && whole.equivalent(shortest, ns), "{ns} and {shortest}");
        }
        assert_eq!(*times(&values).percentiles().histogram(), whole);
        assert_eq!(shortest(bucket(u64::MAX)), 255 << 56);
    }

    #[test]
    fn slots_are_whole_microseconds_by_powers_of_two() {
        let slot = |low_us, high_us, count| Slot { low_us, high_us, count };
        let slots = |values: &[u64]| times(values).slots().collect::<Vec<_>>();
        assert_eq!(slots(&[]), []);
        assert_eq!(slots(&[0, 999, 1_000, 1_999]), [slot(0, 1, 4)]);
        assert_eq!(
            slots(&[2_000, 3_999, 4_000, 7_999, 8_000]),
            [slot(0, 1, 0), slot(2, 3, 2), slot(4, 7, 2), slot(8, 15, 1)]
        );
        let last = slots(&[u64::MAX]).pop();
        assert_eq!(last, Some(slot(1 << 54, (1 << 55) - 1, 1)));
    }

    #[test]
    fn keys_beyond_the_limit_go_together() {
        let mut histograms = Histograms::new(By::Thread, 2);
        for (tid, ns) in [(1, 10), (2, 500), (3, 100), (4, 200), (1, 20)] {
            histograms.record(&stall(tid, ns));
        }
        let found: Vec<_> = histograms
            .take()
            .into_iter()
            .map(|(key, times)| (key, times.count(), times.total_ns()))
            .collect();
        let thread = |tid| Key::Thread { tid, pid: 0, comm: comm(b"thread") };
        assert_eq!(found, [(thread(2), 1, 500), (Key::Other, 2, 300), (thread(1), 2, 30)]);

        assert!(histograms.is_empty());
        assert_eq!(histograms.take().len(), 0);
        histograms.record(&stall(3, 1));
        assert_eq!(histograms.take()[0].0, thread(3), "there is room again");
    }

    #[test]
    fn no_keys_at_all_is_a_limit_too() {
        for by in By::ALL {
            let mut histograms = Histograms::new(by, 0);
            histograms.record(&stall(1, 10));
            assert!(!histograms.is_empty());
            assert_eq!(histograms.take()[0].0, Key::Other);
        }
    }

    #[test]
    fn a_process_goes_by_its_first_name() {
        let named = |tid, name| Stall { comm: comm(name), ..stall(tid, 1) };
        let mut histograms = Histograms::new(By::Process, 2);
        for (tid, name) in [(10, b"old"), (11, b"new"), (20, b"two"), (30, b"six"), (10, b"new")] {
            histograms.record(&named(tid, name));
        }
        let keys: Vec<_> =
            histograms.take().into_iter().map(|(key, times)| (key, times.count())).collect();
        let process = |pid, name| Key::Process { pid, comm: comm(name) };
        assert_eq!(keys, [(process(1, b"old"), 3), (process(2, b"two"), 1), (Key::Other, 1)]);

        histograms.record(&named(10, b"new"));
        assert_eq!(histograms.take()[0].0, process(1, b"new"));
    }

    #[test]
    fn stalls_counted_elsewhere_count_as_if_each_came() {
        let values = [2_000, 2_001, 2_005, 2_006];
        let mut tally = Tally::one(values[0]);
        for &ns in &values[1..] {
            tally.add(ns);
        }
        let (mut each, mut together) =
            (Histograms::new(By::Thread, 9), Histograms::new(By::Thread, 9));
        for ns in values {
            each.record(&stall(1, ns));
        }
        let each = each.take();
        let key = each[0].0;
        together.add(&Tallied { key, bucket: bucket(2_000), tally });
        assert!(values.iter().all(|&ns| bucket(ns) == bucket(2_000)));
        assert_eq!(format!("{:?}", together.take()), format!("{each:?}"));
    }
}
