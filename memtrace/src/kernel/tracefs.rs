//! Reading event formats from tracefs, wherever it is mounted or not.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::detached;

/// Where tracefs is usually mounted.
const MOUNT_POINTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The content of `events/<event>/format`, `event` being `<system>/<name>`.
pub fn event_format(event: &str) -> io::Result<String> {
    let path = format!("events/{event}/format");
    for mount_point in MOUNT_POINTS {
        if let Ok(mut file) = File::open(format!("{mount_point}/{path}")) {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            return Ok(text);
        }
    }
    detached::read("tracefs", &path)
}

/// Whether programs can be attached to classic tracepoints: for that aya needs tracefs mounted, and
/// may only look into it as root or with `CAP_DAC_READ_SEARCH`.
#[must_use]
pub fn is_mounted() -> bool {
    MOUNT_POINTS.iter().any(|mount_point| Path::new(mount_point).join("events/vmscan").is_dir())
}
