//! The worst second in words, for every report that people read.

use super::findings::{CgroupThen, WorstSecond};
use super::system::{Pressure, System, ZoneState};
use crate::text::Printable;
use crate::view::words::Span;

/// What was lost in it.
pub fn lost(worst: &WorstSecond) -> String {
    let WorstSecond { stalls, stalled_ns, .. } = worst;
    let s = if *stalls == 1 { "" } else { "s" };
    format!("{} lost, {stalls} stall{s} began in it", Span((*stalled_ns).into()))
}

/// How far a look is from the begin of the second, both in nanoseconds since 1970.
pub fn apart(look_ns: i64, second_ns: i64) -> String {
    let (apart, side) = match look_ns.checked_sub(second_ns) {
        Some(ns @ 0..) => (ns, "after it began"),
        ns => (ns.unwrap_or(i64::MAX), "before it began"),
    };
    format!("{} {side}", Span(apart.unsigned_abs().into()))
}

/// How much memory and swap there was.
pub fn memory(system: &System) -> Vec<String> {
    let mut facts = Vec::new();
    let mut fact = |name: &str, bytes: Option<u64>, of: Option<u64>| {
        facts.extend(bytes.map(|bytes| match of {
            Some(of) => format!("{name} {} of {}", size(bytes), size(of)),
            None => format!("{name} {}", size(bytes)),
        }));
    };
    fact("available", system.mem_available_bytes, system.mem_total_bytes);
    fact("free", system.mem_free_bytes, None);
    fact("free swap", system.swap_free_bytes, system.swap_total_bytes);
    facts
}

/// The pressure of the last ten seconds.
pub fn pressure(system: &System) -> Vec<String> {
    let shown = |(name, of): (&String, &Pressure)| {
        format!("{} {:.2} %", Printable(name.as_bytes()), of.avg10)
    };
    system.pressure.iter().map(shown).collect()
}

/// In how long the kernel's counters grew, and by how much; nothing where there was no look before.
pub fn counted(system: &System) -> Option<(String, Vec<String>)> {
    let since_ns = system.since_ns?;
    Some((format!("counted in {}", Span(since_ns.into())), counts(&system.vmstat, "")))
}

/// A cgroup's memory, and what happened to it.
pub fn of_cgroup(cgroup: &CgroupThen) -> Vec<String> {
    let CgroupThen { cgroup: _, current_bytes, events, events_grown } = cgroup;
    let (known, sign) = if events_grown.is_empty() { (events, "") } else { (events_grown, "+") };
    let happened: Vec<_> = known.iter().filter(|(_, count)| *count != 0).cloned().collect();
    current_bytes.map(size).into_iter().chain(counts(&happened, sign)).collect()
}

/// The largest order of which a zone has a free block.
pub fn most_order(zone: &ZoneState) -> Option<u64> {
    zone.free_blocks.iter().rposition(|blocks| *blocks != 0).map(|order| order as u64)
}

/// The lowest watermark that a zone's free pages are below, or nothing.
pub fn below(zone: &ZoneState) -> &'static str {
    let ZoneState { free, min, low, high, .. } = zone;
    let is_short = |mark: &Option<u64>| free.zip(*mark).is_some_and(|(free, mark)| free < mark);
    match () {
        () if is_short(min) => "below min",
        () if is_short(low) => "below low",
        () if is_short(high) => "below high",
        () => "",
    }
}

fn counts(list: &[(String, u64)], sign: &str) -> Vec<String> {
    list.iter().map(|(name, by)| format!("{} {sign}{by}", Printable(name.as_bytes()))).collect()
}

/// Bytes in the unit that suits their number.
fn size(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    match bytes {
        0..0x10_0000 => format!("{kib:.1} KiB"),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", kib / 1024.0),
        _ => format!("{:.1} GiB", kib / 1024.0 / 1024.0),
    }
}
