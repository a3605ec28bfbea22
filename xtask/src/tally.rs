//! Adds up what test programs say of their results, to have it once more at the end.

use std::fmt;
use std::time::Duration;

/// Begins the line that names the program whose results follow.
pub const PROGRAM: &str = "== ";

/// The results of some programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: u32,
    failed: u32,
    /// The one that runs.
    program: String,
    /// Those of which tests failed.
    failures: Vec<String>,
    /// How many of those that passed had failed before.
    again: u32,
    /// The programs that they are of.
    unsteady: Vec<String>,
}

/// Ends the line that names a program whose tests that failed follow once more.
const AGAIN: &str = " again";

impl Tally {
    /// Takes note of a line that came from a test program, or before one.
    pub fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(program) = line.strip_prefix(PROGRAM) {
            program.clone_into(&mut self.program);
        } else if let Some((passed, failed)) = result(line) {
            self.passed += passed;
            if let Some(program) = self.program.strip_suffix(AGAIN) {
                // They are counted as failed already.
                self.failed = self.failed.saturating_sub(passed);
                self.again += passed;
                if failed == 0 {
                    self.failures.retain(|failure| failure != program);
                }
                if passed > 0 {
                    self.unsteady.push(program.to_owned());
                }
                return;
            }
            self.failed += failed;
            if failed > 0 {
                self.failures.push(self.program.clone());
            }
        }
    }

    /// Adds those of others.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.again += other.again;
        self.unsteady.extend(other.unsteady);
    }

    /// Whether no test ran.
    pub fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }

    /// In one line, with how long it took.
    pub fn shown(&self, took: Duration) -> impl fmt::Display + use<> {
        let Self { passed, failed, again, .. } = self;
        let unsteady = if *again == 0 {
            String::new()
        } else {
            let programs = self.unsteady.join(", ");
            format!(" ({again} of them at the second attempt, in {programs})")
        };
        let places = if self.failures.is_empty() {
            String::new()
        } else {
            format!(" (in {})", self.failures.join(", "))
        };
        format!("{passed} tests passed{unsteady}, {failed} failed{places} in {} s", took.as_secs())
    }
}

/// Reads `test result: ok. 5 passed; 0 failed; ...`.
fn result(line: &str) -> Option<(u32, u32)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = counts.split("; ").map(|count| count.split_once(' '));
    let mut next = |what| {
        let (count, found) = counts.next()??;
        (found == what).then(|| count.parse().ok())?
    };
    Some((next("passed")?, next("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "== oracle",
            "test a ... ok",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.34s\r",
            "== loss",
            "test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 4.48s",
        ] {
            tally.line(line);
        }
        let mut all = tally.clone();
        all.add(tally);
        assert_eq!(
            all.shown(Duration::from_millis(7900)).to_string(),
            "20 tests passed, 2 failed (in loss, loss) in 7 s"
        );
    }
}
