//! The system around the stalls, from the kernel's own words.

use std::collections::BTreeMap;

use serde::Serialize;

use super::serial::as_map;
use crate::recording::Look;
use crate::recording::readings::{self, ZonePages};
use crate::verdict::Stat;

/// Most cgroups that are shown: those whose events count the most.
const MOST_CGROUPS: usize = 10;

/// Counters of /proc/vmstat that tell how hard memory is to come by; those that end in `_` are many.
const COUNTERS: [&str; 16] = [
    "allocstall_",
    "pgscan_direct",
    "pgsteal_direct",
    "pgscan_kswapd",
    "pgsteal_kswapd",
    "compact_stall",
    "compact_fail",
    "compact_success",
    "oom_kill",
    "workingset_refault_",
    "workingset_thrashing",
    "pswpin",
    "pswpout",
    "pgmajfault",
    "drop_slab",
    "drop_pagecache",
];

/// The system at one time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct System {
    /// From /proc/meminfo, in bytes.
    pub mem_total_bytes: Option<u64>,
    /// Free, whatever for.
    pub mem_free_bytes: Option<u64>,
    /// What could be allocated without swapping.
    pub mem_available_bytes: Option<u64>,
    /// All swap.
    pub swap_total_bytes: Option<u64>,
    /// Free swap.
    pub swap_free_bytes: Option<u64>,
    /// From /proc/pressure/memory, by `some` and `full`.
    pub pressure: BTreeMap<String, Pressure>,
    /// From /proc/zoneinfo and /proc/buddyinfo.
    pub zones: Vec<ZoneState>,
    /// Nanoseconds since the look before; nothing where there is none.
    pub since_ns: Option<u64>,
    /// By how much counters of /proc/vmstat grew since, the busiest first.
    #[serde(serialize_with = "as_map")]
    pub vmstat: Vec<(String, u64)>,
    /// The cgroups that stalled, those with most events first.
    #[serde(skip)]
    pub cgroups: Vec<CgroupState>,
}

/// The share of time in which threads lacked memory, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Of the last ten seconds.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last five minutes.
    pub avg300: f64,
}

/// A zone's pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ZoneState {
    /// The node's number.
    pub node: u32,
    /// The kernel's name of the zone.
    pub zone: String,
    /// Free pages.
    pub free: Option<u64>,
    /// The watermarks in pages, without their boost.
    pub min: Option<u64>,
    /// Below it kswapd is woken up.
    pub low: Option<u64>,
    /// Up to it kswapd works.
    pub high: Option<u64>,
    /// What the watermarks are raised by.
    pub boost: Option<u64>,
    /// Pages that the zone has to give.
    pub managed: Option<u64>,
    /// Free blocks by order.
    pub free_blocks: Vec<u64>,
}

/// A cgroup's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupState {
    /// Its id.
    pub id: u64,
    /// memory.current, in bytes; of cgroup v1 memory.usage_in_bytes.
    pub current_bytes: Option<u64>,
    /// memory.events: how often in all, by event; of cgroup v1 memory.failcnt as `failcnt`.
    pub events: Vec<(String, u64)>,
    /// By how much they grew since the look before.
    pub grown: Vec<(String, u64)>,
}

impl System {
    /// What a look says, and what has changed since the one before it.
    #[must_use]
    pub fn of(look: &Look, before: Option<&Look>) -> Self {
        let meminfo = Stat(file(look, "/proc/meminfo"));
        let is_it = |name: &str, known: &str| {
            if known.ends_with('_') { name.starts_with(known) } else { name == known }
        };
        let is_shown = |name: &str| COUNTERS.iter().any(|known| is_it(name, known));
        let grown = before.map(|before| {
            grown(&counters(file(before, "/proc/vmstat")), &counters(file(look, "/proc/vmstat")))
        });
        let mut grown = grown.unwrap_or_default();
        grown.retain(|(name, _)| is_shown(name));
        Self {
            mem_total_bytes: meminfo.get("MemTotal"),
            mem_free_bytes: meminfo.get("MemFree"),
            mem_available_bytes: meminfo.get("MemAvailable"),
            swap_total_bytes: meminfo.get("SwapTotal"),
            swap_free_bytes: meminfo.get("SwapFree"),
            pressure: pressure(file(look, "/proc/pressure/memory")),
            zones: zones(file(look, "/proc/zoneinfo"), file(look, "/proc/buddyinfo")),
            since_ns: before.map(|before| look.at_ns.saturating_sub(before.at_ns)),
            vmstat: grown,
            cgroups: cgroups(look, before),
        }
    }
}

fn file<'a>(look: &'a Look, path: &str) -> &'a str {
    look.files.get(path).map_or("", String::as_str)
}

/// Lines of a name and a number.
fn counters(text: &str) -> BTreeMap<&str, u64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(name, value)| Some((name, value.trim().parse().ok()?))).collect()
}

/// Counters that have grown, those that have most first.
fn grown(before: &BTreeMap<&str, u64>, after: &BTreeMap<&str, u64>) -> Vec<(String, u64)> {
    let growth = |(name, value): (&&str, &u64)| {
        let growth = value.saturating_sub(*before.get(name)?);
        (growth != 0).then(|| ((*name).to_owned(), growth))
    };
    let mut grown: Vec<_> = after.iter().filter_map(growth).collect();
    grown.sort_by_key(|(_, growth)| std::cmp::Reverse(*growth));
    grown
}

/// Of those lines that are whole.
fn pressure(text: &str) -> BTreeMap<String, Pressure> {
    let text = readings::Pressure(text);
    let share = |share: &'static str| {
        let percent = |average| text.percent(share, average);
        let (avg10, avg60, avg300) = (percent("avg10")?, percent("avg60")?, percent("avg300")?);
        Some((share.to_owned(), Pressure { avg10, avg60, avg300 }))
    };
    readings::Pressure::SHARES.into_iter().filter_map(share).collect()
}

fn zones(zoneinfo: &str, buddyinfo: &str) -> Vec<ZoneState> {
    let state = |zone: ZonePages<'_>| {
        let ZonePages { node, name, free, min, low, high, boost, managed } = zone;
        let (zone, free_blocks) = (name.to_owned(), Vec::new());
        ZoneState { node, zone, free, min, low, high, boost, managed, free_blocks }
    };
    let mut zones: Vec<_> = readings::zones(zoneinfo).into_iter().map(state).collect();
    for (node, name, blocks) in readings::free_blocks(buddyinfo) {
        let is_it = |known: &&mut ZoneState| known.node == node && known.zone == name;
        if let Some(known) = zones.iter_mut().find(is_it) {
            known.free_blocks = blocks;
        }
    }
    // One that has no pages has nothing to say.
    zones.retain(|zone| zone.managed != Some(0));
    zones
}

/// The text of cgroup v2, or that of v1.
fn of_cgroup<'a>(files: &'a BTreeMap<String, String>, v2: &str, v1: &str) -> Option<&'a str> {
    files.get(v2).or_else(|| files.get(v1)).map(String::as_str)
}

/// How often limits were reached and what came of it. In cgroup v1 that is one number without a name.
fn events(files: &BTreeMap<String, String>) -> BTreeMap<&str, u64> {
    let text = of_cgroup(files, "memory.events", "memory.failcnt").unwrap_or_default();
    match text.trim().parse() {
        Ok(count) => [("failcnt", count)].into(),
        Err(_) => counters(text),
    }
}

fn cgroups(look: &Look, before: Option<&Look>) -> Vec<CgroupState> {
    let state = |(id, files): (&u64, &BTreeMap<String, String>)| {
        let now = events(files);
        let before = before.and_then(|before| before.cgroups.get(id)).map(events);
        let grown = before.map(|before| grown(&before, &now)).unwrap_or_default();
        let current = of_cgroup(files, "memory.current", "memory.usage_in_bytes");
        CgroupState {
            id: *id,
            current_bytes: current.and_then(|text| text.trim().parse().ok()),
            events: now.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            grown,
        }
    };
    let mut cgroups: Vec<_> = look.cgroups.iter().map(state).collect();
    let sum = |of: &[(String, u64)]| of.iter().fold(0_u64, |sum, (_, n)| sum.saturating_add(*n));
    cgroups.sort_by_key(|cgroup| std::cmp::Reverse((sum(&cgroup.grown), sum(&cgroup.events))));
    cgroups.truncate(MOST_CGROUPS);
    cgroups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at_ns: u64, allocstall: u64, high: u64) -> Look {
        let files = [
            (
                "/proc/meminfo",
                "MemTotal:       16000 kB\nMemFree:    100 kB\nMemAvailable:    250 kB\n\
                 SwapTotal:    2048 kB\nSwapFree:    0 kB\nHugePages_Total:  0\n"
                    .to_owned(),
            ),
            (
                "/proc/vmstat",
                format!(
                    "nr_free_pages {allocstall}\nallocstall_normal {allocstall}\n\
                     allocstall_movable 7\npgscan_direct {}\npgscan_direct_throttle 9\n\
                     workingset_refault_file {allocstall}\ngarbage\npswpin x\n",
                    allocstall * 100
                ),
            ),
            (
                "/proc/pressure/memory",
                "some avg10=12.34 avg60=5.00 avg300=1.00 total=1234\n\
                 full avg10=3.00 avg60=2.00 avg300=0.50 total=99\nother avg10=NaN avg60=1 avg300=1\n"
                    .to_owned(),
            ),
            (
                "/proc/zoneinfo",
                "Node 0, zone      DMA\n  pages free     10\n        managed  0\n\
                 Node 0, zone   Normal\n  pages free     3840\n        boost    5\n        min      67\n\
                 \x20       low      84\n        high     101\n        managed  4000\n\
                 \x20   cpu: 0\n              high:  378\n              high 999\n"
                    .to_owned(),
            ),
            (
                "/proc/buddyinfo",
                "Node 0, zone      DMA      1      1\nNode 0, zone   Normal      5      3      0      1 \n"
                    .to_owned(),
            ),
        ];
        let events = format!("low 0\nhigh {high}\nmax 3\n");
        let cgroup = [("memory.current", "4096\n".to_owned()), ("memory.events", events)];
        let owned = |(name, text): (&str, String)| (name.to_owned(), text);
        Look {
            at_ns,
            files: files.into_iter().map(owned).collect(),
            cgroups: [(7, BTreeMap::new()), (70, cgroup.into_iter().map(owned).collect())].into(),
            ..Look::default()
        }
    }

    #[test]
    fn a_look_is_read() {
        let system = System::of(&look(3_000, 50, 12), Some(&look(1_000, 40, 2)));
        assert_eq!(system.mem_available_bytes, Some(250 * 1024));
        assert_eq!((system.swap_total_bytes, system.swap_free_bytes), (Some(2 << 20), Some(0)));
        assert_eq!(system.pressure.len(), 2);
        assert_eq!(system.pressure["some"], Pressure { avg10: 12.34, avg60: 5.0, avg300: 1.0 });
        let [zone] = &system.zones[..] else { panic!("one zone has pages: {:?}", system.zones) };
        assert_eq!((zone.node, &*zone.zone), (0, "Normal"));
        assert_eq!(
            [zone.free, zone.min, zone.low, zone.high, zone.boost],
            [3840, 67, 84, 101, 5].map(Some)
        );
        assert_eq!(zone.free_blocks, [5, 3, 0, 1]);
        assert_eq!(system.since_ns, Some(2_000));
        let grown: Vec<_> = system.vmstat.iter().map(|(name, by)| (&**name, *by)).collect();
        assert_eq!(
            grown,
            [("pgscan_direct", 1000), ("allocstall_normal", 10), ("workingset_refault_file", 10)]
        );
        assert_eq!(system.cgroups[0].id, 70);
        assert_eq!(system.cgroups[0].current_bytes, Some(4096));
        assert_eq!(system.cgroups[0].grown, [("high".to_owned(), 10)]);
        assert_eq!(system.cgroups[0].events[0], ("high".to_owned(), 12));
    }

    #[test]
    fn cgroup_v1_has_other_names() {
        let v1 = |at_ns, failcnt: u64| {
            let files = [
                ("memory.usage_in_bytes", "8192\n".to_owned()),
                ("memory.limit_in_bytes", "9223372036854771712\n".to_owned()),
                ("memory.failcnt", format!("{failcnt}\n")),
            ];
            let files = files.map(|(name, text)| (name.to_owned(), text));
            Look { at_ns, cgroups: [(70, files.into())].into(), ..Look::default() }
        };
        let system = System::of(&v1(2_000, 12), Some(&v1(1_000, 5)));
        let failed = |count| vec![("failcnt".to_owned(), count)];
        let expected =
            CgroupState { id: 70, current_bytes: Some(8192), events: failed(12), grown: failed(7) };
        assert_eq!(system.cgroups, [expected]);
    }

    #[test]
    fn what_a_look_does_not_say_is_not_known() {
        let system = System::of(&Look::default(), None);
        assert_eq!(system, System::default());
        let first = System::of(&look(1, 50, 1), None);
        assert_eq!((first.since_ns, first.vmstat.len()), (None, 0));
    }
}
