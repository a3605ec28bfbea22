//! Views: what is shown of the stalls. A view knows nothing of where they come from.
//!
//! One file for each output; they are chosen between here only. A view appends to a buffer, so that
//! the caller alone decides when to write and what to do about a closed pipe.

mod certificate;
mod episode_json;
pub mod flame;
pub(crate) mod folded;
mod histogram;
mod intervals;
pub(crate) mod json;
pub(crate) mod line;
mod masks;
mod now;
pub(crate) mod parts;
mod rows;
mod second;
mod stacks;
mod stall_rows;
mod summary;
pub(crate) mod words;

#[cfg(test)]
pub(crate) mod fixtures;

use std::io;

use jiff::{Timestamp, tz::TimeZone};

use crate::coverage::Coverage;
use crate::episode::Episode;
use crate::histogram::{By, Key, Tallied};
use crate::names::Names;
use crate::scope::Oom;
use crate::stall::{Detail, Stall};
use crate::verdict::{Evidence, Verdict};

pub use self::{
    certificate::Certificate,
    folded::{Folded, FoldedOptions},
    histogram::Blocks,
    intervals::Intervals,
    json::Json,
    now::{NowOptions, NowView},
    rows::Rows,
    stall_rows::StallRows,
    summary::Summary,
};

/// What is shown and how.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own to the user")]
pub struct ViewOptions {
    /// Which stalls there will be.
    pub subject: Subject,
    /// For whom.
    pub format: Format,
    /// Histograms instead of each stall.
    pub histogram: Option<HistogramOptions>,
    /// Folded stacks instead of each stall.
    pub folded: Option<FoldedOptions>,
    /// Show the time of day.
    pub timestamp: bool,
    /// Where the time of day is that of.
    pub zone: TimeZone,
    /// Show the user id in rows.
    pub uid: bool,
    /// Show more columns in rows.
    pub extended: bool,
    /// Show the kernel stack of each stall.
    pub stacks: bool,
    /// Show the stack in user space of each stall.
    pub user_stacks: bool,
    /// Leave out the rows' header.
    pub quiet: bool,
}

/// Which stalls a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Reclaim of pages.
    Reclaim,
    /// Compaction of zones.
    Compaction,
    /// All mechanisms, in episodes.
    Stalls,
}

impl Subject {
    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reclaim => "reclaim",
            Self::Compaction => "compaction",
            Self::Stalls => "stalls",
        }
    }
}

/// For whom a view is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Which histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistogramOptions {
    /// What stalls are told apart by.
    pub by: By,
    /// How many keys there is room for.
    pub max_keys: usize,
}

/// What is to be expected of the reclaim of a target from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The id of a cgroup; 0 for the host.
    pub target: u64,
    /// Since when, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// The verdict; nothing where there is none any more.
    pub verdict: Option<Verdict>,
    /// What it is from.
    pub evidence: Evidence,
}

/// Where a view puts much at once: all histograms of an interval.
pub trait Sink {
    /// Whole lines are appended here.
    fn lines(&mut self) -> &mut Vec<u8>;

    /// Called between them: writes what is there, if it is much. Whether more may be appended now.
    fn make_room(&mut self) -> bool;
}

impl Sink for Vec<u8> {
    fn lines(&mut self) -> &mut Vec<u8> {
        self
    }

    fn make_room(&mut self) -> bool {
        true
    }
}

/// One way to show stalls. The calls are `begin`, any of `stall`, `interval` and `show_more`, `last_interval` and
/// `show_more` until all is shown, `end`.
#[derive(Debug)]
pub enum View {
    /// A line for each stall.
    Rows(Rows),
    /// A line for each episode.
    StallRows(StallRows),
    /// An object for each stall.
    Json(Json),
    /// A block of text for each key.
    TextHistograms(Intervals, Blocks),
    /// An object for each key.
    JsonHistograms(Intervals, Json),
    /// A line for each distinct stack.
    Folded(Folded),
}

impl View {
    /// The view that the options describe.
    #[must_use]
    pub fn new(options: ViewOptions) -> Self {
        if let Some(folded) = options.folded {
            return Self::Folded(Folded::new(folded));
        }
        match (options.format, options.histogram.map(Intervals::new)) {
            (Format::Text, None) if options.subject == Subject::Stalls => {
                Self::StallRows(StallRows::new(options))
            }
            (Format::Text, None) => Self::Rows(Rows::new(options)),
            (Format::Json, None) => Self::Json(Json::new(&options)),
            (Format::Text, Some(intervals)) => {
                Self::TextHistograms(intervals, Blocks::new(options))
            }
            (Format::Json, Some(intervals)) => Self::JsonHistograms(intervals, Json::new(&options)),
        }
    }

    /// Starts at `at`: the header of rows, unless quiet.
    pub fn begin(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        in_memory(match self {
            Self::Rows(rows) => rows.header(out),
            Self::StallRows(rows) => rows.header(out),
            Self::TextHistograms(intervals, _) | Self::JsonHistograms(intervals, _) => {
                intervals.begin(at);
                Ok(())
            }
            Self::Json(_) | Self::Folded(_) => Ok(()),
        });
    }

    /// Shows a stall, or counts it.
    pub fn stall(&mut self, stall: &Stall, names: &mut Names, out: &mut Vec<u8>) {
        in_memory(match self {
            Self::Rows(rows) => rows.stall(stall, names, out),
            // They show what stalls are put together to.
            Self::StallRows(_) => Ok(()),
            Self::Json(json) => json.stall(stall, names, out),
            Self::TextHistograms(Intervals { counted, .. }, _)
            | Self::JsonHistograms(Intervals { counted, .. }, _) => {
                // A cgroup may be gone by the time its histogram is shown.
                if let (By::Cgroup, Some(id)) = (counted.by(), stall.cgroup_id) {
                    let _remembered: Option<&[u8]> = names.cgroups.path(id);
                }
                counted.record(stall);
                Ok(())
            }
            Self::Folded(folded) => {
                folded.stall(stall, names);
                Ok(())
            }
        });
    }

    /// Shows an episode, or counts it.
    pub fn episode(&mut self, episode: &Episode, names: &mut Names, out: &mut Vec<u8>) {
        in_memory(match self {
            Self::Rows(_) => Ok(()),
            Self::StallRows(rows) => rows.episode(episode, names, out),
            Self::Folded(folded) => {
                folded.episode(episode, names);
                Ok(())
            }
            Self::Json(json) => json.episode(episode, names, out),
            Self::TextHistograms(Intervals { counted, .. }, _)
            | Self::JsonHistograms(Intervals { counted, .. }, _) => {
                if let (By::Cgroup, Some(id)) = (counted.by(), episode.cgroup_id) {
                    let _remembered: Option<&[u8]> = names.cgroups.path(id);
                }
                counted.record_episode(episode);
                Ok(())
            }
        });
    }

    /// Shows that a process was chosen to be killed. Histograms have no use for it.
    pub fn oom(&mut self, oom: &Oom, names: &mut Names, out: &mut Vec<u8>) {
        in_memory(match self {
            Self::StallRows(rows) => rows.oom(oom, names, out),
            Self::Json(json) => json.oom(oom, names, out),
            Self::Rows(_)
            | Self::Folded(_)
            | Self::TextHistograms(..)
            | Self::JsonHistograms(..) => Ok(()),
        });
    }

    /// Shows that a target is judged otherwise than before. Histograms have no use for it.
    pub fn verdict(&mut self, judged: &Judged, names: &mut Names, out: &mut Vec<u8>) {
        in_memory(match self {
            Self::StallRows(rows) => rows.verdict(judged, names, out),
            Self::Json(json) => json.verdict(judged, names, out),
            Self::Rows(_)
            | Self::Folded(_)
            | Self::TextHistograms(..)
            | Self::JsonHistograms(..) => Ok(()),
        });
    }

    /// Ends with what was watched and what that certifies, in JSON; text leaves that to the caller.
    pub fn coverage(
        &mut self,
        coverage: &Coverage,
        certificates: &[Certificate],
        at: Timestamp,
        out: &mut Vec<u8>,
    ) {
        if matches!(self, Self::Json(_) | Self::JsonHistograms(..)) && !coverage.is_empty() {
            in_memory(Json::coverage(coverage, at, out));
            for certificate in certificates {
                in_memory(Json::certificate(certificate, at, out));
            }
        }
    }

    /// Adds stalls that their source has counted to the histograms. Rows have no use for them.
    pub fn tallied(&mut self, tallied: &Tallied, names: &mut Names) {
        if let Self::TextHistograms(intervals, _) | Self::JsonHistograms(intervals, _) = self {
            if let Key::Cgroup(Some(id)) = tallied.key {
                let _remembered: Option<&[u8]> = names.cgroups.path(id);
            }
            intervals.counted.add(tallied);
        }
    }

    /// Whether it only counts, and shows nothing but at the end of an interval.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self, Self::TextHistograms(..) | Self::JsonHistograms(..) | Self::Folded(_))
    }

    /// Shows the histograms of the interval that ends at `at`, as far as there is room, and starts the next one. All of
    /// the one before must [be shown](Self::is_shown).
    pub fn interval(&mut self, names: &mut Names, at: Timestamp, out: &mut impl Sink) {
        if let Self::TextHistograms(intervals, blocks) = self {
            in_memory(blocks.interval(intervals.counted.is_empty(), at, out.lines()));
        }
        if let Self::TextHistograms(intervals, _) | Self::JsonHistograms(intervals, _) = self {
            intervals.end(at);
        }
        self.show_more(names, out);
    }

    /// Shows the rest of an interval's histograms, as far as there is room.
    pub fn show_more(&mut self, names: &mut Names, out: &mut impl Sink) {
        in_memory(match self {
            Self::TextHistograms(intervals, _) => intervals
                .show(out, |interval, key, times, out| {
                    Blocks::histogram(interval, key, times, names, out)
                }),
            Self::JsonHistograms(intervals, json) => intervals
                .show(out, |interval, key, times, out| {
                    json.histogram(interval, key, times, names, out)
                }),
            _ => Ok(()),
        });
    }

    /// Whether all of the interval that ended last is shown.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        match self {
            Self::TextHistograms(intervals, _) | Self::JsonHistograms(intervals, _) => {
                intervals.is_shown()
            }
            _ => true,
        }
    }

    /// Forgets what is not shown of the interval that ended last: how many stalls there are in it.
    pub fn give_up(&mut self) -> u64 {
        match self {
            Self::TextHistograms(intervals, _) | Self::JsonHistograms(intervals, _) => {
                intervals.give_up()
            }
            _ => 0,
        }
    }

    /// Ends the last interval at `at`, unless nothing stalled in it.
    pub fn last_interval(&mut self, names: &mut Names, at: Timestamp, out: &mut impl Sink) {
        if let Self::TextHistograms(intervals, _) | Self::JsonHistograms(intervals, _) = self
            && !intervals.counted.is_empty()
        {
            self.interval(names, at, out);
        }
    }

    /// Ends at `at`: folded stacks, and in JSON the summary. Text leaves the summary to the caller, as it is no part of
    /// the data.
    pub fn end(&mut self, at: Timestamp, summary: &Summary, out: &mut impl Sink) {
        if let Self::Folded(folded) = self {
            folded.show(out);
        }
        if let Self::Json(json) | Self::JsonHistograms(_, json) = self {
            in_memory(json.summary(summary, at, out.lines()));
        }
    }
}

/// Which stalls this one is of.
fn subject_of(stall: &Stall) -> Subject {
    match stall.detail {
        Detail::Reclaim(_) => Subject::Reclaim,
        Detail::Compaction(_) => Subject::Compaction,
    }
}

fn in_memory(written: io::Result<()>) {
    written.expect("writing into memory does not fail, and nothing that is written refuses to be");
}
