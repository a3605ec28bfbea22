//! The file: a header, and blocks with checksums that are found by what they begin with, wherever they stand.
//!
//! A file that has reached its size goes on after its header, over its oldest blocks. So the order of blocks is
//! that of their numbers, not of their places, and whatever is between two of them is passed over.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use thiserror::Error;

use super::decode::Block;
use super::meta::Meta;
use super::sections::Damaged;

/// What every recording begins with.
pub const MAGIC: [u8; 8] = *b"memtrace";
/// The version of the format: a reader refuses those that it does not know.
pub const VERSION: u32 = 1;

/// Bytes of the header in front of what is known of the whole: magic, version, length, checksum.
const HEADER: usize = 20;
/// Longest text in the header.
const MOST_META: usize = 1 << 20;

/// What every block begins with.
const BLOCK_MAGIC: [u8; 8] = *b"\xb1mtblock";
/// Bytes in front of a block: magic, number, first and last time, length compressed and not, checksums of the block
/// and of these bytes.
pub const BLOCK_HEADER: usize = 48;
/// Longest block, not compressed: longer than a writer's can be.
const MOST_RAW: u32 = 24 << 20;
/// How many bytes one byte can stand for in LZ4.
const MOST_EXPANSION: u32 = 255;
/// Most blocks of a file: one a second for 48 days.
const MOST_BLOCKS: usize = 1 << 22;
/// Bytes to look through at once for the next block.
const WINDOW: usize = 256 << 10;

/// Why something is no recording that can be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It cannot be read at all.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is not a recording of memtrace")]
    NotARecording,
    /// It is compressed, by the command of that name.
    #[error(
        "it is not a recording of memtrace, but compressed: decompress it, as with `{0} -dc FILE | memtrace report -`"
    )]
    Compressed(&'static str),
    /// It was made by a newer memtrace.
    #[error(
        "it has version {0} of the format, and this memtrace knows version {VERSION}: use the memtrace that made it, or a newer one"
    )]
    Newer(u32),
    /// Its header makes no sense.
    #[error("its header is damaged, so nothing of it can be read: {0}")]
    Header(&'static str),
}

/// The command that compressed what begins like this, if one of those that are common did.
fn compressor(front: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ];
    KNOWN.iter().find(|(magic, _)| front.starts_with(magic)).map(|(_, command)| *command)
}

/// The bytes that a file begins with.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "it does not panic")]
pub fn header(meta: &Meta) -> Vec<u8> {
    let text = serde_json::to_vec(meta).expect("every key is a text");
    let mut bytes = Vec::with_capacity(HEADER + text.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&len32(&text).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&text).to_le_bytes());
    bytes.extend_from_slice(&text);
    bytes
}

/// A block as it stands in a file: compressed, behind its header.
#[expect(clippy::missing_panics_doc, reason = "it does not panic")]
pub fn block(raw: &[u8], number: u64, (first_ns, last_ns): (u64, u64), out: &mut Vec<u8>) {
    out.clear();
    out.resize(BLOCK_HEADER + lz4_flex::block::get_maximum_output_size(raw.len()), 0);
    let len = lz4_flex::block::compress_into(raw, &mut out[BLOCK_HEADER..])
        .expect("there is room for the most that it can be");
    out.truncate(BLOCK_HEADER + len);
    let (front, data) = out.split_at_mut(BLOCK_HEADER);
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        front[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&BLOCK_MAGIC);
    put(&number.to_le_bytes());
    put(&first_ns.to_le_bytes());
    put(&last_ns.to_le_bytes());
    put(&len32(data).to_le_bytes());
    put(&len32(raw).to_le_bytes());
    put(&crc32fast::hash(data).to_le_bytes());
    let checksum = crc32fast::hash(&front[..BLOCK_HEADER - 4]);
    front[BLOCK_HEADER - 4..].copy_from_slice(&checksum.to_le_bytes());
}

fn len32(bytes: &[u8]) -> u32 {
    // Nothing that is written comes near.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Where a block is, and what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number: the first that was written has 0.
    pub number: u64,
    /// When the first thing in it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub first_ns: u64,
    /// When the last one ended.
    pub last_ns: u64,
    offset: u64,
    len: u32,
    raw_len: u32,
    checksum: u32,
}

impl Place {
    fn parse(front: &[u8; BLOCK_HEADER], offset: u64) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| front[at + byte]));
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| front[at + byte]));
        let is_whole = front.starts_with(&BLOCK_MAGIC)
            && crc32fast::hash(&front[..BLOCK_HEADER - 4]) == half(BLOCK_HEADER - 4);
        let place = Self {
            number: word(8),
            first_ns: word(16),
            last_ns: word(24),
            offset,
            len: half(32),
            raw_len: half(36),
            checksum: half(40),
        };
        let most = lz4_flex::block::get_maximum_output_size(place.raw_len as usize);
        let is_possible = place.raw_len <= MOST_RAW.min(place.len.saturating_mul(MOST_EXPANSION))
            && place.len as usize <= most;
        (is_whole && is_possible).then_some(place)
    }

    /// Its bytes in the file.
    fn bytes(&self) -> u64 {
        BLOCK_HEADER as u64 + u64::from(self.len)
    }

    fn end(&self) -> u64 {
        self.offset + self.bytes()
    }
}

/// What of a recording is not there, as far as headers tell: which blocks are damaged only their data do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Oldest blocks that were given up for the size of the file.
    pub dropped: u64,
    /// Blocks in between that are not there any more.
    pub lost: u64,
    /// Bytes that belong to no block, or to one that is there already. What is left of the block that the newest one was
    /// written over does not count.
    pub stray: u64,
}

/// A recording that can be read.
#[derive(Debug)]
pub struct Recording {
    file: File,
    /// What is known of the whole.
    pub meta: Meta,
    /// Where the blocks are, in their order.
    pub places: Vec<Place>,
    /// What is not there.
    pub missing: Missing,
}

impl Recording {
    /// Opens a recording in a file that can be read at any place.
    pub fn open(file: File) -> Result<Self, ReadError> {
        let mut front = [0; HEADER];
        let len = read_at_most(&file, &mut front, 0)?;
        if !front.starts_with(&MAGIC) {
            return Err(compressor(&front).map_or(ReadError::NotARecording, ReadError::Compressed));
        }
        if len < HEADER {
            return Err(ReadError::Header("it is cut"));
        }
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| front[at + byte]));
        match half(8) {
            VERSION => {}
            newer if newer > VERSION => return Err(ReadError::Newer(newer)),
            _ => return Err(ReadError::NotARecording),
        }
        let len = half(12) as usize;
        if len > MOST_META {
            return Err(ReadError::Header("it is longer than it can be"));
        }
        let mut text = vec![0; len];
        if read_at_most(&file, &mut text, HEADER as u64)? < len {
            return Err(ReadError::Header("it is cut"));
        }
        if crc32fast::hash(&text) != half(16) {
            return Err(ReadError::Header("its checksum is another"));
        }
        let meta = serde_json::from_slice(&text)
            .map_err(|_| ReadError::Header("it is not the text that it should be"))?;
        let (start, size) = ((HEADER + len) as u64, file.metadata()?.len());
        let (places, stray) = find(&file, start, size)?;
        let mut recording =
            Self { file, meta, places, missing: Missing { stray, ..Missing::default() } };
        recording.sort(start, size)?;
        Ok(recording)
    }

    /// Puts the blocks into their order, each number once. They are between these two places.
    fn sort(&mut self, start: u64, size: u64) -> io::Result<()> {
        let Self { file, places, missing, meta } = self;
        places.sort_unstable_by_key(|place| (place.number, place.offset));
        if meta.trigger.is_none() {
            let Range { start, end } = remains(places, start, size);
            let mut front = [0; BLOCK_MAGIC.len()];
            let len = read_at_most(file, &mut front, start)?;
            // One that begins there is cut, or damaged.
            if front[..len] != BLOCK_MAGIC {
                missing.stray -= end - start;
            }
        }
        places.dedup_by(|again, place| {
            let is_there = again.number == place.number;
            missing.stray += if is_there { again.bytes() } else { 0 };
            is_there
        });
        if let (Some(first), Some(last)) = (places.first(), places.last()) {
            // What a trigger has written begins in the midst.
            missing.dropped = if meta.trigger.is_some() { 0 } else { first.number };
            let there = (places.len() as u64).saturating_sub(1);
            missing.lost = (last.number - first.number).saturating_sub(there);
        }
        Ok(())
    }

    /// Reads the bytes of a block, which `compressed` is room for, into `raw`.
    pub fn read(
        &self,
        place: &Place,
        compressed: &mut Vec<u8>,
        raw: &mut Vec<u8>,
    ) -> Result<(), Damaged> {
        compressed.clear();
        compressed.resize(place.len as usize, 0);
        self.file
            .read_exact_at(compressed, place.offset + BLOCK_HEADER as u64)
            .map_err(|_| Damaged("it cannot be read"))?;
        if crc32fast::hash(compressed) != place.checksum {
            return Err(Damaged("its checksum is another"));
        }
        raw.clear();
        raw.resize(place.raw_len as usize, 0);
        match lz4_flex::block::decompress_into(compressed, raw) {
            Ok(len) if len == place.raw_len as usize => Ok(()),
            _ => Err(Damaged("it cannot be decompressed")),
        }
    }

    /// Reads and decodes a block.
    pub fn block(&self, place: &Place) -> Result<Block, Damaged> {
        let (mut compressed, mut raw) = (Vec::new(), Vec::new());
        self.read(place, &mut compressed, &mut raw)?;
        drop(compressed);
        Block::decode(&raw)
    }

    /// The bytes of all blocks, as they stand in the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.places.iter().map(Place::bytes).sum()
    }
}

/// Where the remains of an older block are that the newest one was written over, if the file has gone round: up to the
/// oldest block, or to the end of the file where that is at its beginning.
fn remains(places: &[Place], start: u64, size: u64) -> Range<u64> {
    let (Some(oldest), Some(newest)) = (places.first(), places.last()) else { return 0..0 };
    let behind = places.iter().map(|place| place.offset).filter(|at| *at >= newest.end()).min();
    let is_oldest_next = match behind {
        Some(next) => next == oldest.offset,
        None => oldest.offset == start,
    };
    if oldest.number > 0 && is_oldest_next { newest.end()..behind.unwrap_or(size) } else { 0..0 }
}

/// Finds the blocks from `offset` on, and how many bytes belong to none. A block is passed over by its length, of which
/// the checksum of its header vouches; between blocks each byte is looked at once.
fn find(file: &impl FileExt, mut offset: u64, size: u64) -> io::Result<(Vec<Place>, u64)> {
    let (mut places, mut stray) = (Vec::new(), 0);
    let mut window = Window { size, offset: 0, bytes: Vec::new() };
    while offset < size && places.len() < MOST_BLOCKS {
        let place = window.header(file, offset)?.and_then(|front| Place::parse(&front, offset));
        if let Some(place) = place.filter(|place| place.end() <= size) {
            offset = place.end();
            places.push(place);
            continue;
        }
        let next = window.next_magic(file, offset + 1)?.map_or(size, |next| next.min(size));
        stray += next - offset;
        offset = next;
    }
    Ok((places, stray + size.saturating_sub(offset)))
}

/// A part of the file.
struct Window {
    /// Of the whole file.
    size: u64,
    offset: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The header that may be at `offset`; nothing where the file ends before it does.
    fn header(
        &mut self,
        file: &impl FileExt,
        offset: u64,
    ) -> io::Result<Option<[u8; BLOCK_HEADER]>> {
        let mut front = [0; BLOCK_HEADER];
        let known = offset.checked_sub(self.offset).and_then(|at| usize::try_from(at).ok());
        let known = known.and_then(|at| self.bytes.get(at..)?.first_chunk());
        if let Some(known) = known {
            return Ok(Some(*known));
        }
        match file.read_exact_at(&mut front, offset) {
            Ok(()) => Ok(Some(front)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where a block may begin, from `offset` on.
    fn next_magic(&mut self, file: &impl FileExt, mut offset: u64) -> io::Result<Option<u64>> {
        loop {
            let at = offset.checked_sub(self.offset).and_then(|at| usize::try_from(at).ok());
            if at.is_none_or(|at| at + BLOCK_MAGIC.len() > self.bytes.len()) {
                let rest = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(WINDOW);
                self.bytes.resize(rest.min(WINDOW), 0);
                self.offset = offset;
                let len = read_at_most(file, &mut self.bytes, offset)?;
                self.bytes.truncate(len);
                if len < BLOCK_MAGIC.len() {
                    return Ok(None);
                }
                continue;
            }
            let at = at.unwrap_or_default();
            if let Some(found) = memchr::memmem::find(&self.bytes[at..], &BLOCK_MAGIC) {
                return Ok(Some(offset + found as u64));
            }
            // One may begin in the last bytes.
            offset = self.offset + (self.bytes.len() + 1 - BLOCK_MAGIC.len()) as u64;
        }
    }
}

fn read_at_most(file: &impl FileExt, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], offset + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Bytes that count how many of them are read, and how often.
    struct Counting<'a> {
        bytes: &'a [u8],
        read: Cell<usize>,
        calls: Cell<usize>,
    }

    impl FileExt for Counting<'_> {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = usize::try_from(offset).ok().and_then(|at| self.bytes.get(at..));
            let rest = rest.unwrap_or_default();
            let len = rest.len().min(buf.len());
            buf[..len].copy_from_slice(&rest[..len]);
            self.read.set(self.read.get() + len);
            self.calls.set(self.calls.get() + 1);
            Ok(len)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
    }

    /// A header of a block that is right, of data of this length.
    fn front(len: u32) -> Vec<u8> {
        let mut front = Vec::new();
        block(b"", 0, (0, 0), &mut front);
        front.truncate(BLOCK_HEADER);
        front[32..36].copy_from_slice(&len.to_le_bytes());
        front[36..40].copy_from_slice(&len.to_le_bytes());
        let checksum = crc32fast::hash(&front[..BLOCK_HEADER - 4]);
        front[BLOCK_HEADER - 4..].copy_from_slice(&checksum.to_le_bytes());
        front
    }

    #[test]
    fn however_many_headers_there_seem_to_be_every_byte_is_read_once_or_twice() {
        let window = u32::try_from(WINDOW).expect("small");
        let files = [
            BLOCK_MAGIC.to_vec(),
            [&BLOCK_MAGIC[..], b"x"].concat(),
            BLOCK_MAGIC[..7].to_vec(),
            // Blocks without data, and such that each is in the one before, and of all lengths.
            front(0),
            [front(0), vec![0]].concat(),
            front(100),
            [front(1000), BLOCK_MAGIC.to_vec()].concat(),
            front(window - 100),
            [front(window + 1), vec![0; 3]].concat(),
            [front(0), front(100), front(5000), front(window), front(u32::MAX)].concat(),
        ];
        for (number, repeated) in files.into_iter().enumerate() {
            let bytes = repeated.repeat((4 << 20) / repeated.len());
            let file = Counting { bytes: &bytes, read: Cell::new(0), calls: Cell::new(0) };
            let size = bytes.len() as u64;
            let (places, stray) = find(&file, 0, size).expect("memory can be read");
            assert_eq!(places.iter().map(Place::bytes).sum::<u64>() + stray, size, "{number}");
            assert!(file.read.get() <= 2 * bytes.len() + WINDOW, "{number}: {:?}", file.read);
            assert!(file.calls.get() <= bytes.len() / 24, "{number}: {:?}", file.calls);
            assert!(places.is_sorted_by_key(|place| place.offset));
        }
    }
}
