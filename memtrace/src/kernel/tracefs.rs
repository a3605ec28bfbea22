//! Reading event formats from tracefs without leaving a trace: where it is not mounted, through a
//! mount of our own that no one else sees and that goes with its file descriptor.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// Where tracefs is usually mounted.
const MOUNT_POINTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The content of `events/<event>/format`, `event` being `<system>/<name>`.
pub fn event_format(event: &str) -> io::Result<String> {
    let path = format!("events/{event}/format");
    let mut text = String::new();
    for mount_point in MOUNT_POINTS {
        if let Ok(mut file) = File::open(format!("{mount_point}/{path}")) {
            file.read_to_string(&mut text)?;
            return Ok(text);
        }
    }
    let file = openat(detached_mount()?, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether programs can be attached to classic tracepoints: for that aya needs tracefs mounted, and
/// may only look into it as root or with `CAP_DAC_READ_SEARCH`.
#[must_use]
pub fn is_mounted() -> bool {
    MOUNT_POINTS.iter().any(|mount_point| Path::new(mount_point).join("events/vmscan").is_dir())
}

fn detached_mount() -> io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}
