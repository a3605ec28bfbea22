//! From the bytes that a probe sent to a [`Stall`].

use memtrace_common::{
    config::kind,
    record::{self, cause, known, mechanism, side},
    tally,
};
use zerocopy::FromBytes;

use crate::{
    histogram::{By, Key},
    live::{Event, Subject},
    scope::{Oom, Parts, Scope},
    stall::{
        Cause, Comm, Compaction, Detail, Limit, Reclaim, ReclaimKind, Scanned, Stall, Watermarks,
        Zone,
    },
};

/// Decodes one record; nothing if it is too short or of a mechanism that is not known.
#[must_use]
pub fn event(bytes: &[u8]) -> Option<Event> {
    let (common, _) = record::Stall::read_from_prefix(bytes).ok()?;
    match u32::from(common.mechanism) {
        mechanism::SCOPE => Some(Event::Scope(scope(&common, bytes)?)),
        mechanism::OOM => Some(Event::Oom(oom(&common, bytes)?)),
        _ => stall(bytes).map(Event::Stall),
    }
}

fn scope(common: &record::Stall, bytes: &[u8]) -> Option<Scope> {
    let (record::Scope { parts, cgroup_id, callers, .. }, _) =
        record::Scope::read_from_prefix(bytes).ok()?;
    let shrinkers = parts.shrinkers.iter().filter(|shrinker| shrinker.ns != 0);
    Some(Scope {
        start_ns: common.start_ns,
        duration_ns: common.duration_ns,
        pid: common.pid,
        tid: common.tid,
        uid: common.uid,
        cpu: u32::from(common.cpu),
        comm: Comm::new(zerocopy::transmute!(common.comm)),
        cgroup_id: (common.known & known::CGROUP != 0).then_some(cgroup_id),
        parts: Parts {
            ns: parts.ns,
            shrinkers: shrinkers.map(|shrinker| (shrinker.scan_objects, shrinker.ns)).collect(),
        },
        callers: callers.into_iter().take_while(|caller| *caller != 0).collect(),
    })
}

fn oom(common: &record::Stall, bytes: &[u8]) -> Option<Oom> {
    let (record, rest) = record::Oom::read_from_prefix(bytes).ok()?;
    let is_known = common.known & known::VICTIM != 0;
    Some(Oom {
        at_ns: common.start_ns,
        pid: common.pid,
        tid: common.tid,
        uid: common.uid,
        comm: Comm::new(zerocopy::transmute!(common.comm)),
        cgroup_id: (common.known & known::CGROUP != 0).then_some(record.cgroup_id),
        victim_pid: record.victim_pid,
        victim_comm: is_known.then(|| Comm::new(zerocopy::transmute!(record.victim_comm))),
        victim_cgroup_id: is_known.then_some(record.victim_cgroup_id),
        stack: stack(rest, side::KERNEL),
        user_stack: stack(rest, side::USER),
    })
}

/// Decodes one record; nothing if it is too short or of a mechanism that is not known.
#[must_use]
pub fn stall(bytes: &[u8]) -> Option<Stall> {
    let (common, _) = record::Stall::read_from_prefix(bytes).ok()?;
    let if_known = |bit| common.known & bit != 0;
    let (cgroup_id, detail, rest) = match u32::from(common.mechanism) {
        mechanism::COMPACTION => {
            let (record, rest) = record::Compaction::read_from_prefix(bytes).ok()?;
            let (details, rest) = details::<record::CompactionDetails>(common.known, rest)?;
            (details.cgroup_id, Detail::Compaction(compaction(&record, &details)), rest)
        }
        mechanism => {
            let (record, rest) = record::Reclaim::read_from_prefix(bytes).ok()?;
            let (details, rest) = details::<record::ReclaimDetails>(common.known, rest)?;
            (details.cgroup_id, Detail::Reclaim(reclaim(&record, &details, mechanism)?), rest)
        }
    };
    Some(Stall {
        start_ns: common.start_ns,
        duration_ns: common.duration_ns,
        pid: common.pid,
        tid: common.tid,
        uid: common.uid,
        cpu: u32::from(common.cpu),
        comm: Comm::new(zerocopy::transmute!(common.comm)),
        order: if_known(known::ORDER).then_some(i32::from(common.order)),
        gfp: if_known(known::GFP).then_some(common.gfp),
        cgroup_id: if_known(known::CGROUP).then_some(cgroup_id),
        detail,
        stack: stack(rest, side::KERNEL),
        user_stack: stack(rest, side::USER),
    })
}

/// The details at the beginning of what follows a record, and the rest; none of them is known where
/// the record has none.
fn details<T: Default + FromBytes>(known: u32, bytes: &[u8]) -> Option<(T, &[u8])> {
    if known & known::DETAILS == 0 {
        return Some((T::default(), bytes));
    }
    T::read_from_prefix(bytes).ok()
}

fn reclaim(
    record: &record::Reclaim,
    details: &record::ReclaimDetails,
    mechanism: u32,
) -> Option<Reclaim> {
    let if_known = |bit| record.stall.known & bit != 0;
    let kind = reclaim_kind(if if_known(known::PROACTIVE) { kind::PROACTIVE } else { mechanism })?;
    Some(Reclaim {
        kind,
        limit: match record.stall.known & (known::LIMIT_HIGH | known::LIMIT_MAX) {
            known::LIMIT_HIGH => Some(Limit::High),
            known::LIMIT_MAX => Some(Limit::Max),
            _ => None,
        },
        nr_scanned: if_known(known::SCANNED).then_some(details.nr_scanned),
        nr_reclaimed: record.nr_reclaimed,
        compaction_ready: if_known(known::COMPACTION_READY),
        priority: if_known(known::PRIORITY).then_some(details.priority),
        target_cgroup_id: if_known(known::TARGET).then_some(details.target_cgroup_id),
        free_pages: if_known(known::FREE).then_some(details.free_pages),
        node: if_known(known::RECLAIM_NODE).then_some(details.node),
    })
}

/// The kind of reclaim by its number in records and settings.
fn reclaim_kind(number: u32) -> Option<ReclaimKind> {
    ReclaimKind::ALL.into_iter().find(|kind| kind_number(*kind) == number)
}

/// The number of a kind of reclaim in records and settings.
pub(crate) fn kind_number(kind: ReclaimKind) -> u32 {
    match kind {
        ReclaimKind::Direct => mechanism::DIRECT,
        ReclaimKind::Memcg => mechanism::MEMCG,
        ReclaimKind::Softlimit => mechanism::SOFTLIMIT,
        ReclaimKind::Node => mechanism::NODE,
        ReclaimKind::Proactive => kind::PROACTIVE,
    }
}

fn compaction(record: &record::Compaction, details: &record::CompactionDetails) -> Compaction {
    let if_known = |bit| record.stall.known & bit != 0;
    Compaction {
        cause: cause(record.cause),
        zone: if_known(known::ZONE)
            .then(|| Zone { node: record.node, name: zone_name(&record.zone) }),
        mode: if_known(known::MODE).then_some(record.mode),
        status: record.status,
        scanned: if_known(known::COMPACT_SCANNED)
            .then_some(Scanned { migrate: details.migrate_scanned, free: details.free_scanned }),
        watermarks: if_known(known::WATERMARKS).then_some(Watermarks {
            min: details.watermark_min,
            low: details.watermark_low,
            high: details.watermark_high,
            free: details.free_pages,
        }),
        frag_index: if_known(known::FRAG_INDEX).then_some(details.frag_index),
    }
}

/// Whose stalls the probes counted under `key`, where they tell them apart by `by`; nothing where
/// that makes no sense.
#[must_use]
pub(crate) fn tally_key(key: &tally::Key, by: By, subject: &Subject) -> Option<Key> {
    let comm = Comm::new(zerocopy::transmute!(key.comm));
    let low = u32::try_from(key.id & u64::from(u32::MAX)).ok()?;
    Some(match by {
        By::Thread => Key::Thread { tid: low, pid: u32::try_from(key.id >> 32).ok()?, comm },
        By::Process => Key::Process { pid: low, comm },
        By::Comm => Key::Comm(comm),
        By::Cgroup => Key::Cgroup((key.id != tally::UNKNOWN).then_some(key.id)),
        By::Uid => Key::Uid(low),
        By::Kind => match subject {
            Subject::Reclaim(_) => Key::Kind(reclaim_kind(low)?),
            Subject::Compaction(_) => Key::Cause(cause(low)),
            // They are never counted in the kernel.
            Subject::Stalls(_) => return None,
        },
        By::Order => match key.id {
            tally::UNKNOWN => Key::Order(None),
            order => Key::Order(Some(i32::try_from(order.cast_signed()).ok()?)),
        },
    })
}

fn zone_name(name: &[u8]) -> String {
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

fn cause(number: u32) -> Cause {
    Cause::ALL.into_iter().find(|cause| cause_number(*cause) == number).unwrap_or(Cause::Other)
}

/// The number of a cause in records and settings.
pub(crate) fn cause_number(cause: Cause) -> u32 {
    match cause {
        Cause::Direct => cause::DIRECT,
        Cause::Kcompactd => cause::KCOMPACTD,
        Cause::Proactive => cause::PROACTIVE,
        Cause::Manual => cause::MANUAL,
        Cause::Other => cause::OTHER,
    }
}

/// The frames of this side's stack among those that follow a record; none where there is no such
/// stack, or the kernel could not take it.
fn stack(mut bytes: &[u8], side: u32) -> Vec<u64> {
    while let Ok((stack, rest)) = record::Stack::read_from_prefix(bytes) {
        if stack.side == side {
            let len = usize::try_from(stack.len).unwrap_or(0) / size_of::<u64>();
            return stack.frames.iter().take(len).copied().collect();
        }
        bytes = rest;
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    fn common(mechanism: u32, known: u32) -> record::Stall {
        record::Stall {
            start_ns: 1,
            duration_ns: 2,
            mechanism: u8::try_from(mechanism).expect("they are few"),
            known,
            pid: 4,
            tid: 5,
            uid: 6,
            cpu: 7,
            order: -1,
            gfp: 8,
            comm: zerocopy::transmute!(*b"worker\0garbage!!"),
        }
    }

    #[test]
    fn what_is_not_known_is_not_taken() {
        for (known, details) in
            [(0, None), (known::DETAILS, Some(record::ReclaimDetails::default()))]
        {
            let record =
                record::Reclaim { stall: common(mechanism::DIRECT, known), nr_reclaimed: 9 };
            let mut bytes = record.as_bytes().to_vec();
            bytes.extend(details.iter().flat_map(zerocopy::IntoBytes::as_bytes));
            let stall = stall(&bytes).expect("a whole record");
            assert_eq!((stall.order, stall.gfp, stall.cgroup_id), (None, None, None));
            let Detail::Reclaim(reclaim) = stall.detail else { panic!("{:?}", stall.detail) };
            assert_eq!((reclaim.kind, reclaim.nr_reclaimed), (ReclaimKind::Direct, 9));
            assert_eq!(
                (reclaim.nr_scanned, reclaim.priority, reclaim.free_pages),
                (None, None, None)
            );
        }
    }

    /// Of two frames, with rubbish behind them.
    fn stack(side: u32, first: u64) -> record::Stack {
        let mut frames = [0; record::STACK_DEPTH];
        frames[..3].copy_from_slice(&[first, first + 1, first + 2]);
        record::Stack { len: 16, side, frames }
    }

    #[test]
    fn takes_every_known_field_of_a_compaction_from_its_place() {
        let record = record::Compaction {
            stall: common(mechanism::COMPACTION, !known::PROACTIVE),
            zone: *b"Movable\0",
            node: 1,
            mode: 2,
            status: 5,
            cause: cause::MANUAL,
        };
        let details = record::CompactionDetails {
            cgroup_id: 3,
            migrate_scanned: 10,
            free_scanned: 11,
            watermark_min: 12,
            watermark_low: 13,
            watermark_high: 14,
            free_pages: 15,
            frag_index: -1000,
            reserved: 0,
        };
        let stacks = [stack(side::KERNEL, 21), stack(side::USER, 31)];
        let bytes = [record.as_bytes(), details.as_bytes(), stacks.as_bytes()].concat();
        let expected = Stall {
            detail: Detail::Compaction(Compaction {
                cause: Cause::Manual,
                zone: Some(Zone { node: 1, name: "Movable".to_owned() }),
                mode: Some(2),
                status: 5,
                scanned: Some(Scanned { migrate: 10, free: 11 }),
                watermarks: Some(Watermarks { min: 12, low: 13, high: 14, free: 15 }),
                frag_index: Some(-1000),
            }),
            ..every_field()
        };
        assert_eq!(stall(&bytes), Some(expected));
    }

    #[test]
    fn takes_every_known_field_of_a_reclaim_from_its_place() {
        let record =
            record::Reclaim { stall: common(mechanism::NODE, !known::PROACTIVE), nr_reclaimed: 9 };
        let details = record::ReclaimDetails {
            cgroup_id: 3,
            nr_scanned: 10,
            target_cgroup_id: 11,
            free_pages: 12,
            priority: 13,
            node: -1,
        };
        let stacks = [stack(side::KERNEL, 21), stack(side::USER, 31)];
        let bytes = [record.as_bytes(), details.as_bytes(), stacks.as_bytes()].concat();
        assert_eq!(stall(&bytes), Some(every_field()));
    }

    fn every_field() -> Stall {
        Stall {
            start_ns: 1,
            duration_ns: 2,
            pid: 4,
            tid: 5,
            uid: 6,
            cpu: 7,
            comm: Comm::new(*b"worker\0\0\0\0\0\0\0\0\0\0"),
            order: Some(-1),
            gfp: Some(8),
            cgroup_id: Some(3),
            detail: Detail::Reclaim(Reclaim {
                kind: ReclaimKind::Node,
                limit: None,
                nr_scanned: Some(10),
                nr_reclaimed: 9,
                compaction_ready: true,
                priority: Some(13),
                target_cgroup_id: Some(11),
                free_pages: Some(12),
                node: Some(-1),
            }),
            stack: vec![21, 22],
            user_stack: vec![31, 32],
        }
    }

    #[test]
    fn a_stack_may_follow_without_details() {
        let record = record::Reclaim { stall: common(mechanism::DIRECT, 0), nr_reclaimed: 9 };
        for (side, stacks) in
            [(side::KERNEL, [vec![21, 22], vec![]]), (side::USER, [vec![], vec![21, 22]])]
        {
            let bytes = [record.as_bytes(), stack(side, 21).as_bytes()].concat();
            let found = stall(&bytes).map(|stall| [stall.stack, stall.user_stack]);
            assert_eq!(found, Some(stacks));
        }
    }

    #[test]
    fn a_stack_that_could_not_be_taken_has_no_frames() {
        let record = record::Reclaim { stall: common(mechanism::DIRECT, 0), nr_reclaimed: 9 };
        for len in [0, -14, i32::MIN] {
            let stack = record::Stack { len, ..stack(side::USER, 21) };
            let bytes = [record.as_bytes(), stack.as_bytes()].concat();
            assert_eq!(stall(&bytes).map(|stall| stall.user_stack), Some(vec![]));
        }
    }

    #[test]
    fn refuses_what_is_cut_or_unknown() {
        let record =
            record::Reclaim { stall: common(mechanism::NODE, known::DETAILS), nr_reclaimed: 9 };
        let bytes = [record.as_bytes(), record::ReclaimDetails::default().as_bytes()].concat();
        for len in 0..bytes.len() {
            assert_eq!(stall(&bytes[..len]), None, "cut at {len}");
        }
        let record = record::Reclaim { stall: common(77, 0), nr_reclaimed: 9 };
        assert_eq!(stall(record.as_bytes()), None);
    }

    #[test]
    fn keys_of_tallies_are_those_of_stalls() {
        let reclaim = Subject::Reclaim(Vec::new());
        let key = |id: u64, by, subject: &Subject| {
            let key = tally::Key {
                id,
                comm: zerocopy::transmute!(*b"worker\0garbage!!"),
                epoch: 1,
                bucket: 2,
                cpu: 3,
            };
            tally_key(&key, by, subject)
        };
        let comm = Comm::new(*b"worker\0\0\0\0\0\0\0\0\0\0");
        let thread = Key::Thread { tid: 5, pid: 4, comm };
        assert_eq!(key(4 << 32 | 5, By::Thread, &reclaim), Some(thread));
        assert_eq!(key(4, By::Process, &reclaim), Some(Key::Process { pid: 4, comm }));
        assert_eq!(key(0, By::Comm, &reclaim), Some(Key::Comm(comm)));
        assert_eq!(key(1 << 40, By::Cgroup, &reclaim), Some(Key::Cgroup(Some(1 << 40))));
        assert_eq!(key(tally::UNKNOWN, By::Cgroup, &reclaim), Some(Key::Cgroup(None)));
        assert_eq!(key(1000, By::Uid, &reclaim), Some(Key::Uid(1000)));
        let order = |order: i64| key(order.cast_unsigned(), By::Order, &reclaim);
        assert_eq!(order(-1), Some(Key::Order(Some(-1))));
        assert_eq!(order(i64::MIN), Some(Key::Order(None)));
        let kind = |kind| key(kind_number(kind).into(), By::Kind, &reclaim);
        for kind_of_reclaim in ReclaimKind::ALL {
            assert_eq!(kind(kind_of_reclaim), Some(Key::Kind(kind_of_reclaim)));
        }
        assert_eq!(key(77, By::Kind, &reclaim), None);
        let compaction = Subject::Compaction(Vec::new());
        for cause in Cause::ALL {
            let found = key(cause_number(cause).into(), By::Kind, &compaction);
            assert_eq!(found, Some(Key::Cause(cause)));
        }
    }
}
