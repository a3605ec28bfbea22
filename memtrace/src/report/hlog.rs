//! Stalls as an HdrHistogram interval log: a histogram of durations for each kind and second, for the tools that plot
//! such logs.
//!
//! Values are nanoseconds. The greatest of each line is in milliseconds, as tools expect. A stall is of the second in
//! which it ended. Those longer than an hour count as that long.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriter, IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};

use super::export::{boots, each_place, since_1970_ns};
use super::{LeftOut, blocks};
use crate::histogram::Times;
use crate::kind::Kind;
use crate::recording::{Place, Recording};

/// Digits that every duration keeps.
const DIGITS: u8 = 3;
/// Nanoseconds in a millisecond.
const MILLI: f64 = 1_000_000.0;
const SECOND_NS: i64 = 1_000_000_000;
/// Most stalls that wait for others of their second.
const MOST_WAITING: usize = 1 << 20;

const FORMAT: &str = "[Histogram log format version 1.3]";
const LEGEND: &[u8] =
    b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";

/// Writes the log, in order of time over all recordings. Seconds without stalls are left out. `done` counts the blocks
/// as they are done.
pub fn write(
    recordings: &[Recording],
    done: &AtomicU64,
    mut out: &mut dyn io::Write,
) -> io::Result<LeftOut> {
    let boots = boots(recordings);
    let begin = |number: usize, place: &Place| {
        let begin_ns = since_1970_ns(boots[number].epoch_ns, place.first_ns);
        begin_ns.div_euclid(SECOND_NS).max(0)
    };
    let mut places: Vec<_> =
        blocks(recordings).map(|(number, place)| (begin(number, place), number, place)).collect();
    places.sort_by_key(|(begin, ..)| *begin);
    let base = places.first().map_or(0, |(begin, ..)| *begin);

    let base_time = SystemTime::UNIX_EPOCH + since(base, 0);
    let mut serializer = V2DeflateSerializer::new();
    IntervalLogWriterBuilder::new()
        .add_comment("[Logged with memtrace: durations of stalls in nanoseconds]")
        .add_comment(FORMAT)
        .with_start_time(base_time)
        .with_base_time(base_time)
        .begin_log_with(&mut out, &mut serializer)?;
    out.write_all(LEGEND)?;
    let mut builder = IntervalLogWriterBuilder::new();
    builder.with_max_value_divisor(MILLI);
    let histogram = Histogram::new_with_bounds(1, Times::MAX_NS, DIGITS);
    let mut log = Log {
        out: builder.begin_log_with(&mut out, &mut serializer)?,
        histogram: histogram.map_err(io::Error::other)?,
        base,
        waiting: BTreeMap::new(),
        count: 0,
    };
    let in_order = places.into_iter().map(|(_, number, place)| (number, place));
    let left_out = each_place(recordings, in_order, done, |number, place, block| {
        // All that is still to come ends later.
        let begin = begin(number, place);
        log.flush(|second, _| second < begin)?;
        block.told(recordings[number].meta.scopes, |told| {
            let end_ns = told.start_ns.saturating_add(told.duration_ns);
            let end_ns = since_1970_ns(boots[number].epoch_ns, end_ns);
            log.add(end_ns.div_euclid(SECOND_NS), told.kind, told.duration_ns);
        });
        log.flush(|_, count| count > MOST_WAITING)
    })?;
    log.flush(|_, _| true)?;
    Ok(left_out)
}

/// The time from one second to another.
fn since(second: i64, base: i64) -> Duration {
    Duration::from_secs(u64::try_from(second.saturating_sub(base)).unwrap_or_default())
}

struct Log<'a, 'b, W: io::Write> {
    out: IntervalLogWriter<'a, 'b, W, V2DeflateSerializer>,
    /// Where each of them is made.
    histogram: Histogram<u64>,
    /// The second that all times are since.
    base: i64,
    /// Durations that have not been written.
    waiting: BTreeMap<(i64, Kind), Vec<u64>>,
    /// How many.
    count: usize,
}

impl<W: io::Write> Log<'_, '_, W> {
    fn add(&mut self, second: i64, kind: Kind, duration_ns: u64) {
        self.waiting.entry((second.max(self.base), kind)).or_default().push(duration_ns);
        self.count += 1;
    }

    /// Writes the oldest as long as `is_due`, which is given the second and how many wait.
    fn flush(&mut self, is_due: impl Fn(i64, usize) -> bool) -> io::Result<()> {
        while let Some(entry) = self.waiting.first_entry()
            && is_due(entry.key().0, self.count)
        {
            let ((second, kind), durations) = entry.remove_entry();
            self.count -= durations.len();
            self.histogram.reset();
            for duration_ns in durations {
                self.histogram.saturating_record(duration_ns.min(Times::MAX_NS));
            }
            let tag = Tag::new(kind.name());
            let start = since(second, self.base);
            self.out.write_histogram(&self.histogram, start, Duration::from_secs(1), tag).map_err(
                |error| match error {
                    IntervalLogWriterError::IoError(error) => error,
                    IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
                },
            )?;
        }
        Ok(())
    }
}
