//! Folded stacks: how long each distinct stack was held up in all, one line each, as flame graph tools
//! read them: `comm;type:kind;frame;frame 1234`, outermost frame first, in microseconds.
//!
//! The kind stands before the frames, so that its share of a program's time is to be seen at one
//! glance, and reclaim and compaction by the same function are told apart where there are both.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Sink, subject_of};
use crate::episode::Episode;
use crate::names::Names;
use crate::stall::{Comm, Stall};
use crate::symbols::Frame;
use crate::text::{Printable, is_plain};

/// Which stacks to fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldedOptions {
    /// The kernel's.
    pub kernel: bool,
    /// The program's, which are outside the kernel's where there are both.
    pub user: bool,
    /// How many distinct ones there is room for.
    pub max_stacks: usize,
}

/// What tells flame graph tools that a function is the kernel's.
const KERNEL: &str = "_[k]";
/// All stacks for which there was no room.
const OTHER: &str = "[other]";
/// Bytes that a stack may take, on average, if there is to be room for as many as were asked for.
const ROOM: usize = 2048;

/// Time by stack.
#[derive(Debug)]
pub struct Folded {
    options: FoldedOptions,
    /// Nanoseconds by line.
    stacks: HashMap<Box<str>, u128>,
    /// How many bytes of lines there is still room for.
    room: usize,
    other_ns: u128,
    /// Where lines are made.
    line: Vec<u8>,
}

impl Folded {
    /// None yet.
    #[must_use]
    pub fn new(options: FoldedOptions) -> Self {
        Self {
            options,
            stacks: HashMap::new(),
            room: options.max_stacks.saturating_mul(ROOM),
            other_ns: 0,
            line: Vec::new(),
        }
    }

    /// Adds a stall.
    pub fn stall(&mut self, stall: &Stall, names: &mut Names) {
        let kind = format!("{}:{}", subject_of(stall).name(), stall.kind_name());
        let Stall { comm, pid, stack, user_stack, duration_ns, .. } = stall;
        self.add(&kind, comm, (*pid, user_stack), stack, *duration_ns, names);
    }

    /// Adds an episode, with the stack of its longest round.
    pub fn episode(&mut self, episode: &Episode, names: &mut Names) {
        let Episode { kind, comm, pid, stack, user_stack, duration_ns, .. } = episode;
        self.add(kind.name(), comm, (*pid, user_stack), stack, *duration_ns, names);
    }

    fn add(
        &mut self,
        kind: &str,
        comm: &Comm,
        (pid, user_stack): (u32, &[u64]),
        stack: &[u64],
        duration_ns: u64,
        names: &mut Names,
    ) {
        let FoldedOptions { kernel: with_kernel, user: with_user, .. } = self.options;
        let user = if with_user { names.symbols.user(pid, user_stack) } else { Vec::new() };
        let kernel = if with_kernel { names.symbols.kernel(stack) } else { Vec::new() };
        let [user, kernel] = [&user, &kernel].map(|frames| frames.iter().map(|it| it.function()));
        self.frames(kind, comm, user, kernel, duration_ns.into());
    }

    /// Adds so much time of a stack by the names of its functions, innermost first, in user space and in the kernel.
    pub(crate) fn frames<'a>(
        &mut self,
        kind: &str,
        comm: &Comm,
        user: impl DoubleEndedIterator<Item = &'a str>,
        kernel: impl DoubleEndedIterator<Item = &'a str>,
        ns: u128,
    ) {
        self.line.clear();
        append_name(comm, &mut self.line);
        append_frame(kind, "", &mut self.line);
        for function in user.rev() {
            append_frame(function, "", &mut self.line);
        }
        for function in kernel.rev() {
            append_frame(function, KERNEL, &mut self.line);
        }
        let line = std::mem::take(&mut self.line);
        self.line(&String::from_utf8_lossy(&line), ns);
        self.line = line;
    }

    /// Adds so many nanoseconds to a line that is ready, as [`append_frames`] makes them.
    pub fn line(&mut self, line: &str, ns: u128) {
        if let Some(sum) = self.stacks.get_mut(line) {
            *sum += ns;
        } else if self.stacks.len() < self.options.max_stacks && line.len() <= self.room {
            self.room -= line.len();
            self.stacks.insert(line.into(), ns);
        } else {
            self.other_ns += ns;
        }
    }

    /// Adds those of another.
    pub fn merge(&mut self, other: Self) {
        for (line, ns) in other.stacks {
            self.line(&line, ns);
        }
        self.other_ns += other.other_ns;
    }

    /// The stacks that were held up longest, and all others as one.
    #[must_use]
    pub fn longest(&self, most: usize) -> Self {
        let mut order: Vec<_> = self.stacks.iter().collect();
        order.sort_unstable_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let mut longest = Self::new(FoldedOptions { max_stacks: most, ..self.options });
        longest.room = usize::MAX;
        longest.other_ns = self.other_ns;
        for (line, ns) in order {
            longest.line(line, *ns);
        }
        longest
    }

    /// The lines in order, each with its microseconds. What rounding takes from one it adds to the
    /// next, so that they add up to the time of all stalls, and none is wrong by a microsecond.
    pub fn lines(&self) -> impl Iterator<Item = (&str, u128)> {
        let mut sorted: Vec<_> = self.stacks.iter().map(|(line, ns)| (&**line, *ns)).collect();
        sorted.sort_unstable();
        let other = (self.other_ns != 0).then_some((OTHER, self.other_ns));
        let mut so_far_ns = 0;
        sorted.into_iter().chain(other).map(move |(line, ns)| {
            let before = rounded_us(so_far_ns);
            so_far_ns += ns;
            (line, rounded_us(so_far_ns) - before)
        })
    }

    /// Shows all of them.
    pub fn show(&self, out: &mut impl Sink) {
        for (line, us) in self.lines() {
            let _room: bool = out.make_room();
            let lines = out.lines();
            lines.extend_from_slice(line.as_bytes());
            lines.push(b' ');
            lines.extend_from_slice(itoa::Buffer::new().format(us).as_bytes());
            lines.push(b'\n');
        }
    }
}

fn rounded_us(ns: u128) -> u128 {
    (ns + 500) / 1000
}

/// Appends the kernel's frames or a program's to a line, given innermost first. A line begins with the thread's name
/// and the kind, by [`append_name`] and as a frame.
pub(crate) fn append_frames(frames: &[Rc<Frame>], is_kernel: bool, line: &mut Vec<u8>) {
    for frame in frames.iter().rev() {
        append_frame(frame.function(), if is_kernel { KERNEL } else { "" }, line);
    }
}

pub(crate) fn append_frame(name: &str, suffix: &str, line: &mut Vec<u8>) {
    line.push(b';');
    append(name, line);
    line.extend_from_slice(suffix.as_bytes());
}

/// Begins a line with a thread's name.
pub(crate) fn append_name(comm: &Comm, line: &mut Vec<u8>) {
    append(&Printable(comm.as_bytes()).to_string(), line);
}

/// Appends a name so that it is one frame and nothing else: `;` ends a frame, and the last blank of a
/// line comes before the number. What is not to be seen is `\xNN`, and so are two characters that XML
/// cannot have.
fn append(name: &str, line: &mut Vec<u8>) {
    let start = line.len();
    if is_plain(name.as_bytes()) && memchr::memchr2(b';', b' ', name.as_bytes()).is_none() {
        // As most names are.
        line.extend_from_slice(name.as_bytes());
    } else {
        append_each(name, line);
    }
    if line.len() == start {
        line.extend_from_slice(b"[unnamed]");
    }
}

fn append_each(name: &str, line: &mut Vec<u8>) {
    for c in name.chars() {
        match c {
            ';' => line.push(b':'),
            '\u{fffe}' => line.extend_from_slice(b"\\xef\\xbf\\xbe"),
            '\u{ffff}' => line.extend_from_slice(b"\\xef\\xbf\\xbf"),
            c if c.is_whitespace() && !crate::text::is_hidden(c) => line.push(b'_'),
            c => Printable(c.encode_utf8(&mut [0; 4]).as_bytes()).append_to(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{HOSTILE, comm, compaction, names, reclaim, unknown};
    use super::*;

    const BOTH: FoldedOptions = FoldedOptions { kernel: true, user: true, max_stacks: 100 };

    fn folded(options: FoldedOptions, stalls: &[Stall]) -> String {
        let (mut folded, mut names, mut out) = (Folded::new(options), names(), Vec::new());
        for stall in stalls {
            folded.stall(stall, &mut names);
        }
        folded.show(&mut out);
        String::from_utf8(out).expect("views show UTF-8")
    }

    fn of(name: &[u8], duration_ns: u64) -> Stall {
        Stall { comm: comm(name), duration_ns, ..unknown(reclaim()) }
    }

    #[test]
    fn frames_are_outermost_first_and_the_kernels_marked() {
        let stall = Stall { user_stack: vec![0x3b, 0x4c], ..reclaim() };
        let user = "0x4c;0x3b";
        let kernel = "try_charge_memcg_[k];do_try_to_free_pages_[k]";
        for (options, stack) in [
            (BOTH, format!("{user};{kernel}")),
            (FoldedOptions { user: false, ..BOTH }, kernel.to_owned()),
            (FoldedOptions { kernel: false, ..BOTH }, user.to_owned()),
        ] {
            let expected = format!("postgres;reclaim:memcg;{stack} 1235\n");
            assert_eq!(folded(options, std::slice::from_ref(&stall)), expected);
        }
    }

    #[test]
    fn the_same_stacks_are_one() {
        let stalls = [reclaim(), compaction(), reclaim(), of(b"sh", 1000)];
        let folded = folded(FoldedOptions { kernel: false, user: false, ..BOTH }, &stalls);
        assert_eq!(
            folded,
            "postgres;reclaim:memcg 2469\nsh;reclaim:memcg 1\nsumm;compaction:direct 1235\n"
        );
    }

    #[test]
    fn lines_add_up_to_the_whole() {
        let stalls: Vec<_> = (0..26).map(|n| of(&[b'a' + n], 1_400)).collect();
        let text = folded(BOTH, &stalls);
        let numbers: Vec<u64> =
            text.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect();
        assert_eq!(numbers.len(), 26);
        // 36.4, of which each line for itself would keep 26.
        assert_eq!(numbers.iter().sum::<u64>(), 36);
        assert!(numbers.iter().all(|us| (1..=2).contains(us)), "{numbers:?}");
    }

    #[test]
    fn nothing_overflows() {
        let text = folded(BOTH, &[of(b"a", u64::MAX), of(b"a", u64::MAX)]);
        assert_eq!(text, "a;reclaim:memcg 36893488147419103\n");
    }

    #[test]
    fn later_stacks_are_one_line_that_keeps_the_total() {
        let stalls: Vec<_> =
            [b"a", b"b", b"c", b"a", b"d"].iter().map(|name| of(*name, 1000)).collect();
        let options = FoldedOptions { max_stacks: 2, ..BOTH };
        assert_eq!(folded(options, &stalls), "a;reclaim:memcg 2\nb;reclaim:memcg 1\n[other] 2\n");
    }

    #[test]
    fn the_longest_are_kept_and_the_rest_is_one() {
        let (mut all, mut more) = (Folded::new(BOTH), Folded::new(BOTH));
        for (line, us) in [("a", 5), ("b", 9), ("c", 1)] {
            all.line(line, us * 1000);
        }
        more.line("b", 1000);
        more.line("d", 2000);
        all.merge(more);
        let lines: Vec<_> = all.longest(2).lines().map(|(l, us)| (l.to_owned(), us)).collect();
        assert_eq!(lines, [("a".to_owned(), 5), ("b".to_owned(), 10), (OTHER.to_owned(), 3)]);
    }

    #[test]
    fn long_stacks_do_not_take_all_memory() {
        let stack = |n: u64| vec![0xffff_ffff_0000_0000 + n; 127];
        let stalls: Vec<_> =
            (0..10).map(|n| Stall { user_stack: stack(n), ..of(b"a", 1000) }).collect();
        let text = folded(FoldedOptions { max_stacks: 10, ..BOTH }, &stalls);
        assert!(text.len() <= 10 * ROOM + 100, "{}", text.len());
        assert!(
            text.ends_with(&format!("[other] {}\n", 10 - (text.lines().count() - 1))),
            "{text}"
        );
    }

    #[test]
    fn a_name_is_one_frame_whatever_it_is() {
        let shown = |name: &[u8]| folded(BOTH, &[of(name, 7000)]);
        for (name, frame) in [
            (&b"a;b 12"[..], "a:b_12"),
            (b" # x ", "_#_x_"),
            (b"", "[unnamed]"),
            (b"\t\r\n\0", "\\x09\\x0d\\x0a"),
            ("\u{a0}\u{2003}".as_bytes(), "__"),
            ("\u{fffe}\u{ffff}".as_bytes(), "\\xef\\xbf\\xbe\\xef\\xbf\\xbf"),
            (HOSTILE, "\\x1b[2J\"'\\\\x0a\\xff💩"),
        ] {
            assert_eq!(shown(name), format!("{frame};reclaim:memcg 7\n"));
        }
    }
}
