//! How single values read in text.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};

use jiff::{Timestamp, tz::TimeZone};

use super::line::{Word, append_digits};
use super::masks::Masks;
use crate::cgroup::Cgroups;
use crate::names::{EnumNames, GfpNames};
use crate::owner::Owner;
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
#[derive(Clone, Copy)]
pub struct Millis(pub u64);

impl Word for Millis {
    fn append(self, out: &mut Vec<u8>) {
        let us = self.0 / 1000 + u64::from(self.0 % 1000 >= 500);
        (us / 1000).append(out);
        out.push(b'.');
        append_digits((us % 1000) as u32, 3, out);
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
        write!(f, "{}.{:0decimals$} {unit}", rounded / one, rounded % one)
    }
}

/// A kernel's fixed-point number with three decimals.
#[derive(Clone, Copy)]
pub struct Thousandths(pub i32);

impl Word for Thousandths {
    fn append(self, out: &mut Vec<u8>) {
        if self.0 < 0 {
            out.push(b'-');
        }
        let value = self.0.unsigned_abs();
        (value / 1000).append(out);
        out.push(b'.');
        append_digits(value % 1000, 3, out);
    }
}

/// A zone as `node/name`.
#[derive(Clone, Copy)]
pub struct ZoneName<'a>(pub &'a Zone);

impl Word for ZoneName<'_> {
    fn append(self, out: &mut Vec<u8>) {
        let Zone { node, name } = self.0;
        node.append(out);
        out.push(b'/');
        Printable(name.as_bytes()).append(out);
    }
}

/// What compaction's scanners looked at, as `migrate/free`.
#[derive(Clone, Copy)]
pub struct ScannedPages(pub Scanned);

impl Word for ScannedPages {
    fn append(self, out: &mut Vec<u8>) {
        let Scanned { migrate, free } = self.0;
        migrate.append(out);
        out.push(b'/');
        free.append(out);
    }
}

/// An allocation's flags as `NAME|NAME`.
pub struct Gfp<'a>(pub u32, pub &'a GfpNames, pub &'a mut Masks);

impl Word for Gfp<'_> {
    fn append(self, out: &mut Vec<u8>) {
        let Self(mask, names, masks) = self;
        let spell = |out: &mut Vec<u8>| {
            let start = out.len();
            names.for_each(mask, |name| {
                if out.len() > start {
                    out.push(b'|');
                }
                name.append(out);
            });
        };
        masks.append(mask, spell, out);
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
            Self::Id(id) => write!(f, "id:{id}"),
        }
    }
}

impl Word for CgroupName<'_> {
    fn append(self, out: &mut Vec<u8>) {
        match self {
            Self::Path(path) => Printable(path).append(out),
            Self::Id(id) => {
                "id:".append(out);
                id.append(out);
            }
        }
    }
}

/// What people call a cgroup, or its path where they have no other name for it.
pub struct Whose<'a>(pub u64, pub &'a mut Cgroups);

impl Word for Whose<'_> {
    fn append(self, out: &mut Vec<u8>) {
        let Self(id, cgroups) = self;
        match cgroups.path(id).and_then(Owner::of) {
            Some(owner) => owner.to_string().as_str().append(out),
            None => CgroupName::of(id, cgroups).append(out),
        }
    }
}

/// `HH:MM:SS` at a place.
pub struct TimeOfDay<'a>(pub Timestamp, pub &'a TimeZone);

impl Display for TimeOfDay<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let time = self.1.to_offset(self.0).to_datetime(self.0).time();
        write!(f, "{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second())
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

    fn text(word: impl Word) -> String {
        let mut out = Vec::new();
        word.append(&mut out);
        String::from_utf8(out).expect("words are UTF-8")
    }

    #[test]
    fn thousandths_keep_their_sign() {
        for (value, shown) in [
            (728, "0.728"),
            (0, "0.000"),
            (-5, "-0.005"),
            (-1000, "-1.000"),
            (i32::MIN, "-2147483.648"),
            (i32::MAX, "2147483.647"),
        ] {
            assert_eq!(text(Thousandths(value)), shown);
        }
    }

    #[test]
    fn words_of_several_parts() {
        let zone = Zone { node: -1, name: "é\n".to_owned() };
        let gfp = GfpNames(vec![(1, "A".to_owned()), (2, "B".to_owned())]);
        let mut masks = Masks::default();
        assert_eq!(text(ZoneName(&zone)), "-1/é\\x0a");
        assert_eq!(text(Gfp(3, &gfp, &mut masks)), "A|B");
        assert_eq!(text(Gfp(5, &gfp, &mut masks)), "A|0x4");
        assert_eq!(text(Gfp(0, &gfp, &mut masks)), "0x0");
        assert_eq!(text(CgroupName::Path("/é".as_bytes())), "/é");
        assert_eq!(
            text(ScannedPages(Scanned { migrate: 1, free: u64::MAX })),
            format!("1/{}", u64::MAX)
        );
    }

    #[test]
    fn a_cgroup_out_of_sight_is_its_id() {
        let id = || CgroupName::Id(7);
        assert_eq!((text(id()), id().to_string()), ("id:7".to_owned(), "id:7".to_owned()));
    }
}
