//! Fragmented memory: pages that the kernel can neither reclaim nor move, one in every 2 MiB.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{IoSlice, PipeReader, PipeWriter, pipe},
    os::unix::fs::FileExt as _,
    sync::atomic::AtomicU64,
};

use anyhow::{Context as _, Result, ensure};
use memmap2::MmapMut;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, vmsplice};

use crate::{
    anon::{map_small_pages, touch},
    until::Until,
};

/// Size of a huge page, and of the blocks in which the kernel looks for one.
pub const HUGE: usize = 2 << 20;

/// Pages that one pipe holds: as many as an unprivileged pipe may at most.
const PAGES_IN_PIPE: usize = 256;

/// Bits of an entry of /proc/PID/pagemap that hold the page frame number; all zero for those who
/// may not know it.
const FRAME: u64 = (1 << 55) - 1;

/// The pinned pages, set free when dropped.
///
/// They are parts of pipes: the kernel moves no page that somebody else holds a reference to.
#[derive(Debug)]
pub struct Fragments {
    pipes: Vec<(PipeReader, PipeWriter)>,
    pinned: usize,
}

impl Fragments {
    /// Takes `bytes` of memory, keeps one page of each 2 MiB of physical memory in it, and gives the
    /// others back.
    pub fn pin(bytes: u64, until: &Until<'_>) -> Result<Self> {
        let mut memory = map_small_pages(usize::try_from(bytes).context("too much memory")?)
            .context("cannot map memory")?;
        touch(&mut memory, until, &AtomicU64::new(0));
        if until.is_over() {
            // Perhaps before there was a single page.
            return Ok(Self { pipes: Vec::new(), pinned: 0 });
        }
        let page_size = rustix::param::page_size();
        let pages = one_of_each_block(&memory, page_size)?;
        let mut fragments = Self { pipes: Vec::new(), pinned: 0 };
        for pages in pages.chunks(PAGES_IN_PIPE) {
            let (reader, writer) = pipe().context("cannot make a pipe")?;
            let size = i32::try_from(PAGES_IN_PIPE * page_size).context("pages too large")?;
            fcntl(&writer, FcntlArg::F_SETPIPE_SZ(size)).context("cannot make a pipe larger")?;
            for &page in pages {
                let page = IoSlice::new(&memory[page..page + page_size]);
                vmsplice(&writer, &[page], SpliceFFlags::empty())
                    .context("cannot put a page into a pipe")?;
                fragments.pinned += 1;
            }
            fragments.pipes.push((reader, writer));
        }
        Ok(fragments)
    }

    /// How many pages are pinned.
    #[must_use]
    pub fn pinned(&self) -> usize {
        self.pinned
    }
}

/// Where in `memory` there is a page of each block of physical memory.
fn one_of_each_block(memory: &MmapMut, page_size: usize) -> Result<Vec<usize>> {
    let pagemap = File::open("/proc/self/pagemap").context("cannot open /proc/self/pagemap")?;
    let first = memory.as_ptr() as usize / page_size;
    let mut entries = vec![0; memory.len() / page_size * size_of::<u64>()];
    pagemap
        .read_exact_at(&mut entries, (first * size_of::<u64>()) as u64)
        .context("cannot read /proc/self/pagemap")?;
    let mut blocks = BTreeMap::new();
    let (entries, _) = entries.as_chunks();
    for (page, entry) in entries.iter().enumerate() {
        let frame = u64::from_ne_bytes(*entry) & FRAME;
        if frame != 0 {
            blocks.insert(frame * page_size as u64 / HUGE as u64, page * page_size);
        }
    }
    ensure!(!blocks.is_empty(), "/proc/self/pagemap does not tell where pages lie: run as root");
    Ok(blocks.into_values().collect())
}
