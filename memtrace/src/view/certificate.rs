//! The certificate: how long a process was held up at most, and how far that can be said.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::coverage::Coverage;
use crate::kind::Kind;

use super::Summary;

/// How long one process was held up at most. It claims no more than was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The process.
    pub pid: u32,
    /// Its longest stall, in nanoseconds; 0 where none was seen.
    pub longest_ns: u64,
    /// How long was traced.
    pub duration: Duration,
    /// How many kinds of stalls were watched, of those that there are.
    pub watched: usize,
    /// How many stalls, of whichever process, were not seen whole.
    pub not_seen_whole: u64,
    /// Whether there were other filters, so that some of the process's stalls were left out.
    pub filtered: bool,
    /// Whether the process has ended since.
    pub has_ended: bool,
}

impl Certificate {
    /// Of a run that watched `coverage` and counted `summary`, of whose stalls nobody took `given_up`. What only
    /// the caller knows is left to be filled in.
    #[must_use]
    pub fn of(pid: u32, coverage: &Coverage, summary: &Summary, given_up: u64) -> Self {
        let unseen = [summary.lost, summary.missed_begin, summary.table_full, summary.skipped];
        let unseen = unseen.into_iter().chain([summary.unfinished]);
        Self {
            pid,
            longest_ns: 0,
            duration: summary.duration,
            watched: coverage.watched().count(),
            not_seen_whole: unseen.fold(given_up, u64::saturating_add),
            filtered: false,
            has_ended: false,
        }
    }
}

impl Display for Certificate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { pid, longest_ns, duration, watched, not_seen_whole, filtered, has_ended } = self;
        let seconds = duration.as_secs_f64();
        let of = if *filtered { "of what the other filters let pass " } else { "" };
        write!(f, "memtrace: longest stall {of}of PID {pid} in {seconds:.1} s: ")?;
        if *longest_ns == 0 {
            write!(f, "none seen")?;
        } else {
            write!(f, "{:.2} ms", Duration::from_nanos(*longest_ns).as_secs_f64() * 1e3)?;
        }
        write!(f, "; {watched} of {} kinds watched", Kind::ALL.len())?;
        if *not_seen_whole != 0 {
            write!(f, "; not counting {not_seen_whole} that were not seen whole")?;
        }
        if *has_ended {
            write!(f, "; it has ended since")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_claims_no_more_than_was_seen() {
        let mut coverage = Coverage::of(&Kind::ALL);
        coverage.lacks(Kind::Swapin, "no such function");
        coverage.lacks(Kind::Refault, "no such function");
        let summary = Summary { duration: Duration::from_mins(1), ..Summary::default() };
        let none = Certificate::of(1234, &coverage, &summary, 0);
        let some = Certificate { longest_ns: 80_000, ..none.clone() };
        assert_eq!(
            some.to_string(),
            "memtrace: longest stall of PID 1234 in 60.0 s: 0.08 ms; 12 of 14 kinds watched"
        );
        assert!(none.to_string().contains(": none seen; 12 of 14"));
        let lossy = Summary { lost: 2, unfinished: 1, ..summary };
        let lossy = Certificate::of(1, &coverage, &lossy, 4).to_string();
        assert!(lossy.ends_with("; not counting 7 that were not seen whole"), "{lossy}");
        let ended = Certificate { has_ended: true, ..none.clone() }.to_string();
        assert!(ended.ends_with("; 12 of 14 kinds watched; it has ended since"), "{ended}");
        let filtered = Certificate { filtered: true, ..none }.to_string();
        assert!(filtered.contains("longest stall of what the other filters let pass of PID 1234"));
    }
}
