//! Whether memtrace and the oracle saw the same stalls.
//!
//! Both measure a stall between the same two tracepoints, one a little later than the other. So the
//! two measurements of a stall overlap, and two stalls of one thread and mechanism never do: what
//! overlaps is the same stall, however busy the host is.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    host::{has_preemptible_tracepoints, is_guest},
    oracle::{Mechanism, Stall},
    rows::Row,
    run::Finished,
};

/// How far the times of the two may be apart.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most of the times agree within this: the cost of the probes themselves and an interrupt.
    pub usual: Duration,
    /// Share of the times that agree within `usual`.
    pub share: f64,
    /// So many may always be further apart: of a few stalls, those that an interrupt hit are more than
    /// that share.
    pub few: usize,
    /// All of the times agree within this. Between the two measurements, the host may take the
    /// virtual CPU away for as long as it likes; it is seldom more than a tick or two.
    pub limit: Duration,
}

/// Those of a machine that is not emulated.
pub const BOUNDS: Bounds = Bounds {
    usual: Duration::from_micros(50),
    share: 0.99,
    few: 1,
    limit: Duration::from_millis(20),
};

/// Those of a guest. Its CPUs are threads of a busy machine, many times slower than its clock, and
/// take turns: the probes take longer, and now and then the other CPU has its turn between them.
pub const GUEST_BOUNDS: Bounds = Bounds {
    usual: Duration::from_millis(2),
    share: 0.95,
    few: 3,
    limit: Duration::from_millis(500),
};

/// Those of a guest whose kernel lets a thread be preempted between the two measurements: it waits for
/// as long as others want to run. So it is the median that tells.
pub const PREEMPTIBLE_GUEST_BOUNDS: Bounds =
    Bounds { share: 0.5, limit: Duration::from_secs(5), ..GUEST_BOUNDS };

/// Those of this machine.
#[must_use]
pub fn bounds() -> Bounds {
    match (is_guest(), has_preemptible_tracepoints()) {
        (false, _) => BOUNDS,
        (true, false) => GUEST_BOUNDS,
        (true, true) => PREEMPTIBLE_GUEST_BOUNDS,
    }
}

/// Where a thread can be preempted between the two measurements, it can be moved to another CPU as
/// well. Two switches of threads and what the other thread does take longer than this.
const SWITCH: Duration = Duration::from_micros(100);

/// The oracle's times are rounded to microseconds.
const ROUNDING_NS: u64 = 1000;

/// The stalls that both saw, and those that only one did.
#[derive(Debug)]
pub struct Matched<'a> {
    /// Seen by both.
    pub pairs: Vec<(&'a Stall, &'a Row)>,
    /// Seen by the oracle only.
    pub missing: Vec<&'a Stall>,
    /// Seen by memtrace only.
    pub extra: Vec<&'a Row>,
}

/// What both saw of one thread and mechanism.
#[derive(Default)]
struct Sequences<'a> {
    stalls: Vec<&'a Stall>,
    rows: Vec<&'a Row>,
}

/// Matches stalls by thread, mechanism and time.
///
/// # Panics
/// When one of the two shows overlapping stalls of one thread and mechanism.
#[must_use]
#[track_caller]
pub fn match_up<'a>(
    stalls: impl IntoIterator<Item = &'a Stall>,
    rows: impl IntoIterator<Item = &'a Row>,
) -> Matched<'a> {
    let mut keys: BTreeMap<(u32, Mechanism), Sequences<'_>> = BTreeMap::new();
    for stall in stalls {
        keys.entry((stall.tid, stall.mechanism)).or_default().stalls.push(stall);
    }
    for row in rows {
        keys.entry((row.tid, row.mechanism)).or_default().rows.push(row);
    }
    let mut matched = Matched { pairs: Vec::new(), missing: Vec::new(), extra: Vec::new() };
    for Sequences { mut stalls, mut rows } in keys.into_values() {
        stalls.sort_by_key(|stall| stall.begin_ns);
        rows.sort_by_key(|row| row.start_ns);
        for pair in rows.windows(2) {
            assert!(
                pair[0].end_ns() <= pair[1].start_ns,
                "one thread in two stalls at once: {:?} and {:?}",
                pair[0],
                pair[1]
            );
        }
        matched.sequences(&stalls, &rows);
    }
    matched
}

impl<'a> Matched<'a> {
    /// Leaves out what memtrace need not have seen: stalls not wholly within the time in which it
    /// was there for certain.
    #[must_use]
    pub fn within(mut self, memtrace: &Finished) -> Self {
        self.missing.retain(|stall| {
            stall.begin_ns > memtrace.attached_ns && stall.end_ns < memtrace.stopping_ns
        });
        self
    }

    /// Matches the stalls of one thread and mechanism, in the order of time.
    fn sequences(&mut self, stalls: &[&'a Stall], rows: &[&'a Row]) {
        let mut rows = rows.iter().copied().peekable();
        for &stall in stalls {
            while let Some(row) = rows.next_if(|row| row.end_ns() + ROUNDING_NS < stall.begin_ns) {
                self.extra.push(row);
            }
            match rows.next_if(|row| row.start_ns <= stall.end_ns + ROUNDING_NS) {
                Some(row) => self.pairs.push((stall, row)),
                None => self.missing.push(stall),
            }
        }
        self.extra.extend(rows);
    }

    /// Checks that none is missing and none extra, and that what both saw is the same.
    ///
    /// # Panics
    /// When that is not so.
    #[track_caller]
    pub fn assert_same(&self) {
        self.assert_none_missing();
        self.assert_none_extra();
        self.assert_pairs_agree();
    }

    /// Checks that memtrace saw all that the oracle saw.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn assert_none_missing(&self) {
        let (count, first) = (self.missing.len(), self.missing.first());
        assert!(
            count == 0,
            "memtrace missed {count} stalls, {} agree; the first: {first:#?}",
            self.pairs.len()
        );
    }

    /// Checks that memtrace saw nothing else.
    ///
    /// # Panics
    /// When it did.
    #[track_caller]
    pub fn assert_none_extra(&self) {
        let (count, first) = (self.extra.len(), self.extra.first());
        assert!(
            count == 0,
            "memtrace made {count} stalls up, {} agree; the first: {first:#?}",
            self.pairs.len()
        );
    }

    /// Checks that what both saw is the same.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_pairs_agree(&self) {
        self.assert_fields_agree();
        self.assert_times_agree();
    }

    /// Checks that what both saw is the same, but for the times: how far these are apart says
    /// nothing where many more threads than CPUs want to run.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_fields_agree(&self) {
        for (stall, row) in &self.pairs {
            assert_eq!(
                row.detail, stall.detail,
                "memtrace's row {} is not the oracle's {stall:#?}",
                row.value
            );
            let apart = row.end_ns().abs_diff(stall.end_ns);
            let may_have_moved =
                has_preemptible_tracepoints() && u128::from(apart) > SWITCH.as_nanos();
            assert!(
                row.cpu == stall.cpu || may_have_moved,
                "another CPU in memtrace's row {} than in the oracle's {stall:#?}",
                row.value
            );
            if let Some(comm) = &stall.comm {
                assert_eq!(
                    row.comm, *comm,
                    "another name in memtrace's row {} than in the oracle's {stall:#?}",
                    row.value
                );
            }
        }
    }

    /// Checks that the times of what both saw are within [`Bounds`] of each other.
    ///
    /// # Panics
    /// When they are not.
    #[track_caller]
    pub fn assert_times_agree(&self) {
        let starts = self.pairs.iter().map(|(stall, row)| row.start_ns.abs_diff(stall.begin_ns));
        let ends = self.pairs.iter().map(|(stall, row)| row.end_ns().abs_diff(stall.end_ns));
        let durations = self
            .pairs
            .iter()
            .map(|(stall, row)| row.duration_ns.abs_diff(stall.end_ns - stall.begin_ns));
        assert_within_bounds("begin", starts.collect());
        assert_within_bounds("end", ends.collect());
        assert_within_bounds("duration", durations.collect());
    }
}

/// Checks that two measurements of the same times differ by no more than [`Bounds`] allow, in
/// nanoseconds.
///
/// # Panics
/// When they do.
#[track_caller]
pub fn assert_within_bounds(what: &str, mut differences: Vec<u64>) {
    let Bounds { usual, share, few, limit } = bounds();
    differences.sort_unstable();
    let Some(&largest) = differences.last() else { return };
    let within =
        differences.partition_point(|&difference| u128::from(difference) <= usual.as_nanos());
    let found = within as f64 / differences.len() as f64;
    let median = differences[differences.len() / 2];
    println!(
        "{what}: differences of {median} ns at the median, {largest} ns at most, {found:.4} within {usual:?}"
    );
    assert!(
        differences.len() - within <= few || found >= share,
        "the {what} differs by more than {usual:?} in {} of {}",
        differences.len() - within,
        differences.len()
    );
    assert!(
        u128::from(largest) <= limit.as_nanos(),
        "the {what} differs by {largest} ns, more than {limit:?}"
    );
}
