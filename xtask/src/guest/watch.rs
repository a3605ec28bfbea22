//! Makes up its mind about a guest from what comes out of it: is it up, has it ended, and how.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::console::Console;

/// How long a guest may take to run its first program. Some seconds on a machine that is not busy.
const BOOT_LIMIT: Duration = Duration::from_mins(2);

/// How long a panic may take to be said in full, and a guest to turn itself off.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Lines of the console that are kept.
const TAIL: usize = 40;

/// Something that came out of the guest, or did not.
#[derive(Debug)]
pub enum Event {
    /// A line on the kernel's console, or of the emulator's own.
    Console(String),
    /// A line on the channel between xtask and the guest's init.
    Control(String),
    /// All channels are closed: the emulator has ended.
    Closed,
    /// The emulator has failed, for this reason.
    Broken(String),
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command ended with this status.
    Exited(u8),
    /// It came to nothing before the command began.
    NotBooted(String),
    /// It came to an end other than the command's.
    Died(String),
}

/// What is known of a running guest.
#[derive(Debug)]
pub struct Watch {
    console: Console,
    tail: VecDeque<String>,
    started: Instant,
    limit: Duration,
    is_up: bool,
    ending: Option<(Ending, Instant)>,
}

impl Watch {
    /// Of a guest that was `started` just now, and whose command may take until `limit`.
    pub fn new(started: Instant, limit: Duration) -> Self {
        Self {
            console: Console::default(),
            tail: VecDeque::new(),
            started,
            limit,
            is_up: false,
            ending: None,
        }
    }

    /// Takes note of what came out.
    pub fn note(&mut self, event: Event, now: Instant) {
        match event {
            Event::Console(line) => {
                if let Some(trouble) = self.console.line(&line) {
                    self.fail(trouble, now);
                }
                if self.tail.len() == TAIL {
                    self.tail.pop_front();
                }
                self.tail.push_back(line);
            }
            Event::Control(line) => match line.trim().split_once(' ') {
                Some(("exit", status)) => match status.parse() {
                    Ok(status) => self.end(Ending::Exited(status), now),
                    Err(_) => self.fail("the guest's init told no exit status", now),
                },
                Some(("failed", why)) => self.end(Ending::Died(why.to_owned()), now),
                _ if line.trim() == "hello" => self.is_up = true,
                // Half a line of a guest that ended, or was told so by someone else.
                _ => {}
            },
            Event::Closed => {
                self.fail("the guest turned itself off", now);
                self.expect_no_more(now);
            }
            // To try again is of no use.
            Event::Broken(why) => {
                self.end(Ending::Died(why), now);
                self.expect_no_more(now);
            }
        }
    }

    /// Whether it is time to take the guest's end for granted.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let limit = if self.is_up { self.limit } else { BOOT_LIMIT.min(self.limit) };
        if self.ending.is_none() && now.duration_since(self.started) > limit {
            self.fail(&format!("the guest ran out of time after {} s", limit.as_secs()), now);
            return true;
        }
        self.ending.as_ref().is_some_and(|(_, at)| now.duration_since(*at) >= LAST_WORDS)
    }

    /// How it ended, and the last that the kernel said.
    pub fn finish(self) -> (Ending, Vec<String>) {
        let ending = self
            .ending
            .map_or(Ending::Died("the guest was given up".to_owned()), |(ending, _)| ending);
        (ending, self.tail.into())
    }

    fn fail(&mut self, why: &str, now: Instant) {
        let why = why.to_owned();
        self.end(if self.is_up { Ending::Died(why) } else { Ending::NotBooted(why) }, now);
    }

    fn expect_no_more(&mut self, now: Instant) {
        if let Some((_, at)) = &mut self.ending {
            *at = now.checked_sub(LAST_WORDS).unwrap_or(*at);
        }
    }

    /// The first ending counts: what comes after it is of its making.
    fn end(&mut self, ending: Ending, now: Instant) {
        self.ending.get_or_insert((ending, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(10);

    fn watched(events: impl IntoIterator<Item = Event>) -> Ending {
        let start = Instant::now();
        let mut watch = Watch::new(start, LIMIT);
        for event in events {
            watch.note(event, start);
        }
        watch.finish().0
    }

    fn control(line: &str) -> Event {
        Event::Control(line.to_owned())
    }

    fn panic() -> Event {
        Event::Console("[ 0.5] Kernel panic - not syncing: x".to_owned())
    }

    #[test]
    fn the_commands_status_is_the_guests() {
        let ending = watched([control("hello"), control("exit 7"), Event::Closed]);
        assert_eq!(ending, Ending::Exited(7));
    }

    #[test]
    fn a_panic_before_the_first_program_is_none_of_the_tests() {
        assert_eq!(
            watched([panic(), Event::Closed]),
            Ending::NotBooted("the kernel panicked".into())
        );
        let ending = watched([control("hello"), panic(), Event::Closed]);
        assert_eq!(ending, Ending::Died("the kernel panicked".into()));
        let ending = watched([control("hello"), control("exit 0"), panic()]);
        assert_eq!(ending, Ending::Exited(0), "the command had ended before");
    }

    #[test]
    fn an_emulator_that_fails_is_not_tried_again() {
        let broken = || Event::Broken("qemu failed".to_owned());
        assert_eq!(watched([broken()]), Ending::Died("qemu failed".into()));
        let ending = watched([control("hello"), control("exit 0"), broken()]);
        assert_eq!(ending, Ending::Exited(0), "the command had ended before");
    }

    #[test]
    fn a_guest_that_ends_without_a_status_died() {
        let died = Ending::Died("the guest turned itself off".into());
        assert_eq!(watched([control("hello"), Event::Closed]), died);
        assert_eq!(watched([control("hello"), control("ex"), Event::Closed]), died);
        let ending = watched([control("failed no disk"), Event::Closed]);
        assert_eq!(ending, Ending::Died("no disk".into()));
    }

    #[test]
    fn time_runs_out_sooner_for_a_boot() {
        let start = Instant::now();
        let later = start + BOOT_LIMIT + Duration::from_secs(1);
        let mut watch = Watch::new(start, LIMIT);
        assert!(!watch.is_over(start));
        assert!(watch.is_over(later));
        assert_eq!(
            watch.finish().0,
            Ending::NotBooted("the guest ran out of time after 120 s".into())
        );

        let mut watch = Watch::new(start, LIMIT);
        watch.note(control("hello"), start);
        assert!(!watch.is_over(later));
        assert!(watch.is_over(start + LIMIT + Duration::from_secs(1)));
        assert_eq!(watch.finish().0, Ending::Died("the guest ran out of time after 600 s".into()));
    }

    #[test]
    fn a_panic_is_let_finish_its_sentence() {
        let start = Instant::now();
        let mut watch = Watch::new(start, LIMIT);
        watch.note(panic(), start);
        assert!(!watch.is_over(start));
        assert!(watch.is_over(start + LAST_WORDS));
        watch.note(Event::Console("[ 0.5] CPU: 0 PID: 1".to_owned()), start);
        assert_eq!(watch.finish().1.len(), 2);
        let mut watch = Watch::new(start, LIMIT);
        watch.note(panic(), start);
        watch.note(Event::Closed, start + Duration::from_secs(1));
        assert!(watch.is_over(start + Duration::from_secs(1)), "nothing more can come");
    }
}
