//! Text that others have chosen, as it is in the page.

use std::io::{self, Write};

use crate::text::Printable;

/// Most characters of a name in the page.
const MOST: usize = 240;

/// Bytes as they are shown to people, without the middle where they are many.
pub fn short(bytes: &[u8]) -> String {
    let text = Printable(bytes).to_string();
    let count = text.chars().count();
    if count <= MOST {
        return text;
    }
    // The end of a path tells most.
    let (head, tail) = (MOST / 3, MOST - MOST / 3 - 1);
    let head: String = text.chars().take(head).collect();
    let tail: String = text.chars().skip(count - tail).collect();
    format!("{head}…{tail}")
}

/// Text in HTML, also as the value of an attribute.
pub fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Passes JSON on so that nothing in it ends or begins an element: these characters stand in its strings only.
pub struct InScript<W>(pub W);

impl<W: Write> Write for InScript<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Self(out) = self;
        while let Some(at) = memchr::memchr3(b'<', b'>', b'&', bytes) {
            out.write_all(&bytes[..at])?;
            write!(out, "\\u{:04x}", bytes[at])?;
            bytes = &bytes[at + 1..];
        }
        out.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_a_script() {
        let hostile = "</script><!--<script>]]>&amp;\u{2028}\\\"";
        let mut out = Vec::new();
        serde_json::to_writer(InScript(&mut out), &[hostile]).expect("memory takes all");
        let text = String::from_utf8(out).expect("JSON is UTF-8");
        assert!(!text.contains(['<', '>', '&']), "{text}");
        let back: Vec<String> = serde_json::from_str(&text).expect("still JSON");
        assert_eq!(back, [hostile]);
    }

    #[test]
    fn nothing_becomes_an_element() {
        assert_eq!(html("<b a=\"x\" c='y'>&"), "&lt;b a=&quot;x&quot; c=&#39;y&#39;&gt;&amp;");
    }

    #[test]
    fn long_names_keep_both_ends() {
        let long = format!("/begin{}end", "é".repeat(4000));
        let shown = short(long.as_bytes());
        assert_eq!(shown.chars().count(), MOST);
        assert!(shown.starts_with("/begin") && shown.ends_with("éend") && shown.contains('…'));
        assert_eq!(short(b"a\xff\n"), "a\\xff\\x0a");
    }
}
