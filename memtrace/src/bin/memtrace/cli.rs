//! What can be typed. The man pages and the completions of shells are made from it.

use std::{ffi::OsString, num::NonZero, path::PathBuf, slice};

use clap::{
    ArgGroup, Args, Parser, Subcommand, ValueEnum,
    builder::{PathBufValueParser, PossibleValue, TypedValueParser},
};
use clap_complete::Shell;
use memtrace::{
    histogram::By,
    kind::Kind,
    recording::flight::LEAST_MEMORY,
    stall::{Cause, ReclaimKind},
    trigger::Trigger,
};

use crate::examples;

/// Names the threads that this host holds up in memory management, for how long, by what and why
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Drsnoop(Drsnoop),
    Compactsnoop(Compactsnoop),
    Stalls(Stalls),
    Now(Now),
    Record(Record),
    Report(Report),
    /// Write the man pages into a directory
    Man {
        /// Where to write them; it is made where it is missing
        directory: PathBuf,
    },
    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

impl Command {
    /// What clap has no good words for.
    pub fn contradiction(&self) -> Option<&'static str> {
        if let Self::Report(args) = self {
            return args.contradiction();
        }
        let common = self.common()?;
        (common.interval.is_some() && !common.histogram).then_some(
            "INTERVAL and COUNT go with --histogram; several PIDs or other values are joined by commas",
        )
    }

    pub fn is_verbose(&self) -> bool {
        match self {
            Self::Now(args) => args.verbose,
            Self::Record(args) => args.verbose,
            _ => self.common().is_some_and(|common| common.verbose),
        }
    }

    /// What all commands that trace have.
    fn common(&self) -> Option<&Common> {
        match self {
            Self::Drsnoop(args) => Some(&args.common),
            Self::Compactsnoop(args) => Some(&args.common),
            Self::Stalls(args) => Some(&args.common),
            Self::Now(_)
            | Self::Record(_)
            | Self::Report(_)
            | Self::Man { .. }
            | Self::Completions { .. } => None,
        }
    }
}

/// Show threads that are held up reclaiming pages: direct, memcg, soft-limit, node and proactive reclaim
///
/// One line a stall, as it ends. The columns: COMM, PID and TID are the thread; KIND is what made
/// it reclaim (direct: no free page; memcg: for a cgroup's limit; softlimit: for a cgroup's soft
/// limit; node: on one NUMA node, before using another; proactive: for a write to memory.reclaim);
/// ORDER is that of the allocation, 2^ORDER pages, and always 0 for memcg; LAT(ms) is how long the
/// thread was held up; PAGES were reclaimed.
///
/// With --extended: pages SCANNED; PRIO, the lowest priority reached, from 12 (least effort) to 0;
/// FREE(KB), free memory of the whole system when the stall began; GFP, the allocation's flags;
/// CGROUP, the one that the thread is charged to; TARGET, the one that was reclaimed from.
#[derive(Args, Debug)]
#[command(after_help = examples::DRSNOOP.help())]
pub struct Drsnoop {
    /// Only these kinds of reclaim
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        hide_possible_values = true,
        help = "Only these kinds: direct, memcg, softlimit, node, proactive"
    )]
    pub kind: Vec<KindArg>,
    #[command(flatten)]
    pub common: Common,
}

/// Show threads that are held up compacting memory
///
/// One line for each zone compacted, as it ends. The columns: COMM, PID and TID are the thread;
/// ZONE is the NUMA node and zone; ORDER is the one wanted, -1 for the whole zone; CAUSE is what
/// made it compact (direct: an allocation; kcompactd: the node's own thread, for an allocation;
/// proactive: the same in the background; manual: a write to vm.compact_memory); MODE is async,
/// light (the kernel's sync_light) or sync; LAT(ms) is how long it took; STATUS is the kernel's
/// word for the result.
///
/// With --extended MODE and STATUS are in full, and there are: FRAGIDX, the fragmentation index of
/// the order (towards 0: no memory, towards 1: fragmented, -1: would succeed); MIN, LOW, HIGH and FREE, the zone's watermarks and free pages
/// when it began; SCANNED, pages that the migration and the free scanner looked at; GFP, the
/// allocation's flags; CGROUP, the one that the thread is charged to.
#[derive(Args, Debug)]
#[command(after_help = examples::COMPACTSNOOP.help())]
pub struct Compactsnoop {
    /// Only for these causes
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        hide_possible_values = true,
        help = "Only these causes: direct, kcompactd, proactive, manual, other"
    )]
    pub cause: Vec<CauseArg>,
    #[command(flatten)]
    pub common: Common,
}

/// Show what threads lose to memory management, by all mechanisms, and what for
///
/// One line for each episode, once it is over: the rounds of reclaim and compaction that one
/// allocation makes a thread go through. The columns: COMM, PID and TID are the thread; KIND is what
/// took most of the time (direct, memcg-max, memcg-high, softlimit, node and proactive reclaim;
/// compaction that an allocation waits for, background compaction; penalty, the sleep that memory.high
/// imposes; pfmemalloc, throttled before direct reclaim; swapin and refault, waiting for pages to be
/// read; oom, the choice of a process to be killed); ORDER is the allocation's; ROUNDS is how many
/// there were; LAT(ms) is what they took together; PAGES were reclaimed; PARTS(ms) is how the time was
/// spent, longest first, and adds up to LAT: scan, on a CPU; shrink:FUNCTION, in a shrinker;
/// throttled:REASON, made to sleep; compaction; blocked, off the CPU; waiting, for a CPU; other.
///
/// PAYER is whom the thread's memory is charged to, as systemd, the container runtime or Kubernetes calls
/// it. VERDICT is what is to be expected of the reclaim, of the cgroup's in the last seconds or else of this
/// one: progressing, slow, hopeless (anonymous memory only, and no swap), thrash (file pages are read back
/// at once) or writeback-bound. Lines with -- say when that of a cgroup changes, and what it is from.
///
/// With --extended: pages SCANNED; PRIO, the lowest priority reached; FREE(KB), free memory of the
/// whole system when it began; ZONE and STATUS of the last compaction; CGROUP, the one that the thread
/// is charged to; TARGET, the one that was reclaimed from; GFP, the allocation's flags.
///
/// At the end it says which kinds were watched and which could not be, and of each process of --pid the
/// longest stall.
#[derive(Args, Debug)]
#[command(after_help = examples::STALLS.help())]
pub struct Stalls {
    /// Only these kinds of stalls
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        hide_possible_values = true,
        help = "Only these kinds: direct, memcg (memcg-max, memcg-high), softlimit, node, proactive, compaction, background, throttled, oom, penalty, pfmemalloc, swapin, refault"
    )]
    pub kind: Vec<StallKindArg>,
    /// Rounds of one thread for the same order and flags, less than this apart, are one episode
    #[arg(long, value_name = "DURATION", value_parser = with_unit, default_value = "1ms")]
    pub gap: std::time::Duration,
    /// Show each round by itself
    #[arg(long, conflicts_with = "gap")]
    pub rounds: bool,
    /// Do not look how the time is spent: costs less, and watches fewer kinds
    #[arg(long)]
    pub no_parts: bool,
    #[command(flatten)]
    pub common: Common,
}

/// Show threads that are stalled at this moment: in reclaim, in compaction, or asleep for lack of memory
///
/// Looks at all threads twice, --interval apart. The columns: COMM, PID and TID are the thread; KIND is
/// what holds it up (direct, memcg, node, proactive: it reclaims, as in drsnoop; compaction: it compacts a
/// zone; penalty: it sleeps for its cgroup's memory.high; pfmemalloc: it waits for kswapd before it may
/// reclaim; swapin, refault: it waits for a page that was swapped out or reclaimed too early; memstall:
/// the kernel says so and no more; kswapd, kcompactd: it works for others); STATE is running, waiting or
/// throttled (waiting as reclaim makes it wait); SEEN is the look that it was seen in: both, second (it
/// has begun) or first (it is over); FOR(s), with --watch, is since when it was seen in every look.
///
/// Of its present round: ORDER of the allocation; PRIO, the priority, from 12 (least effort) to 0; pages
/// SCANNED at that priority and RECLAIMED; SCAN/s and RECL/s, where both looks were at the same round;
/// VERDICT, what is to be expected of it, as in stalls; TARGET, the cgroup whose limit asks for it, or the
/// zone; CGROUP, the one that the thread is charged to; GFP, the allocation's flags.
#[derive(Args, Debug)]
#[command(after_help = examples::NOW.help())]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own to the user")]
pub struct Now {
    #[command(flatten)]
    pub who: Who,

    /// Time between the two looks
    #[arg(short, long, value_name = "DURATION", value_parser = with_unit, default_value = "200ms")]
    pub interval: std::time::Duration,
    /// Look again every interval, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,

    /// Show the kernel stack of each thread; a thread that runs on another CPU has none
    #[arg(short = 'K', long, help_heading = OUTPUT)]
    pub kernel_stack: bool,
    /// Print one JSON object a line, with all fields; add -q to silence standard error
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Print no header, and no last line unless a thread was left out
    #[arg(short, long, conflicts_with = "verbose", help_heading = OUTPUT)]
    pub quiet: bool,
    /// Say what this kernel lacks and how long it took
    #[arg(short, long, help_heading = OUTPUT)]
    pub verbose: bool,
}

/// Record stalls into a file, to be shown and reported on later, elsewhere
///
/// Every stall with all that is known of it, the names that it takes to read it on another host, and once a
/// second the system around it: free pages and watermarks, /proc/vmstat, pressure, and the cgroups that stalled. What
/// ends memtrace costs the last second of stalls at most; what ends the host, whatever its kernel had not written to the disk yet.
///
/// `memtrace stalls --from FILE` shows it as if it happened now; drsnoop and compactsnoop show their part.
#[derive(Args, Debug)]
#[command(after_help = examples::RECORD.help())]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own to the user")]
pub struct Record {
    /// Where to record to: a new file, or a recording of yours, which is replaced; with --trigger a directory
    #[arg(short, long, value_name = "FILE", value_parser = out_file())]
    pub output: PathBuf,
    /// Most bytes of the file, at least 64K: where there are more, the oldest stalls make room
    #[arg(long, value_name = "SIZE", value_parser = file_size, default_value = "256M",
        conflicts_with = "trigger")]
    pub max_size: u64,
    /// Stop after this time: 10 or 10s, 2m, 1h
    #[arg(short, long, value_name = "DURATION", value_parser = seconds_or_with_unit)]
    pub duration: Option<std::time::Duration>,

    #[command(flatten)]
    pub who: Who,
    /// Only rounds at least this long, so that long stalls of short rounds are left out, too: 500us, 10ms, 1s
    #[arg(short, long, value_name = "DURATION", value_parser = with_unit, help_heading = FILTERS)]
    pub min_latency: Option<std::time::Duration>,
    /// Only these kinds of stalls
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        hide_possible_values = true,
        help_heading = FILTERS,
        help = "Only these kinds: those of `memtrace stalls`; a stall that is of several is recorded as a whole"
    )]
    pub kind: Vec<StallKindArg>,

    /// Record the kernel stack at the end of each stall
    #[arg(short = 'K', long, help_heading = OUTPUT)]
    pub kernel_stack: bool,
    /// Record the stack in user space at the end of each stall, as far as frame pointers lead
    #[arg(long, help_heading = OUTPUT)]
    pub user_stack: bool,
    /// Do not record how the time is spent: costs less, and watches fewer kinds
    #[arg(long, help_heading = OUTPUT)]
    pub no_parts: bool,
    /// Say nothing, unless a stall was not seen
    #[arg(short, long, conflicts_with = "verbose", help_heading = OUTPUT)]
    pub quiet: bool,
    /// Say what was attached and what this kernel lacks, and show the probes' own log
    #[arg(short, long, help_heading = OUTPUT)]
    pub verbose: bool,
    #[command(flatten)]
    pub flight: FlightArgs,
    #[command(flatten)]
    pub limits: Limits,
}

/// The flight recorder.
#[derive(Args, Debug)]
pub struct FlightArgs {
    /// Keep the last stalls in memory, and write a file of them whenever one of these holds, joined by `or`:
    /// latency>100ms, p99(10s)>20ms, rate>1000/s, oom, psi.some.avg10>20. Stalls are those that `memtrace stalls` shows
    #[arg(long, value_name = "EXPR", help_heading = FLIGHT)]
    pub trigger: Option<Trigger>,
    /// How far back a file reaches
    #[arg(long, value_name = "DURATION", value_parser = with_unit, default_value = "30s",
        requires = "trigger", help_heading = FLIGHT)]
    pub before: std::time::Duration,
    /// How long a file goes on after the trigger
    #[arg(long, value_name = "DURATION", value_parser = with_unit, default_value = "10s",
        requires = "trigger", help_heading = FLIGHT)]
    pub after: std::time::Duration,
    /// How long no other file is begun once one is complete
    #[arg(long, value_name = "DURATION", value_parser = with_unit, default_value = "60s",
        requires = "trigger", help_heading = FLIGHT)]
    pub cooldown: std::time::Duration,
    /// How many files to keep: the oldest are removed
    #[arg(long, value_name = "N", requires = "trigger", help_heading = FLIGHT)]
    pub keep: Option<NonZero<u32>>,
    /// A command of the shell to run for each file, whose name is $1 and in $MEMTRACE_FILE, and its cause in $MEMTRACE_CAUSE; not
    /// for one that is complete while it still runs
    #[arg(long, value_name = "CMD", requires = "trigger", help_heading = FLIGHT)]
    pub exec: Option<OsString>,
    /// Memory for the last stalls, at least 4M: where there are more, files reach less far back
    #[arg(long, value_name = "SIZE", value_parser = memory_size, default_value = "64M",
        requires = "trigger", help_heading = FLIGHT)]
    pub memory: usize,
}

/// Show what recordings come to: who was stalled, for how long, by what, and what the system was like
///
/// Reads what was recorded on this host or another, earlier or just now. The report has, for all recordings
/// together: when, where and how long was recorded; the threads, processes, cgroups, kinds, orders and zones with
/// the most stalled time, each with its number of stalls, percentiles and longest stall; what the time was spent on;
/// the longest stalls with their stacks; OOM kills; the second in which most time was lost, with the state of
/// memory then; why it was recorded; and what is not in it, as it was not watched, or lost, or the file is damaged.
///
/// A stall counts as what its longest round was. What is in several files of one tracing counts once. A file that
/// is damaged in part is read as far as it goes, and standard error says what is missing.
///
/// Text is printed unless another output is asked for.
///
/// Files that are written have mode 0600, as recordings have, or that of the file whose place they take, if it is yours.
/// A symbolic link is refused.
#[derive(Args, Debug)]
#[command(after_help = examples::REPORT.help())]
#[command(group = ArgGroup::new("printed"))]
#[command(group = ArgGroup::new("written").multiple(true))]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own to the user")]
pub struct Report {
    /// Recordings; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How many threads, processes, cgroups and longest stalls to show
    #[arg(long, value_name = "N", default_value = "10",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top: u32,
    /// Compare two recordings, before and after a change: stalled time, 99th percentile and time lost a
    /// second, for all stalls and by kind, process name and cgroup
    #[arg(long, conflicts_with_all = ["csv", "folded", "written"])]
    pub diff: bool,

    /// Show times in UTC, as all other outputs do, instead of local time
    #[arg(long, help_heading = OUTPUT)]
    pub utc: bool,
    /// Print one JSON object with all of it
    #[arg(long, group = "printed", help_heading = OUTPUT)]
    pub json: bool,
    /// Print a line of values for each stall, with a header; docs/exports.md has the columns
    #[arg(long, group = "printed", help_heading = OUTPUT)]
    pub csv: bool,
    /// Print how many microseconds each distinct stack was held up, as flame graph tools read it
    #[arg(long, group = "printed", help_heading = OUTPUT)]
    pub folded: bool,
    /// Write a page with charts to FILE, which needs nothing else to be looked at
    #[arg(long, value_name = "FILE.html", value_parser = out_file(), group = "written",
        help_heading = FILES)]
    pub html: Option<PathBuf>,
    /// Write a trace to FILE, with a track for each thread, for Perfetto's user interface
    #[arg(long, value_name = "FILE", value_parser = out_file(), group = "written",
        help_heading = FILES)]
    pub perfetto: Option<PathBuf>,
    /// Write a flame graph of the stacks to FILE
    #[arg(long, value_name = "FILE.svg", value_parser = out_file(), group = "written",
        help_heading = FILES)]
    pub flame: Option<PathBuf>,
    /// Write an HdrHistogram log to FILE
    #[arg(long, value_name = "FILE.hlog", value_parser = out_file(), group = "written",
        help_heading = FILES)]
    pub hlog: Option<PathBuf>,
}

impl Report {
    fn contradiction(&self) -> Option<&'static str> {
        if self.files.iter().filter(|file| file.as_os_str() == "-").count() > 1 {
            return Some("standard input, -, can be read once only");
        }
        (self.diff && self.files.len() != 2)
            .then_some("--diff compares two recordings: give the one before, and the one after")
    }
}

/// Which threads.
#[derive(Args, Debug)]
pub struct Who {
    /// Only threads of these processes
    #[arg(short, long, value_name = "PID,...", value_parser = id, value_delimiter = ',', help_heading = FILTERS)]
    pub pid: Vec<u32>,
    /// Only these threads
    #[arg(short, long, value_name = "TID,...", value_parser = id, value_delimiter = ',', help_heading = FILTERS)]
    pub tid: Vec<u32>,
    /// Only threads of this user, a number or a name
    #[arg(short, long, value_name = "USER", help_heading = FILTERS)]
    pub uid: Option<String>,
    /// Only threads whose name contains this text
    #[arg(short = 'n', long, value_name = "TEXT", help_heading = FILTERS)]
    pub comm: Option<String>,
    /// Only threads in this cgroup or below it: its directory, or its path in the hierarchy
    #[arg(short, long, value_name = "PATH", help_heading = FILTERS)]
    pub cgroup: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("counted").multiple(true))]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own to the user")]
pub struct Common {
    #[command(flatten)]
    pub who: Who,
    /// Only stalls at least this long: 500us, 10ms, 1s
    #[arg(short, long, value_name = "DURATION", value_parser = with_unit, help_heading = FILTERS)]
    pub min_latency: Option<std::time::Duration>,

    /// Stop after this time: 10 or 10s, 2m, 1h
    #[arg(short, long, value_name = "DURATION", value_parser = seconds_or_with_unit)]
    pub duration: Option<std::time::Duration>,

    /// Show when each stall began, in local time; with --histogram, when each was printed
    #[arg(short = 'T', long, help_heading = OUTPUT)]
    pub timestamp: bool,
    /// Show the user id
    #[arg(short = 'U', long, conflicts_with = "histogram", help_heading = OUTPUT)]
    pub print_uid: bool,
    /// Show more columns
    #[arg(short, long, conflicts_with = "histogram", help_heading = OUTPUT)]
    pub extended: bool,
    /// Show the kernel stack at the end of each stall
    #[arg(short = 'K', long, conflicts_with = "histogram", help_heading = OUTPUT)]
    pub kernel_stack: bool,
    /// Show the stack in user space at the end of each stall, as far as frame pointers lead
    #[arg(long, conflicts_with = "histogram", help_heading = OUTPUT)]
    pub user_stack: bool,
    /// Print at the end how many microseconds each distinct stack was held up, as flame graph tools
    /// read it: kernel stacks, unless only --user-stack is given
    #[arg(long, conflicts_with_all = ["histogram", "json", "extended", "timestamp", "print_uid"],
        group = "counted", help_heading = OUTPUT)]
    pub folded: bool,
    /// Write the same as a flame graph to FILE when tracing has ended, with mode 0600 unless it is there
    #[arg(long, value_name = "FILE.svg", value_parser = out_file(), conflicts_with = "histogram",
        group = "counted", help_heading = OUTPUT)]
    pub flame: Option<PathBuf>,
    /// Show histograms of latency: every INTERVAL seconds, else once at the end
    #[arg(short = 'H', long, group = "counted", help_heading = OUTPUT)]
    pub histogram: bool,
    /// What to tell histograms apart by: thread, process, comm, cgroup, uid, kind (or cause), order
    #[arg(long, value_name = "KEY", requires = "histogram", default_value = "thread",
        hide_possible_values = true, help_heading = OUTPUT)]
    pub by: ByArg,
    /// How many histograms or distinct stacks to keep: those seen first, histograms to the second; all others are shown as one
    #[arg(long, value_name = "N", requires = "counted", default_value = "1024",
        value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = OUTPUT)]
    pub max_keys: u32,
    /// Print one JSON object a line, with all fields; add -q to silence standard error
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Print no header, no first line, and no last line unless a stall was not seen
    #[arg(short, long, conflicts_with = "verbose", help_heading = OUTPUT)]
    pub quiet: bool,
    /// Record to FILE what is shown, to be shown again with --from, or reported on
    #[arg(long, value_name = "FILE", value_parser = out_file(), help_heading = RECORDINGS)]
    pub record: Option<PathBuf>,
    /// Most bytes of the recording, at least 64K: where there are more, the oldest stalls make room
    #[arg(long, value_name = "SIZE", value_parser = file_size, default_value = "256M",
        requires = "record", help_heading = RECORDINGS)]
    pub max_size: u64,
    /// Show the stalls of a recording instead of this host's; - is standard input. All options work as they do live
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "max_size"], help_heading = RECORDINGS)]
    pub from: Option<PathBuf>,
    /// Say what was attached and what this kernel lacks, and show the probes' own log
    #[arg(short, long, help_heading = OUTPUT)]
    pub verbose: bool,

    #[command(flatten)]
    pub limits: Limits,

    /// Seconds between histograms; needs --histogram
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub interval: Option<u32>,
    /// How many times to print histograms
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
}

/// What there is room for.
#[derive(Args, Debug)]
pub struct Limits {
    /// Size of the buffer between kernel and memtrace: 64K, 4M, up to 1G; rounded up to a power of
    /// two. Stalls for which it has no room are counted as lost
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "4M",
        help_heading = LIMITS)]
    pub buffer_size: u32,
    /// How many threads can be held up at the same time, at least; stalls without room are counted
    /// as table full
    #[arg(long, value_name = "N", default_value = "16384",
        value_parser = clap::value_parser!(u32).range(1..=1_048_576), help_heading = LIMITS)]
    pub max_stalled: u32,
}

const FILTERS: &str = "Filters";
const OUTPUT: &str = "Output";
const FILES: &str = "Output to files, which are there as a whole or not at all";
const LIMITS: &str = "Limits";
const RECORDINGS: &str = "Recordings";
const FLIGHT: &str = "Flight recorder";

/// A kind of reclaim as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindArg(pub ReclaimKind);

/// A cause of compaction as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseArg(pub Cause);

/// A kind of stall as an argument, or two kinds by the name that drsnoop has for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallKindArg {
    One(Kind),
    Memcg,
}

impl StallKindArg {
    /// The kinds that it stands for.
    pub fn kinds(&self) -> &[Kind] {
        match self {
            Self::One(kind) => slice::from_ref(kind),
            Self::Memcg => &[Kind::MemcgMax, Kind::MemcgHigh],
        }
    }
}

impl ValueEnum for StallKindArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [StallKindArg; Kind::ALL.len() + 1] = {
            let mut all = [StallKindArg::Memcg; Kind::ALL.len() + 1];
            let mut at = 0;
            while at < Kind::ALL.len() {
                all[at] = StallKindArg::One(Kind::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::One(kind) => kind.name(),
            Self::Memcg => ReclaimKind::Memcg.name(),
        }))
    }
}

/// A histogram's key as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByArg(pub By);

impl ValueEnum for KindArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [KindArg; ReclaimKind::ALL.len()] = {
            let [a, b, c, d, e] = ReclaimKind::ALL;
            [KindArg(a), KindArg(b), KindArg(c), KindArg(d), KindArg(e)]
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

impl ValueEnum for CauseArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [CauseArg; Cause::ALL.len()] = {
            let [a, b, c, d, e] = Cause::ALL;
            [CauseArg(a), CauseArg(b), CauseArg(c), CauseArg(d), CauseArg(e)]
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

impl ValueEnum for ByArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [ByArg; By::ALL.len()] = {
            let [a, b, c, d, e, f, g] = By::ALL;
            [ByArg(a), ByArg(b), ByArg(c), ByArg(d), ByArg(e), ByArg(f), ByArg(g)]
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.0.name());
        Some(if self.0 == By::Kind { value.alias("cause") } else { value })
    }
}

/// Reads the name of a file that is going to be written. Others take `-` for standard output, which no file of
/// memtrace's can go to.
fn out_file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|name| {
        if name.as_os_str() == "-" {
            return Err(
                "it takes the name of a file, not - for standard output; ./- is a file called -",
            );
        }
        Ok(name)
    })
}

/// Reads a duration that has a unit.
fn with_unit(text: &str) -> Result<std::time::Duration, String> {
    let duration: jiff::SignedDuration = text
        .parse()
        .map_err(|_| "give a number with a unit, such as 500us, 10ms, 1s or 2m".to_owned())?;
    match std::time::Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than zero".to_owned()),
    }
}

/// Reads the id of a process or thread.
fn id(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "give numbers, joined by commas".to_owned())
}

/// Reads a duration, in seconds unless it has a unit.
fn seconds_or_with_unit(text: &str) -> Result<std::time::Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) => match std::time::Duration::try_from_secs_f64(seconds) {
            Ok(duration) if !duration.is_zero() => Ok(duration),
            Err(_) if seconds > 0.0 => Err("is longer than anything can take".to_owned()),
            _ => Err("must be more than zero".to_owned()),
        },
        Err(_) => with_unit(text)
            .map_err(|error| error.replace("with a unit,", "of seconds, or with a unit,")),
    }
}

/// Reads a size in bytes, of which K, M and G make 1024, 1024^2 and 1024^3.
fn size(text: &str) -> Result<u32, String> {
    let bytes = parse_size::Config::new().with_binary().parse_size(text);
    let bytes =
        bytes.map_err(|error| format!("{error}; give a number of bytes, or such as 64K or 4M"))?;
    match u32::try_from(bytes) {
        Ok(bytes) if (1..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err("a buffer has between 1 byte and 1G".to_owned()),
    }
}

/// Reads the memory of the flight recorder likewise.
fn memory_size(text: &str) -> Result<usize, String> {
    let bytes = parse_size::Config::new().with_binary().parse_size(text);
    let bytes =
        bytes.map_err(|error| format!("{error}; give a number of bytes, or such as 64M"))?;
    match usize::try_from(bytes) {
        Ok(bytes) if (LEAST_MEMORY..=1 << 36).contains(&bytes) => Ok(bytes),
        _ => Err(format!("it takes {}M to 64G", LEAST_MEMORY >> 20)),
    }
}

/// Reads the greatest size of a recording likewise.
fn file_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size::Config::new().with_binary().parse_size(text);
    match bytes.map_err(|error| format!("{error}; give a number of bytes, or such as 64M or 2G"))? {
        bytes @ 65_536.. => Ok(bytes),
        _ => Err("a recording has at least 64K".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn clap_finds_no_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_unit_of_systemd_runs_what_there_is() {
        let unit = include_str!("../../../../contrib/memtrace-record.service");
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
        let (before, rest) = start.and_then(|line| line.split_once('\'')).expect("a trigger");
        let (trigger, after) = rest.split_once('\'').expect("its end");
        let args = before.split_whitespace().chain([trigger]).chain(after.split_whitespace());
        let cli = Cli::try_parse_from(args).expect("all of them are known");
        let Command::Record(record) = cli.command else { panic!("it records") };
        assert!(record.flight.trigger.is_some_and(|trigger| trigger.needs_psi()));
        assert_eq!(record.output, PathBuf::from("/var/lib/memtrace"));
        assert!(unit.lines().any(|line| line == "StateDirectory=memtrace"));
    }

    #[test]
    fn standard_output_is_no_file() {
        for args in [
            &["record", "-o", "-"][..],
            &["stalls", "--record", "-"],
            &["drsnoop", "--flame", "-"],
            &["report", "a.mtr", "--html", "-"],
            &["report", "a.mtr", "--perfetto", "-"],
            &["report", "a.mtr", "--flame", "-"],
            &["report", "a.mtr", "--hlog=-"],
        ] {
            let error = Cli::try_parse_from([&["memtrace"], args].concat());
            let error = error.expect_err("it would be a file called -").to_string();
            assert!(error.contains("it takes the name of a file"), "{args:?}: {error}");
        }
        for args in [["record", "-o", "./-"], ["report", "-", "--html=./-"]] {
            assert!(Cli::try_parse_from(["memtrace"].iter().chain(&args)).is_ok(), "{args:?}");
        }
    }

    #[test]
    fn reads_durations() {
        for (text, expected) in [
            ("10", Duration::from_secs(10)),
            ("0.5", Duration::from_millis(500)),
            ("90s", Duration::from_secs(90)),
            ("2m", Duration::from_mins(2)),
            ("500us", Duration::from_micros(500)),
        ] {
            assert_eq!(seconds_or_with_unit(text), Ok(expected), "{text}");
        }
        for bad in ["", "-1", "0", "ten", "10 apples", "-5ms", "nan", "inf", "1e300"] {
            assert!(seconds_or_with_unit(bad).is_err(), "{bad}");
        }
        assert!(with_unit("10").is_err(), "a latency needs a unit");
    }

    #[test]
    fn says_what_a_duration_may_be() {
        let error = seconds_or_with_unit("10x").expect_err("no such unit");
        assert!(error.contains("a number of seconds"), "{error}");
        assert!(!with_unit("10x").expect_err("no such unit").contains("seconds"));
    }

    #[test]
    fn reads_sizes() {
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("1M"), Ok(1 << 20));
        assert_eq!(size("100"), Ok(100));
        for bad in ["", "-1", "0", "8G", "lots"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
