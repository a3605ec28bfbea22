//! memload's command line.

use std::{ffi::CString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, value_parser};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// No load runs longer than this.
const LONGEST: Duration = Duration::from_hours(24);

/// Makes threads stall in memory management, for a look at them with memtrace.
///
/// Harmless unless told otherwise: a load is limited to a memory cgroup of its own, which is removed
/// at the end; it ends after --duration, on Ctrl-C, and with the process that started it. At the end
/// it says what it did, and which of the kernel's counters moved meanwhile.
#[derive(Parser)]
#[command(name = "memload", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Write and read files that are larger than memory may be
    Churn(ChurnArgs),
    /// Touch anonymous memory that does not fit: with --swap because it is larger than memory may
    /// be, without because as many threads read files
    Anon(AnonArgs),
    /// Have a cgroup's page cache reclaimed by writing to its memory.reclaim (Linux 5.19, cgroup v2)
    Reclaim(ReclaimArgs),
    /// Look up names that do not exist, which the kernel remembers until a shrinker forgets them
    Lookup(LookupArgs),
    /// Ask for huge pages where memory is fragmented, so that the kernel has to compact it
    Thp(ThpArgs),
    /// Ask the kernel to compact all memory, by writing to /proc/sys/vm/compact_memory
    Compact(CompactArgs),
    /// Read files again and again that are some larger than memory may be
    Thrash(ThrashArgs),
    /// Write files faster than the disk does
    Dirty(DirtyArgs),
    /// Fill a cgroup with anonymous memory that cannot be reclaimed, as there is no swap
    Hopeless(HopelessArgs),
    /// Start processes that take memory until the kernel kills them
    Oom(OomArgs),
    /// For `oom`: be such a process
    #[command(hide = true)]
    Victim(VictimArgs),
}

/// Where a load takes its memory from.
#[derive(Args)]
pub struct PlaceArgs {
    /// Limit of the cgroup that is made for the load, in bytes or with K, M or G behind
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = limit)]
    pub limit: u64,
    /// Make it a limit beyond which threads are slowed down (memory.high, cgroup v2) instead of one
    /// that is never exceeded
    #[arg(long)]
    pub high: bool,
    /// Make no cgroup, but bring the whole machine to its knees: everything that runs on it gets
    /// slow, and the kernel may kill any process. For machines that nobody else needs
    #[arg(long, conflicts_with_all = ["limit", "high"])]
    pub whole_machine: bool,
    /// Take and lock all available memory but this much first, so that it is short at once
    #[arg(long, value_name = "SIZE", requires = "whole_machine", value_parser = size)]
    pub leave: Option<u64>,
}

/// How long a load runs.
#[derive(Args)]
pub struct TimeArgs {
    /// When to stop
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// For tests: print `ready`, and begin when a line is read; `churn` makes no cgroup
    #[arg(long, hide = true)]
    pub hold: bool,
}

#[derive(Args)]
pub struct ChurnArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Size of all files together [default: 4 times the limit, or twice the available memory]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// Number of threads
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u16).range(1..=256))]
    pub threads: u16,
    #[command(flatten)]
    pub time: TimeArgs,
    /// Where to put the files, which have no names and are gone at the end: a directory on a disk
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Give the threads this name
    #[arg(long, value_name = "TEXT", value_parser = comm)]
    pub comm: Option<CString>,
    /// Let each thread live for some milliseconds only, and start another one in its place
    #[arg(long)]
    pub brief: bool,
    /// For tests: run under this user id
    #[arg(long, hide = true)]
    pub uid: Option<u32>,
}

#[derive(Args)]
pub struct AnonArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Memory of all threads together [default: half of the limit, or of the available memory; as
    /// much again as --swap has room for]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// Have the machine swap to a file of this size meanwhile
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub swap: Option<u64>,
    /// Number of threads
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u16).range(1..=256))]
    pub threads: u16,
    #[command(flatten)]
    pub time: TimeArgs,
    /// Where to put the swap file or the files to read: a directory on a disk
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct ReclaimArgs {
    /// Limit of the cgroup that is made for the load; half of it is used
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = limit)]
    pub limit: u64,
    /// Time between two writes to memory.reclaim, of an eighth of the limit each
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    pub pause: Duration,
    #[command(flatten)]
    pub time: TimeArgs,
    /// Where to put the file, which has no name and is gone at the end: a directory on a disk
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct LookupArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Number of threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u16).range(1..=256))]
    pub threads: u16,
    #[command(flatten)]
    pub time: TimeArgs,
    /// Where to look names up: a directory on a disk
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct ThpArgs {
    /// Fragment the memory of the whole machine, of which no cgroup has a part of its own: other
    /// processes may get slow, and get fewer huge pages
    #[arg(long, required = true)]
    pub whole_machine: bool,
    /// Take and lock all available memory but this much first
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub leave: Option<u64>,
    /// Memory in which one page of each 2 MiB is pinned [default: 1/8 of the available memory]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub fragment: Option<u64>,
    /// Memory to ask for in huge pages, of all threads together [default: 3/4 of the available memory]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// Number of threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u16).range(1..=256))]
    pub threads: u16,
    #[command(flatten)]
    pub time: TimeArgs,
}

#[derive(Args)]
pub struct CompactArgs {
    /// How often
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..))]
    pub times: u32,
    /// Time between two of them
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub pause: Duration,
    /// For tests: print `ready` and begin when a line is read
    #[arg(long, hide = true)]
    pub hold: bool,
}

/// A cgroup for a load that is of use in one only.
#[derive(Args)]
pub struct CgroupArgs {
    /// Limit of the cgroup that is made for the load, in bytes or with K, M or G behind
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = limit)]
    pub limit: u64,
    /// Make it a limit beyond which threads are slowed down (memory.high, cgroup v2) instead of one
    /// that is never exceeded
    #[arg(long)]
    pub high: bool,
}

#[derive(Args)]
pub struct ThrashArgs {
    #[command(flatten)]
    pub cgroup: CgroupArgs,
    /// Size of all files together [default: one and a half times the limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// Number of threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u16).range(1..=256))]
    pub threads: u16,
    #[command(flatten)]
    pub time: TimeArgs,
    /// Where to put the files, which have no names and are gone at the end: a directory on a disk
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct DirtyArgs {
    /// Limit of the cgroup that is made for the load, memory.high where there is one, in bytes or with
    /// K, M or G behind
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = limit)]
    pub limit: u64,
    /// Bytes that the disk may write for the cgroup in a second: not before cgroup v2 with an io
    /// controller; otherwise as much as it can
    #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = size)]
    pub speed: u64,
    /// Number of threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u16).range(1..=256))]
    pub threads: u16,
    #[command(flatten)]
    pub time: TimeArgs,
    /// Where to put the files, which have no names and are gone at the end: a directory on a disk
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct HopelessArgs {
    #[command(flatten)]
    pub cgroup: CgroupArgs,
    #[command(flatten)]
    pub time: TimeArgs,
    /// Where to put the file for the little memory that is left: a directory on a disk
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct OomArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// How many processes take memory at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=64))]
    pub victims: u16,
    /// How many are killed before it ends; each but the last ones is replaced
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=1000))]
    pub kills: u16,
    #[command(flatten)]
    pub time: TimeArgs,
}

#[derive(Args)]
pub struct VictimArgs {
    /// How much memory to take at most
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: u64,
    /// When to stop
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub duration: Duration,
}

/// Parses the limit of a cgroup, such as `64M`.
fn limit(text: &str) -> Result<u64, String> {
    match size(text)? {
        limit @ ..=0x4000_0000 => Ok(limit),
        _ => Err("give a size from 4M to 1G".into()),
    }
}

/// Parses a size such as `64M`.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'K')) => (&text[..at], 1 << 10),
        Some((at, 'M')) => (&text[..at], MIB),
        Some((at, 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let size: Option<u64> = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    match size {
        Some(size) if (4 * MIB..=1 << 40).contains(&size) => Ok(size),
        Some(_) => Err("give a size from 4M to 1024G".into()),
        None => Err("give a size such as 64M".into()),
    }
}

/// Parses a duration such as `10s`.
fn duration(text: &str) -> Result<Duration, String> {
    let duration: Option<Duration> =
        text.parse::<jiff::SignedDuration>().ok().and_then(|duration| duration.try_into().ok());
    match duration {
        Some(duration) if duration <= LONGEST => Ok(duration),
        Some(_) => Err("give a duration of 24h at most".into()),
        None => Err("give a duration such as 500ms, 10s or 2m".into()),
    }
}

/// Parses the name of a thread.
fn comm(text: &str) -> Result<CString, String> {
    match CString::new(text) {
        Ok(comm) if (1..16).contains(&text.len()) => Ok(comm),
        _ => Err("give a name of 1 to 15 bytes".into()),
    }
}
