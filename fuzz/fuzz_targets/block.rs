//! Any bytes as a block that was decompressed: no checksum stands in front of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_fuzz::check::read_raw;

fuzz_target!(|bytes: &[u8]| {
    let _read = read_raw(bytes);
});
