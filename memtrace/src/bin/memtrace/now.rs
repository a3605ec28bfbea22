//! `memtrace now`: looks at all threads twice, or again and again, and shows those that are stalled.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use jiff::tz::TimeZone;
use memtrace::{
    clock::WallClock,
    kernel::{Kernel, preflight::Facts},
    live::{
        self,
        now::{Threads, Types},
    },
    names::Names,
    now::Sample,
    text::Printable,
    verdict::{self, States as _},
    view::{Format, NowOptions, NowView},
};
use rustix::thread::CapabilitySet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    cli::Now,
    config::{self, Verbosity},
    limits,
    output::{self, Output, Reader, say},
    privileges, protect,
    trace::Stop,
};

/// Most targets whose state is read in one look.
const MOST_TARGETS: usize = 128;
/// How often to ask a reader that was busy, and whether one is still there.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// The same while nothing is to be written.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Does what the arguments say.
pub fn run(args: &Now) -> Result<()> {
    limits::check(0)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(async {
        let mut stop = Stop::listen()?;
        let mut run = Run::start(args)?;
        tokio::select! {
            biased;
            () = stop.wait() => {}
            done = run.look() => done?,
        }
        run.account();
        Ok(())
    })
}

/// A run in progress.
struct Run {
    threads: Threads,
    names: Names,
    view: NowView,
    output: Output,
    interval: Duration,
    watch: bool,
    verbosity: Verbosity,
    account: Account,
}

/// What the last line tells.
#[derive(Debug, Default)]
struct Account {
    /// Threads that were stalled in the last look, and of those the workers.
    stalled: usize,
    workers: usize,
    looks: u64,
    looked_at: u64,
    longest_ns: u64,
    torn: u64,
    left_out: u64,
    unavailable: Vec<String>,
}

impl Run {
    fn start(args: &Now) -> Result<Self> {
        Facts::gather().check()?;
        let filter = config::make_filter(&args.who)?;
        let (kernel, types) = Kernel::running_with(&[], Types::find)?;
        let names = live::names(&kernel);
        if args.kernel_stack {
            // Takes long, some memory, and privileges.
            names.symbols.read();
        }
        let threads = Threads::load(&filter, args.kernel_stack, &kernel, &types)?;
        drop(kernel);
        protect::reserve(0, false);
        let options = NowOptions {
            format: if args.json { Format::Json } else { Format::Text },
            since: args.watch,
            stacks: args.kernel_stack,
            quiet: args.quiet,
        };
        // Finding it takes a look at every time zone there is.
        let zone = if args.watch && !args.json { TimeZone::system() } else { TimeZone::UTC };
        let run = Self {
            threads,
            names,
            view: NowView::new(options, zone),
            output: Output::new(),
            interval: args.interval,
            watch: args.watch,
            verbosity: Verbosity::new(args.quiet, args.verbose),
            account: Account::default(),
        };
        let protection = protect::protect();
        privileges::give_up(CapabilitySet::DAC_READ_SEARCH, || run.threads.works())
            .context("cannot give up privileges")?;
        if run.verbosity == Verbosity::Verbose {
            say(format_args!("memtrace: {protection}"));
        }
        Ok(run)
    }

    async fn look(&mut self) -> Result<()> {
        let mut next = Instant::now() + self.interval;
        let mut first = self.look_once()?;
        loop {
            while Instant::now() < next {
                if output::is_gone() {
                    return Ok(());
                }
                sleep_until(next.min(Instant::now() + LOOK_EVERY)).await;
            }
            // Late looks are not made up for.
            next = Instant::now() + self.interval;
            self.names.clock = WallClock::now();
            let mut second = self.look_once()?;
            second.follow(&first);
            self.judge(&mut second);
            self.view.show(&first, &second, &mut self.names, &mut self.output.lines);
            self.account.show(&second);
            if !self.deliver().await? || !self.watch {
                return Ok(());
            }
            first = second;
        }
    }

    fn look_once(&mut self) -> Result<Sample> {
        let look = self.threads.look()?;
        let sample = self.threads.sort_out(look);
        self.account.add(&sample);
        Ok(sample)
    }

    /// Judges what is reclaimed from, reading the state of each once.
    fn judge(&mut self, sample: &mut Sample) {
        let mut states = BTreeMap::new();
        let mut live = verdict::live::Live { cgroups: &mut self.names.cgroups };
        for thread in &mut sample.threads {
            let Some(target) = thread.target() else { continue };
            if !states.contains_key(&target) && states.len() >= MOST_TARGETS {
                continue;
            }
            let state = states.entry(target).or_insert_with(|| live.read(target));
            thread.verdict = thread.judge(state.as_ref());
        }
    }

    /// Writes what waits; whether there is still a reader.
    async fn deliver(&mut self) -> Result<bool> {
        loop {
            match self.output.flush()? {
                Reader::Ready => return Ok(true),
                Reader::Gone => return Ok(false),
                Reader::Busy => sleep(ASK_EVERY).await,
            }
        }
    }

    fn account(&self) {
        let Account {
            stalled,
            workers,
            looks,
            looked_at,
            longest_ns,
            torn,
            left_out,
            ref unavailable,
        } = self.account;
        if self.verbosity == Verbosity::Quiet && left_out == 0 {
            return;
        }
        let mut line = format!(
            "memtrace: {stalled} stalled, {workers} working for others, of {looked_at} threads; torn {torn} (over while they were read), left out {left_out} (too many at once)"
        );
        let mut separator = "; cannot be seen on this kernel: ";
        for lacking in unavailable {
            line.push_str(separator);
            line.push_str(&Printable(lacking.as_bytes()).to_string());
            separator = ", ";
        }
        say(line);
        if self.verbosity == Verbosity::Verbose {
            let longest_ms = longest_ns as f64 / 1e6;
            say(format_args!("memtrace: {looks} looks, the longest of {longest_ms:.1} ms"));
        }
    }
}

impl Account {
    fn add(&mut self, sample: &Sample) {
        self.looks += 1;
        self.looked_at = sample.looked_at;
        self.longest_ns = self.longest_ns.max(sample.took_ns);
        self.torn += sample.torn;
        self.left_out += sample.left_out;
        self.unavailable.clone_from(&sample.unavailable);
    }

    fn show(&mut self, sample: &Sample) {
        let workers = sample.threads.iter().filter(|thread| thread.kind.is_worker());
        self.workers = workers.count();
        self.stalled = sample.threads.len() - self.workers;
    }
}
