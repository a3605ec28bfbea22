//! Histograms as text: for each key its percentiles, and the rows of stars that bcc's users know.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write as _};

use jiff::{Timestamp, tz::TimeZone};

use super::ViewOptions;
use super::intervals::Interval;
use super::words::{CgroupName, OrDash, Span, TimeOfDay};
use crate::histogram::{Key, Slot, Times};
use crate::names::Names;

/// A block of text for each key.
#[derive(Debug)]
pub struct Blocks {
    /// Where the time of day above each interval's blocks is that of, if it is shown.
    timestamp: Option<TimeZone>,
}

impl Blocks {
    pub(super) fn new(options: ViewOptions) -> Self {
        Self { timestamp: options.timestamp.then_some(options.zone) }
    }

    /// Begins the interval that ends at `at`.
    pub(super) fn interval(
        &self,
        is_empty: bool,
        at: Timestamp,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        if let Some(zone) = &self.timestamp {
            writeln!(out, "\n{}", TimeOfDay(at, zone))?;
        }
        if is_empty { writeln!(out, "no stalls") } else { Ok(()) }
    }

    pub(super) fn histogram(
        interval: Interval,
        key: Key,
        times: &Times,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        writeln!(out)?;
        key_line(key, interval.max_keys, names, out)?;
        write!(out, "{}{}", Numbers(times), Stars(times))
    }
}

/// What anyone may have chosen comes last, so that it cannot pass for more.
fn key_line(key: Key, max_keys: usize, names: &mut Names, out: &mut Vec<u8>) -> io::Result<()> {
    match key {
        Key::Thread { tid, pid, comm } => writeln!(out, "tid = {tid}, pid = {pid}, comm = {comm}"),
        Key::Process { pid, comm } => writeln!(out, "pid = {pid}, comm = {comm}"),
        Key::Comm(comm) => writeln!(out, "comm = {comm}"),
        Key::Cgroup(id) => {
            let name = id.map(|id| CgroupName::of(id, &mut names.cgroups));
            writeln!(out, "cgroup = {}", OrDash(name))
        }
        Key::Uid(uid) => writeln!(out, "uid = {uid}"),
        Key::Kind(kind) => writeln!(out, "kind = {}", kind.name()),
        Key::StallKind(kind) => writeln!(out, "kind = {}", kind.name()),
        Key::Cause(cause) => writeln!(out, "cause = {}", cause.name()),
        Key::Order(order) => writeln!(out, "order = {}", OrDash(order)),
        Key::Other => writeln!(out, "other = all keys after the first {max_keys}"),
    }
}

/// Count, total, mean, percentiles and maximum.
struct Numbers<'a>(&'a Times);

impl Display for Numbers<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let times = self.0;
        let mean = Span(times.mean_ns().into());
        writeln!(f, "     count {}, total {}, mean {mean}", times.count(), Span(times.total_ns()))?;
        let percentiles = times.percentiles();
        let [p50, p90, p99, p99_9] =
            [0.5, 0.9, 0.99, 0.999].map(|quantile| Span(percentiles.quantile_ns(quantile).into()));
        let max = Span(times.max_ns().into());
        writeln!(f, "     p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p99_9}, max {max}")?;
        match times.clamped() {
            0 => Ok(()),
            count => writeln!(f, "     {count} longer than 1 h, for the percentiles 1 h"),
        }
    }
}

/// The rows by powers of two, in the format of bcc's Python tools.
struct Stars<'a>(&'a Times);

impl Display for Stars<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (mut most, mut last) = (0, 0);
        for slot in self.0.slots() {
            most = most.max(slot.count);
            last = slot.high_us;
        }
        let wide = last > u32::MAX.into();
        let (indent, title, number, stars) = if wide { (15, 29, 20, 20) } else { (5, 19, 10, 40) };
        writeln!(f, "{:indent$}{:<title$} : count     distribution", "", "usecs")?;
        for Slot { low_us, high_us, count } in self.0.slots() {
            let filled = stars_of(count, most, stars);
            write!(f, "{low_us:>number$} -> {high_us:<number$} : {count:<8} ")?;
            writeln!(f, "|{:*<filled$}{:empty$}|", "", "", empty = stars - filled)?;
        }
        Ok(())
    }
}

/// How much of `width` a count takes if the greatest count takes all of it.
fn stars_of(count: u64, most: u64, width: usize) -> usize {
    let filled = width as u128 * u128::from(count) / u128::from(most.max(1));
    usize::try_from(filled).map_or(width, |filled| filled.min(width))
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::fixtures::{
        NO_PID, at, comm, compaction, extreme, histograms, names, reclaim, shown, unknown,
    };
    use super::super::{Format, Summary, View, ViewOptions};
    use super::*;
    use crate::histogram::By;
    use crate::stall::Stall;

    fn lasting(duration_ns: u64) -> Stall {
        Stall { duration_ns, ..reclaim() }
    }

    fn text(by: By) -> ViewOptions {
        histograms(by, Format::Text)
    }

    #[test]
    fn a_block_for_each_key_the_longest_total_first() {
        let mut stalls: Vec<_> = (0..742).map(|_| lasting(3_999)).collect();
        stalls.extend((0..233).map(|_| lasting(1_000)));
        stalls.extend((0..203).map(|_| lasting(5_000)));
        stalls.push(Stall { tid: 1241, ..lasting(2_500_000_000) });
        stalls.push(Stall { tid: 1242, ..lasting(12_345_678) });
        stalls.push(Stall { tid: 1243, ..lasting(1) });
        let text = shown(text(By::Thread), &stalls);
        assert!(text.starts_with("\ntid"), "a blank line is above each block");
        assert_snapshot!(text, @"

        tid = 1241, pid = 1234, comm = postgres
             count 1, total 2.50 s, mean 2.50 s
             p50 2.50 s, p90 2.50 s, p99 2.50 s, p99.9 2.50 s, max 2.50 s
             usecs               : count     distribution
                 0 -> 1          : 0        |                                        |
                 2 -> 3          : 0        |                                        |
                 4 -> 7          : 0        |                                        |
                 8 -> 15         : 0        |                                        |
                16 -> 31         : 0        |                                        |
                32 -> 63         : 0        |                                        |
                64 -> 127        : 0        |                                        |
               128 -> 255        : 0        |                                        |
               256 -> 511        : 0        |                                        |
               512 -> 1023       : 0        |                                        |
              1024 -> 2047       : 0        |                                        |
              2048 -> 4095       : 0        |                                        |
              4096 -> 8191       : 0        |                                        |
              8192 -> 16383      : 0        |                                        |
             16384 -> 32767      : 0        |                                        |
             32768 -> 65535      : 0        |                                        |
             65536 -> 131071     : 0        |                                        |
            131072 -> 262143     : 0        |                                        |
            262144 -> 524287     : 0        |                                        |
            524288 -> 1048575    : 0        |                                        |
           1048576 -> 2097151    : 0        |                                        |
           2097152 -> 4194303    : 1        |****************************************|

        other = all keys after the first 2
             count 2, total 12.35 ms, mean 6.17 ms
             p50 0.0 us, p90 12.35 ms, p99 12.35 ms, p99.9 12.35 ms, max 12.35 ms
             usecs               : count     distribution
                 0 -> 1          : 1        |****************************************|
                 2 -> 3          : 0        |                                        |
                 4 -> 7          : 0        |                                        |
                 8 -> 15         : 0        |                                        |
                16 -> 31         : 0        |                                        |
                32 -> 63         : 0        |                                        |
                64 -> 127        : 0        |                                        |
               128 -> 255        : 0        |                                        |
               256 -> 511        : 0        |                                        |
               512 -> 1023       : 0        |                                        |
              1024 -> 2047       : 0        |                                        |
              2048 -> 4095       : 0        |                                        |
              4096 -> 8191       : 0        |                                        |
              8192 -> 16383      : 1        |****************************************|

        tid = 1240, pid = 1234, comm = postgres
             count 1178, total 4.22 ms, mean 3.6 us
             p50 4.0 us, p90 5.0 us, p99 5.0 us, p99.9 5.0 us, max 5.0 us
             usecs               : count     distribution
                 0 -> 1          : 233      |************                            |
                 2 -> 3          : 742      |****************************************|
                 4 -> 7          : 203      |**********                              |
        ");
    }

    #[test]
    fn every_key_has_its_line() {
        let key = |by, stall: Stall| {
            let text = shown(text(by), &[stall]);
            text.lines().nth(1).map(str::to_owned).unwrap_or_default()
        };
        let process = || Stall { pid: NO_PID, ..reclaim() };
        assert_eq!(key(By::Thread, reclaim()), "tid = 1240, pid = 1234, comm = postgres");
        assert_eq!(key(By::Process, process()), "pid = 4194304, comm = postgres");
        assert_eq!(key(By::Comm, reclaim()), "comm = postgres");
        assert_eq!(key(By::Cgroup, reclaim()), "cgroup = /system.slice/pg.service");
        assert_eq!(key(By::Cgroup, Stall { cgroup_id: Some(5), ..reclaim() }), "cgroup = id:5");
        assert_eq!(key(By::Cgroup, unknown(reclaim())), "cgroup = -");
        assert_eq!(key(By::Uid, reclaim()), "uid = 1000");
        assert_eq!(key(By::Kind, reclaim()), "kind = memcg");
        assert_eq!(key(By::Kind, compaction()), "cause = direct");
        assert_eq!(key(By::Order, compaction()), "order = 9");
        assert_eq!(key(By::Order, unknown(reclaim())), "order = -");
    }

    #[test]
    fn time_of_day_is_above_every_interval() {
        let options = || ViewOptions { timestamp: true, ..text(By::Uid) };
        assert_eq!(shown(options(), &[]), "\n14:00:10\nno stalls\n");
        assert!(shown(options(), &[reclaim()]).starts_with("\n14:00:10\n\nuid = 1000\n"));
        assert_eq!(shown(text(By::Uid), &[]), "no stalls\n");
    }

    #[test]
    fn intervals_start_from_nothing_and_the_end_shows_only_what_is_left() {
        let options = ViewOptions { timestamp: true, ..text(By::Uid) };
        let (mut view, mut names, mut out) = (View::new(options), names(), Vec::new());
        view.stall(&reclaim(), &mut names, &mut out);
        assert_eq!(out, b"", "nothing is shown before the interval ends");
        view.interval(&mut names, at(1), &mut out);
        assert!(!out.is_empty());
        out.clear();
        view.last_interval(&mut names, at(1), &mut out);
        view.end(at(1), &Summary::default(), &mut out);
        assert_eq!(out, b"");
        view.stall(&lasting(7_000), &mut names, &mut out);
        view.last_interval(&mut names, at(2), &mut out);
        view.end(at(2), &Summary::default(), &mut out);
        assert!(String::from_utf8_lossy(&out).contains("count 1, total 7.0 us,"));
    }

    #[test]
    fn beyond_32_bits_all_rows_are_wide() {
        let stalls = [lasting((1 << 32) * 1_000), lasting(0)];
        let text = shown(text(By::Uid), &stalls);
        let rows: Vec<_> = text.lines().skip_while(|line| !line.contains("usecs")).collect();
        assert_eq!(rows.len(), 34);
        assert_eq!(
            rows[0],
            "               usecs                         : count     distribution"
        );
        assert_eq!(
            rows[1],
            "                   0 -> 1                    : 1        |********************|"
        );
        assert_eq!(
            rows[33],
            "          4294967296 -> 8589934591           : 1        |********************|"
        );
        assert!(text.contains("     1 longer than 1 h, for the percentiles 1 h\n"), "{text}");

        let narrow = shown(histograms(By::Uid, Format::Text), &[lasting((1 << 32) * 1_000 - 1)]);
        assert!(narrow.contains("\n2147483648 -> 4294967295 : 1        |****"), "{narrow}");
    }

    #[test]
    fn hostile_names_stay_on_their_line() {
        for by in By::ALL {
            let stall = extreme(reclaim());
            let text = shown(text(by), &[stall.clone(), stall]);
            let line = text.lines().nth(1).unwrap_or_default();
            assert!(!line.contains(char::is_control), "{line}");
            match by {
                By::Thread | By::Process | By::Comm => {
                    assert!(line.ends_with("comm = \\x1b[2J\"'\\\\x0a\\xff💩"), "{line}");
                }
                By::Cgroup => assert!(line.starts_with("cgroup = /\\x1b[2J\\x0aéé"), "{line}"),
                _ => {}
            }
            assert!(
                text.contains("count 2, total 36893488147.42 s, mean 18446744073.71 s"),
                "{text}"
            );
        }
    }

    #[test]
    fn stars_do_not_overflow() {
        assert_eq!(stars_of(u64::MAX, u64::MAX, 40), 40);
        assert_eq!(stars_of(u64::MAX / 2, u64::MAX, 40), 19);
        assert_eq!(stars_of(1, u64::MAX, 40), 0);
        assert_eq!(stars_of(233, 742, 40), 12);
        assert_eq!(stars_of(0, 0, 40), 0);
    }

    #[test]
    fn keys_of_one_name_are_apart() {
        let other = Stall { comm: comm(b"mysqld"), ..lasting(9_000) };
        let text = shown(text(By::Comm), &[reclaim(), other]);
        assert_eq!(text.matches("comm = ").count(), 2);
    }
}
