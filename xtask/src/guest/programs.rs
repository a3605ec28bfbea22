//! The programs that run in a guest: memtrace, memload and the integration tests, all static, as a guest has no
//! libraries.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// The only kind of machine that guests are.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A program that cargo has built.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// The target's name.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// It is an integration test.
    pub is_test: bool,
}

/// Builds all of them, apart from the builds for this machine so that neither undoes the other.
pub fn build(workspace: &Path, target_dir: &Path) -> Result<Vec<Program>> {
    let mut cargo = process::cargo();
    cargo
        .current_dir(workspace)
        // Guests are emulated: tests of the dev profile would take minutes to read a trace.
        .args(["build", "--release", "--target", TARGET, "--package=memtrace", "--package=tests"])
        .args(["--features", "tests/guest"])
        .args(["--bins", "--test", "*", "--message-format=json-render-diagnostics"])
        .arg("--target-dir")
        .arg(target_dir)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .stderr(Stdio::inherit());
    programs(&process::output(&mut cargo)?)
}

/// Reads what cargo says of programs: one JSON object a line.
fn programs(said: &str) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in said.lines() {
        let message: Value =
            serde_json::from_str(line).context("cargo says something that is not JSON")?;
        let Some(path) = message["executable"].as_str() else { continue };
        let kind = &message["target"]["kind"][0];
        let name = message["target"]["name"].as_str().context("cargo names no target")?;
        programs.push(Program {
            name: name.to_owned(),
            path: path.into(),
            is_test: kind == "test",
        });
    }
    if programs.is_empty() {
        bail!("cargo says of no program where it is");
    }
    Ok(programs)
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
{"reason":"build-finished","success":true}
"#;
        let program = |name: &str, path: &str, is_test| Program {
            name: name.into(),
            path: path.into(),
            is_test,
        };
        let expected =
            [program("memload", "/t/memload", false), program("oracle", "/t/oracle-0123", true)];
        assert_eq!(programs(said).expect("JSON"), expected);
    }
}
