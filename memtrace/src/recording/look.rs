//! Looks at the system around the stalls: what the kernel says of its memory, in its own words.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::meta::{Counts, Look};
use crate::cgroup::{Cgroups, Hierarchy};

/// What is looked at each time.
const FILES: [&str; 5] =
    ["/proc/meminfo", "/proc/vmstat", "/proc/buddyinfo", "/proc/pressure/memory", ZONEINFO];
const ZONEINFO: &str = "/proc/zoneinfo";
/// Longest text of one file: hosts with many nodes have long ones.
const MOST_BYTES: usize = 256 << 10;
/// What of a cgroup is looked at.
const OF_V2: [&str; 6] = [
    "memory.current",
    "memory.events",
    "memory.high",
    "memory.max",
    "memory.pressure",
    "memory.swap.current",
];
/// The same in cgroup v1.
const OF_V1: [&str; 3] = ["memory.usage_in_bytes", "memory.limit_in_bytes", "memory.failcnt"];

/// Looks again and again at the same files.
#[derive(Debug)]
pub struct Looker {
    files: Vec<(&'static str, File)>,
    buffer: Vec<u8>,
}

impl Looker {
    /// Opens what there is on this kernel.
    #[must_use]
    pub fn open() -> Self {
        let open = |path: &&'static str| Some((*path, File::open(path).ok()?));
        Self { files: FILES.iter().filter_map(open).collect(), buffer: vec![0; MOST_BYTES] }
    }

    /// Looks at the host and at these cgroups.
    pub fn look(
        &mut self,
        at_ns: u64,
        counts: Counts,
        ids: impl IntoIterator<Item = u64>,
        cgroups: &mut Cgroups,
    ) -> Look {
        let Self { files, buffer } = self;
        let host = files.iter().filter_map(|(path, file)| {
            let text = match *path {
                ZONEINFO => zones(file, buffer),
                _ => read(file, buffer).map(str::to_owned),
            };
            Some(((*path).to_owned(), text.ok()?))
        });
        let files = host.collect();
        let looks = ids.into_iter().filter_map(|id| Some((id, of_cgroup(id, buffer, cgroups)?)));
        Look { at_ns, files, cgroups: looks.collect(), counts }
    }

    /// What /proc/pressure/memory says; nothing where the kernel does not have it.
    pub fn pressure(&mut self) -> Option<&str> {
        let Self { files, buffer } = self;
        let (_, file) = files.iter().find(|(path, _)| *path == "/proc/pressure/memory")?;
        read(file, buffer).ok()
    }
}

fn read<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let mut len = 0;
    // The kernel gives such files a page at a time.
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    str::from_utf8(&buffer[..len]).map_err(io::Error::other)
}

fn of_cgroup(
    id: u64,
    buffer: &mut [u8],
    cgroups: &mut Cgroups,
) -> Option<BTreeMap<String, String>> {
    let place = cgroups.directory(id)?;
    let names: &[&str] = match place.hierarchy {
        Hierarchy::V2 => &OF_V2,
        Hierarchy::V1Memory => &OF_V1,
    };
    let texts = names.iter().filter_map(|name| {
        let file = File::open(place.directory.join(name)).ok()?;
        Some(((*name).to_owned(), read(&file, buffer).ok()?.to_owned()))
    });
    Some(texts.collect())
}

/// Of /proc/zoneinfo each zone's name, pages and watermarks. What it says of each CPU is the most of it, MiB where there are
/// hundreds, so it is looked through a part at a time, for each of which `buffer` is room.
fn zones(zoneinfo: &impl FileExt, buffer: &mut [u8]) -> io::Result<String> {
    let (mut kept, mut offset, mut waiting) = (String::new(), 0, 0);
    loop {
        let read = zoneinfo.read_at(&mut buffer[waiting..], offset)?;
        offset += read as u64;
        let len = waiting + read;
        let end = memchr::memrchr(b'\n', &buffer[..len]).map_or(0, |at| at + 1);
        let lines = str::from_utf8(&buffer[..end]).map_err(io::Error::other)?.split_inclusive('\n');
        kept.extend(lines.filter(|line| is_of_zone(line)));
        if read == 0 || kept.len() >= MOST_BYTES {
            return Ok(kept);
        }
        // The rest of a line is yet to come.
        buffer.copy_within(end..len, 0);
        waiting = len - end;
    }
}

fn is_of_zone(line: &str) -> bool {
    const KEPT: [&str; 8] =
        ["pages", "boost", "min", "low", "high", "spanned", "present", "managed"];
    let first = line.split_ascii_whitespace().next().unwrap_or_default();
    line.starts_with("Node") && line.contains("zone") || KEPT.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_looked_at() {
        let mut looker = Looker::open();
        let look = looker.look(5, Counts::default(), [u64::MAX], &mut Cgroups::live());
        assert!(look.files["/proc/meminfo"].contains("MemFree"), "{look:?}");
        assert!(look.files["/proc/vmstat"].contains("pgscan_direct"));
        assert!(look.files["/proc/buddyinfo"].contains("zone"));
        let zones = &look.files[ZONEINFO];
        assert!(zones.contains("pages free") && zones.contains("high"), "{zones}");
        assert!(!zones.contains("pagesets") && !zones.contains("cpu:"), "{zones}");
        assert!(look.cgroups.is_empty(), "no such cgroup");
    }

    #[test]
    fn a_cgroup_is_looked_at() {
        use std::os::unix::fs::MetadataExt as _;
        let mut cgroups = Cgroups::live();
        let root = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter();
        let id = root.filter_map(|path| std::fs::metadata(path).ok()).map(|it| it.ino());
        let known = id.into_iter().find(|id| cgroups.directory(*id).is_some()).expect("a root");
        let look = Looker::open().look(5, Counts::default(), [known], &mut cgroups);
        assert!(look.cgroups.contains_key(&known), "{:?}", look.cgroups);
    }

    #[test]
    fn of_zones_only_pages_and_watermarks_are_kept() {
        let zone = |name: &str| {
            format!(
                "Node 0, zone {name}\n  pages free     7\n        boost    0\n        min      1\n        low      2\n        high     3\n"
            )
        };
        let cpus =
            "    cpu: 77\n              count:    1\n              high:     2\n".repeat(2000);
        let rest = format!("        cma      0\n        protection: (0, 0)\n  pagesets\n{cpus}");
        let names = ["     DMA", "  Normal", " Movable", "  Device"];
        let text: String = names.map(|name| zone(name) + &rest).concat();
        assert!(text.len() > 3 * MOST_BYTES / 2, "{}", text.len());
        let file = super::super::check::file(text.as_bytes());
        // However the parts fall.
        for room in [MOST_BYTES, 4096, 80] {
            let zones = zones(&file, &mut vec![0; room]).expect("it can be read");
            assert_eq!(zones, names.map(zone).concat(), "{room}");
        }
    }
}
