//! What is built for the tests: memtrace, memload and the test programs, static, so that they run in a guest, which has
//! no libraries, as well as here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// The only kind of machine that guests are.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Tests behind it may only run in a guest.
const GUEST: &str = "guest";
/// Part of the names of such tests in programs whose others may run anywhere.
pub const GUEST_MODULE: &str = "guest::";

/// A program that cargo has built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The target's name.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// What it is for.
    pub kind: Kind,
}

/// What programs are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Integration tests for any machine.
    Test,
    /// Integration tests that may only run in a guest.
    GuestTest,
    /// Anything else: tests need it.
    Tool,
}

/// Builds programs of these packages as memtrace is shipped.
pub fn build_shipped(workspace: &Path, packages: &[&str]) -> Result<Vec<Program>> {
    let mut build = process::cargo();
    build.args(["build", "--release", "--bins"]);
    build.args(packages.iter().map(|package| format!("--package={package}")));
    programs(&static_build(workspace, &mut build)?, &[])
}

/// The path of a program among these.
pub fn path<'a>(programs: &'a [Program], name: &str) -> Result<&'a Path> {
    let program = programs.iter().find(|program| program.name == name);
    program.map(|program| program.path.as_path()).with_context(|| format!("no program {name}"))
}

/// Builds all of them.
pub fn build(workspace: &Path) -> Result<Vec<Program>> {
    let mut metadata = process::cargo();
    metadata.current_dir(workspace).args(["metadata", "--no-deps", "--format-version=1"]);
    let metadata = process::output(&mut metadata)?;
    let metadata = serde_json::from_str(&metadata).context("cargo metadata is not JSON")?;

    let mut build = process::cargo();
    build
        .args(["build", "--profile=tests"])
        .args(["--package=memtrace", "--package=tests", "--features=tests/guest"])
        .args(["--bins", "--test=*"]);
    programs(&static_build(workspace, &mut build)?, &guest_tests(&metadata))
}

/// Has cargo build what runs in guests, and gives what it says of it.
fn static_build(workspace: &Path, build: &mut Command) -> Result<String> {
    build
        .current_dir(workspace)
        .args(["--target", TARGET, "--message-format=json-render-diagnostics"])
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .stderr(Stdio::inherit());
    process::output(build)
}

/// The tests that may only run in a guest.
fn guest_tests(metadata: &Value) -> Vec<&str> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let needs_guest = |target: &&Value| {
        let features = target["required-features"].as_array();
        features.is_some_and(|features| features.iter().any(|feature| feature == GUEST))
    };
    targets.filter(needs_guest).filter_map(|target| target["name"].as_str()).collect()
}

/// Reads what cargo says of programs: one JSON object a line.
fn programs(said: &str, guest_tests: &[&str]) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in said.lines() {
        let message: Value =
            serde_json::from_str(line).context("cargo says something that is not JSON")?;
        let Some(path) = message["executable"].as_str() else { continue };
        let name = message["target"]["name"].as_str().context("cargo names no target")?;
        let kind = if message["target"]["kind"][0] == "test" {
            if guest_tests.contains(&name) { Kind::GuestTest } else { Kind::Test }
        } else {
            Kind::Tool
        };
        programs.push(Program { name: name.to_owned(), path: path.into(), kind });
    }
    // Cargo names them as it comes to them.
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    if programs.is_empty() {
        bail!("cargo says of no program where it is");
    }
    Ok(programs)
}

impl Program {
    /// The names of its tests that contain one of `filters`, or of all.
    pub fn tests(&self, filters: &[String]) -> Result<Vec<String>> {
        let mut list = Command::new(&self.path);
        let said = process::output(list.args(["--list", "--format=terse"]).args(filters))?;
        Ok(said.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_libraries_and_tests() {
        let said = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"tests"},"executable":null}
{"reason":"build-script-executed","package_id":"x"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"memload"},"executable":"/t/memload"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"oracle"},"executable":"/t/oracle-0123"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"pressure"},"executable":"/t/pressure-67"}
{"reason":"build-finished","success":true}
"#;
        let program =
            |name: &str, path: &str, kind| Program { name: name.into(), path: path.into(), kind };
        let expected = [
            program("memload", "/t/memload", Kind::Tool),
            program("oracle", "/t/oracle-0123", Kind::Test),
            program("pressure", "/t/pressure-67", Kind::GuestTest),
        ];
        assert_eq!(programs(said, &["pressure"]).expect("JSON"), expected);
    }

    #[test]
    fn tests_for_guests_are_known_by_their_feature() {
        let metadata = serde_json::json!({"packages": [{"targets": [
            {"name": "oracle"},
            {"name": "pressure", "required-features": ["guest"]},
        ]}]});
        assert_eq!(guest_tests(&metadata), ["pressure"]);
    }
}
