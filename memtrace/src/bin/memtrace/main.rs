//! The command line of memtrace.
//!
//! `cli` is what can be typed, with `examples` and `man` pages, `config` what it means, `trace` and `now` do it, with a
//! `helper` for the names in stacks and a file for `flame` graphs; `report` reads what was recorded; `limits`, `protect`
//! and `privileges` see to it that memtrace can run, keeps running, and harms no one.

mod bar;
mod cli;
mod config;
mod episodes;
mod examples;
mod file;
mod flame;
mod flight;
mod helper;
mod ids;
mod limits;
mod man;
mod now;
mod output;
mod privileges;
mod protect;
mod record;
mod replay;
mod report;
mod show;
mod tape;
mod trace;

use std::process::ExitCode;

use anyhow::{Context as _, Error, Result};
use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use cli::{Cli, Command};
use config::{Config, RecordConfig};
use memtrace::live::LiveError;
use output::{Output, say};

/// Exit status for what cannot be done.
const FAILURE: u8 = 1;
/// Exit status for a command line that makes no sense.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    protect::map_large_parts();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if let Some(what) = cli.command.contradiction() {
        say(format_args!("memtrace: {what}; try --help"));
        return ExitCode::from(USAGE);
    }
    let verbose = cli.command.is_verbose();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if verbose && let Some(LiveError::Refused { log, .. }) = error.downcast_ref() {
                say(log);
            }
            say(format_args!("memtrace: {}", one_line(&error)));
            ExitCode::from(FAILURE)
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Drsnoop(args) => trace::run(&Config::drsnoop(&args)?),
        Command::Compactsnoop(args) => trace::run(&Config::compactsnoop(&args)?),
        Command::Stalls(args) => trace::run(&Config::stalls(&args)?),
        Command::Now(args) => now::run(&args),
        Command::Record(args) => record::run(&RecordConfig::new(&args)?),
        Command::Report(args) => report::run(&args),
        Command::Man { directory } => man::write(Cli::command(), &directory)
            .with_context(|| format!("cannot write man pages into `{}`", directory.display())),
        Command::Completions { shell } => {
            let mut output = Output::new();
            clap_complete::generate(shell, &mut Cli::command(), "memtrace", &mut output.lines);
            let _reader = output.flush()?;
            Ok(())
        }
    }
}

/// Prints help where it was asked for, and otherwise what is wrong with the command line, in one
/// line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        // Nothing is left to do about a terminal that is gone.
        let _printed: Result<(), std::io::Error> = error.print();
        return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
    }
    let text = error.render().to_string();
    let (what, _) = text.split_once("Usage:").unwrap_or((&text, ""));
    let what = what.strip_prefix("error: ").unwrap_or(what);
    let what = what.trim_end().trim_end_matches("For more information, try '--help'.");
    // Paragraphs are tips and lists of values.
    let paragraphs = what.split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>());
    let paragraphs = paragraphs.map(|words| words.join(" ")).filter(|text| !text.is_empty());
    let what = paragraphs.collect::<Vec<_>>().join("; ");
    say(format_args!("memtrace: {what}; try --help"));
    ExitCode::from(USAGE)
}

/// The error and its causes in one line, without those that a message before already contains.
fn one_line(error: &Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if !line.contains(&text) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&text);
        }
    }
    line
}
