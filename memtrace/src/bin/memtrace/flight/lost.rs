//! What was lost in the time that a file is of: the probes count from the start of the run.

use std::collections::VecDeque;

use memtrace::recording::Counts;

/// Most looks whose counts are remembered: those of an hour. Beyond, a file that reaches back further is said to
/// lack more than it does.
const MOST: usize = 3600;

/// What had been lost at each look that a file may begin after.
#[derive(Debug, Default)]
pub struct Lost(VecDeque<(u64, Counts)>);

impl Lost {
    /// Takes what had been lost at `now_ns`. No file is going to begin before `since_ns`.
    pub fn note(&mut self, now_ns: u64, counts: Counts, since_ns: u64) {
        while self.0.get(1).is_some_and(|(at_ns, _)| *at_ns <= since_ns) {
            self.0.pop_front();
        }
        if self.0.len() < MOST {
            self.0.push_back((now_ns, counts));
        }
    }

    /// What of all that was lost until now is of a file that begins at `since_ns`: up to the time between two looks more.
    pub fn since(&self, since_ns: u64, now: Counts) -> Counts {
        let before = self.0.iter().rev().find(|(at_ns, _)| *at_ns <= since_ns);
        let before = before.map(|(_, counts)| *counts).unwrap_or_default();
        Counts {
            lost: now.lost.saturating_sub(before.lost),
            missed_begin: now.missed_begin.saturating_sub(before.missed_begin),
            table_full: now.table_full.saturating_sub(before.table_full),
            skipped: now.skipped.saturating_sub(before.skipped),
            unfinished: now.unfinished,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use memtrace::recording::{Flight, flight::LEAST_MEMORY};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn counts(lost: u64) -> Counts {
        Counts { lost, missed_begin: 7 * lost, table_full: 1, skipped: 0, unfinished: lost }
    }

    /// A stall is lost each second, at the look; blocks end at other times, seldom ones with looks alone.
    #[test]
    fn a_file_has_the_losses_of_its_own_time() {
        for (blocks_every, shift_ns) in [(1, 300_000_000), (1, 999_999_999), (10, 5), (1, 0)] {
            let mut flight = Flight::new(LEAST_MEMORY, Duration::from_secs(30), 0);
            let mut lost = Lost::default();
            for second in 1..=200 {
                lost.note(second * SECOND, counts(second), flight.since_ns());
                if second % blocks_every == 0 {
                    flight.push(b"block", second * SECOND + shift_ns);
                }
                let since_ns = flight.since_ns();
                let before = since_ns / SECOND;
                let of_file = lost.since(since_ns, counts(second));
                assert_eq!(of_file.lost, second - before, "at {second} s since {since_ns} ns");
                assert_eq!(of_file.missed_begin, 7 * (second - before));
                assert_eq!(of_file.table_full, u64::from(before == 0));
                assert_eq!(of_file.unfinished, second);
            }
            assert!(lost.0.len() <= 60, "{}", lost.0.len());
        }
    }

    #[test]
    fn while_a_file_is_written_its_beginning_stays() {
        let mut lost = Lost::default();
        for second in 1..=100 {
            lost.note(second * SECOND, counts(second), 50 * SECOND);
        }
        assert_eq!(lost.since(50 * SECOND, counts(100)).lost, 50);
        for second in 0..2 * MOST as u64 {
            lost.note(second * SECOND, counts(second), 0);
        }
        assert!(lost.0.len() <= MOST);
    }
}
