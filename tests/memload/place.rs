//! Where a load takes its memory from: a cgroup that is made for it, or the whole machine.

use std::process;

use anyhow::{Context as _, Result, ensure};
use tests::{
    ballast::Ballast,
    cgroup::{Cgroup, Limit},
    victim::volunteer,
    vmstat::meminfo,
};

use crate::cli::{CgroupArgs, MIB, PlaceArgs};

/// Where a load takes its memory from.
pub struct Place {
    /// The cgroup, removed when dropped; none where the load has the whole machine.
    pub cgroup: Option<Cgroup>,
    /// Bytes that are there to be used.
    pub room: u64,
    /// What takes the rest of the machine's memory.
    _ballast: Option<Ballast>,
}

impl Place {
    /// Makes what was asked for.
    pub fn new(args: &PlaceArgs) -> Result<Self> {
        if args.whole_machine {
            ensure_no_panic()?;
            let ballast = args.leave.map(Ballast::leaving).transpose()?;
            return Ok(Self { cgroup: None, room: meminfo("MemAvailable")?, _ballast: ballast });
        }
        Self::cgroup(&CgroupArgs { limit: args.limit, high: args.high })
    }

    /// Makes a cgroup, for a load that is of use in one only.
    pub fn cgroup(args: &CgroupArgs) -> Result<Self> {
        let limit = if args.high { Limit::High(args.limit) } else { Limit::Max(args.limit) };
        let cgroup = Cgroup::limited_by("memload", limit)?;
        Ok(Self { cgroup: Some(cgroup), room: args.limit, _ballast: None })
    }

    /// Moves this process there, with all its threads. Where that is the whole machine, it is the
    /// first to be killed.
    pub fn enter(&self) -> Result<()> {
        self.cgroup.as_ref().map_or_else(volunteer, |cgroup| cgroup.add(process::id()))
    }

    /// How a message names it.
    pub fn name(&self) -> String {
        match &self.cgroup {
            Some(cgroup) => {
                format!("in cgroup {} limited to {} MiB", cgroup.name(), self.room / MIB)
            }
            None => format!("on the whole machine, which has {} MiB to spare", self.room / MIB),
        }
    }
}

/// Refuses to bring about a lack of memory where the kernel answers that with a panic.
pub fn ensure_no_panic() -> Result<()> {
    const SETTING: &str = "/proc/sys/vm/panic_on_oom";
    let value =
        std::fs::read_to_string(SETTING).with_context(|| format!("cannot read {SETTING}"))?;
    ensure!(
        value.trim() == "0",
        "this machine panics where others kill a process: write 0 to {SETTING} first"
    );
    Ok(())
}
