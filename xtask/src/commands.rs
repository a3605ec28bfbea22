//! What each command does once its tools are there.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::ebpf::{self, Tools};
use crate::guest::{self, Guest};
use crate::process::{self, cargo};

/// Tells the integration tests which memtrace to test.
const MEMTRACE_BIN: &str = "MEMTRACE_BIN";

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

/// Runs the plain tests, then the integration tests as root on the binary that is shipped.
pub fn test(filters: &[String]) -> Result<()> {
    build(Profile::Release)?;

    let mut unit = cargo_test()?;
    unit.args(["--lib", "--bins", "--"]).args(filters);
    let mut doc = cargo_test()?;
    doc.args(["--doc", "--"]).args(filters);
    let mut integration = cargo_test()?;
    if !process::is_root()? {
        // Cargo builds the tests as this user and has sudo run them.
        integration.args(["--config", "target.'cfg(all())'.runner = ['sudo', '--preserve-env']"]);
    }
    // They share one kernel, and each would see the stalls of another.
    integration
        .args(["--test", "*", "--", "--test-threads=1"])
        .args(filters)
        .env(MEMTRACE_BIN, release_binary()?);

    let failures: Vec<_> = [unit, doc, integration]
        .iter_mut()
        .filter_map(|tests| process::run(tests).err())
        .map(|err| format!("{err:#}"))
        .collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\nerror: "));
    }
    Ok(())
}

/// In the dev profile, which checks for overflows. Always of the same packages, so that cargo builds their
/// dependencies once: another choice has other features.
fn cargo_test() -> Result<Command> {
    let mut cargo = cargo();
    cargo.current_dir(workspace()?).args(["test", "--no-fail-fast"]);
    Ok(cargo)
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
    clippy.current_dir(workspace()?).args(["clippy", "--all-targets", "--", "-Dwarnings"]);
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

/// Runs the tests, or a command, on other kernels.
pub fn guest(guest: &Guest) -> Result<ExitCode> {
    guest::run(guest, workspace()?, &target_dir()?)
}

fn target_dir() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot tell where xtask lies")?;
    let dir = ebpf::target_dir(&xtask).context("xtask does not lie in cargo's target directory")?;
    Ok(dir.to_owned())
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies outside its workspace")
}

/// Next to this program's own folder, wherever the user's settings have cargo put its output.
fn release_binary() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot tell where xtask lies")?;
    let output = xtask
        .parent()
        .and_then(Path::parent)
        .context("xtask does not lie in cargo's target directory")?;
    Ok(output.join("release").join("memtrace"))
}
