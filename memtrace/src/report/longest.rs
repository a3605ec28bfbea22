//! The longest stalls, each with all that is known of it.

use super::time_of_day;
use crate::kind::Kind;
use crate::names::EnumNames;
use crate::recording::Thread;
use crate::recording::{Block, Meta, Told};
use crate::scope::Parts;
use crate::stall::Zone;
use crate::symbols;
use crate::view::parts;

/// A stall that does not need its block any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Long {
    /// The number of the boot that it is of.
    pub boot: u32,
    /// When it began, in nanoseconds since 1970.
    pub at_ns: i64,
    /// The same in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// How long it lasted, in nanoseconds.
    pub duration_ns: u64,
    /// Whose it is.
    pub thread: Thread,
    /// The CPU on which it ended.
    pub cpu: u32,
    /// What it was by its longest round.
    pub kind: Kind,
    /// Order of that round's allocation.
    pub order: Option<i32>,
    /// The cgroup that it reclaimed from; 0 where memory itself was short.
    pub target: Option<u64>,
    /// The zone that it compacted.
    pub zone: Option<Zone>,
    /// Pages reclaimed, over all rounds.
    pub nr_reclaimed: u64,
    /// How the time was spent, the longest part first; nothing where that was not recorded.
    pub parts: Option<Vec<(String, u64)>>,
    /// The kernel stack of its longest round, innermost frame first.
    pub stack: Vec<String>,
    /// That in user space.
    pub user_stack: Vec<String>,
}

/// The longest so far.
#[derive(Clone, Debug)]
pub struct Longest {
    most: usize,
    /// The longest first, of equals the one that came first.
    kept: Vec<Long>,
}

/// Those of one block that may be among them.
#[derive(Debug)]
pub struct Candidates<'a> {
    most: usize,
    /// What is not longer than this is none.
    least_ns: Option<u64>,
    found: Vec<Told<'a>>,
}

impl Longest {
    /// Room for so many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, kept: Vec::new() }
    }

    /// Begins to look through a block.
    #[must_use]
    pub fn candidates<'a>(&self) -> Candidates<'a> {
        let last = self.most.checked_sub(1).and_then(|last| self.kept.get(last));
        let least_ns = last.map(|last| last.duration_ns);
        Candidates { most: self.most, least_ns, found: Vec::new() }
    }

    /// Takes what was found in a block of that boot.
    pub fn take(&mut self, boot: u32, meta: &Meta, block: &Block, mut candidates: Candidates<'_>) {
        candidates.choose();
        let throttles = Meta::enum_names(&meta.throttles);
        let found = candidates.found.iter();
        self.kept.extend(found.map(|told| Long::of(boot, told, block, &throttles)));
        self.choose();
    }

    /// Takes those of later blocks.
    pub fn merge(&mut self, later: Self) {
        self.kept.extend(later.kept);
        self.choose();
    }

    /// All of them, the longest first.
    #[must_use]
    pub fn sorted(&self) -> &[Long] {
        &self.kept
    }

    fn choose(&mut self) {
        self.kept.sort_by_key(|long| std::cmp::Reverse(long.duration_ns));
        self.kept.truncate(self.most);
    }
}

impl<'a> Candidates<'a> {
    /// Looks at the next stall.
    #[inline]
    pub fn see(&mut self, told: &Told<'a>) {
        if self.least_ns.is_none_or(|least_ns| told.duration_ns > least_ns) {
            self.found.push(*told);
            if self.found.len() > 2 * self.most + 64 {
                self.choose();
            }
        }
    }

    #[cold]
    fn choose(&mut self) {
        self.found.sort_by_key(|told| std::cmp::Reverse(told.duration_ns));
        self.found.truncate(self.most);
        if self.found.len() == self.most {
            let least_ns = self.found.last().map_or(u64::MAX, |told| told.duration_ns);
            self.least_ns = self.least_ns.max(Some(least_ns));
        }
    }
}

impl Long {
    fn of(boot: u32, told: &Told<'_>, block: &Block, throttles: &EnumNames) -> Self {
        let function = |address: u64| {
            let frame = block.function(address);
            frame.map_or_else(|| format!("{address:#x}"), |frame| frame.function().to_owned())
        };
        let shrinkers = || told.scope.into_iter().flat_map(|scope| block.shrinkers(scope));
        let parts = told.parts.map(|ns| Parts { ns, shrinkers: shrinkers().collect() });
        let named = |of: Parts| {
            let sorted = of.sorted().into_iter();
            let named = sorted
                .map(|(part, ns)| (parts::name_by(part, throttles, function).into_owned(), ns));
            named.collect()
        };
        Self {
            boot,
            at_ns: time_of_day(block, told.start_ns),
            start_ns: told.start_ns,
            duration_ns: told.duration_ns,
            thread: *told.thread,
            cpu: told.cpu,
            kind: told.kind,
            order: told.class.and_then(crate::recording::Class::order),
            target: told.class.and_then(crate::recording::Class::target),
            zone: told.class.and_then(|class| block.zone(class)),
            nr_reclaimed: told.nr_reclaimed,
            parts: parts.map(named),
            stack: kernel_frames(block, told.stack),
            user_stack: block
                .user_frames(told.user_stack)
                .iter()
                .map(|frame| frame.text().to_owned())
                .collect(),
        }
    }
}

/// The frames of a kernel stack of a block, innermost first, without the tracer's own.
fn kernel_frames(block: &Block, number: u32) -> Vec<String> {
    let text = |address: &u64| match block.function(*address) {
        Some(frame) => frame.text().to_owned(),
        None => format!("{address:#x}"),
    };
    let mut frames: Vec<_> = block.stack(number).iter().map(text).collect();
    frames.drain(..symbols::tracers(frames.iter().map(String::as_str)));
    frames
}
