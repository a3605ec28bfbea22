//! Where a waiting thread stands, by the functions on its kernel stack. The kernel has no other word for
//! it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    ops::Range,
};

/// A place in the kernel at which threads are held up by memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The sleep that memory.high imposes on the way back to user space.
    High,
    /// `throttle_direct_reclaim()`, in which an allocation waits for kswapd.
    Throttle,
    /// A page fault on a page that was swapped out.
    SwapIn,
    /// A wait for a page that is locked, which it is while it is read.
    Page,
    /// A sleep inside reclaim.
    InReclaim,
    /// Reclaim of one NUMA node.
    Node,
}

/// Their functions, by all the names that they have had. Those that the compiler has made a part of
/// another are not found, but `throttle_direct_reclaim()` is the first thing that `try_to_free_pages()`
/// does, and before that is marked as reclaim.
const FUNCTIONS: [(&str, Place); 13] = [
    ("mem_cgroup_handle_over_high", Place::High),
    ("__mem_cgroup_handle_over_high", Place::High),
    ("throttle_direct_reclaim", Place::Throttle),
    ("try_to_free_pages", Place::Throttle),
    ("do_swap_page", Place::SwapIn),
    ("shmem_swapin_folio", Place::SwapIn),
    ("shmem_swapin_page", Place::SwapIn),
    ("folio_wait_bit_common", Place::Page),
    ("wait_on_page_bit_common", Place::Page),
    ("reclaim_throttle", Place::InReclaim),
    ("wait_iff_congested", Place::InReclaim),
    ("congestion_wait", Place::InReclaim),
    ("__node_reclaim", Place::Node),
];

/// The last symbol of the kernel's own code, far from the end of the table.
const LAST: &str = "_etext";

/// Addresses of the places.
#[derive(Debug, Default)]
pub struct Places(Vec<(Range<u64>, Place)>);

impl Places {
    /// Reads the kernel's table of symbols, in which they are without an address for whoever may not
    /// see them.
    pub fn read(table: &File) -> io::Result<Self> {
        Self::parse(BufReader::with_capacity(64 << 10, table))
    }

    fn parse(mut table: impl BufRead) -> io::Result<Self> {
        let (mut places, mut line) = (Vec::new(), Vec::new());
        // A function reaches up to the next one.
        let mut open: Option<(u64, Place)> = None;
        while table.read_until(b'\n', &mut line)? != 0 {
            let symbol = parse_line(&line);
            if let Some((address, name)) = symbol {
                if let Some((start, place)) = open
                    && address > start
                {
                    places.push((start..address, place));
                    open = None;
                }
                if name == LAST.as_bytes() {
                    break;
                }
                open = place(name).map(|place| (address, place)).or(open);
            }
            line.clear();
        }
        Ok(Self(places))
    }

    /// Whether any were found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `place` is on a stack.
    #[must_use]
    pub fn is_on(&self, place: Place, stack: &[u64]) -> bool {
        let mut ranges = self.0.iter().filter(|(_, candidate)| *candidate == place);
        // A return address lies behind its call, which a function may end with.
        ranges.any(|(range, _)| stack.iter().any(|address| range.contains(&(address - 1))))
    }
}

/// Address and name of a function: `ffffffff815a9770 t throttle_direct_reclaim`.
fn parse_line(line: &[u8]) -> Option<(u64, &[u8])> {
    let (address, rest) = line.trim_ascii_end().split_at_checked(16)?;
    let name = rest.strip_prefix(b" t ").or_else(|| rest.strip_prefix(b" T "))?;
    let address = u64::from_str_radix(str::from_utf8(address).ok()?, 16).ok()?;
    (address != 0).then_some((address, name))
}

fn place(name: &[u8]) -> Option<Place> {
    // The compiler adds `.isra.0` and such to the names of what it has changed.
    let name = name.split(|byte| *byte == b'.').next()?;
    let known = FUNCTIONS.iter().find(|(known, _)| known.as_bytes() == name);
    known.map(|(_, place)| *place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff815a9770 t throttle_direct_reclaim
ffffffff815a9b40 T reclaim_throttle
ffffffff815ac610 t __node_reclaim.isra.0
ffffffff815ac610 t an_alias
ffffffff815aceb0 D not_code
ffffffff815aceb0 T try_to_free_pages
ffffffff815ad810 T node_reclaim
ffffffff82000000 T _etext
ffffffff82000000 t do_swap_page
ffffffff82000010 t the_end
";

    #[test]
    fn finds_functions_on_a_stack() {
        let places = Places::parse(TABLE.as_bytes()).expect("in memory");
        let is_on = |place, address: u64| places.is_on(place, &[1, address, 2]);
        assert!(is_on(Place::Throttle, 0xffff_ffff_815a_9771));
        assert!(is_on(Place::Throttle, 0xffff_ffff_815a_9b40), "behind its last instruction");
        assert!(!is_on(Place::Throttle, 0xffff_ffff_815a_9770));
        assert!(is_on(Place::InReclaim, 0xffff_ffff_815a_9b50));
        assert!(is_on(Place::Node, 0xffff_ffff_815a_c611));
        assert!(is_on(Place::Node, 0xffff_ffff_815a_ceb0));
        assert!(is_on(Place::Throttle, 0xffff_ffff_815a_d000));
        assert!(!is_on(Place::Throttle, 0xffff_ffff_815a_d811));
        assert!(!is_on(Place::SwapIn, 0xffff_ffff_8200_0001), "behind the kernel's own code");
        assert!(!places.is_on(Place::Throttle, &[]));
    }

    #[test]
    fn a_table_without_addresses_has_no_places() {
        let hidden: Vec<_> =
            TABLE.lines().map(|line| format!("{:016}{}", 0, &line[16..])).collect();
        let hidden = hidden.join("\n");
        assert!(Places::parse(hidden.as_bytes()).expect("in memory").is_empty());
        assert!(Places::parse(&b"garbage\n\n"[..]).expect("in memory").is_empty());
    }
}
