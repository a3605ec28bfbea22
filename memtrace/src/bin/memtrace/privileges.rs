//! Privileges that memtrace has no more use for: given up as soon as the probes are attached, as
//! whatever it reads from then on others have written. The user it runs as stays the same.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Gives up all capabilities but those of `kept` that the process has.
///
/// CAP_BPF (CAP_SYS_ADMIN where the process has that alone) stays as well where `works`, which is tried without it, does not: some kernels want it for
/// reading the probes' own maps.
pub fn give_up(kept: CapabilitySet, works: impl FnOnce() -> bool) -> io::Result<()> {
    let has = gain_no_more()?;
    let kept = kept & has.permitted;
    // It includes the other, which was split off it.
    let bpf = if has.permitted.contains(CapabilitySet::BPF) {
        CapabilitySet::BPF
    } else {
        CapabilitySet::SYS_ADMIN & has.permitted
    };
    set(kept, kept | bpf)?;
    if works() { set(kept, kept) } else { set(kept | bpf, kept | bpf) }
}

/// Keeps what it takes to look into other processes and the files that they run, and nothing else.
pub fn keep_for_names() -> io::Result<()> {
    let has = gain_no_more()?;
    // Opens files by what is mapped, and is a part of the other.
    let restore = if has.permitted.contains(CapabilitySet::CHECKPOINT_RESTORE) {
        CapabilitySet::CHECKPOINT_RESTORE
    } else {
        CapabilitySet::SYS_ADMIN
    };
    let needed = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH | restore;
    let kept = needed & has.permitted;
    set(kept, kept)
}

/// Makes sure that no capability can be gained any more; gives those that there are.
fn gain_no_more() -> io::Result<CapabilitySets> {
    set_no_new_privs(true)?;
    let has = capabilities(None)?;
    if has.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all() {
            // A kernel does not know all of them, and has nothing to remove then.
            let _removed: rustix::io::Result<()> = remove_capability_from_bounding_set(capability);
        }
    }
    // No kernel that runs the probes lacks it.
    clear_ambient_capability_set()?;
    Ok(has)
}

fn set(effective: CapabilitySet, permitted: CapabilitySet) -> io::Result<()> {
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?)
}
