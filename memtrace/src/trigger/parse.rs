//! A trigger from its text.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use thiserror::Error;

use super::{Condition, Hundredths, Per, Percentile, Pressure, Trigger};
use crate::recording::readings;
use crate::text::Printable;

/// Most conditions: each may take some 200 KiB.
const MOST: usize = 16;
/// Windows that make sense.
const WINDOWS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_hours(1);

/// What is wrong with the text of a trigger, and what can stand there. The part in question is escaped as for a
/// terminal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TriggerError {
    /// Nothing stands where a condition should.
    #[error("a condition is missing{0}: give such as latency>100ms, or oom")]
    Missing(&'static str),
    /// No condition begins like this.
    #[error(
        "`{0}` is not a condition: there are latency>100ms, p99(10s)>20ms, rate>1000/s, oom and psi.some.avg10>20, joined by `or`"
    )]
    Unknown(String),
    /// `>` is missing, or more than it stands there.
    #[error("`{0}` has no limit: `>` and a value have to follow, as in {1}")]
    NoLimit(String, &'static str),
    /// Another comparison.
    #[error("`{0}` does not compare by `>`, which is all that can stand there")]
    Comparison(String),
    /// `oom` with more than that.
    #[error("`{0}` is too much: `oom` stands alone")]
    TooMuch(String),
    /// Not a duration.
    #[error("`{0}` is not a duration: give a number with a unit, such as 500us, 100ms or 1.5s")]
    Duration(String),
    /// Not a percentile.
    #[error(
        "`{0}` is not a percentile: give p and a number from 0.001 to 99.999, such as p50 or p99.9"
    )]
    Percentile(String),
    /// Not a window.
    #[error(
        "`{0}` has no window: give a duration from 100ms to 1h in parentheses, as in p99(10s)>20ms"
    )]
    Window(String),
    /// A window that is too short or too long, with which of them it is.
    #[error("the window of `{0}` is too {1}: give a duration from 100ms to 1h")]
    WindowLength(String, &'static str),
    /// Not a rate.
    #[error("`{0}` is not a rate: give a whole number a second or a minute, as 1000/s or 50/m")]
    Rate(String),
    /// Not a number of PSI.
    #[error(
        "`{0}` is not a pressure: give psi.some or psi.full, and with it .avg10, .avg60 or .avg300"
    )]
    Pressure(String),
    /// Not a percentage.
    #[error(
        "`{0}` is not a percentage: give a number from 0 to less than 100, with two decimals at most"
    )]
    Percentage(String),
    /// More than are looked at.
    #[error("there are {0} conditions: give {MOST} at most")]
    TooMany(usize),
}

impl FromStr for Trigger {
    type Err = TriggerError;

    fn from_str(text: &str) -> Result<Self, TriggerError> {
        let parts = alternatives(text);
        if parts.len() > MOST {
            return Err(TriggerError::TooMany(parts.len()));
        }
        let is_only = parts.len() == 1;
        let missing = TriggerError::Missing(if is_only { "" } else { " beside `or`" });
        let condition = |part: &str| {
            let part = part.trim();
            if part.is_empty() { Err(missing.clone()) } else { condition(part) }
        };
        let mut conditions = Vec::with_capacity(parts.len());
        for part in parts {
            let condition = condition(part)?;
            if !conditions.contains(&condition) {
                conditions.push(condition);
            }
        }
        Ok(Self(conditions))
    }
}

/// What is between the words `or`.
fn alternatives(text: &str) -> Vec<&str> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    for word in text.split_whitespace().filter(|word| word.eq_ignore_ascii_case("or")) {
        // A part of the text, so this is where it is in it.
        let at = word.as_ptr().addr() - text.as_ptr().addr();
        parts.push(&text[begin..at]);
        begin = at + word.len();
    }
    parts.push(&text[begin..]);
    parts
}

fn condition(text: &str) -> Result<Condition, TriggerError> {
    let unknown = || TriggerError::Unknown(quoted(text));
    let Some(at) = text.find(['>', '<', '=']) else {
        return match subject(text) {
            Some(Subject::Oom) if text.eq_ignore_ascii_case("oom") => Ok(Condition::Oom),
            Some(subject) => Err(TriggerError::NoLimit(quoted(text), subject.example())),
            None => Err(unknown()),
        };
    };
    let (name, rest) = (text[..at].trim_end(), &text[at..]);
    let subject = subject(name).ok_or_else(unknown)?;
    if subject == Subject::Oom {
        return Err(TriggerError::TooMuch(quoted(text)));
    }
    let value = rest.strip_prefix('>').filter(|value| !value.starts_with(['>', '<', '=']));
    let Some(value) = value.map(str::trim) else {
        return Err(TriggerError::Comparison(quoted(text)));
    };
    if value.is_empty() {
        return Err(TriggerError::NoLimit(quoted(text), subject.example()));
    }
    match subject {
        Subject::Latency => Ok(Condition::Latency { limit_ns: span(value)? }),
        Subject::Percentile => {
            let (percentile, window_ns) = percentile(name)?;
            Ok(Condition::Percentile { percentile, window_ns, limit_ns: span(value)? })
        }
        Subject::Rate => rate(value),
        Subject::Psi => Ok(Condition::Psi { pressure: pressure(name)?, limit: percentage(value)? }),
        Subject::Oom => Err(unknown()),
    }
}

/// What a condition is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Latency,
    Percentile,
    Rate,
    Oom,
    Psi,
}

impl Subject {
    fn example(self) -> &'static str {
        match self {
            Self::Latency => "latency>100ms",
            Self::Percentile => "p99(10s)>20ms",
            Self::Rate => "rate>1000/s",
            Self::Oom => "oom",
            Self::Psi => "psi.some.avg10>20",
        }
    }
}

/// What something that begins like this is meant to be about.
fn subject(name: &str) -> Option<Subject> {
    let end = name.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(name.len());
    let (word, rest) = name.split_at(end);
    let is = |expected: &str| word.eq_ignore_ascii_case(expected);
    match rest.trim_start().chars().next() {
        None if is("latency") => Some(Subject::Latency),
        None if is("rate") => Some(Subject::Rate),
        _ if is("oom") => Some(Subject::Oom),
        _ if is("psi") => Some(Subject::Psi),
        Some('0'..='9') if is("p") => Some(Subject::Percentile),
        _ => None,
    }
}

/// Such as `p99(10s)`: the percentile and its window in nanoseconds.
fn percentile(name: &str) -> Result<(Percentile, u64), TriggerError> {
    let (which, window) = name.split_once('(').unwrap_or((name, ""));
    let which = which.trim_end();
    let percentile = fixed(which[1..].trim_start(), 3).filter(|of| (1..100_000).contains(of));
    let percentile = percentile.ok_or_else(|| TriggerError::Percentile(quoted(which)))?;
    let window = window.strip_suffix(')').and_then(|window| duration(window.trim()));
    let window = window.ok_or_else(|| TriggerError::Window(quoted(name)))?;
    if !WINDOWS.contains(&window) {
        let which = if window < *WINDOWS.start() { "short" } else { "long" };
        return Err(TriggerError::WindowLength(quoted(name), which));
    }
    let window_ns = ns(window).ok_or_else(|| TriggerError::Window(quoted(name)))?;
    Ok((Percentile(percentile), window_ns))
}

/// Such as `1000/s`.
fn rate(value: &str) -> Result<Condition, TriggerError> {
    let wrong = || TriggerError::Rate(quoted(value));
    let (limit, per) = value.split_once('/').ok_or_else(wrong)?;
    let per = match per.trim_start().to_ascii_lowercase().as_str() {
        "s" | "sec" | "second" => Per::Second,
        "m" | "min" | "minute" => Per::Minute,
        _ => return Err(wrong()),
    };
    let limit = limit.trim_end();
    if !limit.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    Ok(Condition::Rate { per, limit: limit.parse().map_err(|_| wrong())? })
}

/// Such as `psi.some.avg10`.
fn pressure(name: &str) -> Result<Pressure, TriggerError> {
    let wrong = || TriggerError::Pressure(quoted(name));
    let mut words = name.split('.').map(str::trim);
    let (Some(_), Some(share), Some(average), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(wrong());
    };
    let among = |word: &str, known: &[&'static str]| {
        known.iter().copied().find(|known| known.eq_ignore_ascii_case(word)).ok_or_else(wrong)
    };
    Ok(Pressure {
        share: among(share, &readings::Pressure::SHARES)?,
        average: among(average, &readings::Pressure::AVERAGES)?,
    })
}

fn percentage(value: &str) -> Result<Hundredths, TriggerError> {
    let number = value.strip_suffix('%').unwrap_or(value).trim_end();
    let number = fixed(number, 2).filter(|number| *number < 10_000);
    number.map(Hundredths).ok_or_else(|| TriggerError::Percentage(quoted(value)))
}

/// A span of time in nanoseconds.
fn span(value: &str) -> Result<u64, TriggerError> {
    duration(value).and_then(ns).ok_or_else(|| TriggerError::Duration(quoted(value)))
}

fn ns(duration: Duration) -> Option<u64> {
    u64::try_from(duration.as_nanos()).ok()
}

/// A duration that has a unit, more than zero.
fn duration(text: &str) -> Option<Duration> {
    let text: String = text.split_whitespace().collect();
    // Else what comes after `ago`, signs and ISO 8601 would do as well.
    if !text.starts_with(|c: char| c.is_ascii_digit()) || text.ends_with("ago") {
        return None;
    }
    let duration: SignedDuration = text.to_lowercase().parse().ok()?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero())
}

/// A number with so many decimals at most, times ten to their power.
pub(super) fn fixed(text: &str, decimals: u32) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let missing = decimals.checked_sub(u32::try_from(fraction.len()).ok()?);
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let whole = whole.parse::<u32>().ok()?.checked_mul(10_u32.pow(decimals))?;
    let fraction = fraction.parse::<u32>().ok()?.checked_mul(10_u32.pow(missing?))?;
    whole.checked_add(fraction)
}

fn quoted(text: &str) -> String {
    Printable(text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        text.parse::<Trigger>().map_or_else(|error| error.to_string(), |it| it.to_string())
    }

    #[test]
    fn reads_every_condition_and_writes_it_back() {
        for (text, expected) in [
            ("latency>100ms", "latency>100ms"),
            ("  LATENCY  >  1.5 S ", "latency>1500ms"),
            ("latency>1m 30s", "latency>90s"),
            ("latency>1us", "latency>1us"),
            ("latency>1001ns", "latency>1001ns"),
            ("p99(10s)>20ms", "p99(10s)>20ms"),
            ("P 99.90 ( 1 m ) > 250 us", "p99.9(60s)>250us"),
            ("p99.999(100ms)>1s", "p99.999(100ms)>1s"),
            ("p0.001(1h)>1s", "p0.001(3600s)>1s"),
            ("p5(1s)>1ms", "p5(1s)>1ms"),
            ("rate>1000/s", "rate>1000/s"),
            ("Rate > 50 / Min", "rate>50/m"),
            ("rate>0/second", "rate>0/s"),
            ("Oom", "oom"),
            ("psi.some.avg10>20", "psi.some.avg10>20"),
            ("PSI.Full.AVG300 > 0.50 %", "psi.full.avg300>0.5"),
            ("psi.full.avg60>99.99", "psi.full.avg60>99.99"),
            ("psi.some.avg10>0", "psi.some.avg10>0"),
            (
                "latency>100ms or oom\tOR\npsi.some.avg10>20",
                "latency>100ms or oom or psi.some.avg10>20",
            ),
            ("oom or latency>100ms or oom", "oom or latency>100ms"),
        ] {
            assert_eq!(normal(text), expected);
            assert_eq!(normal(expected), expected, "it is not normal");
        }
    }

    #[test]
    fn says_which_part_is_wrong_and_what_could_stand_there() {
        for (text, part, remedy) in [
            ("", "missing:", "latency>100ms"),
            ("oom or", "missing beside `or`", "oom"),
            ("or or oom", "missing beside `or`", "oom"),
            ("latnecy>100ms", "`latnecy>100ms`", "latency>100ms, p99"),
            ("oom or memory>9", "`memory>9`", "joined by `or`"),
            ("oom, latency>1ms", "`oom, latency>1ms` is too much", "`oom` stands alone"),
            ("oom>1", "`oom>1`", "stands alone"),
            ("latency", "`latency` has no limit", "latency>100ms"),
            ("latency>", "`latency>` has no limit", "latency>100ms"),
            ("p99(10s)", "`p99(10s)` has no limit", "p99(10s)>20ms"),
            ("psi.some.avg10", "no limit", "psi.some.avg10>20"),
            ("latency>=1ms", "`latency>=1ms`", "`>`"),
            ("latency<1ms", "`latency<1ms`", "`>`"),
            ("latency==1ms", "`latency==1ms`", "`>`"),
            ("latency>100", "`100` is not a duration", "unit"),
            ("latency>0ms", "`0ms`", "duration"),
            ("latency>-5ms", "`-5ms`", "duration"),
            ("latency>5ms ago", "`5ms ago`", "duration"),
            ("latency>PT5S", "`PT5S`", "duration"),
            ("latency>900000000s", "", ""),
            ("latency>99999999999s", "`99999999999s`", "duration"),
            ("latency>1ms and oom", "`1ms and oom`", "duration"),
            ("p100(10s)>1ms", "`p100` is not a percentile", "99.999"),
            ("p0(10s)>1ms", "`p0`", "0.001"),
            ("p99.9999(10s)>1ms", "`p99.9999`", "percentile"),
            ("p9.(10s)>1ms", "`p9.`", "percentile"),
            ("p99>1ms", "`p99` has no window", "p99(10s)"),
            ("p99(10)>1ms", "`p99(10)`", "100ms to 1h"),
            ("p99(1ms)>1ms", "the window of `p99(1ms)` is too short", "100ms to 1h"),
            ("p99(2h)>1ms", "the window of `p99(2h)` is too long", "100ms to 1h"),
            ("p99(10s>1ms", "`p99(10s`", "parentheses"),
            ("rate>1000", "`1000` is not a rate", "1000/s"),
            ("rate>1000/h", "`1000/h`", "50/m"),
            ("rate>+1/s", "`+1/s`", "whole number"),
            ("rate>1.5/s", "`1.5/s`", "whole number"),
            ("rate>/s", "`/s`", "whole number"),
            ("rate>99999999999999999999/s", "`99999999999999999999/s`", "whole number"),
            ("psi.cpu.avg10>20", "`psi.cpu.avg10`", "psi.some or psi.full"),
            ("psi.some>20", "`psi.some`", ".avg10"),
            ("psi.some.avg10.x>20", "`psi.some.avg10.x`", ".avg300"),
            ("psi.some.avg10>100", "`100` is not a percentage", "less than 100"),
            ("psi.some.avg10>2.345", "`2.345`", "two decimals"),
            ("psi.some.avg10>-1", "`-1`", "percentage"),
            ("latency>\x1b[2J", "`\\x1b[2J`", "duration"),
            ("é>1", "`é>1`", "not a condition"),
        ] {
            let said = normal(text);
            assert!(said.contains(part) && said.contains(remedy), "{text}: `{said}`");
            assert!(!said.contains('\x1b'), "{said}");
        }
        let many = vec!["oom"; MOST + 1].join(" or ");
        assert!(normal(&many).contains("17 conditions"), "{}", normal(&many));
    }
}
