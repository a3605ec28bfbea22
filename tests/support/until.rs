//! When a load ends.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// A load's time, which is also over when it is told to stop.
#[derive(Clone, Copy, Debug)]
pub struct Until<'a> {
    end: Instant,
    stop: &'a AtomicBool,
}

impl<'a> Until<'a> {
    /// From now on for `duration`, or until `stop` is set.
    #[must_use]
    pub fn new(duration: Duration, stop: &'a AtomicBool) -> Self {
        Self { end: Instant::now() + duration, stop }
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || Instant::now() >= self.end
    }
}
