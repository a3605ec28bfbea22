//! Reading event formats from tracefs, wherever it is mounted or not.

use std::{
    fs::File,
    io::{self, Read as _},
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
