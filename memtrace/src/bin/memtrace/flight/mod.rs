//! The flight recorder's files: one for each time that the trigger fires, with what was kept until then and what
//! comes after.
//!
//! Blocks are handed to a thread of its own a few at a time, which waits for the disk.

mod abandoned;
mod directory;
mod disk;
mod exec;
mod lost;

use std::{
    ffi::OsString,
    fmt::{self, Display, Formatter},
    fs::File,
    io, iter, mem,
    num::NonZero,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use memtrace::{
    clock::WallClock,
    recording::{Fired, Flight, Meta, file, meta::since_1970_ns},
    trigger::Cause,
};
use rustix::thread::CapabilitySet;

use self::{
    directory::{Directory, Part},
    disk::Disk,
    exec::Exec,
};
pub use self::{disk::AT_ONCE, lost::Lost};
use crate::output::say;

/// How long the disk and the command may take at the end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look whether they are done then.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Which files to write.
#[derive(Clone, Debug)]
pub struct Options {
    pub directory: PathBuf,
    /// The trigger as it was given.
    pub trigger: String,
    /// How long to go on after it has fired.
    pub after: Duration,
    /// How long not to begin another file once one is complete.
    pub cooldown: Duration,
    /// How many files to keep; nothing is to keep all.
    pub keep: Option<NonZero<u32>>,
    /// A command of the shell to run for each.
    pub exec: Option<OsString>,
}

/// The files of a flight recorder.
#[derive(Debug)]
pub struct Files {
    options: Options,
    directory: Directory,
    disk: Disk,
    exec: Option<Exec>,
    state: State,
    /// The end of the cooldown, in nanoseconds of `CLOCK_MONOTONIC`.
    quiet_until_ns: u64,
    /// That of OOM kills, which only another one begins: what comes before a kill must not hide it.
    no_oom_until_ns: u64,
    /// Whether the last file is of one.
    is_of_oom: bool,
    /// Firings that nothing came of since the last file was begun.
    missed: u64,
    sum: Sum,
    /// Whether the last file could not be written, which has been said.
    is_failing: bool,
}

#[derive(Debug)]
enum State {
    Idle,
    Writing(Writing),
    Syncing(Syncing),
}

/// A file that blocks are written to.
#[derive(Debug)]
struct Writing {
    part: Part,
    file: Arc<File>,
    cause: String,
    /// When the time after the firing is over.
    until_ns: u64,
    /// The block to write next.
    next: u64,
    /// Up to which block, and what comes after that.
    end: Option<(u64, Vec<u8>)>,
}

/// A file whose last part the disk has to take.
#[derive(Debug)]
struct Syncing {
    part: Part,
    cause: String,
}

/// What has become of all firings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Files that are complete.
    pub written: u64,
    /// Files that could not be written.
    pub failed: u64,
    /// Firings while a file was written or in the cooldown after.
    pub missed: u64,
}

impl Display for Sum {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { written, failed, missed } = self;
        write!(f, "recordings written: {written}")?;
        if *failed > 0 {
            write!(f, ", failed: {failed}")?;
        }
        if *missed > 0 {
            write!(f, "; firings while one was written or in the cooldown: {missed}")?;
        }
        Ok(())
    }
}

impl Files {
    /// Finds out whether files can be written, which is better known before. Completes what a memtrace that did not come to
    /// its end has left.
    pub fn prepare(options: Options) -> Result<Self> {
        let files = Self {
            directory: Directory::prepare(&options.directory)?,
            disk: Disk::start().context("cannot start a thread to write recordings")?,
            exec: options.exec.clone().map(Exec::new),
            options,
            state: State::Idle,
            quiet_until_ns: 0,
            no_oom_until_ns: 0,
            is_of_oom: false,
            missed: 0,
            sum: Sum::default(),
            is_failing: false,
        };
        let completed = files.directory.complete_abandoned().unwrap_or_else(|error| {
            say(format_args!(
                "memtrace: cannot look for recordings that are not complete: {error}"
            ));
            Vec::new()
        });
        for name in &completed {
            let path = files.directory.path(name);
            say(format_args!("memtrace: `{}` completed, as far as it was written", path.display()));
        }
        if !completed.is_empty() {
            files.keep(&[]);
        }
        Ok(files)
    }

    /// Removes the oldest files, but none of these names, where not all are to be kept.
    fn keep(&self, stay: &[&str]) {
        let Some(most) = self.options.keep else { return };
        let most = usize::try_from(most.get()).unwrap_or(usize::MAX);
        if let Err(error) = self.directory.keep(most, stay) {
            say(format_args!("memtrace: cannot remove the oldest recordings: {error}"));
        }
    }

    /// The capabilities without which they cannot be written.
    pub fn needs(&self) -> CapabilitySet {
        self.directory.needs()
    }

    /// Whether a file would be begun.
    pub fn is_ready(&self, cause: &Cause, now_ns: u64) -> bool {
        let until_ns = if cause.is_oom() { self.no_oom_until_ns } else { self.quiet_until_ns };
        !self.is_writing() && now_ns >= until_ns
    }

    /// Begins a file, unless one is being written or has just been; says whether. If not,
    /// [`put_off`](memtrace::trigger::Watch::put_off) is to be told. `meta` is what it begins with,
    /// but for the trigger and the time that it begins at.
    ///
    /// What waits to become a block has to be one before; later blocks are taken from `flight` by and by.
    pub fn fire(
        &mut self,
        cause: &Cause,
        now_ns: u64,
        clock: &WallClock,
        meta: &Meta,
        flight: &mut Flight,
    ) -> bool {
        if !self.is_ready(cause, now_ns) {
            if !cause.is_again() {
                self.missed += 1;
                self.sum.missed += 1;
            }
            if cause.is_oom() && !self.is_writing() {
                say(format_args!(
                    "memtrace: no file of its own, in the cooldown of another: {cause}"
                ));
            }
            return false;
        }
        let begun =
            self.begin(cause, now_ns, clock, meta, flight.numbers().start, flight.since_ns());
        match begun {
            Ok(writing) => {
                flight.hold(Some(writing.next));
                self.missed = 0;
                self.is_of_oom = cause.is_oom();
                self.state = State::Writing(writing);
                true
            }
            Err(error) => {
                self.fail(&error, now_ns);
                false
            }
        }
    }

    fn begin(
        &mut self,
        cause: &Cause,
        now_ns: u64,
        clock: &WallClock,
        meta: &Meta,
        first: u64,
        since_ns: u64,
    ) -> io::Result<Writing> {
        let at = clock.at(cause.at_ns);
        let words = match self.missed {
            0 => cause.to_string(),
            missed => format!("{cause}; firings since the file before: {missed}"),
        };
        let fired = Fired {
            trigger: self.options.trigger.clone(),
            cause: words,
            at_ns: since_1970_ns(at),
            at_monotonic_ns: cause.at_ns,
        };
        let began_ns = since_1970_ns(clock.at(since_ns)).max(meta.began_ns);
        let meta = Meta { trigger: Some(fired), began_ns, ..meta.clone() };
        // It has all of the file before, or could not write it.
        let room = self.disk.room()?.ok_or(io::ErrorKind::ResourceBusy)?;
        let (part, file) = self.directory.begin(at, &cause.slug())?;
        room.extend_from_slice(&file::header(&meta));
        let after_ns = u64::try_from(self.options.after.as_nanos()).unwrap_or(u64::MAX);
        let until_ns = now_ns.saturating_add(after_ns);
        let cause = cause.to_string();
        let file = Arc::new(file);
        Ok(Writing { part, file, cause, until_ns, next: first, end: None })
    }

    /// Whether there is a file that is not complete.
    pub fn is_writing(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// Whether the time after the firing is over, and [`finish`](Self::finish) has to be called.
    pub fn is_due(&self, now_ns: u64) -> bool {
        matches!(&self.state, State::Writing(writing)
            if writing.end.is_none() && now_ns >= writing.until_ns)
    }

    /// Nothing comes after the blocks that there are now but this one, which has the end and is not in `flight`.
    pub fn finish(&mut self, last: &[u8], flight: &Flight) {
        if let State::Writing(writing) = &mut self.state {
            writing.end.get_or_insert_with(|| (flight.numbers().end, last.to_owned()));
        }
    }

    /// Has some of the blocks that wait written, once those before are. A file that cannot be written is given up.
    pub fn write(&mut self, now_ns: u64, flight: &mut Flight) {
        let State::Writing(writing) = &mut self.state else { return };
        let room = match self.disk.room() {
            Ok(Some(room)) => room,
            Ok(None) => return,
            Err(error) => {
                let _removed: io::Result<()> = self.directory.remove(&writing.part.name);
                self.fail(&error, now_ns);
                return flight.hold(None);
            }
        };
        let is_last = writing.fill(room, flight);
        if is_last || !room.is_empty() {
            self.disk.write(&writing.file, is_last);
        }
        flight.hold(Some(writing.next));
        if is_last && let State::Writing(writing) = mem::replace(&mut self.state, State::Idle) {
            let Writing { part, cause, .. } = writing;
            self.state = State::Syncing(Syncing { part, cause });
            flight.hold(None);
        }
    }

    /// Completes the file that the disk has taken, and looks whether the command has ended: now and then.
    pub fn tick(&mut self, now_ns: u64) {
        if let Some(exec) = &mut self.exec {
            exec.reap();
        }
        if !matches!(self.state, State::Syncing(_)) {
            return;
        }
        let synced = match self.disk.room() {
            Ok(None) => return,
            Ok(Some(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let State::Syncing(Syncing { part, cause }) = mem::replace(&mut self.state, State::Idle)
        {
            self.complete(synced, &part, &cause, now_ns);
        }
    }

    fn complete(&mut self, synced: io::Result<()>, part: &Part, cause: &str, now_ns: u64) {
        let name = match synced.and_then(|()| self.directory.complete(part)) {
            Ok(name) => name,
            Err(error) => {
                let _removed: io::Result<()> = self.directory.remove(&part.name);
                self.fail(&error, now_ns);
                return;
            }
        };
        self.sum.written += 1;
        self.is_failing = false;
        self.cool_down(now_ns);
        let path = self.directory.path(&name);
        say(format_args!("memtrace: `{}` written: {cause}", path.display()));
        // The command may have yet to read the file that it runs with.
        let read = self.exec.as_ref().and_then(|exec| exec.running()?.file_name()?.to_str());
        let stay: Vec<_> = iter::once(&*name).chain(read).collect();
        self.keep(&stay);
        if let Some(exec) = &mut self.exec {
            exec.start(&path, cause);
        }
    }

    /// Gives a file up: the disk may have room for the next one.
    fn fail(&mut self, error: &io::Error, now_ns: u64) {
        self.state = State::Idle;
        self.sum.failed += 1;
        self.cool_down(now_ns);
        if !mem::replace(&mut self.is_failing, true) {
            let directory = self.options.directory.display();
            say(format_args!(
                "memtrace: cannot write a recording into `{directory}`: {error}; tracing goes on, and so does the trigger"
            ));
        }
    }

    fn cool_down(&mut self, now_ns: u64) {
        let cooldown_ns = u64::try_from(self.options.cooldown.as_nanos()).unwrap_or(u64::MAX);
        self.quiet_until_ns = now_ns.saturating_add(cooldown_ns);
        if self.is_of_oom {
            self.no_oom_until_ns = self.quiet_until_ns;
        }
    }

    /// Completes the file that is being written, waits a little for the command, and tells what has become of all.
    pub fn end(self, now_ns: u64, flight: &mut Flight) -> Sum {
        self.end_by(Instant::now() + PATIENCE, now_ns, flight)
    }

    fn end_by(mut self, until: Instant, now_ns: u64, flight: &mut Flight) -> Sum {
        self.finish(&[], flight);
        loop {
            self.write(now_ns, flight);
            self.tick(now_ns);
            if !self.is_writing() || Instant::now() >= until {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        match mem::replace(&mut self.state, State::Idle) {
            State::Idle => {}
            // All of it is written, even if the disk does not have it.
            State::Syncing(Syncing { part, cause }) => {
                self.complete(Ok(()), &part, &cause, now_ns);
            }
            // What is written can be read, and to what is not its reader points.
            State::Writing(Writing { part, cause, .. }) => {
                let seconds = PATIENCE.as_secs();
                say(format_args!(
                    "memtrace: the last recording lacks its end: it could not be written within {seconds} s"
                ));
                self.complete(Ok(()), &part, &cause, now_ns);
            }
        }
        if let Some(exec) = &mut self.exec {
            exec.end(until);
        }
        self.sum
    }
}

impl Writing {
    /// Adds the blocks that come next to what is written next, as many as are written at once; says whether that is all of
    /// them, with the end.
    fn fill(&mut self, room: &mut Vec<u8>, flight: &Flight) -> bool {
        let Self { next, end, .. } = self;
        let numbers = flight.numbers();
        // Those that had to make room are missing in the file, which their numbers tell.
        *next = numbers.start.max(*next);
        let up_to = end.as_ref().map_or(numbers.end, |(up_to, _)| *up_to);
        let has_room = |room: &Vec<u8>, len: usize| room.is_empty() || room.len() + len <= AT_ONCE;
        for [front, back] in flight.from(*next) {
            if *next >= up_to {
                break;
            }
            if !has_room(room, front.len() + back.len()) {
                return false;
            }
            room.extend_from_slice(front);
            room.extend_from_slice(back);
            *next += 1;
        }
        let last = end.as_ref().filter(|(_, last)| has_room(room, last.len()));
        last.is_some_and(|(_, last)| {
            room.extend_from_slice(last);
            true
        })
    }
}

#[cfg(test)]
mod tests;
