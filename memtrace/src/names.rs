//! Words for the numbers in a [`Stall`](crate::stall::Stall): names of flags, modes and statuses,
//! paths of cgroups, symbols of addresses, and the time of day.
//!
//! A source brings the names that its stalls were measured under; a view asks for them.

use std::borrow::Cow;

use crate::{cgroup::Cgroups, clock::WallClock, symbols::Symbols};

/// The names that go with one source's stalls.
#[derive(Debug)]
pub struct Names {
    /// Flags of allocations.
    pub gfp: GfpNames,
    /// `enum migrate_mode`, by value: `async`, `sync_light`, `sync`.
    pub modes: EnumNames,
    /// `enum compact_result`, by value: `complete`, `partial_skipped`, ...
    pub statuses: EnumNames,
    /// `enum vmscan_throttle_state`, by value: `writeback`, `isolated`, `noprogress`, `congested`.
    pub throttles: EnumNames,
    /// Paths of cgroups.
    pub cgroups: Cgroups,
    /// Time of day.
    pub clock: WallClock,
    /// Symbols of kernel addresses.
    pub symbols: Symbols,
    /// Size of a page in bytes.
    pub page_size: u64,
}

/// Names of an enumeration's values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnumNames(pub Vec<(u32, String)>);

impl EnumNames {
    /// The name of `value`, or its number where the kernel has no name for it.
    #[must_use]
    pub fn name(&self, value: u32) -> Cow<'_, str> {
        match self.0.iter().find(|(candidate, _)| *candidate == value) {
            Some((_, name)) => name.into(),
            None => value.to_string().into(),
        }
    }
}

/// Names of allocation flags, in the order in which the kernel tries them: those that stand for
/// several flags first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GfpNames(pub Vec<(u32, String)>);

impl GfpNames {
    /// Calls `each` with every name that makes up `mask`, and at last with what has no name in hex.
    pub fn for_each(&self, mask: u32, mut each: impl FnMut(&str)) {
        let mut rest = mask;
        for (flags, name) in &self.0 {
            if *flags != 0 && rest & flags == *flags {
                each(name);
                rest &= !flags;
            }
        }
        if rest != 0 || mask == 0 {
            each(&format!("{rest:#x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_flags_into_words_and_the_rest_into_hex() {
        let flag = |flags, name: &str| (flags, name.to_owned());
        let names =
            GfpNames(vec![flag(0b111, "GFP_ALL"), flag(0b1, "__GFP_A"), flag(0b10, "__GFP_B")]);
        let words = |mask| {
            let mut words = Vec::new();
            names.for_each(mask, |word| words.push(word.to_owned()));
            words
        };
        assert_eq!(words(0b111), ["GFP_ALL"]);
        assert_eq!(words(0b11), ["__GFP_A", "__GFP_B"]);
        assert_eq!(words(0b1_0001), ["__GFP_A", "0x10"]);
        assert_eq!(words(0), ["0x0"]);
    }
}
