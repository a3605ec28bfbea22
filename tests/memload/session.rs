//! What every mode does around its work: it can be stopped, can wait for the word to go, and tells
//! what the kernel counted meanwhile.

use std::{
    io::{self, Read as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tests::{cgroup::Cgroup, vmstat::Vmstat};

/// The beginnings of the names of the counters that a load is there to move.
const COUNTERS: [&str; 14] = [
    "allocstall_",
    "pgscan_direct",
    "pgsteal_direct",
    "pgscan_kswapd",
    "pgsteal_kswapd",
    "pswp",
    "compact_stall",
    "compact_success",
    "compact_fail",
    "compact_daemon_wake",
    "compact_migrate_scanned",
    "compact_free_scanned",
    "thp_fault_",
    "oom_kill",
];

/// One run of memload.
pub struct Session {
    /// Set when it shall end.
    pub stop: Arc<AtomicBool>,
    before: Vmstat,
}

impl Session {
    /// From here on Ctrl-C, and the end of the process that started this one, stop it.
    pub fn begin() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))
                .context("cannot handle signals")?;
        }
        end_with_parent()?;
        Ok(Self { stop, before: Vmstat::read()? })
    }

    /// Whether it shall end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until the test says go, or is gone. No thread is started to listen on: it would stall as
    /// those of the load do, and nobody would have asked it to. The test stops the load by a signal.
    pub fn hold(&self) -> Result<()> {
        say("ready")?;
        if io::stdin().read(&mut [0]).context("cannot read the word to go")? == 0 {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Says what was done, and what the kernel counted since the begin.
    pub fn report(&self, done: &str, cgroup: Option<&Cgroup>) -> Result<()> {
        say(&format!("memload: {done}"))?;
        let usage = getrusage(UsageWho::RUSAGE_SELF).context("cannot get the page faults")?;
        let faults = format!(
            "{} minor and {} major page faults",
            usage.minor_page_faults(),
            usage.major_page_faults()
        );
        let events = match cgroup {
            Some(cgroup) => {
                let events = cgroup.events()?;
                let events = events.iter().map(|(name, count)| (name.as_str(), *count));
                format!("; in the cgroup: {}", listed(events))
            }
            None => String::new(),
        };
        let moved = Vmstat::moved_since(&self.before)?;
        let moved = COUNTERS.iter().flat_map(|name| moved.beginning_with(name));
        say(&format!("memload: {faults}{events}; in /proc/vmstat: {}", listed(moved)))
    }
}

/// Has the kernel end this process when the one that started it is gone. A change of the user makes
/// the kernel forget it.
pub fn end_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot ask for the parent's death")
}

/// Prints a line at once.
pub fn say(line: &str) -> Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .context("cannot write to the standard output")
}

/// The counters that moved, as text.
fn listed<'a>(counters: impl Iterator<Item = (&'a str, u64)>) -> String {
    let moved: Vec<_> =
        counters.filter(|(_, by)| *by > 0).map(|(name, by)| format!("{name} +{by}")).collect();
    if moved.is_empty() { "nothing moved".to_owned() } else { moved.join(", ") }
}
