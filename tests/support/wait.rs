//! Waiting for something to happen, instead of sleeping and hoping.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::host::is_guest;

/// How long anything may take. Far more than it needs, as a busy host is no failure of memtrace.
#[must_use]
pub fn budget() -> Duration {
    Duration::from_mins(if is_guest() { 10 } else { 2 })
}

/// How often the condition is looked at.
const PERIOD: Duration = Duration::from_millis(5);

/// Waits until `condition` gives a value.
///
/// # Panics
/// When that takes longer than [`budget`], naming `what` it waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let (start, budget) = (Instant::now(), budget());
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < budget, "waited {budget:?} in vain for {what}");
        thread::sleep(PERIOD);
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// As [`wait_for`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}
