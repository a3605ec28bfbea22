//! Views: what is shown of the stalls. A view knows nothing of where they come from.
//!
//! One file for each output; they are chosen between here only. A view appends to a buffer, so that
//! the caller alone decides when to write and what to do about a closed pipe.

mod certificate;
mod episode_json;
pub mod flame;
pub(crate) mod folded;
mod histogram;
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
use crate::histogram::{By, Histograms, Key, Tallied};
use crate::names::Names;
use crate::scope::Oom;
use crate::stall::{Detail, Stall};
use crate::verdict::{Evidence, Verdict};

pub use self::{
    certificate::Certificate,
    folded::{Folded, FoldedOptions},
    histogram::Blocks,
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

    /// Called between histograms: a good time to write what is there, rather than to hold all.
    fn pause(&mut self);
}

impl Sink for Vec<u8> {
    fn lines(&mut self) -> &mut Vec<u8> {
        self
    }

    fn pause(&mut self) {}
}

/// One way to show stalls. The calls are `begin`, any of `stall` and `interval`, `end`.
#[derive(Debug)]
pub enum View {
    /// A line for each stall.
    Rows(Rows),
    /// A line for each episode.
    StallRows(StallRows),
    /// An object for each stall.
    Json(Json),
    /// A block of text for each key.
    TextHistograms(Histograms, Blocks),
    /// An object for each key.
    JsonHistograms(Histograms, Json),
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
        let histograms = options
            .histogram
            .map(|HistogramOptions { by, max_keys }| Histograms::new(by, max_keys));
        match (options.format, histograms) {
            (Format::Text, None) if options.subject == Subject::Stalls => {
                Self::StallRows(StallRows::new(options))
            }
            (Format::Text, None) => Self::Rows(Rows::new(options)),
            (Format::Json, None) => Self::Json(Json::new(&options)),
            (Format::Text, Some(histograms)) => {
                Self::TextHistograms(histograms, Blocks::new(options))
            }
            (Format::Json, Some(histograms)) => {
                Self::JsonHistograms(histograms, Json::new(&options))
            }
        }
    }

    /// Starts at `at`: the header of rows, unless quiet.
    pub fn begin(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        in_memory(match self {
            Self::Rows(rows) => rows.header(out),
            Self::StallRows(rows) => rows.header(out),
            Self::TextHistograms(..) | Self::Folded(_) => Ok(()),
            Self::Json(json) | Self::JsonHistograms(_, json) => {
                json.begin(at);
                Ok(())
            }
        });
    }

    /// Shows a stall, or counts it.
    pub fn stall(&mut self, stall: &Stall, names: &mut Names, out: &mut Vec<u8>) {
        in_memory(match self {
            Self::Rows(rows) => rows.stall(stall, names, out),
            // They show what stalls are put together to.
            Self::StallRows(_) => Ok(()),
            Self::Json(json) => json.stall(stall, names, out),
            Self::TextHistograms(histograms, _) | Self::JsonHistograms(histograms, _) => {
                // A cgroup may be gone by the time its histogram is shown.
                if let (By::Cgroup, Some(id)) = (histograms.by(), stall.cgroup_id) {
                    let _remembered: Option<&[u8]> = names.cgroups.path(id);
                }
                histograms.record(stall);
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
            Self::TextHistograms(histograms, _) | Self::JsonHistograms(histograms, _) => {
                if let (By::Cgroup, Some(id)) = (histograms.by(), episode.cgroup_id) {
                    let _remembered: Option<&[u8]> = names.cgroups.path(id);
                }
                histograms.record_episode(episode);
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
        if let Self::TextHistograms(histograms, _) | Self::JsonHistograms(histograms, _) = self {
            if let Key::Cgroup(Some(id)) = tallied.key {
                let _remembered: Option<&[u8]> = names.cgroups.path(id);
            }
            histograms.add(tallied);
        }
    }

    /// Shows the histograms of the interval that ends at `at`, and starts the next one.
    pub fn interval(&mut self, names: &mut Names, at: Timestamp, out: &mut impl Sink) {
        in_memory(match self {
            Self::Rows(_) | Self::StallRows(_) | Self::Json(_) | Self::Folded(_) => Ok(()),
            Self::TextHistograms(histograms, blocks) => {
                let written = blocks.interval(histograms, names, at, out);
                histograms.clear();
                written
            }
            Self::JsonHistograms(histograms, json) => {
                let written = json.interval(histograms, names, at, out);
                histograms.clear();
                written
            }
        });
    }

    /// Ends at `at`: histograms that have not been shown, folded stacks, and in JSON the summary. Text leaves the
    /// summary to the caller, as it is no part of the data.
    pub fn end(
        &mut self,
        names: &mut Names,
        at: Timestamp,
        summary: &Summary,
        out: &mut impl Sink,
    ) {
        if let Self::TextHistograms(histograms, _) | Self::JsonHistograms(histograms, _) = self
            && !histograms.is_empty()
        {
            self.interval(names, at, out);
        }
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
