//! Prints what tests and guests print, as it comes; line by line where there are several of them. Adds results up.

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use crate::tally::Tally;

/// Where the output of one goes.
#[derive(Debug)]
pub struct Output {
    /// Put in front of each line, and lines are kept whole.
    prefix: Option<String>,
    tally: Mutex<Tally>,
    /// What is for the caller, not to be printed.
    kept: Option<Mutex<Vec<u8>>>,
}

impl Output {
    /// Nothing has come yet.
    pub fn new(prefix: Option<String>) -> Self {
        Self { prefix, tally: Mutex::default(), kept: None }
    }

    /// As [`Output::new`], where nothing is printed, but all kept.
    pub fn keeping() -> Self {
        Self { kept: Some(Mutex::default()), ..Self::new(None) }
    }

    /// What was kept so far.
    pub fn kept(&self) -> String {
        let kept =
            self.kept.as_ref().map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner));
        kept.map_or_else(String::new, |kept| String::from_utf8_lossy(&kept).into_owned())
    }

    /// Prints all that comes.
    pub fn copy(&self, from: &mut impl Read) {
        // What was not printed yet, and the line that was not added up.
        let (mut pending, mut line) = (Vec::new(), Vec::new());
        let mut buffer = [0; 4096];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            for part in buffer[..read].split_inclusive(|&byte| byte == b'\n') {
                line.extend_from_slice(part);
                if part.ends_with(b"\n") {
                    self.add_up(&line);
                    line.clear();
                }
            }
            pending.extend_from_slice(&buffer[..read]);
            let whole = match &self.prefix {
                None => pending.len(),
                Some(_) => pending.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1),
            };
            self.print(&pending[..whole]);
            pending.drain(..whole);
        }
        if !pending.is_empty() {
            pending.push(b'\n');
            self.print(&pending);
        }
    }

    /// The results of the tests that have printed them.
    pub fn into_tally(self) -> Tally {
        self.tally.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_up(&self, line: &[u8]) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.line(&String::from_utf8_lossy(line));
    }

    fn print(&self, bytes: &[u8]) {
        if let Some(kept) = &self.kept {
            kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            return;
        }
        let mut stdout = io::stdout().lock();
        // Whoever does not want the output any more still wants the status.
        let _unread: io::Result<()> =
            stdout.write_all(&self.prefixed(bytes)).and_then(|()| stdout.flush());
    }

    fn prefixed(&self, bytes: &[u8]) -> Vec<u8> {
        let Some(prefix) = &self.prefix else { return bytes.to_owned() };
        let lines = bytes.split_inclusive(|&byte| byte == b'\n');
        lines.flat_map(|line| [prefix.as_bytes(), b" | ", line].concat()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_whose_it_is() {
        let of_one = Output::new(Some("6.1".to_owned()));
        assert_eq!(of_one.prefixed(b"a\n\nb\n"), b"6.1 | a\n6.1 | \n6.1 | b\n");
        assert_eq!(Output::new(None).prefixed(b"a\nb"), b"a\nb");
    }

    #[test]
    fn what_is_kept_is_as_it_came() {
        let output = Output::keeping();
        output.copy(&mut &b"a\n\nb"[..]);
        output.copy(&mut &b"c\n"[..]);
        assert_eq!(output.kept(), "a\n\nbc\n");
        assert_eq!(Output::new(None).kept(), "");
    }

    #[test]
    fn results_are_read_from_whole_lines() {
        let output = Output::new(None);
        let said = "test result: ok. 3 passed; 0 failed; 0 ignored\n";
        let (first, second) = said.split_at(20);
        output.copy(&mut first.as_bytes().chain(second.as_bytes()));
        let tally = output.into_tally().shown(std::time::Duration::ZERO).to_string();
        assert_eq!(tally, "3 tests passed, 0 failed in 0 s");
    }
}
