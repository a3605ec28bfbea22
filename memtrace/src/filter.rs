//! Which threads to look at. Everything here is checked in the kernel, before anything is sent, but by
//! `memtrace now`, which leaves little to the kernel.

use std::fs;
use std::process::{Command, Stdio};

use thiserror::Error;

use crate::{cgroup::Cgroup, stall::Comm};

/// Which stalls to deliver; a stall must pass all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of one of these processes; of any if empty.
    pub processes: Vec<u32>,
    /// Of one of these threads; of any if empty.
    pub threads: Vec<u32>,
    /// Of threads with this real user id.
    pub uid: Option<u32>,
    /// Of threads whose name contains this text.
    pub comm: Option<CommText>,
    /// Of threads in this cgroup or below it.
    pub cgroup: Option<Cgroup>,
    /// At least this long, in nanoseconds.
    pub min_ns: u64,
}

impl Filter {
    /// Whether a thread of this process and user with this name passes all but the filter on cgroups.
    #[must_use]
    pub fn passes(&self, pid: u32, tid: u32, uid: u32, comm: Comm) -> bool {
        (self.processes.is_empty() || self.processes.contains(&pid))
            && (self.threads.is_empty() || self.threads.contains(&tid))
            && self.uid.is_none_or(|wanted| wanted == uid)
            && self.comm.as_ref().is_none_or(|text| text.is_in(comm))
    }
}

/// A text to look for in threads' names: 1 to 15 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommText(String);

/// Why something cannot be filtered on.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// No such process.
    #[error("no process has PID {0}: `ps -e` lists those that run")]
    NoProcess(u32),
    /// A thread, but not the first of its process.
    #[error(
        "{tid} is a thread of process {pid}: use `--tid {tid}`, or `--pid {pid}` for the whole process"
    )]
    NotAProcess {
        /// What was taken for a process.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// PIDs here are not those that the kernel reports.
    #[error(
        "PIDs and TIDs are those of the host, and memtrace runs in a PID namespace of its own: run it on the host, or in a container with the host's PID namespace"
    )]
    PidNamespace,
    /// No such thread.
    #[error("no thread has TID {0}: `ps -eL` lists those that run")]
    NoThread(u32),
    /// No such user.
    #[error("no user is called `{0}`: give a name that `getent passwd` lists, or a number")]
    NoUser(String),
    /// A name that no thread can have.
    #[error(
        "no thread's name can contain `{0}`: give 1 to 15 bytes, as the kernel cuts names to 15"
    )]
    BadComm(String),
}

impl CommText {
    /// Takes a text that a thread's name can contain.
    pub fn new(text: &str) -> Result<Self, FilterError> {
        if text.is_empty() || text.len() >= Comm::LEN || text.contains('\0') {
            return Err(FilterError::BadComm(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    fn is_in(&self, comm: Comm) -> bool {
        memchr::memmem::find(comm.as_bytes(), self.0.as_bytes()).is_some()
    }

    /// The text as two little-endian words, and all bits set where it has a byte.
    pub(crate) fn words(&self) -> ([u64; 2], [u64; 2]) {
        let mut text = [0; Comm::LEN];
        let mut mask = [0; Comm::LEN];
        text[..self.0.len()].copy_from_slice(self.0.as_bytes());
        mask[..self.0.len()].fill(0xff);
        (words(text), words(mask))
    }
}

fn words(bytes: [u8; Comm::LEN]) -> [u64; 2] {
    let words: [u64; 2] = zerocopy::transmute!(bytes);
    words.map(u64::from_le)
}

/// Makes sure that process `pid` runs, so that a mistyped number does not wait for ever.
pub fn check_process(pid: u32) -> Result<(), FilterError> {
    match process_of(pid) {
        None => Err(FilterError::NoProcess(pid)),
        Some(process) if process != pid => Err(FilterError::NotAProcess { tid: pid, pid: process }),
        Some(_) => Ok(()),
    }
}

/// Makes sure that thread `tid` runs.
pub fn check_thread(tid: u32) -> Result<(), FilterError> {
    process_of(tid).map(|_| ()).ok_or(FilterError::NoThread(tid))
}

/// The user id that `user` stands for, a number or a name.
pub fn find_user(user: &str) -> Result<u32, FilterError> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let listed = fs::read("/etc/passwd").unwrap_or_default();
    let found = uid_in(&listed, user).or_else(|| {
        // Users of a network, say. By a program: the C library loads modules for them, which crashes a static memtrace.
        let mut getent = Command::new("/usr/bin/getent");
        let asked = getent.args(["passwd", "--", user]).stderr(Stdio::null()).output();
        uid_in(&asked.ok()?.stdout, user)
    });
    found.ok_or_else(|| FilterError::NoUser(user.to_owned()))
}

/// The id of a user in lines of passwd(5).
fn uid_in(passwd: &[u8], user: &str) -> Option<u32> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let is_it = fields.next() == Some(user.as_bytes());
        let uid = fields.nth(1).filter(|_| is_it)?;
        str::from_utf8(uid).ok()?.parse().ok()
    })
}

/// Makes sure that PIDs mean here what they mean to the kernel.
pub fn check_pid_namespace() -> Result<(), FilterError> {
    // `PROC_PID_INIT_INO` in include/linux/proc_ns.h.
    const INITIAL: &str = "pid:[4026531836]";
    match fs::read_link("/proc/self/ns/pid") {
        Ok(namespace) if namespace.as_os_str() != INITIAL => Err(FilterError::PidNamespace),
        _ => Ok(()),
    }
}

/// The process of thread `tid`.
fn process_of(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_names() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n\xff:x:5:5::/:\nuser:x:1000:1000::/:\nbad:x\nworse:x:-1:";
        for (user, uid) in [("root", Some(0)), ("user", Some(1000)), ("use", None), ("", None)] {
            assert_eq!(uid_in(passwd, user), uid, "{user}");
        }
        for user in ["x", "bad", "worse", "nobody"] {
            assert_eq!(uid_in(passwd, user), None, "{user}");
        }
    }

    #[test]
    fn a_name_has_1_to_15_bytes() {
        for bad in ["", "sixteen bytes 16", "a\0b"] {
            assert_eq!(CommText::new(bad), Err(FilterError::BadComm(bad.to_owned())));
        }
        let (text, mask) = CommText::new("abcdefghi").expect("nine bytes").words();
        assert_eq!(text, [u64::from_le_bytes(*b"abcdefgh"), u64::from(b'i')]);
        assert_eq!(mask, [u64::MAX, 0xff]);
    }

    #[test]
    fn a_thread_passes_all_that_is_set() {
        let mut name = [0; Comm::LEN];
        name[..8].copy_from_slice(b"postgres");
        let passes = |filter: &Filter| filter.passes(1, 2, 3, Comm::new(name));
        assert!(passes(&Filter::default()));
        let text = |text| Some(CommText::new(text).expect("short"));
        let all = Filter {
            processes: vec![9, 1],
            threads: vec![2],
            uid: Some(3),
            comm: text("tgr"),
            ..Filter::default()
        };
        assert!(passes(&all));
        assert!(!passes(&Filter { processes: vec![2], ..all.clone() }));
        assert!(!passes(&Filter { threads: vec![1], ..all.clone() }));
        assert!(!passes(&Filter { uid: Some(0), ..all.clone() }));
        assert!(!passes(&Filter { comm: text("postgresq"), ..all }));
    }

    #[test]
    fn tells_threads_from_processes() {
        let pid = std::process::id();
        assert_eq!(check_process(pid), Ok(()));
        assert_eq!(check_process(u32::MAX), Err(FilterError::NoProcess(u32::MAX)));
        assert_eq!(check_thread(u32::MAX), Err(FilterError::NoThread(u32::MAX)));
        let tid = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        assert_ne!(tid, pid, "the test harness runs tests in threads");
        assert_eq!(check_process(tid), Err(FilterError::NotAProcess { tid, pid }));
        assert_eq!(check_thread(tid), Ok(()));
    }

    #[test]
    fn finds_users_by_number_and_name() {
        assert_eq!(find_user("0"), Ok(0));
        assert_eq!(find_user("root"), Ok(0));
        let nobody = "no such user";
        assert_eq!(find_user(nobody), Err(FilterError::NoUser(nobody.to_owned())));
    }
}
