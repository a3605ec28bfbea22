//! A swap file of our own.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::FallocateFlags;

/// Ends the first page of every swap area (`union swap_header` in include/linux/swap.h).
const MAGIC: &[u8] = b"SWAPSPACE2";

/// Where in the first page the version stands, before the number of the last page.
const VERSION_AT: usize = 1024;

/// A swap file that the machine uses until it is dropped.
#[derive(Debug)]
pub struct SwapFile {
    path: PathBuf,
    name: CString,
}

impl SwapFile {
    /// Makes a file of `bytes` bytes in `dir` and has the machine swap to it.
    ///
    /// Fails where the file system of `dir` cannot hold a swap file.
    pub fn new(dir: &Path, bytes: u64) -> Result<Self> {
        let path = dir.join(format!("memload-{}.swap", process::id()));
        let name = CString::new(path.as_os_str().as_bytes()).context("a path with a zero byte")?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot make `{}`", path.display()))?;
        // From here on it is removed whatever happens: swapping off what was never on only fails.
        let swap = Self { path, name };
        format(&file, bytes).with_context(|| {
            format!(
                "cannot make `{}` a swap file: name a directory with room on ext4 or xfs",
                swap.path.display()
            )
        })?;
        // SAFETY: the path ends with a zero byte.
        let status = unsafe { libc::swapon(swap.name.as_ptr(), 0) };
        ensure!(
            status == 0,
            "cannot swap to `{}`: {}; run as root, and name a directory on ext4 or xfs",
            swap.path.display(),
            io::Error::last_os_error()
        );
        Ok(swap)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn format(file: &File, bytes: u64) -> io::Result<()> {
    let page_size = rustix::param::page_size();
    rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes)?;
    let mut header = vec![0; page_size];
    let last_page = u32::try_from(bytes / page_size as u64 - 1).map_err(io::Error::other)?;
    header[VERSION_AT..VERSION_AT + 4].copy_from_slice(&1_u32.to_ne_bytes());
    header[VERSION_AT + 4..VERSION_AT + 8].copy_from_slice(&last_page.to_ne_bytes());
    header[page_size - MAGIC.len()..].copy_from_slice(MAGIC);
    file.write_all_at(&header, 0)?;
    file.sync_all()
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        // SAFETY: the path ends with a zero byte.
        let status = unsafe { libc::swapoff(self.name.as_ptr()) };
        let err = io::Error::last_os_error();
        // That it is no swap area is what is wanted.
        if status != 0 && err.kind() != io::ErrorKind::InvalidInput {
            eprintln!(
                "cannot swap off `{}`: {err}; try `swapoff` once there is memory",
                self.path.display()
            );
            return;
        }
        if let Err(err) = fs::remove_file(&self.path) {
            eprintln!("cannot remove `{}`: {err}", self.path.display());
        }
    }
}
