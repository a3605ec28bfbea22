//! One run: from attaching the probes to the summary.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use memtrace::{
    clock::WallClock,
    kernel::{Kernel, preflight::Facts},
    live::{self, Live},
    names::Names,
    view::{Summary, View},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{Signal, SignalKind, signal},
    task::yield_now,
    time::{Interval, MissedTickBehavior, interval, interval_at, sleep},
};

use crate::{
    config::{Config, Verbosity},
    output::{self, Output, Reader},
};

/// How often to look at the ring buffer although the probes have not called. They call only when a
/// good part of it is full, as calls cost them more than all the rest.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Stalls to show before looking whether it is time to stop.
const BATCH: usize = 1024;
/// How often to compare the clocks, as the time of day can be set.
const COMPARE_CLOCKS_EVERY: Duration = Duration::from_secs(1);

/// Traces as `config` says.
pub fn run(config: &Config) -> Result<()> {
    if config.verbosity == Verbosity::Verbose {
        env_logger::Builder::new()
            .filter_module("memtrace", log::LevelFilter::Debug)
            .format_target(false)
            .init();
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(Run::start(config)?.trace())
}

/// A run in progress.
struct Run<'a> {
    config: &'a Config,
    live: Live,
    names: Names,
    view: View,
    output: Output,
    stalls: u64,
    started: Instant,
}

/// Whether the ring buffer has more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ring {
    Dry,
    More,
}

impl<'a> Run<'a> {
    fn start(config: &'a Config) -> Result<Self> {
        Facts::gather().check()?;
        let kernel = Kernel::running(&live::tracepoints())?;
        let live = Live::start(&config.request, &kernel)?;
        Ok(Self {
            config,
            live,
            names: live::names(&kernel),
            view: View::new(config.view.clone()),
            output: Output::default(),
            stalls: 0,
            started: Instant::now(),
        })
    }

    async fn trace(mut self) -> Result<()> {
        let mut interrupt = stop_signal(SignalKind::interrupt())?;
        let mut terminate = stop_signal(SignalKind::terminate())?;
        let mut hang_up = stop_signal(SignalKind::hangup())?;
        // A descriptor of its own, so that the ring buffer can be read while this one waits.
        let ring = self.live.ring_descriptor().context("cannot wait for the probes")?;
        // SAFETY: the descriptor is open, owned, and moved in to stay until the end.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .context("cannot wait for the probes")?;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut clocks = Instant::now();
        let mut intervals = self
            .config
            .interval
            .map(|period| interval_at(tokio::time::Instant::now() + period, period));
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
        while reader == Reader::Present {
            tokio::select! {
                biased;
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                _ = hang_up.recv() => break,
                () = &mut deadline => break,
                () = tick(&mut intervals) => {
                    if let Some(left) = &mut intervals_left {
                        *left -= 1;
                        if *left == 0 {
                            // The end shows the last one, with what comes in until then.
                            break;
                        }
                    }
                    self.show_all()?;
                    self.view.interval(&mut self.names, Timestamp::now(), &mut self.output.lines);
                    reader = self.output.flush()?;
                    continue;
                }
                _ = look.tick() => {
                    self.live.flush_log();
                    if clocks.elapsed() >= COMPARE_CLOCKS_EVERY {
                        clocks = Instant::now();
                        self.names.clock = WallClock::now();
                    }
                    reader = output::reader();
                    if reader == Reader::Gone {
                        break;
                    }
                }
                ready = ring.readable() => ready.context("cannot wait for the probes")?.clear_ready(),
                () = yield_now(), if waiting == Ring::More => {}
            }
            waiting = self.show(BATCH)?;
            if waiting == Ring::Dry {
                reader = self.output.flush()?;
            }
        }
        self.end()
    }

    /// Shows up to `limit` of the stalls that wait.
    fn show(&mut self, limit: usize) -> Result<Ring> {
        for _ in 0..limit {
            let Some(stall) = self.live.next_stall() else { return Ok(Ring::Dry) };
            self.stalls += 1;
            self.view.stall(&stall, &mut self.names, &mut self.output.lines);
            // A reader that is gone is noticed at the next flush.
            let _reader = self.output.relieve()?;
        }
        Ok(Ring::More)
    }

    /// Shows all stalls that wait, but not for ever those that keep coming.
    fn show_all(&mut self) -> Result<()> {
        self.show(self.config.request.buffer_size as usize)?;
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let duration = self.started.elapsed();
        self.live.detach();
        self.show_all()?;
        self.live.flush_log();
        let losses = self.live.losses();
        let summary = Summary {
            stalls: self.stalls,
            lost: losses.lost,
            missed_begin: losses.missed_begin,
            table_full: losses.table_full,
            skipped: losses.skipped,
            unfinished: self.live.unfinished(),
            duration,
            unavailable: self.live.unavailable().to_vec(),
        };
        self.view.end(&mut self.names, Timestamp::now(), &summary, &mut self.output.lines);
        let _reader = self.output.flush()?;
        if self.config.verbosity != Verbosity::Quiet || !summary.is_complete() {
            eprintln!("{summary}");
        }
        Ok(())
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
        eprintln!("Tracing {} {until} Ctrl-C...", self.config.what);
        if verbosity == Verbosity::Verbose {
            eprintln!("memtrace: attached to {}", self.live.attached().join(", "));
            for feature in self.live.unavailable() {
                eprintln!("memtrace: not available on this kernel: {feature}");
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

fn stop_signal(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("cannot listen for signals")
}
