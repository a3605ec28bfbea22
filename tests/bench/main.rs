//! bench: what memtrace costs, measured against a peer or a floor in the same run. `cargo xtask bench` builds and runs it.

mod bpf;
mod flood;
mod holes;
mod host;
mod measures;
mod peers;
mod programs;
mod report;
mod setting;
mod stats;
mod tracer;

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use tests::host::TempDir;

use holes::Holes;
use host::Cores;
use report::{Report, Row};
use setting::Setting;

/// Rounds of a quick run, and of any other.
const QUICK_ROUNDS: u16 = 3;
const ROUNDS: u16 = 5;

/// A machine on which so much else runs has no time to measure.
const BUSY: f64 = 0.5;

/// Measures what memtrace costs. Takes two cores for itself, loads eBPF programs, makes stalls in a cgroup of its own,
/// and writes some 2 GB to /var/tmp, which are removed again
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, and print a table
    Measure(Measuring),
    /// For the bench: be a load without a disk
    #[command(hide = true)]
    Holes(Holes),
}

#[derive(Args)]
struct Measuring {
    /// memtrace, as it is shipped
    #[arg(long, value_name = "PATH")]
    memtrace: PathBuf,
    /// memload, which makes stalls
    #[arg(long, value_name = "PATH")]
    memload: PathBuf,
    /// Also write all values to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer and shorter rounds: for a look, not for publication
    #[arg(long)]
    quick: bool,
    /// How often everything is measured
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Measure only this; can be given several times
    #[arg(long, value_enum, value_name = "MEASURE")]
    only: Vec<Measure>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// BPF run time per stall, in a flood of stalls
    Flood,
    /// BPF run time per stall of a real load
    Churn,
    /// CPU time of memtrace's own per stall
    Cpu,
    /// The rate that is kept up without loss
    Rate,
    /// The burst that finds room while memtrace is stopped
    Burst,
    /// How much slower a traced load is
    Slowdown,
    /// How soon memtrace is there, and shows a stall
    Start,
    /// Memory, and the size of the file
    Memory,
    /// BPF run time per stall with many threads stalled at once
    Growth,
}

impl Measure {
    fn run(self, setting: &Setting) -> Result<Vec<Row>> {
        match self {
            Self::Flood => measures::kernel::flood(setting),
            Self::Churn => measures::kernel::churn(setting),
            Self::Cpu => measures::cpu::measure(setting),
            Self::Rate => measures::rate::measure(setting),
            Self::Burst => measures::burst::measure(setting),
            Self::Slowdown => measures::slowdown::measure(setting),
            Self::Start => measures::start::measure(setting),
            Self::Memory => measures::memory::measure(setting),
            Self::Growth => measures::growth::measure(setting),
        }
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Measure(measuring) => measure(&measuring),
        Command::Holes(holes) => holes::run(&holes),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("bench: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Measuring) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the bench loads eBPF programs: run it as root");
    let rounds = cli.rounds.unwrap_or(if cli.quick { QUICK_ROUNDS } else { ROUNDS });
    let setting = Setting {
        memtrace: cli.memtrace.clone(),
        memload: cli.memload.clone(),
        quick: cli.quick,
        rounds: rounds.into(),
        cores: Cores::new()?,
        dir: TempDir::new()?,
    };
    if let Some(load) = host::load_average().filter(|&load| load > BUSY) {
        eprintln!("bench: this machine is busy (load average {load}): expect wide spreads");
    }
    let measures =
        if cli.only.is_empty() { Measure::value_variants() } else { cli.only.as_slice() };
    let mut rows = Vec::new();
    for measure in measures {
        let name = measure.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        eprintln!("bench: {name}");
        rows.extend(measure.run(&setting).with_context(|| format!("cannot measure {name}"))?);
    }
    let report = Report {
        kernel: host::kernel(),
        cpu: host::cpu_model(),
        cores: setting.cores.all.len(),
        quick: cli.quick,
        rows,
    };
    show(&report, rounds)?;
    if let Some(path) = &cli.json {
        let text = report.json().context("cannot write JSON")?;
        fs::write(path, text + "\n")
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

/// Prints the table, and what it is from.
fn show(report: &Report, rounds: u16) -> Result<()> {
    let quick = if report.quick { ", quick: a look, not for publication" } else { "" };
    let Report { kernel, cpu, cores, .. } = report;
    let table = report.table();
    let text = format!("Linux {kernel}, {cpu}, {cores} cores, {rounds} rounds{quick}\n\n{table}");
    let mut stdout = io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to the standard output")
}
