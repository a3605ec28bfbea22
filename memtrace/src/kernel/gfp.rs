//! The kernel's names for allocation flags, from the kernel that runs: flags change their value
//! from release to release.
//!
//! tracefs has the table with which the kernel prints them, as C source in an event's format. Since
//! 6.10 BTF has the single flags as well, as an enumeration of bit numbers.

use super::btf::Btf;
use crate::names::GfpNames;

/// An event whose format has the table of flags, on every kernel.
pub const EVENT: &str = "kmem/mm_page_alloc";

/// The names in an event's `format`; none where there is no table of flags in it.
#[must_use]
pub fn from_format(format: &str) -> GfpNames {
    let Some((_, table)) = format.split_once("__print_flags(") else {
        return GfpNames::default();
    };
    // {(unsigned long)(<expression>), "NAME"}, ...
    let entries = table.split('{').skip(1).filter_map(|entry| {
        let (expression, rest) = entry.split_once(", \"")?;
        let (name, _) = rest.split_once('"')?;
        let flags = Expression::new(expression).value()?;
        (name.starts_with("GFP_") || name.starts_with("__GFP_"))
            .then(|| Some((u32::try_from(flags).ok()?, name.to_owned())))?
    });
    GfpNames(entries.collect())
}

/// The names of the single flags in BTF; none before 6.10.
#[must_use]
pub fn from_btf(btf: &Btf<'_>) -> GfpNames {
    let flags = btf.enumerators_beside("___GFP_IO_BIT").filter_map(|(name, bit)| {
        let name = name.strip_prefix('_')?.strip_suffix("_BIT")?;
        let unnamed = matches!(name, "__GFP_UNUSED" | "__GFP_LAST");
        (!unnamed && bit < u32::BITS).then(|| (1 << bit, name.to_owned()))
    });
    GfpNames(flags.collect())
}

/// A constant expression of C: numbers, casts, `|`, `&`, `~`, `<<` and parentheses.
struct Expression<'a> {
    rest: &'a str,
}

impl<'a> Expression<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// The value, if all of the text is such an expression.
    fn value(mut self) -> Option<u64> {
        let value = self.or()?;
        self.rest.trim_start().is_empty().then_some(value)
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn or(&mut self) -> Option<u64> {
        let mut value = self.and()?;
        while self.take("|") {
            value |= self.and()?;
        }
        Some(value)
    }

    fn and(&mut self) -> Option<u64> {
        let mut value = self.shift()?;
        while self.take("&") {
            value &= self.shift()?;
        }
        Some(value)
    }

    fn shift(&mut self) -> Option<u64> {
        let mut value = self.unary()?;
        while self.take("<<") {
            value = value.checked_shl(u32::try_from(self.unary()?).ok()?)?;
        }
        Some(value)
    }

    fn unary(&mut self) -> Option<u64> {
        if self.take("~") {
            return Some(!self.unary()?);
        }
        if !self.take("(") {
            return self.number();
        }
        if self.cast() {
            return self.unary();
        }
        let value = self.or()?;
        self.take(")").then_some(value)
    }

    /// Skips the rest of a cast, whose type is words only; flags fit into every type cast to.
    fn cast(&mut self) -> bool {
        let Some((name, rest)) = self.rest.split_once(')') else { return false };
        let name = name.trim();
        let is_type = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ' ');
        if is_type {
            self.rest = rest;
        }
        is_type
    }

    fn number(&mut self) -> Option<u64> {
        let text = self.rest.trim_start();
        let len = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
        let (digits, rest) = text.split_at(len);
        self.rest = rest;
        let digits = digits.trim_end_matches(['u', 'U', 'l', 'L']);
        match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => digits.parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start and end of the table as 6.18 and 5.10 print it.
    const NEW: &str = r#"print fmt: "gfp=%s", (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", {( unsigned long)((( gfp_t)(((((1UL))) << (10))|((((1UL))) << (11)))) | (( gfp_t)((((1UL))) << (6))) | (( gfp_t)((((1UL))) << (7)))), "GFP_KERNEL"}, {( unsigned long)(((( gfp_t)((((1UL))) << (18))) | (( gfp_t)((((1UL))) << (13)))) & ~(( gfp_t)((((1UL))) << (13)))), "__GFP_COMP"}, { 0, ((void *)0) } ) : "none""#;
    const OLD: &str = r#"print fmt: "gfp=%s", (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", {(unsigned long)((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u)), "GFP_KERNEL"}, {(unsigned long)(( gfp_t)0x4000u), "__GFP_COMP"} ) : "none""#;

    #[test]
    fn reads_the_tables_of_old_and_new_kernels() {
        assert_eq!(
            from_format(NEW).0,
            [(0xcc0, "GFP_KERNEL".to_owned()), (0x4_0000, "__GFP_COMP".to_owned())]
        );
        assert_eq!(
            from_format(OLD).0,
            [(0xcc0, "GFP_KERNEL".to_owned()), (0x4000, "__GFP_COMP".to_owned())]
        );
    }

    #[test]
    fn takes_nothing_from_what_is_no_table() {
        assert_eq!(from_format(""), GfpNames::default());
        assert_eq!(from_format("__print_flags(x, {garbage"), GfpNames::default());
        assert_eq!(
            from_format("__print_flags(x, {(1 << 99), \"GFP_X\"}, {1 +, \"GFP_Y\"}"),
            GfpNames::default()
        );
    }
}
