//! Names that anyone may choose: of threads and cgroups, in any bytes. They break no table, no
//! terminal and no JSON, and a program gets every byte of them.

use std::{
    ffi::{CString, OsStr},
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat},
    io::Errno,
};
use serde_json::Value;
use tests::{
    cgroup::{Cgroup, TEST},
    load::Load,
    run::Memtrace,
    wait::wait_until,
};

/// Names of at most 15 bytes, as of threads.
const NAMES: [&[u8]; 9] = [
    b"\x1b[2J\x1b[H\x07",
    b"a\nb\r\n\tc",
    b"\"',:{}[]",
    b"\\x1b\\xff\\x5c",
    b"\xff\xfe\x80ab\xc3",
    b"\xe2\x80\xaetxt.exe",
    b"a\xe2\x80\x8bb\xef\xbb\xbf\xe2\x81\xa6",
    b"\xc2\x9b31m\xc2\x85",
    b"%s%n$(id)`;'",
];

/// A limit that nothing reaches.
const ENOUGH: u64 = 256 << 20;

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// Whether a terminal would obey a character, or not show it.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// Every line of an output, none of which hides anything.
#[track_caller]
fn visible(text: &str) -> Vec<&str> {
    let lines: Vec<_> = text.split_terminator('\n').collect();
    for line in &lines {
        assert!(!line.contains(is_hidden), "hidden characters in {line:?}");
    }
    lines
}

/// A name as docs/json.md says to read it.
fn bytes(shown: &Value) -> Vec<u8> {
    let mut rest = shown.as_str().unwrap_or_default().as_bytes();
    let mut bytes = Vec::new();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = |hex: &[u8]| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok();
        let byte = match after {
            [b'x', hex @ ..] if first == b'\\' && hex.len() >= 2 => escaped(&hex[..2]),
            _ => None,
        };
        match byte {
            Some(byte) if byte >= 0x80 || byte == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

/// Has a thread of this name compact all memory.
fn compact_as(name: &[u8]) -> Result<()> {
    let name = CString::new(name)?;
    let thread = thread::spawn(move || -> Result<()> {
        rustix::thread::set_name(&name)?;
        fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The stalls, for programs, of a name each.
fn objects(stdout: &str) -> Result<Vec<Value>> {
    let values = visible(stdout).into_iter().map(serde_json::from_str::<Value>);
    let values = values.collect::<Result<Vec<_>, _>>()?;
    Ok(values.into_iter().filter(|value| value["type"] != "summary").collect())
}

#[test]
fn names_of_threads() -> Result<()> {
    let pid = std::process::id().to_string();
    let args = ["--cause", "manual", "-p", &pid];
    let rows = Memtrace::start(&[&["compactsnoop", "-e"], &args[..]].concat());
    let json = Memtrace::start(&[&["compactsnoop", "--json"], &args[..]].concat());
    let text = Memtrace::start(&[&["compactsnoop", "-H"], &args[..]].concat());
    let hdr =
        Memtrace::start(&[&["compactsnoop", "-H", "--by", "comm", "--json"], &args[..]].concat());
    for name in NAMES {
        compact_as(name)?;
    }
    let [rows, json, text, hdr] = [rows, json, text, hdr].map(Memtrace::stop);
    for finished in [&rows, &json, &text, &hdr] {
        finished.assert_success();
    }
    let stalls = rows.summary().stalls;
    assert!(stalls >= NAMES.len() as u64, "{}", rows.stderr);
    assert_eq!(visible(&rows.stdout).len() as u64, 1 + stalls, "a header and a line each");
    visible(&text.stdout);
    for (output, name_of) in [
        (&json, &(|value: &Value| bytes(&value["comm"])) as &dyn Fn(&Value) -> Vec<u8>),
        (&hdr, &|value| bytes(&value["key"]["comm"])),
    ] {
        let seen: Vec<_> = objects(&output.stdout)?.iter().map(name_of).collect();
        for name in NAMES {
            assert!(seen.iter().any(|seen| seen == name), "{name:?} is not in {seen:?}");
        }
    }
    Ok(())
}

/// Directories of a cgroup hierarchy one in the other, removed when dropped.
struct Nest {
    /// Each with the name of what is in it.
    outer: Vec<(OwnedFd, Vec<u8>)>,
    innermost: OwnedFd,
}

impl Nest {
    fn new(outermost: &Path, names: &[&[u8]]) -> Result<Self> {
        let open = |at: &OwnedFd, name: &[u8]| openat(at, name, OFlags::DIRECTORY, Mode::empty());
        let innermost = openat(CWD, outermost, OFlags::DIRECTORY, Mode::empty())?;
        let mut nest = Self { outer: Vec::new(), innermost };
        for &name in names {
            nest.delegate()?;
            mkdirat(&nest.innermost, name, Mode::RWXU)
                .with_context(|| format!("cannot make cgroup {name:?}"))?;
            let inner = open(&nest.innermost, name)?;
            let outer = std::mem::replace(&mut nest.innermost, inner);
            nest.outer.push((outer, name.to_owned()));
        }
        Ok(nest)
    }

    /// Lets the cgroups below the innermost be charged for memory, as those of v1 always are.
    fn delegate(&self) -> Result<()> {
        match openat(&self.innermost, "cgroup.subtree_control", OFlags::WRONLY, Mode::empty()) {
            Err(Errno::NOENT) => Ok(()),
            file => {
                rustix::io::write(file?, b"+memory").context("cannot delegate memory")?;
                Ok(())
            }
        }
    }

    /// Moves a process into the innermost.
    fn add(&self, pid: u32) -> Result<()> {
        let procs = openat(&self.innermost, "cgroup.procs", OFlags::WRONLY, Mode::empty())?;
        rustix::io::write(procs, pid.to_string().as_bytes())?;
        Ok(())
    }

    fn id(&self) -> Result<u64> {
        Ok(rustix::fs::fstat(self.innermost.as_fd())?.st_ino)
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        while let Some((outer, name)) = self.outer.pop() {
            wait_until("a cgroup to be empty", || {
                unlinkat(&outer, name.as_slice(), AtFlags::REMOVEDIR).is_ok()
            });
        }
    }
}

/// What a compaction by a process in the innermost of such cgroups looks like as rows and as JSON, and
/// the path and id of that cgroup.
fn in_cgroup(names: &[&[u8]]) -> Result<(String, Vec<Value>, PathBuf, u64)> {
    let parent = Cgroup::limited(TEST, ENOUGH)?;
    let nest = Nest::new(parent.path(), names)?;
    let mut load = Load::compact(memload(), 1)?;
    nest.add(load.id())?;
    let pid = load.id().to_string();
    let rows = Memtrace::start(&["compactsnoop", "-e", "-p", &pid]);
    let json = Memtrace::start(&["compactsnoop", "--json", "-p", &pid]);
    load.go()?;
    load.wait()?;
    let [rows, json] = [rows, json].map(Memtrace::stop);
    rows.assert_success();
    json.assert_success();
    let lines = visible(&rows.stdout).len() as u64;
    assert_eq!(lines, 1 + rows.summary().stalls, "a header and a line each: {}", rows.stdout);
    assert!(lines > 1, "no stalls");
    let mut path = PathBuf::from(parent.name());
    path.extend(names.iter().map(|name| OsStr::from_bytes(name)));
    Ok((rows.stdout, objects(&json.stdout)?, path, nest.id()?))
}

#[track_caller]
fn assert_path(object: &Value, path: &Path) {
    let shown = &object["cgroup"];
    assert!(bytes(shown) == path.as_os_str().as_bytes(), "{shown} is not {path:?}");
}

#[test]
fn names_of_cgroups() -> Result<()> {
    // The kernel refuses a line's end in them, and a slash parts them.
    for name in NAMES.into_iter().filter(|name| !name.contains(&b'\n')) {
        let (_, objects, path, id) = in_cgroup(&[name])?;
        for object in objects {
            assert_path(&object, &path);
            assert_eq!(object["cgroup_id"], id);
        }
    }
    let parent = Cgroup::limited(TEST, ENOUGH)?;
    let refused = fs::create_dir(parent.path().join("a\nb"));
    assert!(refused.is_err(), "a line's end in a cgroup's name");
    assert_eq!(fs::metadata(parent.path())?.ino(), parent.id()?);
    Ok(())
}

#[test]
fn paths_of_cgroups_as_long_as_they_can_be() -> Result<()> {
    let name = [&b"\x1b\xe2\x80\xae\xff"[..], &b"x".repeat(195)].concat();
    // Just below what a path may have, and above.
    let (rows, objects, path, _) = in_cgroup(&vec![name.as_slice(); 19])?;
    for object in objects {
        assert_path(&object, &path);
    }
    assert!(rows.contains("x/\\x1b\\xe2\\x80\\xae\\xffx"), "{rows}");

    let (rows, objects, _, id) = in_cgroup(&vec![name.as_slice(); 21])?;
    for object in objects {
        assert_eq!((&object["cgroup"], &object["cgroup_id"]), (&Value::Null, &Value::from(id)));
    }
    assert!(rows.contains(&format!("id:{id}")), "{rows}");
    Ok(())
}
