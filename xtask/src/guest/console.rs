//! What a kernel says on its console when it is in trouble.

/// Trouble, by how much of it is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The kernel has given up.
    Fatal(&'static str),
    /// Something is stuck. An emulated CPU of a busy machine may seem to be for a moment.
    Stuck(&'static str),
}

/// How often something may be stuck.
const STUCK_TOO_OFTEN: u32 = 3;

/// How the lines of trouble begin, after the time.
const SIGNS: [(&str, Trouble); 10] = [
    ("Kernel panic - not syncing", Trouble::Fatal("the kernel panicked")),
    ("Oops: ", Trouble::Fatal("the kernel had an oops")),
    ("BUG: unable to handle", Trouble::Fatal("the kernel had an oops")),
    ("BUG: kernel NULL pointer", Trouble::Fatal("the kernel had an oops")),
    ("kernel BUG at ", Trouble::Fatal("the kernel found a bug in itself")),
    ("general protection fault", Trouble::Fatal("the kernel had an oops")),
    ("watchdog: BUG: soft lockup", Trouble::Stuck("a CPU is locked up")),
    ("rcu: INFO: rcu_", Trouble::Stuck("RCU has stalled")),
    ("INFO: rcu_", Trouble::Stuck("RCU has stalled")),
    ("INFO: task ", Trouble::Stuck("a task is blocked for minutes")),
];

/// Reads a console line by line.
#[derive(Debug, Default)]
pub struct Console {
    stuck: u32,
}

impl Console {
    /// What is wrong, as of this line, if it is time to give the guest up.
    pub fn line(&mut self, line: &str) -> Option<&'static str> {
        match trouble(line)? {
            Trouble::Fatal(what) => Some(what),
            Trouble::Stuck(what) => {
                self.stuck += 1;
                (self.stuck >= STUCK_TOO_OFTEN).then_some(what)
            }
        }
    }
}

/// The trouble that a line tells of. It must begin with it: names of threads are in the midst of lines.
fn trouble(line: &str) -> Option<Trouble> {
    let mut text = line.trim();
    // The time, and the CPU or thread on some kernels.
    while let Some((_, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        text = rest.trim_start();
    }
    SIGNS.iter().find(|(sign, _)| text.starts_with(sign)).map(|(_, trouble)| *trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_end() {
        let mut console = Console::default();
        assert_eq!(console.line("[    0.000000] Linux version 6.12.107"), None);
        let panic = "[    1.234567] Kernel panic - not syncing: Fatal exception in interrupt\r";
        assert_eq!(console.line(panic), Some("the kernel panicked"));
        let oops = "[    1.234567][   T12] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI";
        assert_eq!(console.line(oops), Some("the kernel had an oops"));
    }

    #[test]
    fn a_stall_is_the_end_if_it_comes_again() {
        let mut console = Console::default();
        let stall = "[   63.7] rcu: INFO: rcu_preempt self-detected stall on CPU";
        let lockup = "[   72.1] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [dd:198]";
        assert_eq!((console.line(stall), console.line(lockup)), (None, None));
        assert_eq!(console.line(stall), Some("RCU has stalled"));
    }

    #[test]
    fn a_threads_name_is_no_trouble() {
        let killed = "[   12.3] Out of memory: Killed process 12 (Kernel panic - n) total-vm:1kB";
        assert_eq!(trouble(killed), None);
    }
}
