//! Standard output: written in whole lines, as soon as nothing more is waiting, by one call each
//! time.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    stdio,
};

/// Buffered bytes after which to write even though more is waiting.
const WRITE_AT: usize = 64 * 1024;

/// Whether anyone reads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Reader {
    Present,
    /// The pipe was closed at the other end, as `head` does: an end like any other.
    Gone,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub struct Output {
    /// Whole lines; views append to it.
    pub lines: Vec<u8>,
}

impl Output {
    /// Writes what has gathered if it is much.
    pub fn relieve(&mut self) -> Result<Reader> {
        if self.lines.len() < WRITE_AT { Ok(Reader::Present) } else { self.flush() }
    }

    /// Writes what has gathered.
    pub fn flush(&mut self) -> Result<Reader> {
        if self.lines.is_empty() {
            return Ok(Reader::Present);
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(&self.lines).and_then(|()| stdout.flush());
        self.lines.clear();
        match written {
            Ok(()) => Ok(Reader::Present),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
            Err(error) => Err(error).context("cannot write to standard output"),
        }
    }
}

/// Looks whether the reader of standard output is gone without writing: on a quiet host the next
/// row may never come.
pub fn reader() -> Reader {
    let mut stdout = [PollFd::from_borrowed_fd(stdio::stdout(), PollFlags::empty())];
    let polled = poll(&mut stdout, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let gone = polled.is_ok() && stdout[0].revents().contains(PollFlags::ERR);
    if gone { Reader::Gone } else { Reader::Present }
}
