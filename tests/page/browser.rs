//! Chromium without a window, which loads one file and nothing else.

use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use tests::host::TempDir;

/// What it does with the page, and how large its window is.
pub fn run(page: &Path, action: &str, window: &str) -> Result<String> {
    let profile = TempDir::new()?;
    let mut chromium = Command::new("chromium");
    chromium
        // The tests run as root.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        // It would look for news of its own, too.
        .arg("--host-resolver-rules=MAP * ~NOTFOUND")
        .args(["--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=60000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={window}"))
        .arg(action)
        .arg(format!("file://{}", page.display()));
    let Output { status, stdout, stderr } =
        chromium.output().context("cannot run chromium: `cargo xtask test` installs it")?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "chromium failed, {status}: {stderr}");
    let said: Vec<_> = stderr.lines().filter(|line| line.contains("CONSOLE")).collect();
    ensure!(said.is_empty(), "the page complains: {said:#?}");
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
