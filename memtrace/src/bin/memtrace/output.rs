//! Standard output and standard error, either of which may be gone, full, or read by no one just
//! now: nothing here panics, and nothing waits where stalls would be lost meanwhile.

use std::{
    io::{self, Write as _},
    os::fd::BorrowedFd,
};

use anyhow::{Context as _, Result};
use memtrace::view::Sink;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
    stdio,
};

/// Most bytes that wait for a reader. After that stalls that become lines wait in the ring buffer, whose losses are
/// counted; histograms wait to be shown.
const MOST_WAITING: usize = 128 << 10;
/// Room for the line that goes beyond it.
const ONE_MORE: usize = 64 << 10;
/// Bytes that a pipe takes without blocking when it can be written to at all (`PIPE_BUF`).
const AT_ONCE: usize = 4096;

/// How things stand with the reader of standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Reader {
    /// It took all there was.
    Ready,
    /// It does not read at the moment.
    Busy,
    /// The pipe was closed at the other end, as `head` does: an end like any other.
    Gone,
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// How long to wait before looking again, where nothing else is to be done.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Standard output: written in whole lines, as soon as nothing more is waiting.
#[derive(Debug)]
pub struct Output {
    /// Whole lines; views append to it.
    pub lines: Vec<u8>,
    /// A file takes everything; pipes and terminals have to be asked.
    is_file: bool,
}

impl Sink for Output {
    fn lines(&mut self) -> &mut Vec<u8> {
        &mut self.lines
    }

    /// Writes as much as the reader takes at once. What fails here fails for the caller's next [`Output::flush`], too.
    fn make_room(&mut self) -> bool {
        if !self.has_room() {
            let _flushed: Result<Reader> = self.flush();
        }
        self.has_room()
    }
}

impl Output {
    pub fn new() -> Self {
        let lines = Vec::with_capacity(MOST_WAITING + ONE_MORE);
        Self { lines, is_file: is_file() }
    }

    /// Whether more lines may be added.
    pub fn has_room(&self) -> bool {
        self.lines.len() < MOST_WAITING
    }

    /// Writes what waits once that is much, and waits for the reader to take it.
    pub fn deliver(&mut self) -> Result<Reader> {
        if self.has_room() { Ok(Reader::Ready) } else { self.deliver_all() }
    }

    /// Writes all that waits, and waits for the reader to take it.
    pub fn deliver_all(&mut self) -> Result<Reader> {
        loop {
            match self.flush()? {
                Reader::Busy => {
                    let _ready: Reader = reader(PollFlags::OUT, PATIENCE);
                }
                done => return Ok(done),
            }
        }
    }

    /// Writes what waits, as far as the reader takes it.
    pub fn flush(&mut self) -> Result<Reader> {
        let mut written = 0;
        let reader = loop {
            let rest = &self.lines[written..];
            if rest.is_empty() {
                break Ok(Reader::Ready);
            }
            let part = if self.is_file { rest } else { &rest[..rest.len().min(AT_ONCE)] };
            if !self.is_file {
                match reader(PollFlags::OUT, NOW) {
                    Reader::Ready => {}
                    other => break Ok(other),
                }
            }
            match rustix::io::write(stdio::stdout(), part) {
                Ok(len) => written += len,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break Ok(Reader::Busy),
                Err(rustix::io::Errno::PIPE) => break Ok(Reader::Gone),
                Err(error) => break Err(io::Error::from(error)),
            }
        };
        self.lines.drain(..written);
        reader.context("cannot write to standard output")
    }
}

/// Whether standard output is a file, where nobody sees lines as they come.
pub fn is_file() -> bool {
    let kind = fstat(stdio::stdout()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind == Ok(FileType::RegularFile)
}

/// Looks whether the reader of standard output is gone without writing: on a quiet host the next
/// row may never come.
pub fn is_gone() -> bool {
    reader(PollFlags::empty(), NOW) == Reader::Gone
}

fn reader(interest: PollFlags, patience: Timespec) -> Reader {
    let stdout: BorrowedFd<'_> = stdio::stdout();
    let mut polled = [PollFd::from_borrowed_fd(stdout, interest)];
    let found = poll(&mut polled, Some(&patience));
    let events = polled[0].revents();
    match found {
        Ok(_) if events.contains(PollFlags::ERR) => Reader::Gone,
        Ok(_) if events.contains(interest) => Reader::Ready,
        _ => Reader::Busy,
    }
}

/// Prints a line on standard error. A pipe that is closed there is no reason to end, nor to panic.
pub fn say(line: impl std::fmt::Display) {
    let _printed: io::Result<()> = writeln!(io::stderr(), "{line}");
}
