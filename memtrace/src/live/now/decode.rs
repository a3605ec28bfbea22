//! From the iterator's records to stalled threads. A thread goes on while it is looked at, and what was
//! read of its stack may be anything: every value is checked.

use memtrace_common::{
    now::{Thread, activity, mark},
    record::known,
};
use zerocopy::FromBytes as _;

use super::places::{Place, Places};
use crate::{
    now::{Compacting, Kind, Reclaiming, Stalled, State, Work},
    stall::{Comm, Scanned, Zone},
};

/// `DEF_PRIORITY`, at which reclaim begins.
const FIRST_PRIORITY: i32 = 12;
/// No kernel has larger blocks of pages.
const LARGEST_ORDER: i32 = 20;
/// `PF_KTHREAD`, as in /proc/PID/stat: a thread of the kernel, whose name no one can choose.
const KERNEL_THREAD: u32 = 0x0020_0000;
/// More zones and nodes than any host has.
const MOST_NODES: i32 = 1 << 16;

/// The first record in `bytes` and the stack that follows it; nothing where it is not whole.
pub fn next(bytes: &[u8]) -> Option<(Thread, &[u8], &[u8])> {
    let (thread, rest) = Thread::read_from_prefix(bytes).ok()?;
    let len = usize::try_from(thread.stack).unwrap_or(0);
    let (stack, rest) = rest.split_at_checked(len)?;
    Some((thread, stack, rest))
}

/// The addresses of a stack.
pub fn frames(stack: &[u8]) -> Vec<u64> {
    let (frames, _) = stack.as_chunks();
    frames.iter().map(|frame| u64::from_ne_bytes(*frame)).filter(|frame| *frame != 0).collect()
}

/// What may have happened to a thread.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It is stalled.
    Stalled(Stalled),
    /// It is not, but waits for something else.
    Other,
    /// Its stall was over before all of it was read.
    Torn,
}

/// Makes a stalled thread of a record, by the names that this kernel has for flags and modes.
pub fn stalled(
    thread: &Thread,
    stack: Vec<u64>,
    places: &Places,
    limits: &Limits,
    at_ns: u64,
) -> Found {
    if thread.marks & mark::TORN != 0 || !limits.allow(thread) {
        return Found::Torn;
    }
    let comm = Comm::new(zerocopy::transmute!(thread.comm));
    let Some(kind) = kind(thread, comm, &stack, places) else { return Found::Other };
    let has = |bit, value| (thread.known & bit != 0).then_some(value);
    Found::Stalled(Stalled {
        pid: thread.pid,
        tid: thread.tid,
        uid: thread.uid,
        comm,
        kind,
        state: match thread.state {
            0 => State::Running,
            _ if places.is_on(Place::InReclaim, &stack) => State::Throttled,
            _ => State::Waiting,
        },
        order: has(known::ORDER, thread.order),
        gfp: (thread.known & known::GFP != 0).then_some(thread.gfp),
        cgroup_id: (thread.known & known::CGROUP != 0).then_some(thread.cgroup_id),
        work: work(thread),
        control: thread.control,
        since_ns: at_ns,
        verdict: None,
        stack,
    })
}

fn kind(thread: &Thread, comm: Comm, stack: &[u64], places: &Places) -> Option<Kind> {
    let is_kernels = thread.flags & KERNEL_THREAD != 0;
    let is_on = |place| places.is_on(place, stack);
    match thread.activity {
        activity::RECLAIM if is_kernels && comm.as_bytes().starts_with(b"kswapd") => {
            Some(Kind::Kswapd)
        }
        activity::RECLAIM if thread.known & known::PROACTIVE != 0 => Some(Kind::Proactive),
        activity::RECLAIM if is_on(Place::Node) => Some(Kind::Node),
        activity::RECLAIM if thread.target_cgroup_id != 0 => Some(Kind::Memcg),
        activity::RECLAIM => Some(Kind::Direct),
        activity::COMPACTION => Some(Kind::Compaction),
        _ if is_on(Place::High) => Some(Kind::Penalty),
        _ if is_on(Place::Throttle) => Some(Kind::Pfmemalloc),
        _ if is_on(Place::SwapIn) => Some(Kind::SwapIn),
        _ if thread.marks & mark::MEMSTALL == 0 => None,
        _ if is_kernels && comm.as_bytes().starts_with(b"kcompactd") => Some(Kind::Kcompactd),
        _ if is_kernels && comm.as_bytes().starts_with(b"kswapd") => Some(Kind::Kswapd),
        _ if is_on(Place::Page) => Some(Kind::Refault),
        _ => Some(Kind::Memstall),
    }
}

fn work(thread: &Thread) -> Work {
    match thread.activity {
        activity::RECLAIM => Work::Reclaim(Reclaiming {
            priority: thread.priority,
            nr_scanned: thread.nr_scanned,
            nr_reclaimed: thread.nr_reclaimed,
            target_cgroup_id: (thread.known & known::TARGET != 0)
                .then_some(thread.target_cgroup_id),
        }),
        activity::COMPACTION => {
            let len = memchr::memchr(0, &thread.zone).unwrap_or(thread.zone.len());
            Work::Compaction(Compacting {
                zone: Zone {
                    node: thread.node,
                    name: String::from_utf8_lossy(&thread.zone[..len]).into_owned(),
                },
                mode: thread.mode,
                scanned: Scanned { migrate: thread.nr_scanned, free: thread.free_scanned },
            })
        }
        _ => Work::Unknown,
    }
}

/// What values can be on this host, beside those that are the same on all.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flags of allocations: no bit above these.
    gfp: u32,
    /// Pages of a host, which a round does not scan more often than it has priorities.
    pages: u64,
    /// Modes of compaction.
    modes: u32,
}

impl Limits {
    /// The limits of a kernel with names for the flags `gfp` and `modes` modes, on a host of `pages`
    /// pages.
    #[must_use]
    pub fn new(gfp: u32, modes: u32, pages: u64) -> Self {
        // A kernel may have flags without names between those that have one.
        let gfp = if gfp == 0 { u32::MAX } else { u32::MAX >> gfp.leading_zeros() };
        Self { gfp, pages, modes }
    }

    /// Whether all values of a thread can be.
    fn allow(&self, thread: &Thread) -> bool {
        let is_gfp = thread.known & known::GFP == 0 || thread.gfp & !self.gfp == 0;
        // Lists are scanned again where pages come back to them.
        let most = self.pages.saturating_mul(1024);
        match thread.activity {
            activity::RECLAIM => {
                is_gfp
                    && (0..=LARGEST_ORDER).contains(&thread.order)
                    && (-1..=FIRST_PRIORITY).contains(&thread.priority)
                    && thread.nr_scanned <= most
                    && thread.nr_reclaimed <= most
            }
            activity::COMPACTION => {
                is_gfp
                    && (-1..=LARGEST_ORDER).contains(&thread.order)
                    && thread.mode < self.modes
                    && thread.nr_scanned <= most
                    && thread.free_scanned <= most
                    && (0..MOST_NODES).contains(&thread.node)
                    && thread.zone[0].is_ascii_alphabetic()
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    const LIMITS: fn() -> Limits = || Limits::new(0x2800_0000, 4, 1000);

    fn reclaiming() -> Thread {
        Thread {
            activity: activity::RECLAIM,
            known: known::ORDER | known::GFP | known::PRIORITY | known::SCANNED | known::TARGET,
            pid: 1,
            tid: 2,
            gfp: 0xcc0,
            priority: 12,
            nr_scanned: 64,
            nr_reclaimed: 32,
            target_cgroup_id: 7,
            ..Thread::default()
        }
    }

    fn compacting() -> Thread {
        Thread {
            activity: activity::COMPACTION,
            known: known::ORDER | known::GFP | known::MODE | known::ZONE,
            order: 9,
            mode: 1,
            zone: *b"Normal\0\0",
            ..reclaiming()
        }
    }

    fn found(thread: &Thread) -> Found {
        stalled(thread, Vec::new(), &Places::default(), &LIMITS(), 0)
    }

    fn kind_of(thread: &Thread) -> Option<Kind> {
        match found(thread) {
            Found::Stalled(stalled) => Some(stalled.kind),
            Found::Other | Found::Torn => None,
        }
    }

    #[test]
    fn drops_what_cannot_be() {
        assert_eq!(kind_of(&reclaiming()), Some(Kind::Memcg));
        assert_eq!(kind_of(&Thread { priority: -1, ..reclaiming() }), Some(Kind::Memcg));
        assert_eq!(kind_of(&compacting()), Some(Kind::Compaction));
        for torn in [
            Thread { marks: mark::TORN, ..reclaiming() },
            Thread { order: -1, ..reclaiming() },
            Thread { order: 21, ..reclaiming() },
            Thread { priority: -2, ..reclaiming() },
            Thread { priority: 13, ..reclaiming() },
            Thread { gfp: 0x8000_0000, ..reclaiming() },
            Thread { gfp: 0x4000_0000, ..reclaiming() },
            Thread { nr_scanned: 0xffff_8881_0000_0000, ..reclaiming() },
            Thread { nr_reclaimed: u64::MAX, ..reclaiming() },
            Thread { order: -2, ..compacting() },
            Thread { mode: 4, ..compacting() },
            Thread { node: -1, ..compacting() },
            Thread { zone: [0; 8], ..compacting() },
            Thread { free_scanned: u64::MAX, ..compacting() },
            Thread { gfp: u32::MAX, ..compacting() },
        ] {
            assert_eq!(found(&torn), Found::Torn, "{torn:?}");
        }
    }

    #[test]
    fn flags_without_names_below_those_with_one_can_be() {
        let allows =
            |gfp, thread| Limits::new(gfp, 4, 1000).allow(&Thread { gfp: thread, ..reclaiming() });
        assert!(allows(0b1001, 0b0110));
        assert!(!allows(0b1001, 0b1_0000));
        assert!(allows(0, u32::MAX), "a kernel whose names are not known");
    }

    #[test]
    fn tells_workers_by_what_no_one_can_choose() {
        let comm = zerocopy::transmute!(*b"kswapd0\0\0\0\0\0\0\0\0\0");
        let kswapd = Thread { comm, target_cgroup_id: 0, ..reclaiming() };
        assert_eq!(kind_of(&kswapd), Some(Kind::Direct));
        assert_eq!(kind_of(&Thread { flags: KERNEL_THREAD, ..kswapd }), Some(Kind::Kswapd));
        let comm = zerocopy::transmute!(*b"kcompactd0\0\0\0\0\0\0");
        let waits = Thread { activity: activity::WAIT, state: 2, comm, ..Thread::default() };
        assert_eq!(found(&waits), Found::Other);
        let stalled = Thread { marks: mark::MEMSTALL, ..waits };
        assert_eq!(kind_of(&stalled), Some(Kind::Memstall));
        assert_eq!(kind_of(&Thread { flags: KERNEL_THREAD, ..stalled }), Some(Kind::Kcompactd));
    }

    #[test]
    fn reads_records_one_by_one() {
        let first = Thread { tid: 1, stack: 16, ..Thread::default() };
        // The kernel gave no stack.
        let second = Thread { tid: 2, stack: -22, ..Thread::default() };
        let stack = [5_u64, 6];
        let bytes = [first.as_bytes(), stack.as_bytes(), second.as_bytes()].concat();
        let (thread, found, rest) = next(&bytes).expect("whole");
        assert_eq!((thread.tid, frames(found)), (1, vec![5, 6]));
        let (thread, found, rest) = next(rest).expect("whole");
        assert_eq!((thread.tid, frames(found), rest.len()), (2, vec![], 0));
        for len in 0..size_of::<Thread>() + 16 {
            assert!(next(&bytes[..len]).is_none(), "cut at {len}");
        }
    }
}
