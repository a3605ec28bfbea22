//! `cargo xtask test`: unit tests, integration tests on the running kernel, and on other kernels in guests; at the end a
//! line for each.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::commands;
use crate::guest::{self, Options, Work};
use crate::output::Output;
use crate::process;
use crate::programs::{self, GUEST_MODULE, Kind, Program};
use crate::tally::{PROGRAM, Tally};

/// Tells the integration tests which memtrace to test.
const MEMTRACE_BIN: &str = "MEMTRACE_BIN";
/// Tells them which Python can read memtrace's exports.
const MEMTRACE_READERS: &str = "MEMTRACE_READERS";

/// What was asked for.
#[derive(Args)]
pub struct Test {
    /// Leave out the guests
    #[arg(long)]
    pub no_guests: bool,
    #[command(flatten)]
    options: Options,
    /// Run only the tests whose name contains one of these
    filters: Vec<String>,
}

/// Runs the tests, with the Python that has the `readers` of exports. One that fails does not keep the others from running.
pub fn run(test: &Test, readers: &Path) -> Result<()> {
    let workspace = commands::workspace()?;
    // What is shipped, and what it is tested with.
    let shipped = programs::build_shipped(workspace, &["memtrace"])?;
    let memtrace = programs::path(&shipped, "memtrace")?;
    let programs = programs::build(workspace)?;

    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let (start, mut tally) = (Instant::now(), Tally::default());
    // In the dev profile, which is quick to build. Always of the same packages: another choice has other features.
    for (what, targets) in [("units", &["--lib", "--bins"][..]), ("documentation", &["--doc"])] {
        let mut cargo = process::cargo();
        cargo.current_dir(workspace).args(["test", "--no-fail-fast"]).args(targets);
        let (succeeded, results) = run_tests(what, cargo.arg("--").args(&test.filters))?;
        tally.add(results);
        if !succeeded {
            failures.push(format!("error: `{}` failed", process::shown(&cargo)));
        }
    }
    let mut is_empty = tally.is_empty();
    lines.push(format!("units: {}", tally.shown(start.elapsed())));

    let (start, mut tally) = (Instant::now(), Tally::default());
    for program in programs.iter().filter(|program| program.kind == Kind::Test) {
        if !test.filters.is_empty() && program.tests(&test.filters)?.is_empty() {
            continue;
        }
        let (succeeded, results) = run_here(program, memtrace, readers, &test.filters)?;
        tally.add(results);
        if !succeeded {
            failures.push(format!("error: `{}` failed", program.name));
        }
    }
    is_empty &= tally.is_empty();
    lines.push(format!("this machine: {}", tally.shown(start.elapsed())));

    if !test.no_guests {
        let work = Work::Tests(&test.filters);
        for outcome in guest::run(&[guest::ALL.to_owned()], &test.options, &programs, &work)? {
            is_empty &= outcome.tally.is_empty();
            let line = outcome.line(true);
            if matches!(outcome.status, Ok(0)) { lines.push(line) } else { failures.push(line) }
        }
    }
    println!("\n{}", [lines, failures.clone()].concat().join("\n"));
    if !failures.is_empty() {
        bail!("tests have failed");
    }
    if is_empty {
        let names = test.filters.join("`, `");
        let guests = if test.no_guests { " and runs outside of guests" } else { "" };
        bail!(
            "there is no test whose name contains `{names}`{guests}: a file's name is none, give a function's or module's"
        );
    }
    Ok(())
}

/// Runs integration tests as root on the running kernel, on the memtrace that is shipped. Gives whether all passed.
fn run_here(
    program: &Program,
    memtrace: &Path,
    readers: &Path,
    filters: &[String],
) -> Result<(bool, Tally)> {
    let memtrace = format!("{MEMTRACE_BIN}={}", memtrace.display());
    let readers = format!("{MEMTRACE_READERS}={}", readers.display());
    let mut command: Command = process::as_root([
        "env".as_ref(),
        memtrace.as_ref(),
        readers.as_ref(),
        program.path.as_os_str(),
    ])?;
    // They share one kernel, and each would see the stalls of another.
    command.args(["--test-threads=1", "--skip", GUEST_MODULE]).args(filters);
    run_tests(&program.name, &mut command)
}

/// Runs a command that runs tests, after a line that says which. Gives whether all passed.
fn run_tests(what: &str, command: &mut Command) -> Result<(bool, Tally)> {
    let output = Output::new(None);
    output.copy(&mut format!("{PROGRAM}{what}\n").as_bytes());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", process::shown(command)))?;
    output.copy(&mut child.stdout.take().context("no standard output")?);
    let status = child.wait().context("cannot await tests")?;
    Ok((status.success(), output.into_tally()))
}
