//! The file of a flame graph.

use std::{os::fd::AsFd, path::Path};

use anyhow::Result;
use memtrace::view::{Folded, flame};
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};

use crate::{file::OutFile, output::say};

/// A flame graph that is going to be written.
#[derive(Debug)]
pub struct FlameFile {
    pub file: OutFile,
    title: String,
}

impl FlameFile {
    /// Finds out whether it can be written.
    pub fn prepare(name: &Path, title: String) -> Result<Self> {
        Ok(Self { file: OutFile::prepare(name, "a flame graph")?, title })
    }

    /// The capabilities without which it cannot be written.
    pub fn needs(&self) -> CapabilitySet {
        needs(CWD, &self.file.directory)
    }

    /// Writes it, unless there is nothing to show.
    pub fn write(&self, folded: &Folded) -> Result<()> {
        if folded.lines().all(|(_, us)| us == 0) {
            let name = self.file.name.display();
            say(format_args!("memtrace: `{name}` is not written, as nothing was held up"));
            return Ok(());
        }
        self.file.write(|out| flame::write(folded, &self.title, out))
    }
}

/// The capabilities without which no file can be written into a directory, given by its path from another one: root
/// has none over other users' folders once it has given them up.
pub fn needs(from: impl AsFd, directory: &Path) -> CapabilitySet {
    let Ok(has) = capabilities(None) else { return CapabilitySet::empty() };
    let without = has.effective - CapabilitySet::DAC_OVERRIDE;
    if set_capabilities(None, CapabilitySets { effective: without, ..has }).is_err() {
        return CapabilitySet::empty();
    }
    let may = accessat(from, directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    let restored = set_capabilities(None, has);
    debug_assert!(restored.is_ok(), "what is permitted can be made effective");
    if may.is_ok() { CapabilitySet::empty() } else { CapabilitySet::DAC_OVERRIDE }
}
