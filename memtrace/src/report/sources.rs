//! Where the totals are from: recordings, several of which may be of one tracing.

use std::collections::{BTreeMap, HashMap};

use super::losses::Losses;
use super::rows::{NotWatched, Recorded, Trigger};
use super::run;
use super::totals::Totals;
use crate::kind::Kind;
use crate::recording::{Counts, Meta, Note, Recording};

/// Blocks at either end of a recording in which a look at the system is looked for.
const MOST_TRIED: usize = 256;

/// Totals with what they are from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub recordings: &'a [Recording],
    pub files: &'a [Vec<u8>],
    /// Of each recording.
    pub boots: &'a [u32],
    pub totals: &'a Totals,
    /// Of each recording, how many blocks are damaged.
    pub left_out: &'a [u64],
}

impl Source<'_> {
    /// Of each recording from when to when it is by the clock of its host, in nanoseconds since 1970. Who sets that
    /// clock meanwhile makes it longer or shorter, or end before it begins: how long it is, is another question.
    pub(super) fn spans(&self) -> Vec<Option<(i64, i64)>> {
        let span = |(number, recording): (usize, &Recording)| {
            let Recording { meta, missing, .. } = recording;
            let seen = &self.totals.seen[number];
            let (first_epoch_ns, last_epoch_ns) = seen.epoch_ns?;
            let (first_ns, last_ns) = reach(recording)?;
            let last_ns = last_epoch_ns.saturating_add_unsigned(last_ns);
            let end_ns = seen.end.as_ref().map_or(last_ns, |end| end.at_ns);
            let is_whole = missing.dropped == 0 && meta.began_ns != 0;
            let first_ns = first_epoch_ns.saturating_add_unsigned(first_ns);
            Some((if is_whole { meta.began_ns } else { first_ns }, end_ns))
        };
        self.recordings.iter().enumerate().map(span).collect()
    }

    /// How long was recorded of each host, together.
    pub(super) fn duration_ns(&self) -> u64 {
        let sources = self.sources();
        let mut by_boot: BTreeMap<u32, Vec<(i64, i64)>> = BTreeMap::new();
        for (number, boot) in self.boots.iter().enumerate() {
            by_boot.entry(*boot).or_default().extend(self.traced(number, &sources));
        }
        let mut sum: u64 = 0;
        for spans in by_boot.values_mut() {
            spans.sort_unstable();
            let mut covered_ns = i64::MIN;
            for &(begin_ns, end_ns) in &*spans {
                let more_ns = end_ns.saturating_sub(begin_ns.max(covered_ns)).max(0);
                sum = sum.saturating_add(more_ns.unsigned_abs());
                covered_ns = covered_ns.max(end_ns);
            }
        }
        sum
    }

    /// From when to when there is what was traced, in nanoseconds of `CLOCK_MONOTONIC`, which nobody sets, and which
    /// stands still while the host sleeps.
    fn traced(&self, number: usize, sources: &[usize]) -> Option<(i64, i64)> {
        let recording = &self.recordings[number];
        let (first_ns, last_ns) = reach(recording)?;
        let first_ns = self.goes_back_to(number, sources).unwrap_or(first_ns).min(first_ns);
        let [first_ns, last_ns] = [first_ns, last_ns].map(signed);
        let begin_ns = match &self.totals.seen[number].end {
            Some(end) => {
                let begin_ns = last_ns.saturating_sub(signed(end.duration_ns));
                let is_whole = recording.missing.dropped == 0;
                if is_whole { begin_ns } else { begin_ns.max(first_ns) }
            }
            None => first_ns,
        };
        Some((begin_ns, last_ns))
    }

    /// Where another file of the same source goes up to its first block, so does the time that was recorded.
    fn goes_back_to(&self, number: usize, sources: &[usize]) -> Option<u64> {
        let before = self.recordings[number].places.first()?.number.checked_sub(1)?;
        let ends_of = |(other, recording): (usize, &Recording)| {
            let places = &recording.places;
            let at = places.binary_search_by_key(&before, |place| place.number).ok()?;
            // What a trigger has written ends with a block of its own.
            let is_own = recording.meta.trigger.is_some()
                && self.totals.seen[other].end.is_some()
                && at + 1 == places.len();
            (sources[other] == sources[number] && !is_own).then_some(places[at].last_ns)
        };
        self.recordings.iter().enumerate().find_map(ends_of)
    }

    /// Which recordings have the same source, by the first of them: one tracing may be in several files.
    fn sources(&self) -> Vec<usize> {
        let mut known = HashMap::new();
        let runs = self.recordings.iter().map(run).enumerate();
        runs.map(|(number, run)| *known.entry(run).or_insert(number)).collect()
    }

    pub(super) fn recorded(&self, spans: &[Option<(i64, i64)>]) -> Vec<Recorded> {
        let sources = self.sources();
        let seen = &self.totals.seen;
        // What several files have is counted in the first of them.
        let last = |number: usize| {
            let Recording { meta, places, .. } = &self.recordings[number];
            // What a trigger has written has an end of its own.
            places.last().filter(|_| meta.trigger.is_some()).map(|last| (last.number, last.last_ns))
        };
        let has_ended = |number: usize| {
            let same = (0..).zip(&sources).filter(|(_, source)| **source == sources[number]);
            let mut same = same.filter(|(other, _)| last(*other) == last(number));
            same.any(|(other, _)| seen[other].end.is_some())
        };
        let recorded = |(number, recording): (usize, &Recording)| {
            let Meta { kernel, cpus, memtrace, what, trigger, began_ns, .. } = &recording.meta;
            let coverage = recording.meta.coverage();
            let not_watched = coverage.missing();
            let (since, time) = spans[number].unwrap_or((*began_ns, *began_ns));
            let mut recorded = Recorded {
                file: self.files.get(number).cloned().unwrap_or_default(),
                host: self.host(self.boots[number]),
                kernel: kernel.clone(),
                cpus: *cpus,
                memtrace: memtrace.clone(),
                what: what.clone(),
                filters: recording.meta.all_filters(),
                since,
                time,
                ended: has_ended(number),
                stalls: seen[number].stalls,
                trigger: trigger.as_ref().map(|fired| Trigger {
                    trigger: fired.trigger.clone(),
                    cause: fired.cause.clone(),
                    time: fired.at_ns,
                }),
                watched: coverage.watched().map(Kind::name).collect(),
                not_watched: not_watched
                    .map(|(kind, why)| NotWatched { kind: kind.name(), reason: why.to_owned() })
                    .collect(),
                unavailable: seen[number]
                    .end
                    .as_ref()
                    .map(|end| end.unavailable.clone())
                    .unwrap_or_default(),
                ..Recorded::default()
            };
            recorded.misses(recording.missing, self.left_out[number]);
            recorded
        };
        self.recordings.iter().enumerate().map(recorded).collect()
    }

    /// What was not recorded, over all sources.
    pub(super) fn counts(&self) -> Counts {
        let mut by_source: BTreeMap<usize, Losses> = BTreeMap::new();
        for (number, source) in self.sources().into_iter().enumerate() {
            let (recording, seen) = (&self.recordings[number], &self.totals.seen[number]);
            let last_ns = reach(recording).map_or(0, |(_, last_ns)| last_ns);
            let is_triggered = recording.meta.trigger.is_some();
            // Of what several files have, only one was seen to have it.
            let own = || Some([looked(recording, false)?, looked(recording, true)?]);
            let looks = if is_triggered { own() } else { seen.counts.map(|last| [last; 2]) };
            let end = seen.end.as_ref().map(|end| &end.counts);
            let losses = by_source.entry(source).or_default();
            losses.add(last_ns, is_triggered, looks.as_ref(), end);
        }
        by_source.into_values().map(Losses::sum).fold(Counts::default(), |sum, counts| Counts {
            lost: sum.lost.saturating_add(counts.lost),
            missed_begin: sum.missed_begin.saturating_add(counts.missed_begin),
            table_full: sum.table_full.saturating_add(counts.table_full),
            skipped: sum.skipped.saturating_add(counts.skipped),
            unfinished: sum.unfinished.saturating_add(counts.unfinished),
        })
    }
}

/// What the first or the last look of a recording says of losses.
fn looked(recording: &Recording, is_last: bool) -> Option<Counts> {
    let look = |note: &Note| match note {
        Note::Look(look) => Some(look.counts),
        _ => None,
    };
    let mut places = recording.places.iter();
    let next = || if is_last { places.next_back() } else { places.next() };
    // There is one every second.
    std::iter::from_fn(next).take(MOST_TRIED).find_map(|place| {
        let block = recording.block(place).ok()?;
        let mut looks = block.notes().iter().filter_map(look);
        if is_last { looks.next_back() } else { looks.next() }
    })
}

/// From when to when its blocks are, in nanoseconds of `CLOCK_MONOTONIC`. Blocks in which nothing has a time have 0.
fn reach(recording: &Recording) -> Option<(u64, u64)> {
    let mut spans = recording.places.iter().map(|place| (place.first_ns, place.last_ns));
    let timed = spans.clone().filter(|(_, last_ns)| *last_ns != 0);
    let joined = |a: (u64, u64), b: (u64, u64)| (a.0.min(b.0), a.1.max(b.1));
    timed.reduce(joined).or_else(|| spans.next_back())
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
