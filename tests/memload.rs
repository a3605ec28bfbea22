//! memload: makes threads stall in memory management on purpose, and harmlessly: inside a memory
//! cgroup of its own, or by asking for a compaction. For trying out memtrace, and for its tests.

use std::{
    ffi::CString,
    io::{self, Read as _, Write as _},
    path::PathBuf,
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, value_parser};
use rustix::{process::Signal, thread::Uid};
use signal_hook::consts::{SIGINT, SIGTERM};
use tests::{
    cgroup::Cgroup,
    churn::{Churn, Lifetime, Scratch},
    compact::compact,
};

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// Makes threads stall in memory management, harmlessly, for a look at them with memtrace.
#[derive(Parser)]
#[command(name = "memload", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write and read files larger than the limit of a memory cgroup, which makes the kernel
    /// reclaim pages in it; the rest of the host is left in peace
    Churn(ChurnArgs),
    /// Ask the kernel to compact all memory, by writing to /proc/sys/vm/compact_memory
    Compact(CompactArgs),
}

#[derive(Args)]
struct ChurnArgs {
    /// Limit of the cgroup that is made for the load, in bytes or with K, M or G behind; the files
    /// are four times as large
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
    limit: u64,
    /// Number of threads
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u16).range(1..=256))]
    threads: u16,
    /// When to stop
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Where to put the files, which have no names and are gone at the end: a directory on a disk
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Give the threads this name
    #[arg(long, value_name = "TEXT", value_parser = comm)]
    comm: Option<CString>,
    /// Let each thread live for some milliseconds only, and start another one in its place
    #[arg(long)]
    brief: bool,
    /// For tests: make no cgroup, print `ready` when the threads are there, and begin when a line
    /// is read
    #[arg(long, hide = true)]
    hold: bool,
    /// For tests: run under this user id
    #[arg(long, hide = true)]
    uid: Option<u32>,
}

#[derive(Args)]
struct CompactArgs {
    /// How often
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..))]
    times: u32,
    /// Time between two of them
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pause: Duration,
    /// For tests: print `ready` and begin when a line is read
    #[arg(long, hide = true)]
    hold: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Churn(args) => run_churn(&args),
        Command::Compact(args) => run_compact(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("memload: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_churn(args: &ChurnArgs) -> Result<()> {
    let stop = stop_on_signals()?;
    let scratch = Scratch::new(&args.dir, usize::from(args.threads), 4 * args.limit)?;
    let cgroup = if args.hold { None } else { Some(Cgroup::limited("memload", args.limit)?) };
    if let Some(cgroup) = &cgroup {
        cgroup.add(process::id())?;
        say(&format!(
            "memload: {} threads write and read {} MiB in `{}`, in cgroup {} limited to {} MiB, for {:?}; Ctrl-C stops",
            args.threads,
            4 * args.limit / MIB,
            args.dir.display(),
            cgroup.name(),
            args.limit / MIB,
            args.duration,
        ))?;
    }
    if let Some(uid) = args.uid {
        // Of this thread and those that it starts, which are all.
        rustix::thread::set_thread_uid(Uid::from_raw(uid)).context("cannot change the user id")?;
    }
    let churn = Churn {
        lifetime: if args.brief { Lifetime::Brief } else { Lifetime::Whole },
        comm: args.comm.clone(),
        duration: args.duration,
    };
    if args.hold {
        end_with_parent()?;
    }
    let mut held = Ok(());
    let done = churn.run(&scratch, &stop, || {
        if args.hold {
            held = hold(&stop);
        }
    })?;
    held?;
    say(&format!(
        "memload: wrote and read {} MiB with {} threads in {:.1} s",
        done.bytes / MIB,
        done.threads,
        done.took.as_secs_f64(),
    ))
}

fn run_compact(args: &CompactArgs) -> Result<()> {
    let stop = stop_on_signals()?;
    if args.hold {
        end_with_parent()?;
        hold(&stop)?;
    }
    let times = compact(args.times, args.pause, || stop.load(Ordering::Relaxed))?;
    say(&format!("memload: had all memory compacted {times} times"))
}

/// A flag that is set when this process shall end.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot handle signals")?;
    }
    Ok(stop)
}

/// Has the kernel end this process when the test that started it is gone.
fn end_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot ask for the parent's death")
}

/// Waits until the test says go, or is gone. From then on the end of the input means to stop.
fn hold(stop: &Arc<AtomicBool>) -> Result<()> {
    say("ready")?;
    if io::stdin().read(&mut [0]).context("cannot read the word to go")? == 0 {
        stop.store(true, Ordering::Relaxed);
    }
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        // Ends at the end of the input, whatever is read before.
        let _read: io::Result<u64> = io::copy(&mut io::stdin(), &mut io::sink());
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .context("cannot write to the standard output")
}

/// Parses a size such as `64M`.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'K')) => (&text[..at], 1 << 10),
        Some((at, 'M')) => (&text[..at], MIB),
        Some((at, 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let size: Option<u64> = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    match size {
        Some(size) if (4 * MIB..=1 << 30).contains(&size) => Ok(size),
        Some(_) => Err("give a size from 4M to 1G".into()),
        None => Err("give a size such as 64M".into()),
    }
}

/// Parses a duration such as `10s`.
fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        text.parse::<jiff::SignedDuration>().ok().and_then(|duration| duration.try_into().ok());
    duration.ok_or_else(|| "give a duration such as 500ms, 10s or 2m".into())
}

/// Parses the name of a thread.
fn comm(text: &str) -> Result<CString, String> {
    match CString::new(text) {
        Ok(comm) if (1..16).contains(&text.len()) => Ok(comm),
        _ => Err("give a name of 1 to 15 bytes".into()),
    }
}
