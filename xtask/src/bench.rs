//! `cargo xtask bench`: builds memtrace as it is shipped, and has the program `bench` of the tests measure it, here and,
//! against what needs more kernel than every machine has, in a guest.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use signal_hook::consts::SIGINT;

use crate::commands;
use crate::guest::{self, Options, Work};
use crate::process;
use crate::programs::{self, Kind, Program};

/// libbpf-tools' own.
pub const DRSNOOP: &str = "/usr/sbin/drsnoop";

/// A kernel of the same age, which has all that it wants.
const KERNEL: &str = "6.1";

/// The measure that is made in a guest, as the bench calls it.
const IN_GUEST: &str = "guest";

/// All measures, in the bench's words.
const MEASURES: [&str; 14] = [
    "flood", "churn", "cpu", "rate", "record", "report", "burst", "slowdown", "start", "memory",
    "now", "growth", "switch", IN_GUEST,
];

/// What was asked for.
#[derive(Args)]
pub struct Bench {
    /// Also write all values to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer and shorter rounds, in some minutes: for a look, not for publication
    #[arg(long)]
    quick: bool,
    /// How often everything is measured: 5 times, quick 3 times, if not given
    #[arg(long, value_name = "N")]
    rounds: Option<u16>,
    /// Install bpftrace, bcc's tools, libbpf-tools and what guests are made with, where they are missing: else what would
    /// be compared with them is not
    #[arg(long)]
    pub peers: bool,
    /// Measure only this: flood, churn, cpu, rate, record, report, burst, slowdown, start, memory, now, growth, switch or guest; can be given several times
    #[arg(long, value_name = "MEASURE", value_parser = MEASURES, hide_possible_values = true)]
    only: Vec<String>,
    #[command(flatten)]
    options: Options,
}

/// Measures, and prints the table.
pub fn run(bench: &Bench) -> Result<()> {
    let programs = programs::build_shipped(commands::workspace()?, &["memtrace", "tests"])?;
    let path = |name| programs::path(&programs, name);
    let (memtrace, memload) = (path("memtrace")?, path("memload")?);
    let scratch = tempfile::tempdir().context("cannot make a directory for temporary files")?;
    let measured = scratch.path().join("measured.json");
    // As this user's own, who reads it when root has written it.
    File::create(&measured).context("cannot make a temporary file")?;
    // Ctrl-C ends the bench, which has things to put away, and is waited for.
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&stop)).context("cannot await signals")?;
    let mut command = process::as_root([path("bench")?.as_os_str()])?;
    command.arg("measure").args(bench.flags()).arg("--into").arg(&measured);
    command.arg("--memtrace").arg(memtrace).arg("--memload").arg(memload);
    command.args(bench.only.iter().flat_map(|only| ["--only", only]));
    process::run(&mut command)?;

    let mut command = Command::new(path("bench")?);
    command.arg("report").arg(&measured);
    if let Some(json) = &bench.json {
        command.arg("--json").arg(json);
    }
    if bench.only.is_empty() || bench.only.iter().any(|only| only == IN_GUEST) {
        // Last: a machine that has emulated another one is hot. If it is interrupted, the rest is still shown.
        let rows = match not_installed() {
            Some(why) => Err(format!("--no-guest={why}")),
            None if stop.load(Ordering::Relaxed) => Err("--guest-failed=interrupted".to_owned()),
            None => bench.in_guest(&programs).map_err(|err| format!("--guest-failed={err:#}")),
        };
        match rows {
            Ok(rows) => {
                let file = scratch.path().join("rows.json");
                fs::write(&file, rows).context("cannot write a temporary file")?;
                command.arg("--guest").arg(file);
            }
            Err(why) => {
                command.arg(why);
            }
        }
    }
    process::run(&mut command)
}

/// What is missing for a guest, which one can do without.
fn not_installed() -> Option<String> {
    let has_peer = Path::new(DRSNOOP).is_file();
    let missing = if !has_peer {
        "libbpf-tools"
    } else if !process::on_path(guest::machine::QEMU) {
        "qemu"
    } else {
        return None;
    };
    Some(format!("{missing} is not installed: `cargo xtask bench --peers` installs it"))
}

impl Bench {
    /// What both benches are told.
    fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        flags.extend(self.quick.then(|| "--quick".to_owned()));
        flags.extend(self.rounds.map(|rounds| format!("--rounds={rounds}")));
        flags
    }

    /// Measures in a guest. Gives the rows that the bench prints there.
    fn in_guest(&self, programs: &[Program]) -> Result<String> {
        eprintln!("bench: guest, with Linux {KERNEL}");
        let mut programs = programs.to_vec();
        programs.extend(with_libraries(Path::new(DRSNOOP))?);
        let mut command = ["bench", "global", "--memtrace=/bin/memtrace", "--memload=/bin/memload"]
            .map(str::to_owned)
            .to_vec();
        command.push(format!("--drsnoop={DRSNOOP}"));
        command.extend(self.flags());
        let work = Work::Asked(&command);
        let outcomes = guest::run(&[KERNEL.to_owned()], &self.options, &programs, &work)?;
        let outcome = outcomes.into_iter().next().context("no guest has run")?;
        let said = outcome.said.trim();
        match outcome.status.context("the guest failed")? {
            0 => rows(said).map(str::to_owned),
            status => bail!("the guest's bench ended with status {status} and `{said}`"),
        }
    }
}

/// The line with the rows: others may come from the guest's programs.
fn rows(said: &str) -> Result<&str> {
    let line = said.lines().rev().find(|line| line.starts_with('['));
    line.with_context(|| format!("the guest's bench printed no rows, but `{said}`"))
}

/// A program of this machine's, and the libraries that it needs, each to be found in the guest where it is here.
fn with_libraries(program: &Path) -> Result<Vec<Program>> {
    let said = process::output(Command::new("ldd").arg(program))?;
    let files = libraries(&said).into_iter().map(PathBuf::from).chain([program.to_owned()]);
    let as_program = |path: PathBuf| {
        let name = path.file_name().context("a library without a name")?;
        Ok(Program { name: name.to_string_lossy().into_owned(), path, kind: Kind::Tool })
    };
    files.map(as_program).collect()
}

/// The files in what `ldd` prints, the loader among them.
fn libraries(said: &str) -> Vec<&str> {
    let files = said.lines().filter_map(|line| line.get(line.find('/')?..)?.split(' ').next());
    files.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_with_the_loader() {
        let said = "\tlinux-vdso.so.1 (0x00007fe265934000)
\tlibelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x00007fe2658b5000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007fe265936000)
";
        let expected = ["/lib/x86_64-linux-gnu/libelf.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(said), expected);
    }

    #[test]
    fn rows_are_told_from_other_lines() {
        assert_eq!(rows("libbpf: something\n[{\"a\":1}]\n").expect("rows"), "[{\"a\":1}]");
        assert!(rows("bench: cannot\n").is_err());
    }
}
