//! A report as one page for a browser, with nothing to fetch: charts, tables and what they are of.
//!
//! `html/page.html` is the page, `page.css` how it looks and `page.js` what makes tables and charts of the data in it.
//! The charts are drawn by ECharts, see memtrace/assets/README.md.

mod axis;
mod charts;
mod data;
mod drawn;
mod looks;
mod stacks;
mod summary;
#[cfg(test)]
mod tests;
mod words;
mod worst;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, BufWriter, Write};
use std::sync::atomic::AtomicU64;

use base64::{engine::general_purpose::STANDARD, write::EncoderWriter};

use self::axis::Axis;
use self::data::{Data, MOST_LONGEST, MOST_ROWS};
use self::drawn::Drawn;
use self::summary::Facts;
use self::words::{InScript, html};
use super::sources::Source;
use super::totals::{Totals, boots};
use super::{LeftOut, gather};
use crate::recording::Recording;

/// The page, with names in double braces for what is put in.
const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");
/// What draws the charts, as the page inflates it. Nothing reads it but [`write`].
pub static CHARTS: &[u8] = include_bytes!("../../assets/echarts.min.js.gz");

/// Writes what the recordings, given with the names of their files, come to as one page. `done` counts the blocks as
/// they are done.
pub fn write(
    recordings: &[Recording],
    files: &[Vec<u8>],
    done: &AtomicU64,
    out: &mut dyn Write,
) -> io::Result<LeftOut> {
    let (boots, axis) = (boots(recordings), Axis::of(recordings));
    let make = || (Totals::new(&boots, MOST_LONGEST), Drawn::new(&axis));
    let ((totals, drawn), left_out) = gather(recordings, make, done);
    let source = Source { recordings, files, boots: &boots, totals: &totals, left_out: &left_out };
    let findings = source.findings(MOST_ROWS);
    let facts = Facts::of_all(&findings, &totals, recordings, &left_out);
    let data = Data::of(&findings, &totals, &drawn, &axis, recordings);
    let (nonce, mut out) = (nonce(), BufWriter::new(out));
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or_default();
        out.write_all(before.as_bytes())?;
        match name {
            "nonce" => out.write_all(nonce.as_bytes())?,
            "title" => out.write_all(html(&summary::title(&findings)).as_bytes())?,
            "style" => out.write_all(STYLE.as_bytes())?,
            "summary" => out.write_all(summary::summary(&data, &facts).as_bytes())?,
            "data" => serde_json::to_writer(InScript(&mut out), &data)?,
            "charts" => {
                let mut encoder = EncoderWriter::new(&mut out, &STANDARD);
                encoder.write_all(CHARTS)?;
                encoder.finish()?;
            }
            "script" => out.write_all(SCRIPT.as_bytes())?,
            other => unreachable!("the page has no place for {other}"),
        }
        rest = after;
    }
    out.write_all(rest.as_bytes())?;
    out.flush()?;
    Ok(left_out)
}

/// What the page's own scripts go by: nobody who has chosen a name in a recording can have known it.
fn nonce() -> String {
    // As random as the keys of hash maps, which come from the kernel.
    let random = || RandomState::new().build_hasher().finish();
    let state = RandomState::new();
    format!("{:016x}{:016x}", random(), state.hash_one(random()))
}
