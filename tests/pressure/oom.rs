//! Processes that are killed for lack of memory.

use anyhow::Result;
use serde_json::json;
use tests::{host::require_guest, load::Load, rows::Row};

use super::{memload, watch};

/// Whether a page was for a pipe. Who writes to one, as memtrace does here, has to find its pages.
fn is_of_pipe(row: &Row) -> bool {
    row.value["gfp"] == json!(["GFP_HIGHUSER", "__GFP_ACCOUNT"])
}

/// Processes that are killed one after the other for lack of memory, while memtrace goes on: it is
/// not among them, accounts for every stall, and has none itself.
#[test]
fn oom_storm() -> Result<()> {
    const KILLS: u64 = 8;
    require_guest();
    let mut said = String::new();
    let watched = watch("drsnoop", |_| {
        let kills = KILLS.to_string();
        let args =
            ["oom", "--whole-machine", "--leave", "32M", "--victims", "4", "--kills", &kills];
        let mut load = Load::of(memload(), &[&args[..], &["--duration", "5m"]].concat())?;
        load.go()?;
        said = load.wait()?;
        println!("{said}");
        Ok(())
    })?;
    let kills = watched.moved("oom_kill");
    assert!(kills >= KILLS, "only {kills} kills");
    // Nobody else was killed, though some victims may have been so after memload had enough.
    assert!(kills <= KILLS + 4, "{kills} kills, and {said}");

    let matched = watched.matched();
    let summary = &watched.output.summary;
    println!("{} stalls agree; {summary:?}", matched.pairs.len());
    assert!(matched.pairs.len() >= 500, "only {} stalls", matched.pairs.len());
    matched.assert_none_extra();
    matched.assert_fields_agree();
    let unseen = summary.lost + summary.table_full + summary.skipped + summary.unfinished;
    assert!(
        matched.missing.len() as u64 <= unseen,
        "{} stalls are missing, {unseen} accounted for: {summary:?}",
        matched.missing.len()
    );

    let own: Vec<_> = watched
        .output
        .rows
        .iter()
        .filter(|row| {
            row.pid == watched.memtrace_pid
                && row.start_ns > watched.memtrace.attached_ns
                && !is_of_pipe(row)
        })
        .collect();
    assert!(own.is_empty(), "{} stalls of memtrace itself, such as {}", own.len(), own[0].value);
    Ok(())
}
