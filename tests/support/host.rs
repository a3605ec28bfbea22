//! What the tests need of the host: a private tracefs or debugfs, zones, and the clock.

use std::{
    ffi::CStr,
    fs,
    path::{Path, PathBuf},
    process,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, UnmountFlags},
    time::ClockId,
};

/// A user id that owns nothing: `nobody`.
pub const NOBODY: u32 = 65534;

/// Whether this is one of the emulated machines that `cargo xtask guest` makes: its clock jumps, it
/// is many times slower than a real one, and it may be ruined.
#[must_use]
pub fn is_guest() -> bool {
    std::env::var_os("MEMTRACE_GUEST").is_some()
}

/// Keeps a test that would bring the machine to its knees from running anywhere else.
///
/// # Panics
/// Unless [`is_guest`].
#[track_caller]
pub fn require_guest() {
    assert!(
        is_guest(),
        "this test ruins the machine that it runs on: run it with `cargo xtask guest`"
    );
}

/// Whether a thread can be preempted while it runs what is attached to a tracepoint: since 7.0 SRCU
/// guards tracepoints, where preemption was disabled before. By the names in the kernel's BTF: earlier
/// kernels have that SRCU as well, but not the type that came with the change.
#[must_use]
pub fn has_preemptible_tracepoints() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        let btf = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
        let has = |name: &[u8]| btf.split(|&byte| byte == 0).any(|known| known == name);
        has(b"tracepoint_srcu_srcu_data") && has(b"tracepoint_ext")
    });
    *HAS
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of memtrace and of the oracle.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// A directory of our own that is removed with all that is in it when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one that every user may look into.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new("/var/tmp").join(format!("memtrace-test-{}-{number}", process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove `{}`: {err}", self.0.display());
        }
    }
}

/// A file system mounted in a private place, unmounted when dropped.
#[derive(Debug)]
pub struct Mount(TempDir);

impl Mount {
    /// Mounts a file system that has no device, such as `tracefs`.
    pub fn new(kind: &str) -> Result<Self> {
        Self::with_options(kind, c"")
    }

    /// As [`Mount::new`], with options of that file system's own.
    pub fn with_options(kind: &str, options: &CStr) -> Result<Self> {
        let dir = TempDir::new()?;
        rustix::mount::mount("nodev", dir.path(), kind, MountFlags::empty(), Some(options))
            .with_context(|| format!("cannot mount {kind} with `{}`", options.to_string_lossy()))?;
        Ok(Self(dir))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(err) = rustix::mount::unmount(self.path(), UnmountFlags::DETACH) {
            eprintln!("cannot unmount `{}`: {err}", self.path().display());
        }
    }
}

/// A zone with memory in it, as /proc/zoneinfo shows it. Counts are in pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its NUMA node.
    pub node: i64,
    /// Its name.
    pub name: String,
    /// Its first page frame.
    pub start_pfn: u64,
    /// Free pages.
    pub free: u64,
    /// The minimum watermark, with the boost.
    pub min: u64,
    /// The low watermark, with the boost.
    pub low: u64,
    /// The high watermark, with the boost.
    pub high: u64,
}

/// The host's zones that have memory.
pub fn zones() -> Result<Vec<Zone>> {
    let text = fs::read_to_string("/proc/zoneinfo").context("cannot read /proc/zoneinfo")?;
    let mut zones = Vec::new();
    for section in text.split("Node ").skip(1) {
        let zone = zone(section)
            .with_context(|| format!("unknown form of /proc/zoneinfo: `Node {section}`"))?;
        zones.extend(zone);
    }
    Ok(zones)
}

/// Parses the section of a zone; nothing for one without memory, which ends early.
fn zone(section: &str) -> Result<Option<Zone>> {
    let mut lines = section.lines();
    let (node, name) =
        lines.next().and_then(|head| head.split_once(", zone")).context("no head")?;
    let numbers: Vec<(&str, u64)> = lines
        .filter_map(|line| {
            let mut words = line.split_whitespace().filter(|&word| word != "pages");
            Some((words.next()?, words.next()?.parse().ok()?))
        })
        .collect();
    // The first of a name: further down there are counters of CPUs.
    let number = |wanted: &str| {
        let found = numbers.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| *value).with_context(|| format!("no `{wanted}`"))
    };
    if number("present")? == 0 {
        return Ok(None);
    }
    Ok(Some(Zone {
        node: node.parse().context("no node")?,
        name: name.trim().to_owned(),
        start_pfn: number("start_pfn:")?,
        free: number("free")?,
        min: number("min")?,
        low: number("low")?,
        high: number("high")?,
    }))
}

/// Whether the beginning of a function of the kernel can be probed, as perf's probes are there for it
/// and the function that begins a memstall section is.
#[must_use]
pub fn kprobes_work() -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    Path::new("/sys/bus/event_source/devices/kprobe").exists()
        && symbols.lines().any(|line| line.ends_with(" T psi_memstall_enter"))
}
