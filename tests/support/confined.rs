//! What a program is deprived of before it starts: its user, capabilities, files, memory to lock.
//!
//! Done by system calls between fork and exec, as the programs that do the same, setpriv and others,
//! are not in a guest.

use std::{
    ffi::CString,
    fs::{self, Permissions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::MountPropagationFlags,
    process::{Resource, Rlimit},
    thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags},
};

use crate::{
    host::{NOBODY, TempDir},
    run::binary,
};

/// Has `command` do `work` after fork and before exec.
fn before_exec(
    command: &mut Command,
    work: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> &mut Command {
    // SAFETY: all that is passed here, by this file alone, makes system calls and allocates nothing.
    unsafe { command.pre_exec(work) }
}

/// Runs `command` as the user `nobody`, with `kept` as its only capabilities.
pub fn as_nobody(command: &mut Command, kept: CapabilitySet) -> &mut Command {
    before_exec(command, move || {
        let nobody = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_gid(nobody.1)?;
        rustix::thread::set_keep_capabilities(true)?;
        rustix::thread::set_thread_uid(nobody.0)?;
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
        rustix::thread::set_capabilities(None, sets)?;
        for capability in kept {
            rustix::thread::configure_capability_in_ambient_set(capability, true)?;
        }
        Ok(())
    })
}

/// Runs `command` as root without the capabilities `dropped`.
pub fn without(command: &mut Command, dropped: CapabilitySet) -> &mut Command {
    before_exec(command, move || {
        dropped
            .iter()
            .try_for_each(rustix::thread::remove_capability_from_bounding_set)
            .map_err(Into::into)
    })
}

/// Runs `command` in a mount namespace of its own, where `from` is seen at the place of `to`.
pub fn with_bind_mount<'a>(
    command: &'a mut Command,
    from: &Path,
    to: &Path,
) -> Result<&'a mut Command> {
    let [from, to] = [from, to].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (from, to) = (from.context("a zero in a path")?, to.context("a zero in a path")?);
    Ok(before_exec(command, move || {
        private_mounts()?;
        Ok(rustix::mount::mount_bind(&from, &to)?)
    }))
}

/// Has the calling thread, which is all of a process, mount and unmount for itself alone.
fn private_mounts() -> io::Result<()> {
    // SAFETY: no descriptors are unshared, which is what may go wrong.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change(c"/", all)?)
}

/// Runs `command` with so many bytes of memory that it may lock.
pub fn limit_locked_memory(command: &mut Command, bytes: u64) -> &mut Command {
    before_exec(command, move || {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        Ok(rustix::process::setrlimit(Resource::Memlock, limit)?)
    })
}

/// Runs `command` with no limit to the memory that it may lock, if root may say so: where it has not
/// all capabilities, as in a container, the limit stays.
pub fn unlimit_locked_memory(command: &mut Command) -> &mut Command {
    before_exec(command, || {
        let unlimited = Rlimit { current: None, maximum: None };
        let _raised: rustix::io::Result<()> =
            rustix::process::setrlimit(Resource::Memlock, unlimited);
        Ok(())
    })
}

/// Runs `command` as nohup does.
pub fn deaf_to_hang_up(command: &mut Command) -> &mut Command {
    before_exec(command, || {
        // SAFETY: the call only sets what a signal does.
        match unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) } {
            libc::SIG_ERR => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    })
}

/// A copy of memtrace that every user may run, wherever it was built and whatever the umask is.
pub fn public_copy() -> Result<(TempDir, PathBuf)> {
    let dir = TempDir::new()?;
    let path = dir.path().join("memtrace");
    fs::copy(binary(), &path).context("cannot copy memtrace")?;
    for path in [dir.path(), &path] {
        fs::set_permissions(path, Permissions::from_mode(0o755))
            .context("cannot let every user run memtrace")?;
    }
    Ok((dir, path))
}
