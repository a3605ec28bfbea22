//! Time of day for the kernel's monotonic times.

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of all stalls.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let [seconds, nanoseconds] = [now.tv_sec, now.tv_nsec].map(|n| u64::try_from(n).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Turns nanoseconds of `CLOCK_MONOTONIC` into time of day.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// Time of day when `CLOCK_MONOTONIC` was zero.
    epoch: Timestamp,
}

impl WallClock {
    /// Compares the two clocks as they stand now. Take a new one now and then: the time of day can
    /// be set.
    #[must_use]
    pub fn now() -> Self {
        let monotonic = clock_gettime(ClockId::Monotonic);
        let since =
            SignedDuration::new(monotonic.tv_sec, i32::try_from(monotonic.tv_nsec).unwrap_or(0));
        Self { epoch: Timestamp::now().saturating_sub(since).unwrap_or(Timestamp::UNIX_EPOCH) }
    }

    /// A clock whose zero is at `epoch`.
    #[must_use]
    pub fn from_epoch(epoch: Timestamp) -> Self {
        Self { epoch }
    }

    /// Time of day when `CLOCK_MONOTONIC` was zero.
    #[must_use]
    pub fn epoch(&self) -> Timestamp {
        self.epoch
    }

    /// Time of day at `ns` nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn at(&self, ns: u64) -> Timestamp {
        let since = SignedDuration::from_nanos(i64::try_from(ns).unwrap_or(i64::MAX));
        self.epoch.saturating_add(since).unwrap_or(Timestamp::MAX)
    }
}
