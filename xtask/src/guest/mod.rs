//! `cargo xtask guest`: memtrace and its tests on other kernels than the one that runs here.
//!
//! `archive` and `kernel` get the kernels, `programs` builds what runs on them, `image` packs it, `machine` boots it,
//! `watch` and `console` say how that went.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::process;

pub mod archive;
mod console;
pub mod image;
mod kernel;
pub mod machine;
mod output;
mod programs;
mod watch;

use kernel::{Files, Kernel};
use machine::Machine;
use output::Output;
use programs::Program;
use watch::Ending;

/// How often a kernel may fail to boot. Some do now and then, for no reason of ours.
const BOOTS: u32 = 3;

/// Tests that are not run unless they are named: `errors` needs programs that a guest lacks, `loads` takes too long on an
/// emulated machine, and nobody has tried `fields` yet.
const NOT_IN_GUESTS: [&str; 3] = ["errors", "fields", "loads"];

/// What was asked for.
#[derive(Args)]
pub struct Guest {
    /// Kernels to boot: 5.10, 6.1, 6.12, 7 (the newest), `all`, or the path of a vmlinuz
    #[arg(required = true, value_name = "KERNEL")]
    kernels: Vec<String>,
    /// Memory of each guest
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Give a guest up after so many minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    time_limit: u64,
    /// How many guests to run at once; as many as there are CPUs, if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// What to run in each guest, instead of the tests
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A guest that is ready to be booted.
struct Ready {
    name: String,
    kernel: Files,
    initramfs: PathBuf,
}

/// Runs the guests. Gives the status of the first command that failed.
pub fn run(guest: &Guest, workspace: &Path, target_dir: &Path) -> Result<ExitCode> {
    let kernels = Kernel::parse(&guest.kernels)?;
    // Not where temporary files usually are, which may be memory.
    let scratch = tempfile::Builder::new().prefix("memtrace-guest-").tempdir_in("/var/tmp");
    let scratch = scratch.context("cannot make a directory in /var/tmp")?;
    let ready = |kernel: &Kernel| {
        let (name, files) = (kernel.name(), kernel.files(scratch.path())?);
        let initramfs = image::initramfs(scratch.path(), &name, &files)?;
        Ok(Ready { name, kernel: files, initramfs })
    };
    let guests: Vec<_> = kernels.iter().map(ready).collect::<Result<_>>()?;
    let programs = programs::build(workspace, &target_dir.join("guest"))?;
    let disk = image::disk(scratch.path(), &programs, &shell_command(&guest.command, &programs))?;

    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot await signals")?;
    }
    let statuses = in_parallel(guest.jobs, &guests, |ready| {
        let machine = Machine {
            vmlinuz: &ready.kernel.vmlinuz,
            initramfs: &ready.initramfs,
            disk: &disk,
            memory: &guest.memory,
            append: &guest.append,
            time_limit: Duration::from_mins(guest.time_limit),
        };
        let prefix = (guests.len() > 1).then(|| ready.name.clone());
        let start = Instant::now();
        let status = boot(&machine, &ready.name, scratch.path(), &Output { prefix }, &stop);
        let seconds = start.elapsed().as_secs();
        match &status {
            Ok(status) => eprintln!("{}: exit status {status} after {seconds} s", ready.name),
            Err(err) => eprintln!("error: {}: {err:#}", ready.name),
        }
        status
    });
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    let failed = statuses.into_iter().map(|status| status.unwrap_or(1)).find(|&status| status != 0);
    Ok(failed.unwrap_or(0).into())
}

/// Boots a guest, again if it does not get as far as its command.
fn boot(
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

/// What the guest's shell shall run: the command, or all tests. One that fails does not keep the others from running.
fn shell_command(command: &[String], programs: &[Program]) -> String {
    if !command.is_empty() {
        let words: Vec<_> = command.iter().map(|word| process::quoted(word.as_ref())).collect();
        return words.join(" ");
    }
    let mut lines = vec!["status=0".to_owned()];
    for test in programs.iter().filter(|program| program.is_test) {
        let name = &test.name;
        if NOT_IN_GUESTS.contains(&name.as_str()) {
            continue;
        }
        lines.push(format!("echo '== {name}'; /tests/{name} --test-threads=1 || status=1"));
    }
    lines.push("exit $status".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_run_word_by_word() {
        let command = ["sh", "-c", "exit 3"].map(str::to_owned);
        assert_eq!(shell_command(&command, &[]), "sh -c 'exit 3'");
    }

    #[test]
    fn without_a_command_the_tests_are_run() {
        let program =
            |name: &str, is_test| Program { name: name.to_owned(), path: "/x".into(), is_test };
        let programs =
            [program("memload", false), program("oracle", true), program("errors", true)];
        let expected = "\
status=0
echo '== oracle'; /tests/oracle --test-threads=1 || status=1
exit $status";
        assert_eq!(shell_command(&[], &programs), expected);
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
