//! What is drawn of the state of the system: free pages, available memory and pressure.

use std::collections::BTreeMap;

use crate::text::Printable;
use crate::verdict::Stat;

/// The value of a counter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Pages(u64),
    Bytes(u64),
    Percent(f64),
}

/// The counters that a look at the system gives, with their names.
pub fn readings(files: &BTreeMap<String, String>) -> Vec<(String, Value)> {
    let file = |path: &str| files.get(path).map_or("", String::as_str);
    let mut readings = free_pages(file("/proc/zoneinfo"));
    let available = Stat(file("/proc/meminfo")).get("MemAvailable");
    readings.extend(available.map(|bytes| ("MemAvailable".to_owned(), Value::Bytes(bytes))));
    readings.extend(pressure(file("/proc/pressure/memory")));
    readings
}

/// By zone, from lines such as `Node 0, zone   Normal` and `  pages free     1234`.
fn free_pages(zoneinfo: &str) -> Vec<(String, Value)> {
    let mut zone = None;
    let mut readings = Vec::new();
    for line in zoneinfo.lines() {
        let words: Vec<_> = line.split_ascii_whitespace().take(5).collect();
        match words[..] {
            ["Node", node, "zone", name] => zone = Some((node.trim_end_matches(','), name)),
            ["pages", "free", pages] => {
                if let (Some((node, name)), Ok(pages)) = (zone, pages.parse()) {
                    let name = Printable(name.as_bytes());
                    let node = Printable(node.as_bytes());
                    readings.push((format!("free pages {node}/{name}"), Value::Pages(pages)));
                }
            }
            _ => {}
        }
    }
    readings
}

/// Of the last ten seconds, from lines such as `some avg10=1.23 avg60=...`.
fn pressure(file: &str) -> impl Iterator<Item = (String, Value)> {
    file.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let who = words.next().filter(|who| ["some", "full"].contains(who))?;
        let percent: f64 = words.find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
        let name = format!("PSI memory {who} avg10");
        percent.is_finite().then_some((name, Value::Percent(percent)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let files = BTreeMap::from(
            [
                (
                    "/proc/zoneinfo",
                    "Node 0, zone      DMA\n  per-node stats\n      nr_free 9\n  pages free     3840\n        min      33\n\
                     Node 1, zone   Normal\n  pages free     7\n        high     9\n",
                ),
                ("/proc/meminfo", "MemTotal: 9 kB\nMemAvailable:   5 kB\n"),
                (
                    "/proc/pressure/memory",
                    "some avg10=1.25 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.50 avg60=0 total=1\n",
                ),
            ]
            .map(|(path, text)| (path.to_owned(), text.to_owned())),
        );
        let expected = [
            ("free pages 0/DMA", Value::Pages(3840)),
            ("free pages 1/Normal", Value::Pages(7)),
            ("MemAvailable", Value::Bytes(5120)),
            ("PSI memory some avg10", Value::Percent(1.25)),
            ("PSI memory full avg10", Value::Percent(0.5)),
        ];
        assert_eq!(readings(&files), expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let files = [
            (
                "/proc/zoneinfo",
                "pages free 1\nNode 0, zone\npages free x\nNode 0, zone A B\npages free 2",
            ),
            ("/proc/meminfo", "MemAvailable: -1 kB"),
            ("/proc/pressure/memory", "some avg10=NaN\nfull\nnone avg10=1\n\n"),
            ("/else", "some avg10=1"),
        ];
        let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
        assert_eq!(readings(&BTreeMap::from(files)), []);
        assert_eq!(readings(&BTreeMap::new()), []);
    }
}
