//! memload: makes threads stall in memory management on purpose: inside a memory cgroup of its own,
//! or, when told so, on the whole machine. For trying out memtrace, and for its tests.

mod anon;
mod churn;
mod cli;
mod compact;
mod dirty;
mod hopeless;
mod lookup;
mod oom;
mod place;
mod reclaim;
mod session;
mod thp;
mod thrash;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Churn(args) => churn::run(&args),
        Command::Anon(args) => anon::run(&args),
        Command::Reclaim(args) => reclaim::run(&args),
        Command::Lookup(args) => lookup::run(&args),
        Command::Thp(args) => thp::run(&args),
        Command::Compact(args) => compact::run(&args),
        Command::Thrash(args) => thrash::run(&args),
        Command::Dirty(args) => dirty::run(&args),
        Command::Hopeless(args) => hopeless::run(&args),
        Command::Oom(args) => oom::run(&args),
        Command::Victim(args) => oom::run_victim(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("memload: {err:#}");
            ExitCode::FAILURE
        }
    }
}
