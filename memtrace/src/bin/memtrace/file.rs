//! A file that is written at the end: there as a whole, or as it was before.
//!
//! What it is made of may be a recording that only its owner may read: so is this file, unless there is one already that its
//! owner has made readable for others.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, Read as _, Write},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use memtrace::recording::file::MAGIC;
use rustix::process::geteuid;
use tempfile::NamedTempFile;

/// Permissions of a new file.
const MODE: u32 = 0o600;

/// A file that is going to be written.
#[derive(Debug)]
pub struct OutFile {
    /// As it was given.
    pub name: PathBuf,
    /// Its place in its folder, without links on the way there.
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
        let path = place(name).with_context(cannot)?;
        let there = fs::symlink_metadata(&path);
        // Where anyone may put files, anyone may have put it there to have another one replaced.
        if there.as_ref().is_ok_and(fs::Metadata::is_symlink) {
            bail!("{}: it is a symbolic link; give the name of what it leads to", cannot());
        }
        if there.is_ok_and(|metadata| !metadata.is_file()) {
            bail!("{}: it is not a regular file; give the name of one", cannot());
        }
        if is_recording(&path) {
            bail!("{}: it is a recording; give another name, or remove it", cannot());
        }
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let file = Self { name: name.to_owned(), path, directory, what };
        let _removed_again: NamedTempFile = file.temporary().with_context(cannot)?;
        Ok(file)
    }

    /// Whether both are the same file.
    pub fn is_same(&self, other: &Self) -> bool {
        self.path == other.path
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
        file.as_file().set_permissions(Permissions::from_mode(self.mode()))?;
        // Else a full disk may be found only after the file that was there before is gone.
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// The permissions of the file whose place it takes, if it is of the same owner.
    fn mode(&self) -> u32 {
        let there = fs::symlink_metadata(&self.path).ok();
        let own = there.filter(|it| it.is_file() && it.uid() == geteuid().as_raw());
        own.map_or(MODE, |it| it.mode() & 0o777)
    }

    /// A file beside it, which is removed unless it takes its place.
    fn temporary(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new()
            .prefix(".memtrace-")
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(&self.directory)
            // Its error names the temporary file, which nobody asked for.
            .map_err(|error| error.raw_os_error().map_or(error, io::Error::from_raw_os_error))
    }
}

/// Whether a file is a recording: what it has may be nowhere else.
fn is_recording(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == MAGIC
}

/// The file's place in its folder.
fn place(name: &Path) -> io::Result<PathBuf> {
    let file = name.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let directory = match name.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok(fs::canonicalize(directory)?.join(file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it is there").mode() & 0o7777
    }

    #[test]
    fn a_link_is_neither_followed_nor_replaced() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "mine")?;
        for target in [&*file, Path::new("nowhere")] {
            symlink(target, &link)?;
            let error = OutFile::prepare(&link, "a page").expect_err("it is a link").to_string();
            assert!(error.contains("link`: it is a symbolic link"), "{error}");
            fs::remove_file(&link)?;
        }
        // One that is put there meanwhile is replaced, and what it leads to is not.
        let out = OutFile::prepare(&link, "a page")?;
        symlink(&file, &link)?;
        out.write(|out| out.write_all(b"page"))?;
        assert_eq!((fs::read(&file)?, fs::read(&link)?), (b"mine".to_vec(), b"page".to_vec()));
        assert_eq!(mode(&link), 0o600);
        // On the way there they are as good as any folder.
        let folder = directory.path().join("folder");
        symlink(directory.path(), &folder)?;
        OutFile::prepare(&folder.join("file"), "a page")?.write(|out| out.write_all(b"page"))?;
        assert_eq!(fs::read(&file)?, b"page");
        Ok(())
    }

    #[test]
    fn only_the_owner_may_read_it_unless_the_owner_has_said_otherwise() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("file");
        let write = || OutFile::prepare(&file, "a page")?.write(|out| out.write_all(b"page"));
        write()?;
        assert_eq!(mode(&file), 0o600);
        fs::set_permissions(&file, Permissions::from_mode(0o4644))?;
        write()?;
        assert_eq!(mode(&file), 0o644);
        if geteuid().is_root() {
            chown(&file, Some(65_534), None)?;
            write()?;
            assert_eq!(mode(&file), 0o600, "it was someone else's");
        }
        Ok(())
    }

    #[test]
    fn a_recording_is_not_replaced() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("file");
        fs::write(&file, [&MAGIC[..], b"and more"].concat())?;
        let error = OutFile::prepare(&file, "a page").expect_err("it is a recording").to_string();
        assert!(error.contains("file`: it is a recording"), "{error}");
        fs::write(&file, &MAGIC[1..])?;
        OutFile::prepare(&file, "a page")?;
        Ok(())
    }

    #[test]
    fn what_is_no_file_is_refused() -> Result<()> {
        let directory = tempfile::tempdir()?;
        for name in [directory.path(), Path::new("/dev/null"), Path::new("/"), Path::new("..")] {
            assert!(OutFile::prepare(name, "a page").is_err(), "{}", name.display());
        }
        assert!(OutFile::prepare(&directory.path().join("none/file"), "a page").is_err());
        Ok(())
    }
}
