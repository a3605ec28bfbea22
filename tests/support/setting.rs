//! A setting of the kernel, put back as it was when dropped.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// A file of /proc/sys or /sys whose value was changed.
#[derive(Debug)]
pub struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Writes `value` to the file.
    pub fn set(path: impl AsRef<Path>, value: &str) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let before = fs::read_to_string(&path)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        // A file that offers a choice has the chosen value in brackets.
        let chosen = before.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        let before = chosen.map_or(before.trim(), |(chosen, _)| chosen).to_owned();
        fs::write(&path, value)
            .with_context(|| format!("cannot write `{value}` to `{}`", path.display()))?;
        Ok(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(err) = fs::write(&self.path, &self.before) {
            eprintln!("cannot write `{}` to `{}`: {err}", self.before, self.path.display());
        }
    }
}
