//! Time of day of stalls, thousands of which begin in the same second: what of it is the same for all
//! of them is worked out once.

use std::fmt::Display;
use std::io::{self, Write as _};

use jiff::Timestamp;

use super::line::append_digits;

/// The last second that was asked for, as it reads.
#[derive(Debug, Default)]
pub struct Second {
    of_epoch: Option<i64>,
    text: Vec<u8>,
}

impl Second {
    /// Appends `at` with so many decimals, nine at most, rounded down. Its second is in the words of
    /// `spell`, which have to be the same for all of a second.
    pub fn append<T: Display>(
        &mut self,
        at: Timestamp,
        decimals: u32,
        spell: impl FnOnce(Timestamp) -> T,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        // Before 1970 nanoseconds count backwards.
        let (second, ns) = match (at.as_second(), at.subsec_nanosecond()) {
            (second, ns @ ..0) => (second - 1, ns + 1_000_000_000),
            since => since,
        };
        if self.of_epoch != Some(second) {
            self.text.clear();
            write!(self.text, "{}.", spell(at))?;
            self.of_epoch = Some(second);
        }
        out.extend_from_slice(&self.text);
        append_digits(ns.unsigned_abs() / 10_u32.pow(9 - decimals), decimals as usize, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, ToSpan as _, tz::TimeZone};

    use super::*;

    #[test]
    fn reads_like_the_whole_time() {
        let mut second = Second::default();
        let start: Timestamp = "1969-12-31T23:59:57.9Z".parse().expect("a time");
        let times = (0..50).map(|n| start + SignedDuration::from_nanos(n * 123_456_789));
        let extremes = [Timestamp::MIN, Timestamp::MIN + 1.nanosecond(), Timestamp::MAX];
        for at in times.chain(extremes).flat_map(|at| [at, at]) {
            let mut out = Vec::new();
            let spell = |at| TimeZone::UTC.to_datetime(at).strftime("%F %T");
            second.append(at, 9, spell, &mut out).expect("memory");
            let whole = TimeZone::UTC.to_datetime(at).strftime("%F %T.%9f").to_string();
            assert_eq!(String::from_utf8_lossy(&out), whole);
            let mut rounded = Vec::new();
            second.append(at, 6, spell, &mut rounded).expect("memory");
            assert_eq!(rounded, out[..out.len() - 3]);
        }
    }
}
