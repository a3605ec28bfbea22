//! What the user asked for, as the probes need it: constants to the verifier, which drops the
//! branches that are not taken.

/// Bits of the global `FILTERS`: which filters are on. A stall must pass all of them.
pub mod filter {
    /// The process is a key of the map `PIDS`.
    pub const PID: u32 = 1 << 0;
    /// The thread is a key of the map `TIDS`.
    pub const TID: u32 = 1 << 1;
    /// The real user id equals the global `UID`.
    pub const UID: u32 = 1 << 2;
    /// The name contains the global `COMM`.
    pub const COMM: u32 = 1 << 3;
    /// The thread is in the cgroup of the global `CGROUP`, or below it, in cgroup v2.
    pub const CGROUP_V2: u32 = 1 << 4;
    /// The same in the memory controller's hierarchy of cgroup v1.
    pub const CGROUP_V1: u32 = 1 << 5;
}

/// Bits of the global `WANTED`: what the chosen view shows beyond the plain row.
pub mod wanted {
    /// The fields of `--extended` and `--json`, but for the cgroup.
    pub const EXTENDED: u32 = 1 << 0;
    /// The cgroup that the thread is charged to.
    pub const CGROUP: u32 = 1 << 2;
    /// The kernel stack.
    pub const STACK: u32 = 1 << 1;
}

/// Bits of the global `KINDS`, the kinds of reclaim to deliver, by position. Bits of the global
/// `CAUSES` are likewise those of [`crate::record::cause`].
pub mod kind {
    /// The kinds that have a tracepoint pair of their own stand at their
    /// [`crate::record::mechanism`]; reclaim by `memory.reclaim` shares those of others.
    pub const PROACTIVE: u32 = 4;
}
