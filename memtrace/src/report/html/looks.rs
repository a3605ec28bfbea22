//! Pressure, free memory and watermarks over time, from the kernel's own words in a recording.

use std::collections::BTreeMap;

use serde::Serialize;

use super::axis::Axis;
use super::words::short;
use crate::recording::Look;

/// Most zones that are told apart.
const MOST_ZONES: usize = 32;
/// Most zones whose pages are shown.
const SHOWN_ZONES: usize = 6;

/// What the looks of each column come to: the worst of them.
#[derive(Debug, Default)]
pub struct Looks {
    columns: BTreeMap<usize, Seen>,
    /// Node and name, in the order in which they came.
    zones: Vec<String>,
}

/// What was seen in one column.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    /// `some avg10` and `full avg10` of memory, per cent: the greatest.
    some: Option<f64>,
    full: Option<f64>,
    /// MemFree and MemAvailable in KiB: the least.
    free_kib: Option<u64>,
    available_kib: Option<u64>,
    /// By zone.
    zones: BTreeMap<usize, Pages>,
}

/// Pages of a zone: the fewest free ones, and its watermarks then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pages {
    free: u64,
    min: u64,
    low: u64,
    high: u64,
}

impl Looks {
    /// Takes one.
    pub fn add(&mut self, column: usize, look: &Look) {
        let file = |path: &str| look.files.get(path).map_or("", String::as_str);
        let pressure = file("/proc/pressure/memory");
        let meminfo = file("/proc/meminfo");
        let mut seen = Seen {
            some: avg10(pressure, "some"),
            full: avg10(pressure, "full"),
            free_kib: kib(meminfo, "MemFree:"),
            available_kib: kib(meminfo, "MemAvailable:"),
            zones: BTreeMap::new(),
        };
        for (name, pages) in zones(file("/proc/zoneinfo")) {
            seen.zones.extend(self.zone(name).map(|zone| (zone, pages)));
        }
        self.columns.entry(column).or_default().add(seen);
    }

    fn zone(&mut self, name: String) -> Option<usize> {
        let known = self.zones.iter().position(|zone| *zone == name);
        if known.is_none() && self.zones.len() < MOST_ZONES {
            self.zones.push(name);
            return Some(self.zones.len() - 1);
        }
        known
    }

    /// Takes those of another.
    pub fn merge(&mut self, other: Self) {
        let zones: Vec<_> = other.zones.into_iter().map(|name| self.zone(name)).collect();
        for (column, mut seen) in other.columns {
            let known = std::mem::take(&mut seen.zones).into_iter();
            seen.zones = known.filter_map(|(zone, pages)| Some((zones[zone]?, pages))).collect();
            self.columns.entry(column).or_default().add(seen);
        }
    }

    /// What is drawn of them; nothing where there were none.
    pub fn shown(&self, axis: &Axis, page_size: u64) -> Option<Shown> {
        if self.columns.is_empty() {
            return None;
        }
        let mut order: Vec<_> = (0..self.zones.len()).collect();
        let high = |zone: &usize| self.columns.values().find_map(|seen| seen.zones.get(zone));
        order.sort_by_key(|zone| std::cmp::Reverse(high(zone).map(|pages| pages.high)));
        Some(Shown {
            some: self.each(axis, |seen| seen.some),
            full: self.each(axis, |seen| seen.full),
            free: self.each(axis, |seen| seen.free_kib?.checked_mul(1024)),
            available: self.each(axis, |seen| seen.available_kib?.checked_mul(1024)),
            zones: order
                .into_iter()
                .take(SHOWN_ZONES)
                .map(|zone| self.shown_zone(zone, axis, page_size))
                .collect(),
        })
    }

    fn each<T>(&self, axis: &Axis, value: impl Fn(&Seen) -> Option<T>) -> Vec<Option<T>> {
        (0..axis.columns).map(|column| self.columns.get(&column).and_then(&value)).collect()
    }

    fn shown_zone(&self, zone: usize, axis: &Axis, page_size: u64) -> ShownZone {
        let of = |pages: fn(&Pages) -> u64| {
            self.each(axis, |seen| pages(seen.zones.get(&zone)?).checked_mul(page_size))
        };
        ShownZone {
            name: short(self.zones[zone].as_bytes()),
            free: of(|pages| pages.free),
            min: changes(&of(|pages| pages.min)),
            low: changes(&of(|pages| pages.low)),
            high: changes(&of(|pages| pages.high)),
        }
    }
}

impl Seen {
    fn add(&mut self, other: Self) {
        let Self { some, full, free_kib, available_kib, zones } = other;
        let greater = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        self.some = greater(self.some, some);
        self.full = greater(self.full, full);
        self.free_kib = self.free_kib.into_iter().chain(free_kib).min();
        self.available_kib = self.available_kib.into_iter().chain(available_kib).min();
        for (zone, pages) in zones {
            let fewest = self.zones.entry(zone).or_insert(pages);
            if pages.free < fewest.free {
                *fewest = pages;
            }
        }
    }
}

/// Looks as they are in the page, a value for each column that has any; memory in bytes.
#[derive(Debug, Serialize)]
pub struct Shown {
    some: Vec<Option<f64>>,
    full: Vec<Option<f64>>,
    free: Vec<Option<u64>>,
    available: Vec<Option<u64>>,
    zones: Vec<ShownZone>,
}

#[derive(Debug, Serialize)]
struct ShownZone {
    name: String,
    free: Vec<Option<u64>>,
    min: Vec<(usize, u64)>,
    low: Vec<(usize, u64)>,
    high: Vec<(usize, u64)>,
}

/// Where values differ from those before: watermarks seldom change.
fn changes(values: &[Option<u64>]) -> Vec<(usize, u64)> {
    let known = values.iter().enumerate().filter_map(|(column, value)| Some((column, (*value)?)));
    let mut changes: Vec<(usize, u64)> = known.collect();
    changes.dedup_by_key(|(_, value)| *value);
    changes
}

/// `avg10` of a line of /proc/pressure/memory, per cent.
fn avg10(pressure: &str, line: &str) -> Option<f64> {
    let mut words = pressure.lines().map(str::split_whitespace);
    let mut words = words.find_map(|mut words| (words.next() == Some(line)).then_some(words))?;
    let value: f64 = words.find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
    // What is not finite is no JSON.
    value.is_finite().then_some(value)
}

/// A line of /proc/meminfo, in KiB.
fn kib(meminfo: &str, line: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|text| text.strip_prefix(line))?;
    value.split_whitespace().next()?.parse().ok()
}

/// The zones in /proc/zoneinfo, called `node/name`.
fn zones(zoneinfo: &str) -> impl Iterator<Item = (String, Pages)> {
    zoneinfo.split("Node ").skip(1).filter_map(|section| {
        let (head, lines) = section.split_once('\n')?;
        let (node, name) = head.split_once(", zone")?;
        // The first of a name: further down there are counters of CPUs.
        let value = |wanted: &str| {
            lines.lines().find_map(|line| {
                let mut words = line.split_whitespace().filter(|word| *word != "pages");
                (words.next() == Some(wanted)).then_some(words.next()?.parse().ok()?)
            })
        };
        let pages = Pages {
            free: value("free")?,
            min: value("min")?,
            low: value("low")?,
            high: value("high")?,
        };
        Some((format!("{}/{}", node.trim(), name.trim()), pages))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(avg10: &str, free_pages: u64) -> Look {
        let files = [
            (
                "/proc/pressure/memory",
                format!(
                    "some avg10={avg10} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=1\n"
                ),
            ),
            (
                "/proc/meminfo",
                "MemTotal:  100 kB\nMemFree:     7 kB\nMemAvailable:  9 kB\n".to_owned(),
            ),
            (
                "/proc/zoneinfo",
                format!(
                    "Node 0, zone   Normal\n  pages free     {free_pages}\n        min      10\n        low      20\n        high     30\n  pagesets\n    high: 9\nNode 0, zone  Movable\n  pages free 0\n"
                ),
            ),
        ];
        let files = files.map(|(path, text)| (path.to_owned(), text)).into();
        Look { files, ..Look::default() }
    }

    #[test]
    fn the_worst_of_each_column_is_shown() {
        let axis = Axis::over((0, 2_000_000), vec![0]);
        let (mut looks, mut later) = (Looks::default(), Looks::default());
        looks.add(0, &look("1.50", 25));
        later.add(0, &look("12.25", 15));
        later.add(2, &look("nan", 40));
        looks.merge(later);
        let shown = serde_json::to_value(looks.shown(&axis, 4096)).expect("JSON");
        assert_eq!(shown["some"], serde_json::json!([12.25, null, null]));
        assert_eq!(shown["full"], serde_json::json!([0.5, null, 0.5]));
        assert_eq!(shown["free"], serde_json::json!([7168, null, 7168]));
        assert_eq!(shown["available"][0], 9216);
        let zones = shown["zones"].as_array().expect("zones");
        assert_eq!(zones.len(), 1, "one without memory has no watermarks");
        assert_eq!(zones[0]["name"], "0/Normal");
        assert_eq!(zones[0]["free"], serde_json::json!([61_440, null, 163_840]));
        assert_eq!(zones[0]["high"], serde_json::json!([[0, 122_880]]));
    }

    #[test]
    fn nothing_is_shown_of_nothing() {
        let axis = Axis::over((0, 0), vec![0]);
        assert!(Looks::default().shown(&axis, 4096).is_none());
        let mut looks = Looks::default();
        looks.add(0, &Look::default());
        let shown = looks.shown(&axis, 4096).expect("there was one");
        assert_eq!((shown.some, shown.zones.len()), (vec![None], 0));
        assert_eq!(kib("MemFree: 99999999999999999999 kB", "MemFree:"), None);
    }
}
