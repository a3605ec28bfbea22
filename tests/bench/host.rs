//! The machine that is measured on, and who runs on which of its cores.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Who runs where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// All that this process may use.
    pub all: Vec<usize>,
    /// Makes stalls.
    pub flood: usize,
    /// Reads them.
    pub reader: usize,
    /// Whether the two are one physical core, as all are.
    pub siblings: bool,
}

impl Cores {
    /// Shares out the cores that this process may use.
    pub fn new() -> Result<Self> {
        let set = sched_getaffinity(None).context("cannot tell which cores there are")?;
        let all: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
        ensure!(
            all.len() > 1,
            "the bench takes two cores, one that makes stalls and one that reads them: this machine gives it one"
        );
        Ok(Self::of(all, |cpu| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            // Where the kernel does not say, each is taken for a core of its own.
            fs::read_to_string(path).unwrap_or_default()
        }))
    }

    /// Of two at least. What has one physical core's caches and units in common is slowed down by the other.
    fn of(all: Vec<usize>, siblings: impl Fn(usize) -> String) -> Self {
        let flood = all[0];
        let list = siblings(flood);
        let apart = all[1..].iter().find(|&&cpu| !is_in(&list, cpu));
        let reader = *apart.unwrap_or(&all[1]);
        Self { flood, reader, siblings: apart.is_none(), all }
    }

    /// Does `work` in this thread on the core that makes stalls.
    pub fn flooding<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        pin(None, &[self.flood])?;
        let done = work();
        pin(None, &self.all)?;
        done
    }
}

/// Whether a number is in a list as the kernel writes it: `0,4` or `0-3,8`.
fn is_in(list: &str, number: usize) -> bool {
    list.trim().split(',').any(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let range = from.parse().ok().zip(to.parse().ok());
        range.is_some_and(|(from, to)| (from..=to).contains(&number))
    })
}

/// Has a thread, or this one, run on these cores only. Threads that it starts inherit that.
pub fn pin(thread: Option<Pid>, cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    sched_setaffinity(thread, &set).with_context(|| format!("cannot move to cores {cores:?}"))
}

/// The running kernel's release.
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The CPUs' model.
pub fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    model(&text).unwrap_or("unknown").to_owned()
}

fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// How busy the machine is: processes that want to run, on average over the last minute.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_read_on_another_physical_core() {
        let cores = |all: &[usize], list: &str| {
            let Cores { flood, reader, siblings, .. } =
                Cores::of(all.to_vec(), |_| list.to_owned());
            (flood, reader, siblings)
        };
        assert_eq!(cores(&[0, 1], "0\n"), (0, 1, false));
        assert_eq!(cores(&[0, 1, 2, 3], "0-1\n"), (0, 2, false));
        assert_eq!(cores(&[2, 3, 6], "2,6\n"), (2, 3, false));
        assert_eq!(cores(&[0, 4], "0,4\n"), (0, 4, true));
        assert_eq!(cores(&[0, 1], ""), (0, 1, false));
    }

    #[test]
    fn the_model_is_found() {
        let text =
            "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some CPU 7 @ 2.0GHz\nstepping\t: 1\n";
        assert_eq!(model(text), Some("Some CPU 7 @ 2.0GHz"));
        assert_eq!(model("processor : 0\n"), None);
    }
}
