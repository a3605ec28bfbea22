//! Text that anyone may have chosen: names of threads and cgroups are any bytes. Shown to people it
//! breaks no line, no table and no terminal; shown to programs nothing of it is lost.

use std::borrow::Cow;
use std::fmt::{self, Alignment, Display, Formatter};
use std::io::Write as _;

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_width::UnicodeWidthStr as _;

/// Whether a character is not to be seen: it controls a terminal, changes the direction of what
/// follows, is made not to be seen, or ends a line.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(get_general_category(c), Control | Format | LineSeparator | ParagraphSeparator)
}

/// Whether bytes are nothing but ASCII that is seen, as most names are. Looks at all of them, as that is
/// done many at a time.
#[must_use]
pub fn is_plain(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'))
}

/// Shows bytes to people: hidden characters and what is not UTF-8 as `\xNN`, the rest as it is.
/// Honours the formatter's width, in columns of a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut shown = Vec::new();
        self.append_to(&mut shown);
        pad(f, &String::from_utf8_lossy(&shown))
    }
}

impl Printable<'_> {
    /// Appends what is shown, without padding.
    pub fn append_to(self, out: &mut Vec<u8>) {
        if is_plain(self.0) {
            out.extend_from_slice(self.0);
            return;
        }
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                let bytes = &mut [0; 4];
                let bytes = c.encode_utf8(bytes).as_bytes();
                if is_hidden(c) {
                    escape(bytes, out);
                } else {
                    out.extend_from_slice(bytes);
                }
            }
            escape(chunk.invalid(), out);
        }
    }
}

/// Shows bytes to programs: UTF-8 as it is, and any other byte as `\xNN`. A backslash that could be
/// taken for the beginning of such a byte is `\x5c`, so that all of it can be turned back.
#[derive(Clone, Copy, Debug)]
pub struct Lossless<'a>(pub &'a [u8]);

impl<'a> Lossless<'a> {
    /// What is shown, which most often are the bytes themselves.
    #[must_use]
    pub fn text(self) -> Cow<'a, str> {
        match str::from_utf8(self.0) {
            Ok(text) if memchr::memchr(b'\\', self.0).is_none() => text.into(),
            _ => self.escaped().into(),
        }
    }

    fn escaped(self) -> String {
        let mut shown = Vec::new();
        for chunk in self.0.utf8_chunks() {
            let mut rest = chunk.valid();
            while let Some(at) = rest.find('\\') {
                let (before, from) = rest.split_at(at);
                let looks_escaped = matches!(
                    from.as_bytes(),
                    [_, b'x', b'8' | b'9' | b'a'..=b'f', b'0'..=b'9' | b'a'..=b'f', ..]
                        | [_, b'x', b'5', b'c', ..]
                );
                shown.extend_from_slice(before.as_bytes());
                shown.extend_from_slice(if looks_escaped { b"\\x5c" } else { b"\\" });
                rest = &from[1..];
            }
            shown.extend_from_slice(rest.as_bytes());
            escape(chunk.invalid(), &mut shown);
        }
        String::from_utf8_lossy(&shown).into_owned()
    }
}

fn escape(bytes: &[u8], shown: &mut Vec<u8>) {
    for byte in bytes {
        let written = write!(shown, "\\x{byte:02x}");
        debug_assert!(written.is_ok(), "writing into memory does not fail");
    }
}

/// Pads text by the columns that it takes on a terminal, where wide characters take two.
fn pad(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    let missing = f.width().unwrap_or(0).saturating_sub(text.width());
    match f.align() {
        Some(Alignment::Right) => write!(f, "{:missing$}{text}", ""),
        _ => write!(f, "{text}{:missing$}", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printable(bytes: &[u8]) -> String {
        Printable(bytes).to_string()
    }

    #[test]
    fn what_is_not_to_be_seen_is_escaped_for_people() {
        for (bytes, shown) in [
            (&b"kworker/0:1"[..], "kworker/0:1"),
            (b"a b\"'`$(x)<b>|;%s", "a b\"'`$(x)<b>|;%s"),
            (b"\x1b[2J\x07\r\n\t\x7f", "\\x1b[2J\\x07\\x0d\\x0a\\x09\\x7f"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"caf\xc3", "caf\\xc3"),
            ("é日本💩".as_bytes(), "é日本💩"),
            ("\u{9b}2J\u{85}".as_bytes(), "\\xc2\\x9b2J\\xc2\\x85"),
            ("\u{202e}txt.exe".as_bytes(), "\\xe2\\x80\\xaetxt.exe"),
            ("\u{2066}\u{2069}".as_bytes(), "\\xe2\\x81\\xa6\\xe2\\x81\\xa9"),
            ("a\u{200b}b\u{feff}".as_bytes(), "a\\xe2\\x80\\x8bb\\xef\\xbb\\xbf"),
            ("\u{2028}\u{2029}\u{ad}".as_bytes(), "\\xe2\\x80\\xa8\\xe2\\x80\\xa9\\xc2\\xad"),
            ("\u{e0041}".as_bytes(), "\\xf3\\xa0\\x81\\x81"),
        ] {
            assert_eq!(printable(bytes), shown);
        }
        assert!((0..=u8::MAX).all(|byte| !printable(&[byte]).contains(is_hidden)));
    }

    #[test]
    fn plain_is_what_is_seen_of_ascii() {
        for byte in 0..=u8::MAX {
            let seen = byte.is_ascii() && !is_hidden(byte.into());
            let long = [&[b'a'; 40][..], &[byte], &[b'a'; 40]].concat();
            assert_eq!((is_plain(&[byte]), is_plain(&long)), (seen, seen), "{byte:#x}");
        }
    }

    #[test]
    fn columns_are_those_of_a_terminal() {
        assert_eq!(format!("{:<6}|", Printable("日本".as_bytes())), "日本  |");
        assert_eq!(format!("{:>6}|", Printable("é".as_bytes())), "     é|");
        assert_eq!(format!("{:<3}|", Printable(b"\xff")), "\\xff|");
    }

    /// Turns what was shown back, as docs/json.md says.
    fn back(shown: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), shown.as_bytes());
        while let [first, after @ ..] = rest {
            let escaped = after.strip_prefix(b"x").and_then(|after| after.get(..2));
            let byte = escaped
                .and_then(|hex| std::str::from_utf8(hex).ok())
                .filter(|hex| !hex.contains(char::is_uppercase))
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match byte {
                Some(byte) if *first == b'\\' && (byte >= 0x80 || byte == b'\\') => {
                    bytes.push(byte);
                    rest = &after[3..];
                }
                _ => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        bytes
    }

    #[test]
    fn nothing_is_lost_for_programs() {
        let names: [&[u8]; 12] = [
            b"postgres",
            b"dev-disk-by\\x2duuid.swap",
            b"\xff",
            b"\\xff",
            b"\\x5cxff",
            b"\\\\xff\\x5c",
            b"\\\xff\\",
            b"\\x8\xffx",
            b"\x1b[2J\n\0",
            "\u{202e}é\\xé0".as_bytes(),
            b"\\xC3\\xc3",
            b"\\",
        ];
        for name in names {
            let shown = Lossless(name).text();
            assert_eq!(back(&shown), name, "{shown}");
        }
        let shown = |name| Lossless(name).text();
        assert_eq!(shown(b"dev-disk-by\\x2duuid.swap"), "dev-disk-by\\x2duuid.swap");
        assert_ne!(shown(b"\xff"), shown(b"\\xff"));
    }
}
