//! Files that are whole, with something changed in them and all checksums right again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_fuzz::check::read_changed;

fuzz_target!(|bytes: &[u8]| read_changed(bytes));
