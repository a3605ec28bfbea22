//! What keeps memtrace running while the host is short of memory: it has all the memory that it is
//! going to need, keeps it, and is among the last that the kernel kills.
//!
//! Each page fault may end in the very reclaim that memtrace looks at. So before it traces it makes
//! heap and stack as large as tracing takes, and locks its memory: code, constants, heap and stack as a
//! whole, as any of it may be needed, and of everything else the pages that are in use. Later growth is not locked: with
//! `MCL_FUTURE` it would fail, and end memtrace, where it exceeds `RLIMIT_MEMLOCK`.

use std::{fmt, fs, hint::black_box, io, ops::Range};

use memtrace::{live, report::html};
use rustix::{
    mm::{MlockFlags, mlock, mlock_with},
    param::page_size,
};

/// Heap to have in advance, beside what starting has left: output that waits, names of cgroups, and
/// some for everything else.
const HEAP: usize = 128 << 10;
/// The same for each key of histograms.
const HEAP_PER_KEY: usize = 1024;
/// Most heap to have in advance for keys; more of them, or longer ones, may have to wait for memory.
const MOST_HEAP_FOR_KEYS: usize = 2 << 20;
/// Heap to have in advance for a recording: a block in the making, as it is laid out, and compressed, and a look at
/// the system.
pub const HEAP_FOR_RECORDING: usize = 7 << 20;
/// From so many bytes on a part of memory is a large one.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 64 << 10;
/// Stack to have in advance, several times what tracing takes.
const STACK: usize = 64 << 10;
/// What `oom_score_adj` shall be: after everything that is not protected as well.
const OOM_SCORE_ADJ: i32 = -900;

/// How far memtrace is protected.
#[derive(Debug)]
pub struct Protection {
    /// Bytes of locked mappings.
    locked: usize,
    /// Bytes that could not be locked, and why.
    unlocked: usize,
    refusal: Option<io::Error>,
    oom_score_adj: io::Result<()>,
}

/// Has large parts that only starting takes mapped on their own, so that they leave no holes in the heap
/// when they are given back: all of the heap is locked. The allocator would do so only with the first.
#[cfg(target_env = "gnu")]
pub fn map_large_parts() {
    // SAFETY: the call only changes the allocator's own state.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

#[cfg(not(target_env = "gnu"))]
pub fn map_large_parts() {}

/// Gives memory back that only starting took, and does not give back any more from now on: it would
/// have to be asked for again. Makes room for the histograms of `keys` keys, and for a recording where one is made.
pub fn reserve(keys: usize, records: bool) {
    keep_heap();
    let for_recording = if records { HEAP_FOR_RECORDING } else { 0 };
    let heap = HEAP + (keys * HEAP_PER_KEY).min(MOST_HEAP_FOR_KEYS) + for_recording;
    drop(black_box(vec![1_u8; heap]));
    touch_stack();
}

#[cfg(target_env = "gnu")]
fn keep_heap() {
    // SAFETY: the call only changes the allocator's own state.
    unsafe { libc::malloc_trim(0) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_MMAP_MAX, 0) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX) };
    // Nothing beyond what is asked for.
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TOP_PAD, 0) };
}

#[cfg(not(target_env = "gnu"))]
fn keep_heap() {}

#[inline(never)]
#[expect(clippy::large_stack_arrays, reason = "the stack is what it is for")]
fn touch_stack() {
    black_box([1_u8; STACK]);
}

/// Code that only starting runs, and commands that do not trace.
mod offline {
    use std::{ops::Range, ptr};

    use rustix::{
        mm::{Advice, madvise},
        param::page_size,
    };

    // The tests are linked without the layout of offline.ld.
    #[cfg(not(test))]
    fn range() -> Range<usize> {
        unsafe extern "C" {
            #[link_name = "memtrace_offline_begin"]
            static BEGIN: u8;
            #[link_name = "memtrace_offline_end"]
            static END: u8;
        }
        // Of both only the addresses are taken.
        (&raw const BEGIN).addr()..(&raw const END).addr()
    }

    #[cfg(test)]
    fn range() -> Range<usize> {
        0..0
    }

    /// Its whole pages.
    pub fn code() -> Range<usize> {
        let Range { start, end } = range();
        let start = start.next_multiple_of(page_size());
        start..(end & !(page_size() - 1)).max(start)
    }

    /// Gives the memory back that it has taken so far. Whatever is run of it later is read again.
    pub fn give_back() {
        let Range { start, end } = code();
        if start < end {
            let begin = ptr::without_provenance_mut(start);
            // SAFETY: these are pages of code that are the same in the file, where they are taken from when they
            // are needed.
            let _given_back = unsafe { madvise(begin, end - start, Advice::LinuxDontNeed) };
        }
    }
}

/// Gives back what only the command line has taken, before the kernel's own tables take more.
pub fn give_back() {
    offline::give_back();
}

/// Protects memtrace as far as the kernel lets it.
pub fn protect() -> Protection {
    offline::give_back();
    let mut protection =
        Protection { locked: 0, unlocked: 0, refusal: None, oom_score_adj: lower_oom_score() };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut mappings: Vec<_> = maps.lines().filter_map(Mapping::parse).collect();
    let constants = live::OBJECTS.into_iter().chain([html::CHARTS]);
    for pages in constants.map(whole_pages).chain([offline::code()]) {
        mappings = mappings.into_iter().flat_map(|mapping| mapping.without(&pages)).collect();
    }
    // The code first, as long as there is a limit.
    mappings.sort_by_key(|mapping| (!mapping.is_code, !mapping.is_whole));
    for mapping in mappings {
        match mapping.lock() {
            Ok(()) => protection.locked += mapping.range.len(),
            Err(error) => {
                protection.unlocked += mapping.range.len();
                protection.refusal.get_or_insert(error);
            }
        }
    }
    // Until it stood alone, a page fault in the code behind it may have brought some of it back.
    offline::give_back();
    protection
}

fn lower_oom_score() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let present = fs::read_to_string(FILE)?.trim().parse::<i32>();
    if present.is_ok_and(|present| present <= OOM_SCORE_ADJ) {
        return Ok(());
    }
    fs::write(FILE, OOM_SCORE_ADJ.to_string())
}

/// The addresses of the pages that have nothing but `part` in them.
fn whole_pages(part: &[u8]) -> Range<usize> {
    let Range { start, end } = part.as_ptr_range();
    let start = start.addr().next_multiple_of(page_size());
    start..(end.addr() & !(page_size() - 1)).max(start)
}

/// A part of this process's memory that can be reclaimed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<usize>,
    is_code: bool,
    /// All of it may be needed. The heap has holes, of pages given back, that fill again.
    is_whole: bool,
}

impl Mapping {
    /// Reads a line of `/proc/self/maps`, proc_pid_maps(5); nothing where there is nothing to lock.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let (access, name) = (fields.next()?, fields.nth(3).unwrap_or_default());
        let address = |text| usize::from_str_radix(text, 16).ok();
        // The kernel's own pages are never reclaimed, and a gap has none.
        let is_kernels = name.starts_with("[v") || access.ends_with('s');
        if is_kernels || access.starts_with("---") {
            return None;
        }
        let is_code = access.contains('x');
        let is_whole = is_code || matches!(name, "[heap]" | "[stack]");
        Some(Self { range: address(from)?..address(to)?, is_code, is_whole })
    }

    /// What lies around `part`, which nothing is going to read or run. These are memtrace's constants and its code: any of
    /// the rest may be needed.
    fn without(self, part: &Range<usize>) -> Vec<Self> {
        if part.start < self.range.start || part.end > self.range.end {
            return vec![self];
        }
        let around = [self.range.start..part.start, part.end..self.range.end];
        around
            .into_iter()
            .filter(|range| !range.is_empty())
            .map(|range| Self { range, is_whole: true, ..self.clone() })
            .collect()
    }

    fn lock(&self) -> io::Result<()> {
        let (start, len) = (self.range.start as *mut _, self.range.len());
        if self.is_whole {
            // SAFETY: locking changes nothing of what is in memory.
            unsafe { mlock(start, len) }?;
        } else {
            // SAFETY: as above.
            unsafe { mlock_with(start, len, MlockFlags::ONFAULT) }?;
        }
        Ok(())
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { locked, unlocked, refusal, oom_score_adj } = self;
        write!(f, "{} KiB of own memory locked", locked >> 10)?;
        if let Some(error) = refusal {
            let unlocked = unlocked >> 10;
            write!(f, ", {unlocked} KiB not ({error}: `ulimit -l`, or CAP_IPC_LOCK)")?;
        }
        match oom_score_adj {
            Ok(()) => write!(f, "; OOM score lowered"),
            Err(error) => write!(f, "; OOM score not lowered ({error}: CAP_SYS_RESOURCE)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_what_is_not_read_again() {
        let constants = Mapping::parse("5000-9000 r--p 00000000 fe:00 123   /bin/memtrace")
            .expect("can be reclaimed");
        assert!(!constants.is_whole);
        let ranges = |part| {
            let around = constants.clone().without(&part).into_iter();
            around.map(|mapping| (mapping.range, mapping.is_whole)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(0x6000..0x7000), [(0x5000..0x6000, true), (0x7000..0x9000, true)]);
        assert_eq!(ranges(0x5000..0x7000), [(0x7000..0x9000, true)]);
        assert_eq!(ranges(0x9000..0xa000), [(0x5000..0x9000, false)]);
        assert_eq!(ranges(0x4000..0x6000), [(0x5000..0x9000, false)]);
    }

    #[test]
    fn takes_what_can_be_reclaimed() {
        let parse = |line| Mapping::parse(line).map(|mapping| (mapping.range, mapping.is_whole));
        assert_eq!(
            parse("5000-7000 r-xp 001e2000 fe:00 123   /a path/memtrace"),
            Some((0x5000..0x7000, true))
        );
        assert_eq!(parse("5000-7000 rw-p 00000000 00:00 0   [heap]"), Some((0x5000..0x7000, true)));
        assert_eq!(
            parse("5000-7000 rw-p 00000000 00:00 0   [stack]"),
            Some((0x5000..0x7000, true))
        );
        assert_eq!(parse("5000-7000 rw-p 00000000 00:00 0"), Some((0x5000..0x7000, false)));
        assert_eq!(parse("5000-7000 ---p 00000000 00:00 0"), None);
        assert_eq!(parse("5000-7000 r--s 00001000 00:0e 9 anon_inode:bpf-map"), None);
        assert_eq!(parse("5000-7000 r-xp 00000000 00:00 0  [vdso]"), None);
        assert_eq!(parse("garbage"), None);
    }
}
