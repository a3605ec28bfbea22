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
use serde::de::DeserializeOwned;

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
    /// Measure all that is not measured in a guest
    Measure(Measuring),
    /// In a guest: measure against libbpf-tools' drsnoop, and print rows for `report --guest`
    Global(Global),
    /// Print a table of what was measured, and fail if something could not be
    Report(Reporting),
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
    /// Where to write what was measured, for `report`
    #[arg(long, value_name = "FILE")]
    into: PathBuf,
    /// Measure only this; can be given several times
    #[arg(long, value_enum, value_name = "MEASURE")]
    only: Vec<Measure>,
}

#[derive(Args)]
struct Reporting {
    /// What `measure` has written
    measured: PathBuf,
    /// Also write all values to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    guest: FromGuest,
}

/// What there is of a guest, where one was asked for.
#[derive(Args)]
#[group(multiple = false)]
struct FromGuest {
    /// What was measured in a guest
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// What is not installed that a guest needs
    #[arg(long, value_name = "TEXT")]
    no_guest: Option<String>,
    /// Why the guest failed
    #[arg(long, value_name = "TEXT")]
    guest_failed: Option<String>,
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
    /// The size of a recording, by the stalls in it
    Record,
    /// How long a report takes, and its memory
    Report,
    /// The burst that finds room while memtrace is stopped
    Burst,
    /// How much slower a traced load is
    Slowdown,
    /// How soon memtrace is there, and shows a stall
    Start,
    /// Memory, and the size of the file
    Memory,
    /// How soon `memtrace now` answers, and its memory
    Now,
    /// BPF run time per stall with many threads stalled at once
    Growth,
    /// BPF run time per switch between threads that are not stalled
    Switch,
    /// Not measured here, but in a guest
    Guest,
}

impl Measure {
    fn run(self, setting: &Setting) -> Result<Vec<Row>> {
        match self {
            Self::Flood => measures::kernel::flood(setting),
            Self::Churn => measures::kernel::churn(setting),
            Self::Cpu => measures::cpu::measure(setting),
            Self::Rate => measures::rate::measure(setting),
            Self::Record => measures::record::measure(setting),
            Self::Report => measures::report::measure(setting),
            Self::Burst => measures::burst::measure(setting),
            Self::Slowdown => measures::slowdown::measure(setting),
            Self::Start => measures::start::measure(setting),
            Self::Memory => measures::memory::measure(setting),
            Self::Now => measures::now::measure(setting),
            Self::Growth => measures::growth::measure(setting),
            Self::Switch => measures::switch::measure(setting),
            Self::Guest => Ok(Vec::new()),
        }
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Measure(measuring) => measure(&measuring),
        Command::Global(global) => measure_global(&global),
        Command::Report(reporting) => report(&reporting),
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
    let mut rows = Vec::new();
    for measure in measures.iter().filter(|&&measure| measure != Measure::Guest) {
        let name = measure.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        eprintln!("bench: {name}");
        match setting.ensure_going_on().and_then(|()| measure.run(&setting)) {
            Ok(found) => rows.extend(found),
            // What the others have found is not lost for it.
            Err(err) => {
                eprintln!("bench: cannot measure {name}: {err:#}");
                rows.push(Row::new(name, "", Vec::new()).failing(format!("{err:#}")));
            }
        }
    }
    let report = Report {
        kernel: host::kernel(),
        cpu: host::cpu_model(),
        cores: setting.cores.all.len(),
        siblings: setting.cores.siblings,
        quick: setting.quick,
        rounds: setting.rounds,
        rows,
    };
    let text = serde_json::to_string(&report).context("cannot write JSON")?;
    write(&measuring.into, text)
}

fn report(reporting: &Reporting) -> Result<()> {
    let mut report: Report = read(&reporting.measured)?;
    let FromGuest { guest, no_guest, guest_failed } = &reporting.guest;
    if let Some(file) = guest {
        report.rows.extend(read::<Vec<Row>>(file)?);
    }
    report.rows.extend(no_guest.as_deref().map(measures::global::missing));
    let failed = |why| measures::global::missing("").failing(why);
    report.rows.extend(guest_failed.as_deref().map(failed));
    say(&report.text())?;
    if let Some(path) = &reporting.json {
        write(path, report.json().context("cannot write JSON")? + "\n")?;
    }
    let failed = report.failed();
    ensure!(failed.is_empty(), "not measured, or not to the end: {}", failed.join("; "));
    Ok(())
}

fn measure_global(global: &Global) -> Result<()> {
    let rows = measures::global::measure(&global.common.setting()?, &global.drsnoop)?;
    say(&(serde_json::to_string(&rows).context("cannot write JSON")? + "\n"))
}

/// Reads what another bench has written.
fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("`{}` is not what this bench writes", file.display()))
}

fn write(file: &Path, text: String) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write `{}`", file.display()))
}

fn say(text: &str) -> Result<()> {
    let mut stdout = io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to the standard output")
}
