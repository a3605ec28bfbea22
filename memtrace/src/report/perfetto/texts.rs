//! Texts that are written once and then referred to by number, from one block to the next.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::proto::{InternedData, Name};
use crate::kind::Kind;
use crate::scope::Part;

/// A text, by numbers of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    // Names of slices and events.
    Kind(Kind),
    Part(Part),
    OomKill,
    // Values of annotations.
    Thread(u32),
    Zone(u32),
    Cgroup(u64),
    Stack(u32),
    Note,
    Victim(usize),
    Killer(usize),
    OomStack(usize),
}

/// Annotations, each with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    Order,
    Zone,
    Cgroup,
    TargetCgroup,
    NrReclaimed,
    Cpu,
    Comm,
    Stack,
    Note,
    Pid,
    Tid,
    VictimPid,
    VictimComm,
    VictimCgroup,
}

impl Arg {
    const ALL: [(Self, &str); 14] = [
        (Self::Order, "order"),
        (Self::Zone, "zone"),
        (Self::Cgroup, "cgroup"),
        (Self::TargetCgroup, "target_cgroup"),
        (Self::NrReclaimed, "nr_reclaimed"),
        (Self::Cpu, "cpu"),
        (Self::Comm, "comm"),
        (Self::Stack, "stack"),
        (Self::Note, "note"),
        (Self::Pid, "pid"),
        (Self::Tid, "tid"),
        (Self::VictimPid, "victim_pid"),
        (Self::VictimComm, "victim_comm"),
        (Self::VictimCgroup, "victim_cgroup"),
    ];

    /// The number of its name.
    pub fn iid(self) -> u64 {
        self as u64 + 1
    }
}

/// What was written of a block, and what has to be.
#[derive(Debug)]
pub struct Texts {
    known: HashMap<Text, u64, RandomState>,
    new: InternedData,
}

impl Texts {
    /// Names of annotations are to be written.
    pub fn new() -> Self {
        let debug_annotation_names =
            Arg::ALL.iter().map(|(arg, name)| entry(arg.iid(), (*name).to_owned())).collect();
        let new = InternedData { debug_annotation_names, ..InternedData::default() };
        Self { known: HashMap::default(), new }
    }

    /// The number of a text.
    pub fn iid(&mut self, text: Text, spell: impl FnOnce() -> String) -> u64 {
        let next = self.known.len() as u64 + 1;
        let (known, new) = (&mut self.known, &mut self.new);
        *known.entry(text).or_insert_with(|| {
            let list = match text {
                Text::Kind(_) | Text::Part(_) | Text::OomKill => &mut new.event_names,
                _ => &mut new.debug_annotation_string_values,
            };
            list.push(entry(next, spell()));
            next
        })
    }

    /// What has to be written with the next packet.
    pub fn take(&mut self) -> Option<InternedData> {
        let new = std::mem::take(&mut self.new);
        (new != InternedData::default()).then_some(new)
    }
}

fn entry(iid: u64, name: String) -> Name {
    Name { iid: Some(iid), name: Some(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_annotations_are_in_their_order() {
        for ((arg, _), iid) in Arg::ALL.iter().zip(1..) {
            assert_eq!(arg.iid(), iid);
        }
    }

    #[test]
    fn a_text_is_written_once() {
        let mut texts = Texts::new();
        let first = texts.iid(Text::Stack(1), || "a;b".to_owned());
        assert_eq!(texts.iid(Text::Stack(1), || unreachable!()), first);
        assert_ne!(texts.iid(Text::Stack(2), || "c".to_owned()), first);
        let new = texts.take().expect("two, and names of annotations");
        let strings: Vec<_> =
            new.debug_annotation_string_values.iter().filter_map(|it| it.name.as_deref()).collect();
        assert_eq!(strings, ["a;b", "c"]);
        assert_eq!(new.debug_annotation_names.len(), Arg::ALL.len());
        assert_eq!(texts.take(), None);
    }
}
