//! One run: from attaching the probes to the summary.

use std::{
    cell::RefCell,
    future::pending,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use memtrace::{
    clock::{WallClock, monotonic_ns},
    histogram::By,
    kernel::{Kernel, preflight::Facts},
    live::{self, Event, Live},
    names::Names,
    recording::{
        self, Note, Recorder, Settled,
        meta::{since_1970_ns, timestamp},
    },
    symbols,
    view::Summary,
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
    episodes::{Shown, StateSource},
    helper::Helper,
    limits,
    output::{self, Reader, say},
    privileges, protect, replay,
    show::{Ended, Flame, Show},
    tape::{self, Tape, TapeFile},
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
    if let Some(source) = &config.source {
        return replay::run(config, source);
    }
    let asks = config.request.user_stacks;
    let more = if config.record.is_some() { protect::HEAP_FOR_RECORDING } else { 0 };
    run_loop(config.verbosity, asks, more, async |helper, stop| {
        Box::pin(Run::start(config, helper)?.trace(stop)).await
    })
}

/// Runs what waits for the probes, with the helper that names functions of programs where there are to be such, and
/// the signals that end it. It takes `more` bytes of memory than tracing does. Must be called while this process has one thread.
pub fn run_loop(
    verbosity: Verbosity,
    names_programs: bool,
    more: usize,
    work: impl AsyncFnOnce(Option<OwnedFd>, &mut Stop) -> Result<()>,
) -> Result<()> {
    limits::check(more)?;
    if verbosity == Verbosity::Verbose {
        env_logger::Builder::new()
            .filter_module("memtrace", log::LevelFilter::Debug)
            .format_target(false)
            .init();
    }
    // While there is one thread.
    let helper = (names_programs && symbols::can_look()).then(Helper::start);
    let helper = helper.transpose().context("cannot start a process to find names of functions")?;
    let (helper, socket) = helper.unzip();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let done = runtime.block_on(async {
        // Before the probes are attached, which takes a while.
        let mut stop = Stop::listen()?;
        work(socket, &mut stop).await
    });
    if let Some(helper) = helper {
        helper.end();
    }
    done
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
    show: Show<'a>,
    tape: Option<Tape<TapeFile>>,
    /// Why there is no recording any more.
    torn: Option<anyhow::Error>,
    /// When it is taken to be whenever something is done.
    now_ns: u64,
    began: Timestamp,
    started: Instant,
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
        let flame = Flame::prepare(config)?;
        protect::give_back();
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
        let records = config.record.is_some();
        let states = if records { StateSource::Kept(Vec::new()) } else { StateSource::Live };
        let live = Live::start(&config.request, &kernel)?;
        let started = Instant::now();
        drop(kernel);
        let (began, now_ns) = (Timestamp::now(), monotonic_ns());
        let file = config.record.as_ref().map(|(path, most)| {
            let mut meta =
                tape::describe(&config.request, (&config.what, &config.filters), &live, &names);
            meta.began_ns = since_1970_ns(began);
            meta.interval_ns = config.interval_ns();
            anyhow::Ok((TapeFile::create(path, &meta, *most)?, meta.scopes, *most))
        });
        let file = file.transpose()?;
        // As it is going to be read.
        let began = if records { timestamp(since_1970_ns(began)) } else { began };
        let keys = config.view.histogram.map(|histogram| histogram.max_keys);
        let stacks = config.flame.as_ref().map(|(_, folded)| *folded).or(config.view.folded);
        let keys = keys.or(stacks.map(|folded| folded.max_stacks)).unwrap_or_default();
        protect::reserve(keys, records);
        // Of what was reserved.
        let tape = file.map(|(file, scopes, most)| {
            Tape::new(file, Recorder::new(&names, scopes, 0, now_ns).for_size(most), false)
        });
        let show = Show::new(config, names, flame, tells_functions, states);
        let run = Self { config, live, show, tape, torn: None, now_ns, began, started };
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
        if let Some(flame) = self.show.flame_file() {
            kept |= flame.needs();
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
        self.show.begin(self.began);
        let mut reader = self.show.output.flush()?;
        let mut waiting = Ring::Dry;
        let end = loop {
            if reader == Reader::Gone {
                break End::ReaderGone;
            }
            let can_show = waiting == Ring::More && self.show.has_room()
                || !self.show.is_shown() && self.show.output.has_room();
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
                    // While the reader has not taken the last one, this one goes on: they would pile up.
                    if !self.show.is_shown() || !self.show.output.has_room() {
                        continue;
                    }
                    self.show_all()?;
                    self.take_tallies()?;
                    self.end_interval(since_1970_ns(Timestamp::now()));
                    reader = self.show.output.flush()?;
                    continue;
                }
                _ = look.tick() => {
                    self.live.flush_log();
                    if clocks.elapsed() >= COMPARE_CLOCKS_EVERY {
                        clocks = Instant::now();
                        self.set_clock();
                    }
                    self.tick_tape()?;
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
            self.show.show_more();
            if waiting == Ring::Dry || !self.show.output.has_room() {
                reader = self.show.output.flush()?;
            }
        };
        self.end(end, stop).await
    }

    /// Takes what the probes have counted.
    fn take_tallies(&mut self) -> Result<()> {
        let Self { live, show, .. } = self;
        live.take_tallies(|tallied| show.tallied(&tallied))
            .context("cannot take what the probes have counted")
    }

    /// Shows up to `limit` of the stalls that wait, as far as there is room.
    fn show(&mut self, limit: usize) -> Result<Ring> {
        let mut dry_ns = None;
        for _ in 0..limit {
            if !self.show.has_room() && self.show.output.flush()? != Reader::Ready {
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
                    self.now_ns = now_ns;
                    self.expire(now_ns);
                    return Ok(Ring::Dry);
                }
            }
        }
        Ok(Ring::More)
    }

    fn take(&mut self, mut event: Event) {
        if let Event::Oom(oom) = &mut event {
            // Before 6.8 the kernel tells the number only; the victim is still there, unless it is soon gone.
            oom.victim_comm = oom.victim_comm.or_else(|| tape::comm_of(oom.victim_pid).ok());
        }
        let Some(tape) = &mut self.tape else { return self.show.take(event) };
        tape.name_stacks(&event, &mut self.show.names);
        self.show.take(event.clone());
        self.record_states();
        let now_ns = self.now_ns;
        self.on_tape(|tape, names| tape.event(&event, names, now_ns));
    }

    /// Ends the episodes to which nothing was added up to `now_ns`.
    fn expire(&mut self, now_ns: u64) {
        if !self.show.waits(now_ns) {
            return;
        }
        let held = RefCell::new(Vec::new());
        let live = &self.live;
        self.show.expire(now_ns, |tid| {
            let begun_ns = live.begun_ns(tid)?;
            held.borrow_mut().push((tid, begun_ns));
            Some(begun_ns)
        });
        self.record_states();
        let settled = Settled { now_ns, held: held.into_inner() };
        self.note(&Note::Settled(settled));
    }

    /// Records what was asked of the running kernel meanwhile.
    fn record_states(&mut self) {
        let Some(shown) = &mut self.show.episodes else { return };
        let StateSource::Kept(said) = &mut shown.states else { return };
        for (target, state) in said.drain(..) {
            if let Some(tape) = &mut self.tape {
                tape.note(&Note::State(target, state));
            }
        }
    }

    fn note(&mut self, note: &Note) {
        if let Some(tape) = &mut self.tape {
            tape.note(note);
        }
    }

    /// Does something to the recording, if there is one. Once that fails there is none any more.
    fn on_tape(&mut self, something: impl FnOnce(&mut Tape<TapeFile>, &mut Names) -> Result<()>) {
        let Some(tape) = &mut self.tape else { return };
        if let Err(error) = something(tape, &mut self.show.names) {
            say(format_args!("memtrace: {error:#}"));
            self.torn = Some(error);
            self.tape = None;
        }
    }

    /// Looks at the system and writes what waits, where there is a recording and it is time.
    fn tick_tape(&mut self) -> Result<()> {
        let Some(tape) = &mut self.tape else { return Ok(()) };
        let now_ns = monotonic_ns();
        self.now_ns = now_ns;
        if tape.must_look(now_ns) {
            let counts = tape::counts(&self.live.losses()?, 0);
            tape.look(now_ns, counts, &mut self.show.names);
        }
        self.on_tape(|tape, _| tape.tick(now_ns));
        Ok(())
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
                Ring::More => delivered = deliver(&mut self.show, end, stop).await?,
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
            given_up +=
                u64::from(self.show.episodes.is_none() || !matches!(event, Event::Stall(_)));
        }
        self.show.finish();
        self.record_states();
        self.show.stalls += given_up;
        self.live.flush_log();
        // It ended here, however long the reader takes.
        let at_ns = since_1970_ns(Timestamp::now());
        let summary = self.summary(duration)?;
        let gone = |pid: &u32| !Path::new("/proc").join(pid.to_string()).exists();
        let asked = &self.config.request.filter.processes;
        let gone: Vec<_> = asked.iter().copied().filter(gone).collect();
        let recorded = recording::End {
            at_ns,
            duration_ns: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
            counts: tape::counts(&self.live.losses()?, summary.unfinished),
            unavailable: summary.unavailable.clone(),
            gone: gone.clone(),
        };
        delivered = delivered && deliver(&mut self.show, end, stop).await?;
        let mut unshown = self.show.give_up();
        if self.config.interval.is_some() && end == End::Planned {
            self.end_interval(at_ns);
        }
        let coverage = self.live.coverage();
        let certify = |shown: &Shown| {
            shown.certificates(coverage, &summary, given_up, |pid| gone.contains(&pid))
        };
        let certificates = self.show.episodes.as_ref().map(certify).unwrap_or_default();
        let ended = Ended { summary, coverage, certificates };
        self.show.last_interval(timestamp(at_ns));
        delivered = delivered && deliver(&mut self.show, end, stop).await?;
        unshown += self.show.give_up();
        self.show.end(timestamp(at_ns), &ended);
        delivered = delivered && deliver(&mut self.show, end, stop).await?;
        self.show.say_end(&ended);
        if !delivered && end != End::ReaderGone {
            let bytes = self.show.output.lines.len();
            let given_up = given_up + unshown;
            say(format_args!(
                "memtrace: {given_up} of the stalls and {bytes} bytes of output given up, as no one read them"
            ));
        }
        self.show.write_flame()?;
        let now_ns = monotonic_ns();
        self.on_tape(|tape, names| tape.end(recorded, names, now_ns));
        self.torn.map_or(Ok(()), |_| bail!("the recording is not complete"))
    }

    fn summary(&self, duration: Duration) -> Result<Summary> {
        let losses = self.live.losses()?;
        Ok(Summary {
            stalls: self.show.stalls,
            lost: losses.lost,
            missed_begin: losses.missed_begin,
            table_full: losses.table_full,
            skipped: losses.skipped,
            unfinished: self.live.unfinished()?,
            duration,
            unavailable: self.live.unavailable().to_vec(),
        })
    }

    /// Shows the histograms of the interval that ends at `at_ns`.
    fn end_interval(&mut self, at_ns: i64) {
        self.show.interval(timestamp(at_ns));
        self.note(&Note::Interval(at_ns, self.config.interval_ns()));
    }

    /// Compares the clocks.
    fn set_clock(&mut self) {
        let epoch_ns = since_1970_ns(WallClock::now().epoch());
        self.show.names.clock = WallClock::from_epoch(timestamp(epoch_ns));
        let show = &self.show;
        if let Some(tape) = &mut self.tape {
            tape.clock(&show.names);
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

/// Writes all that waits; whether the reader took it. After a planned end it may take its
/// time, as nothing is attached any more, until a signal says that it is enough.
async fn deliver(show: &mut Show<'_>, end: End, stop: &mut Stop) -> Result<bool> {
    let mut since = Instant::now();
    let mut left = show.output.lines.len();
    loop {
        match show.output.flush()? {
            Reader::Ready if show.is_shown() => return Ok(true),
            Reader::Ready | Reader::Busy => {}
            Reader::Gone => return Ok(false),
        }
        show.show_more();
        if show.output.lines.len() != left {
            left = show.output.lines.len();
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

/// Waits for the next interval; for ever where there are none.
async fn tick(intervals: &mut Option<Interval>) {
    match intervals {
        Some(intervals) => drop(intervals.tick().await),
        None => pending().await,
    }
}
