//! Sections: what a block is made of once it is decompressed. A section is a column of numbers or a run of bytes.
//!
//! A column keeps the difference of each number to the least of them, and of that all first bytes, then all
//! second bytes, and so on, as many as the greatest difference has: what most numbers share costs next to nothing
//! once it is compressed.

use std::fmt;

macro_rules! ids {
    ($($(#[$comment:meta])* $name:ident = $number:literal,)*) => {
        /// Which section it is. Those that a reader does not know it passes over.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Id {
            $($(#[$comment])* $name = $number,)*
        }

        impl Id {
            /// All of them.
            #[cfg(test)]
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

// docs/recording.md says what they are.
ids! {
    Head = 1,
    Order = 2,
    Notes = 3,
    ThreadPid = 4,
    ThreadTid = 5,
    ThreadUid = 6,
    ThreadComm0 = 7,
    ThreadComm1 = 8,
    ThreadCgroup = 9,
    ThreadKnown = 10,
    ClassWhat = 11,
    ClassKnown = 12,
    ClassOrder = 13,
    ClassGfp = 14,
    ClassPriority = 15,
    ClassNode = 16,
    ClassZone = 17,
    ClassMode = 18,
    ClassStatus = 19,
    ClassTarget = 20,
    RoundEnd = 21,
    RoundDuration = 22,
    RoundThread = 23,
    RoundClass = 24,
    RoundCpu = 25,
    RoundGained = 26,
    RoundScanned = 27,
    RoundFree = 28,
    RoundMin = 29,
    RoundLow = 30,
    RoundHigh = 31,
    RoundIndex = 32,
    RoundStack = 33,
    RoundUserStack = 34,
    ScopeEnd = 35,
    ScopeDuration = 36,
    ScopeThread = 37,
    ScopeCpu = 38,
    ScopeCallers = 39,
    ScopeShrinkers = 40,
    ShrinkerFunction = 41,
    ShrinkerTime = 42,
    StackLength = 43,
    StackAddress = 44,
    UserStackPid = 45,
    UserStackLength = 46,
    UserStackAddress = 47,
    UserStackFrames = 48,
    UserStackFrame = 49,
    NoteUserStack = 50,
    /// The first of as many as there are parts.
    ScopePart = 64,
}

impl Id {
    /// Its number in the file.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// In place of a column's width.
const BYTES: u8 = 0xff;
/// Bytes in front of each section: id, width, count, least value.
const FRONT: usize = 14;

/// Puts sections one behind the other.
#[derive(Debug, Default)]
pub struct Writer {
    pub out: Vec<u8>,
    column: Vec<u64>,
}

impl Writer {
    /// Appends a column.
    pub fn column(&mut self, id: Id, values: impl IntoIterator<Item = u64>) {
        self.numbered(id.number(), values);
    }

    /// Appends the column of that number.
    pub fn numbered(&mut self, number: u8, values: impl IntoIterator<Item = u64>) {
        let mut column = std::mem::take(&mut self.column);
        column.clear();
        column.extend(values);
        self.numbers(number, &column);
        self.column = column;
    }

    /// Appends the column of that number, which is there as a whole.
    pub fn numbers(&mut self, number: u8, column: &[u64]) {
        let out = &mut self.out;
        let first = column.first().copied().unwrap_or_default();
        // Most columns have one number only, and to find that out takes less than to find the least.
        let differs = column.iter().fold(0, |bits, value| bits | (value ^ first)) != 0;
        let least = || column.iter().copied().min().unwrap_or_default();
        let base = if differs { least() } else { first };
        let greatest = column.iter().fold(0, |bits, value| bits | (value - base));
        let width = 8 - greatest.leading_zeros() / 8;
        if base == 0 && width == 0 {
            // What is not there is zero.
            return;
        }
        front(number, width.to_le_bytes()[0], column.len(), base, out);
        for shift in (0..width).map(|byte| 8 * byte) {
            out.extend(column.iter().map(|value| ((value - base) >> shift).to_le_bytes()[0]));
        }
    }

    /// Appends bytes, unless there are none.
    pub fn bytes(&mut self, id: Id, bytes: &[u8]) {
        if !bytes.is_empty() {
            front(id.number(), BYTES, bytes.len(), 0, &mut self.out);
            self.out.extend_from_slice(bytes);
        }
    }
}

fn front(number: u8, width: u8, count: usize, base: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[number, width]);
    // A block is far from having as many.
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&base.to_le_bytes());
}

/// What is in a block makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged(pub &'static str);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Damaged {}

/// The sections of a block.
#[derive(Debug)]
pub struct Sections<'a> {
    /// By number.
    known: [Option<Section<'a>>; 128],
}

#[derive(Clone, Copy, Debug)]
struct Section<'a> {
    width: u8,
    count: usize,
    base: u64,
    data: &'a [u8],
}

impl<'a> Sections<'a> {
    /// Finds them.
    pub fn parse(mut bytes: &'a [u8]) -> Result<Self, Damaged> {
        let mut known = [None; 128];
        while !bytes.is_empty() {
            let Some((front, rest)) = bytes.split_at_checked(FRONT) else {
                return Err(Damaged("a section is cut"));
            };
            let [number, width] = [front[0], front[1]];
            let count = u32::from_le_bytes([front[2], front[3], front[4], front[5]]) as usize;
            let mut base = [0; 8];
            base.copy_from_slice(&front[6..]);
            let len = match width {
                BYTES => Some(count),
                0..=8 => count.checked_mul(usize::from(width)),
                _ => None,
            };
            let Some((data, rest)) = len.and_then(|len| rest.split_at_checked(len)) else {
                return Err(Damaged("a section is longer than its block"));
            };
            if let Some(place) = known.get_mut(usize::from(number)) {
                let base = u64::from_le_bytes(base);
                *place = Some(Section { width, count, base, data });
            }
            bytes = rest;
        }
        Ok(Self { known })
    }

    /// A column of `rows` numbers, all zero where it is not there.
    pub fn column(&self, id: Id, rows: usize) -> Result<Column, Damaged> {
        self.numbered(id.number(), rows)
    }

    /// The column of that number.
    pub fn numbered(&self, number: u8, rows: usize) -> Result<Column, Damaged> {
        let Some(section) = self.known.get(usize::from(number)).copied().flatten() else {
            return Ok(Column::Same(0));
        };
        let Section { width, count, base, data } = section;
        if count != rows || width == BYTES {
            return Err(Damaged("a column has another length than its table"));
        }
        if width == 0 || count == 0 {
            return Ok(Column::Same(base));
        }
        let mut planes = data.chunks_exact(count);
        let first = planes.next().unwrap_or_default();
        let mut values: Vec<_> =
            first.iter().map(|byte| base.wrapping_add(u64::from(*byte))).collect();
        for (plane, shift) in planes.zip((8..).step_by(8)) {
            for (value, byte) in values.iter_mut().zip(plane) {
                *value = value.wrapping_add(u64::from(*byte) << shift);
            }
        }
        Ok(Column::Each(values))
    }

    /// A run of bytes, empty where it is not there.
    pub fn bytes(&self, id: Id) -> Result<&'a [u8], Damaged> {
        match self.known[usize::from(id.number())] {
            Some(Section { width: BYTES, data, .. }) => Ok(data),
            Some(_) => Err(Damaged("numbers stand where text should")),
            None => Ok(&[]),
        }
    }
}

/// The numbers of one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// All of them are the same.
    Same(u64),
    /// In order.
    Each(Vec<u64>),
}

impl Column {
    /// The number of a row of the table.
    #[must_use]
    #[inline]
    pub fn get(&self, row: usize) -> u64 {
        match self {
            Self::Same(value) => *value,
            Self::Each(values) => values.get(row).copied().unwrap_or_default(),
        }
    }

    /// The same where it is a number of 32 bits.
    #[must_use]
    #[inline]
    pub fn get32(&self, row: usize) -> u32 {
        low(self.get(row))
    }

    /// Makes sure that it has only indices of a table of so many rows.
    pub fn check_below(&self, rows: usize, what: &'static str) -> Result<(), Damaged> {
        let greatest = match self {
            Self::Same(value) => *value,
            Self::Each(values) => values.iter().copied().max().unwrap_or_default(),
        };
        if greatest < rows as u64 { Ok(()) } else { Err(Damaged(what)) }
    }
}

/// The lower half.
#[must_use]
pub fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

/// A number with a sign as one without, small where it is near zero.
#[must_use]
pub fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

/// The other way round.
#[must_use]
pub fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_back() {
        for values in [
            vec![],
            vec![0],
            vec![7],
            vec![0, 255, 256, u64::MAX],
            vec![u64::MAX, u64::MAX],
            (0..1000).map(|n| n * n + 1_000_000).collect(),
        ] {
            let mut writer = Writer::default();
            writer.column(Id::RoundFree, values.iter().copied());
            writer.bytes(Id::Head, b"text");
            let sections = Sections::parse(&writer.out).expect("it was just written");
            let column = sections.column(Id::RoundFree, values.len()).expect("as many");
            let read: Vec<_> = (0..values.len()).map(|row| column.get(row)).collect();
            assert_eq!(read, values);
            assert_eq!(sections.bytes(Id::Head), Ok(&b"text"[..]));
            assert_eq!(sections.bytes(Id::Notes), Ok(&b""[..]));
        }
    }

    #[test]
    fn a_column_has_no_more_bytes_than_it_needs() {
        let len = |values: &[u64]| {
            let mut writer = Writer::default();
            writer.column(Id::RoundFree, values.iter().copied());
            writer.out.len()
        };
        assert_eq!(len(&[0; 100]), 0);
        assert_eq!(len(&[u64::MAX; 100]), FRONT);
        assert_eq!(len(&[1 << 40, (1 << 40) + 255]), FRONT + 2);
        assert_eq!(len(&[0, 1 << 16]), FRONT + 6);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut writer = Writer::default();
        writer.column(Id::RoundFree, [1, 2, 300]);
        let whole = writer.out;
        for len in 1..whole.len() {
            assert!(Sections::parse(&whole[..len]).is_err(), "{len}");
        }
        let sections = Sections::parse(&whole).expect("it was just written");
        assert!(sections.column(Id::RoundFree, 2).is_err());
        assert!(sections.bytes(Id::RoundFree).is_err());
        let column = sections.column(Id::RoundFree, 3).expect("as many");
        assert!(column.check_below(301, "").is_ok() && column.check_below(300, "no").is_err());
        let mut wide = whole.clone();
        wide[1] = 9;
        assert!(Sections::parse(&wide).is_err());
    }

    #[test]
    fn signs_go_both_ways() {
        for value in [0, 1, -1, 5, -5, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!(zigzag(-1), 1);
    }
}
