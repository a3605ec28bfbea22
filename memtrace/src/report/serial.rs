//! How single values read in JSON.

#![expect(
    clippy::ref_option,
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over as they are"
)]
#![expect(clippy::struct_field_names, reason = "the names are those of docs/json.md")]

use serde::{Serialize, Serializer};

use super::rows::{Cgroup, at};
use crate::kind::Kind;
use crate::owner::Owner;
use crate::stall::Comm;
use crate::view::json::{Text, Time};

/// Names and nanoseconds as an object, those of the same name together.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a>(pub &'a [(String, u64)]);

impl Serialize for Map<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sums: Vec<(&str, u64)> = Vec::new();
        for (name, ns) in self.0 {
            match sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum = sum.saturating_add(*ns),
                None => sums.push((name, *ns)),
            }
        }
        serializer.collect_map(sums)
    }
}

/// Names and numbers as an object.
pub fn as_map<S: Serializer>(list: &[(String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(list.iter().map(|(name, value)| (name, value)))
}

pub fn maybe_parts<S: Serializer>(
    parts: &Option<Vec<(String, u64)>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    parts.as_deref().map(Map).serialize(serializer)
}

pub fn time<S: Serializer>(ns: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    Time(at(*ns)).serialize(serializer)
}

pub fn maybe_time<S: Serializer>(ns: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    ns.map(|ns| Time(at(ns))).serialize(serializer)
}

pub fn bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    Text(bytes).serialize(serializer)
}

pub fn comm<S: Serializer>(comm: &Comm, serializer: S) -> Result<S::Ok, S::Error> {
    Text(comm.as_bytes()).serialize(serializer)
}

pub fn maybe_comm<S: Serializer>(comm: &Option<Comm>, serializer: S) -> Result<S::Ok, S::Error> {
    comm.as_ref().map(|comm| Text(comm.as_bytes())).serialize(serializer)
}

pub fn kind<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

/// A cgroup under the keys of the one that pays.
pub fn payer<S: Serializer>(cgroup: &Cgroup, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Object<'a> {
        cgroup_id: Option<u64>,
        cgroup: Option<Text<'a>>,
        owner: Option<Owner<'a>>,
    }
    let (cgroup_id, owner) = (cgroup.id, cgroup.owner());
    Object { cgroup_id, cgroup: cgroup.path.as_deref().map(Text), owner }.serialize(serializer)
}

/// A cgroup under the keys of the one that was reclaimed from.
pub fn target<S: Serializer>(cgroup: &Cgroup, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Object<'a> {
        target_cgroup_id: Option<u64>,
        target_cgroup: Option<Text<'a>>,
        target_owner: Option<Owner<'a>>,
    }
    let (target_cgroup_id, target_owner) = (cgroup.id, cgroup.owner());
    let target_cgroup = cgroup.path.as_deref().map(Text);
    Object { target_cgroup_id, target_cgroup, target_owner }.serialize(serializer)
}

/// A cgroup under the keys of the one whose process was killed.
pub fn victim<S: Serializer>(cgroup: &Cgroup, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Object<'a> {
        victim_cgroup_id: Option<u64>,
        victim_cgroup: Option<Text<'a>>,
        victim_owner: Option<Owner<'a>>,
    }
    let (victim_cgroup_id, victim_owner) = (cgroup.id, cgroup.owner());
    let victim_cgroup = cgroup.path.as_deref().map(Text);
    Object { victim_cgroup_id, victim_cgroup, victim_owner }.serialize(serializer)
}
