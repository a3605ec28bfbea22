//! Shows the stalls of a recording as if they came now.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs::File,
    io::{self, Seek as _},
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use memtrace::{
    clock::WallClock,
    coverage::Coverage,
    live::{Event, Request, Subject},
    recording::{
        self, Block, Counts, Item, Look, Missing, Note, Recording, Settled,
        meta::{since_1970_ns, timestamp},
    },
    stall::Detail,
    text::Printable,
};

use crate::{
    bar::with_bar,
    config::{Config, Source, Verbosity},
    episodes::{Shown, StateSource},
    output::{self, Reader, say},
    show::{Ended, Flame, Show},
};

/// What standard input goes by on the command line.
const STDIN: &str = "-";

/// Shows the recording as `config` says.
pub fn run(config: &Config, source: &Source) -> Result<()> {
    let recording = open(&source.path)?;
    let what = || shown_name(&source.path);
    let meta = &recording.meta;
    if config.verbosity != Verbosity::Quiet {
        let host = Printable(meta.host.as_bytes());
        let filters = meta.all_filters();
        let with = if filters.is_empty() { "" } else { " with " };
        let filters = Printable(filters.as_bytes());
        let subject = &config.what;
        say(format_args!("Showing {subject} of {}, recorded on {host}{with}{filters}...", what()));
    }
    let Request { stacks, user_stacks, .. } = config.request;
    // A flame graph takes those of the kernel where it is not told otherwise.
    say_no_stacks(what(), meta, (stacks, user_stacks));
    let left_out = meta.kinds_left_out(&config.request.subject.kinds());
    if !left_out.is_empty() && !matches!(config.request.subject, Subject::Stalls(_)) {
        let names: Vec<_> = left_out.iter().map(|kind| kind.name()).collect();
        let recorded = Printable(meta.what.as_bytes());
        let names = names.join(", ");
        say(format_args!("memtrace: {} has {recorded} only: not {names}", what()));
    }
    if let Some(line) = missing(&recording.missing) {
        say(format_args!("memtrace: {}: {line}", what()));
    }
    let scopes =
        recording.meta.scopes && config.episodes.as_ref().is_some_and(|options| options.scopes);
    let states = StateSource::Recorded(BTreeMap::new());
    let show = Show::new(config, recording.meta.names(), Flame::prepare(config)?, scopes, states);
    let began_ns = recording.meta.began_ns;
    let mut replay = Replay {
        config,
        source,
        show,
        scopes,
        end: None,
        counts: Counts::default(),
        first_ns: None,
        now_ns: 0,
        interval_end_ns: None,
        has_intervals: recording.meta.interval_ns == config.interval_ns(),
        intervals_left: config.count,
        over_at: None,
        damaged: 0,
    };
    replay.show.begin(timestamp(began_ns));
    // Lines that someone looks at show how far it is, and a bar would come in between.
    let has_bar = output::is_file() && config.verbosity != Verbosity::Quiet;
    let blocks = has_bar.then_some(recording.places.len() as u64);
    let reader = with_bar(blocks, |done| replay.blocks(&recording, done))?;
    replay.finish(&recording, reader)
}

/// Says that a recording has no stacks of the kernel or of programs, of those that are wanted.
pub fn say_no_stacks(what: impl Display, meta: &recording::Meta, (kernel, user): (bool, bool)) {
    if kernel && !meta.stacks {
        say(format_args!("memtrace: {what} has no kernel stacks: record them with -K"));
    }
    if user && !meta.user_stacks {
        say(format_args!(
            "memtrace: {what} has no stacks of programs: record them with --user-stack"
        ));
    }
}

/// Whether a name on the command line is that of standard input.
pub fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// Opens a recording, or standard input where it is called `-`.
pub fn open(path: &Path) -> Result<Recording> {
    let what = || format!("cannot read {}", shown_name(path));
    let file = if is_stdin(path) {
        // Blocks are not in the order of their places.
        let mut file = tempfile::tempfile().with_context(|| {
            format!("{}: it is copied to a temporary file, which cannot be made", what())
        })?;
        io::copy(&mut io::stdin().lock(), &mut file)
            .and_then(|_| file.rewind())
            .with_context(what)?;
        file
    } else {
        open_file(path).with_context(what)?
    };
    Recording::open(file).with_context(what)
}

/// Opens a file that can be read at any place, without waiting for what is none.
fn open_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        anyhow::bail!("it is not a regular file; a pipe is read with `-`");
    }
    Ok(file)
}

/// A recording's name for people.
pub fn shown_name(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { format!("`{}`", path.display()) }
}

/// Says how many blocks of a recording were found damaged, if any were.
pub fn say_damaged(path: &Path, blocks: u64) {
    if blocks != 0 {
        let (name, s) = (shown_name(path), if blocks == 1 { "" } else { "s" });
        say(format_args!("memtrace: {name} is damaged in part: {blocks} block{s} left out"));
    }
}

/// What of a recording is not there, in words; nothing where all is.
pub fn missing(missing: &Missing) -> Option<String> {
    let Missing { dropped, lost, stray } = *missing;
    let told = [
        (dropped, "of its oldest blocks gave way to newer ones (--max-size)"),
        (lost, "blocks in between are not there"),
        (stray, "bytes belong to no whole block, as where it was cut"),
    ];
    let told = told.into_iter().filter(|(count, _)| *count != 0);
    let told: Vec<_> = told.map(|(count, what)| format!("{count} {what}")).collect();
    (!told.is_empty()).then(|| format!("not all of it is there: {}", told.join("; ")))
}

/// A recording that is being shown.
struct Replay<'a> {
    config: &'a Config,
    source: &'a Source,
    show: Show<'a>,
    scopes: bool,
    /// How it ended, once that was seen.
    end: Option<recording::End>,
    /// What had been lost at the last look.
    counts: Counts,
    /// When the first thing in it began.
    first_ns: Option<u64>,
    /// When the last thing happened that was seen so far.
    now_ns: u64,
    /// When the present interval of histograms ends, where the recording does not say.
    interval_end_ns: Option<u64>,
    /// Whether it does: it was made with the same.
    has_intervals: bool,
    /// How many intervals are still to be shown, where that was said.
    intervals_left: Option<u32>,
    /// When as much had happened as was to be shown, once that is so.
    over_at: Option<Timestamp>,
    damaged: u64,
}

impl Replay<'_> {
    /// Shows the blocks, and counts them as they are done.
    fn blocks(&mut self, recording: &Recording, done: &AtomicU64) -> Result<Reader> {
        for place in &recording.places {
            done.fetch_add(1, Ordering::Relaxed);
            let Ok(block) = recording.block(place) else {
                self.damaged += 1;
                continue;
            };
            let reader = self.block(&block)?;
            if reader == Reader::Gone || self.over_at.is_some() {
                return Ok(reader);
            }
        }
        Ok(Reader::Ready)
    }

    /// Shows a block.
    fn block(&mut self, block: &Block) -> Result<Reader> {
        self.show.names.clock = WallClock::from_epoch(timestamp(block.epoch_ns()));
        block.teach(&mut self.show.names);
        let ended = block.items(|item, user_names| {
            user_names.teach(&mut self.show.names);
            self.item(item);
            match self.show.deliver() {
                Ok(Reader::Gone) => ControlFlow::Break(Ok(Reader::Gone)),
                Ok(reader) if self.over_at.is_some() => ControlFlow::Break(Ok(reader)),
                Ok(_) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(Err(error)),
            }
        });
        match ended {
            ControlFlow::Break(ended) => ended,
            ControlFlow::Continue(()) => Ok(Reader::Ready),
        }
    }

    fn item(&mut self, item: Item) {
        match item {
            Item::Event(event) => {
                let at_ns = end_ns(&event);
                self.time(at_ns);
                if self.over_at.is_none() && self.is_wanted(&event) {
                    self.show.take(event);
                }
            }
            Item::Note(Note::Clock(epoch_ns)) => {
                self.show.names.clock = WallClock::from_epoch(timestamp(epoch_ns));
            }
            Item::Note(Note::State(target, state)) => {
                if let Some(Shown { states: StateSource::Recorded(said), .. }) =
                    &mut self.show.episodes
                {
                    said.insert(target, state);
                }
            }
            Item::Note(Note::Settled(Settled { now_ns, held })) => {
                self.time(now_ns);
                let begun = |tid| held.iter().find(|(held, _)| *held == tid).map(|(_, ns)| *ns);
                self.show.expire(now_ns, begun);
            }
            Item::Note(Note::Interval(at_ns, _)) => {
                if self.has_intervals {
                    self.interval(timestamp(at_ns));
                }
            }
            Item::Note(Note::Look(Look { at_ns, counts, .. })) => {
                self.time(at_ns);
                self.counts = counts;
            }
            Item::Note(Note::End(end)) => self.end = Some(end),
            // Given as an event.
            Item::Note(Note::Oom(_)) => {}
        }
    }

    /// It is `now_ns` in the recording: shows the intervals that have ended.
    fn time(&mut self, now_ns: u64) {
        let first_ns = *self.first_ns.get_or_insert(now_ns);
        let nanoseconds =
            |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let last_ns = self
            .config
            .duration
            .map_or(u64::MAX, |duration| first_ns.saturating_add(nanoseconds(duration)));
        self.intervals(first_ns, now_ns.min(last_ns));
        if now_ns > last_ns {
            self.end_at(last_ns);
        }
        if self.over_at.is_none() {
            self.now_ns = self.now_ns.max(now_ns);
        }
    }

    /// Shows the intervals that have ended by `now_ns`, where the recording does not say when they did.
    fn intervals(&mut self, first_ns: u64, now_ns: u64) {
        let period_ns = self.config.interval_ns();
        if self.has_intervals || period_ns == 0 {
            return;
        }
        let mut end_ns = *self.interval_end_ns.get_or_insert(first_ns.saturating_add(period_ns));
        if now_ns < end_ns {
            return;
        }
        self.interval(self.show.names.clock.at(end_ns));
        // Those in which nothing happened show nothing, and count.
        let mut empty = (now_ns - end_ns) / period_ns;
        if let Some(left) = &mut self.intervals_left {
            empty = empty.min((*left).into());
            *left -= u32::try_from(empty).unwrap_or(*left);
        }
        end_ns = end_ns.saturating_add(empty.saturating_mul(period_ns));
        if self.intervals_left == Some(0) {
            self.end_at(end_ns);
        }
        self.interval_end_ns = Some(end_ns.saturating_add(period_ns));
    }

    /// Shows the interval that ends at `at`, unless it is the last of those that were asked for: the end shows that.
    fn interval(&mut self, at: Timestamp) {
        if let Some(left) = &mut self.intervals_left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.over_at = self.over_at.or(Some(at));
                return;
            }
        }
        self.show.interval(at);
    }

    /// Nothing that happens after `at_ns` is shown.
    fn end_at(&mut self, at_ns: u64) {
        if self.over_at.is_none() {
            self.over_at = Some(self.show.names.clock.at(at_ns));
        }
        self.now_ns = self.now_ns.max(at_ns);
    }

    /// Whether an event passes the filters, which the probes look after otherwise.
    fn is_wanted(&mut self, event: &Event) -> bool {
        let filter = &self.config.request.filter;
        let (pid, tid, uid, comm, cgroup_id) = match event {
            Event::Stall(it) => (it.pid, it.tid, it.uid, it.comm, it.cgroup_id),
            Event::Scope(it) => (it.pid, it.tid, it.uid, it.comm, it.cgroup_id),
            Event::Oom(it) => (it.pid, it.tid, it.uid, it.comm, it.cgroup_id),
        };
        let is_of_subject = match (event, &self.config.request.subject) {
            (Event::Scope(_), Subject::Stalls(_)) => self.scopes,
            (_, Subject::Stalls(_)) => true,
            (Event::Stall(stall), subject) => {
                stall.duration_ns >= filter.min_ns
                    && match (&stall.detail, subject) {
                        (Detail::Reclaim(it), Subject::Reclaim(kinds)) => kinds.contains(&it.kind),
                        (Detail::Compaction(it), Subject::Compaction(causes)) => {
                            causes.contains(&it.cause)
                        }
                        _ => false,
                    }
            }
            (Event::Scope(_) | Event::Oom(_), _) => false,
        };
        is_of_subject
            && filter.passes(pid, tid, uid, comm)
            && self.source.cgroup.as_ref().is_none_or(|wanted| {
                let path = cgroup_id.and_then(|id| self.show.names.cgroups.path(id));
                path.is_some_and(|path| is_below(path, wanted))
            })
    }

    fn finish(mut self, recording: &Recording, mut reader: Reader) -> Result<()> {
        self.show.finish();
        let is_cut = self.end.is_none() && self.over_at.is_none();
        let ended = self.end.take().unwrap_or_else(|| recording::End {
            at_ns: since_1970_ns(
                self.over_at.unwrap_or_else(|| self.show.names.clock.at(self.now_ns)),
            ),
            duration_ns: self.now_ns.saturating_sub(self.first_ns.unwrap_or(self.now_ns)),
            counts: self.counts,
            ..recording::End::default()
        });
        // Of what came before nothing is known any more.
        let has_all = recording.missing.dropped == 0;
        let kept_ns = self.now_ns.saturating_sub(self.first_ns.unwrap_or(self.now_ns));
        let duration_ns = if has_all { ended.duration_ns } else { kept_ns };
        let ended = recording::End { duration_ns, ..ended };
        let at = timestamp(ended.at_ns);
        let summary = ended.summary(self.show.stalls);
        let coverage = match &self.config.request.subject {
            Subject::Stalls(stalls) => {
                let mut coverage = recording.meta.coverage().only(&stalls.kinds);
                for kind in recording.meta.kinds_left_out(&stalls.kinds) {
                    coverage.add_lacking(kind, "not recorded");
                }
                coverage
            }
            Subject::Reclaim(_) | Subject::Compaction(_) => Coverage::default(),
        };
        let gone = |pid| ended.gone.contains(&pid);
        let certify = |shown: &Shown| shown.certificates(&coverage, &summary, 0, gone);
        let mut certificates = self.show.episodes.as_ref().map(certify).unwrap_or_default();
        for certificate in &mut certificates {
            certificate.filtered |= !recording.meta.has_all_of(certificate.pid);
        }
        let ended = Ended { summary, coverage: &coverage, certificates };
        if reader != Reader::Gone {
            self.show.last_interval(at);
            reader = self.show.deliver()?;
        }
        self.show.end(at, &ended);
        if reader != Reader::Gone {
            reader = self.show.output.deliver_all()?;
        }
        say_damaged(&self.source.path, self.damaged);
        if is_cut && reader != Reader::Gone {
            say(format_args!(
                "memtrace: {}: it has no end, as where memtrace was killed: what was lost is known up to its last look only",
                shown_name(&self.source.path)
            ));
        }
        self.show.say_end(&ended);
        self.show.write_flame()
    }
}

fn end_ns(event: &Event) -> u64 {
    match event {
        Event::Stall(stall) => stall.start_ns.saturating_add(stall.duration_ns),
        Event::Scope(scope) => scope.start_ns.saturating_add(scope.duration_ns),
        Event::Oom(oom) => oom.at_ns,
    }
}

/// Whether a cgroup is the wanted one or below it.
fn is_below(path: &[u8], wanted: &[u8]) -> bool {
    let wanted = wanted.strip_suffix(b"/").unwrap_or(wanted);
    path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_below_itself_and_those_above() {
        assert!(is_below(b"/a/b", b"/a"));
        assert!(is_below(b"/a/b", b"/a/b"));
        assert!(is_below(b"/a/b", b"/a/b/"));
        assert!(is_below(b"/a/b", b"/"));
        assert!(!is_below(b"/ab", b"/a"));
        assert!(!is_below(b"/a", b"/a/b"));
    }

    #[test]
    fn only_what_is_missing_is_told() {
        assert_eq!(missing(&Missing::default()), None);
        let line = missing(&Missing { lost: 2, ..Missing::default() }).expect("some are missing");
        assert_eq!(line, "not all of it is there: 2 blocks in between are not there");
    }
}
