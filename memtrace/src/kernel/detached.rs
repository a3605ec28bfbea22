//! Reading the kernel's own file systems where they are not mounted, without leaving a trace: through
//! a mount of our own that no one else sees and that goes with its file descriptor.

use std::{
    fs::File,
    io::{self, Read as _},
};

use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// The content of the file `path` of a file system such as `tracefs`. Needs `CAP_SYS_ADMIN`.
pub fn read(file_system: &str, path: &str) -> io::Result<String> {
    let context = fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount =
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    let file = openat(mount, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text)?;
    Ok(text)
}
