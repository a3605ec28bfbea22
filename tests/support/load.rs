//! memload as a child process whose work starts when the test says so.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cgroup::{Cgroup, TEST},
    host::require_guest,
    rows,
    run::Memtrace,
    wait::{budget, wait_until},
};

/// Memory limit of the tests' loads: small, so that few bytes make many stalls.
pub const LIMIT: u64 = 16 << 20;

/// Hits of the limit that make hundreds of stalls. How many differs: a thread hits it more often in
/// each where reclaim is slow.
pub const HITS: u64 = 12_000;

/// Memory of a thread that churns: its buffer, and some for its stack and its place in the kernel.
pub const THREAD_BYTES: u64 = 320 << 10;

/// What a load shall be.
#[derive(Clone, Debug)]
pub struct Churning<'a> {
    /// The cgroup that limits it.
    pub cgroup: &'a Cgroup,
    /// Number of threads.
    pub threads: usize,
    /// Whether they come and go.
    pub brief: bool,
    /// Their name.
    pub comm: Option<&'a str>,
    /// Their user id.
    pub uid: Option<u32>,
}

impl<'a> Churning<'a> {
    /// Four threads that stay, under the program's name.
    #[must_use]
    pub fn new(cgroup: &'a Cgroup) -> Self {
        Self { cgroup, threads: 4, brief: false, comm: None, uid: None }
    }
}

/// A memory cgroup with [`LIMIT`].
pub fn limited_cgroup() -> Result<Cgroup> {
    Cgroup::limited(TEST, LIMIT)
}

/// A load that is held until [`Load::go`], and ended when dropped.
#[derive(Debug)]
pub struct Load {
    child: Child,
    /// Takes the word to go.
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    tids: BTreeSet<u32>,
}

impl Load {
    /// Starts the program `memload` of this package, whose path Cargo tells the tests, to churn.
    pub fn churn(memload: &Path, what: &Churning<'_>) -> Result<Self> {
        let mut command = Command::new(memload);
        // No longer than a test waits for it, whatever becomes of the test.
        command.args(["churn", "--hold", "--duration", &format!("{}s", budget().as_secs())]);
        command.args(["--limit", &LIMIT.to_string(), "--threads", &what.threads.to_string()]);
        if what.brief {
            command.arg("--brief");
        }
        if let Some(comm) = what.comm {
            command.args(["--comm", comm]);
        }
        if let Some(uid) = what.uid {
            command.args(["--uid", &uid.to_string()]);
        }
        let load = Self::start(&mut command)?;
        what.cgroup.add(load.id())?;
        Ok(load)
    }

    /// Starts any other of its modes.
    pub fn of(memload: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(memload);
        Self::start(command.args(args).arg("--hold"))
    }

    /// Starts it to stream through files larger than the memory of a guest, without a limit.
    ///
    /// # Panics
    /// On a machine that is not a guest.
    pub fn stream(memload: &Path) -> Result<Self> {
        require_guest();
        let mut command = Command::new(memload);
        command.args(["churn", "--hold", "--duration", &format!("{}s", budget().as_secs())]);
        command.args(["--limit", "256M", "--threads", "4"]);
        Self::start(&mut command)
    }

    /// Starts it to compact memory.
    pub fn compact(memload: &Path, times: u32) -> Result<Self> {
        let mut command = Command::new(memload);
        command.args(["compact", "--hold", "--pause", "50ms", "--times", &times.to_string()]);
        Self::start(&mut command)
    }

    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut load = Self { child, stdin, stdout, tids: BTreeSet::new() };
        let mut line = String::new();
        load.stdout.read_line(&mut line).context("cannot read from memload")?;
        ensure!(line == "ready\n", "memload did not get ready, but said `{line}`");
        let tasks = fs::read_dir(format!("/proc/{}/task", load.id())).context("memload is gone")?;
        load.tids =
            tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).collect();
        Ok(load)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The ids of all threads that it had when it was ready, so those left out that come and go, and
    /// those that modes other than churn start later. The main one may stall as well, as it ends the
    /// others.
    #[must_use]
    pub fn tids(&self) -> &BTreeSet<u32> {
        &self.tids
    }

    /// The ids of those of them that work.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        let main = self.id();
        self.tids.iter().copied().filter(|&tid| tid != main).collect()
    }

    /// Lets it begin.
    pub fn go(&mut self) -> Result<()> {
        self.stdin.write_all(b"\n").context("memload is gone")
    }

    /// Lets it begin and waits until the limit of its cgroup was hit `times` times. How long that
    /// takes depends on the disk and on what else the host does.
    ///
    /// # Panics
    /// When the load ends before, as it does when the kernel kills it for lack of memory.
    pub fn work(&mut self, cgroup: &Cgroup, times: u64) -> Result<()> {
        let wanted = cgroup.limit_hits()? + times;
        self.work_until("the load to reach its limit", || {
            cgroup.limit_hits().is_ok_and(|hits| hits >= wanted)
        })
    }

    /// Lets it begin and waits until memtrace, as JSON, has shown `count` of its stalls, of so many
    /// `threads` at least that work.
    ///
    /// # Panics
    /// When the load ends before.
    #[track_caller]
    pub fn work_until_shown(
        &mut self,
        memtrace: &Memtrace,
        count: usize,
        threads: usize,
    ) -> Result<()> {
        let (pid, mut next) = (self.id(), count);
        self.work_until("memtrace to show stalls of the load", || {
            let lines = memtrace.lines();
            if lines < next {
                return false;
            }
            // A look at all of them takes long.
            next = lines + lines / 4 + 1;
            let mut shown = rows::tids(&memtrace.stdout(), Some(pid));
            let is_enough = shown.len() >= count;
            shown.retain(|&tid| tid != pid);
            is_enough && BTreeSet::from_iter(shown).len() >= threads
        })
    }

    /// Lets it begin and waits until `condition` holds, which is `what` it waits for.
    ///
    /// # Panics
    /// When the load ends before.
    #[track_caller]
    pub fn work_until(&mut self, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
        self.go()?;
        wait_until(what, || {
            let ended = self.child.try_wait().expect("cannot wait for memload");
            assert!(ended.is_none(), "memload ended while at work, with {ended:?}");
            condition()
        });
        Ok(())
    }

    /// Stops it and waits for its end. Gives what it says that it did.
    pub fn stop(mut self) -> Result<String> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("cannot stop memload")?;
        self.finish()
    }

    /// Waits until it has done all of its work.
    pub fn wait(mut self) -> Result<String> {
        self.finish()
    }

    fn finish(&mut self) -> Result<String> {
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).context("cannot read from memload")?;
        let status = self.child.wait().context("cannot wait for memload")?;
        ensure!(status.success(), "memload ended with {status}");
        Ok(said)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: std::io::Result<()> = self.child.kill();
        let _waited: std::io::Result<_> = self.child.wait();
    }
}
