//! The file of a flame graph: there as a whole when tracing has ended, or as it was before.

use std::{
    fs::{self, Permissions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use memtrace::view::{Folded, flame};
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};
use tempfile::NamedTempFile;

use crate::output::say;

/// A flame graph that is going to be written.
#[derive(Debug)]
pub struct FlameFile {
    /// As it was given.
    name: PathBuf,
    /// Without links.
    path: PathBuf,
    directory: PathBuf,
    title: String,
}

impl FlameFile {
    /// Finds out whether it can be written, which is better known before a long trace than after it.
    pub fn prepare(name: &Path, title: String) -> Result<Self> {
        let what = || format!("cannot write a flame graph to `{}`", name.display());
        let path = resolve(name).with_context(what)?;
        if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            bail!("{}: it is not a regular file; give the name of one", what());
        }
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let file = Self { name: name.to_owned(), path, directory, title };
        let _removed_again: NamedTempFile = file.temporary().with_context(what)?;
        Ok(file)
    }

    /// The capabilities without which it cannot be written: root has none over other users' folders
    /// once it has given them up.
    pub fn needs(&self) -> CapabilitySet {
        let Ok(has) = capabilities(None) else { return CapabilitySet::empty() };
        let without = has.effective - CapabilitySet::DAC_OVERRIDE;
        if set_capabilities(None, CapabilitySets { effective: without, ..has }).is_err() {
            return CapabilitySet::empty();
        }
        let may =
            accessat(CWD, &self.directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
        let restored = set_capabilities(None, has);
        debug_assert!(restored.is_ok(), "what is permitted can be made effective");
        if may.is_ok() { CapabilitySet::empty() } else { CapabilitySet::DAC_OVERRIDE }
    }

    /// Writes it, unless there is nothing to show.
    pub fn write(&self, folded: &Folded) -> Result<()> {
        if folded.lines().all(|(_, us)| us == 0) {
            let name = self.name.display();
            say(format_args!("memtrace: `{name}` is not written, as nothing was held up"));
            return Ok(());
        }
        self.try_write(folded)
            .with_context(|| format!("cannot write the flame graph to `{}`", self.name.display()))
    }

    fn try_write(&self, folded: &Folded) -> io::Result<()> {
        let mut file = self.temporary()?;
        let mut out = BufWriter::new(&mut file);
        flame::write(folded, &self.title, &mut out)?;
        out.flush()?;
        drop(out);
        // Else a full disk may be found only after the file that was there before is gone.
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// A file beside it, which is removed unless it takes its place.
    fn temporary(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new()
            .prefix(".memtrace-")
            .suffix(".svg")
            // Less what the umask takes.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&self.directory)
            // Its error names the temporary file, which nobody asked for.
            .map_err(|error| error.raw_os_error().map_or(error, io::Error::from_raw_os_error))
    }
}

/// The file itself where it is there, by whatever links; else its place in its folder.
fn resolve(name: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(name) {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(name).is_err() =>
        {
            let file = name.file_name().ok_or(io::ErrorKind::IsADirectory)?;
            let directory = match name.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            Ok(fs::canonicalize(directory)?.join(file))
        }
        found => found,
    }
}
