//! Whether this process may trace on this host: facts first, then what follows from them.

use std::fs;

use rustix::thread::{CapabilitySet, capabilities};
use thiserror::Error;

use super::detached;

/// What decides whether probes can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The process's effective capabilities.
    pub capabilities: CapabilitySet,
    /// Content of the kernel's lockdown file; empty where there is none or it
    /// cannot be read.
    pub lockdown: String,
}

/// Why probes cannot be loaded.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Capabilities are missing.
    #[error(
        "not permitted to trace: this process lacks {0}; run memtrace with sudo, or grant CAP_BPF and CAP_PERFMON"
    )]
    Capabilities(&'static str),
    /// Lockdown keeps programs from reading the kernel's memory.
    #[error(
        "kernel lockdown is in confidentiality mode, in which no program may read kernel memory; boot with `lockdown=integrity` or without lockdown"
    )]
    Lockdown,
}

impl Facts {
    /// Gathers the facts.
    #[must_use]
    pub fn gather() -> Self {
        Self {
            capabilities: capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
                .or_else(|_| detached::read("securityfs", "lockdown"))
                .unwrap_or_default(),
        }
    }

    /// Decides on them.
    pub fn check(&self) -> Result<(), Refusal> {
        // CAP_SYS_ADMIN includes both, as it did before they were split off it in 5.8.
        if !self.capabilities.contains(CapabilitySet::SYS_ADMIN) {
            let bpf = self.capabilities.contains(CapabilitySet::BPF);
            let perfmon = self.capabilities.contains(CapabilitySet::PERFMON);
            match (bpf, perfmon) {
                (true, true) => {}
                (false, true) => return Err(Refusal::Capabilities("CAP_BPF")),
                (true, false) => return Err(Refusal::Capabilities("CAP_PERFMON")),
                (false, false) => return Err(Refusal::Capabilities("CAP_BPF and CAP_PERFMON")),
            }
        }
        if self.lockdown.contains("[confidentiality]") {
            return Err(Refusal::Lockdown);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(capabilities: CapabilitySet, lockdown: &str) -> Result<(), Refusal> {
        Facts { capabilities, lockdown: lockdown.to_owned() }.check()
    }

    #[test]
    fn names_what_is_missing() {
        let both = CapabilitySet::BPF | CapabilitySet::PERFMON;
        assert_eq!(check(both, ""), Ok(()));
        assert_eq!(check(CapabilitySet::SYS_ADMIN, "[none] integrity confidentiality\n"), Ok(()));
        assert_eq!(check(CapabilitySet::BPF, ""), Err(Refusal::Capabilities("CAP_PERFMON")));
        assert_eq!(check(CapabilitySet::PERFMON, ""), Err(Refusal::Capabilities("CAP_BPF")));
        assert_eq!(
            check(CapabilitySet::CHOWN, ""),
            Err(Refusal::Capabilities("CAP_BPF and CAP_PERFMON"))
        );
        assert_eq!(check(both, "none [integrity] confidentiality\n"), Ok(()));
        assert_eq!(check(both, "none integrity [confidentiality]\n"), Err(Refusal::Lockdown));
    }
}
