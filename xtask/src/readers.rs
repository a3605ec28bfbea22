//! What reads memtrace's exports in the tests and is not memtrace: Python's packages, in an environment of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::guest;
use crate::process;

/// Debian's package without which its Python makes no environments.
pub const PACKAGE: &str = "python3-venv";

/// The packages with their versions, in the workspace and beside what was installed.
const REQUIREMENTS: &str = "requirements.txt";
/// What the tests need of them.
const IMPORTS: &str = "import hdrh.log, perfetto.protos.perfetto.trace.perfetto_trace_pb2";

/// The environment.
pub struct Readers {
    dir: PathBuf,
    requirements: PathBuf,
}

impl Readers {
    /// That of the tests in a workspace, beside the kernels: it outlives the tree.
    pub fn new(workspace: &Path) -> Result<Self> {
        let requirements = workspace.join("tests/readers").join(REQUIREMENTS);
        Ok(Self { dir: guest::cache()?.join("readers"), requirements })
    }

    /// The Python that finds them.
    pub fn python(&self) -> PathBuf {
        self.dir.join("bin/python")
    }

    /// Whether all of them are there, in the versions that are wanted.
    pub fn are_there(&self) -> Result<bool> {
        let wanted = fs::read(&self.requirements)
            .with_context(|| format!("cannot read `{}`", self.requirements.display()))?;
        let installed = fs::read(self.dir.join(REQUIREMENTS)).unwrap_or_default();
        Ok(wanted == installed && succeeds(Command::new(self.python()).args(["-c", IMPORTS])))
    }

    /// The commands that install them, in order. The last one only says that the others have succeeded.
    pub fn install(&self) -> [Command; 3] {
        let mut environment = Command::new("python3");
        environment.args(["-m", "venv", "--clear"]).arg(&self.dir);
        let mut packages = Command::new(self.python());
        packages
            .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-deps"])
            .arg("--requirement")
            .arg(&self.requirements);
        let mut done = Command::new("cp");
        done.arg(&self.requirements).arg(self.dir.join(REQUIREMENTS));
        [environment, packages, done]
    }
}

/// Whether there is a Python that can make environments.
pub fn can_be_installed() -> bool {
    succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"]))
}

fn succeeds(command: &mut Command) -> bool {
    process::output(command).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_wanted_have_to_be_those_that_are_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let requirements = dir.path().join("wanted.txt");
        let readers = Readers { dir: dir.path().join("readers"), requirements };
        assert!(readers.are_there().is_err(), "nothing says what is wanted");
        fs::write(&readers.requirements, "a==1").expect("it can be written");
        assert!(!readers.are_there().expect("it can be read"));
        let [environment, packages, done] = readers.install().map(|it| process::shown(&it));
        assert!(environment.starts_with("python3 -m venv --clear "), "{environment}");
        assert!(packages.contains(" --no-deps --requirement "), "{packages}");
        assert!(done.starts_with("cp "), "{done}");
    }
}
