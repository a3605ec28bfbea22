//! memtrace as a child process.

use std::{
    env, fs,
    io::{self, Read},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal};

use crate::{
    host::monotonic_ns,
    wait::{wait_for, wait_until},
};

/// The beginnings of the line on stderr that says that all probes are attached.
const ATTACHED: [&str; 2] = ["Tracing ", "Recording "];

/// Path of the program under test.
///
/// # Panics
/// Where the environment does not name it.
#[must_use]
pub fn binary() -> PathBuf {
    let path = env::var_os("MEMTRACE_BIN");
    let path = path.expect("MEMTRACE_BIN is not set: run the tests with `cargo xtask test`, which sets it to the path of memtrace");
    fs::canonicalize(&path)
        .unwrap_or_else(|err| panic!("MEMTRACE_BIN names `{}`: {err}", path.display()))
}

/// A command that runs memtrace with these arguments. It hears a hang-up even where the tests run
/// under nohup.
#[must_use]
pub fn command<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(binary());
    command.args(args);
    let hear_hang_up = || {
        // SAFETY: the call may be made between fork and exec, and only sets what a signal does.
        match unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) } {
            libc::SIG_ERR => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure makes one call that is safe between fork and exec, and allocates nothing.
    unsafe { command.pre_exec(hear_hang_up) };
    command
}

/// The running memtrace. It is killed when dropped, should a test fail.
#[derive(Debug)]
pub struct Memtrace {
    child: Child,
    stdout: Collector,
    stderr: Collector,
    spawned_ns: u64,
    attached_ns: u64,
}

/// What memtrace left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// A time at which it was not started yet, in nanoseconds of `CLOCK_MONOTONIC`.
    pub spawned_ns: u64,
    /// A time at which all of its probes were attached.
    pub attached_ns: u64,
    /// A time at which they still were; then it was told to stop, or ended by itself.
    pub stopping_ns: u64,
}

impl Memtrace {
    /// Starts memtrace and waits until all its probes are attached.
    ///
    /// # Panics
    /// When it ends before that.
    #[must_use]
    #[track_caller]
    pub fn start<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Self {
        Self::spawn(&mut command(args))
    }

    /// As [`Memtrace::start`], of a command that ends up as memtrace.
    ///
    /// # Panics
    /// When it ends before its probes are attached.
    #[must_use]
    #[track_caller]
    pub fn spawn(command: &mut Command) -> Self {
        let mut memtrace = Self::spawn_unattached(command);
        memtrace.wait_attached();
        memtrace
    }

    #[track_caller]
    fn wait_attached(&mut self) {
        wait_until("memtrace to attach", || {
            let stderr = self.stderr.text();
            if stderr.lines().any(|line| ATTACHED.iter().any(|start| line.starts_with(start))) {
                return true;
            }
            let ended = self.child.try_wait().expect("cannot wait for memtrace");
            assert!(
                ended.is_none(),
                "memtrace ended before it attached, with {ended:?} and: {stderr}"
            );
            false
        });
        self.attached_ns = monotonic_ns();
    }

    /// As [`Memtrace::start`], with `-q`, which leaves out the line that says that the probes are
    /// attached: waits until memtrace holds as many links to them as it does without `-q`.
    ///
    /// # Panics
    /// When it ends before that.
    #[must_use]
    #[track_caller]
    pub fn start_quiet(args: &[&str]) -> Self {
        let talking = Self::start(args);
        let wanted = talking.links();
        assert!(wanted > 0, "no links to eBPF programs among memtrace's file descriptors");
        talking.stop().assert_success();
        let mut memtrace = Self::spawn_unattached(&mut command(&[args, &["-q"]].concat()));
        wait_until("memtrace -q to attach", || memtrace.links() == wanted);
        memtrace.attached_ns = monotonic_ns();
        memtrace
    }

    /// As [`Memtrace::start`], with its standard output left to the caller.
    ///
    /// # Panics
    /// When it ends before its probes are attached.
    #[must_use]
    #[track_caller]
    pub fn start_piped<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> (Self, ChildStdout) {
        let mut memtrace = Self::spawn_unread(&mut command(args));
        let stdout = memtrace.child.stdout.take().expect("the standard output is a pipe");
        memtrace.wait_attached();
        (memtrace, stdout)
    }

    /// As [`Memtrace::spawn`], of a command that attaches nothing, or is not waited for.
    #[must_use]
    #[track_caller]
    pub fn spawn_unattached(command: &mut Command) -> Self {
        let mut memtrace = Self::spawn_unread(command);
        memtrace.stdout = Collector::new(memtrace.child.stdout.take());
        memtrace
    }

    /// Leaves the pipe from its standard output unread.
    fn spawn_unread(command: &mut Command) -> Self {
        let spawned_ns = monotonic_ns();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("cannot start {command:?}: {err}"));
        let stderr = Collector::new(child.stderr.take());
        Self {
            child,
            stdout: Collector::new(None::<io::Empty>),
            stderr,
            spawned_ns,
            attached_ns: 0,
        }
    }

    /// Number of eBPF programs that it has attached.
    fn links(&self) -> usize {
        let Ok(fds) = fs::read_dir(format!("/proc/{}/fd", self.id())) else { return 0 };
        let targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        targets
            .filter(|target| {
                target.to_string_lossy().contains("bpf_link")
                    || target.to_string_lossy().contains("bpf-raw-tracepoint")
            })
            .count()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed to its standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// How many lines that is.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.stdout.lines.load(Ordering::Relaxed)
    }

    /// What it has printed to its standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(pid(self.id()), signal)
            .expect("cannot send memtrace a signal");
    }

    /// Stops it as a user does, with Ctrl-C.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> Finished {
        let stopping_ns = monotonic_ns();
        self.signal(Signal::INT);
        Finished { stopping_ns, ..self.wait() }
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    #[track_caller]
    pub fn wait(mut self) -> Finished {
        let status = wait_for("memtrace to end", || {
            self.child.try_wait().expect("cannot wait for memtrace")
        });
        Finished {
            status,
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            spawned_ns: self.spawned_ns,
            attached_ns: self.attached_ns,
            stopping_ns: monotonic_ns(),
        }
    }
}

impl Drop for Memtrace {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: io::Result<()> = self.child.kill();
        let _waited: io::Result<_> = self.child.wait();
    }
}

impl Finished {
    /// Runs a command that ends by itself.
    ///
    /// # Panics
    /// When it cannot be started, or does not end.
    #[must_use]
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        Memtrace::spawn_unattached(command).wait()
    }

    /// The summary for people: the last line on stderr, but for a few on what was given up, watched or recorded.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn summary(&self) -> Counts {
        let mut last = self.stderr.lines().rev().take(3);
        let counts = last.find_map(Counts::parse);
        counts.unwrap_or_else(|| panic!("no summary at the end of: {}", self.stderr))
    }

    /// How long it traced, at least.
    #[must_use]
    pub fn traced(&self) -> Duration {
        Duration::from_nanos(self.stopping_ns - self.attached_ns)
    }

    /// Checks that it ended with status 0.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn assert_success(&self) {
        assert!(
            self.status.success(),
            "memtrace ended with {} (signal {:?}) and: {}",
            self.status,
            self.status.signal(),
            self.stderr
        );
    }
}

/// What the summary for people says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Stalls shown.
    pub stalls: u64,
    /// Lost in the ring buffer.
    pub lost: u64,
    /// Begun before tracing.
    pub missed_begin: u64,
    /// Without room in the table of stalls in progress.
    pub table_full: u64,
}

impl Counts {
    fn parse(line: &str) -> Option<Self> {
        let after = |text| {
            let (_, rest) = line.split_once(text)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        Some(Self {
            stalls: after("memtrace: ")?,
            lost: after("lost ")?,
            missed_begin: after("missed begin ")?,
            table_full: after("table full ")?,
        })
    }
}

fn pid(raw: u32) -> Pid {
    i32::try_from(raw).ok().and_then(Pid::from_raw).expect("no process id")
}

/// Reads a pipe to its end, in a thread, so that its writer never waits.
#[derive(Debug)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// How many lines have come.
    lines: Arc<AtomicUsize>,
    reader: Option<JoinHandle<()>>,
}

impl Collector {
    fn new(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let lines = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lines);
        let reader = pipe.map(|mut pipe| {
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(len @ 1..) = pipe.read(&mut buffer) {
                    sink.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(&buffer[..len]);
                    let ends = buffer[..len].iter().filter(|&&byte| byte == b'\n');
                    counted.fetch_add(ends.count(), Ordering::Relaxed);
                }
            })
        });
        Self { bytes, lines, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
            .into_owned()
    }

    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of memtrace's output panicked");
        }
        self.text()
    }
}
