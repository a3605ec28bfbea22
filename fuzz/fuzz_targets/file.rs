//! Any bytes as a file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_fuzz::check::read_file;

fuzz_target!(|bytes: &[u8]| {
    let _read = read_file(bytes);
});
