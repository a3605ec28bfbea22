//! A file that is written at the end: there as a whole, or as it was before.

use std::{
    fs::{self, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use tempfile::NamedTempFile;

/// A file that is going to be written.
#[derive(Debug)]
pub struct OutFile {
    /// As it was given.
    pub name: PathBuf,
    /// Without links.
    path: PathBuf,
    /// Where it is.
    pub directory: PathBuf,
    /// What it is going to be, in words.
    what: &'static str,
}

impl OutFile {
    /// Finds out whether it can be written, which is better known before long work than after it.
    pub fn prepare(name: &Path, what: &'static str) -> Result<Self> {
        let cannot = || format!("cannot write {what} to `{}`", name.display());
        let path = resolve(name).with_context(cannot)?;
        if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            bail!("{}: it is not a regular file; give the name of one", cannot());
        }
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let file = Self { name: name.to_owned(), path, directory, what };
        let _removed_again: NamedTempFile = file.temporary().with_context(cannot)?;
        Ok(file)
    }

    /// Writes it.
    pub fn write(&self, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        self.try_write(content)
            .with_context(|| format!("cannot write {} to `{}`", self.what, self.name.display()))
    }

    fn try_write(&self, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut file = self.temporary()?;
        let mut out = BufWriter::new(&mut file);
        content(&mut out)?;
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
