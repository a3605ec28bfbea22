//! From the bytes that a probe sent to a [`Stall`].

use memtrace_common::record::{self, cause, known, mechanism};
use zerocopy::FromBytes;

use crate::stall::{
    Cause, Comm, Compaction, Detail, Reclaim, ReclaimKind, Scanned, Stall, Watermarks, Zone,
};

/// Decodes one record; nothing if it is too short or of a mechanism that is not known.
#[must_use]
pub fn stall(bytes: &[u8]) -> Option<Stall> {
    let (common, _) = record::Stall::read_from_prefix(bytes).ok()?;
    let (detail, rest) = match common.mechanism {
        mechanism::COMPACTION => {
            let (record, rest) = record::Compaction::read_from_prefix(bytes).ok()?;
            (Detail::Compaction(compaction(&record)), rest)
        }
        mechanism => {
            let (record, rest) = record::Reclaim::read_from_prefix(bytes).ok()?;
            (Detail::Reclaim(reclaim(&record, mechanism)?), rest)
        }
    };
    let if_known = |bit| common.known & bit != 0;
    Some(Stall {
        start_ns: common.start_ns,
        duration_ns: common.duration_ns,
        pid: common.pid,
        tid: common.tid,
        uid: common.uid,
        cpu: common.cpu,
        comm: Comm::new(common.comm),
        order: if_known(known::ORDER).then_some(common.order),
        gfp: if_known(known::GFP).then_some(common.gfp),
        cgroup_id: if_known(known::CGROUP).then_some(common.cgroup_id),
        detail,
        stack: stack(rest),
    })
}

fn reclaim(record: &record::Reclaim, mechanism: u32) -> Option<Reclaim> {
    let if_known = |bit| record.stall.known & bit != 0;
    let kind = match mechanism {
        _ if if_known(known::PROACTIVE) => ReclaimKind::Proactive,
        mechanism::DIRECT => ReclaimKind::Direct,
        mechanism::MEMCG => ReclaimKind::Memcg,
        mechanism::SOFTLIMIT => ReclaimKind::Softlimit,
        mechanism::NODE => ReclaimKind::Node,
        _ => return None,
    };
    Some(Reclaim {
        kind,
        nr_scanned: if_known(known::SCANNED).then_some(record.nr_scanned),
        nr_reclaimed: record.nr_reclaimed,
        compaction_ready: if_known(known::COMPACTION_READY),
        priority: if_known(known::PRIORITY).then_some(record.priority),
        target_cgroup_id: if_known(known::TARGET).then_some(record.target_cgroup_id),
        free_pages: if_known(known::FREE).then_some(record.free_pages),
        node: if_known(known::RECLAIM_NODE).then_some(record.node),
    })
}

fn compaction(record: &record::Compaction) -> Compaction {
    let if_known = |bit| record.stall.known & bit != 0;
    Compaction {
        cause: cause(record.cause),
        zone: if_known(known::ZONE)
            .then(|| Zone { node: record.node, name: zone_name(&record.zone) }),
        mode: if_known(known::MODE).then_some(record.mode),
        status: record.status,
        scanned: if_known(known::COMPACT_SCANNED)
            .then_some(Scanned { migrate: record.migrate_scanned, free: record.free_scanned }),
        watermarks: if_known(known::WATERMARKS).then_some(Watermarks {
            min: record.watermark_min,
            low: record.watermark_low,
            high: record.watermark_high,
            free: record.free_pages,
        }),
        frag_index: if_known(known::FRAG_INDEX).then_some(record.frag_index),
    }
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

/// The frames of the stack that follows a record; none where no stack follows, or the kernel could
/// not take it.
fn stack(bytes: &[u8]) -> Vec<u64> {
    let Ok((stack, _)) = record::Stack::read_from_prefix(bytes) else { return Vec::new() };
    let len = usize::try_from(stack.len).unwrap_or(0) / size_of::<u64>();
    stack.frames.iter().take(len).copied().collect()
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    fn common(mechanism: u32, known: u32) -> record::Stall {
        record::Stall {
            start_ns: 1,
            duration_ns: 2,
            cgroup_id: 3,
            mechanism,
            known,
            pid: 4,
            tid: 5,
            uid: 6,
            cpu: 7,
            order: -1,
            gfp: 8,
            comm: *b"worker\0garbage!!",
        }
    }

    #[test]
    fn what_is_not_known_is_not_taken() {
        let record = record::Reclaim { stall: common(mechanism::DIRECT, 0), ..Default::default() };
        let stall = stall(record.as_bytes()).expect("a whole record");
        assert_eq!((stall.order, stall.gfp, stall.cgroup_id), (None, None, None));
        let Detail::Reclaim(reclaim) = stall.detail else { panic!("{:?}", stall.detail) };
        assert_eq!(reclaim.kind, ReclaimKind::Direct);
        assert_eq!((reclaim.nr_scanned, reclaim.priority, reclaim.free_pages), (None, None, None));
    }

    #[test]
    fn takes_every_known_field_from_its_place() {
        let all = !known::PROACTIVE;
        let record = record::Compaction {
            stall: common(mechanism::COMPACTION, all),
            migrate_scanned: 10,
            free_scanned: 11,
            watermark_min: 12,
            watermark_low: 13,
            watermark_high: 14,
            free_pages: 15,
            zone: *b"Movable\0",
            frag_index: -1000,
            node: 1,
            mode: 2,
            status: 5,
            cause: cause::MANUAL,
            reserved: 0,
        };
        let mut bytes = record.as_bytes().to_vec();
        let mut frames = [0; record::STACK_DEPTH];
        frames[..3].copy_from_slice(&[21, 22, 23]);
        bytes.extend(record::Stack { len: 16, frames }.as_bytes());
        let expected = Stall {
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
            detail: Detail::Compaction(Compaction {
                cause: Cause::Manual,
                zone: Some(Zone { node: 1, name: "Movable".to_owned() }),
                mode: Some(2),
                status: 5,
                scanned: Some(Scanned { migrate: 10, free: 11 }),
                watermarks: Some(Watermarks { min: 12, low: 13, high: 14, free: 15 }),
                frag_index: Some(-1000),
            }),
            stack: vec![21, 22],
        };
        assert_eq!(stall(&bytes), Some(expected));
    }

    #[test]
    fn refuses_what_is_cut_or_unknown() {
        let record = record::Reclaim { stall: common(mechanism::NODE, 0), ..Default::default() };
        let bytes = record.as_bytes();
        for len in 0..bytes.len() {
            assert_eq!(stall(&bytes[..len]), None, "cut at {len}");
        }
        let record = record::Reclaim { stall: common(77, 0), ..Default::default() };
        assert_eq!(stall(record.as_bytes()), None);
    }
}
