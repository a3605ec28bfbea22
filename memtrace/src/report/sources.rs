//! Where the totals are from: recordings, several of which may be of one tracing.

use std::collections::{BTreeMap, HashMap};

use super::rows::{NotWatched, Recorded, Trigger};
use super::totals::Totals;
use crate::kind::Kind;
use crate::recording::{Counts, Meta, Recording};

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
    /// Of each recording from when to when it is, in nanoseconds since 1970.
    pub(super) fn spans(&self) -> Vec<Option<(i64, i64)>> {
        let sources = self.sources();
        let span = |(number, recording): (usize, &Recording)| {
            let Recording { meta, places, missing, .. } = recording;
            let seen = &self.totals.seen[number];
            let (first_epoch_ns, last_epoch_ns) = seen.epoch_ns?;
            let last_ns = places.iter().map(|place| place.last_ns).max();
            let last_ns = last_ns.map(|ns| last_epoch_ns.saturating_add_unsigned(ns));
            let end_ns = seen.end.as_ref().map(|end| end.at_ns).or(last_ns)?;
            let first = places.first()?;
            // Where another file goes up to its first block, so does the time that was recorded.
            let before = first.number.checked_sub(1).and_then(|before| {
                let same = self.recordings.iter().zip(&sources);
                let same = same.filter(|(_, source)| **source == sources[number]);
                same.into_iter().find_map(|(recording, _)| {
                    let places = &recording.places;
                    let at = places.binary_search_by_key(&before, |place| place.number).ok()?;
                    Some(places[at].last_ns)
                })
            });
            let first_ns = places.iter().map(|place| place.first_ns).chain(before).min()?;
            let first_ns = first_epoch_ns.saturating_add_unsigned(first_ns);
            let is_whole = missing.dropped == 0 && meta.began_ns != 0;
            let begin_ns = if is_whole { meta.began_ns } else { first_ns };
            Some((begin_ns.min(end_ns), end_ns))
        };
        self.recordings.iter().enumerate().map(span).collect()
    }

    /// How long was recorded of each host, together.
    pub(super) fn duration_ns(&self, spans: &[Option<(i64, i64)>]) -> u64 {
        let mut by_boot: BTreeMap<u32, Vec<(i64, i64)>> = BTreeMap::new();
        for (boot, span) in self.boots.iter().zip(spans) {
            by_boot.entry(*boot).or_default().extend(*span);
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

    /// Which recordings have the same source, by the first of them: one tracing may be in several files.
    fn sources(&self) -> Vec<usize> {
        let mut known = HashMap::new();
        let metas = self.recordings.iter().map(|recording| recording.meta.began_ns);
        let sources = self.boots.iter().zip(metas).enumerate();
        sources
            .map(|(number, (boot, began))| *known.entry((*boot, began)).or_insert(number))
            .collect()
    }

    pub(super) fn recorded(&self, spans: &[Option<(i64, i64)>]) -> Vec<Recorded> {
        let sources = self.sources();
        let seen = &self.totals.seen;
        let has_ended = |number: usize| {
            let same = sources.iter().zip(seen).filter(|(source, _)| **source == sources[number]);
            same.into_iter().any(|(_, seen)| seen.end.is_some())
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

    /// What was not recorded, of each source by its end, else by its last look.
    pub(super) fn counts(&self) -> Counts {
        let mut last: BTreeMap<usize, (i64, Counts)> = BTreeMap::new();
        for (source, seen) in self.sources().into_iter().zip(&self.totals.seen) {
            let end = seen.end.as_ref().map(|end| (end.at_ns, end.counts));
            let look = seen.counts.map(|counts| (i64::MIN, counts));
            let Some(counts) = end.or(look) else { continue };
            let known = last.entry(source).or_insert(counts);
            if counts.0 >= known.0 {
                *known = counts;
            }
        }
        last.values().fold(Counts::default(), |sum, (_, counts)| Counts {
            lost: sum.lost.saturating_add(counts.lost),
            missed_begin: sum.missed_begin.saturating_add(counts.missed_begin),
            table_full: sum.table_full.saturating_add(counts.table_full),
            skipped: sum.skipped.saturating_add(counts.skipped),
            unfinished: sum.unfinished.saturating_add(counts.unfinished),
        })
    }
}
