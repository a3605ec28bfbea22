//! A line of columns, appended to a buffer.
//!
//! Made by hand: the standard library's formatter takes four times as long, mostly for padding, and
//! where stalls come by the hundred thousand the CPU has better to do.

use std::borrow::Cow;

use unicode_width::UnicodeWidthStr;

use crate::stall::Comm;
use crate::text::Printable;

/// What can stand in a column.
pub trait Word {
    /// Appends it, in UTF-8 and without padding.
    fn append(self, out: &mut Vec<u8>);
}

impl Word for &str {
    fn append(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
}

impl Word for Cow<'_, str> {
    fn append(self, out: &mut Vec<u8>) {
        (&*self).append(out);
    }
}

macro_rules! numbers {
    ($($number:ty)*) => {
        $(impl Word for $number {
            fn append(self, out: &mut Vec<u8>) {
                itoa::Buffer::new().format(self).append(out);
            }
        })*
    };
}

numbers!(i32 u32 u64 u128);

/// `-` where it is not known.
impl<T: Word> Word for Option<T> {
    fn append(self, out: &mut Vec<u8>) {
        match self {
            Some(word) => word.append(out),
            None => out.push(b'-'),
        }
    }
}

impl Word for Printable<'_> {
    fn append(self, out: &mut Vec<u8>) {
        self.append_to(out);
    }
}

impl Word for Comm {
    fn append(self, out: &mut Vec<u8>) {
        Printable(self.as_bytes()).append(out);
    }
}

/// Appends the last `digits` digits of a number, zeros in front.
pub fn append_digits(mut number: u32, digits: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + digits, b'0');
    for digit in out[start..].iter_mut().rev() {
        *digit = b"0123456789"[(number % 10) as usize];
        number /= 10;
    }
}

/// A line in the making. Widths are columns of a terminal; what is wider pushes the rest.
pub struct Line<'a>(&'a mut Vec<u8>);

impl<'a> Line<'a> {
    /// Begins a line at the end of `out`.
    pub fn begin(out: &'a mut Vec<u8>) -> Self {
        Self(out)
    }

    /// Appends a column, aligned to the left.
    pub fn left(&mut self, width: usize, word: impl Word) -> &mut Self {
        let (_, missing) = self.append(width, word);
        self.0.resize(self.0.len() + missing, b' ');
        self.0.push(b' ');
        self
    }

    /// Appends a column, aligned to the right.
    pub fn right(&mut self, width: usize, word: impl Word) -> &mut Self {
        let (start, missing) = self.append(width, word);
        let end = self.0.len();
        self.0.resize(end + missing, b' ');
        self.0[start..].rotate_right(missing);
        self.0.push(b' ');
        self
    }

    /// Ends the line, in place of the blank behind its last column.
    pub fn end(&mut self) {
        if let Some(separator) = self.0.last_mut() {
            *separator = b'\n';
        }
    }

    /// Where the word begins, and how many columns it lacks.
    fn append(&mut self, width: usize, word: impl Word) -> (usize, usize) {
        let start = self.0.len();
        word.append(self.0);
        (start, width.saturating_sub(columns(&self.0[start..])))
    }
}

fn columns(word: &[u8]) -> usize {
    if word.is_ascii() {
        return word.len();
    }
    str::from_utf8(word).map_or(word.len(), UnicodeWidthStr::width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(word: impl Word + Clone) -> (String, String) {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out);
        line.left(6, word.clone()).right(6, word).end();
        let line = String::from_utf8(out).expect("words are UTF-8");
        let at = line.char_indices().map(|(at, _)| at).find(|&at| line[..at].width() == 7);
        let (left, right) = line.split_at(at.expect("two columns"));
        (left.to_owned(), right.to_owned())
    }

    #[test]
    fn columns_are_those_of_a_terminal() {
        for (word, left, right) in [
            ("", "       ", "      \n"),
            ("ab", "ab     ", "    ab\n"),
            ("é日💩", "é日💩  ", " é日💩\n"),
        ] {
            assert_eq!(padded(word), (left.to_owned(), right.to_owned()));
        }
        assert_eq!(padded(Printable(b"\xff")).0, "\\xff   ");
    }

    #[test]
    fn what_is_too_wide_pushes_the_rest() {
        let mut out = b"before\n".to_vec();
        Line::begin(&mut out).left(3, "1234").right(3, "1234").left(3, "5").end();
        assert_eq!(out, b"before\n1234 1234 5  \n");
    }

    #[test]
    fn numbers_are_those_of_the_standard_library() {
        fn check<T: Word + Copy + ToString>(numbers: &[T]) {
            for number in numbers {
                let mut out = Vec::new();
                number.append(&mut out);
                assert_eq!(String::from_utf8_lossy(&out), number.to_string());
            }
        }
        check(&[i32::MIN, -1, 0, 9, i32::MAX]);
        check(&[0, 10, u32::MAX]);
        check(&[0, 99, u64::MAX]);
        check(&[0, u128::from(u64::MAX) + 1, u128::MAX]);
    }

    #[test]
    fn digits_have_zeros_in_front() {
        for number in [0, 7, 123, 999_999, 123_456_789, u32::MAX] {
            for digits in 1..=9 {
                let mut out = b"5.".to_vec();
                append_digits(number, digits, &mut out);
                let last = number % 10_u32.pow(u32::try_from(digits).expect("small"));
                assert_eq!(String::from_utf8_lossy(&out), format!("5.{last:0digits$}"));
            }
        }
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        assert_eq!(padded(None::<u64>), ("-      ".to_owned(), "     -\n".to_owned()));
        assert_eq!(padded(Some(7_u64)), ("7      ".to_owned(), "     7\n".to_owned()));
    }
}
