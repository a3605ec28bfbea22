//! All that a report makes of recordings that are whole, changed, damaged, and in two files.

#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_fuzz::{check::recordings, outputs::all_outputs};

fuzz_target!(|bytes: &[u8]| all_outputs(&recordings(bytes)));
