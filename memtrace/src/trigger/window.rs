//! Stalls within a window that moves on with time, a tenth of it at a time.

use memtrace_common::tally::{LONGEST_NS, bucket, shortest};

use super::Percentile;

/// Parts that a window has.
const PARTS: usize = 10;
/// These, and the one in which stalls end now.
const SLOTS: usize = PARTS + 1;

/// Counts of the stalls that have ended in the last while.
#[derive(Debug)]
pub struct Window {
    /// How long each slot is, in nanoseconds.
    slot_ns: u64,
    /// When the newest slot began.
    begin_ns: u64,
    /// The newest one's number; slots are counted from the zero of the clock, and each is at its number modulo
    /// [`SLOTS`].
    newest: u64,
    slots: [Slot; SLOTS],
    /// Stalls that are longer are counted by their length as well.
    limit_ns: u64,
}

#[derive(Debug)]
struct Slot {
    stalls: u64,
    over: u64,
    /// Of those over the limit, by their bucket, from the limit's on.
    buckets: Box<[u32]>,
}

/// How long the stalls of a window were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The percentile in nanoseconds, at most 1 % too long.
    pub was_ns: u64,
    /// How many stalls there were.
    pub stalls: u64,
}

impl Window {
    /// A window for percentiles that are over `limit_ns`.
    pub fn of_times(window_ns: u64, limit_ns: u64) -> Self {
        let first = bucket(limit_ns.min(LONGEST_NS));
        Self::new(window_ns, limit_ns, usize::from(bucket(LONGEST_NS) - first) + 1)
    }

    /// A window for rates.
    pub fn of_counts(window_ns: u64) -> Self {
        Self::new(window_ns, u64::MAX, 0)
    }

    fn new(window_ns: u64, limit_ns: u64, buckets: usize) -> Self {
        let empty = || Slot { stalls: 0, over: 0, buckets: vec![0; buckets].into() };
        Self {
            slot_ns: (window_ns / PARTS as u64).max(1),
            begin_ns: 0,
            newest: 0,
            slots: std::array::from_fn(|_| empty()),
            limit_ns,
        }
    }

    /// Counts a stall; says whether with it a slot is over.
    #[inline]
    pub fn count(&mut self, end_ns: u64, duration_ns: u64) -> bool {
        // Nearly all end in the newest slot, and a division takes long.
        let is_newest = end_ns.wrapping_sub(self.begin_ns) < self.slot_ns;
        let moved = !is_newest && self.move_to(end_ns);
        let number = if is_newest || moved { self.newest } else { end_ns / self.slot_ns };
        if self.newest - number >= SLOTS as u64 {
            return false;
        }
        let slot = &mut self.slots[place(number)];
        slot.stalls += 1;
        if duration_ns > self.limit_ns {
            slot.over += 1;
            let first = bucket(self.limit_ns.min(LONGEST_NS));
            let count = &mut slot.buckets[usize::from(bucket(duration_ns.min(LONGEST_NS)) - first)];
            *count = count.saturating_add(1);
        }
        moved
    }

    /// Moves on to this time; says whether a slot is over.
    pub fn move_to(&mut self, now_ns: u64) -> bool {
        let number = now_ns / self.slot_ns;
        if number <= self.newest {
            return false;
        }
        let new = (number - self.newest).min(SLOTS as u64);
        for number in number + 1 - new..=number {
            let Slot { stalls, over, buckets } = &mut self.slots[place(number)];
            if *over > 0 {
                buckets.fill(0);
            }
            (*stalls, *over) = (0, 0);
        }
        (self.newest, self.begin_ns) = (number, number * self.slot_ns);
        true
    }

    /// The slots that are over.
    fn over(&self) -> impl Iterator<Item = &Slot> {
        let newest = place(self.newest);
        self.slots.iter().enumerate().filter(move |(at, _)| *at != newest).map(|(_, slot)| slot)
    }

    /// Stalls in the window up to the end of its last slot.
    pub fn stalls(&self) -> u64 {
        self.over().map(|slot| slot.stalls).sum()
    }

    /// The percentile, if it is over the limit. That is exact, as it needs no more than how many stalls are.
    pub fn percentile(&self, percentile: Percentile) -> Option<Exceeded> {
        let stalls = self.stalls();
        let over: u64 = self.over().map(|slot| slot.over).sum();
        // The shortest stall that so many do not exceed.
        let rank = (u128::from(stalls) * u128::from(percentile.0)).div_ceil(100_000);
        let mut rank = u64::try_from(rank).unwrap_or(u64::MAX).checked_sub(stalls - over)?;
        if rank == 0 {
            return None;
        }
        let first = bucket(self.limit_ns.min(LONGEST_NS));
        let last = bucket(LONGEST_NS);
        let found = (first..=last).find(|number| {
            let at = usize::from(number - first);
            let count: u64 = self.over().map(|slot| u64::from(slot.buckets[at])).sum();
            rank = rank.saturating_sub(count);
            rank == 0
        });
        Some(Exceeded { was_ns: shortest(found.unwrap_or(last) + 1) - 1, stalls })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is below the number of slots")]
fn place(number: u64) -> usize {
    (number % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const P99: Percentile = Percentile(99_000);

    /// Windows of 10 s, after it has moved to an odd time.
    fn window() -> Window {
        let mut window = Window::of_times(10_000 * MS, 20 * MS);
        window.move_to(777_000 * MS);
        window
    }

    #[test]
    fn a_window_is_its_last_ten_parts_that_are_over() {
        let mut window = window();
        for second in 777..800 {
            for ms in 0..100 {
                let moved = window.count((second * 1000 + ms * 10) * MS, 0);
                assert_eq!(moved, second > 777 && ms == 0);
            }
            assert_eq!(window.stalls(), 100 * (second - 777).min(10));
        }
        assert!(!window.move_to(799_999 * MS) && window.move_to(800_000 * MS));
        assert_eq!(window.stalls(), 1000);
        // Half of it is empty.
        window.move_to(805_000 * MS);
        assert_eq!(window.stalls(), 500);
        window.move_to(u64::MAX);
        assert_eq!(window.stalls(), 0);
    }

    #[test]
    fn what_comes_late_counts_where_it_belongs() {
        let mut window = window();
        window.move_to(790_000 * MS);
        for second in [0, 779, 780, 784, 789] {
            assert!(!window.count(second * 1000 * MS, 30 * MS));
        }
        assert_eq!(window.stalls(), 3);
        window.move_to(791_000 * MS);
        assert_eq!(window.stalls(), 2);
    }

    #[test]
    fn a_percentile_is_over_the_limit_if_more_than_the_rest_are() {
        let exceeded = |stalls: u64, long: u64, percentile| {
            let mut window = window();
            for number in 0..stalls {
                let duration_ns = if number < long { 25 * MS + number } else { 20 * MS };
                window.count(777_001 * MS, duration_ns);
            }
            assert_eq!(window.percentile(percentile), None, "it is not over yet");
            window.move_to(778_000 * MS);
            window.percentile(percentile)
        };
        assert_eq!(exceeded(1000, 10, P99), None);
        let Some(Exceeded { was_ns, stalls: 1000 }) = exceeded(1000, 11, P99) else {
            panic!("11 of 1000 are more than 1 %");
        };
        assert!((25 * MS..25 * MS + 25 * MS / 100).contains(&was_ns), "{was_ns}");
        assert!(exceeded(1, 1, P99).is_some());
        assert_eq!(exceeded(0, 0, P99), None);
        assert_eq!(exceeded(2, 1, Percentile(50_000)), None);
        assert!(exceeded(2, 1, Percentile(50_001)).is_some());
        assert!(exceeded(100_000, 2, Percentile(99_999)).is_some());
        assert_eq!(exceeded(100_000, 1, Percentile(99_999)), None);
    }

    /// The same percentile from all values.
    #[test]
    fn percentiles_are_those_of_all_stalls() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut window = Window::of_times(1_000 * MS, 1000);
        let mut values = Vec::new();
        for number in 0..5000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let duration_ns = state >> (state % 64);
            window.count(number % 10 * 100 * MS, duration_ns);
            values.push(duration_ns);
        }
        window.move_to(1_000 * MS);
        values.sort_unstable();
        for (percentile, at) in [(50_000, 2499), (90_000, 4499), (99_000, 4949), (99_900, 4994)] {
            let exact = values[at].min(LONGEST_NS);
            let was_ns = window.percentile(Percentile(percentile)).expect("it is").was_ns;
            assert!(was_ns >= exact && was_ns - exact <= exact / 100, "{was_ns} for {exact}");
        }
        assert_eq!(window.percentile(Percentile(1)), None);
    }

    #[test]
    fn any_limit_and_any_duration_have_a_place() {
        for limit_ns in [0, 1, 255, LONGEST_NS, LONGEST_NS + 1, u64::MAX - 1, u64::MAX] {
            let mut window = Window::of_times(1_000 * MS, limit_ns);
            for duration_ns in [0, 256, LONGEST_NS, u64::MAX] {
                window.count(0, duration_ns);
            }
            window.move_to(100 * MS);
            assert_eq!(window.percentile(P99).is_some(), limit_ns < u64::MAX, "{limit_ns}");
        }
    }
}
