//! What is known of a recording as a whole, and the notes between its stalls.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::clock::WallClock;
use crate::coverage::Coverage;
use crate::kind::Kind;
use crate::names::{EnumNames, GfpNames, Names};
use crate::scope::Oom;
use crate::symbols::Symbols;
use crate::verdict::State;
use crate::view::Summary;

/// What is known of a recording before its first stall.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// The version of memtrace that made it.
    pub memtrace: String,
    /// The host's name.
    pub host: String,
    /// The kernel's release.
    pub kernel: String,
    /// Which boot of the host it is of, /proc/sys/kernel/random/boot_id: ids and times are of this boot.
    pub boot: String,
    /// How many CPUs are online.
    pub cpus: u32,
    /// Size of a page in bytes.
    pub page_size: u64,
    /// What was traced, in words.
    pub what: String,
    /// Only threads of these processes were traced; all where there are none.
    pub processes: Vec<u32>,
    /// What else a stall had to pass to be recorded, as options of the command line.
    pub filters: Vec<String>,
    /// When it began, in nanoseconds since 1970.
    pub began_ns: i64,
    /// When the run of memtrace began that made it, likewise: what a flight recorder writes is of the same run, and
    /// blocks of the same number are the same.
    pub run_ns: i64,
    /// How long each interval of histograms was that were shown meanwhile, in nanoseconds; 0 where there were none.
    pub interval_ns: u64,
    /// Whether scopes follow after what was in them, with the parts of their time.
    pub scopes: bool,
    /// Whether kernel stacks were taken.
    pub stacks: bool,
    /// Whether stacks in user space were taken.
    pub user_stacks: bool,
    /// The kinds of stalls that were asked for, each with the reason where it was not watched.
    pub kinds: Vec<(String, Option<String>)>,
    /// Flags of allocations, by their bits.
    pub gfp: Vec<(u32, String)>,
    /// The kernel's `enum migrate_mode`.
    pub modes: Vec<(u32, String)>,
    /// The kernel's `enum compact_result`.
    pub statuses: Vec<(u32, String)>,
    /// The kernel's `enum vmscan_throttle_state`.
    pub throttles: Vec<(u32, String)>,
    /// Why it was written, where a trigger made it.
    pub trigger: Option<Fired>,
}

/// A trigger has fired.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fired {
    /// The trigger as it was given.
    pub trigger: String,
    /// What has made it fire, in words.
    pub cause: String,
    /// When, in nanoseconds since 1970.
    pub at_ns: i64,
    /// The same in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_monotonic_ns: u64,
}

impl Meta {
    /// The kinds that were watched and those that were not.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        let known = |name: &str| Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let kinds: Vec<_> = self.kinds.iter().filter_map(|(name, _)| known(name)).collect();
        let mut coverage = Coverage::of(&kinds);
        for (name, reason) in &self.kinds {
            if let (Some(kind), Some(reason)) = (known(name), reason) {
                coverage.lacks(kind, reason);
            }
        }
        coverage
    }

    /// Puts a coverage into words.
    pub fn set_coverage(&mut self, coverage: &Coverage) {
        let watched = coverage.watched().map(|kind| (kind.name().to_owned(), None));
        let missing = coverage.missing();
        let missing = missing.map(|(kind, why)| (kind.name().to_owned(), Some(why.to_owned())));
        self.kinds = watched.chain(missing).collect();
    }

    /// All that a stall had to pass to be recorded, as options of the command line; empty where all were.
    #[must_use]
    pub fn all_filters(&self) -> String {
        let pids: Vec<_> = self.processes.iter().map(u32::to_string).collect();
        let pids = (!pids.is_empty()).then(|| format!("--pid {}", pids.join(",")));
        let all: Vec<_> = pids.into_iter().chain(self.filters.iter().cloned()).collect();
        all.join(" ")
    }

    /// Whether all stalls of a process were recorded, of those kinds that were watched.
    #[must_use]
    pub fn has_all_of(&self, pid: u32) -> bool {
        self.filters.is_empty() && (self.processes.is_empty() || self.processes.contains(&pid))
    }

    /// Of some kinds, those that were not even asked for. Where it is not known which were, there are none.
    #[must_use]
    pub fn kinds_left_out(&self, kinds: &[Kind]) -> Vec<Kind> {
        let is_known = |kind: &&Kind| self.kinds.iter().any(|(name, _)| name == kind.name());
        let unknown = kinds.iter().filter(|kind| !is_known(kind)).copied();
        if self.kinds.is_empty() { Vec::new() } else { unknown.collect() }
    }

    /// The names that hold for all of the recording; its blocks bring the others, and the time of day.
    #[must_use]
    pub fn names(&self) -> Names {
        Names {
            gfp: GfpNames(self.gfp.clone()),
            modes: Self::enum_names(&self.modes),
            statuses: Self::enum_names(&self.statuses),
            throttles: Self::enum_names(&self.throttles),
            cgroups: Cgroups::default(),
            clock: WallClock::from_epoch(timestamp(0)),
            symbols: Symbols::from_frames([]),
            page_size: self.page_size,
        }
    }

    /// Names of an enumeration.
    #[must_use]
    pub fn enum_names(names: &[(u32, String)]) -> EnumNames {
        EnumNames(names.to_vec())
    }
}

/// What stands between stalls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// From here on this is the time of day when `CLOCK_MONOTONIC` was zero, in nanoseconds since 1970.
    Clock(i64),
    /// A process was chosen to be killed.
    Oom(Box<Oom>),
    /// All stalls that had ended by then stand before this.
    Settled(Settled),
    /// What is known of a cgroup (0 is the host) that pages were reclaimed from.
    State(u64, Option<State>),
    /// An interval of histograms ended at the first time, in nanoseconds since 1970; each is as long as the
    /// second says, in nanoseconds.
    Interval(i64, u64),
    /// The system around the stalls.
    Look(Look),
    /// Nothing follows.
    End(End),
}

/// All that had ended at some time was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settled {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// Threads that were held up then, and since when.
    pub held: Vec<(u32, u64)>,
}

/// The state of the system at one time, in the kernel's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Look {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Text by the path of the file; of /proc/zoneinfo only each zone's pages and watermarks.
    pub files: BTreeMap<String, String>,
    /// The cgroups that stalled, by id: text by the name of the file.
    pub cgroups: BTreeMap<u64, BTreeMap<String, String>>,
    /// What had been lost until then.
    pub counts: Counts,
}

/// What was not delivered, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of `Summary`")]
pub struct Counts {
    pub lost: u64,
    pub missed_begin: u64,
    pub table_full: u64,
    pub skipped: u64,
    pub unfinished: u64,
}

/// How a recording ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// When, in nanoseconds since 1970.
    pub at_ns: i64,
    /// How long was traced, in nanoseconds.
    pub duration_ns: u64,
    /// What was not delivered.
    pub counts: Counts,
    /// What the kernel lacked.
    pub unavailable: Vec<String>,
    /// Of the processes that were asked for, those that had ended.
    pub gone: Vec<u32>,
}

impl End {
    /// The summary of so many stalls.
    #[must_use]
    pub fn summary(&self, stalls: u64) -> Summary {
        let Counts { lost, missed_begin, table_full, skipped, unfinished } = self.counts;
        Summary {
            stalls,
            lost,
            missed_begin,
            table_full,
            skipped,
            unfinished,
            duration: Duration::from_nanos(self.duration_ns),
            unavailable: self.unavailable.clone(),
        }
    }
}

/// Nanoseconds since 1970, from 1677 to 2262; beyond, the nearest of them.
#[must_use]
pub fn since_1970_ns(at: Timestamp) -> i64 {
    let ns = at.as_nanosecond();
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

/// The time of day.
#[must_use]
pub fn timestamp(since_1970_ns: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(since_1970_ns)).unwrap_or(Timestamp::UNIX_EPOCH)
}
