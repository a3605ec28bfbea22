//! `cargo xtask guest`: memtrace and its tests on other kernels than the one that runs here.
//!
//! `archive` and `kernel` get the kernels, `boots` says what runs on them, `image` packs it, `machine` boots it, `watch`
//! and `console` say how that went.

use std::path::{Path, PathBuf};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::output::Output;
use crate::process;
use crate::programs::Program;
use crate::tally::Tally;

pub mod archive;
mod boots;
mod console;
pub mod image;
mod kernel;
pub mod machine;
mod watch;

pub use kernel::cache;

use boots::Boot;
use kernel::{Files, Kernel};
use machine::Machine;
use watch::Ending;

/// How often a kernel may fail to boot. Some do now and then, for no reason of ours.
const BOOTS: u32 = 3;

/// Stands for all kernels that Debian has.
pub const ALL: &str = "all";

/// What was asked for.
#[derive(Args)]
pub struct Guest {
    /// Kernels to boot: 5.10, 6.1, 6.12, 7 (the newest), `all`, or the path of a vmlinuz
    #[arg(required = true, value_name = "KERNEL")]
    pub kernels: Vec<String>,
    #[command(flatten)]
    pub options: Options,
    /// What to run in each guest, instead of the tests
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl Guest {
    /// Finds what is wrong with the kernels asked for, before anything is built.
    pub fn check(&self) -> Result<()> {
        Kernel::parse(&self.kernels).map(drop)
    }
}

/// What guests are made of, and how many.
#[derive(Args)]
pub struct Options {
    /// Memory of each guest
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// More words for the guests' kernel command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Give a guest up after so many minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    time_limit: u64,
    /// How many guests to run at once; as many as there are CPUs, if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
}

/// What to run in the guests.
pub enum Work<'a> {
    /// A command, word by word.
    Command(&'a [String]),
    /// The same, whose output the caller wants for itself.
    Asked(&'a [String]),
    /// The tests whose names contain one of these, or all tests.
    Tests(&'a [String]),
}

/// How it went on one kernel, in all its boots.
pub struct Outcome {
    /// What the kernel is called.
    pub kernel: String,
    /// The exit status, or why there is none.
    pub status: Result<u8>,
    /// What was printed, where it was asked for.
    pub said: String,
    /// The results of tests.
    pub tally: Tally,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Says it in one line, that of tests with their results.
    pub fn line(&self, of_tests: bool) -> String {
        let Self { kernel, status, said: _, tally, took } = self;
        match status {
            Ok(0) if of_tests => format!("{kernel}: {}", tally.shown(*took)),
            Ok(_) if of_tests => format!("error: {kernel}: {}", tally.shown(*took)),
            Ok(status) => format!("{kernel}: exit status {status} after {} s", took.as_secs()),
            Err(err) => format!("error: {err:#}"),
        }
    }
}

/// A kernel that is ready to be booted.
struct Ready {
    name: String,
    kernel: Files,
    initramfs: PathBuf,
}

/// Runs the guests. There may be none, where no test has the names asked for.
pub fn run(
    kernels: &[String],
    options: &Options,
    programs: &[Program],
    work: &Work<'_>,
) -> Result<Vec<Outcome>> {
    let (boots, script) = match work {
        Work::Command(command) | Work::Asked(command) => {
            (vec![boots::USUAL], shell_command(command))
        }
        Work::Tests(filters) => boots::tests(programs, filters)?,
    };
    if boots.is_empty() {
        return Ok(Vec::new());
    }
    // What is asked for by name runs wherever it can.
    let is_all = kernels == [ALL] && matches!(work, Work::Tests([]));
    let kernels = Kernel::parse(kernels)?;
    // Not where temporary files usually are, which may be memory.
    let scratch = tempfile::Builder::new().prefix("memtrace-guest-").tempdir_in("/var/tmp");
    let scratch = scratch.context("cannot make a directory in /var/tmp")?;
    let ready = |kernel: &Kernel| {
        let (name, files) = (kernel.name(), kernel.files(scratch.path())?);
        let initramfs = image::initramfs(scratch.path(), &name, &files)?;
        Ok(Ready { name, kernel: files, initramfs })
    };
    let kernels: Vec<_> = kernels.iter().map(ready).collect::<Result<_>>()?;
    let disk = image::disk(scratch.path(), programs, &script)?;

    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot await signals")?;
    }
    let count = kernels.len();
    let has_boot = |index: usize, boot: Boot| {
        let is_between = is_all && index > 0 && index + 1 < count;
        boot != if is_between { boots::USUAL } else { boots::BETWEEN }
    };
    // Those that take longest come first.
    let guests: Vec<_> = boots
        .iter()
        .flat_map(|&boot| {
            kernels.iter().enumerate().map(move |(index, kernel)| (index, kernel, boot))
        })
        .filter(|&(index, _, boot)| has_boot(index, boot))
        .map(|(_, kernel, boot)| (kernel, boot))
        .collect();
    let outcomes = in_parallel(options.jobs, &guests, |&(kernel, boot)| {
        let machine = Machine {
            vmlinuz: &kernel.kernel.vmlinuz,
            initramfs: &kernel.initramfs,
            disk: &disk,
            memory: &options.memory,
            append: &words(boot, &options.append),
            time_limit: Duration::from_mins(options.time_limit),
        };
        let name = if [boots::USUAL, boots::BETWEEN].contains(&boot) {
            kernel.name.clone()
        } else {
            format!("{} {}", kernel.name, boot.name)
        };
        let output = match work {
            Work::Asked(_) => Output::keeping(),
            _ => Output::new((guests.len() > 1).then(|| name.clone())),
        };
        let start = Instant::now();
        let status = boot_guest(&machine, &name, scratch.path(), &output, &stop);
        let took = start.elapsed();
        let status = status.with_context(|| name);
        let said = output.kept();
        Outcome { kernel: kernel.name.clone(), status, said, tally: output.into_tally(), took }
    });
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(by_kernel(outcomes))
}

/// The words for the kernel's command line.
fn words(boot: Boot, append: &str) -> String {
    let words = [&format!("{}={}", boots::VARIABLE, boot.name), boot.append, append];
    words.join(" ")
}

/// Puts the boots of one kernel together: the first failure counts.
fn by_kernel(outcomes: Vec<Outcome>) -> Vec<Outcome> {
    let mut kernels = Vec::<Outcome>::new();
    for outcome in outcomes {
        let Some(known) = kernels.iter_mut().find(|known| known.kernel == outcome.kernel) else {
            kernels.push(outcome);
            continue;
        };
        known.said.push_str(&outcome.said);
        known.tally.add(outcome.tally);
        known.took += outcome.took;
        if matches!(known.status, Ok(0)) {
            known.status = outcome.status;
        }
    }
    kernels
}

/// Boots a guest, again if it does not get as far as its command.
fn boot_guest(
    machine: &Machine<'_>,
    name: &str,
    scratch: &Path,
    output: &Output,
    stop: &AtomicBool,
) -> Result<u8> {
    let mut boots = 1;
    loop {
        let dir = tempfile::tempdir_in(scratch).context("cannot make a directory")?;
        let (why, tail) = match machine.run(dir.path(), output, stop)? {
            (Ending::Exited(status), _) => return Ok(status),
            (Ending::NotBooted(why), tail) if boots == BOOTS => {
                (format!("{why} while booting, {BOOTS} times"), tail)
            }
            (Ending::NotBooted(why), _) => {
                eprintln!("{name}: {why} while booting, trying again");
                boots += 1;
                continue;
            }
            (Ending::Died(why), tail) => (why, tail),
        };
        return Err(anyhow!("{why}; the end of the console:\n  {}", tail.join("\n  ")));
    }
}

/// Does `work` on all `items`, on several at once. The results are in the order of the items.
fn in_parallel<T: Sync, R: Send>(
    jobs: Option<u16>,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let jobs =
        jobs.map_or_else(|| thread::available_parallelism().map_or(1, Into::into), usize::from);
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        while let Some((index, item)) =
            items.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed))
        {
            done.push((index, work(item)));
        }
        done
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.min(items.len())).map(|_| scope.spawn(take)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The command as the guest's shell reads it.
fn shell_command(command: &[String]) -> String {
    let words: Vec<_> = command.iter().map(|word| process::quoted(word.as_ref())).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_run_word_by_word() {
        let command = ["sh", "-c", "exit 3"].map(str::to_owned);
        assert_eq!(shell_command(&command), "sh -c 'exit 3'");
    }

    #[test]
    fn the_first_failure_of_a_kernel_counts() {
        let outcome = |kernel: &str, status| Outcome {
            kernel: kernel.to_owned(),
            status,
            said: String::new(),
            tally: Tally::default(),
            took: Duration::from_secs(2),
        };
        let outcomes = [("6.1", 0), ("7", 0), ("6.1", 3), ("7", 0), ("6.1", 4)];
        let outcomes = outcomes.map(|(kernel, status)| outcome(kernel, Ok(status)));
        let kernels = by_kernel(outcomes.into());
        let found: Vec<_> = kernels
            .iter()
            .map(|kernel| (kernel.kernel.as_str(), kernel.status.as_ref().ok(), kernel.took))
            .collect();
        let secs = Duration::from_secs;
        assert_eq!(found, [("6.1", Some(&3), secs(6)), ("7", Some(&0), secs(4))]);
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let delays = [30, 0, 10, 0];
        let results = in_parallel(Some(2), &delays, |&delay| {
            thread::sleep(Duration::from_millis(delay));
            delay
        });
        assert_eq!(results, delays);
    }
}
