//! What the kernel says of its memory, read: /proc/pressure/memory, /proc/zoneinfo and /proc/buddyinfo, as looks at
//! the system have them. [`Stat`](crate::verdict::Stat) reads files of names and numbers.

/// The text of /proc/pressure/memory: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
#[derive(Clone, Copy, Debug)]
pub struct Pressure<'a>(pub &'a str);

impl<'a> Pressure<'a> {
    /// The lines: of the time in which at least one task lacked memory, and in which all did.
    pub const SHARES: [&'static str; 2] = ["some", "full"];
    /// The averages of a line, over so many seconds.
    pub const AVERAGES: [&'static str; 3] = ["avg10", "avg60", "avg300"];

    /// A value as it stands there; nothing where there is no such line or none of that name in it.
    #[must_use]
    pub fn get(self, share: &str, name: &str) -> Option<&'a str> {
        let named = |line: &&str| line.split_ascii_whitespace().next() == Some(share);
        let fields = self.0.lines().find(named)?.split_ascii_whitespace();
        let mut values = fields.filter_map(|field| field.split_once('='));
        values.find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// An average in percent; nothing where it is no finite number.
    #[must_use]
    pub fn percent(self, share: &str, average: &str) -> Option<f64> {
        self.get(share, average)?.parse().ok().filter(|value: &f64| value.is_finite())
    }
}

/// A zone as /proc/zoneinfo has it. Numbers are pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZonePages<'a> {
    /// The node's number.
    pub node: u32,
    /// The kernel's name of the zone.
    pub name: &'a str,
    /// Free pages.
    pub free: Option<u64>,
    /// The watermarks, without their boost.
    pub min: Option<u64>,
    /// Below it kswapd is woken up.
    pub low: Option<u64>,
    /// Up to it kswapd works.
    pub high: Option<u64>,
    /// What the watermarks are raised by.
    pub boost: Option<u64>,
    /// Pages that the zone has to give.
    pub managed: Option<u64>,
}

/// The zones of /proc/zoneinfo, in their order.
#[must_use]
pub fn zones(zoneinfo: &str) -> Vec<ZonePages<'_>> {
    let mut zones: Vec<ZonePages<'_>> = Vec::new();
    for line in zoneinfo.lines() {
        if let Some((node, name, _)) = zone_of(line) {
            zones.push(ZonePages { node, name, ..ZonePages::default() });
            continue;
        }
        let mut words = line.split_ascii_whitespace().rev();
        let (value, name) = (words.next().and_then(|value| value.parse().ok()), words.next());
        let Some(zone) = zones.last_mut() else { continue };
        let place = match name {
            Some("free") => &mut zone.free,
            Some("min") => &mut zone.min,
            Some("low") => &mut zone.low,
            Some("high") => &mut zone.high,
            Some("boost") => &mut zone.boost,
            Some("managed") => &mut zone.managed,
            _ => continue,
        };
        // Further down there are lines of the same names about each CPU's own pages.
        *place = place.or(value);
    }
    zones
}

/// The zones of /proc/buddyinfo: node, name, and free blocks by order.
pub fn free_blocks(buddyinfo: &str) -> impl Iterator<Item = (u32, &str, Vec<u64>)> {
    buddyinfo.lines().filter_map(zone_of).map(|(node, name, blocks)| {
        let blocks = blocks.split_ascii_whitespace().map_while(|blocks| blocks.parse().ok());
        (node, name, blocks.collect())
    })
}

/// `Node 0, zone   Normal` and what is behind it.
fn zone_of(line: &str) -> Option<(u32, &str, &str)> {
    let (node, rest) = line.strip_prefix("Node ")?.split_once(", zone")?;
    let rest = rest.trim_start();
    let (zone, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Some((node.trim().parse().ok()?, zone, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read() {
        let text =
            "some avg10=12.34 avg60=5.00 avg300=1.00 total=1234\nfull avg10=NaN avg60=2 total=99\n";
        let pressure = Pressure(text);
        assert_eq!(pressure.get("some", "avg10"), Some("12.34"));
        assert_eq!(pressure.get("some", "total"), Some("1234"));
        assert_eq!(pressure.percent("some", "avg60"), Some(5.0));
        assert_eq!(pressure.get("full", "avg10"), Some("NaN"));
        assert_eq!(pressure.percent("full", "avg10"), None);
        for (share, name) in [("full", "avg300"), ("none", "avg10"), ("some", "avg1"), ("", "")] {
            assert_eq!(pressure.get(share, name), None, "{share} {name}");
        }
    }

    #[test]
    fn zones_are_read() {
        let zoneinfo = "pages free 1\nNode 0, zone      DMA\n  per-node stats\n      nr_free_pages 5\n  pages free     10\n        managed  0\n\
             Node 1, zone   Normal\n  pages free     3840\n        boost    5\n        min      67\n        low      84\n\
             \x20       high     101\n        managed  x\n    cpu: 0\n              high:  378\n              high 999\n\
             Node x, zone Lost\n  pages free 7\n";
        let dma =
            ZonePages { name: "DMA", free: Some(10), managed: Some(0), ..ZonePages::default() };
        let normal = ZonePages {
            node: 1,
            name: "Normal",
            free: Some(3840),
            min: Some(67),
            low: Some(84),
            high: Some(101),
            boost: Some(5),
            managed: None,
        };
        assert_eq!(zones(zoneinfo), [dma, normal]);
        let blocks: Vec<_> =
            free_blocks("Node 0, zone   Normal      5      3      0 x 1\nNode 1\n\n").collect();
        assert_eq!(blocks, [(0, "Normal", vec![5, 3, 0])]);
    }
}
