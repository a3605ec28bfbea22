//! A flame graph of folded stacks.

use std::io::{self, Write};

use inferno::flamegraph::{
    self, Options,
    color::{MultiPalette, Palette},
};

use super::folded::Folded;

/// Writes `folded`, of which something is to be seen, as an SVG with this title. Frames are as wide as the
/// microseconds for which they were held up; the kernel's have a colour of their own.
pub fn write(folded: &Folded, title: &str, out: impl Write) -> io::Result<()> {
    let lines: Vec<_> = folded.lines().map(|(line, us)| format!("{line} {us}")).collect();
    let mut options = Options::default();
    title.clone_into(&mut options.title);
    "microseconds".clone_into(&mut options.count_name);
    "Frame:".clone_into(&mut options.name_type);
    options.colors = Palette::Multi(MultiPalette::Java);
    // The same stacks make the same picture.
    options.deterministic = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
}
