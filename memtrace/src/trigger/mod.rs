//! Triggers: the conditions on which what was recorded is written to a file.
//!
//! [`Trigger`] is what was asked for, as text and back; [`Watch`] finds out whether it fires.

mod parse;
mod watch;
mod window;

use std::fmt::{self, Display, Formatter};

use crate::recording::readings;

pub use self::{
    parse::TriggerError,
    watch::{Cause, Watch},
};

/// Conditions, any of which makes it fire: `latency>100ms or oom`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger(Vec<Condition>);

impl Trigger {
    /// The conditions, of which there is at least one.
    #[must_use]
    pub fn conditions(&self) -> &[Condition] {
        &self.0
    }

    /// Whether it wants to be told of the kernel's measure of pressure.
    #[must_use]
    pub fn needs_psi(&self) -> bool {
        self.0.iter().any(|condition| matches!(condition, Condition::Psi { .. }))
    }

    /// Whether it wants to be told of processes that are chosen to be killed.
    #[must_use]
    pub fn needs_oom(&self) -> bool {
        self.0.contains(&Condition::Oom)
    }
}

impl Display for Trigger {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (at, condition) in self.0.iter().enumerate() {
            write!(f, "{}{condition}", if at == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

/// One condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A stall lasts longer than this, in nanoseconds.
    Latency {
        /// The limit.
        limit_ns: u64,
    },
    /// A percentile of the stalls that have ended within a time.
    Percentile {
        /// Which.
        percentile: Percentile,
        /// Within how many nanoseconds.
        window_ns: u64,
        /// It is more than so many nanoseconds.
        limit_ns: u64,
    },
    /// More stalls than these end in a second or a minute.
    Rate {
        /// In which time.
        per: Per,
        /// How many.
        limit: u64,
    },
    /// A process is chosen to be killed.
    Oom,
    /// The kernel's own measure of the time lost for lack of memory.
    Psi {
        /// Which of them.
        pressure: Pressure,
        /// It is more than so many hundredths of a percent.
        limit: Hundredths,
    },
}

impl Display for Condition {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Latency { limit_ns } => write!(f, "latency>{}", Exact(limit_ns, "")),
            Self::Percentile { percentile, window_ns, limit_ns } => {
                write!(f, "{percentile}({})>{}", Exact(window_ns, ""), Exact(limit_ns, ""))
            }
            Self::Rate { per: Per::Second, limit } => write!(f, "rate>{limit}/s"),
            Self::Rate { per: Per::Minute, limit } => write!(f, "rate>{limit}/m"),
            Self::Oom => write!(f, "oom"),
            Self::Psi { pressure, limit } => {
                write!(f, "psi.{}.{}>{limit}", pressure.share, pressure.average)
            }
        }
    }
}

/// A percentile, in thousandths of a percent: 99,900 is p99.9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentile(u32);

impl Display for Percentile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "p")?;
        decimal(self.0, 3, f)
    }
}

/// A percentage in hundredths, as the kernel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hundredths(u32);

impl Display for Hundredths {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        decimal(self.0, 2, f)
    }
}

/// The time that a rate is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// A second.
    Second,
    /// A minute.
    Minute,
}

impl Per {
    fn window_ns(self) -> u64 {
        match self {
            Self::Second => 1_000_000_000,
            Self::Minute => 60_000_000_000,
        }
    }
}

/// A number of /proc/pressure/memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// The line: `some`, at least one task was held up; `full`, all were.
    share: &'static str,
    /// The average over so many seconds: `avg10`, `avg60`, `avg300`.
    average: &'static str,
}

impl Pressure {
    /// Finds it in the text of /proc/pressure/memory.
    fn find(self, text: &str) -> Option<Hundredths> {
        let value = readings::Pressure(text).get(self.share, self.average)?;
        parse::fixed(value, 2).map(Hundredths)
    }
}

/// Nanoseconds in the greatest unit that leaves no fraction, and what is between number and unit.
struct Exact(u64, &'static str);

impl Display for Exact {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(ns, space) = *self;
        let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
        let unit = units.into_iter().find(|(one, _)| ns.is_multiple_of(*one));
        let (one, unit) = unit.unwrap_or((1, "ns"));
        write!(f, "{}{space}{unit}", ns / one)
    }
}

/// A number with so many decimals, without zeros at the end.
fn decimal(value: u32, decimals: u32, f: &mut Formatter<'_>) -> fmt::Result {
    let one = 10_u32.pow(decimals);
    let (whole, mut rest, mut decimals) = (value / one, value % one, decimals as usize);
    write!(f, "{whole}")?;
    if rest == 0 {
        return Ok(());
    }
    while rest.is_multiple_of(10) {
        rest /= 10;
        decimals -= 1;
    }
    write!(f, ".{rest:0decimals$}")
}
