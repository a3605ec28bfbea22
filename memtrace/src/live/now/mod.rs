//! The running kernel as a source of threads that are stalled at this moment: an iterator over all of
//! them, which a read of a file runs.

mod decode;
mod iterator;
mod layout;
mod places;

use std::{
    fs::File,
    io::{self, Read as _},
};

use memtrace_common::{
    config::{Config, filter},
    layout::ABSENT,
    now::{Thread, activity},
};
use rustix::time::{ClockId, clock_gettime};

pub use layout::Types;

use decode::{Found, Limits};
use iterator::Iterator;
pub(super) use iterator::OBJECT;
use places::Places;

use super::LiveError;
use crate::{cgroup::Hierarchy, filter::Filter, kernel::Kernel, now::Sample, stall::Comm};

/// Most threads of one look that are shown. More are counted.
const MOST_THREADS: usize = 1024;
/// Most threads that wait for one thing or another, and have to be told apart by their stacks.
const MOST_WAITING: usize = 1024;
/// As much as the kernel gives at once.
const PIECE: usize = 64 << 10;
/// Largest record.
const RECORD: usize = size_of::<memtrace_common::now::Record>();

/// Looks at all threads.
#[derive(Debug)]
pub struct Threads {
    iterator: Iterator,
    filter: Filter,
    limits: Limits,
    /// The kernel's table of symbols, opened while we had the privilege to see addresses in it.
    symbols: Option<File>,
    /// Read when a thread waits.
    places: Option<Places>,
    /// Whether stacks are shown.
    stacks: bool,
    unavailable: Vec<String>,
    buffer: Vec<u8>,
}

/// A look at all threads before those that only wait have been told apart.
#[derive(Debug, Default)]
pub struct Look {
    sample: Sample,
    waiting: Vec<(Thread, Vec<u64>)>,
}

impl Threads {
    /// Loads the iterator.
    pub fn load(
        filter: &Filter,
        stacks: bool,
        kernel: &Kernel,
        types: &Types,
    ) -> Result<Self, LiveError> {
        let Some(function) = types.function else {
            return Err(LiveError::NoIterator);
        };
        let (filters, cgroup) = match filter.cgroup {
            Some(cgroup) if cgroup.hierarchy == Hierarchy::V1Memory => {
                (filter::CGROUP_V1, cgroup.id)
            }
            Some(cgroup) => (filter::CGROUP_V2, cgroup.id),
            None => (0, 0),
        };
        let config = Config { layout: kernel.layout, filters, cgroup, ..Config::NOTHING };
        let gfp = kernel.gfp.0.iter().fold(0, |all, (flags, _)| all | flags);
        let modes = kernel.modes.0.iter().map(|(mode, _)| mode + 1).max().unwrap_or(u32::MAX);
        Ok(Self {
            iterator: Iterator::load(&config, &types.layout, function)?,
            filter: filter.clone(),
            limits: Limits::new(gfp, modes, pages()),
            symbols: File::open("/proc/kallsyms").ok(),
            places: None,
            stacks,
            unavailable: unavailable(kernel, types),
            buffer: vec![0; PIECE + RECORD],
        })
    }

    /// Whether the kernel lets this process begin another look.
    #[must_use]
    pub fn works(&self) -> bool {
        self.iterator.open().is_ok()
    }

    /// Looks at all threads once.
    pub fn look(&mut self) -> Result<Look, LiveError> {
        let failed = |error| LiveError::Iterator { call: "read it", error };
        let mut file = self
            .iterator
            .open()
            .map_err(|error| LiveError::Iterator { call: "start it", error })?;
        let mut look = Look::default();
        look.sample.at_ns = now_ns();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut filled = 0;
        let ended = loop {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break Ok(()),
                Ok(len) => filled += len,
                // After a million threads of which it has nothing to tell, the kernel wants to be asked again.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(error) => break Err(failed(error)),
            }
            let mut rest = &buffer[..filled];
            while let Some((thread, stack, after)) = decode::next(rest) {
                self.add(&thread, stack, &mut look);
                rest = after;
            }
            let left = rest.len();
            buffer.copy_within(filled - left..filled, 0);
            filled = left;
        };
        self.buffer = buffer;
        look.sample.took_ns = now_ns().saturating_sub(look.sample.at_ns);
        ended.map(|()| look)
    }

    /// Tells those apart that only waited, for which the kernel's table of symbols is read the first time:
    /// that takes some 0.1 s, which is why a look does not do it.
    pub fn sort_out(&mut self, mut look: Look) -> Sample {
        self.tell_apart(&mut look);
        look.sample.threads.sort_by_key(|thread| thread.tid);
        look.sample.unavailable.clone_from(&self.unavailable);
        look.sample
    }

    fn add(&mut self, thread: &Thread, stack: &[u8], look: &mut Look) {
        if thread.activity == activity::END {
            look.sample.looked_at = thread.threads;
            return;
        }
        let comm = Comm::new(zerocopy::transmute!(thread.comm));
        if !self.filter.passes(thread.pid, thread.tid, thread.uid, comm) {
            return;
        }
        if look.waiting.len() == MOST_WAITING {
            self.tell_apart(look);
        }
        let stack = decode::frames(stack);
        if thread.state == 0 {
            self.judge(thread, stack, look);
        } else {
            look.waiting.push((*thread, stack));
        }
    }

    fn tell_apart(&mut self, look: &mut Look) {
        if look.waiting.is_empty() {
            return;
        }
        if self.places.is_none() {
            let read = self.symbols.take().and_then(|table| Places::read(&table).ok());
            self.places = Some(read.unwrap_or_default());
            if self.places.as_ref().is_some_and(Places::is_empty) {
                self.unavailable.push(
                    "what sleeping threads wait for (no address in /proc/kallsyms: CAP_SYSLOG)"
                        .to_owned(),
                );
            }
        }
        for (thread, stack) in std::mem::take(&mut look.waiting) {
            self.judge(&thread, stack, look);
        }
    }

    fn judge(&self, thread: &Thread, stack: Vec<u64>, look: &mut Look) {
        let none = Places::default();
        let places = self.places.as_ref().unwrap_or(&none);
        let sample = &mut look.sample;
        match decode::stalled(thread, stack, places, &self.limits, sample.at_ns) {
            Found::Stalled(_) if sample.threads.len() == MOST_THREADS => sample.left_out += 1,
            Found::Stalled(mut stalled) => {
                if !self.stacks {
                    stalled.stack = Vec::new();
                }
                sample.threads.push(stalled);
            }
            Found::Torn => sample.torn += 1,
            Found::Other => {}
        }
    }
}

/// What this kernel lacks.
fn unavailable(kernel: &Kernel, types: &Types) -> Vec<String> {
    let mut lacking = Vec::new();
    if kernel.layout.scan_control_reclaim_state == ABSENT {
        lacking.push("reclaim (the kernel does not say where a thread keeps it)".to_owned());
    }
    if types.layout.task_capture_control == ABSENT {
        lacking.push("compaction (the kernel does not say where a thread keeps it)".to_owned());
    }
    let has_psi = types.layout.task_in_memstall != ABSENT
        && std::path::Path::new("/proc/pressure/memory").exists();
    if !has_psi {
        lacking.push("waits for refaults, and kcompactd (no PSI)".to_owned());
    }
    if kernel.layout.css_set_memory == ABSENT {
        lacking.push("memory limits (no memory controller)".to_owned());
    }
    lacking
}

/// Pages that the host has.
fn pages() -> u64 {
    let info = rustix::system::sysinfo();
    let bytes = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    bytes / rustix::param::page_size() as u64
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
