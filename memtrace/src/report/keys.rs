//! What stalls are told apart by, and what is known of it beside its times.

use std::cmp::Reverse;

use super::many::{Label, Many, Rest};
use super::times::Sum;
use crate::stall::Comm;

/// A thread of one boot of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadKey {
    pub boot: u32,
    pub pid: u32,
    pub tid: u32,
    pub comm: Comm,
}

impl ThreadKey {
    /// Its process.
    #[must_use]
    pub fn process(&self) -> ProcessKey {
        ProcessKey { boot: self.boot, pid: self.pid }
    }
}

/// A process of one boot of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessKey {
    pub boot: u32,
    pub pid: u32,
}

/// A cgroup of one boot of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupKey {
    pub boot: u32,
    /// Nothing where it is not known; as a target 0 is the host.
    pub id: Option<u64>,
}

/// What is known of a thread beside its times: the cgroup that its memory was charged to last, or 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payer(pub u64);

impl Payer {
    /// The cgroup's id, if it is known.
    #[must_use]
    pub fn id(self) -> Option<u64> {
        Some(self.0).filter(|id| *id != 0)
    }
}

impl Label for Payer {
    fn merge(&mut self, later: Self) {
        if later.0 != 0 {
            *self = later;
        }
    }
}

/// What is known of a process beside its times: that of its main thread, else of the one with the most time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Its name.
    pub comm: Comm,
    /// The cgroup that its memory was charged to last.
    pub payer: Payer,
    is_main: bool,
    /// The time of that thread.
    time_ns: u64,
}

impl Who {
    /// By one of its threads.
    #[must_use]
    pub fn of(thread: &ThreadKey, sum: &Sum, payer: Payer) -> Self {
        let ThreadKey { pid, tid, comm, .. } = *thread;
        Self { comm, payer, is_main: pid == tid, time_ns: sum.total_ns }
    }
}

impl Label for Who {
    fn merge(&mut self, later: Self) {
        let rank = |who: &Self| (who.is_main, who.time_ns, Reverse(who.comm));
        if rank(&later) > rank(self) || *self == Self::default() {
            *self = later;
        }
    }
}

/// Threads for which there is no room count for their processes.
impl Rest<ThreadKey, Payer> for Many<ProcessKey, Who> {
    fn take(&mut self, thread: &ThreadKey, sum: &Sum, payer: Payer) -> u32 {
        self.add(thread.process(), sum, Who::of(thread, sum, payer))
    }

    fn log(&mut self, number: u32, bucket: u16, count: u32) {
        self.log_counted(number, bucket, count);
    }
}
