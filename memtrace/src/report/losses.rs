//! What one run of memtrace lost, told by several files of it.
//!
//! A run counts what it loses from its begin on. Each look at the system says how far it had counted by then, and so
//! does the end of a recording. What a trigger has written ends with what was lost in its own time: together with its
//! last look that says from which count to which. What several files have lost between the same counts was lost once.

use crate::recording::Counts;

/// What the files of one run have lost.
#[derive(Debug, Default)]
pub struct Losses {
    /// From which count to which, of each kind of loss, by file.
    spans: [Vec<(u64, u64)>; KINDS],
    /// What files have lost that have no look.
    own: [Vec<u64>; KINDS],
    /// How far any look has counted.
    looked: [u64; KINDS],
    /// When the latest file ended, and what had not ended then.
    unfinished: (u64, u64),
}

/// How many kinds of losses grow with time.
const KINDS: usize = 4;

/// Those of them.
fn growing(counts: &Counts) -> [u64; KINDS] {
    let Counts { lost, missed_begin, table_full, skipped, unfinished: _ } = *counts;
    [lost, missed_begin, table_full, skipped]
}

impl Losses {
    /// Adds a file whose last block ended at `last_ns`, and that a trigger has written or not: what its first and its
    /// last look say, and its end.
    pub fn add(
        &mut self,
        last_ns: u64,
        is_triggered: bool,
        looks: Option<&[Counts; 2]>,
        end: Option<&Counts>,
    ) {
        let unfinished = end.or(looks.map(|[_, last]| last)).map(|counts| counts.unfinished);
        let looks = looks.map(|looks| looks.each_ref().map(growing));
        let end = end.map(growing);
        for kind in 0..KINDS {
            let looks = looks.map(|[first, last]| (first[kind], last[kind]));
            let end = end.map(|counts| counts[kind]);
            self.looked[kind] = self.looked[kind].max(looks.map_or(0, |(_, last)| last));
            match (end, looks) {
                (Some(end), _) if !is_triggered => self.spans[kind].push((0, end)),
                (Some(own), Some((_, last))) => self.spans[kind].push(ending_at(last, own)),
                (Some(own), None) => self.own[kind].push(own),
                (None, Some((_, last))) if !is_triggered => self.spans[kind].push((0, last)),
                (None, Some(looks)) => self.spans[kind].push(looks),
                (None, None) => {}
            }
        }
        if let Some(unfinished) = unfinished
            && last_ns >= self.unfinished.0
        {
            self.unfinished = (last_ns, unfinished);
        }
    }

    /// All of them, each once.
    #[must_use]
    pub fn sum(self) -> Counts {
        let Self { spans, own, looked, unfinished: (_, unfinished) } = self;
        let mut sums = [0_u64; KINDS];
        for (kind, mut spans) in spans.into_iter().enumerate() {
            spans.extend(own[kind].iter().map(|own| ending_at(looked[kind], *own)));
            spans.sort_unstable();
            let mut counted = 0;
            for (from, to) in spans {
                let more = to.saturating_sub(from.max(counted));
                sums[kind] = sums[kind].saturating_add(more);
                counted = counted.max(to);
            }
        }
        let [lost, missed_begin, table_full, skipped] = sums;
        Counts { lost, missed_begin, table_full, skipped, unfinished }
    }
}

/// So many, up to a count that they cannot be more than.
fn ending_at(count: u64, losses: u64) -> (u64, u64) {
    (count.saturating_sub(losses), count.max(losses))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lost: u64) -> Counts {
        Counts { lost, ..Counts::default() }
    }

    /// Each with what it had lost by its first and last look, and its end.
    fn lost(is_triggered: bool, files: &[(Option<[u64; 2]>, Option<u64>)]) -> u64 {
        let mut losses = Losses::default();
        for (last_ns, (looks, end)) in (0..).zip(files) {
            let (looks, end) = (looks.map(|looks| looks.map(counts)), end.map(counts));
            losses.add(last_ns, is_triggered, looks.as_ref(), end.as_ref());
        }
        losses.sum().lost
    }

    #[test]
    fn a_recording_counts_from_the_begin_of_its_run() {
        assert_eq!(lost(false, &[]), 0);
        assert_eq!(lost(false, &[(Some([5, 9]), None)]), 9);
        assert_eq!(lost(false, &[(Some([5, 9]), Some(11))]), 11);
        assert_eq!(lost(false, &[(Some([5, 9]), None), (None, Some(11)), (None, None)]), 11);
    }

    #[test]
    fn what_a_trigger_has_written_counts_its_own_time() {
        // Of 20 that were lost until its last look it has 4.
        assert_eq!(lost(true, &[(Some([17, 20]), Some(4))]), 4);
        // The next has 16 to 18 as well, or not, or is cut.
        let first = (Some([12, 18]), Some(7));
        for (next, sum) in [
            ((Some([17, 20]), Some(4)), 9),
            ((Some([20, 25]), Some(6)), 13),
            ((Some([15, 20]), None), 9),
            ((None, Some(3)), 7),
            ((None, Some(9)), 9),
        ] {
            assert_eq!(lost(true, &[first, next]), sum, "{next:?}");
            assert_eq!(lost(true, &[next, first]), sum, "{next:?}");
        }
        // Lost between the last look and the end.
        assert_eq!(lost(true, &[(Some([0, 0]), Some(3))]), 3);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let most = (Some([u64::MAX, u64::MAX]), Some(u64::MAX));
        assert_eq!(lost(true, &[most, most, (Some([u64::MAX, 0]), None)]), u64::MAX);
    }
}
