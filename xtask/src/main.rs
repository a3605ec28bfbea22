//! memtrace's build, run, test and lint commands: `cargo xtask help` lists them.
//!
//! Each first makes sure of what it needs and installs what is missing, or with `--no-install` only says what that is.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod commands;
#[expect(dead_code, reason = "memtrace's build script uses what is not used here")]
mod ebpf;
mod guest;
mod output;
mod process;
mod programs;
mod readers;
mod setup;
mod tally;
mod test;

use bench::Bench;
use commands::Profile;
use guest::Guest;
use setup::Setup;
use test::Test;

/// Builds, runs, tests and lints memtrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    /// Install nothing: where something is missing, list the commands that install it and exit with status 1
    #[arg(long, global = true)]
    no_install: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build memtrace with its eBPF probes in it, and memload, which makes stalls
    Build {
        /// Build with the dev profile: quicker to build, slower to run
        #[arg(long)]
        debug: bool,
    },
    /// Build memtrace and run it as root with the given arguments
    Run {
        /// What to pass to memtrace
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run the unit tests, the integration tests as root on the running kernel, and those on other kernels in guests
    Test(Test),
    /// Run memtrace's tests, or a command, on other kernels, each in an emulated machine of its own
    Guest(Guest),
    /// Measure what memtrace costs, against peers and floors of the same run, and print a table. Takes half an hour
    Bench(Bench),
    /// Format the sources
    Fmt {
        /// Only say what would change, and fail if anything would
        #[arg(long)]
        check: bool,
    },
    /// Check the format and run clippy, on the eBPF probes too
    Lint,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(status) => status,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let setup = Setup { install: !args.no_install };
    match args.command {
        Command::Build { debug } => {
            setup.tools()?;
            commands::build(if debug { Profile::Dev } else { Profile::Release })?;
        }
        Command::Run { args } => {
            process::need_root("memtrace")?;
            setup.tools()?;
            commands::run(&args)?;
        }
        Command::Test(test) => {
            process::need_root("the integration tests")?;
            setup.tools()?;
            setup.browser()?;
            if !test.no_guests {
                setup.guest()?;
            }
            test::run(&test, &setup.readers()?)?;
        }
        Command::Guest(guest) => {
            guest.check()?;
            setup.tools()?;
            setup.guest()?;
            return commands::guest(&guest);
        }
        Command::Bench(bench) => {
            process::need_root("the bench")?;
            setup.tools()?;
            if bench.peers {
                setup.peers()?;
                setup.guest()?;
            }
            bench::run(&bench)?;
        }
        Command::Fmt { check } => {
            setup.component("rustfmt")?;
            commands::fmt(check)?;
        }
        Command::Lint => {
            setup.component("rustfmt")?;
            setup.component("clippy")?;
            let found = setup.tools()?;
            let tools = found.tools().context("the tools are gone")?;
            setup.clippy(tools.toolchain)?;
            commands::lint(&tools)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
