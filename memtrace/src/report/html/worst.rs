//! The worst second as it is in the page: in the words of the text, but for its time and its zones.

use serde::Serialize;

use super::data::{Hosts, cgroup_name, ms, zone_name};
use super::words::short;
use crate::report::findings::{CgroupThen, SystemThen, WorstSecond};
use crate::report::system::ZoneState;
use crate::report::worst::{apart, below, counted, lost, memory, most_order, of_cgroup, pressure};

/// Most facts of a kind, and most zones: more than any host has.
const MOST: usize = 64;

/// The second in which most time was lost.
#[derive(Debug, Serialize)]
pub struct Worst {
    /// When it began, in milliseconds since 1970.
    at_ms: f64,
    host: usize,
    lost: String,
    /// The system at the nearest look.
    then: Option<Then>,
}

#[derive(Debug, Serialize)]
struct Then {
    apart: String,
    /// Terms with what there is to say of them.
    facts: Vec<(String, String)>,
    zones: Vec<ZoneThen>,
    /// Cgroups that stalled, likewise.
    cgroups: Vec<(Option<String>, String)>,
}

/// A zone, in pages.
#[derive(Debug, Serialize)]
struct ZoneThen {
    name: String,
    free: Option<u64>,
    min: Option<u64>,
    low: Option<u64>,
    high: Option<u64>,
    most_order: Option<u64>,
    below: &'static str,
}

impl Worst {
    pub fn of(worst: &WorstSecond, hosts: &Hosts<'_>) -> Self {
        let then = worst.system.as_ref().map(|then| Then::of(then, worst.time));
        let host = hosts.number(&worst.host);
        Self { at_ms: ms(worst.time), host, lost: lost(worst), then }
    }
}

impl Then {
    fn of(then: &SystemThen, second_ns: i64) -> Self {
        let SystemThen { time, system, cgroups } = then;
        let facts = [
            Some(("memory".to_owned(), memory(system))),
            Some(("pressure of the last 10 s".to_owned(), pressure(system))),
            counted(system),
        ];
        let facts = facts.into_iter().flatten().filter(|(_, facts)| !facts.is_empty());
        let cgroup = |row: &CgroupThen| (cgroup_name(&row.cgroup), listed(&of_cgroup(row)));
        Self {
            apart: apart(*time, second_ns),
            facts: facts.map(|(term, facts)| (term, listed(&facts))).collect(),
            zones: system.zones.iter().take(MOST).map(ZoneThen::of).collect(),
            cgroups: cgroups.iter().map(cgroup).collect(),
        }
    }
}

impl ZoneThen {
    fn of(state: &ZoneState) -> Self {
        let ZoneState { node, zone, free, min, low, high, .. } = state;
        Self {
            name: zone_name(node, zone),
            free: *free,
            min: *min,
            low: *low,
            high: *high,
            most_order: most_order(state),
            below: below(state),
        }
    }
}

fn listed(facts: &[String]) -> String {
    let facts: Vec<_> = facts.iter().take(MOST).map(|fact| short(fact.as_bytes())).collect();
    facts.join(", ")
}
