//! Fuzzes what reads recordings: `cargo +nightly fuzz run block -- -rss_limit_mb=300 -max_len=600`, likewise `file` and
//! `changed`, and `report` with `-rss_limit_mb=512 -max_len=2000`, which makes all outputs of a report. It takes
//! `cargo install cargo-fuzz`, and the first build as long as one of memtrace.
//!
//! What is made and checked is that of memtrace's own tests, which also read all of `corpus/` once.

use memtrace::{
    cgroup, clock, kind, live, names, recording, report, scope, stall, symbols, text, verdict,
};

#[path = "../../memtrace/src/recording/check.rs"]
pub mod check;
#[path = "../../memtrace/src/recording/made.rs"]
pub mod made;
#[path = "../../memtrace/src/report/check.rs"]
pub mod outputs;
