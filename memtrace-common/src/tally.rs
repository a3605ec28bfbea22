//! Histograms that the probes keep: what the map `TALLIES` counts stalls by, and what it keeps of
//! them. User space empties it.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::record::Comm;

/// Values of [`crate::config::Config::by`]: what stalls are told apart by.
pub mod by {
    /// They are delivered each.
    pub const NOTHING: u32 = 0;
    /// Thread: `pid << 32 | tid`, and the thread's name.
    pub const THREAD: u32 = 1;
    /// Process: its id and its name.
    pub const PROCESS: u32 = 2;
    /// The thread's name.
    pub const COMM: u32 = 3;
    /// Id of the cgroup that the thread is charged to.
    pub const CGROUP: u32 = 4;
    /// The thread's real user id.
    pub const UID: u32 = 5;
    /// One of [`crate::config::kind`], or of [`crate::record::cause`] for a compaction.
    pub const KIND: u32 = 6;
    /// The order, as 64 bits with a sign.
    pub const ORDER: u32 = 7;
}

/// Longer stalls are delivered each: an hour, which is what the percentiles of histograms reach up to.
pub const LONGEST_NS: u64 = 3_600_000_000_000;

/// In the place of an id: not known.
pub const UNKNOWN: u64 = i64::MIN.cast_unsigned();

/// Which stalls are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Key {
    /// What [`by`] says.
    pub id: u64,
    /// A name, ended by a zero byte; zeros where names are not told apart.
    pub comm: Comm,
    /// Counts up as user space asks for what there is: entries of a past epoch do not change.
    pub epoch: u32,
    /// The [`bucket`] of their durations.
    pub bucket: u16,
    /// The CPU on which they ended, so that no two write to an entry at once; 0 where that cannot be
    /// as all are one thread's.
    pub cpu: u16,
}

/// What is kept of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Tally {
    /// How many there are.
    pub count: u64,
    /// Their durations together, in nanoseconds; beyond 2^64 it starts again at 0.
    pub total_ns: u64,
    /// The shortest.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Tally {
    /// One stall.
    #[must_use]
    pub const fn one(duration_ns: u64) -> Self {
        Self { count: 1, total_ns: duration_ns, min_ns: duration_ns, max_ns: duration_ns }
    }

    /// Counts another stall.
    #[inline]
    pub fn add(&mut self, duration_ns: u64) {
        self.count = self.count.wrapping_add(1);
        self.total_ns = self.total_ns.wrapping_add(duration_ns);
        self.min_ns = self.min_ns.min(duration_ns);
        self.max_ns = self.max_ns.max(duration_ns);
    }
}

/// Buckets for each power of two, as those of an HDR histogram of two significant digits: half of
/// what tells twice its 100 values apart.
pub const BUCKETS: u64 = 128;

/// The bucket of a duration in nanoseconds: up to 255 each has its own, and of all others the first
/// 8 bits count. Below 7424 for any.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "below 64 times 128")]
pub const fn bucket(ns: u64) -> u16 {
    let shift = (ns | BUCKETS).ilog2() - BUCKETS.ilog2();
    (shift as u64 * BUCKETS + (ns >> shift)) as u16
}

/// The shortest duration of a bucket, in nanoseconds.
#[must_use]
pub const fn shortest(bucket: u16) -> u64 {
    let (power, rest) = (bucket as u64 / BUCKETS, bucket as u64 % BUCKETS);
    match power {
        0 => rest,
        _ => (BUCKETS + rest) << (power - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last bucket.
    const LAST: u16 = 7423;

    #[test]
    fn buckets_of_durations() {
        let buckets = [
            (0, 0),
            (1, 1),
            (127, 127),
            (128, 128),
            (255, 255),
            (256, 256),
            (257, 256),
            (258, 257),
            (511, 383),
            (512, 384),
            // 209 times 2^34, and some more.
            (LONGEST_NS, 34 * 128 + 209),
            (u64::MAX, LAST),
        ];
        for (ns, expected) in buckets {
            assert_eq!(bucket(ns), expected, "{ns} ns");
        }
    }

    #[test]
    fn shortest_durations_of_buckets() {
        let durations = [
            (0, 0),
            (127, 127),
            (128, 128),
            (255, 255),
            (256, 256),
            (257, 258),
            (384, 512),
            (34 * 128 + 209, 209 << 34),
            (LAST, 255 << 56),
        ];
        for (bucket, ns) in durations {
            assert_eq!(shortest(bucket), ns, "bucket {bucket}");
        }
    }

    #[test]
    fn buckets_follow_one_another_without_a_gap() {
        for number in 0..=LAST {
            let first = shortest(number);
            let last = if number == LAST { u64::MAX } else { shortest(number + 1) - 1 };
            assert!(first <= last, "bucket {number}");
            for ns in [first, first.midpoint(last), last] {
                assert_eq!(bucket(ns), number, "{ns} ns");
            }
        }
    }

    #[test]
    fn a_bucket_tells_its_durations_to_a_128th() {
        for power in 0..u64::BITS {
            let ns = 1_u64 << power;
            for ns in [ns - 1, ns, ns | 1, ns | ns >> 1, ns | ns >> 8, ns | (ns - 1)] {
                let least = shortest(bucket(ns));
                assert!(least <= ns, "{ns} ns is told as {least}");
                assert!(ns - least <= ns / BUCKETS, "{ns} ns is told as {least}");
            }
        }
    }
}
