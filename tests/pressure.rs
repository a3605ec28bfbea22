//! Global memory pressure of every kind, against ftrace and /proc/vmstat. Only in a guest.

use tests::host::require_guest;

#[test]
fn runs_in_a_guest_only() {
    require_guest();
}
