//! How much time was lost in each second, to find the worst.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;

/// Nanoseconds of a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Most seconds that are remembered, but for those of one stall: six days in each of which something stalled. Of more,
/// half are given up.
const MOST: usize = 1 << 19;
/// As many may be left of them then. It takes a quarter of new ones until that is done again.
const MOST_LEFT: usize = MOST / 4 * 3;

/// A second of a boot of a host, by what is made of its number and seconds since 1970.
type Key = (u32, i64);

/// What was lost in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Second {
    /// Stalls that began in it.
    stalls: u64,
    /// Time lost in it, but for the stalls that lasted all of it.
    ns: u64,
    /// How many more stalls than in the second before last all of it and the next.
    more: i64,
}

impl Second {
    fn add(&mut self, other: Self) {
        self.stalls += other.stalls;
        self.ns = self.ns.saturating_add(other.ns);
        self.more += other.more;
    }
}

/// The second in which most time was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worst {
    /// The number of the boot that it is of.
    pub boot: u32,
    /// Which second, since 1970.
    pub second: i64,
    /// Stalls that began in it.
    pub stalls: u64,
    /// Time that all threads together lost in it, in nanoseconds.
    pub stalled_ns: u64,
}

/// Time by second.
#[derive(Debug, Default)]
pub struct Seconds {
    all: HashMap<Key, Second, RandomState>,
    /// The one that is being added to, as stalls come in order.
    current: (Key, Second),
    /// The worst of those that were given up all at once.
    given_up: Option<Worst>,
}

impl Seconds {
    /// Adds a stall that began so many nanoseconds after 1970.
    #[inline]
    pub fn add(&mut self, boot: u32, start_ns: i64, duration_ns: u64) {
        // Not between the begin and the end of a stall.
        if self.all.len() >= MOST {
            self.prune();
        }
        let second = SECOND_NS.cast_signed();
        let first = start_ns.div_euclid(second);
        let inside_ns = start_ns.rem_euclid(second).cast_unsigned();
        let at = self.at((boot, first));
        at.stalls += 1;
        if inside_ns.saturating_add(duration_ns) <= SECOND_NS {
            at.ns = at.ns.saturating_add(duration_ns);
            return;
        }
        at.ns = at.ns.saturating_add(SECOND_NS - inside_ns);
        self.add_rest((boot, first), duration_ns - (SECOND_NS - inside_ns));
    }

    /// Adds what is left of a stall after the second in which it began.
    fn add_rest(&mut self, (boot, first): Key, rest_ns: u64) {
        let whole = (rest_ns / SECOND_NS).cast_signed();
        let last = self.at((boot, first + 1 + whole));
        last.ns = last.ns.saturating_add(rest_ns % SECOND_NS);
        if whole > 0 {
            last.more -= 1;
            self.at((boot, first + 1)).more += 1;
        }
    }

    #[inline]
    fn at(&mut self, key: Key) -> &mut Second {
        if self.current.0 != key {
            self.go_to(key);
        }
        &mut self.current.1
    }

    fn go_to(&mut self, key: Key) {
        self.put_back();
        self.current = (key, self.all.remove(&key).unwrap_or_default());
    }

    fn put_back(&mut self) {
        let (key, second) = std::mem::take(&mut self.current);
        if second != Second::default() {
            self.put(key, second);
        }
    }

    fn put(&mut self, key: Key, second: Second) {
        self.all.entry(key).or_default().add(second);
    }

    /// Gives up those in which the least was lost, but none where a long stall begins or ends. Where that leaves too
    /// many, only the worst of them all is still known.
    #[cold]
    fn prune(&mut self) {
        self.put_back();
        let mut lost: Vec<_> = self.all.values().map(|second| second.ns).collect();
        let least = lost.len().saturating_sub(MOST / 2);
        let (_, enough, more) = lost.select_nth_unstable(least);
        let (enough, more) = (*enough, more.iter().filter(|ns| **ns > *enough).count());
        let mut room = (MOST / 2).saturating_sub(more);
        self.all.retain(|_, second| {
            let is_one_of_many = second.ns == enough && room > 0;
            room -= usize::from(is_one_of_many);
            second.ns > enough || is_one_of_many || second.more != 0
        });
        if self.all.len() > MOST_LEFT {
            self.given_up = self.worst();
            self.all.clear();
        }
    }

    /// Takes what was lost later.
    pub fn merge(&mut self, mut later: Self) {
        later.put_back();
        self.put_back();
        for (key, second) in later.all {
            self.put(key, second);
        }
        self.given_up = worse(self.given_up, later.given_up);
        if self.all.len() >= MOST {
            self.prune();
        }
    }

    /// The worst of all, of several the first.
    #[must_use]
    pub fn worst(&self) -> Option<Worst> {
        let all = self.all.iter().map(|(key, second)| (*key, *second));
        let mut sorted: BTreeMap<_, _> = all.collect();
        let (key, second) = self.current;
        if second != Second::default() {
            sorted.entry(key).or_default().add(second);
        }
        let (mut worst, mut before): (Option<Worst>, Option<Key>) = (None, None);
        let mut whole: i64 = 0;
        for ((boot, second), Second { stalls, ns, more }) in sorted {
            let mut look_at = |second, stalls, ns, whole: i64| {
                let whole = u64::try_from(whole).unwrap_or_default();
                let stalled_ns = whole.saturating_mul(SECOND_NS).saturating_add(ns);
                if worst.is_none_or(|worst| stalled_ns > worst.stalled_ns) {
                    worst = Some(Worst { boot, second, stalls, stalled_ns });
                }
            };
            match before {
                Some((known, before)) if known == boot => {
                    if before + 1 < second {
                        look_at(before + 1, 0, 0, whole);
                    }
                }
                _ => whole = 0,
            }
            whole = whole.saturating_add(more);
            look_at(second, stalls, ns, whole);
            before = Some((boot, second));
        }
        worse(self.given_up, worst)
    }
}

/// The one in which more was lost, of equals the first.
fn worse(first: Option<Worst>, second: Option<Worst>) -> Option<Worst> {
    match (first, second) {
        (Some(first), Some(second)) if second.stalled_ns > first.stalled_ns => Some(second),
        (first, second) => first.or(second),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn worst_of(stalls: &[(u32, i64, u64)]) -> Option<Worst> {
        let mut seconds = Seconds::default();
        for &(boot, start_ms, duration_ms) in stalls {
            seconds.add(boot, start_ms * MS.cast_signed(), duration_ms * MS);
        }
        seconds.worst()
    }

    fn worst(boot: u32, second: i64, stalls: u64, stalled_ms: u64) -> Worst {
        Worst { boot, second, stalls, stalled_ns: stalled_ms * MS }
    }

    #[test]
    fn time_counts_in_the_seconds_in_which_it_was_lost() {
        assert_eq!(worst_of(&[]), None);
        assert_eq!(worst_of(&[(0, 100, 900), (0, 1000, 899)]), Some(worst(0, 0, 1, 900)));
        // 100 ms of it are in the first second, 500 in the second.
        assert_eq!(worst_of(&[(0, 900, 600), (0, 1000, 100)]), Some(worst(0, 1, 1, 600)));
        assert_eq!(worst_of(&[(0, -100, 300), (0, 0, 50)]), Some(worst(0, 0, 1, 250)));
    }

    #[test]
    fn long_stalls_take_whole_seconds() {
        let long = (0, 500, 10_000);
        assert_eq!(worst_of(&[long]), Some(worst(0, 1, 0, 1000)));
        assert_eq!(worst_of(&[long, (0, 5_200, 100)]), Some(worst(0, 5, 1, 1100)));
        assert_eq!(worst_of(&[long, (0, 3_500, 10_000)]), Some(worst(0, 4, 0, 2000)));
        assert_eq!(worst_of(&[long, (0, 10_100, 300)]), Some(worst(0, 1, 0, 1000)));
        assert_eq!(worst_of(&[long, (0, 10_100, 600)]), Some(worst(0, 10, 1, 1100)));
    }

    #[test]
    fn hosts_are_told_apart() {
        assert_eq!(worst_of(&[(0, 0, 400), (1, 0, 500), (0, 100, 200)]), Some(worst(0, 0, 2, 600)));
        assert_eq!(worst_of(&[(0, 0, 5_000), (1, 3_000, 600)]), Some(worst(0, 0, 1, 1000)));
    }

    #[test]
    fn parts_are_put_together_again() {
        let stalls: Vec<_> = (0..500_i64)
            .map(|n| (n, 7 * n * MS.cast_signed(), n.cast_unsigned() % 90 * 31 * MS))
            .collect();
        let (mut whole, mut first, mut second) =
            (Seconds::default(), Seconds::default(), Seconds::default());
        for &(n, start_ns, duration_ns) in &stalls {
            whole.add(0, start_ns, duration_ns);
            let part = if n < 250 { &mut first } else { &mut second };
            part.add(0, start_ns, duration_ns);
        }
        first.merge(second);
        assert_eq!(first.worst(), whole.worst());
        assert!(whole.worst().is_some_and(|worst| worst.stalled_ns > SECOND_NS));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut seconds = Seconds::default();
        for start_ns in [i64::MIN, -1, 0, i64::MAX] {
            seconds.add(0, start_ns, u64::MAX);
            seconds.add(u32::MAX, start_ns, 0);
        }
        assert!(seconds.worst().is_some());
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let mut seconds = Seconds::default();
        for second in 0..i64::try_from(MOST + 10).expect("small") {
            seconds.add(0, second * 1_000_000_000, if second == 77 { 9 } else { 5 });
        }
        assert!(seconds.all.len() <= MOST);
        assert_eq!(seconds.worst().map(|worst| (worst.second, worst.stalled_ns)), Some((77, 9)));
    }

    #[test]
    fn seconds_that_cannot_be_given_up_one_by_one_are_given_up_together() {
        let mut seconds = Seconds::default();
        let long = 2 * SECOND_NS + 1;
        // Each has two seconds of its own in which it begins and ends; the worst is one of the first.
        let start = |n: usize| 4_000_000_000 * i64::try_from(n).expect("small");
        seconds.add(0, start(7), 3 * SECOND_NS);
        let (mut full, mut longest) = (0, 0);
        for n in 0..MOST / 3 + 100 {
            seconds.add(0, start(n), long);
            full += usize::from(seconds.all.len() >= MOST);
            longest = longest.max(seconds.all.len());
        }
        assert!(full <= 1, "it is looked for room {full} times for the last hundred");
        assert!(longest <= MOST + 3, "{longest}");
        assert!(seconds.all.len() < MOST / 2, "a part of it is free");
        let worst = seconds.worst().expect("there are stalls");
        assert_eq!((worst.second, worst.stalled_ns), (start(7) / 1_000_000_000, 2 * SECOND_NS));
        // What comes after has nothing of what was before.
        let mut later = Seconds::default();
        later.add(0, start(MOST), 500);
        later.merge(seconds);
        assert_eq!(later.worst(), Some(worst));
        later.add(0, start(MOST) + 1, 3 * SECOND_NS);
        assert_eq!(later.worst().map(|worst| worst.stalled_ns), Some(2 * SECOND_NS));
    }

    #[test]
    fn two_that_are_full_make_one_with_room() {
        let most = i64::try_from(MOST).expect("small");
        let [mut first, second] = [0, most].map(|from| {
            let mut seconds = Seconds::default();
            (0..most - 1).for_each(|n| seconds.add(0, (from + n) * 1_000_000_000, 5));
            seconds.add(0, from * 1_000_000_000, 7);
            seconds
        });
        first.merge(second);
        assert_eq!(first.all.len(), MOST / 2);
        let worst = first.worst().map(|worst| (worst.second, worst.stalls, worst.stalled_ns));
        assert_eq!(worst, Some((0, 2, 12)));
    }
}
