//! Kernels that lack what memtrace would like to have. Only in a guest.

use tests::host::require_guest;

#[test]
fn runs_in_a_guest_only() {
    require_guest();
}
