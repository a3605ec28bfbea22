//! What memtrace's integration tests share: loads that make stalls happen, the ftrace oracle that
//! says which stalls there were, and memtrace itself as a child process.
//!
//! Everything that changes the host (a cgroup, a mount, a tracefs instance, a process) is a guard
//! that puts it back when dropped, also when a test panics.

pub mod anon;
pub mod ballast;
pub mod cgroup;
pub mod churn;
pub mod compact;
pub mod compare;
pub mod confined;
pub mod episodes;
pub mod fragment;
pub mod ftrace;
pub mod host;
pub mod load;
pub mod lookup;
pub mod oracle;
pub mod rows;
pub mod run;
pub mod setting;
pub mod swap;
pub mod thp;
pub mod timeline;
pub mod until;
pub mod victim;
pub mod vmstat;
pub mod wait;
pub mod watch;
