//! The summary: what was seen, and everything that was not.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::text::Printable;

/// Counts of one whole run. Every stall that the probes saw is counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Stalls that the probes delivered.
    pub stalls: u64,
    /// Stalls that the ring buffer had no room for.
    pub lost: u64,
    /// Stalls that began before the probes were there.
    pub missed_begin: u64,
    /// Stalls that the table of stalls in progress had no room for.
    pub table_full: u64,
    /// Runs of a probe that the kernel left out, as the same probe ran on that CPU already or, since 7.0,
    /// a map was used there just then.
    pub skipped: u64,
    /// Stalls that had not ended when tracing did.
    pub unfinished: u64,
    /// How long was traced.
    pub duration: Duration,
    /// What this kernel lacks, with the reasons.
    pub unavailable: Vec<String>,
}

impl Summary {
    /// Whether every stall was seen that began and ended while tracing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        [self.lost, self.missed_begin, self.table_full, self.skipped] == [0; 4]
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            stalls,
            lost,
            missed_begin,
            table_full,
            skipped,
            unfinished,
            duration,
            unavailable,
        } = self;
        let s = if *stalls == 1 { "" } else { "s" };
        write!(f, "memtrace: {stalls} stall{s} in {:.1} s; ", duration.as_secs_f64())?;
        write!(f, "lost {lost} (ring buffer full), ")?;
        write!(f, "missed begin {missed_begin} (began before tracing), ")?;
        write!(f, "table full {table_full} (too many at once), ")?;
        if *skipped != 0 {
            write!(f, "probes skipped {skipped} (by the kernel, where one ran already), ")?;
        }
        write!(f, "unfinished {unfinished} (still stalled at the end)")?;
        let mut separator = "; not available on this kernel: ";
        for lacking in unavailable {
            write!(f, "{separator}{}", Printable(lacking.as_bytes()))?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_named_on_one_line() {
        let summary = Summary {
            stalls: 1234,
            lost: 1,
            missed_begin: 2,
            table_full: 3,
            skipped: 5,
            unfinished: 4,
            duration: Duration::from_millis(9_960),
            unavailable: vec!["free memory (no\nsymbol)".to_owned(), "target cgroup".to_owned()],
        };
        assert_eq!(
            summary.to_string(),
            "memtrace: 1234 stalls in 10.0 s; lost 1 (ring buffer full), \
             missed begin 2 (began before tracing), table full 3 (too many at once), \
             probes skipped 5 (by the kernel, where one ran already), \
             unfinished 4 (still stalled at the end); \
             not available on this kernel: free memory (no\\x0asymbol), target cgroup"
        );
    }

    #[test]
    fn what_was_not_seen_makes_it_incomplete() {
        assert!(Summary { stalls: 9, unfinished: 1, ..Summary::default() }.is_complete());
        assert!(!Summary { lost: 1, ..Summary::default() }.is_complete());
        assert!(!Summary { missed_begin: 1, ..Summary::default() }.is_complete());
        assert!(!Summary { table_full: 1, ..Summary::default() }.is_complete());
        assert!(!Summary { skipped: 1, ..Summary::default() }.is_complete());
    }

    #[test]
    fn nothing_is_lacking_where_nothing_is_named() {
        let summary = Summary { stalls: 1, ..Summary::default() }.to_string();
        assert!(summary.starts_with("memtrace: 1 stall in 0.0 s; lost 0 "), "{summary}");
        assert!(summary.ends_with("unfinished 0 (still stalled at the end)"), "{summary}");
    }
}
