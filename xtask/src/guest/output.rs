//! Prints what guests print, as it comes; line by line where there are several of them.

use std::io::{self, Read, Write};

/// Where one guest's output goes.
#[derive(Clone, Debug)]
pub struct Output {
    /// Put in front of each line, and lines are kept whole.
    pub prefix: Option<String>,
}

impl Output {
    /// Prints all that comes from a guest.
    pub fn copy(&self, from: &mut impl Read) {
        let mut pending = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
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

    fn print(&self, bytes: &[u8]) {
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
        let of_one = Output { prefix: Some("6.1".to_owned()) };
        assert_eq!(of_one.prefixed(b"a\n\nb\n"), b"6.1 | a\n6.1 | \n6.1 | b\n");
        assert_eq!(Output { prefix: None }.prefixed(b"a\nb"), b"a\nb");
    }
}
