//! The command that is run for each file: never waited for while tracing goes on.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::output::say;

/// Lets the command be killed as early as others, which memtrace is not, and becomes it.
const WRAPPER: &str =
    r#"{ echo 0 >/proc/self/oom_score_adj; } 2>/dev/null; exec /bin/sh -c "$0" memtrace "$1""#;
/// How often to look whether it has ended, once there is nothing else to do.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is run for each file, one at a time.
#[derive(Debug)]
pub struct Exec {
    command: OsString,
    running: Option<(Child, PathBuf)>,
}

impl Exec {
    pub fn new(command: OsString) -> Self {
        Self { command, running: None }
    }

    /// Runs it with a file and its cause, unless it still runs with another one.
    ///
    /// Its capabilities are those that memtrace has left, as that can gain none. It is no part of memtrace's group
    /// of processes, as Ctrl-C is meant for memtrace.
    pub fn start(&mut self, file: &Path, cause: &str) {
        self.reap();
        if let Some((_, before)) = &self.running {
            let (file, before) = (file.display(), before.display());
            say(format_args!(
                "memtrace: --exec is not run with `{file}`, as it still runs with `{before}`"
            ));
            return;
        }
        let child = Command::new("/bin/sh")
            .args(["-c".as_ref(), WRAPPER.as_ref(), &*self.command, file.as_os_str()])
            .env("MEMTRACE_FILE", file)
            .env("MEMTRACE_CAUSE", cause)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn();
        match child {
            Ok(child) => self.running = Some((child, file.to_owned())),
            Err(error) => {
                let file = file.display();
                say(format_args!("memtrace: cannot run --exec with `{file}`: {error}"));
            }
        }
    }

    /// Looks whether it has ended; says so if it failed.
    pub fn reap(&mut self) {
        let Some((child, file)) = &mut self.running else { return };
        let file = file.display();
        match child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) if status.success() => {}
            Ok(Some(status)) => {
                let failed = failed(status);
                say(format_args!("memtrace: --exec with `{file}` {failed}"));
            }
            Err(error) => say(format_args!("memtrace: cannot wait for --exec: {error}")),
        }
        self.running = None;
    }

    /// The file that it runs with, as long as it does.
    pub fn running(&self) -> Option<&Path> {
        self.running.as_ref().map(|(_, file)| &**file)
    }

    fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits for it, but not beyond `until`: then it is left alone.
    pub fn end(&mut self, until: Instant) {
        self.reap();
        while self.is_running() && Instant::now() < until {
            thread::sleep(LOOK_EVERY);
            self.reap();
        }
        if let Some((_, file)) = &self.running {
            let file = file.display();
            say(format_args!(
                "memtrace: --exec with `{file}` has not ended yet, and is left alone"
            ));
        }
    }
}

/// What has become of it where that is no success.
fn failed(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("failed with exit status {code}"),
        None => format!("was ended by a {status}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::process::ExitStatusExt as _};

    use super::*;

    fn end(exec: &mut Exec) {
        exec.end(Instant::now() + Duration::from_mins(1));
        assert!(!exec.is_running(), "it takes more than a minute");
    }

    #[test]
    fn it_is_told_of_the_file_and_the_cause() {
        let directory = tempfile::tempdir().expect("a directory");
        // Quotes and spaces as they may be in any path.
        let file = directory.path().join("a 'file'\"$1");
        let command = r#"printf '%s|' "$#" "$1" "$MEMTRACE_FILE" "$MEMTRACE_CAUSE" >"$1"
            cat /proc/self/oom_score_adj - >>"$1""#;
        // Anyone may raise it, and lower it to what it was.
        let adjustment = "/proc/self/oom_score_adj";
        let before = fs::read_to_string(adjustment).expect("it is there");
        fs::write(adjustment, "100").expect("it can be raised");
        let mut exec = Exec::new(command.into());
        exec.start(&file, "OOM kill of a\"$(b) (pid 1)");
        end(&mut exec);
        fs::write(adjustment, before.trim()).expect("it can be lowered");
        let written = fs::read_to_string(&file).expect("it was written");
        let path = file.display();
        assert_eq!(written, format!("1|{path}|{path}|OOM kill of a\"$(b) (pid 1)|0\n"));
    }

    #[test]
    fn there_is_one_at_a_time_and_it_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = ["1", "2"].map(|name| directory.path().join(name));
        let go = directory.path().join("go");
        let wait = format!("until [ -e {} ]; do sleep 0.01; done; : >\"$1\"", go.display());
        let mut exec = Exec::new(wait.into());
        for file in &files {
            exec.start(file, "");
        }
        exec.reap();
        assert!(exec.is_running());
        exec.end(Instant::now());
        assert!(exec.is_running(), "it was left alone");
        fs::write(go, "").expect("it can be written");
        end(&mut exec);
        assert_eq!(files.map(|file| file.exists()), [true, false]);
    }

    #[test]
    fn how_it_failed_is_said_in_words() {
        for (raw, said) in
            [(3 << 8, "failed with exit status 3"), (9, "was ended by a signal: 9 (SIGKILL)")]
        {
            assert_eq!(failed(ExitStatus::from_raw(raw)), said);
        }
    }

    #[test]
    fn a_command_that_fails_is_over() {
        let mut exec = Exec::new("exit 3".into());
        exec.start(Path::new("/nonexistent"), "");
        end(&mut exec);
    }
}
