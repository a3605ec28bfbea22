//! What is where in a process's memory: /proc/PID/maps, proc_pid_maps(5).

use std::io::{self, BufRead, Read as _};
use std::ops::Range;

/// A part of a process's memory that can be run and has addresses which were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it is.
    pub range: Range<u64>,
    /// Where in its file it begins.
    pub offset: u64,
    /// Where the file is loaded: the address of its first byte.
    pub base: u64,
    /// The file's last name, as it was when it was mapped; the kernel's own parts have brackets around
    /// theirs, and what the program has made itself has none.
    pub module: String,
    /// Whether it is of a file.
    pub is_file: bool,
}

/// Longest line that is read whole: a path is 4096 bytes at most, four times that with escapes.
const MOST_LINE: u64 = 20_000;

/// Finds those mappings of code that have any of these addresses, which are in ascending order. Memory
/// is that of what is found, however long the table is.
pub fn find(mut table: impl BufRead, addresses: &[u64]) -> io::Result<Vec<Mapping>> {
    let mut found = Vec::new();
    let (mut line, mut rest) = (Vec::new(), addresses);
    let mut first_of_file: Option<(Vec<u8>, u64)> = None;
    while !rest.is_empty() {
        line.clear();
        if table.by_ref().take(MOST_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Some(entry) = Entry::parse(&line) else { continue };
        if entry.offset == 0 {
            first_of_file = Some((entry.file.to_vec(), entry.range.start));
        }
        let below = rest.partition_point(|&address| address < entry.range.start);
        let within = rest[below..].partition_point(|&address| address < entry.range.end);
        rest = &rest[below + within..];
        if within == 0 || !entry.is_code {
            continue;
        }
        let base = first_of_file.as_ref().filter(|(file, _)| *file == entry.file);
        let module = entry.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        found.push(Mapping {
            base: base.map_or(entry.range.start.wrapping_sub(entry.offset), |&(_, start)| start),
            range: entry.range,
            offset: entry.offset,
            module: String::from_utf8_lossy(module).into_owned(),
            is_file: entry.path.starts_with(b"/"),
        });
    }
    Ok(found)
}

/// A line of the table.
struct Entry<'a> {
    range: Range<u64>,
    is_code: bool,
    offset: u64,
    /// Device, inode and path.
    file: &'a [u8],
    path: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
        let mut field = || {
            let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
            let (field, after) = rest.split_at(end);
            rest = after.trim_ascii_start();
            (!field.is_empty()).then_some((field, after.trim_ascii_start()))
        };
        let (range, _) = field()?;
        let (access, _) = field()?;
        let (offset, file) = field()?;
        let _device = field()?;
        let (_inode, path) = field()?;
        let (start, end) = str::from_utf8(range).ok()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            range: hex(start)?..hex(end)?,
            is_code: access.contains(&b'x'),
            offset: hex(str::from_utf8(offset).ok()?)?,
            file,
            path: path.strip_suffix(b" (deleted)").unwrap_or(path),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
00400000-00401000 r--p 00000000 fe:00 77                                 /opt/not independent
00401000-00402000 r-xp 00001000 fe:00 77                                 /opt/not independent
5581a0000000-5581a0010000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 r--p 00000000 fe:00 12                         /lib/libc.so.6
7f0000001000-7f0000003000 r-xp 00001000 fe:00 12                         /lib/libc.so.6
7f0000010000-7f0000012000 r-xp 00002000 fe:00 13                         /gone\\012\xff.so (deleted)
7f0000020000-7f0000021000 rwxp 00000000 00:00 0
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]
";

    fn found(addresses: &[u64]) -> Vec<(u64, u64, String, bool)> {
        let found = find(TABLE, addresses).expect("memory");
        let parts = |at: Mapping| (at.base, at.offset, at.module, at.is_file);
        found.into_iter().map(parts).collect()
    }

    #[test]
    fn finds_what_is_at_an_address() {
        let of = |base, offset, module: &str, is_file| (base, offset, module.to_owned(), is_file);
        assert_eq!(found(&[0x40_1000]), [of(0x40_0000, 0x1000, "not independent", true)]);
        assert_eq!(
            found(&[0x7f00_0000_1000, 0x7f00_0000_2fff, 0x7ffc_0000_0000]),
            [
                of(0x7f00_0000_0000, 0x1000, "libc.so.6", true),
                of(0x7ffc_0000_0000, 0, "[vdso]", false)
            ]
        );
        assert_eq!(found(&[0x7f00_0002_0000]), [of(0x7f00_0002_0000, 0, "", false)]);
        // Its first part is not mapped any more.
        assert_eq!(
            found(&[0x7f00_0001_0001]),
            [of(0x7f00_0000_e000, 0x2000, "gone\\012\u{fffd}.so", true)]
        );
    }

    #[test]
    fn nothing_is_where_there_is_no_code() {
        for address in [0, 0x40_0000, 0x40_2000, 0x5581_a000_0000, 0x7f00_0000_3000, u64::MAX] {
            assert_eq!(found(&[address]), [], "{address:#x}");
        }
        assert_eq!(find(&b"garbage\n\n-\n1-2 x\n"[..], &[1]).expect("memory"), []);
    }
}
