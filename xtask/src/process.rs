//! Child processes: cargo, and whatever has to run as root.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The cargo that runs this xtask.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether this process may do everything itself.
pub fn is_root() -> Result<bool> {
    let this =
        fs::metadata("/proc/self").context("cannot tell whether this is root: no /proc/self")?;
    Ok(this.uid() == 0)
}

/// Whether [`as_root`] has a way to become root.
pub fn can_be_root() -> Result<bool> {
    Ok(is_root()? || on_path("sudo"))
}

/// `argv` as root, through sudo where this is an ordinary user.
pub fn as_root<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut argv = argv.into_iter();
    let mut command = if is_root()? || !can_be_root()? {
        Command::new(argv.next().context("no program to run as root")?)
    } else {
        Command::new("sudo")
    };
    command.args(argv);
    Ok(command)
}

/// Fails where [`as_root`] has no way to become root.
pub fn need_root(what: &str) -> Result<()> {
    if !can_be_root()? {
        bail!("{what} must run as root and there is no sudo: become root and run the same command");
    }
    Ok(())
}

/// Whether there is a program called `program`.
pub fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Runs `command` to its end, with this process's output as its own.
pub fn run(command: &mut Command) -> Result<()> {
    // Nothing that is started here asks a question, except sudo, which asks on the terminal.
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// What `command` prints.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}: {}", shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `command` as it would be typed.
pub fn shown(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), quoted(value?))));
    let program = Path::new(command.get_program());
    // Where cargo lies is of no interest, and it lies elsewhere on the reader's machine.
    let program =
        if program.ends_with("cargo") { OsStr::new("cargo") } else { program.as_os_str() };
    let words = [program].into_iter().chain(command.get_args()).map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it.
pub fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_so_that_a_shell_reads_it_back() {
        let mut command = Command::new("/opt/rust/bin/cargo");
        command
            .args(["install", "it's", ""])
            .env("LLVM_PREFIX", "/usr/lib/llvm-22")
            .env_remove("RUSTFLAGS");
        assert_eq!(shown(&command), r"LLVM_PREFIX=/usr/lib/llvm-22 cargo install 'it'\''s' ''");
    }

    #[test]
    fn a_failure_names_the_command_and_the_status() {
        let err = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(format!("{err:#}"), "`sh -c 'exit 3'` failed: exit status: 3");
        let err = run(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(format!("{err:#}").starts_with("cannot run `/no/such/program`: "), "{err:#}");
    }
}
