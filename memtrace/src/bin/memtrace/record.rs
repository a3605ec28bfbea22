//! Records without showing anything.

use std::{
    future::pending,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use memtrace::{
    clock::{WallClock, monotonic_ns},
    episode::Episodes,
    kernel::{Kernel, preflight::Facts},
    kind::Kind,
    live::{self, Event, Live},
    names::Names,
    recording::{
        Counts, End, Flight, Looker, Meta, Note, Recorder, Settled,
        meta::{since_1970_ns, timestamp},
    },
    trigger::{Cause, Trigger, Watch},
    view::Summary,
};
use rustix::thread::CapabilitySet;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    config::{FlightConfig, RecordConfig, Verbosity},
    episodes::say_coverage,
    flight::{self, Files, Lost},
    ids::Ids,
    output::say,
    privileges, protect,
    tape::{self, Sink, Tape, TapeFile},
    trace::{Stop, run_loop},
};

/// How often to look at the ring buffer although the probes have not called.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same where a program is to be looked into, as some are soon gone.
const LOOK_AT_PROGRAMS_EVERY: Duration = Duration::from_millis(10);
/// How often to compare the clocks, as the time of day can be set.
const COMPARE_CLOCKS_EVERY: Duration = Duration::from_secs(1);
/// Stalls to take before looking whether it is time to stop.
const BATCH: usize = 4096;
/// Rounds less than this apart are one episode to the trigger, as `memtrace stalls` has it unless told otherwise.
const GAP_NS: u64 = 1_000_000;
/// How long a probe that was running may take to deliver.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most threads of which it is asked whether they are held up again: each costs a look into a table.
const MOST_ASKED: usize = 256;

/// Records as `config` says.
pub fn run(config: &RecordConfig) -> Result<()> {
    let memory = config.flight.as_ref().map_or(0, |flight| flight.memory + flight::AT_ONCE);
    let more = protect::HEAP_FOR_RECORDING + memory;
    run_loop(config.verbosity, config.request.user_stacks, more, async |helper, stop| {
        Box::pin(Run::start(config, helper)?.record(stop)).await
    })
}

/// Where blocks go.
enum Destination {
    /// All of them into one file.
    File(TapeFile),
    /// Into memory, and from there into a file when something happens.
    Flight(Box<FlightRecorder>),
}

impl Sink for Destination {
    fn block(&mut self, block: &[u8], now_ns: u64) -> Result<()> {
        match self {
            Self::File(file) => file.block(block, now_ns),
            Self::Flight(recorder) => {
                recorder.flight.push(block, now_ns);
                Ok(())
            }
        }
    }
}

/// What a flight recorder has.
struct FlightRecorder {
    flight: Flight,
    files: Files,
    watch: Watch,
    /// What the trigger looks at: how long threads are held up, in however many rounds.
    episodes: Episodes,
    needs_psi: bool,
    /// What files begin with.
    meta: Meta,
    lost: Lost,
    /// How far back the present file reaches.
    since_ns: u64,
}

impl FlightRecorder {
    fn new(config: &FlightConfig, files: Files, meta: Meta, now_ns: u64) -> Self {
        let scopes = meta.scopes;
        Self {
            flight: Flight::new(config.memory, config.before, now_ns),
            files,
            watch: Watch::new(&config.trigger),
            episodes: Episodes::new(GAP_NS, scopes),
            needs_psi: config.trigger.needs_psi(),
            meta,
            lost: Lost::default(),
            since_ns: now_ns,
        }
    }

    /// Takes note of what had been lost until then.
    fn lost(&mut self, now_ns: u64, counts: Counts) {
        let is_writing = self.files.is_writing();
        let since_ns = if is_writing { self.since_ns } else { self.flight.since_ns() };
        self.lost.note(now_ns, counts, since_ns);
    }

    /// Takes an event, recorded or not, as a short round may be a part of a long episode.
    fn event(&mut self, event: &Event, names: &mut Names) {
        match event {
            Event::Stall(stall) => self.episodes.round(stall.clone()),
            Event::Scope(scope) => self.episodes.scope(scope.clone(), &mut names.symbols),
            Event::Oom(_) => {}
        }
        while self.episodes.next_evidence().is_some() {}
    }

    /// What makes the trigger fire next, of the episodes that have ended: those that `memtrace stalls` would show.
    fn next_cause(&mut self, config: &RecordConfig) -> Option<Cause> {
        while let Some(episode) = self.episodes.next_finished() {
            let is_shown = episode.duration_ns >= config.min_ns && episode.is_of_any(&config.kinds);
            if is_shown && let Some(cause) = self.watch.stall(episode.end_ns, episode.duration_ns) {
                return Some(cause);
            }
        }
        None
    }

    /// How the present file ends.
    fn end(&self, now_ns: u64, at_ns: i64, counts: Counts, unavailable: Vec<String>) -> End {
        End {
            at_ns,
            duration_ns: now_ns.saturating_sub(self.since_ns),
            counts: self.lost.since(self.since_ns, counts),
            unavailable,
            gone: Vec::new(),
        }
    }
}

/// A recording in progress.
struct Run<'a> {
    config: &'a RecordConfig,
    live: Live,
    names: Names,
    tape: Tape<Destination>,
    /// Threads that were held up since all was last taken.
    recent: Ids<u32>,
    stalls: u64,
    now_ns: u64,
    started: Instant,
}

impl<'a> Run<'a> {
    fn start(config: &'a RecordConfig, helper: Option<OwnedFd>) -> Result<Self> {
        Facts::gather().check()?;
        let files = config.flight.as_ref().map(|flight| Files::prepare(flight.files.clone()));
        let files = files.transpose()?;
        protect::give_back();
        let kernel = Kernel::running(&live::tracepoints())?;
        let mut names = live::names(&kernel);
        if let Some(helper) = helper {
            names.symbols.ask(helper);
        }
        names.clock = WallClock::from_epoch(timestamp(since_1970_ns(names.clock.epoch())));
        if config.request.stacks || config.scopes {
            names.symbols.read();
        }
        let live = Live::start(&config.request, &kernel)?;
        let started = Instant::now();
        drop(kernel);
        let now_ns = monotonic_ns();
        let meta = Meta {
            scopes: config.scopes,
            ..tape::describe(&config.request, (&config.what, &config.filters), &live, &names)
        };
        let mut kept = CapabilitySet::DAC_READ_SEARCH;
        let destination = match (&config.flight, files) {
            (Some(flight), Some(files)) => {
                check_trigger(&flight.trigger, &live)?;
                kept |= files.needs();
                let recorder = FlightRecorder::new(flight, files, meta, now_ns);
                Destination::Flight(Box::new(recorder))
            }
            _ => Destination::File(TapeFile::create(&config.output, &meta, config.max_size)?),
        };
        protect::reserve(0, true);
        // Of what was reserved.
        let recorder = Recorder::new(&names, config.scopes, config.min_ns, now_ns)
            .of_kinds(config.kinds.clone());
        let recorder = match destination {
            Destination::File(_) => recorder.for_size(config.max_size),
            Destination::Flight(_) => recorder,
        };
        let tape = Tape::new(destination, recorder, true);
        let run = Self {
            config,
            live,
            names,
            tape,
            recent: Ids::new(MOST_ASKED),
            stalls: 0,
            now_ns,
            started,
        };
        let protection = protect::protect();
        let works = || run.live.losses().is_ok() && run.live.unfinished().is_ok();
        // Finds cgroups by their ids.
        privileges::give_up(kept, works).context("cannot give up privileges")?;
        if config.verbosity == Verbosity::Verbose {
            say(format_args!("memtrace: {protection}"));
        }
        Ok(run)
    }

    async fn record(mut self, stop: &mut Stop) -> Result<()> {
        // A descriptor of its own, so that the ring buffer can be read while this one waits.
        let ring = self.live.ring_descriptor().context("cannot wait for the probes")?;
        // SAFETY: the descriptor is open, owned, and moved in to stay until the end.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .context("cannot wait for the probes")?;
        let looks_at_programs = self.config.request.user_stacks;
        let mut look =
            interval(if looks_at_programs { LOOK_AT_PROGRAMS_EVERY } else { LOOK_EVERY });
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut clocks = Instant::now();
        let deadline = async {
            match self.config.duration {
                Some(duration) => sleep(duration).await,
                None => pending().await,
            }
        };
        tokio::pin!(deadline);
        self.introduce();
        let mut has_more = false;
        loop {
            tokio::select! {
                biased;
                () = stop.wait() => break,
                () = &mut deadline => break,
                _ = look.tick() => {
                    self.live.flush_log();
                    if clocks.elapsed() >= COMPARE_CLOCKS_EVERY {
                        clocks = Instant::now();
                        let epoch_ns = since_1970_ns(WallClock::now().epoch());
                        self.names.clock = WallClock::from_epoch(timestamp(epoch_ns));
                        self.tape.clock(&self.names);
                    }
                    self.tick()?;
                }
                ready = ring.readable() => ready.context("cannot wait for the probes")?.clear_ready(),
                () = tokio::task::yield_now(), if has_more => {}
            }
            has_more = self.take(BATCH)?;
            if let Destination::Flight(recorder) = &mut self.tape.sink {
                let FlightRecorder { files, flight, .. } = &mut **recorder;
                files.write(self.now_ns, flight);
            }
        }
        self.end().await
    }

    /// Looks at the system and writes what waits, where it is time.
    fn tick(&mut self) -> Result<()> {
        let now_ns = monotonic_ns();
        self.now_ns = now_ns;
        if self.tape.must_look(now_ns) {
            let counts = tape::counts(&self.live.losses()?, 0);
            self.tape.look(now_ns, counts, &mut self.names);
            self.watch(now_ns, counts)?;
        }
        self.tick_files(now_ns)?;
        self.tape.tick(now_ns)
    }

    /// Has the trigger look at the time and the pressure.
    fn watch(&mut self, now_ns: u64, counts: Counts) -> Result<()> {
        let needs_psi =
            matches!(&self.tape.sink, Destination::Flight(recorder) if recorder.needs_psi);
        let pressure = if needs_psi { self.tape.pressure().map(str::to_owned) } else { None };
        let Destination::Flight(recorder) = &mut self.tape.sink else { return Ok(()) };
        recorder.lost(now_ns, counts);
        match recorder.watch.tick(now_ns, pressure.as_deref()) {
            Some(cause) => self.fire(&cause),
            None => Ok(()),
        }
    }

    /// The trigger has fired.
    fn fire(&mut self, cause: &Cause) -> Result<()> {
        let now_ns = self.now_ns.max(cause.at_ns);
        let Destination::Flight(recorder) = &self.tape.sink else { return Ok(()) };
        if recorder.files.is_ready(cause, now_ns) {
            self.tape.finish_block(now_ns)?;
        }
        let Destination::Flight(recorder) = &mut self.tape.sink else { return Ok(()) };
        let since_ns = recorder.flight.since_ns();
        let FlightRecorder { files, flight, watch, meta, .. } = &mut **recorder;
        if !files.fire(cause, now_ns, &self.names.clock, meta, flight) {
            if files.is_writing() {
                watch.put_off(cause);
            } else {
                watch.give_up(cause);
            }
            return Ok(());
        }
        recorder.since_ns = since_ns;
        Ok(())
    }

    /// Ends the file whose time is over, and looks whether one is complete.
    fn tick_files(&mut self, now_ns: u64) -> Result<()> {
        let Destination::Flight(recorder) = &mut self.tape.sink else { return Ok(()) };
        recorder.files.tick(now_ns);
        if recorder.files.is_due(now_ns) { self.finish_file(now_ns) } else { Ok(()) }
    }

    fn finish_file(&mut self, now_ns: u64) -> Result<()> {
        self.tape.finish_block(now_ns)?;
        let counts = tape::counts(&self.live.losses()?, self.live.unfinished()?);
        let unavailable = self.live.unavailable().to_vec();
        let at_ns = since_1970_ns(self.names.clock.at(now_ns));
        let Destination::Flight(recorder) = &self.tape.sink else { return Ok(()) };
        let last = self.tape.end_alone(recorder.end(now_ns, at_ns, counts, unavailable), now_ns);
        let Destination::Flight(recorder) = &mut self.tape.sink else { return Ok(()) };
        recorder.files.finish(&last, &recorder.flight);
        Ok(())
    }

    /// Takes up to `limit` events that wait; whether there may be more.
    fn take(&mut self, limit: usize) -> Result<bool> {
        let mut dry_ns = None;
        for _ in 0..limit {
            // Not moved: an event is large.
            let mut next = self.live.next_event();
            if let Ok(Some(event)) = &mut next {
                dry_ns = None;
                self.event(event)?;
                continue;
            }
            next?;
            if let Some(now_ns) = dry_ns {
                self.settle(now_ns);
                self.watch_episodes()?;
                return Ok(false);
            }
            dry_ns = Some(monotonic_ns());
        }
        self.watch_episodes()?;
        Ok(true)
    }

    fn event(&mut self, event: &mut Event) -> Result<()> {
        if let Destination::Flight(recorder) = &mut self.tape.sink {
            recorder.event(event, &mut self.names);
        }
        if !self.tape.takes(event, &mut self.names) {
            return Ok(());
        }
        let tid = match event {
            Event::Stall(stall) => {
                self.stalls += u64::from(!self.config.scopes);
                stall.tid
            }
            Event::Scope(scope) => {
                self.stalls += 1;
                scope.tid
            }
            Event::Oom(oom) => {
                self.stalls += 1;
                // Before 6.8 the kernel tells the number only.
                oom.victim_comm = oom.victim_comm.or_else(|| tape::comm_of(oom.victim_pid).ok());
                oom.tid
            }
        };
        self.recent.insert(tid);
        let killed = match (&*event, &mut self.tape.sink) {
            (Event::Oom(oom), Destination::Flight(recorder)) => recorder.watch.oom(oom),
            _ => None,
        };
        self.tape.name_stacks(event, &mut self.names);
        self.tape.event(event, &mut self.names, self.now_ns)?;
        killed.map_or(Ok(()), |cause| self.fire(&cause))
    }

    /// Has the trigger look at the episodes that have ended.
    fn watch_episodes(&mut self) -> Result<()> {
        while let Destination::Flight(recorder) = &mut self.tape.sink
            && let Some(cause) = recorder.next_cause(self.config)
        {
            self.fire(&cause)?;
        }
        Ok(())
    }

    /// Takes note that all that had ended at `now_ns` was taken, and who is held up again: from that a reader
    /// knows which episodes were over.
    fn settle(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        let live = &self.live;
        if let Destination::Flight(recorder) = &mut self.tape.sink {
            recorder.episodes.expire(now_ns, |tid| live.begun_ns(tid));
        }
        let recent = self.recent.take();
        if recent.is_empty() {
            return;
        }
        let held = recent.iter().filter_map(|tid| Some((*tid, live.begun_ns(*tid)?)));
        let settled = Settled { now_ns, held: held.collect() };
        // Those go on to be asked about: what they are in may last longer.
        settled.held.iter().for_each(|(tid, _)| self.recent.insert(*tid));
        self.tape.note(&Note::Settled(settled));
    }

    async fn end(mut self) -> Result<()> {
        let duration = self.started.elapsed();
        self.live.detach();
        let detached = Instant::now();
        while self.take(usize::MAX)? || !self.live.is_drained() && detached.elapsed() < PATIENCE {
            sleep(Duration::from_millis(1)).await;
        }
        self.live.flush_log();
        let losses = self.live.losses()?;
        let unfinished = self.live.unfinished()?;
        let unavailable = self.live.unavailable().to_vec();
        let asked = self.config.request.filter.processes.iter().copied();
        let gone = asked.filter(|pid| tape::comm_of(*pid).is_err()).collect();
        let end = End {
            at_ns: since_1970_ns(Timestamp::now()),
            duration_ns: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
            counts: tape::counts(&losses, unfinished),
            unavailable,
            gone,
        };
        let summary: Summary = end.summary(self.stalls);
        let now_ns = monotonic_ns();
        if matches!(self.tape.sink, Destination::Flight(_)) {
            self.finish_file(now_ns)?;
        } else {
            self.tape.end(end, &mut self.names, now_ns)?;
        }
        if self.config.verbosity != Verbosity::Quiet || !summary.is_complete() {
            say(&summary);
        }
        if self.config.verbosity != Verbosity::Quiet {
            say_coverage(self.live.coverage());
        }
        let told = match self.tape.sink {
            Destination::File(file) => {
                let what = if file.has_wrapped() {
                    "; the oldest stalls gave way to newer ones (--max-size)"
                } else {
                    ""
                };
                format!("recorded to `{}`{what}", self.config.output.display())
            }
            Destination::Flight(recorder) => {
                let FlightRecorder { files, mut flight, .. } = *recorder;
                files.end(now_ns, &mut flight).to_string()
            }
        };
        if self.config.verbosity != Verbosity::Quiet {
            say(format_args!("memtrace: {told}"));
        }
        Ok(())
    }

    /// Says what is recorded and how to stop.
    fn introduce(&self) {
        let verbosity = self.config.verbosity;
        if verbosity == Verbosity::Quiet {
            return;
        }
        let until = match self.config.duration {
            Some(duration) => format!("for {} s, or until", duration.as_secs_f64()),
            None => "until".to_owned(),
        };
        let when = self.config.flight.as_ref().map(|flight| {
            format!(" into `{}` when {}", self.config.output.display(), flight.trigger)
        });
        let when = when.unwrap_or_default();
        say(format_args!("Recording {}{when} {until} Ctrl-C...", self.config.what));
        if verbosity == Verbosity::Verbose {
            say(format_args!("memtrace: attached to {}", self.live.attached().join(", ")));
            for feature in self.live.unavailable() {
                say(format_args!("memtrace: not available on this kernel: {feature}"));
            }
        }
    }
}

/// Makes sure that the trigger can fire: who waits for what is not watched waits for ever.
fn check_trigger(trigger: &Trigger, live: &Live) -> Result<()> {
    if trigger.needs_psi() && Looker::open().pressure().is_none() {
        bail!(
            "cannot wait for `psi`: this kernel counts no pressure, or not now; boot with psi=1, or leave it out of --trigger"
        );
    }
    if trigger.needs_oom() && !live.coverage().watched().any(|kind| kind == Kind::Oom) {
        let why = live.coverage().missing().find(|(kind, _)| *kind == Kind::Oom);
        let why = why.map_or("it is not among those of --kind", |(_, why)| why);
        bail!("cannot wait for `oom`, which is not watched: {why}");
    }
    Ok(())
}
