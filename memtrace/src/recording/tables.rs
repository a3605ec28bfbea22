//! What the rows of a block share, and how it is numbered.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::kind::Kind;
use crate::stall::{Cause, Comm, Limit, ReclaimKind};
use crate::symbols::Frame;

/// A thread as it was when it was held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thread {
    /// The process (thread group).
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread's real user id.
    pub uid: u32,
    /// The thread's name.
    pub comm: Comm,
    /// The cgroup that its memory is charged to.
    pub cgroup_id: Option<u64>,
}

impl Thread {
    /// The name as two little-endian numbers.
    pub(super) fn words(&self) -> [u64; 2] {
        let words: [u64; 2] = zerocopy::transmute!(self.comm.to_bytes());
        words.map(u64::from_le)
    }
}

/// The name back from two numbers.
pub(super) fn comm(words: [u64; 2]) -> Comm {
    Comm::new(zerocopy::transmute!(words.map(u64::to_le)))
}

/// What rounds have in common that tell no one's time: few values, the same again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// The number of a [`What`].
    pub(super) what: u8,
    /// Bits of [`known`].
    pub(super) known: u16,
    pub(super) order: i32,
    pub(super) gfp: u32,
    pub(super) priority: i32,
    pub(super) node: i32,
    /// An index of the head's zones.
    pub(super) zone: u32,
    pub(super) mode: u32,
    pub(super) status: i32,
    pub(super) target: u64,
}

impl Class {
    pub(super) fn is_known(&self, bit: u16) -> bool {
        self.known & bit != 0
    }

    /// What held the thread up.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match What::of(self.what) {
            What::Reclaim(ReclaimKind::Direct) => Kind::Direct,
            What::Reclaim(ReclaimKind::Memcg) if self.limit() == Some(Limit::High) => {
                Kind::MemcgHigh
            }
            What::Reclaim(ReclaimKind::Memcg) => Kind::MemcgMax,
            What::Reclaim(ReclaimKind::Softlimit) => Kind::Softlimit,
            What::Reclaim(ReclaimKind::Node) => Kind::Node,
            What::Reclaim(ReclaimKind::Proactive) => Kind::Proactive,
            What::Compaction(Cause::Direct) => Kind::Compaction,
            What::Compaction(_) => Kind::Background,
        }
    }

    /// Which limit asked for the reclaim.
    pub(super) fn limit(&self) -> Option<Limit> {
        match self.known & (known::LIMIT_HIGH | known::LIMIT_MAX) {
            known::LIMIT_HIGH => Some(Limit::High),
            known::LIMIT_MAX => Some(Limit::Max),
            _ => None,
        }
    }

    /// Order of the allocation.
    #[must_use]
    pub fn order(&self) -> Option<i32> {
        self.is_known(known::ORDER).then_some(self.order)
    }

    /// The cgroup that was reclaimed from; 0 where memory itself was short.
    #[must_use]
    pub fn target(&self) -> Option<u64> {
        self.is_known(known::TARGET).then_some(self.target)
    }
}

/// A mechanism with its kind or cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Reclaim(ReclaimKind),
    Compaction(Cause),
}

impl What {
    /// 1 to 5 for kinds of reclaim, 6 to 10 for causes of compaction, in the order of their `ALL`.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Reclaim(kind) => 1 + kind as u8,
            Self::Compaction(cause) => 6 + cause as u8,
        }
    }

    pub(super) fn of(number: u8) -> Self {
        let number = usize::from(number);
        let reclaim = ReclaimKind::ALL.get(number.wrapping_sub(1)).copied().map(Self::Reclaim);
        let cause = || Cause::ALL.get(number.wrapping_sub(6)).copied().unwrap_or(Cause::Other);
        reclaim.unwrap_or_else(|| Self::Compaction(cause()))
    }
}

/// Bits of [`Class::known`].
pub(super) mod known {
    use super::Limit;

    pub const ORDER: u16 = 1;
    pub const GFP: u16 = 1 << 1;
    pub const SCANNED: u16 = 1 << 2;
    pub const PRIORITY: u16 = 1 << 3;
    pub const TARGET: u16 = 1 << 4;
    pub const FREE: u16 = 1 << 5;
    pub const NODE: u16 = 1 << 6;
    pub const READY: u16 = 1 << 7;
    pub const LIMIT_HIGH: u16 = 1 << 8;
    pub const LIMIT_MAX: u16 = 1 << 9;
    pub const ZONE: u16 = 1 << 10;
    pub const MODE: u16 = 1 << 11;
    pub const INDEX: u16 = 1 << 12;

    pub fn of_limit(limit: Option<Limit>) -> u16 {
        match limit {
            Some(Limit::High) => LIMIT_HIGH,
            Some(Limit::Max) => LIMIT_MAX,
            None => 0,
        }
    }
}

/// Values of the column `Order`: from which table the next item is.
pub(super) mod item {
    pub const ROUND: u64 = 0;
    pub const SCOPE: u64 = 1;
    pub const NOTE: u64 = 2;
}

/// The names that a block brings.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    /// Time of day when `CLOCK_MONOTONIC` was zero, in nanoseconds since 1970, as the block begins.
    pub epoch_ns: i64,
    pub rows: Rows,
    #[serde(deserialize_with = "at_most::<_, _, MOST_ZONES>")]
    pub zones: Vec<String>,
    #[serde(deserialize_with = "at_most::<_, _, MOST_NAMES>")]
    pub cgroups: Vec<NamedPath>,
    /// The kernel's functions by address.
    #[serde(deserialize_with = "at_most::<_, _, MOST_NAMES>")]
    pub functions: Vec<(u64, Frame)>,
    /// What the numbers in the column `UserStackFrame` stand for.
    #[serde(deserialize_with = "at_most::<_, _, MOST_NAMES>")]
    pub user_frames: Vec<Frame>,
}

/// Most names of zones: a kernel has about six.
const MOST_ZONES: usize = 1024;
/// Most names of any other kind: more than fit into a block that is not too long.
const MOST_NAMES: usize = 1 << 16;

/// A list that ends before it takes too much memory.
pub(super) fn at_most<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct AtMost<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for AtMost<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of no more than {MOST}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(next) = seq.next_element()? {
                if list.len() == MOST {
                    return Err(A::Error::invalid_length(MOST + 1, &self));
                }
                list.push(next);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(AtMost::<T, MOST>(PhantomData))
}

/// How many rows each table has.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rows {
    pub rounds: usize,
    pub scopes: usize,
    pub threads: usize,
    pub classes: usize,
    pub stacks: usize,
    pub user_stacks: usize,
}

/// A cgroup and its path, if that was found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NamedPath(pub u64, pub Option<PathText>);

/// A path, which may be any bytes: where it is not UTF-8, a list of numbers.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

impl<'de> Deserialize<'de> for PathText {
    /// Not what serde makes of `untagged`: that takes 16 times the memory of the text at first.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = PathText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or a list of bytes")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PathText, E> {
                Ok(PathText::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<PathText, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(seq)).map(PathText::Bytes)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl From<Vec<u8>> for PathText {
    fn from(path: Vec<u8>) -> Self {
        String::from_utf8(path).map_or_else(|error| Self::Bytes(error.into_bytes()), Self::Text)
    }
}

impl PathText {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_cause_has_a_number_of_its_own() {
        let reclaims = ReclaimKind::ALL.map(What::Reclaim);
        for what in reclaims.into_iter().chain(Cause::ALL.map(What::Compaction)) {
            assert_eq!(What::of(what.number()), what);
        }
        assert_eq!(What::of(0), What::Compaction(Cause::Other));
        assert_eq!(What::of(255), What::Compaction(Cause::Other));
    }
}
