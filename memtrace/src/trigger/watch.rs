//! Whether a trigger fires.

use std::fmt::{self, Display, Formatter};

use super::window::{Exceeded, Window};
use super::{Condition, Exact, Hundredths, Per, Percentile, Pressure, Trigger};
use crate::scope::Oom;
use crate::stall::Comm;
use crate::view::words::Span;

/// Looks whether a trigger fires.
///
/// A stall that is too long and an OOM kill make it fire each time. A percentile, a rate and a pressure make it fire
/// when they come to be over their limits, and again only after they have not been: see [`put_off`](Self::put_off).
/// Memory is what it has from the beginning.
#[derive(Debug)]
pub struct Watch {
    /// The least of the limits of single stalls.
    limit_ns: u64,
    takes_oom: bool,
    windows: Vec<(Level, Window)>,
    pressures: Vec<Level>,
    /// An OOM kill that was put off.
    killed: Option<Cause>,
    /// How often it has fired.
    fired: u64,
}

/// A condition that lasts.
#[derive(Debug)]
struct Level {
    condition: Condition,
    /// While it holds: the number of the firing that told of it.
    told: Option<u64>,
    /// While it holds: whether one has that was put off.
    was_put_off: bool,
}

impl Level {
    /// Whether it has come to hold.
    fn rises(&mut self, holds: bool, number: u64) -> bool {
        let rises = holds && self.told.is_none();
        self.told = if rises { Some(number) } else { self.told.filter(|_| holds) };
        self.was_put_off &= holds;
        rises
    }
}

/// The conditions that have come to hold at once, of which one firing tells.
struct Risen {
    /// The number of that firing.
    number: u64,
    first: Option<What>,
    /// Whether each of them was put off before.
    is_again: bool,
}

impl Risen {
    /// Takes whether a condition holds: then, how.
    fn take(&mut self, level: &mut Level, what: Option<What>) {
        if level.rises(what.is_some(), self.number) {
            self.first = self.first.or(what);
            self.is_again &= level.was_put_off;
        }
    }
}

impl Watch {
    /// Looks at nothing before it is told.
    #[must_use]
    pub fn new(trigger: &Trigger) -> Self {
        let mut watch = Self {
            limit_ns: u64::MAX,
            takes_oom: false,
            windows: Vec::new(),
            pressures: Vec::new(),
            killed: None,
            fired: 0,
        };
        for &condition in trigger.conditions() {
            let level = Level { condition, told: None, was_put_off: false };
            match condition {
                Condition::Latency { limit_ns } => watch.limit_ns = watch.limit_ns.min(limit_ns),
                Condition::Percentile { window_ns, limit_ns, .. } => {
                    watch.windows.push((level, Window::of_times(window_ns, limit_ns)));
                }
                Condition::Rate { per, .. } => {
                    watch.windows.push((level, Window::of_counts(per.window_ns())));
                }
                Condition::Oom => watch.takes_oom = true,
                Condition::Psi { .. } => watch.pressures.push(level),
            }
        }
        watch
    }

    /// Takes a stall that ended at `end_ns` of `CLOCK_MONOTONIC`; they may come a little out of order.
    #[inline]
    pub fn stall(&mut self, end_ns: u64, duration_ns: u64) -> Option<Cause> {
        let mut is_over = false;
        for (_, window) in &mut self.windows {
            is_over |= window.count(end_ns, duration_ns);
        }
        if duration_ns > self.limit_ns {
            let limit_ns = self.limit_ns;
            return Some(self.fire(end_ns, What::Latency { was_ns: duration_ns, limit_ns }));
        }
        if !is_over {
            return None;
        }
        let mut risen = self.risen();
        self.windows(&mut risen);
        self.fire_for(end_ns, &risen)
    }

    /// Takes a process that was chosen to be killed.
    pub fn oom(&mut self, oom: &Oom) -> Option<Cause> {
        let Oom { at_ns, victim_pid: pid, victim_comm: comm, .. } = *oom;
        self.takes_oom.then(|| self.fire(at_ns, What::Oom { pid, comm }))
    }

    /// Takes the time, and the text of /proc/pressure/memory where it has been read: about once a second.
    pub fn tick(&mut self, now_ns: u64, psi: Option<&str>) -> Option<Cause> {
        let mut is_over = false;
        for (_, window) in &mut self.windows {
            is_over |= window.move_to(now_ns);
        }
        let mut risen = self.risen();
        if is_over {
            self.windows(&mut risen);
        }
        if let Some(text) = psi {
            self.pressures(text, &mut risen);
        }
        // It is over: only now can anything still come of it.
        match self.killed.take() {
            // What has risen meanwhile is told with it.
            Some(killed) => Some(Cause { is_again: true, ..self.fire(killed.at_ns, killed.what) }),
            None => self.fire_for(now_ns, &risen),
        }
    }

    /// Takes back that it has fired, as something else has to end first: a kill makes it fire again the next time
    /// that it takes the time, and what lasts as soon as it does so.
    pub fn put_off(&mut self, cause: &Cause) {
        if cause.is_oom() {
            self.killed.get_or_insert(*cause);
        }
        self.put_off_levels(cause.number);
    }

    /// Takes back that it has fired, as nothing is going to come of it: only what lasts makes it fire again.
    pub fn give_up(&mut self, cause: &Cause) {
        self.put_off_levels(cause.number);
    }

    fn put_off_levels(&mut self, number: u64) {
        let levels = self.windows.iter_mut().map(|(level, _)| level).chain(&mut self.pressures);
        for level in levels {
            if level.told == Some(number) {
                (level.told, level.was_put_off) = (None, true);
            }
        }
    }

    fn risen(&self) -> Risen {
        Risen { number: self.fired, first: None, is_again: true }
    }

    #[cold]
    fn windows(&mut self, risen: &mut Risen) {
        for (level, window) in &mut self.windows {
            let what = match level.condition {
                Condition::Percentile { percentile, window_ns, limit_ns } => window
                    .percentile(percentile)
                    .map(|exceeded| What::Percentile { percentile, window_ns, limit_ns, exceeded }),
                Condition::Rate { per, limit } => {
                    let was = window.stalls();
                    (was > limit).then_some(What::Rate { per, limit, was })
                }
                Condition::Latency { .. } | Condition::Oom | Condition::Psi { .. } => None,
            };
            risen.take(level, what);
        }
    }

    fn pressures(&mut self, text: &str, risen: &mut Risen) {
        for level in &mut self.pressures {
            if let Condition::Psi { pressure, limit } = level.condition
                // A text that does not have it says nothing.
                && let Some(was) = pressure.find(text)
            {
                let what = What::Psi { pressure, limit, was };
                risen.take(level, (was > limit).then_some(what));
            }
        }
    }

    fn fire_for(&mut self, now_ns: u64, risen: &Risen) -> Option<Cause> {
        let what = risen.first?;
        Some(Cause { is_again: risen.is_again, ..self.fire(now_ns, what) })
    }

    #[cold]
    fn fire(&mut self, at_ns: u64, what: What) -> Cause {
        let number = self.fired;
        self.fired += 1;
        Cause { at_ns, number, is_again: false, what }
    }
}

/// What has made a trigger fire; shown, it is in words for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    number: u64,
    is_again: bool,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Latency { was_ns: u64, limit_ns: u64 },
    Percentile { percentile: Percentile, window_ns: u64, limit_ns: u64, exceeded: Exceeded },
    Rate { per: Per, limit: u64, was: u64 },
    Oom { pid: u32, comm: Option<Comm> },
    Psi { pressure: Pressure, limit: Hundredths, was: Hundredths },
}

impl Cause {
    /// Whether it has made it fire before, which was put off, and has lasted since.
    #[must_use]
    pub fn is_again(&self) -> bool {
        self.is_again
    }

    /// Whether it is an OOM kill.
    #[must_use]
    pub fn is_oom(&self) -> bool {
        matches!(self.what, What::Oom { .. })
    }

    /// A word for the names of files: letters, digits, `-` and `.`.
    #[must_use]
    pub fn slug(&self) -> String {
        match self.what {
            What::Latency { .. } => "latency".to_owned(),
            What::Percentile { percentile, .. } => percentile.to_string(),
            What::Rate { .. } => "rate".to_owned(),
            What::Oom { .. } => "oom".to_owned(),
            What::Psi { pressure, .. } => format!("psi-{}-{}", pressure.share, pressure.average),
        }
    }
}

impl Display for Cause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let span = |ns: u64| Span(ns.into());
        match self.what {
            What::Latency { was_ns, limit_ns } => {
                write!(f, "a stall of {}, longer than {}", span(was_ns), Exact(limit_ns, " "))
            }
            What::Percentile { percentile, window_ns, limit_ns, exceeded } => {
                let Exceeded { was_ns, stalls } = exceeded;
                let (window, limit) = (Exact(window_ns, " "), Exact(limit_ns, " "));
                write!(f, "{percentile} over {window} is {}", span(was_ns))?;
                write!(f, " (stalls: {stalls}), more than {limit}")
            }
            What::Rate { per, limit, was } => {
                let per = match per {
                    Per::Second => "second",
                    Per::Minute => "minute",
                };
                write!(f, "{was} stalls in a {per}, more than {limit}")
            }
            What::Oom { pid, comm: Some(comm) } => write!(f, "OOM kill of {comm} (pid {pid})"),
            What::Oom { pid, comm: None } => write!(f, "OOM kill of pid {pid}"),
            What::Psi { pressure, limit, was } => {
                let Pressure { share, average } = pressure;
                write!(f, "memory pressure ({share} {average}) is {was} %, more than {limit} %")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::fixtures::oom;

    const MS: u64 = 1_000_000;

    fn watch(trigger: &str) -> Watch {
        Watch::new(&trigger.parse().expect("a trigger"))
    }

    fn shown(cause: &Cause) -> (String, String) {
        (cause.slug(), cause.to_string())
    }

    #[test]
    fn each_stall_that_is_too_long_fires() {
        let mut watch = watch("latency>200ms or latency>100ms");
        assert_eq!(watch.stall(0, 100 * MS), None);
        for _ in 0..2 {
            let cause = watch.stall(7, 123_456_000).expect("it is longer");
            assert_eq!(cause.at_ns, 7);
            let (slug, words) = shown(&cause);
            assert_eq!((&*slug, &*words), ("latency", "a stall of 123.46 ms, longer than 100 ms"));
        }
        assert_eq!(watch.oom(&oom()), None);
        assert_eq!(watch.tick(u64::MAX, Some("some avg10=99.00")), None);
    }

    #[test]
    fn an_oom_kill_fires() {
        let mut watch = watch("oom");
        assert_eq!(watch.stall(0, u64::MAX), None);
        let killed = Oom { victim_comm: Some(Comm::new(*b"post\x1b[2J\0\0\0\0\0\0\0\0")), ..oom() };
        let cause = watch.oom(&killed).expect("asked for");
        assert_eq!(cause.at_ns, killed.at_ns);
        let (slug, words) = shown(&cause);
        assert_eq!((&*slug, &*words), ("oom", "OOM kill of post\\x1b[2J (pid 99)"));
        let unnamed = Oom { victim_comm: None, ..oom() };
        assert_eq!(watch.oom(&unnamed).expect("asked for").to_string(), "OOM kill of pid 99");
    }

    #[test]
    fn a_kill_that_was_put_off_fires_again() {
        let mut watch = watch("oom or psi.some.avg10>20");
        let first = watch.oom(&oom()).expect("asked for");
        watch.put_off(&first);
        watch.put_off(&Cause { at_ns: 77, ..first });
        let again = watch.tick(0, Some("some avg10=30.00")).expect("it waits");
        assert!(again.is_oom() && again.is_again() && !first.is_again());
        assert_eq!(again.at_ns, first.at_ns);
        // The pressure was told with it.
        assert_eq!(watch.tick(1, Some("some avg10=30.00")), None);
        watch.put_off(&again);
        let again = watch.tick(2, Some("some avg10=30.00")).expect("it waits");
        watch.give_up(&again);
        let pressure = watch.tick(3, Some("some avg10=30.00")).expect("it lasts");
        assert!(!pressure.is_oom());
        assert_eq!(watch.tick(4, None), None);
    }

    #[test]
    fn a_rate_fires_when_it_rises() {
        let mut watch = watch("rate>100/s");
        let mut fired = Vec::new();
        // 90 a second, then 200, then none, then 200.
        for ms in 0..8000 {
            let every = match ms {
                0..2000 => 11,
                4000..6000 => u64::MAX,
                _ => 5,
            };
            let stall = (ms % every == 0).then(|| watch.stall(ms * MS, 1)).flatten();
            let tick = (ms % 1000 == 0).then(|| watch.tick(ms * MS, None)).flatten();
            fired.extend(stall.or(tick));
        }
        let [first, second] = &*fired else { panic!("{fired:?}") };
        assert_eq!(shown(first).0, "rate");
        // Of the last ten tenths.
        assert_eq!(first.to_string(), "102 stalls in a second, more than 100");
        assert_eq!(first.at_ns, 2_100 * MS);
        assert!(second.at_ns > 6_000 * MS, "{second:?}");
    }

    #[test]
    fn a_percentile_fires_without_another_stall() {
        let mut watch = watch("p99(10s)>20ms or p50(10s)>1s");
        for ms in 0..1000 {
            let duration_ns = if ms % 50 == 0 { 25 * MS } else { MS };
            assert_eq!(watch.stall(ms * MS, duration_ns), None);
        }
        assert_eq!(watch.tick(999 * MS, None), None);
        let (slug, words) = shown(&watch.tick(1000 * MS, None).expect("2 % are longer"));
        assert_eq!(slug, "p99");
        assert_eq!(words, "p99 over 10 s is 25.03 ms (stalls: 1000), more than 20 ms");
        assert_eq!(watch.tick(2000 * MS, None), None, "it lasts");
    }

    #[test]
    fn pressure_fires_when_it_rises() {
        let mut watch = watch("psi.some.avg10>20 or psi.full.avg60>0.5");
        let text = |some: &str, full: &str| {
            format!(
                "some avg10={some} avg60=88.00 avg300=0.00 total=3\nfull avg10=99.00 avg60={full} avg300=0.00 total=1\n"
            )
        };
        let mut tick = |some, full| watch.tick(5, Some(&text(some, full))).as_ref().map(shown);
        assert_eq!(tick("20.00", "0.50"), None);
        let (slug, words) = tick("20.01", "0.50").expect("it is more");
        assert_eq!(slug, "psi-some-avg10");
        assert_eq!(words, "memory pressure (some avg10) is 20.01 %, more than 20 %");
        assert_eq!(tick("30.00", "0.00"), None, "it lasts");
        let (slug, _) = tick("30.00", "1.00").expect("the other one is more");
        assert_eq!(slug, "psi-full-avg60");
        assert_eq!(tick("0.00", "1.00"), None);
        assert_eq!(tick("nonsense", "1.00"), None);
        assert!(tick("25.00", "1.00").is_some());
        assert_eq!(watch.tick(6, None), None);
        assert_eq!(watch.tick(6, Some("")), None);
    }

    #[test]
    fn what_rises_at_once_is_put_off_at_once() {
        let mut watch = watch("rate>10/m or psi.some.avg10>20");
        let pressure = Some("some avg10=30.00 avg60=0.00 avg300=0.00 total=1");
        for _ in 0..11 {
            assert_eq!(watch.stall(1000 * MS, 1), None);
        }
        // A tenth of the window is over.
        let mut now_ns = 7000 * MS;
        let cause = watch.tick(now_ns, pressure).expect("both hold");
        assert_eq!(cause.slug(), "rate");
        assert!(!cause.is_again(), "the pressure has just come");
        assert_eq!(watch.tick(now_ns, pressure), None, "one firing told of both");
        watch.put_off(&cause);
        // None of the stalls is of this minute.
        now_ns += 120_000 * MS;
        let cause = watch.tick(now_ns, pressure).expect("the pressure lasts");
        assert_eq!((&*cause.slug(), cause.is_again()), ("psi-some-avg10", true));
        assert_eq!(watch.tick(now_ns, pressure), None);
    }

    #[test]
    fn what_was_put_off_fires_while_it_lasts() {
        let mut watch = watch("psi.some.avg10>20 or psi.some.avg60>20 or psi.some.avg300>20");
        let both = "some avg10=30.00 avg60=30.00 avg300=0.00 total=1";
        let cause = watch.tick(1, Some(both)).expect("two are more");
        assert_eq!(watch.tick(2, Some(both)), None, "one firing told of both");
        watch.put_off(&cause);
        let last = "some avg10=0.00 avg60=30.00 avg300=0.00 total=1";
        let cause = watch.tick(3, Some(last)).expect("one of them lasts");
        assert_eq!((&*cause.slug(), cause.is_again()), ("psi-some-avg60", true));
        let all = "some avg10=0.00 avg60=30.00 avg300=30.00 total=1";
        let other = watch.tick(4, Some(all)).expect("another one has come");
        assert!(!other.is_again());
        watch.put_off(&other);
        assert_eq!(watch.tick(5, Some(last)), None, "the first was not put off");
    }
}
