//! The worst second of a report for people, and what the system was like then.

use std::io::{self, Write as _};

use super::findings::{SystemThen, WorstSecond};
use super::system::ZoneState;
use super::text::{Text, name_and_owner};
use super::worst::{apart, below, counted, lost, memory, most_order, of_cgroup, pressure};
use crate::text::Printable;
use crate::view::line::Line;

impl Text<'_> {
    pub(super) fn worst_second(&mut self, worst: &WorstSecond) -> io::Result<()> {
        let WorstSecond { time, host, system, .. } = worst;
        let (at, lost, host) = (self.time(*time, 0), lost(worst), self.host(host));
        writeln!(self.out, "\nWorst second\n  {at}: {lost}{host}")?;
        match system {
            Some(system) => self.system(system, *time),
            None => writeln!(self.out, "  what the system was like then was not recorded"),
        }
    }

    fn system(&mut self, then: &SystemThen, second_ns: i64) -> io::Result<()> {
        let SystemThen { time, system, cgroups } = then;
        writeln!(self.out, "  The system {}:", apart(*time, second_ns))?;
        self.list("memory: ", &memory(system))?;
        self.list("pressure of the last 10 s: ", &pressure(system))?;
        if !system.zones.is_empty() {
            writeln!(self.out, "    FREE(pages)      MIN      LOW     HIGH MOST ORDER ZONE")?;
        }
        for zone in &system.zones {
            self.zone(zone);
        }
        if let Some((in_what, counted)) = counted(system) {
            self.list(&format!("{in_what}: "), &counted)?;
        }
        for row in cgroups {
            self.list(&format!("{}: ", name_and_owner(&row.cgroup)), &of_cgroup(row))?;
        }
        Ok(())
    }

    fn zone(&mut self, zone: &ZoneState) {
        let ZoneState { node, zone: name, free, min, low, high, .. } = zone;
        let name = format!("{node}/{} {}", Printable(name.as_bytes()), below(zone));
        Line::begin(self.out)
            .right(15, *free)
            .right(8, *min)
            .right(8, *low)
            .right(8, *high)
            .right(10, most_order(zone))
            .left(0, name.trim_end())
            .end();
    }
}
