//! Episodes: what one allocation makes a thread go through.
//!
//! The kernel retries. One allocation can reclaim many times, and compact in between; each such round
//! is delivered by itself. Rounds of one thread for the same order and flags that follow one another
//! closely are one episode, which lasts as long as its rounds together.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use memtrace_common::record::part;

use crate::kind::Kind;
use crate::scope::{Part, Parts, Scope};
use crate::stall::{Comm, Detail, Stall, Zone};
use crate::symbols::Symbols;
use crate::verdict::{Round, Throttled, Verdict};

/// What a thread lost in one go, in one or several rounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Episode {
    /// When the first round began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// When the last one ended.
    pub end_ns: u64,
    /// How long the rounds lasted together, in nanoseconds: what the thread lost.
    pub duration_ns: u64,
    /// The process (thread group).
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread's real user id.
    pub uid: u32,
    /// The CPU on which it ended.
    pub cpu: u32,
    /// The thread's name.
    pub comm: Comm,
    /// In which most of the time was lost.
    pub kind: Kind,
    /// How many rounds of reclaim, and of compaction of a zone.
    pub rounds: Rounds,
    /// Order of the allocation; nothing where there was neither reclaim nor compaction.
    pub order: Option<i32>,
    /// The allocation's flags, a `gfp_t`.
    pub gfp: Option<u32>,
    /// The cgroup that the thread's memory is charged to.
    pub cgroup_id: Option<u64>,
    /// The cgroup whose limit asked for the last reclaim; 0 where memory itself was short.
    pub target_cgroup_id: Option<u64>,
    /// Pages scanned, over all rounds.
    pub nr_scanned: Option<u64>,
    /// Pages reclaimed, over all rounds.
    pub nr_reclaimed: u64,
    /// Lowest priority reached.
    pub priority: Option<i32>,
    /// Free pages in the whole system when the first reclaim began.
    pub free_pages: Option<u64>,
    /// The zone that was compacted last.
    pub zone: Option<Zone>,
    /// With which result, the kernel's `enum compact_result`.
    pub status: Option<i32>,
    /// How the time was spent; nothing where that was not measured.
    pub parts: Option<Parts>,
    /// What the stall by itself says of the reclaim of its target.
    pub verdict: Option<Verdict>,
    /// What the last seconds of all threads say of it.
    pub target_verdict: Option<Verdict>,
    /// The kernel stack at the end of the longest round, innermost frame first; empty unless asked for.
    pub stack: Vec<u64>,
    /// The stack in user space, likewise.
    pub user_stack: Vec<u64>,
    /// How long each kind lasted.
    by_kind: [u64; Kind::COUNT],
    /// How long the round lasted that `stack` is of.
    longest_ns: u64,
}

/// How many rounds an episode had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rounds {
    /// Of reclaim.
    pub reclaim: u64,
    /// Of compaction, zone by zone.
    pub compaction: u64,
    /// Memstall sections in which there was neither.
    pub other: u64,
}

impl Rounds {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.reclaim + self.compaction + self.other
    }
}

/// Puts rounds together.
#[derive(Debug)]
pub struct Episodes {
    gap_ns: u64,
    /// Whether a scope follows after what was in it.
    scopes: bool,
    /// By thread, what has come of a scope that has not ended.
    inside: HashMap<u32, Vec<Stall>>,
    /// By thread, what the next round may belong to.
    open: HashMap<u32, Episode>,
    /// Those of these threads that were in no further round when last looked at.
    idle: HashSet<u32>,
    finished: VecDeque<Episode>,
    /// What the rounds say of the reclaim of their targets, as they come: an episode may go on for long.
    evidence: VecDeque<(u64, Round)>,
}

/// Most rounds of one scope that are kept until it ends: more than there are retries of one
/// allocation. What is beyond them counts in the scope's time only.
const MAX_INSIDE: usize = 64;
/// Most threads whose rounds are kept; of those beyond, every round is an episode.
const MAX_THREADS: usize = 4096;

impl Episodes {
    /// None yet. Rounds less than `gap_ns` nanoseconds apart are one episode; 0 leaves each by itself.
    /// With `scopes` there comes one after what was in it, else each round stands for itself.
    #[must_use]
    pub fn new(gap_ns: u64, scopes: bool) -> Self {
        Self {
            gap_ns,
            scopes,
            inside: HashMap::new(),
            open: HashMap::new(),
            idle: HashSet::new(),
            finished: VecDeque::new(),
            evidence: VecDeque::new(),
        }
    }

    /// Whether nothing is going to come of what was taken so far, however long it is waited.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() && self.idle.is_empty() && (self.scopes || self.inside.is_empty())
    }

    /// Takes a round of reclaim or compaction.
    pub fn round(&mut self, stall: Stall) {
        // A soft-limit reclaim may end inside of a direct one, of which it is a part.
        let may_be_nested = Kind::of(&stall) == Kind::Softlimit;
        if !(self.scopes || may_be_nested) {
            let inside = self.inside.remove(&stall.tid).unwrap_or_default();
            for nested in inside.into_iter().filter(|nested| nested.start_ns < stall.start_ns) {
                self.join(Episode::of_round(&nested));
            }
            return self.join(Episode::of_round(&stall));
        }
        if self.inside.len() >= MAX_THREADS && !self.inside.contains_key(&stall.tid) {
            // Their scopes were lost, and counted.
            self.inside.clear();
        }
        let inside = self.inside.entry(stall.tid).or_default();
        if inside.len() < MAX_INSIDE {
            inside.push(stall);
        } else if !self.scopes {
            self.join(Episode::of_round(&stall));
        } else if !may_be_nested
            && let Some(nested) = inside.iter_mut().find(|it| Kind::of(it) == Kind::Softlimit)
        {
            // What it is nested in tells more, and comes last.
            *nested = stall;
        }
    }

    /// Takes a scope that has ended.
    pub fn scope(&mut self, scope: Scope, symbols: &mut Symbols) {
        let inside = self.inside.remove(&scope.tid).unwrap_or_default();
        self.join(Episode::of_scope(scope, inside, symbols));
    }

    /// Ends the episodes to which nothing can be added any more at `now_ns`, when all that had been
    /// delivered by then was taken. `begun_ns` tells of a thread that is in a round when that began: it
    /// may last longer than the gap. Where it is in none, one that has just ended may not have been taken
    /// yet, so the episode ends when this is called the next time.
    pub fn expire(&mut self, now_ns: u64, begun_ns: impl Fn(u32) -> Option<u64>) {
        self.expire_inside(now_ns, &begun_ns);
        let Self { gap_ns, open, idle, .. } = self;
        let is_over = |tid: &u32, open: &mut Episode| {
            let until_ns = open.end_ns.saturating_add(*gap_ns);
            if until_ns >= now_ns {
                return false;
            }
            if idle.remove(tid) {
                return true;
            }
            if !begun_ns(*tid).is_some_and(|begun| (open.end_ns..until_ns).contains(&begun)) {
                idle.insert(*tid);
            }
            false
        };
        let ended: Vec<_> = open.extract_if(is_over).map(|(_, open)| open).collect();
        self.finish(ended);
    }

    /// Where nothing comes after what may be nested, as for kswapd, it stands for itself.
    fn expire_inside(&mut self, now_ns: u64, begun_ns: impl Fn(u32) -> Option<u64>) {
        if self.scopes {
            return;
        }
        let gap_ns = self.gap_ns;
        let is_over = |tid: &u32, inside: &mut Vec<Stall>| {
            let ends = inside.iter().map(|it| it.start_ns.saturating_add(it.duration_ns));
            let until_ns = ends.max().unwrap_or(0).saturating_add(gap_ns);
            until_ns < now_ns && begun_ns(*tid).is_none()
        };
        let over: Vec<_> = self.inside.extract_if(is_over).flat_map(|(_, inside)| inside).collect();
        for stall in over {
            self.join(Episode::of_round(&stall));
        }
    }

    fn finish(&mut self, mut ended: Vec<Episode>) {
        ended.sort_by_key(|episode| episode.end_ns);
        self.finished.extend(ended);
    }

    /// Ends all.
    pub fn end(&mut self) {
        for stall in std::mem::take(&mut self.inside).into_values().flatten() {
            if !self.scopes {
                self.join(Episode::of_round(&stall));
            }
        }
        let ended = self.open.drain().map(|(_, open)| open).collect();
        self.finish(ended);
    }

    /// The next episode that has ended.
    pub fn next_finished(&mut self) -> Option<Episode> {
        self.finished.pop_front()
    }

    /// What the next round says of the reclaim of its target, the id of a cgroup or 0 for the host.
    pub fn next_evidence(&mut self) -> Option<(u64, Round)> {
        self.evidence.pop_front()
    }

    fn join(&mut self, next: Episode) {
        if let Some(target) = next.target() {
            self.evidence.push_back((target, next.evidence()));
        }
        if self.gap_ns == 0 {
            return self.finished.push_back(next);
        }
        self.idle.remove(&next.tid);
        if let Some(open) = self.open.get_mut(&next.tid) {
            // An attempt to compact that was deferred tells neither order nor flags.
            let is_deferred = next.order.is_none() && next.kind == Kind::Compaction;
            let is_alike = (open.order, open.gfp) == (next.order, next.gfp)
                && (next.order.is_some() || open.kind == next.kind);
            let belongs = (is_alike || is_deferred)
                && next.start_ns.saturating_sub(open.end_ns) < self.gap_ns;
            if belongs {
                return open.join(next);
            }
            self.finished.push_back(std::mem::replace(open, next));
        } else if self.open.len() < MAX_THREADS {
            self.open.insert(next.tid, next);
        } else {
            self.finished.push_back(next);
        }
    }
}

impl Episode {
    /// A round that stands for itself.
    pub(crate) fn of_round(stall: &Stall) -> Self {
        let mut episode = Self::new(stall.start_ns, stall.duration_ns, stall.comm);
        (episode.pid, episode.tid) = (stall.pid, stall.tid);
        (episode.uid, episode.cpu) = (stall.uid, stall.cpu);
        episode.add(stall);
        episode
    }

    /// What a scope makes with the rounds of its thread that came before it.
    pub(crate) fn of_scope(scope: Scope, mut inside: Vec<Stall>, symbols: &mut Symbols) -> Self {
        let end_ns = scope.start_ns.saturating_add(scope.duration_ns);
        // Others are those of a scope that was lost.
        inside.retain(|stall| {
            stall.start_ns >= scope.start_ns
                && stall.start_ns.saturating_add(stall.duration_ns) <= end_ns
        });
        let mut episode = Self::new(scope.start_ns, scope.duration_ns, scope.comm);
        (episode.pid, episode.tid) = (scope.pid, scope.tid);
        (episode.uid, episode.cpu) = (scope.uid, scope.cpu);
        episode.cgroup_id = scope.cgroup_id;
        episode.parts = Some(scope.parts);
        for stall in &inside {
            if is_nested(stall, &inside) {
                // What it is nested in has its pages as well.
                episode.add_time(stall);
            } else {
                episode.add(stall);
            }
        }
        if inside.is_empty() {
            let functions = scope.callers.iter().map(|caller| symbols.function(*caller));
            let functions: Vec<_> = functions.collect();
            let kind = Kind::of_functions(functions.iter().map(String::as_str));
            episode.by_kind[kind as usize] = scope.duration_ns;
            episode.rounds.other = 1;
            episode.stack = scope.callers;
            episode.choose_kind();
        }
        episode
    }

    /// One to which nothing was added yet.
    fn new(start_ns: u64, duration_ns: u64, comm: Comm) -> Self {
        Self {
            start_ns,
            end_ns: start_ns.saturating_add(duration_ns),
            duration_ns,
            pid: 0,
            tid: 0,
            uid: 0,
            cpu: 0,
            comm,
            kind: Kind::Memstall,
            rounds: Rounds::default(),
            order: None,
            gfp: None,
            cgroup_id: None,
            target_cgroup_id: None,
            nr_scanned: None,
            nr_reclaimed: 0,
            priority: None,
            free_pages: None,
            zone: None,
            status: None,
            parts: None,
            verdict: None,
            target_verdict: None,
            stack: Vec::new(),
            user_stack: Vec::new(),
            by_kind: [0; Kind::COUNT],
            longest_ns: 0,
        }
    }

    /// Adds the time of a round to that of its kind.
    fn add_time(&mut self, stall: &Stall) {
        let kind = Kind::of(stall);
        self.by_kind[kind as usize] = self.by_kind[kind as usize].saturating_add(stall.duration_ns);
    }

    /// Adds what a round tells, but for the episode's time.
    fn add(&mut self, stall: &Stall) {
        self.add_time(stall);
        // Nested ones are shorter than what they are nested in.
        if stall.duration_ns >= self.longest_ns {
            self.longest_ns = stall.duration_ns;
            self.order = stall.order;
            self.gfp = stall.gfp;
            self.stack.clone_from(&stall.stack);
            self.user_stack.clone_from(&stall.user_stack);
        }
        self.cgroup_id = self.cgroup_id.or(stall.cgroup_id);
        match &stall.detail {
            Detail::Reclaim(reclaim) => {
                self.rounds.reclaim += 1;
                let pages = if reclaim.compaction_ready { 0 } else { reclaim.nr_reclaimed };
                self.nr_reclaimed = self.nr_reclaimed.saturating_add(pages);
                self.nr_scanned = sum(self.nr_scanned, reclaim.nr_scanned);
                self.priority = least(self.priority, reclaim.priority);
                self.target_cgroup_id = reclaim.target_cgroup_id.or(self.target_cgroup_id);
                self.free_pages = self.free_pages.or(reclaim.free_pages);
            }
            Detail::Compaction(compaction) => {
                self.rounds.compaction += 1;
                self.zone.clone_from(&compaction.zone);
                self.status = Some(compaction.status);
            }
        }
        self.choose_kind();
    }

    /// Adds a whole episode that follows.
    fn join(&mut self, next: Self) {
        self.end_ns = next.end_ns;
        self.duration_ns = self.duration_ns.saturating_add(next.duration_ns);
        self.cpu = next.cpu;
        self.comm = next.comm;
        self.rounds.reclaim += next.rounds.reclaim;
        self.rounds.compaction += next.rounds.compaction;
        self.rounds.other += next.rounds.other;
        self.nr_scanned = sum(self.nr_scanned, next.nr_scanned);
        self.nr_reclaimed = self.nr_reclaimed.saturating_add(next.nr_reclaimed);
        self.priority = least(self.priority, next.priority);
        self.target_cgroup_id = next.target_cgroup_id.or(self.target_cgroup_id);
        self.cgroup_id = next.cgroup_id.or(self.cgroup_id);
        self.free_pages = self.free_pages.or(next.free_pages);
        self.zone = next.zone.or(self.zone.take());
        self.status = next.status.or(self.status);
        if let (Some(parts), Some(next)) = (&mut self.parts, &next.parts) {
            parts.add(next);
        }
        if next.longest_ns > self.longest_ns {
            self.longest_ns = next.longest_ns;
            self.stack = next.stack;
            self.user_stack = next.user_stack;
        }
        for (sum, ns) in self.by_kind.iter_mut().zip(next.by_kind) {
            *sum = sum.saturating_add(ns);
        }
        self.choose_kind();
    }

    fn choose_kind(&mut self) {
        let all = Kind::ALL.into_iter().chain([Kind::Memstall]);
        let longest =
            all.max_by_key(|kind| (self.by_kind[*kind as usize], std::cmp::Reverse(*kind)));
        if let Some(kind) = longest {
            self.kind = kind;
        }
    }

    /// What it reclaimed from, the id of a cgroup or 0 for the host; nothing where it reclaimed from
    /// nothing, or it is not known from what.
    #[must_use]
    pub fn target(&self) -> Option<u64> {
        match self.kind {
            _ if self.rounds.reclaim == 0 => None,
            Kind::Direct | Kind::Node => Some(0),
            _ => self.target_cgroup_id,
        }
    }

    /// What it says of the reclaim of its target.
    #[must_use]
    pub fn evidence(&self) -> Round {
        let slept = |reason: usize| {
            self.parts.as_ref().map_or(0, |parts| parts.ns[part::THROTTLED + reason])
        };
        Round {
            end_ns: self.end_ns,
            duration_ns: self.duration_ns,
            scanned: self.nr_scanned,
            reclaimed: self.nr_reclaimed,
            priority: self.priority,
            rounds: self.rounds.reclaim,
            throttled: Throttled {
                writeback_ns: slept(0),
                isolated_ns: slept(1),
                noprogress_ns: slept(2),
                congested_ns: slept(3),
            },
            is_compaction: self.rounds.reclaim == 0,
        }
    }

    /// Whether it was of this kind, be it in part.
    #[must_use]
    pub fn is_of(&self, kind: Kind) -> bool {
        let has = |wanted: fn(Part) -> bool| {
            self.parts.iter().flat_map(Parts::sorted).any(|(part, _)| wanted(part))
        };
        match kind {
            Kind::Throttled => has(|part| matches!(part, Part::Throttled(_))),
            Kind::Pfmemalloc => has(|part| part == Part::Pfmemalloc) || self.kind == kind,
            _ => self.by_kind[kind as usize] != 0,
        }
    }

    /// Whether it was of one of these kinds. What is of none of the known ones is so only where these are all.
    #[must_use]
    pub fn is_of_any(&self, kinds: &[Kind]) -> bool {
        kinds.len() == Kind::ALL.len() || kinds.iter().any(|kind| self.is_of(*kind))
    }

    /// The kinds that it was of, with the time in each; what is nested counts in both.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<Kind, u64> {
        let all = Kind::ALL.into_iter().chain([Kind::Memstall]);
        all.map(|kind| (kind, self.by_kind[kind as usize])).filter(|(_, ns)| *ns != 0).collect()
    }
}

/// Whether it is a soft-limit reclaim within another reclaim.
fn is_nested(stall: &Stall, all: &[Stall]) -> bool {
    let end_ns = |stall: &Stall| stall.start_ns.saturating_add(stall.duration_ns);
    let is_around = |other: &Stall| {
        other.start_ns <= stall.start_ns
            && end_ns(stall) <= end_ns(other)
            && matches!(other.detail, Detail::Reclaim(_))
            && Kind::of(other) != Kind::Softlimit
    };
    Kind::of(stall) == Kind::Softlimit && all.iter().any(is_around)
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
    }
}

fn least(a: Option<i32>, b: Option<i32>) -> Option<i32> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stall::{Cause, Compaction, Reclaim, ReclaimKind};
    use crate::symbols::Frame;

    const MS: u64 = 1_000_000;

    fn reclaim(start_ns: u64, duration_ns: u64) -> Stall {
        Stall {
            start_ns,
            duration_ns,
            pid: 1,
            tid: 2,
            uid: 3,
            cpu: 0,
            comm: Comm::new(*b"worker\0\0\0\0\0\0\0\0\0\0"),
            order: Some(9),
            gfp: Some(7),
            cgroup_id: Some(70),
            detail: Detail::Reclaim(Reclaim {
                kind: ReclaimKind::Direct,
                limit: None,
                nr_scanned: Some(10),
                nr_reclaimed: 4,
                compaction_ready: false,
                priority: Some(12),
                target_cgroup_id: None,
                free_pages: Some(99),
                node: None,
            }),
            stack: vec![start_ns],
            user_stack: Vec::new(),
        }
    }

    fn compaction(start_ns: u64, duration_ns: u64) -> Stall {
        let detail = Detail::Compaction(Compaction {
            cause: Cause::Direct,
            zone: Some(Zone { node: 0, name: "DMA32".to_owned() }),
            mode: None,
            status: 5,
            scanned: None,
            watermarks: None,
            frag_index: None,
        });
        Stall { detail, ..reclaim(start_ns, duration_ns) }
    }

    /// A scope, all of whose time is scanning.
    fn scope(start_ns: u64, duration_ns: u64) -> Scope {
        let mut parts = Parts::default();
        parts.ns[part::SCAN] = duration_ns;
        let Stall { pid, tid, uid, cpu, comm, cgroup_id, .. } = reclaim(0, 0);
        let callers = Vec::new();
        Scope { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, parts, callers }
    }

    fn symbols() -> Symbols {
        Symbols::from_frames([(5, Frame::of_function("mem_cgroup_handle_over_high", 0x1f))])
    }

    fn all(mut episodes: Episodes) -> Vec<Episode> {
        episodes.end();
        std::iter::from_fn(|| episodes.next_finished()).collect()
    }

    #[test]
    fn rounds_less_than_the_gap_apart_are_one() {
        let mut episodes = Episodes::new(MS, true);
        // Each ends 10 ns after it began; the third is a whole gap later.
        for start in [0, MS, 2 * MS + 10] {
            episodes.round(reclaim(start, 10));
            episodes.scope(scope(start, 10), &mut symbols());
        }
        let all = all(episodes);
        assert_eq!(all.iter().map(|it| it.rounds.total()).collect::<Vec<_>>(), [2, 1]);
        let first = &all[0];
        assert_eq!((first.start_ns, first.end_ns, first.duration_ns), (0, MS + 10, 20));
        assert_eq!((first.nr_scanned, first.nr_reclaimed), (Some(20), 8));
        assert_eq!(first.parts.as_ref().map(Parts::total_ns), Some(first.duration_ns));
    }

    #[test]
    fn compaction_in_between_is_a_part_of_it() {
        let mut episodes = Episodes::new(MS, true);
        for (start, stall) in [(0, reclaim(0, 10)), (20, compaction(20, 30)), (60, reclaim(60, 5))]
        {
            let duration_ns = stall.duration_ns;
            episodes.round(stall);
            episodes.scope(scope(start, duration_ns), &mut symbols());
        }
        let all = all(episodes);
        let [episode] = &all[..] else { panic!("{all:?}") };
        assert_eq!(episode.rounds, Rounds { reclaim: 2, compaction: 1, other: 0 });
        assert_eq!(episode.kind, Kind::Compaction, "it took the longest");
        assert!(episode.is_of(Kind::Direct) && !episode.is_of(Kind::MemcgMax));
        assert_eq!(episode.kinds()[&Kind::Direct], 15);
        assert_eq!(episode.stack, [20], "that of the longest round");
    }

    #[test]
    fn other_allocations_and_other_threads_are_apart() {
        let mut episodes = Episodes::new(MS, false);
        episodes.round(reclaim(0, 10));
        episodes.round(Stall { order: Some(0), ..reclaim(20, 10) });
        episodes.round(Stall { order: Some(0), gfp: Some(8), ..reclaim(40, 10) });
        episodes.round(Stall { tid: 9, ..reclaim(60, 10) });
        assert_eq!(all(episodes).len(), 4);
    }

    #[test]
    fn each_round_stands_for_itself_without_a_gap() {
        let mut episodes = Episodes::new(0, false);
        for start in [0, 10, 20] {
            episodes.round(reclaim(start, 10));
        }
        let rounds: Vec<_> = std::iter::from_fn(|| episodes.next_finished()).collect();
        assert_eq!(rounds.len(), 3, "nothing is waited for");
        assert!(rounds.iter().all(|round| round.parts.is_none()));
    }

    #[test]
    fn an_episode_ends_when_nothing_can_be_added_any_more() {
        let mut episodes = Episodes::new(MS, false);
        episodes.round(reclaim(0, 10));
        for now_ns in [MS + 10, MS + 10, MS + 11] {
            episodes.expire(now_ns, |_| None);
            assert_eq!(episodes.next_finished(), None);
        }
        // What had been delivered before the last look has been taken by now.
        episodes.expire(MS + 12, |_| None);
        assert_eq!(episodes.next_finished().map(|it| it.rounds.total()), Some(1));
    }

    #[test]
    fn an_episode_goes_on_while_its_next_round_does() {
        let mut episodes = Episodes::new(MS, false);
        episodes.round(reclaim(0, 10));
        for now_ns in [2 * MS, 3 * MS] {
            episodes.expire(now_ns, |_| Some(MS));
            assert_eq!(episodes.next_finished(), None);
        }
        episodes.expire(4 * MS, |_| None);
        episodes.round(reclaim(MS, 2 * MS));
        episodes.expire(4 * MS + 1, |_| None);
        assert_eq!(episodes.next_finished(), None);
        // One that began later, or whose end was not seen, is none of it.
        episodes.expire(4 * MS + 2, |_| Some(4 * MS));
        assert_eq!(episodes.next_finished().map(|it| it.rounds.total()), Some(2));
        episodes.round(reclaim(5 * MS, 10));
        for now_ns in [7 * MS, 8 * MS] {
            episodes.expire(now_ns, |_| Some(MS));
        }
        assert_eq!(episodes.next_finished().map(|it| it.rounds.total()), Some(1));
    }

    #[test]
    fn what_is_not_of_the_scope_is_left_out() {
        let mut episodes = Episodes::new(MS, true);
        // Its scope was lost.
        episodes.round(reclaim(0, 10));
        episodes.round(reclaim(5 * MS, 10));
        episodes.scope(scope(5 * MS - 5, 20), &mut symbols());
        let all = all(episodes);
        let [episode] = &all[..] else { panic!("{all:?}") };
        assert_eq!((episode.rounds.reclaim, episode.duration_ns), (1, 20));
    }

    #[test]
    fn a_section_without_rounds_is_what_its_callers_say() {
        let mut episodes = Episodes::new(MS, true);
        episodes.scope(Scope { callers: vec![5], ..scope(0, 10) }, &mut symbols());
        episodes.scope(Scope { callers: vec![6], ..scope(20, 10) }, &mut symbols());
        let kinds: Vec<_> = all(episodes).iter().map(|it| (it.kind, it.rounds.other)).collect();
        assert_eq!(kinds, [(Kind::Penalty, 1), (Kind::Memstall, 1)]);
    }

    fn softlimit(start_ns: u64, duration_ns: u64) -> Stall {
        let mut stall = reclaim(start_ns, duration_ns);
        if let Detail::Reclaim(reclaim) = &mut stall.detail {
            reclaim.kind = ReclaimKind::Softlimit;
        }
        stall
    }

    #[test]
    fn soft_limits_inside_of_direct_reclaim_have_its_pages() {
        let mut episodes = Episodes::new(MS, true);
        for start in 0..2 * MAX_INSIDE as u64 {
            episodes.round(softlimit(10 * start, 5));
        }
        episodes.round(reclaim(0, MS));
        episodes.scope(scope(0, MS), &mut symbols());
        let all = all(episodes);
        let [episode] = &all[..] else { panic!("{all:?}") };
        assert_eq!((episode.kind, episode.rounds.reclaim), (Kind::Direct, 1));
        assert_eq!((episode.nr_scanned, episode.nr_reclaimed), (Some(10), 4));
        assert!(episode.is_of(Kind::Softlimit));
    }

    #[test]
    fn a_soft_limit_inside_of_nothing_is_not_held_back() {
        let mut episodes = Episodes::new(MS, false);
        episodes.round(softlimit(0, 10));
        episodes.expire(2 * MS, |_| Some(0));
        assert_eq!((episodes.inside.len(), episodes.open.len()), (1, 0), "it may be in another");
        for now_ns in [2 * MS, 2 * MS + 1] {
            episodes.expire(now_ns, |_| None);
        }
        assert_eq!(episodes.next_finished().map(|it| it.duration_ns), Some(10));
    }

    #[test]
    fn a_soft_limit_inside_of_direct_reclaim_counts_once() {
        let mut episodes = Episodes::new(MS, false);
        episodes.round(softlimit(0, 10));
        episodes.round(softlimit(9 * MS, 10));
        episodes.round(reclaim(9 * MS - 5, 50));
        episodes.round(softlimit(20 * MS, 7));
        let durations: Vec<_> = all(episodes).iter().map(|it| it.duration_ns).collect();
        assert_eq!(durations, [10, 50, 7]);
    }

    #[test]
    fn tables_are_bounded() {
        let mut episodes = Episodes::new(MS, true);
        for round in 0..10 * MAX_INSIDE as u64 {
            episodes.round(reclaim(round, 1));
        }
        assert_eq!(episodes.inside[&2].len(), MAX_INSIDE);
        for tid in 0..2 * u32::try_from(MAX_THREADS).unwrap() {
            episodes.round(Stall { tid, ..reclaim(0, 10) });
            assert!(episodes.inside.len() <= MAX_THREADS);
            episodes.scope(Scope { tid, ..scope(0, 10) }, &mut symbols());
            assert!(episodes.open.len() <= MAX_THREADS);
        }
    }
}
