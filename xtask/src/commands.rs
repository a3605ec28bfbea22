//! What each command does once its tools are there.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::ebpf::{self, Tools};
use crate::guest::{self, Guest, Work};
use crate::process::{self, cargo};
use crate::programs;

/// How memtrace is built.
#[derive(Clone, Copy)]
pub enum Profile {
    /// Quick to build.
    Dev,
    /// What is shipped.
    Release,
}

/// Builds memtrace, with the object in it, and memload, which makes stalls to look at.
pub fn build(profile: Profile) -> Result<()> {
    let mut cargo = cargo();
    cargo.current_dir(workspace()?).args([
        "build",
        "--package=memtrace",
        "--package=tests",
        "--bins",
    ]);
    if let Profile::Release = profile {
        cargo.arg("--release");
    }
    process::run(&mut cargo)
}

/// Builds memtrace and becomes it: signals and the exit status are its own. Returns only if that fails.
pub fn run(args: &[String]) -> Result<()> {
    build(Profile::Release)?;
    let memtrace = release_binary()?;
    let mut command = process::as_root([memtrace.as_os_str()])?;
    let err = command.args(args).exec();
    Err(err).with_context(|| format!("cannot run `{}`", process::shown(&command)))
}

/// Formats all sources, or only checks them.
pub fn fmt(check: bool) -> Result<()> {
    let mut cargo = cargo();
    cargo.current_dir(workspace()?).args(["fmt", "--all"]);
    if check {
        cargo.arg("--check");
    }
    process::run(&mut cargo)
}

/// Checks the format and runs clippy, on the probes with the compiler that builds them.
pub fn lint(tools: &Tools<'_>) -> Result<()> {
    fmt(true)?;
    let mut clippy = cargo();
    clippy.current_dir(workspace()?);
    clippy.args(["clippy", "--all-targets", "--features=tests/guest", "--", "-Dwarnings"]);
    process::run(&mut clippy)?;

    let target_dir = target_dir()?;
    let mut clippy =
        tools.cargo("cargo-clippy", "clippy", workspace()?, &target_dir, env::consts::ARCH);
    let status = clippy.args(["--", "-Dwarnings"]).status();
    if !status.context("cannot run clippy on the eBPF probes")?.success() {
        bail!("clippy has found something in the eBPF probes");
    }
    Ok(())
}

/// Runs the tests, or a command, on other kernels. Gives the status of the first that failed.
pub fn guest(guest: &Guest) -> Result<ExitCode> {
    let work =
        if guest.command.is_empty() { Work::Tests(&[]) } else { Work::Command(&guest.command) };
    let programs = programs::build(workspace()?)?;
    let outcomes = guest::run(&guest.kernels, &guest.options, &programs, &work)?;
    for outcome in &outcomes {
        eprintln!("{}", outcome.line(matches!(work, Work::Tests(_))));
    }
    let failed = outcomes.into_iter().map(|outcome| outcome.status.unwrap_or(1));
    Ok(failed.into_iter().find(|&status| status != 0).unwrap_or(0).into())
}

fn target_dir() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot tell where xtask lies")?;
    let dir = ebpf::target_dir(&xtask).context("xtask does not lie in cargo's target directory")?;
    Ok(dir.to_owned())
}

/// The workspace that this is built from.
pub fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies outside its workspace")
}

/// memtrace as it is shipped, next to this program's own folder, wherever the user's settings have cargo put its output.
pub fn release_binary() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot tell where xtask lies")?;
    let output = xtask
        .parent()
        .and_then(Path::parent)
        .context("xtask does not lie in cargo's target directory")?;
    Ok(output.join("release").join("memtrace"))
}
