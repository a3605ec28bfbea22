//! The worst second of a report for people, and what the system was like then.

use std::io::{self, Write as _};

use super::findings::{SystemThen, WorstSecond};
use super::system::ZoneState;
use super::text::{Text, name_and_owner};
use crate::text::Printable;
use crate::view::line::Line;
use crate::view::words::Span;

impl Text<'_> {
    pub(super) fn worst_second(&mut self, worst: &WorstSecond) -> io::Result<()> {
        let WorstSecond { time, host, stalls, stalled_ns, system } = worst;
        let (at, host) = (self.time(*time, 0), self.host(host));
        let lost = Span((*stalled_ns).into());
        let s = if *stalls == 1 { "" } else { "s" };
        writeln!(
            self.out,
            "\nWorst second\n  {at}: {lost} lost, {stalls} stall{s} began in it{host}"
        )?;
        match system {
            Some(system) => self.system(system, *time),
            None => writeln!(self.out, "  what the system was like then was not recorded"),
        }
    }

    fn system(&mut self, then: &SystemThen, second_ns: i64) -> io::Result<()> {
        let SystemThen { time, system, cgroups } = then;
        let (apart, side) = match time.checked_sub(second_ns) {
            Some(ns @ 0..) => (ns, "after it began"),
            ns => (ns.unwrap_or(i64::MAX), "before it began"),
        };
        writeln!(self.out, "  The system {} {side}:", Span(apart.unsigned_abs().into()))?;
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
        self.list("memory: ", &facts)?;
        let pressure = system.pressure.iter();
        let pressure =
            pressure.map(|(name, of)| format!("{} {:.2} %", Printable(name.as_bytes()), of.avg10));
        self.list("pressure of the last 10 s: ", &pressure.collect::<Vec<_>>())?;
        if !system.zones.is_empty() {
            writeln!(self.out, "    FREE(pages)      MIN      LOW     HIGH MOST ORDER ZONE")?;
        }
        for zone in &system.zones {
            self.zone(zone);
        }
        let counted = |list: &[(String, u64)], sign: &str| {
            let counted = list.iter();
            let counted =
                counted.map(|(name, by)| format!("{} {sign}{by}", Printable(name.as_bytes())));
            counted.collect::<Vec<_>>()
        };
        if let Some(since_ns) = system.since_ns {
            let in_what = format!("counted in {}: ", Span(since_ns.into()));
            self.list(&in_what, &counted(&system.vmstat, ""))?;
        }
        for row in cgroups {
            let mut facts: Vec<_> = row.current_bytes.into_iter().map(size).collect();
            let known = if row.events_grown.is_empty() { &row.events } else { &row.events_grown };
            let sign = if row.events_grown.is_empty() { "" } else { "+" };
            let happened: Vec<_> = known.iter().filter(|(_, count)| *count != 0).cloned().collect();
            facts.extend(counted(&happened, sign));
            self.list(&format!("{}: ", name_and_owner(&row.cgroup)), &facts)?;
        }
        Ok(())
    }

    fn zone(&mut self, zone: &ZoneState) {
        let ZoneState { node, zone, free, min, low, high, free_blocks, .. } = zone;
        let most_order = free_blocks.iter().rposition(|blocks| *blocks != 0);
        let is_short = |mark: &Option<u64>| free.zip(*mark).is_some_and(|(free, mark)| free < mark);
        let state = match () {
            () if is_short(min) => "below min",
            () if is_short(low) => "below low",
            () if is_short(high) => "below high",
            () => "",
        };
        let name = format!("{node}/{} {state}", Printable(zone.as_bytes()));
        Line::begin(self.out)
            .right(15, *free)
            .right(8, *min)
            .right(8, *low)
            .right(8, *high)
            .right(10, most_order.map(|order| order as u64))
            .left(0, name.trim_end())
            .end();
    }
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
