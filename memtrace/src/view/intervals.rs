//! Histograms of one interval after the other: counted, ended, and shown as the reader has room for them.

use std::{io, vec};

use jiff::Timestamp;

use super::{HistogramOptions, Sink};
use crate::histogram::{By, Histograms, Key, Times};

/// The histograms that are being counted, and what is still to be shown of the interval before.
#[derive(Debug)]
pub struct Intervals {
    pub(super) counted: Histograms,
    /// When the present interval began.
    since: Timestamp,
    shown: Interval,
    unshown: vec::IntoIter<(Key, Box<Times>)>,
}

/// An interval that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub since: Timestamp,
    pub at: Timestamp,
    pub by: By,
    /// How many keys there was room for.
    pub max_keys: usize,
}

impl Intervals {
    pub(super) fn new(options: HistogramOptions) -> Self {
        let HistogramOptions { by, max_keys } = options;
        let since = Timestamp::UNIX_EPOCH;
        Self {
            counted: Histograms::new(by, max_keys),
            since,
            shown: Interval { since, at: since, by, max_keys },
            unshown: Vec::new().into_iter(),
        }
    }

    /// Starts at `at`.
    pub(super) fn begin(&mut self, at: Timestamp) {
        self.since = at;
    }

    /// Ends the interval at `at`. All of the one before must have been shown.
    pub(super) fn end(&mut self, at: Timestamp) {
        debug_assert!(self.is_shown(), "histograms are lost");
        self.shown = Interval { since: self.since, at, ..self.shown };
        self.since = at;
        self.unshown = self.counted.take().into_iter();
    }

    /// Shows histograms of the interval that ended last by `show`, as long as there are any and room for more.
    pub(super) fn show<S: Sink>(
        &mut self,
        out: &mut S,
        mut show: impl FnMut(Interval, Key, &Times, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        while out.make_room()
            && let Some((key, times)) = self.unshown.next()
        {
            show(self.shown, key, &times, out.lines())?;
        }
        Ok(())
    }

    /// Whether there are none left.
    pub(super) fn is_shown(&self) -> bool {
        self.unshown.as_slice().is_empty()
    }

    /// Forgets what is still to be shown: how many stalls there are in it.
    pub(super) fn give_up(&mut self) -> u64 {
        self.unshown.by_ref().map(|(_, times)| times.count()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{at, histograms, names, reclaim};
    use super::super::{Format, View};
    use super::*;
    use crate::stall::Stall;

    /// A reader that takes one thing each time it is asked.
    #[derive(Default)]
    struct Narrow {
        lines: Vec<u8>,
        full: bool,
    }

    impl Sink for Narrow {
        fn lines(&mut self) -> &mut Vec<u8> {
            self.full = true;
            &mut self.lines
        }

        fn make_room(&mut self) -> bool {
            !self.full
        }
    }

    impl Narrow {
        fn take(&mut self) -> String {
            self.full = false;
            String::from_utf8(std::mem::take(&mut self.lines)).expect("views show UTF-8")
        }
    }

    fn lasting(uid: u32, duration_ns: u64) -> Stall {
        Stall { duration_ns, uid, ..reclaim() }
    }

    #[test]
    fn histograms_wait_for_room_while_others_are_counted() {
        for format in [Format::Text, Format::Json] {
            let (mut view, mut names, mut out) =
                (View::new(histograms(By::Uid, format)), names(), Narrow::default());
            view.begin(at(0), &mut Vec::new());
            for (uid, duration_ns) in [(1001, 9_000_000), (1002, 7_000_000)] {
                view.stall(&lasting(uid, duration_ns), &mut names, &mut Vec::new());
            }
            view.interval(&mut names, at(1), &mut out);
            view.stall(&lasting(1003, 8_000_000), &mut names, &mut Vec::new());
            let mut shown = Vec::new();
            while !view.is_shown() {
                shown.push(out.take());
                view.show_more(&mut names, &mut out);
            }
            shown.push(out.take());
            let uids = |text: &String| {
                [1001, 1002, 1003]
                    .into_iter()
                    .filter(|uid| text.contains(&uid.to_string()))
                    .collect::<Vec<_>>()
            };
            let shown: Vec<_> = shown.iter().map(uids).filter(|uids| !uids.is_empty()).collect();
            assert_eq!(shown, [[1001], [1002]], "{format:?}");

            view.last_interval(&mut names, at(2), &mut out);
            out.full = false;
            view.show_more(&mut names, &mut out);
            assert_eq!(uids(&out.take()), [1003]);
        }
    }

    #[test]
    fn what_is_given_up_is_counted() {
        let (mut view, mut names) = (View::new(histograms(By::Uid, Format::Text)), names());
        for uid in [1, 1, 2] {
            view.stall(&Stall { uid, ..reclaim() }, &mut names, &mut Vec::new());
        }
        let mut full = Narrow { full: true, ..Narrow::default() };
        view.interval(&mut names, at(1), &mut full);
        assert!(!view.is_shown());
        assert_eq!((view.give_up(), view.is_shown(), view.give_up()), (3, true, 0));
    }
}
