//! The longest stalls, with all that is told of them.

use std::rc::Rc;

use serde::Serialize;

use super::axis::Axis;
use super::words::{short, zone_name};
use crate::names::Names;
use crate::recording::{Block, Class, Told};
use crate::scope::Parts;
use crate::symbols::Frame;
use crate::view::parts;

/// How many are shown.
pub const MOST: usize = 100;

/// The longest stalls so far.
#[derive(Debug, Default)]
pub struct Longest(Vec<Long>);

/// A long stall, in words.
#[derive(Clone, Debug, Serialize)]
pub struct Long {
    /// When it began, in nanoseconds since 1970.
    #[serde(skip)]
    pub at_ns: i64,
    /// How long it lasted.
    pub ns: u64,
    /// The thread's name.
    pub name: String,
    /// The thread.
    pub tid: u32,
    /// Its process.
    pub pid: u32,
    /// Its real user id.
    pub uid: u32,
    /// Where it ended.
    pub cpu: u32,
    /// Whose host, by number.
    pub host: usize,
    /// The path of its cgroup, or its id.
    pub cgroup: Option<String>,
    /// What held it up.
    pub kind: &'static str,
    /// The order of the allocation.
    pub order: Option<i32>,
    /// The zone that was compacted.
    pub zone: Option<String>,
    /// The cgroup that was reclaimed from.
    pub target: Option<String>,
    /// Pages reclaimed.
    pub reclaimed: u64,
    /// How the time was spent, the longest part first, each with its nanoseconds.
    pub parts: Vec<(String, u64)>,
    /// The kernel's frames, innermost first.
    #[serde(skip)]
    pub kernel: Vec<String>,
    /// The program's.
    #[serde(skip)]
    pub user: Vec<String>,
}

impl Longest {
    /// How long a stall has to be to be among them, in nanoseconds.
    pub fn least_ns(&self) -> u64 {
        let last = self.0.get(MOST - 1);
        last.map_or(0, |long| long.ns.saturating_add(1))
    }

    /// Takes some of a block.
    pub fn take(
        &mut self,
        told: &[Told<'_>],
        (recording, host): (usize, usize),
        axis: &Axis,
        block: &Block,
        names: &mut Names,
    ) {
        for told in told {
            let at_ns = axis.at(recording, told.start_ns);
            self.0.push(Long::of(told, (at_ns, host), block, names));
        }
        self.cut();
    }

    /// Takes those of another.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
        self.cut();
    }

    fn cut(&mut self) {
        self.0.sort_by_key(|long| (std::cmp::Reverse(long.ns), long.at_ns));
        self.0.truncate(MOST);
    }

    /// The longest first.
    pub fn into_rows(self) -> impl Iterator<Item = Long> {
        self.0.into_iter()
    }
}

impl Long {
    fn of(told: &Told<'_>, (at_ns, host): (i64, usize), block: &Block, names: &mut Names) -> Self {
        let mut cgroup = |id: u64| match names.cgroups.path(id) {
            Some(path) => short(path),
            None => format!("id:{id}"),
        };
        let target = told.class.and_then(Class::target).filter(|id| *id != 0);
        let (target, own) = (target.map(&mut cgroup), told.thread.cgroup_id.map(&mut cgroup));
        let shrinkers = told.scope.map(|scope| block.shrinkers(scope).collect());
        let spent = told.parts.map(|ns| Parts { ns, shrinkers: shrinkers.unwrap_or_default() });
        let spent = spent.map(|spent| spent.sorted()).unwrap_or_default();
        let spent =
            spent.into_iter().map(|(part, ns)| (short(parts::name(part, names).as_bytes()), ns));
        let parts = spent.collect();
        let texts = |frames: &[Rc<Frame>]| {
            frames.iter().map(|frame| short(frame.text().as_bytes())).collect()
        };
        Self {
            at_ns,
            ns: told.duration_ns,
            name: short(told.thread.comm.as_bytes()),
            tid: told.thread.tid,
            pid: told.thread.pid,
            uid: told.thread.uid,
            cpu: told.cpu,
            host,
            cgroup: own,
            kind: told.kind.name(),
            order: told.class.and_then(Class::order),
            zone: told.class.and_then(|class| block.zone(class)).map(|zone| zone_name(&zone)),
            target,
            reclaimed: told.nr_reclaimed,
            parts,
            kernel: texts(&names.symbols.kernel(block.stack(told.stack))),
            user: texts(block.user_frames(told.user_stack)),
        }
    }
}
