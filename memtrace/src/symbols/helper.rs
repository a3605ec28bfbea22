//! Looks into programs and says what their functions are called.
//!
//! The files are anyone's, and what they say of themselves may be wrong, endless, or cut off while it
//! is read; a file system may not answer, and a process's table of mappings may have to wait for the
//! process. So this is the work of a process of its own, which may fail without any harm, and which
//! has the privileges that it takes: memtrace itself gives those up. Of a process it looks at nothing
//! but its mappings, and never follows a path: the kernel opens the very file that is mapped.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use blazesym::symbolize::{
    Input, Symbolizer,
    source::{Elf, Source},
};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use super::Frame;
use super::maps::{self, Mapping};

/// What the functions at these addresses of a process are called.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Question {
    /// Tells questions apart.
    pub(super) serial: u32,
    pub(super) pid: u32,
    /// In ascending order.
    pub(super) addresses: Vec<u64>,
}

/// The answer to a question.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    /// That of the question.
    pub(super) serial: u32,
    /// In the order of the addresses, nothing where there is no code. Empty where the process is gone
    /// or may not be looked into.
    pub(super) frames: Vec<Option<Frame>>,
}

/// The serial number that says that the helper was replaced: what it was asked is not answered any more.
pub(super) const REPLACED: u32 = 0;

/// Most bytes of a question.
const MOST_QUESTION: usize = 8 << 10;
/// Most bytes of an answer: with one for each frame of a stack, and six for each of a name's if all have
/// to be escaped.
pub(super) const MOST_ANSWER: usize = 256 << 10;
/// Most files that are kept open to be looked into again.
const MOST_FILES: usize = 64;

/// Answers questions until there are none any more. `watch` is called before each and after it.
pub fn serve(socket: impl AsFd, mut watch: impl FnMut(Work)) -> io::Result<()> {
    let mut files = Files::default();
    let mut bytes = vec![0; MOST_QUESTION];
    loop {
        let (_, len) = recv(&socket, &mut bytes[..], RecvFlags::TRUNC)?;
        if len == 0 {
            return Ok(());
        }
        let question: Question = serde_json::from_slice(bytes.get(..len).unwrap_or_default())?;
        watch(Work::Begins);
        let frames = frames(&question, &mut files).unwrap_or_default();
        watch(Work::Ends);
        say(&socket, &Answer { serial: question.serial, frames })?;
    }
}

/// Says that another one answers from now on.
pub fn replace(socket: impl AsFd) -> io::Result<()> {
    say(socket, &Answer { serial: REPLACED, frames: Vec::new() })
}

/// Work on a question, which may never end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It begins.
    Begins,
    /// It has ended.
    Ends,
}

fn say(socket: impl AsFd, answer: &Answer) -> io::Result<()> {
    let _len: usize = send(socket, &serde_json::to_vec(answer)?, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Frames for the addresses of a question.
fn frames(question: &Question, files: &mut Files) -> io::Result<Vec<Option<Frame>>> {
    let table = BufReader::new(File::open(format!("/proc/{}/maps", question.pid))?);
    let mappings = maps::find(table, &question.addresses)?;
    let mut frames = vec![None; question.addresses.len()];
    for mapping in &mappings {
        let from = question.addresses.partition_point(|&at| at < mapping.range.start);
        let to = question.addresses.partition_point(|&at| at < mapping.range.end);
        let addresses = &question.addresses[from..to];
        let functions = files.functions(question.pid, mapping, addresses).unwrap_or_default();
        let functions = functions.into_iter().chain(std::iter::repeat(None));
        for ((frame, address), function) in
            frames[from..to].iter_mut().zip(addresses).zip(functions)
        {
            let without_function = || match &*mapping.module {
                "" => Frame::nameless(*address),
                module => Frame::of_module(module, address.wrapping_sub(mapping.base)),
            };
            *frame = Some(function.unwrap_or_else(without_function));
        }
    }
    Ok(frames)
}

/// Files that were looked into.
#[derive(Default)]
struct Files(HashMap<Identity, Symbolizer>);

/// What tells a file from any other, and from itself before it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    changed: (i64, u64),
}

impl Files {
    /// The functions at these addresses of a mapping; nothing where it is not of a file.
    fn functions(
        &mut self,
        pid: u32,
        mapping: &Mapping,
        addresses: &[u64],
    ) -> Option<Vec<Option<Frame>>> {
        if !mapping.is_file {
            return None;
        }
        let (file, identity) = open(pid, mapping).ok()?;
        if self.0.len() >= MOST_FILES && !self.0.contains_key(&identity) {
            self.0.clear();
        }
        let symbolizer = self.0.entry(identity).or_insert_with(|| {
            Symbolizer::builder()
                .enable_auto_reload(false)
                .enable_code_info(false)
                .enable_inlined_fns(false)
                .build()
        });
        // There is one for each file, which remembers the first that it saw under this name.
        let mut elf = Elf::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
        elf.debug_syms = false;
        let offset = |&address: &u64| address - mapping.range.start + mapping.offset;
        let offsets: Vec<_> = addresses.iter().map(offset).collect();
        let found = symbolizer.symbolize(&Source::Elf(elf), Input::FileOffset(&offsets)).ok()?;
        let frame = |symbol: &blazesym::symbolize::Symbolized<'_>| {
            let symbol = symbol.as_sym()?;
            Some(Frame::of_function(&symbol.name, symbol.offset as u64))
        };
        Some(found.iter().map(frame).collect())
    }
}

/// Opens the file that is mapped, without anything that opening might do if it is none.
fn open(pid: u32, mapping: &Mapping) -> io::Result<(OwnedFd, Identity)> {
    let range = &mapping.range;
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", range.start, range.end);
    let file = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let identity = Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size,
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    };
    Ok((file, identity))
}
