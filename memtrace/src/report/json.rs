//! A report for programs: one object in one line.

use super::diff::Diff;
use super::findings::Findings;
use crate::view::json;

impl Findings {
    /// Appends them as JSON.
    pub fn json(&self, out: &mut Vec<u8>) {
        let written = json::line(self, out);
        debug_assert!(
            written.is_ok(),
            "writing into memory does not fail, and every key is a text"
        );
    }
}

impl Diff {
    /// Appends it as JSON.
    pub fn json(&self, out: &mut Vec<u8>) {
        let written = json::line(self, out);
        debug_assert!(
            written.is_ok(),
            "writing into memory does not fail, and every key is a text"
        );
    }
}
