//! A file that blocks are appended to, and that begins again after its header when it has reached its size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::file::header;
use super::meta::Meta;

/// A recording that is being written.
#[derive(Debug)]
pub struct Store {
    file: File,
    /// Bytes that it may have.
    most: u64,
    /// Where the first block is.
    start: u64,
    /// Where the next one goes.
    at: u64,
    /// Whether older blocks may stand behind.
    wrapped: bool,
}

impl Store {
    /// Begins a recording of at most `most` bytes in an empty file.
    pub fn begin(file: File, meta: &Meta, most: u64) -> io::Result<Self> {
        let header = header(meta);
        file.write_all_at(&header, 0)?;
        let start = header.len() as u64;
        Ok(Self { file, most, start, at: start, wrapped: false })
    }

    /// Whether older blocks have given way to newer ones.
    #[must_use]
    pub fn has_wrapped(&self) -> bool {
        self.wrapped
    }

    /// Appends a block, over the oldest ones where the file has reached its size. Where that fails, the file has
    /// all blocks before. Says whether the block is there: one that is longer than the file may be is left out, and a
    /// reader knows so from the next one's number.
    pub fn append(&mut self, block: &[u8]) -> io::Result<bool> {
        let len = block.len() as u64;
        if self.start + len > self.most {
            return Ok(false);
        }
        if self.at + len > self.most {
            // What would stand behind its end is older than what is going to be overwritten next.
            self.file.set_len(self.at)?;
            self.at = self.start;
            self.wrapped = true;
        }
        if let Err(error) = self.file.write_all_at(block, self.at) {
            if !self.wrapped {
                // A part of a block is of no use, and where a disk is full the room is.
                let _cut: io::Result<()> = self.file.set_len(self.at);
            }
            return Err(error);
        }
        self.at += len;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::Builder;
    use super::super::file::{Recording, block};
    use super::super::meta::{Note, Settled};
    use super::*;

    /// A block with as many notes, each of its number.
    fn numbered(number: u64, notes: usize) -> Vec<u8> {
        let (mut builder, mut bytes) = (Builder::new(0, false), Vec::new());
        for _ in 0..notes {
            builder.note(&Note::Settled(Settled { now_ns: number, held: Vec::new() }));
        }
        let (raw, _) = builder.finish(0);
        block(raw, number, (number, number), &mut bytes);
        bytes
    }

    #[test]
    fn the_oldest_blocks_make_room_for_the_newest() {
        let file = tempfile::tempfile().expect("a temporary directory");
        let mut store =
            Store::begin(file.try_clone().expect("a descriptor"), &Meta::default(), 4000)
                .expect("room");
        for number in 0..100 {
            let notes = usize::try_from(number % 7 + 1).expect("few");
            assert!(store.append(&numbered(number, notes)).expect("it can be written to"));
            assert!(file.metadata().expect("it is open").len() <= 4000);
            let file = file.try_clone().expect("a descriptor");
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut [0; 8], 0).expect("a header");
            let recording = open(&file);
            let numbers: Vec<_> = recording.places.iter().map(|place| place.number).collect();
            let first = numbers[0];
            assert_eq!(numbers, (first..=number).collect::<Vec<_>>(), "they follow one another");
            assert_eq!((recording.missing.dropped, recording.missing.lost), (first, 0));
            assert!(number < 5 || numbers.len() > 3, "{numbers:?}");
            for place in &recording.places {
                let block = recording.block(place).expect("it is whole");
                assert_eq!(block.notes().len() as u64, place.number % 7 + 1);
            }
        }
    }

    /// Opens it from its beginning.
    fn open(file: &File) -> Recording {
        use std::io::Seek as _;
        let mut file = file.try_clone().expect("a descriptor");
        file.rewind().expect("it is a file");
        Recording::open(file).expect("a recording")
    }

    #[test]
    fn a_block_that_is_longer_than_the_file_is_missing() {
        let file = tempfile::tempfile().expect("a temporary directory");
        let mut store =
            Store::begin(file.try_clone().expect("a descriptor"), &Meta::default(), 4000)
                .expect("room");
        for (number, fits) in [(0, true), (1, false), (2, true)] {
            let mut block = numbered(number, 3);
            if !fits {
                block.resize(4000, 0);
            }
            assert_eq!(store.append(&block).expect("it can be written to"), fits);
        }
        let recording = open(&file);
        assert_eq!(recording.places.len(), 2);
        assert_eq!((recording.missing.dropped, recording.missing.lost), (0, 1));
        for place in &recording.places {
            assert_eq!(recording.block(place).expect("it is whole").notes().len(), 3);
        }
    }
}
