//! What the command line means, checked: nothing behind this sees what was typed.

use std::{
    mem,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use jiff::tz::TimeZone;
use memtrace::{
    cgroup::Cgroup,
    filter::{self, CommText, Filter, FilterError},
    histogram::By,
    kind::Kind,
    live::{self, Request, Subject},
    stall::{Cause, ReclaimKind},
    trigger::Trigger,
    view::{self, FoldedOptions, Format, HistogramOptions, ViewOptions},
};

use crate::{
    cli::{Common, Compactsnoop, Drsnoop, Record, StallKindArg, Stalls, Who},
    flight,
    output::say,
};

/// One run.
#[derive(Debug)]
pub struct Config {
    pub request: Request,
    pub view: ViewOptions,
    /// A flame graph beside the view.
    pub flame: Option<(PathBuf, FoldedOptions)>,
    /// What is traced, in the words of the first line.
    pub what: String,
    /// What stalls have to pass beside processes, as options of the command line.
    pub filters: Vec<String>,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Time between histograms.
    pub interval: Option<Duration>,
    /// Number of intervals.
    pub count: Option<u32>,
    pub verbosity: Verbosity,
    /// How rounds make episodes, where they do.
    pub episodes: Option<EpisodeOptions>,
    /// A recording to make beside the view, and its greatest size in bytes.
    pub record: Option<(PathBuf, u64)>,
    /// The recording to show, instead of what happens now.
    pub source: Option<Source>,
}

/// A recording, and what only its reader can tell of its stalls.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    /// Only threads in the cgroup at this path of the hierarchy, or below it.
    pub cgroup: Option<Vec<u8>>,
}

/// One recording without a view.
#[derive(Debug)]
pub struct RecordConfig {
    pub request: Request,
    /// What is recorded, in the words of the first line.
    pub what: String,
    /// What stalls have to pass beside processes, as options of the command line.
    pub filters: Vec<String>,
    /// The kinds of stalls to record.
    pub kinds: Vec<Kind>,
    /// Whether rounds come in scopes.
    pub scopes: bool,
    /// Shortest stall to record, in nanoseconds.
    pub min_ns: u64,
    pub output: PathBuf,
    /// Most bytes of the file.
    pub max_size: u64,
    /// When to write a file, in place of one that all goes to.
    pub flight: Option<FlightConfig>,
    /// Stop after this time.
    pub duration: Option<Duration>,
    pub verbosity: Verbosity,
}

/// What a flight recorder does.
#[derive(Debug)]
pub struct FlightConfig {
    pub trigger: Trigger,
    pub files: flight::Options,
    /// How far back a file reaches.
    pub before: Duration,
    /// Bytes for that.
    pub memory: usize,
}

impl RecordConfig {
    /// What `memtrace record` was asked to do.
    pub fn new(args: &Record) -> Result<Self> {
        let (kinds, what) = stall_kinds(&args.kind);
        let parts = !args.no_parts;
        let request = Request {
            subject: Subject::Stalls(live::Stalls { kinds: kinds.clone(), parts }),
            filter: make_filter(&args.who)?,
            extended: true,
            cgroups: true,
            uids: true,
            stacks: args.kernel_stack,
            user_stacks: args.user_stack,
            tell_apart: None,
            buffer_size: args.limits.buffer_size,
            max_stalled: args.limits.max_stalled,
            log: args.verbose,
        };
        Ok(Self {
            request,
            what,
            filters: filters(&args.who, args.min_latency),
            kinds,
            scopes: parts,
            min_ns: args.min_latency.map_or(0, nanoseconds),
            output: args.output.clone(),
            max_size: args.max_size,
            flight: args.flight.trigger.as_ref().map(|trigger| FlightConfig {
                trigger: trigger.clone(),
                files: flight::Options {
                    directory: args.output.clone(),
                    trigger: trigger.to_string(),
                    after: args.flight.after,
                    cooldown: args.flight.cooldown,
                    keep: args.flight.keep,
                    exec: args.flight.exec.clone(),
                },
                before: args.flight.before,
                memory: args.flight.memory,
            }),
            duration: args.duration,
            verbosity: Verbosity::new(args.quiet, args.verbose),
        })
    }
}

/// The kinds of stalls that were chosen, and what to call them.
fn stall_kinds(chosen: &[StallKindArg]) -> (Vec<Kind>, String) {
    let chosen: Vec<_> = chosen.iter().flat_map(StallKindArg::kinds).collect();
    let kinds = or_all(&chosen, |kind| **kind, &Kind::ALL);
    let what = if kinds.len() == Kind::ALL.len() {
        "stalls of all kinds".to_owned()
    } else {
        let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
        format!("stalls of kind {}", listing(&names))
    };
    (kinds, what)
}

/// How rounds make episodes, and which of those to show.
#[derive(Clone, Debug)]
pub struct EpisodeOptions {
    /// The kinds.
    pub kinds: Vec<Kind>,
    /// Rounds less than this apart are one, in nanoseconds; 0 leaves each by itself.
    pub gap_ns: u64,
    /// Shortest to show, in nanoseconds.
    pub min_ns: u64,
    /// Whether rounds come in scopes.
    pub scopes: bool,
}

/// How much to say beside the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

impl Verbosity {
    pub fn new(quiet: bool, verbose: bool) -> Self {
        match (quiet, verbose) {
            (true, _) => Self::Quiet,
            (false, false) => Self::Normal,
            (false, true) => Self::Verbose,
        }
    }
}

impl Config {
    /// Time between histograms in nanoseconds; 0 where they are shown once, at the end.
    pub fn interval_ns(&self) -> u64 {
        self.interval.map_or(0, nanoseconds)
    }

    /// What `memtrace drsnoop` was asked to do.
    pub fn drsnoop(args: &Drsnoop) -> Result<Self> {
        let kinds = or_all(&args.kind, |kind| kind.0, &ReclaimKind::ALL);
        let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
        let what = format!("{} reclaim", listing(&names));
        Self::new(&args.common, Subject::Reclaim(kinds), what)
    }

    /// What `memtrace compactsnoop` was asked to do.
    pub fn compactsnoop(args: &Compactsnoop) -> Result<Self> {
        let causes = or_all(&args.cause, |cause| cause.0, &Cause::ALL);
        let what = if causes.len() == Cause::ALL.len() {
            "compaction".to_owned()
        } else {
            let names: Vec<_> = causes.iter().map(|cause| cause.name()).collect();
            format!("{} compaction", listing(&names))
        };
        Self::new(&args.common, Subject::Compaction(causes), what)
    }

    /// What `memtrace stalls` was asked to do.
    pub fn stalls(args: &Stalls) -> Result<Self> {
        let (kinds, what) = stall_kinds(&args.kind);
        let parts = !args.no_parts;
        let subject = Subject::Stalls(live::Stalls { kinds: kinds.clone(), parts });
        let mut config = Self::new(&args.common, subject, what)?;
        // Every round's time goes to its own stack.
        let single = args.rounds || args.common.folded;
        let gap_ns = if single { 0 } else { nanoseconds(args.gap) };
        // What is shorter may be a part of what is long enough.
        let min_ns = mem::take(&mut config.request.filter.min_ns);
        config.episodes = Some(EpisodeOptions { kinds, gap_ns, min_ns, scopes: parts });
        Ok(config)
    }

    fn new(args: &Common, subject: Subject, what: String) -> Result<Self> {
        let min_ns = args.min_latency.map_or(0, nanoseconds);
        let source = args.from.as_ref().map(|path| Source {
            path: path.clone(),
            cgroup: args.who.cgroup.as_deref().map(hierarchy_path),
        });
        let filter =
            if source.is_some() { filter_of_recording(&args.who) } else { make_filter(&args.who) };
        let filter = Filter { min_ns, ..filter? };
        let verbosity = Verbosity::new(args.quiet, args.verbose);
        let histogram = args
            .histogram
            .then_some(HistogramOptions { by: args.by.0, max_keys: args.max_keys as usize });
        let is_stalls = matches!(subject, Subject::Stalls(_));
        // Who reads a recording later may want all of it.
        let records = args.record.is_some();
        let extended = is_stalls || records || histogram.is_none() && (args.extended || args.json);
        let tell_apart = histogram.map(|histogram| histogram.by).filter(|_| !records);
        // Of what else was asked for nothing would be seen.
        let folds = args.folded || args.flame.is_some();
        let kernel_stacks = args.kernel_stack || folds && !args.user_stack;
        let folded = FoldedOptions {
            kernel: kernel_stacks,
            user: args.user_stack,
            max_stacks: args.max_keys as usize,
        };
        let view = ViewOptions {
            subject: match subject {
                Subject::Reclaim(_) => view::Subject::Reclaim,
                Subject::Compaction(_) => view::Subject::Compaction,
                Subject::Stalls(_) => view::Subject::Stalls,
            },
            format: if args.json { Format::Json } else { Format::Text },
            histogram,
            folded: args.folded.then_some(folded),
            timestamp: args.timestamp,
            // Finding it takes a look at every time zone there is.
            zone: if args.timestamp { TimeZone::system() } else { TimeZone::UTC },
            uid: args.print_uid,
            extended: args.extended,
            stacks: args.kernel_stack,
            user_stacks: args.user_stack,
            quiet: args.quiet,
        };
        let request = Request {
            subject,
            filter,
            extended,
            cgroups: extended || tell_apart == Some(By::Cgroup),
            uids: records || args.print_uid || args.json || tell_apart == Some(By::Uid),
            stacks: kernel_stacks,
            user_stacks: args.user_stack,
            tell_apart,
            buffer_size: args.limits.buffer_size,
            max_stalled: args.limits.max_stalled,
            log: args.verbose,
        };
        Ok(Self {
            request,
            view,
            flame: args.flame.clone().map(|path| (path, folded)),
            what,
            filters: filters(&args.who, args.min_latency.filter(|_| !is_stalls)),
            duration: args.duration,
            interval: args.interval.map(|seconds| Duration::from_secs(seconds.into())),
            count: args.count,
            verbosity,
            episodes: None,
            record: args.record.clone().map(|path| (path, args.max_size)),
            source,
        })
    }
}

/// The threads that were asked for, whatever the length of their stalls.
pub fn make_filter(args: &Who) -> Result<Filter> {
    if !(args.pid.is_empty() && args.tid.is_empty()) {
        filter::check_pid_namespace().context("cannot filter by --pid or --tid")?;
    }
    let processes = running(&args.pid, filter::check_process).context("cannot filter by --pid")?;
    let threads = running(&args.tid, filter::check_thread).context("cannot filter by --tid")?;
    let uid = args.uid.as_deref().map(filter::find_user).transpose();
    let comm = args.comm.as_deref().map(CommText::new).transpose();
    let cgroup = args.cgroup.as_deref().map(Cgroup::find).transpose();
    Ok(Filter {
        processes,
        threads,
        uid: uid.context("cannot filter by --uid")?,
        comm: comm.context("cannot filter by --comm")?,
        cgroup: cgroup.context("cannot filter by --cgroup")?,
        min_ns: 0,
    })
}

/// What was asked for beside processes, as it is given on the command line.
fn filters(args: &Who, min_latency: Option<Duration>) -> Vec<String> {
    let Who { pid: _, tid, uid, comm, cgroup } = args;
    let tids: Vec<_> = tid.iter().map(u32::to_string).collect();
    let filters = [
        (!tids.is_empty()).then(|| format!("--tid {}", tids.join(","))),
        uid.as_ref().map(|uid| format!("--uid {uid}")),
        comm.as_ref().map(|comm| format!("--comm {comm}")),
        cgroup.as_ref().map(|cgroup| format!("--cgroup {}", cgroup.display())),
        // As the option takes it.
        min_latency.map(|min| format!("--min-latency {}", format!("{min:?}").replace('µ', "u"))),
    ];
    filters.into_iter().flatten().collect()
}

/// The same of a recording, whose threads and cgroups may be those of another host and time.
fn filter_of_recording(args: &Who) -> Result<Filter> {
    let uid = args.uid.as_deref().map(filter::find_user).transpose();
    let comm = args.comm.as_deref().map(CommText::new).transpose();
    Ok(Filter {
        processes: args.pid.clone(),
        threads: args.tid.clone(),
        uid: uid.context("cannot filter by --uid")?,
        comm: comm.context("cannot filter by --comm")?,
        cgroup: None,
        min_ns: 0,
    })
}

/// A cgroup's path in its hierarchy, given as that or as the directory that it usually is.
fn hierarchy_path(path: &Path) -> Vec<u8> {
    const MOUNTS: [&str; 3] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let below = MOUNTS.iter().find_map(|mount| path.strip_prefix(mount).ok());
    let path = Path::new("/").join(below.unwrap_or(path));
    path.into_os_string().into_vec()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Those of a list that run. On a busy host some are gone before memtrace looks: they are named and
/// left out, unless none is left.
fn running(
    ids: &[u32],
    check: fn(u32) -> Result<(), FilterError>,
) -> Result<Vec<u32>, FilterError> {
    let (mut running, mut gone) = (Vec::new(), Vec::new());
    for &id in ids {
        match check(id) {
            Ok(()) => running.push(id),
            Err(error @ (FilterError::NoProcess(_) | FilterError::NoThread(_))) => gone.push(error),
            Err(error) => return Err(error),
        }
    }
    if running.is_empty()
        && let Some(error) = gone.pop()
    {
        return Err(error);
    }
    for error in gone {
        say(format_args!("memtrace: left out: {error}"));
    }
    Ok(running)
}

/// What was chosen, each once and in the usual order; all if nothing was.
fn or_all<A, T: Copy + PartialEq>(chosen: &[A], meaning: impl Fn(&A) -> T, all: &[T]) -> Vec<T> {
    let keep = |item: &&T| chosen.is_empty() || chosen.iter().any(|arg| meaning(arg) == **item);
    all.iter().filter(keep).copied().collect()
}

/// `a, b and c`.
fn listing(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn lists_like_a_person() {
        assert_eq!(listing(&["direct"]), "direct");
        assert_eq!(listing(&["direct", "memcg", "node"]), "direct, memcg and node");
    }

    #[test]
    fn both_kinds_of_memcg_have_one_name_as_with_drsnoop() {
        let args = ["memtrace", "stalls", "--kind", "memcg,oom,memcg-max"];
        let cli = Cli::try_parse_from(args).expect("they are kinds");
        let Command::Stalls(stalls) = cli.command else { panic!("it is stalls") };
        let (kinds, what) = stall_kinds(&stalls.kind);
        assert_eq!(kinds, [Kind::MemcgMax, Kind::MemcgHigh, Kind::Oom]);
        assert_eq!(what, "stalls of kind memcg-max, memcg-high and oom");
    }

    #[test]
    fn chooses_each_once() {
        assert_eq!(or_all(&[], |n: &i32| *n, &[1, 2, 3]), [1, 2, 3]);
        assert_eq!(or_all(&[3, 1, 3], |n| *n, &[1, 2, 3]), [1, 3]);
    }
}
