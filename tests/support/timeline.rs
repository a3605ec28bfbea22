//! What threads were busy with by ftrace: shrinkers, throttling, compaction, and whether they ran.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};

use crate::{
    episodes::Episode,
    ftrace::{self, Event, Ftrace, Tracepoint},
    host::Mount,
};

const EVENTS: [&str; 7] = [
    "vmscan/mm_shrink_slab_start",
    "vmscan/mm_shrink_slab_end",
    "vmscan/mm_vmscan_throttled",
    // Before 5.16 all throttling was these two.
    "writeback/writeback_congestion_wait",
    "writeback/writeback_wait_iff_congested",
    "compaction/mm_compaction_begin",
    "compaction/mm_compaction_end",
];

/// The running recorder.
#[derive(Debug)]
pub struct Recorder(Ftrace);

impl Recorder {
    /// Starts recording, of the scheduler's events those of threads called `comm`.
    pub fn start(comm: &str) -> Result<Self> {
        let switch = format!("prev_comm == \"{comm}\" || next_comm == \"{comm}\"");
        let wakeup = format!("comm == \"{comm}\"");
        let scheduler = [("sched/sched_switch", switch), ("sched/sched_wakeup", wakeup)];
        let scheduler = scheduler.map(|(name, filter)| Tracepoint { name, filter: Some(filter) });
        let others = EVENTS.map(Tracepoint::from);
        Ok(Self(Ftrace::start(others.into_iter().chain(scheduler))?))
    }

    /// Whether the kernel tells why it throttles: before 5.16 it had one reason.
    pub fn has_throttled() -> Result<bool> {
        let tracefs = Mount::new("tracefs")?;
        Ok(tracefs.path().join("events/vmscan/mm_vmscan_throttled").exists())
    }

    /// Stops recording. Fails where ftrace itself lost events.
    pub fn stop(self) -> Result<Timeline> {
        let text = self.0.stop()?;
        let mut reader = Reader::default();
        for event in ftrace::events(&text) {
            let event = event?;
            reader.event(&event).with_context(|| format!("unknown form of {event:?}"))?;
        }
        Ok(reader.timeline)
    }
}

/// What each thread was busy with.
#[derive(Clone, Debug, Default)]
pub struct Timeline(HashMap<u32, Thread>);

/// What a thread was busy with, in the order of time.
#[derive(Clone, Debug, Default)]
struct Thread {
    /// In shrinkers, by function.
    shrinkers: Vec<(Span, String)>,
    compactions: Vec<Span>,
    /// Off the CPU and unable to run.
    blocked: Vec<Span>,
    /// Able to run, and waiting for a CPU.
    waiting: Vec<Span>,
    throttled: Vec<Throttled>,
}

/// From when to when, in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    begin_ns: u64,
    end_ns: u64,
}

/// A sleep that has just ended.
#[derive(Clone, Debug)]
struct Throttled {
    at_ns: u64,
    delayed_ns: u64,
    reason: String,
}

/// What a thread does that has not ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Shrinking,
    Compacting,
    Blocked,
    Waiting,
}

/// How time was spent by ftrace, as far as it tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// In shrinkers, by function: how often, and how many nanoseconds.
    pub shrinkers: BTreeMap<String, (u64, u64)>,
    /// Throttled, by reason, likewise, as the kernel counts it: in jiffies.
    pub throttled: BTreeMap<String, (u64, u64)>,
    /// Nanoseconds of compaction.
    pub compaction_ns: u64,
    /// Nanoseconds off the CPU and unable to run, but for shrinkers and compaction.
    pub blocked_ns: u64,
    /// The same, able to run.
    pub waiting_ns: u64,
    /// How often it left the CPU.
    pub switches: u64,
}

impl Spent {
    /// Adds another one's.
    pub fn add(&mut self, other: &Self) {
        for (sums, added) in
            [(&mut self.shrinkers, &other.shrinkers), (&mut self.throttled, &other.throttled)]
        {
            for (name, (count, ns)) in added {
                let sum = sums.entry(name.clone()).or_default();
                *sum = (sum.0 + count, sum.1 + ns);
            }
        }
        self.compaction_ns += other.compaction_ns;
        self.blocked_ns += other.blocked_ns;
        self.waiting_ns += other.waiting_ns;
        self.switches += other.switches;
    }
}

impl Span {
    /// How much of it is within another one.
    fn within(self, other: Self) -> u64 {
        self.end_ns.min(other.end_ns).saturating_sub(self.begin_ns.max(other.begin_ns))
    }
}

/// Those of `spans`, which follow one another, that have to do with `window`.
fn among<T>(spans: &[T], span: impl Fn(&T) -> Span, window: Span) -> &[T] {
    let first = spans.partition_point(|it| span(it).end_ns <= window.begin_ns);
    let last = spans.partition_point(|it| span(it).begin_ns < window.end_ns);
    &spans[first..last.max(first)]
}

impl Timeline {
    /// How a thread spent the time of an episode of one round, by ftrace.
    #[must_use]
    pub fn spent(&self, episode: &Episode) -> Spent {
        let mut spent = Spent::default();
        let Some(thread) = self.0.get(&episode.tid) else { return spent };
        let window = Span { begin_ns: episode.start_ns, end_ns: episode.end_ns };
        let shrinkers = among(&thread.shrinkers, |(span, _)| *span, window);
        let compactions = among(&thread.compactions, |span| *span, window);
        for (span, function) in shrinkers {
            let sum = spent.shrinkers.entry(function.clone()).or_default();
            *sum = (sum.0 + 1, sum.1 + span.within(window));
        }
        spent.compaction_ns = compactions.iter().map(|span| span.within(window)).sum();
        let mut off = |spans: &[Span]| {
            let mut sum = 0;
            for span in among(spans, |span| *span, window) {
                let inside = shrinkers.iter().map(|(inside, _)| inside).chain(compactions);
                let inside: u64 = inside.map(|inside| inside.within(*span)).sum();
                sum += span.within(window).saturating_sub(inside);
                spent.switches += 1;
            }
            sum
        };
        let (blocked_ns, waiting_ns) = (off(&thread.blocked), off(&thread.waiting));
        (spent.blocked_ns, spent.waiting_ns) = (blocked_ns, waiting_ns);
        for Throttled { at_ns, delayed_ns, reason } in &thread.throttled {
            if (window.begin_ns..window.end_ns).contains(at_ns) {
                let sum = spent.throttled.entry(reason.clone()).or_default();
                *sum = (sum.0 + 1, sum.1 + delayed_ns);
            }
        }
        spent
    }
}

/// A timeline that is being read.
#[derive(Default)]
struct Reader {
    timeline: Timeline,
    /// Since when, and for a shrinker its function.
    open: HashMap<(u32, Doing), (u64, String)>,
}

impl Reader {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let Event { tid, at_ns, name, fields, .. } = *event;
        match name {
            "mm_shrink_slab_start" => {
                let (function, _) = fields.split_once('+').context("no function")?;
                self.begin(tid, Doing::Shrinking, at_ns, function);
            }
            "mm_compaction_begin" => self.begin(tid, Doing::Compacting, at_ns, ""),
            "mm_shrink_slab_end" => drop(self.end(tid, Doing::Shrinking, at_ns)),
            "mm_compaction_end" => drop(self.end(tid, Doing::Compacting, at_ns)),
            "mm_vmscan_throttled" => self.throttled(event, event.field("reason")?)?,
            "writeback_congestion_wait" | "writeback_wait_iff_congested" => {
                self.throttled(event, "VMSCAN_THROTTLE_CONGESTED")?;
            }
            "sched_switch" => {
                // Who is still able to run was made to go.
                let is_able = event.field("prev_state")?.starts_with('R');
                let doing = if is_able { Doing::Waiting } else { Doing::Blocked };
                self.begin(event.number("prev_pid")?, doing, at_ns, "");
                let next = event.number("next_pid")?;
                self.end(next, Doing::Blocked, at_ns);
                self.end(next, Doing::Waiting, at_ns);
            }
            "sched_wakeup" => {
                let tid = event.number("pid")?;
                if self.end(tid, Doing::Blocked, at_ns).is_some() {
                    self.begin(tid, Doing::Waiting, at_ns, "");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, tid: u32, doing: Doing, at_ns: u64, what: &str) {
        self.open.insert((tid, doing), (at_ns, what.to_owned()));
    }

    /// Nothing where its begin is not in the trace.
    fn end(&mut self, tid: u32, doing: Doing, end_ns: u64) -> Option<()> {
        let (begin_ns, what) = self.open.remove(&(tid, doing))?;
        let thread = self.timeline.0.entry(tid).or_default();
        let span = Span { begin_ns, end_ns };
        match doing {
            Doing::Shrinking => thread.shrinkers.push((span, what)),
            Doing::Compacting => thread.compactions.push(span),
            Doing::Blocked => thread.blocked.push(span),
            Doing::Waiting => thread.waiting.push(span),
        }
        Some(())
    }

    fn throttled(&mut self, event: &Event<'_>, reason: &str) -> Result<()> {
        // The kernel itself has misspelt the one.
        let delayed_us: u64 =
            event.number("usect_delayed").or_else(|_| event.number("usec_delayed"))?;
        let reason = reason.trim_start_matches("VMSCAN_THROTTLE_").to_owned();
        let throttled = Throttled { at_ns: event.at_ns, delayed_ns: delayed_us * 1000, reason };
        self.timeline.0.entry(event.tid).or_default().throttled.push(throttled);
        Ok(())
    }
}
