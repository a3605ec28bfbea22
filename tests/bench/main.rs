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
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

use holes::Holes;
use report::{Report, Row};
use setting::Setting;

/// A machine on which so much else runs has no time to measure.
const BUSY: f64 = 0.5;

/// Measures what memtrace costs. Takes two cores for itself, loads eBPF programs, makes stalls in cgroups of its own,
/// and writes up to 2 GB to /var/tmp, which are removed again
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
    /// In a guest: measure against libbpf-tools' drsnoop, and print rows for `measure --guest`
    Global(Global),
    /// For the bench: be a load without a disk
    #[command(hide = true)]
    Holes(Holes),
}

/// What to measure with.
#[derive(Args)]
struct Common {
    /// memtrace, as it is shipped
    #[arg(long, value_name = "PATH")]
    memtrace: PathBuf,
    /// memload, which makes stalls
    #[arg(long, value_name = "PATH")]
    memload: PathBuf,
    /// Fewer and shorter rounds: for a look, not for publication
    #[arg(long)]
    quick: bool,
    /// How often everything is measured
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
}

impl Common {
    fn setting(&self) -> Result<Setting> {
        Setting::new(self.memtrace.clone(), self.memload.clone(), self.quick, self.rounds)
    }
}

#[derive(Args)]
struct Measuring {
    #[command(flatten)]
    common: Common,
    /// Also write all values to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What was measured in a guest
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// Why nothing was
    #[arg(long, value_name = "TEXT", conflicts_with = "guest")]
    no_guest: Option<String>,
    /// Measure only this; can be given several times
    #[arg(long, value_enum, value_name = "MEASURE")]
    only: Vec<Measure>,
}

#[derive(Args)]
struct Global {
    #[command(flatten)]
    common: Common,
    /// libbpf-tools' drsnoop
    #[arg(long, value_name = "PATH")]
    drsnoop: PathBuf,
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
    /// What was measured in a guest
    Guest,
}

impl Measure {
    fn run(self, setting: &Setting, measuring: &Measuring) -> Result<Vec<Row>> {
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
            Self::Guest => match &measuring.guest {
                Some(file) => rows_in(file),
                None => Ok(vec![measures::global::missing(measuring.no_guest.as_deref())]),
            },
        }
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Measure(measuring) => measure(&measuring),
        Command::Global(global) => measure_global(&global),
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

fn measure(measuring: &Measuring) -> Result<()> {
    let setting = measuring.common.setting()?;
    if let Some(load) = host::load_average().filter(|&load| load > BUSY) {
        eprintln!("bench: this machine is busy (load average {load}): expect wide spreads");
    }
    let measures = match measuring.only.as_slice() {
        [] => Measure::value_variants(),
        only => only,
    };
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for measure in measures {
        let name = measure.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        eprintln!("bench: {name}");
        match measure.run(&setting, measuring) {
            Ok(found) => rows.extend(found),
            // What the others have found is not lost for it.
            Err(err) => {
                eprintln!("bench: cannot measure {name}: {err:#}");
                rows.push(Row::missing(name, "", format!("{err:#}")));
                failed.push(name.to_owned());
            }
        }
        setting.ensure_going_on()?;
    }
    let report = Report {
        kernel: host::kernel(),
        cpu: host::cpu_model(),
        cores: setting.cores.all.len(),
        quick: setting.quick,
        rounds: setting.rounds,
        rows,
    };
    say(&report.text())?;
    if let Some(path) = &measuring.json {
        let text = report.json().context("cannot write JSON")?;
        fs::write(path, text + "\n")
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

fn measure_global(global: &Global) -> Result<()> {
    let rows = measures::global::measure(&global.common.setting()?, &global.drsnoop)?;
    say(&(serde_json::to_string(&rows).context("cannot write JSON")? + "\n"))
}

/// Reads what [`measure_global`] prints.
fn rows_in(file: &Path) -> Result<Vec<Row>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("`{}` is not what a guest's bench prints", file.display()))
}

fn say(text: &str) -> Result<()> {
    let mut stdout = io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to the standard output")
}
