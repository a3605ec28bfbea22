//! One run: from attaching the probes to the summary.

use std::{
    future::pending,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use memtrace::{
    clock::{WallClock, monotonic_ns},
    histogram::By,
    kernel::{Kernel, preflight::Facts},
    live::{self, Event, Live},
    names::Names,
    symbols,
    view::{Folded, Summary, View},
};
use rustix::thread::CapabilitySet;
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{Signal, SignalKind, signal},
    task::yield_now,
    time::{Interval, MissedTickBehavior, interval, interval_at, sleep},
};

use crate::{
    config::{Config, Verbosity},
    episodes::{Shown, say_coverage},
    flame::FlameFile,
    helper::Helper,
    limits,
    output::{self, Output, Reader, say},
    privileges, protect,
};

/// How often to look at the ring buffer although the probes have not called. They call only when a
/// good part of it is full, as calls cost them more than all the rest.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same where a program is to be looked into, as some are soon gone.
const LOOK_AT_PROGRAMS_EVERY: Duration = Duration::from_millis(10);
/// How often to ask a reader that was busy.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// How long a reader may be busy after a signal to stop, before what it has not taken is given up.
const PATIENCE: Duration = Duration::from_secs(1);
/// Stalls to show before looking whether it is time to stop.
const BATCH: usize = 1024;
/// How often to compare the clocks, as the time of day can be set.
const COMPARE_CLOCKS_EVERY: Duration = Duration::from_secs(1);
/// How often to take what the probes have counted: before their table is full, at most rates.
const TAKE_EVERY: Duration = Duration::from_secs(1);
/// The same where it has to be found out which cgroup has an id, as some are soon gone.
const TAKE_CGROUPS_EVERY: Duration = Duration::from_millis(200);

/// Traces as `config` says.
pub fn run(config: &Config) -> Result<()> {
    limits::check()?;
    if config.verbosity == Verbosity::Verbose {
        env_logger::Builder::new()
            .filter_module("memtrace", log::LevelFilter::Debug)
            .format_target(false)
            .init();
    }
    // While there is one thread.
    let helper = (config.request.user_stacks && symbols::can_look()).then(Helper::start);
    let helper = helper.transpose().context("cannot start a process to find names of functions")?;
    let (helper, socket) = helper.unzip();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let traced = runtime.block_on(async {
        // Before the probes are attached, which takes a while.
        let mut stop = Stop::listen()?;
        Run::start(config, socket)?.trace(&mut stop).await
    });
    if let Some(helper) = helper {
        helper.end();
    }
    traced
}

/// The signals that end a run in good order.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// Not where it is ignored, as under nohup.
    hang_up: Option<Signal>,
}

impl Stop {
    pub fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let hang_up =
            if is_ignored(libc::SIGHUP) { None } else { Some(listen(SignalKind::hangup())?) };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up,
        })
    }

    /// Waits for one of them.
    pub async fn wait(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => drop(signal.recv().await),
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hang_up => {}
        }
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with no new action the call only writes the present one to the place it is given.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    if asked != 0 {
        return false;
    }
    // SAFETY: the call succeeded, and so has written it.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// A run in progress.
struct Run<'a> {
    config: &'a Config,
    live: Live,
    names: Names,
    view: View,
    flame: Option<Flame>,
    output: Output,
    /// Where rounds make episodes.
    episodes: Option<Shown>,
    stalls: u64,
    started: Instant,
}

/// A flame graph in the making.
struct Flame {
    file: FlameFile,
    /// Nothing where the view has the same.
    folded: Option<Folded>,
}

/// Whether the ring buffer has more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ring {
    Dry,
    More,
}

/// Why a run ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The time or the number of intervals that was asked for is over.
    Planned,
    /// A signal.
    Signal,
    /// No one reads on.
    ReaderGone,
}

impl<'a> Run<'a> {
    fn start(config: &'a Config, helper: Option<OwnedFd>) -> Result<Self> {
        Facts::gather().check()?;
        let flame = config.flame.as_ref().map(|(path, options)| {
            let file = FlameFile::prepare(path, format!("Time held up in {}", config.what))?;
            let folded = config.view.folded.is_none().then(|| Folded::new(*options));
            anyhow::Ok(Flame { file, folded })
        });
        let flame = flame.transpose()?;
        let kernel = Kernel::running(&live::tracepoints())?;
        let mut names = live::names(&kernel);
        if let Some(helper) = helper {
            names.symbols.ask(helper);
        }
        let tells_functions = config.episodes.as_ref().is_some_and(|options| options.scopes);
        if config.request.stacks || tells_functions {
            // Takes long, some memory, and privileges.
            names.symbols.read();
        }
        let live = Live::start(&config.request, &kernel)?;
        let started = Instant::now();
        drop(kernel);
        let keys = config.view.histogram.map(|histogram| histogram.max_keys);
        let stacks = config.flame.as_ref().map(|(_, folded)| *folded).or(config.view.folded);
        protect::reserve(keys.or(stacks.map(|folded| folded.max_stacks)).unwrap_or_default());
        let run = Self {
            config,
            live,
            names,
            view: View::new(config.view.clone()),
            flame,
            output: Output::new(),
            episodes: config.episodes.as_ref().map(|options| Shown::new(options, &config.request)),
            stalls: 0,
            started,
        };
        let protection = protect::protect();
        run.give_up_privileges()?;
        if config.verbosity == Verbosity::Verbose {
            say(format_args!("memtrace: {protection}"));
        }
        Ok(run)
    }

    fn give_up_privileges(&self) -> Result<()> {
        let mut kept = CapabilitySet::empty();
        if self.config.request.cgroups {
            // Finds cgroups by their ids.
            kept |= CapabilitySet::DAC_READ_SEARCH;
        }
        if let Some(flame) = &self.flame {
            kept |= flame.file.needs();
        }
        let works = || self.live.losses().is_ok() && self.live.unfinished().is_ok();
        privileges::give_up(kept, works).context("cannot give up privileges")
    }

    async fn trace(mut self, stop: &mut Stop) -> Result<()> {
        // A descriptor of its own, so that the ring buffer can be read while this one waits.
        let ring = self.live.ring_descriptor().context("cannot wait for the probes")?;
        // SAFETY: the descriptor is open, owned, and moved in to stay until the end.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .context("cannot wait for the probes")?;
        let looks_at_programs = self.config.request.user_stacks;
        let mut look =
            interval(if looks_at_programs { LOOK_AT_PROGRAMS_EVERY } else { LOOK_EVERY });
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let [mut clocks, mut taken] = [Instant::now(); 2];
        let take_every = match self.config.request.tell_apart {
            Some(By::Cgroup) => TAKE_CGROUPS_EVERY,
            _ => TAKE_EVERY,
        };
        let mut intervals = self.config.interval.map(|period| {
            let mut intervals = interval_at(tokio::time::Instant::now() + period, period);
            intervals.set_missed_tick_behavior(MissedTickBehavior::Skip);
            intervals
        });
        let mut intervals_left = self.config.count;
        let deadline = async {
            match self.config.duration {
                Some(duration) => sleep(duration).await,
                None => pending().await,
            }
        };
        tokio::pin!(deadline);

        self.introduce();
        self.view.begin(Timestamp::now(), &mut self.output.lines);
        let mut reader = self.output.flush()?;
        let mut waiting = Ring::Dry;
        let end = loop {
            if reader == Reader::Gone {
                break End::ReaderGone;
            }
            let can_show = waiting == Ring::More && self.output.has_room();
            tokio::select! {
                biased;
                () = stop.wait() => break End::Signal,
                () = &mut deadline => break End::Planned,
                () = tick(&mut intervals) => {
                    if let Some(left) = &mut intervals_left {
                        *left -= 1;
                        if *left == 0 {
                            // The end shows the last one, with what comes in until then.
                            break End::Planned;
                        }
                    }
                    self.show_all()?;
                    self.take_tallies()?;
                    self.view.interval(&mut self.names, Timestamp::now(), &mut self.output);
                    reader = self.output.flush()?;
                    continue;
                }
                _ = look.tick() => {
                    self.live.flush_log();
                    if clocks.elapsed() >= COMPARE_CLOCKS_EVERY {
                        clocks = Instant::now();
                        self.names.clock = WallClock::now();
                    }
                    if taken.elapsed() >= take_every {
                        taken = Instant::now();
                        self.take_tallies()?;
                    }
                    if output::is_gone() {
                        break End::ReaderGone;
                    }
                }
                ready = ring.readable() => ready.context("cannot wait for the probes")?.clear_ready(),
                () = sleep(ASK_EVERY), if reader == Reader::Busy => {}
                () = yield_now(), if can_show => {}
            }
            waiting = self.show(BATCH)?;
            if waiting == Ring::Dry || !self.output.has_room() {
                reader = self.output.flush()?;
            }
        };
        self.end(end, stop).await
    }

    /// Takes what the probes have counted.
    fn take_tallies(&mut self) -> Result<()> {
        let Self { live, view, names, stalls, .. } = self;
        live.take_tallies(|tallied| {
            *stalls += tallied.tally.count;
            view.tallied(&tallied, names);
        })
        .context("cannot take what the probes have counted")
    }

    /// Shows up to `limit` of the stalls that wait, as far as there is room.
    fn show(&mut self, limit: usize) -> Result<Ring> {
        let mut dry_ns = None;
        for _ in 0..limit {
            if !self.output.has_room() && self.output.flush()? != Reader::Ready {
                return Ok(Ring::More);
            }
            match (self.live.next_event()?, dry_ns) {
                (Some(event), _) => {
                    dry_ns = None;
                    self.take(event);
                }
                // Whatever ended before this time is found by the next look. Not read for each event: the clock is a
                // system call in a static program.
                (None, None) => dry_ns = Some(monotonic_ns()),
                (None, Some(now_ns)) => {
                    self.expire(now_ns);
                    return Ok(Ring::Dry);
                }
            }
        }
        Ok(Ring::More)
    }

    fn take(&mut self, event: Event) {
        let Self { view, names, output, episodes, stalls, flame, .. } = self;
        match (event, episodes) {
            (Event::Stall(stall), None) => {
                *stalls += 1;
                view.stall(&stall, names, &mut output.lines);
                if let Some(Flame { folded: Some(folded), .. }) = flame {
                    folded.stall(&stall, names);
                }
            }
            (Event::Stall(stall), Some(shown)) => shown.episodes.round(stall),
            (Event::Scope(scope), Some(shown)) => shown.episodes.scope(scope, &mut names.symbols),
            (Event::Oom(oom), Some(shown)) => {
                *stalls += shown.oom(oom, view, names, &mut output.lines);
            }
            // Nobody asked for them.
            (Event::Scope(_) | Event::Oom(_), None) => {}
        }
        self.show_episodes();
    }

    /// Ends the episodes to which nothing was added up to `now_ns`.
    fn expire(&mut self, now_ns: u64) {
        if let Some(shown) = &mut self.episodes {
            shown.episodes.expire(now_ns, |tid| self.live.begun_ns(tid));
        }
        self.show_episodes();
        let Self { view, names, output, episodes, .. } = self;
        if let Some(shown) = episodes {
            shown.show_verdicts(now_ns, view, names, &mut output.lines);
        }
    }

    fn show_episodes(&mut self) {
        let Self { view, names, output, episodes, stalls, flame, .. } = self;
        let mut folded = flame.as_mut().and_then(|flame| flame.folded.as_mut());
        if let Some(shown) = episodes {
            *stalls += shown.show(view, names, &mut output.lines, |episode, names| {
                if let Some(folded) = &mut folded {
                    folded.episode(episode, names);
                }
            });
        }
    }

    /// Shows all stalls that wait, but not for ever those that keep coming.
    fn show_all(&mut self) -> Result<Ring> {
        self.show(self.config.request.buffer_size as usize)
    }

    async fn end(mut self, end: End, stop: &mut Stop) -> Result<()> {
        let duration = self.started.elapsed();
        self.live.detach();
        let detached = Instant::now();
        let mut delivered = true;
        loop {
            match self.show_all()? {
                Ring::More => delivered = self.deliver(end, stop).await?,
                // A probe that was running may still be writing.
                Ring::Dry if !self.live.is_drained() && detached.elapsed() < PATIENCE => {
                    sleep(ASK_EVERY).await;
                }
                Ring::Dry => break,
            }
            if !delivered {
                break;
            }
        }
        self.take_tallies()?;
        let mut given_up: u64 = 0;
        while !delivered && let Some(event) = self.live.next_event()? {
            // Where there are episodes, what is in a scope is no stall of its own.
            given_up += u64::from(self.episodes.is_none() || !matches!(event, Event::Stall(_)));
        }
        if let Some(shown) = &mut self.episodes {
            shown.episodes.end();
            self.show_episodes();
        }
        self.stalls += given_up;
        self.live.flush_log();
        if self.config.interval.is_some() && end == End::Planned {
            self.view.interval(&mut self.names, Timestamp::now(), &mut self.output);
        }
        let losses = self.live.losses()?;
        let summary = Summary {
            stalls: self.stalls,
            lost: losses.lost,
            missed_begin: losses.missed_begin,
            table_full: losses.table_full,
            skipped: losses.skipped,
            unfinished: self.live.unfinished()?,
            duration,
            unavailable: self.live.unavailable().to_vec(),
        };
        let coverage = self.live.coverage();
        let shown = self.episodes.as_ref();
        let certificates = shown.map(|it| it.certificates(coverage, &summary, given_up));
        let certificates = certificates.unwrap_or_default();
        self.view.coverage(coverage, &certificates, Timestamp::now(), &mut self.output.lines);
        self.view.end(&mut self.names, Timestamp::now(), &summary, &mut self.output);
        delivered = delivered && self.deliver(end, stop).await?;
        if self.config.verbosity != Verbosity::Quiet || !summary.is_complete() {
            say(&summary);
        }
        if self.episodes.is_some() && self.config.verbosity != Verbosity::Quiet {
            say_coverage(self.live.coverage());
            certificates.iter().for_each(say);
        }
        if !delivered && end != End::ReaderGone {
            let bytes = self.output.lines.len();
            say(format_args!(
                "memtrace: {given_up} of the stalls and {bytes} bytes of output given up, as no one read them"
            ));
        }
        self.write_flame()
    }

    /// Writes the flame graph, if one was asked for and there is anything in it.
    fn write_flame(&self) -> Result<()> {
        let Some(Flame { file, folded }) = &self.flame else { return Ok(()) };
        let of_view = if let View::Folded(folded) = &self.view { Some(folded) } else { None };
        folded.as_ref().or(of_view).map_or(Ok(()), |folded| file.write(folded))
    }

    /// Writes what waits; whether the reader took all of it. After a planned end it may take its
    /// time, as nothing is attached any more, until a signal says that it is enough.
    async fn deliver(&mut self, end: End, stop: &mut Stop) -> Result<bool> {
        let mut since = Instant::now();
        let mut left = self.output.lines.len();
        loop {
            match self.output.flush()? {
                Reader::Ready => return Ok(true),
                Reader::Gone => return Ok(false),
                Reader::Busy => {}
            }
            if self.output.lines.len() != left {
                left = self.output.lines.len();
                since = Instant::now();
            }
            if end == End::Signal && since.elapsed() >= PATIENCE {
                return Ok(false);
            }
            tokio::select! {
                () = stop.wait() => return Ok(false),
                () = sleep(ASK_EVERY) => {}
            }
        }
    }

    /// Says what is traced and how to stop.
    fn introduce(&self) {
        let verbosity = self.config.verbosity;
        if verbosity == Verbosity::Quiet {
            return;
        }
        let until = match self.config.duration {
            Some(duration) => format!("for {} s, or until", duration.as_secs_f64()),
            None => "until".to_owned(),
        };
        say(format_args!("Tracing {} {until} Ctrl-C...", self.config.what));
        if verbosity == Verbosity::Verbose {
            say(format_args!("memtrace: attached to {}", self.live.attached().join(", ")));
            if self.config.request.tell_apart.is_some() && !self.live.counts() {
                say(
                    "memtrace: each stall goes through the buffer, as this kernel cannot count them exactly",
                );
            }
            for feature in self.live.unavailable() {
                say(format_args!("memtrace: not available on this kernel: {feature}"));
            }
        }
    }
}

/// Waits for the next interval; for ever where there are none.
async fn tick(intervals: &mut Option<Interval>) {
    match intervals {
        Some(intervals) => drop(intervals.tick().await),
        None => pending().await,
    }
}
