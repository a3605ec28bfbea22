//! What needs the memory limits of cgroup v1.

use anyhow::Result;

use crate::throttled;

#[test]
fn throttled_writers() -> Result<()> {
    throttled::writers()
}
