//! How single values read in text. All honour the formatter's width and alignment.

use std::borrow::Cow;
use std::fmt::{self, Alignment, Display, Formatter, Write as _, from_fn};

use jiff::{Timestamp, tz::TimeZone};
use unicode_width::UnicodeWidthStr as _;

use crate::cgroup::Cgroups;
use crate::names::{EnumNames, GfpNames};
use crate::stall::{Scanned, Zone};
use crate::text::Printable;

/// A value, or `-` where it is not known.
pub struct OrDash<T>(pub Option<T>);

impl<T: Display> Display for OrDash<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.pad("-"),
        }
    }
}

/// Nanoseconds as milliseconds with three decimals, rounded half up.
pub struct Millis(pub u64);

impl Display for Millis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let us = self.0 / 1000 + u64::from(self.0 % 1000 >= 500);
        pad(f, format_args!("{}.{:03}", us / 1000, us % 1000))
    }
}

/// Nanoseconds in the unit that suits their size.
pub struct Span(pub u128);

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // The limits are where rounding reaches the next unit.
        let (decimals, step, unit) = match self.0 {
            0..999_950 => (1, 100, "us"),
            999_950..999_995_000 => (2, 10_000, "ms"),
            _ => (2, 10_000_000, "s"),
        };
        let rounded = self.0 / step + u128::from(self.0 % step >= step / 2);
        let one = 10_u128.pow(decimals);
        let decimals = decimals as usize;
        pad(f, format_args!("{}.{:0decimals$} {unit}", rounded / one, rounded % one))
    }
}

/// A kernel's fixed-point number with three decimals.
pub struct Thousandths(pub i32);

impl Display for Thousandths {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let value = self.0.unsigned_abs();
        pad(f, format_args!("{sign}{}.{:03}", value / 1000, value % 1000))
    }
}

/// A zone as `node/name`.
pub struct ZoneName<'a>(pub &'a Zone);

impl Display for ZoneName<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Zone { node, name } = self.0;
        pad(f, format_args!("{node}/{}", Printable(name.as_bytes())))
    }
}

/// What compaction's scanners looked at, as `migrate/free`.
pub struct ScannedPages(pub Scanned);

impl Display for ScannedPages {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Scanned { migrate, free } = self.0;
        pad(f, format_args!("{migrate}/{free}"))
    }
}

/// An allocation's flags as `NAME|NAME`.
pub struct Gfp<'a>(pub &'a GfpNames, pub u32);

impl Display for Gfp<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let joined = from_fn(|f| {
            let mut separator = "";
            let mut written = Ok(());
            self.0.for_each(self.1, |name| {
                written = written.and_then(|()| write!(f, "{separator}{name}"));
                separator = "|";
            });
            written
        });
        pad(f, format_args!("{joined}"))
    }
}

/// The name of a status of compaction. The kernel's enumeration is signed, its values are not.
pub fn status_name(value: i32, statuses: &EnumNames) -> Cow<'_, str> {
    match u32::try_from(value) {
        Ok(value) => statuses.name(value),
        Err(_) => value.to_string().into(),
    }
}

/// A cgroup's path, or its id where the path is not known.
pub enum CgroupName<'a> {
    /// Anyone who may make cgroups chose its name.
    Path(&'a [u8]),
    /// It is gone or out of sight.
    Id(u64),
}

impl<'a> CgroupName<'a> {
    /// The name of cgroup `id`.
    pub fn of(id: u64, cgroups: &'a mut Cgroups) -> Self {
        cgroups.path(id).map_or(Self::Id(id), Self::Path)
    }
}

impl Display for CgroupName<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => Printable(path).fmt(f),
            Self::Id(id) => pad(f, format_args!("id:{id}")),
        }
    }
}

/// `HH:MM:SS` at a place; with a precision of 6, microseconds as well.
pub struct TimeOfDay<'a>(pub Timestamp, pub &'a TimeZone);

impl Display for TimeOfDay<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let time = self.1.to_offset(self.0).to_datetime(self.0).time();
        let (hour, minute, second) = (time.hour(), time.minute(), time.second());
        write!(f, "{hour:02}:{minute:02}:{second:02}")?;
        match f.precision() {
            Some(6) => write!(f, ".{:06}", time.subsec_nanosecond() / 1000),
            _ => Ok(()),
        }
    }
}

/// Pads what has several parts, without putting them together first.
fn pad(f: &mut Formatter<'_>, parts: fmt::Arguments<'_>) -> fmt::Result {
    let Some(width) = f.width() else {
        return f.write_fmt(parts);
    };
    let mut length = Length(0);
    length.write_fmt(parts)?;
    let missing = width.saturating_sub(length.0);
    match f.align() {
        Some(Alignment::Right) => write!(f, "{:missing$}{parts}", ""),
        _ => write!(f, "{parts}{:missing$}", ""),
    }
}

/// Counts columns.
struct Length(usize);

impl fmt::Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.width();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_take_the_unit_of_their_size() {
        for (ns, text) in [
            (0, "0.0 us"),
            (49, "0.0 us"),
            (50, "0.1 us"),
            (332_149, "332.1 us"),
            (999_949, "999.9 us"),
            (999_950, "1.00 ms"),
            (12_345_000, "12.35 ms"),
            (999_994_999, "999.99 ms"),
            (999_995_000, "1.00 s"),
            (3_600_000_000_000, "3600.00 s"),
            (u128::MAX, "340282366920938463463374607431.77 s"),
        ] {
            assert_eq!(Span(ns).to_string(), text, "{ns} ns");
        }
    }

    #[test]
    fn thousandths_keep_their_sign() {
        for (value, text) in [
            (728, "0.728"),
            (0, "0.000"),
            (-5, "-0.005"),
            (-1000, "-1.000"),
            (i32::MIN, "-2147483.648"),
        ] {
            assert_eq!(Thousandths(value).to_string(), text);
        }
    }

    #[test]
    fn all_are_padded_as_asked() {
        let zone = Zone { node: 0, name: "é".to_owned() };
        let gfp = GfpNames(vec![(1, "A".to_owned()), (2, "B".to_owned())]);
        assert_eq!(format!("{:<6}|", ZoneName(&zone)), "0/é   |");
        assert_eq!(format!("{:>6}|", Millis(1_000_000)), " 1.000|");
        assert_eq!(format!("{:<5}|", Gfp(&gfp, 3)), "A|B  |");
        assert_eq!(format!("{:<7}|", Gfp(&gfp, 5)), "A|0x4  |");
        assert_eq!(format!("{:<2}|", Gfp(&gfp, 3)), "A|B|");
        assert_eq!(format!("{:>5}|", CgroupName::Id(7)), " id:7|");
        assert_eq!(format!("{:<5}|", CgroupName::Path("/é".as_bytes())), "/é   |");
        assert_eq!(format!("{:>3}|", OrDash::<u64>(None)), "  -|");
        assert_eq!(format!("{:>3}|", OrDash(Some(7))), "  7|");
        assert_eq!(format!("{:<6}|", ScannedPages(Scanned { migrate: 1, free: 22 })), "1/22  |");
    }
}
