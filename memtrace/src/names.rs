//! Words for the numbers in a [`Stall`](crate::stall::Stall): names of flags, modes and statuses,
//! paths of cgroups, symbols of addresses, and the time of day.
//!
//! A source brings the names that its stalls were measured under; a view asks for them.

use std::fmt::Write as _;

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
    pub fn name(&self, value: u32) -> std::borrow::Cow<'_, str> {
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

    /// Appends the names to `line`, joined by `|` as the kernel does.
    pub fn join(&self, mask: u32, line: &mut String) {
        let mut first = true;
        self.for_each(mask, |name| {
            let separator = if first { "" } else { "|" };
            first = false;
            // Writing to a `String` does not fail.
            let _: std::fmt::Result = write!(line, "{separator}{name}");
        });
    }
}
