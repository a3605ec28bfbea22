//! What must hold of every report, for tests and the fuzzer, which includes this file.

use std::io;
use std::sync::atomic::AtomicU64;

use jiff::tz::TimeZone;

use crate::recording::Recording;
use crate::report::{Diff, Findings, LeftOut, blocks, csv, hlog, html, perfetto, stacks};
use crate::text::is_hidden;

/// Makes everything of recordings that there is to be made: what it comes to is the same each time.
///
/// # Panics
/// Where it is not.
pub fn all_outputs(recordings: &[Recording]) {
    let files: Vec<_> = recordings.iter().map(|_| b"\x1b</script>.mtr".to_vec()).collect();
    let findings = whole(
        recordings,
        |done| Findings::gather(recordings, &files, 10, done),
        |findings| findings.recordings.iter().map(|recorded| recorded.damaged_blocks).collect(),
    );
    let left_out = &findings.recordings.iter().map(|it| it.damaged_blocks).collect::<LeftOut>();
    let mut out = Vec::new();
    findings.text(&TimeZone::UTC, &mut out);
    shown(&out);
    out.clear();
    findings.json(&mut out);
    object(&out);

    let written = |write: WriteExport| -> Vec<u8> {
        let mut out = Vec::new();
        let write = |done: &AtomicU64| write(recordings, done, &mut out).expect("memory takes all");
        assert_eq!(whole(recordings, write, Clone::clone), *left_out);
        out
    };
    let page = String::from_utf8(written(|it, done, out| html::write(it, &[], done, out)))
        .expect("a page is UTF-8");
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (3, 3));
    written(hlog::write);
    written(perfetto::write);
    let lines = written(csv::write);
    let rows = ::csv::Reader::from_reader(&*lines).into_records();
    let rows = rows.collect::<Result<Vec<_>, _>>().expect("as many fields as columns");
    assert_eq!(rows.len() as u64, findings.stats.count, "lines of stalls");

    let fold = |done: &AtomicU64| stacks::fold(recordings, done);
    let (folded, of_stacks) = whole(recordings, fold, |(_, left_out)| left_out.clone());
    assert_eq!(of_stacks, *left_out);
    let us: u128 = folded.lines().map(|(_, us)| us).sum();
    if findings.stats.total_ns < u64::MAX {
        assert_eq!(us, (u128::from(findings.stats.total_ns) + 500) / 1000, "time by stack");
    }

    if let ([before, after], [a, b]) = (recordings, &*files) {
        let names = [a.clone(), b.clone()];
        let diff = Diff::gather([before, after], &names, 10, &AtomicU64::new(0));
        out.clear();
        diff.text(&mut out);
        shown(&out);
        out.clear();
        diff.json(&mut out);
        object(&out);
    }
}

type WriteExport = fn(&[Recording], &AtomicU64, &mut dyn io::Write) -> io::Result<LeftOut>;

/// Makes something of all blocks, of which none is left out twice.
fn whole<T>(
    recordings: &[Recording],
    make: impl FnOnce(&AtomicU64) -> T,
    left_out: impl FnOnce(&T) -> LeftOut,
) -> T {
    let done = AtomicU64::new(0);
    let output = make(&done);
    let all = blocks(recordings).count() as u64;
    assert_eq!(done.into_inner(), all, "blocks that were counted");
    let left_out = left_out(&output);
    assert!(left_out.len() == recordings.len() && left_out.iter().sum::<u64>() <= all);
    output
}

/// Text hides nothing.
fn shown(text: &[u8]) {
    let text = str::from_utf8(text).expect("text is UTF-8");
    assert!(!text.contains(|c| c != '\n' && is_hidden(c)), "{text:?}");
}

/// JSON is one object.
fn object(line: &[u8]) {
    let object: serde_json::Value = serde_json::from_slice(line).expect("it is JSON");
    assert!(object.is_object());
}
