//! The axis of time that all charts share: the time of day in columns of one width, and how each recording's own
//! clock lies on it.

use crate::recording::Recording;

/// Most columns. The steps below leave at least two fifths of it, unless the times are shorter than that many
/// milliseconds.
pub const MOST_COLUMNS: usize = 1800;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const HOUR: u64 = 3600 * SECOND;

/// Widths of columns that read well, in nanoseconds; beyond, whole days.
const STEPS: [u64; 23] = [
    MS,
    2 * MS,
    5 * MS,
    10 * MS,
    20 * MS,
    50 * MS,
    100 * MS,
    200 * MS,
    500 * MS,
    SECOND,
    2 * SECOND,
    5 * SECOND,
    10 * SECOND,
    20 * SECOND,
    30 * SECOND,
    60 * SECOND,
    120 * SECOND,
    300 * SECOND,
    600 * SECOND,
    1200 * SECOND,
    HOUR / 2,
    HOUR,
    6 * HOUR,
];
const DAY: u64 = 24 * HOUR;

/// Columns of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// When the first column begins, in nanoseconds since 1970.
    pub begin_ns: i64,
    /// How long each is, in nanoseconds.
    pub step_ns: u64,
    /// How many there are; at least one.
    pub columns: usize,
    /// By recording, when its `CLOCK_MONOTONIC` was zero, in nanoseconds since 1970. It is that of its first block:
    /// whoever sets the time of day in between moves nothing on the axis.
    epochs_ns: Vec<i64>,
}

impl Axis {
    /// One with room for all of the recordings.
    pub fn of(recordings: &[Recording]) -> Self {
        let epochs_ns: Vec<_> = recordings.iter().map(epoch_ns).collect();
        let spans = recordings.iter().zip(&epochs_ns).filter_map(|(recording, epoch_ns)| {
            let first_ns = recording.places.iter().map(|place| place.first_ns).min()?;
            let last_ns = recording.places.iter().map(|place| place.last_ns).max()?;
            Some((at(*epoch_ns, first_ns), at(*epoch_ns, last_ns)))
        });
        let span = spans.reduce(|all, it| (all.0.min(it.0), all.1.max(it.1)));
        Self::over(span.unwrap_or_default(), epochs_ns)
    }

    /// One from the first to the last time, both in nanoseconds since 1970.
    pub fn over((from_ns, to_ns): (i64, i64), epochs_ns: Vec<i64>) -> Self {
        let columns = |step_ns: u64, begin_ns: i64| {
            (to_ns.max(begin_ns).abs_diff(begin_ns) / step_ns).saturating_add(1)
        };
        let days = (1..=u64::MAX / DAY).map(|days| days * DAY);
        // Columns begin at round times of day.
        let begin = |step_ns: u64| from_ns.saturating_sub(rest(from_ns, step_ns));
        let fits = |step_ns: &u64| columns(*step_ns, begin(*step_ns)) <= MOST_COLUMNS as u64;
        let step_ns = STEPS.into_iter().chain(days).find(fits).unwrap_or(u64::MAX);
        let begin_ns = begin(step_ns);
        let columns = usize::try_from(columns(step_ns, begin_ns)).unwrap_or(1).min(MOST_COLUMNS);
        Self { begin_ns, step_ns, columns, epochs_ns }
    }

    /// When that was, in nanoseconds since 1970, by `CLOCK_MONOTONIC` of that recording.
    pub fn at(&self, recording: usize, monotonic_ns: u64) -> i64 {
        at(self.epochs_ns.get(recording).copied().unwrap_or_default(), monotonic_ns)
    }

    /// How long after the axis begins that was, in nanoseconds; nothing for what was before it.
    pub fn since_begin(&self, recording: usize, monotonic_ns: u64) -> u64 {
        let since = self.at(recording, monotonic_ns).saturating_sub(self.begin_ns);
        u64::try_from(since).unwrap_or_default()
    }

    /// The column in which so long after the begin lies; the last one for what is after it.
    pub fn column(&self, since_begin_ns: u64) -> usize {
        let column = usize::try_from(since_begin_ns / self.step_ns).unwrap_or(usize::MAX);
        column.min(self.columns - 1)
    }

    /// How long it is, in nanoseconds.
    pub fn length_ns(&self) -> u64 {
        self.step_ns.saturating_mul(self.columns as u64)
    }
}

fn at(epoch_ns: i64, monotonic_ns: u64) -> i64 {
    epoch_ns.saturating_add_unsigned(monotonic_ns)
}

fn rest(from_ns: i64, step_ns: u64) -> i64 {
    i64::try_from(step_ns).map_or(0, |step_ns| from_ns.rem_euclid(step_ns))
}

/// When `CLOCK_MONOTONIC` was zero, by the first block that can be read; else as if the recording had begun with
/// it.
fn epoch_ns(recording: &Recording) -> i64 {
    let mut blocks = recording.places.iter().map(|place| recording.block(place));
    let epoch_ns = blocks.find_map(Result::ok).map(|block| block.epoch_ns());
    epoch_ns.unwrap_or_else(|| {
        let first_ns = recording.places.first().map_or(0, |place| place.first_ns);
        recording.meta.began_ns.saturating_sub_unsigned(first_ns)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_grow_with_the_time() {
        for (span_ns, step_ns, columns) in [
            (0, MS, 1),
            (100 * MS, MS, 101),
            (10 * SECOND, 10 * MS, 1001),
            (HOUR - SECOND, 2 * SECOND, 1800),
            (HOUR, 5 * SECOND, 721),
            (24 * HOUR, 60 * SECOND, 1441),
            (365 * DAY, 6 * HOUR, 1461),
            (10_000 * DAY, 6 * DAY, 1667),
        ] {
            let axis = Axis::over((0, i64::try_from(span_ns).expect("small")), vec![0]);
            assert_eq!((axis.step_ns, axis.columns), (step_ns, columns), "{span_ns}");
        }
        for span in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (i64::MAX, i64::MAX)] {
            let axis = Axis::over(span, vec![0]);
            assert!((1..=MOST_COLUMNS).contains(&axis.columns), "{axis:?}");
        }
    }

    #[test]
    fn each_recording_has_a_clock_of_its_own() {
        let second = i64::try_from(SECOND).expect("small");
        let axis = Axis::over((100 * second, 110 * second), vec![40 * second, 105 * second]);
        assert_eq!(axis.since_begin(0, 65 * SECOND), 5 * SECOND);
        assert_eq!(axis.since_begin(1, 0), 5 * SECOND);
        assert_eq!(axis.since_begin(0, 0), 0);
        assert_eq!(axis.column(axis.since_begin(0, 65 * SECOND)), 500);
        assert_eq!(axis.column(u64::MAX), axis.columns - 1);
        assert_eq!(
            axis.since_begin(7, u64::MAX),
            u64::try_from(i64::MAX - 100 * second).expect("positive")
        );
    }
}
