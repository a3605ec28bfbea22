//! The process that looks into programs for the names of their functions: one that starts others to do
//! it, so that none of them matters. They end with memtrace, however that ends.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsFd, OwnedFd},
    process, thread,
    time::{Duration, Instant},
};

use memtrace::symbols::helper::{self, Work};
use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::{ForkResult, alarm, fork},
};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit},
    thread::set_name,
};

use crate::privileges;

/// Seconds after which work on a question is given up, and the helper that was at it.
const PATIENCE_SECONDS: u32 = 5;
/// How long it may take to end.
const PARTING: Duration = Duration::from_millis(200);
/// Most bytes of data that it may have: tables of the programs with the most functions, and some more.
const MOST_DATA: u64 = 256 << 20;

/// The process that starts the others.
#[derive(Debug)]
pub struct Helper(nix::unistd::Pid);

impl Helper {
    /// Starts it, and gives the socket that leads to it. Must be called while this process has one
    /// thread.
    pub fn start() -> io::Result<(Self, OwnedFd)> {
        let (ours, its) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let parent = rustix::process::getpid();
        // SAFETY: the process has one thread, so nothing is held that the child could wait for.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok((Self(child), ours)),
            ForkResult::Child => {
                drop(ours);
                let served = confine(parent).and_then(|()| supervise(&its));
                process::exit(served.is_err().into())
            }
        }
    }

    /// Sees it end, as it does once nobody has the socket. One that hangs is left to the kernel, which
    /// ends it with memtrace.
    pub fn end(self) {
        let since = Instant::now();
        while since.elapsed() < PARTING
            && matches!(waitpid(self.0, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Detaches this process from all that is memtrace's: its output, its signals, its privileges.
fn confine(parent: Pid) -> io::Result<()> {
    set_name(c"memtrace-names")?;
    end_with(parent)?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the call only sets what a signal does. It ends when memtrace does, which still asks.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    let limit = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Data, limit(MOST_DATA))?;
    // What it dies of, if it does, is nobody's business.
    setrlimit(Resource::Core, limit(0))?;
    privileges::keep_for_names()
}

/// Has the kernel kill this process when `parent` ends, if it has not yet.
fn end_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Starts one process after the other to answer, until one of them has nothing left to do.
fn supervise(socket: impl AsFd) -> io::Result<()> {
    let this = rustix::process::getpid();
    loop {
        // SAFETY: as above.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let served = end_with(this).and_then(|()| helper::serve(&socket, watch));
                process::exit(served.is_err().into());
            }
            ForkResult::Parent { child } => match waitpid(child, None)? {
                WaitStatus::Exited(_, 0) => return Ok(()),
                _ => helper::replace(&socket)?,
            },
        }
    }
}

/// Ends this process where it is at one question for too long.
fn watch(work: Work) {
    let _before = match work {
        Work::Begins => alarm::set(PATIENCE_SECONDS),
        Work::Ends => alarm::cancel(),
    };
}
