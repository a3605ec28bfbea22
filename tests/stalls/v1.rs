//! What needs the memory limits of cgroup v1, mounted by the test.

mod guest {
    use anyhow::Result;
    use rustix::io::Errno;
    use tests::host::{Mount, require_guest};

    use crate::throttled;

    /// Newer kernels can be built without it.
    #[test]
    fn throttled_writers() -> Result<()> {
        require_guest();
        let _v1 = match Mount::with_options("cgroup", c"memory") {
            Err(err) if err.downcast_ref() == Some(&Errno::INVAL) => return Ok(()),
            v1 => v1?,
        };
        throttled::writers()
    }
}
