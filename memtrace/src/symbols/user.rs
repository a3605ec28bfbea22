//! Symbols of programs, as far as a [`helper`](super::helper) finds them.
//!
//! It is waited for only so long: stalls wait in the ring buffer meanwhile. What it says later is
//! used from then on.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::thread::{CapabilitySet, capabilities};
use thiserror::Error;

use super::Frame;
use super::helper::{Answer, MOST_ANSWER, Question, REPLACED};
use crate::filter;

/// How long to wait for an answer. Programs that are known take microseconds, new ones some
/// milliseconds, and those with very many functions longer.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a process is taken to have the same program in the same place.
const FRESH: Duration = Duration::from_secs(1);
/// Most processes that are remembered.
const MOST_PROCESSES: usize = 512;
/// Most frames that are remembered, of all of them.
const MOST_FRAMES: usize = 8192;

/// Most addresses of stacks that are remembered as they were recorded.
const MOST_LEARNED: usize = 1 << 16;

/// Why functions of programs cannot be named.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unnameable {
    /// The ids in stalls are not those in this process's /proc.
    #[error("memtrace is in a PID namespace of its own")]
    PidNamespace,
    /// Other processes and the files that they run may not be looked at.
    #[error("memtrace lacks {0}")]
    Capabilities(String),
}

/// Whether the ids in stalls are those in this process's /proc, so that programs can be looked into as
/// far as privileges go.
#[must_use]
pub fn can_look() -> bool {
    filter::check_pid_namespace().is_ok()
}

/// What it takes to look into any process, and into the files that it runs.
pub fn can_name_programs() -> Result<(), Unnameable> {
    if !can_look() {
        return Err(Unnameable::PidNamespace);
    }
    let has = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    // Which is split off CAP_SYS_ADMIN since 5.9.
    let restores = has.intersects(CapabilitySet::CHECKPOINT_RESTORE | CapabilitySet::SYS_ADMIN);
    let needed = [
        (has.contains(CapabilitySet::SYS_PTRACE), "CAP_SYS_PTRACE"),
        (restores, "CAP_CHECKPOINT_RESTORE"),
        (has.contains(CapabilitySet::DAC_READ_SEARCH), "CAP_DAC_READ_SEARCH"),
    ];
    let missing: Vec<_> =
        needed.into_iter().filter(|(has, _)| !has).map(|(_, name)| name).collect();
    if missing.is_empty() { Ok(()) } else { Err(Unnameable::Capabilities(missing.join(", "))) }
}

/// Symbols of programs, asked for once and remembered for a while.
#[derive(Default)]
pub(super) struct UserSymbols {
    helper: Option<OwnedFd>,
    serial: u32,
    /// What was asked and has no answer yet.
    open: Option<Question>,
    processes: HashMap<u32, Process>,
    /// How many frames are remembered in all.
    frames: usize,
    /// By process and addresses, what was said to be so.
    learned: HashMap<(u32, Vec<u64>), Vec<Rc<Frame>>>,
    /// How many addresses these have.
    learned_frames: usize,
    /// Room for what the helper says.
    buffer: Vec<u8>,
}

/// What is remembered of a process.
struct Process {
    since: Instant,
    /// By address, nothing where there is no code.
    frames: HashMap<u64, Option<Rc<Frame>>>,
}

impl fmt::Debug for UserSymbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserSymbols").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl UserSymbols {
    pub(super) fn asking(helper: OwnedFd) -> Self {
        Self { helper: Some(helper), buffer: vec![0; MOST_ANSWER], ..Self::default() }
    }

    /// The frames of a stack, those that nothing is known of as addresses. It ends where it leads to what
    /// is no code: there a function has used the register of the frame pointer for something else.
    pub(super) fn resolve(&mut self, pid: u32, stack: &[u64]) -> Vec<Rc<Frame>> {
        if !self.learned.is_empty()
            && let Some(frames) = self.learned.get(&(pid, stack.to_vec()))
        {
            return frames.clone();
        }
        self.look_up(pid, stack)
    }

    /// The same, whatever was learned of the stack before.
    pub(super) fn look_up(&mut self, pid: u32, stack: &[u64]) -> Vec<Rc<Frame>> {
        self.forget_if_old(pid);
        let known = self.processes.get(&pid);
        let is_known =
            |address: &u64| known.is_some_and(|process| process.frames.contains_key(address));
        let mut unknown: Vec<_> =
            stack.iter().copied().filter(|address| !is_known(address)).collect();
        if !unknown.is_empty() && self.helper.is_some() {
            unknown.sort_unstable();
            unknown.dedup();
            self.ask(pid, unknown);
        }
        let known = self.processes.get(&pid);
        let frame = |(depth, &address): (usize, &u64)| match known
            .and_then(|process| process.frames.get(&address))
        {
            Some(Some(frame)) => Some(Rc::clone(frame)),
            Some(None) if depth > 0 => None,
            _ => Some(Rc::new(Frame::nameless(address))),
        };
        stack.iter().enumerate().map_while(frame).collect()
    }

    /// Has a stack go by these names, whatever else is known of its addresses.
    pub(super) fn learn(&mut self, pid: u32, stack: &[u64], frames: &[Rc<Frame>]) {
        if stack.is_empty() {
            return;
        }
        let frames = &frames[..frames.len().min(stack.len())];
        let key = (pid, stack.to_vec());
        if let Some(known) = self.learned.get_mut(&key) {
            if known != frames {
                *known = frames.to_vec();
            }
            return;
        }
        if self.learned_frames >= MOST_LEARNED {
            self.learned.clear();
            self.learned_frames = 0;
        }
        self.learned_frames += stack.len();
        self.learned.insert(key, frames.to_vec());
    }

    fn forget_if_old(&mut self, pid: u32) {
        if self.processes.get(&pid).is_some_and(|process| process.since.elapsed() > FRESH)
            && let Some(process) = self.processes.remove(&pid)
        {
            self.frames -= process.frames.len();
        }
    }

    /// Asks the helper, unless it is still at something else, and waits a moment for its answer.
    fn ask(&mut self, pid: u32, addresses: Vec<u64>) {
        while self.open.is_some() {
            if !self.listen(Duration::ZERO) {
                return;
            }
        }
        self.serial = self.serial.wrapping_add(1).max(REPLACED + 1);
        let question = Question { serial: self.serial, pid, addresses };
        let Some(helper) = &self.helper else { return };
        let bytes = serde_json::to_vec(&question).unwrap_or_default();
        match send(helper, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => self.open = Some(question),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => return,
            Err(_) => return self.helper = None,
        }
        let asked = Instant::now();
        while self.open.is_some() {
            let left = PATIENCE.saturating_sub(asked.elapsed());
            if left.is_zero() || !self.listen(left) {
                return;
            }
        }
    }

    /// Takes what the helper says next, if that is soon enough; whether it said anything.
    fn listen(&mut self, patience: Duration) -> bool {
        let Some(helper) = &self.helper else { return false };
        let mut polled = [PollFd::new(helper, PollFlags::IN)];
        let patience = Timespec::try_from(patience).ok();
        if !matches!(poll(&mut polled, patience.as_ref()), Ok(1..)) {
            return false;
        }
        match recv(helper, &mut self.buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.helper = None,
            Ok((len, _)) => {
                let answer = serde_json::from_slice(&self.buffer[..len]);
                self.take(answer.unwrap_or_default());
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.helper = None,
        }
        // Without it nothing is going to be answered.
        self.open.take_if(|_| self.helper.is_none());
        false
    }

    fn take(&mut self, answer: Answer) {
        let is_last =
            |question: &mut Question| [question.serial, REPLACED].contains(&answer.serial);
        let Some(question) = self.open.take_if(is_last) else { return };
        if self.processes.len() >= MOST_PROCESSES
            || self.frames + question.addresses.len() > MOST_FRAMES
        {
            self.processes.clear();
            self.frames = 0;
        }
        let process = self
            .processes
            .entry(question.pid)
            .or_insert_with(|| Process { since: Instant::now(), frames: HashMap::new() });
        // Nobody knows; and a helper that was replaced died of the question: do not ask again at once.
        let is_unknown = answer.frames.is_empty();
        let mut frames = answer.frames.into_iter();
        for address in question.addresses {
            let frame =
                if is_unknown { Some(Frame::nameless(address)) } else { frames.next().flatten() };
            if process.frames.insert(address, frame.map(Rc::new)).is_none() {
                self.frames += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// A client and the other end of its socket.
    fn asking() -> (UserSymbols, OwnedFd) {
        let (ours, its) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("a pair of sockets");
        (UserSymbols::asking(ours), its)
    }

    fn asked(helper: &OwnedFd) -> Question {
        let mut bytes = vec![0; 4096];
        let (len, _) = recv(helper, &mut bytes[..], RecvFlags::empty()).expect("a question");
        serde_json::from_slice(&bytes[..len]).expect("a question")
    }

    fn say(helper: &OwnedFd, serial: u32, frames: Vec<Option<Frame>>) {
        let answer = serde_json::to_vec(&Answer { serial, frames }).expect("memory");
        send(helper, &answer, SendFlags::empty()).expect("it listens");
    }

    fn texts(symbols: &mut UserSymbols, pid: u32, stack: &[u64]) -> Vec<String> {
        symbols.resolve(pid, stack).iter().map(|frame| frame.text().to_owned()).collect()
    }

    /// Answers as many questions as there are answers.
    fn answering<T: Send>(
        helper: &OwnedFd,
        answers: Vec<Vec<Option<Frame>>>,
        work: impl FnOnce() -> T,
    ) -> (T, Vec<Vec<u64>>) {
        thread::scope(|scope| {
            let answering = scope.spawn(move || {
                let answer = |frames| {
                    let question = asked(helper);
                    say(helper, question.serial, frames);
                    question.addresses
                };
                answers.into_iter().map(answer).collect()
            });
            let result = work();
            (result, answering.join().expect("answers"))
        })
    }

    fn function(name: &str) -> Frame {
        Frame::of_function(name, 1)
    }

    #[test]
    fn asks_once_for_what_it_does_not_know() {
        let (mut symbols, helper) = asking();
        let answers =
            vec![vec![Some(function("a")), Some(function("b"))], vec![Some(function("c"))]];
        let (found, questions) = answering(&helper, answers, || {
            let first = texts(&mut symbols, 1, &[20, 10, 20]);
            let again = texts(&mut symbols, 1, &[10]);
            [first, again, texts(&mut symbols, 1, &[30, 20])]
        });
        assert_eq!(found, [vec!["b+0x1", "a+0x1", "b+0x1"], vec!["a+0x1"], vec!["c+0x1", "b+0x1"]]);
        assert_eq!(questions, [vec![10, 20], vec![30]]);
    }

    #[test]
    fn processes_are_told_apart() {
        let (mut symbols, helper) = asking();
        let answers = vec![vec![Some(function("a"))], vec![Some(function("b"))]];
        let (found, _) = answering(&helper, answers, || {
            [1, 2, 1].map(|pid| texts(&mut symbols, pid, &[10]).remove(0))
        });
        assert_eq!(found, ["a+0x1", "b+0x1", "a+0x1"]);
    }

    #[test]
    fn a_stack_ends_where_there_is_no_code() {
        let (mut symbols, helper) = asking();
        let answers = vec![vec![Some(function("a")), None, Some(function("c"))], vec![None]];
        let (found, _) = answering(&helper, answers, || {
            [texts(&mut symbols, 1, &[10, 20, 30]), texts(&mut symbols, 1, &[40, 10])]
        });
        assert_eq!(found, [vec!["a+0x1"], vec!["0x28", "a+0x1"]]);
    }

    #[test]
    fn of_a_process_that_is_gone_there_are_addresses() {
        let (mut symbols, helper) = asking();
        let (found, questions) = answering(&helper, vec![vec![]], || {
            [(); 2].map(|()| texts(&mut symbols, 1, &[10, 20]))
        });
        assert_eq!(found, [["0xa", "0x14"]; 2]);
        assert_eq!(questions.len(), 1);
    }

    #[test]
    fn an_answer_that_comes_late_is_of_use_later() {
        let (mut symbols, helper) = asking();
        assert_eq!(texts(&mut symbols, 1, &[10]), ["0xa"]);
        let started = Instant::now();
        assert_eq!(texts(&mut symbols, 2, &[10]), ["0xa"]);
        assert!(started.elapsed() < PATIENCE, "waits for one that is still at work");
        say(&helper, asked(&helper).serial, vec![Some(function("a"))]);
        let (found, _) = answering(&helper, vec![vec![Some(function("b"))]], || {
            [2, 1].map(|pid| texts(&mut symbols, pid, &[10]).remove(0))
        });
        assert_eq!(found, ["b+0x1", "a+0x1"]);
    }

    #[test]
    fn a_helper_that_was_replaced_owes_no_answer() {
        let (mut symbols, helper) = asking();
        assert_eq!(texts(&mut symbols, 1, &[10]), ["0xa"]);
        let _question = asked(&helper);
        say(&helper, REPLACED, Vec::new());
        let (found, _) =
            answering(&helper, vec![vec![Some(function("b"))]], || texts(&mut symbols, 2, &[10]));
        assert_eq!(found, ["b+0x1"]);
    }

    #[test]
    fn goes_on_without_a_helper() {
        let (mut symbols, helper) = asking();
        drop(helper);
        assert_eq!(texts(&mut symbols, 1, &[10]), ["0xa"]);
        assert_eq!(texts(&mut UserSymbols::default(), 1, &[10]), ["0xa"]);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut symbols, _helper) = asking();
        for n in 0..20_000 {
            let question = Question { serial: 7, pid: n, addresses: vec![10, 20] };
            symbols.open = Some(question);
            symbols.take(Answer { serial: 7, frames: vec![Some(function("a")); 2] });
            let frames = symbols.processes.values().map(|process| process.frames.len());
            assert_eq!(frames.sum::<usize>(), symbols.frames);
            assert!(symbols.processes.len() <= MOST_PROCESSES && symbols.frames <= MOST_FRAMES);
        }
        for n in 0..MOST_FRAMES as u64 {
            let question = Question { serial: 7, pid: 1, addresses: vec![2 * n, 2 * n + 1] };
            symbols.open = Some(question);
            symbols.take(Answer { serial: 7, frames: vec![Some(function("a")); 2] });
            assert!(symbols.frames <= MOST_FRAMES, "{}", symbols.frames);
        }
    }
}
