//! What runs in a guest where no command is given: the tests, over several boots that differ in what the kernel has.
//!
//! The name of a boot is a word on the kernel's command line, from where the kernel hands it on as a variable.

use std::fmt;

use anyhow::{Result, bail};

use crate::process;
use crate::programs::{Kind, Program};

/// The variable that names the boot.
pub const VARIABLE: &str = "MEMTRACE_GUEST";

/// One way to boot a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Its name.
    pub name: &'static str,
    /// Words for the kernel's command line.
    pub append: &'static str,
    /// Modules of tests that need this boot, in the order in which they run.
    modules: &'static [&'static str],
}

/// The boot for everything that needs no other.
pub const USUAL: Boot = Boot { name: "usual", append: "", modules: &["usual"] };

/// The same boot, with the fewer tests of a kernel between two others that run them all.
pub const BETWEEN: Boot = Boot { name: "between", ..USUAL };

const BOOTS: [Boot; 4] = [
    USUAL,
    BETWEEN,
    // Once locked down, a kernel stays so.
    Boot { name: "bare", append: "cgroup_disable=memory psi=0", modules: &["bare", "locked_down"] },
    // Cgroup v2 is not mounted, so that v1 can have the memory controller.
    Boot { name: "v1", append: "", modules: &["v1"] },
];

/// Tests that are not run, and why.
struct LeftOut {
    /// Where.
    of: Where,
    why: &'static str,
    /// The beginnings of `program::name`.
    tests: &'static [&'static str],
}

/// Where tests are not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// In no guest.
    Anywhere,
    /// But on the oldest kernel and the newest.
    Between,
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anywhere => "in guests",
            Self::Between => "but on the oldest and the newest kernel",
        })
    }
}

const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        of: Where::Anywhere,
        why: "they are of user space, the same on every kernel",
        tests: &[
            "ends::",
            "errors::",
            "exports::",
            "filters::by_path",
            "filters::by_several",
            "filters::by_user_name",
            "histogram::as_text",
            "histogram::encoded_histograms",
            "histogram::intervals",
            "histogram::keys_beyond",
            "histogram::numbers",
            "hostile::",
            "loss::full_ring_buffer_for_people",
            "loss::full_ring_buffer_when_quiet",
            "stacks::a_flame_graph",
            "stacks::a_full_disk",
            "stacks::flame_graphs",
            "stacks::too_many_stacks",
            "stacks::what_",
            "stacks::where_nothing",
            "now::filters_leave",
            "now::watching",
            "page::",
            "recordings::",
            "stalls::coverage::certificate",
            "stalls::coverage::without_parts",
            "stalls::options::",
            "survive::closed_streams",
        ],
    },
    LeftOut {
        of: Where::Anywhere,
        why: "with cgroup v2 writers sleep before they reclaim: stalls::v1 has it",
        tests: &["stalls::throttled::"],
    },
    LeftOut {
        of: Where::Anywhere,
        why: "filters::together has them at work, too",
        tests: &[
            "filters::by_end_of_name",
            "filters::by_part_of_name",
            "filters::by_process",
            "filters::by_thread",
        ],
    },
    LeftOut {
        of: Where::Anywhere,
        why: "so many threads take an emulated machine too long",
        tests: &["now::ten_thousand", "survive::a_thousand", "survive::ten_thousand"],
    },
    LeftOut {
        of: Where::Between,
        why: "what they need of a kernel is needed by fields, loads, oracle or filters::together as well",
        tests: &[
            "filters::by_",
            "filters::contradicting",
            "loss::stalls_in_progress",
            "privileges::stacks_have_names",
            "privileges::two_capabilities_of_the_file",
            "privileges::what_is_missing",
            "stacks::helpers_end",
            "stacks::privileges_are",
            "stalls::parts::of_episodes",
            "stalls::rounds::",
            "survive::many_runs",
            "survive::too_little",
            "survive::two_at_once",
            "survive::what_is_just_enough",
        ],
    },
];

/// Tests to run: a program, and those of its tests that were chosen.
#[derive(Debug, PartialEq, Eq)]
struct Run<'a> {
    program: &'a str,
    tests: Vec<String>,
}

/// The boots in which there is something to run, and the script for the guest's shell that runs the tests whose names
/// contain one of `filters`, or all.
pub fn tests(programs: &[Program], filters: &[String]) -> Result<(Vec<Boot>, String)> {
    let mut listed = Vec::new();
    for program in programs.iter().filter(|program| program.kind != Kind::Tool) {
        listed.push((program.name.as_str(), program.tests(filters)?));
    }
    let names: Vec<_> = listed
        .iter()
        .flat_map(|(program, tests)| tests.iter().map(move |test| format!("{program}::{test}")))
        .collect();
    for LeftOut { of, why, tests } in LEFT_OUT {
        let is_there = |beginning: &str| names.iter().any(|name| name.starts_with(beginning));
        let (there, gone): (Vec<&str>, Vec<&str>) = tests.iter().partition(|test| is_there(test));
        if filters.is_empty() && !gone.is_empty() {
            bail!("no test is called {gone:?}, which {} leaves out: mend that", file!());
        }
        if !there.is_empty() {
            eprintln!("not run {of}, as {why}: {}", there.join(", "));
        }
    }
    let boots = BOOTS.map(|boot| (boot, runs(boot, &listed)));
    let boots = boots.into_iter().filter(|(_, runs)| !runs.is_empty()).collect::<Vec<_>>();
    Ok((boots.iter().map(|(boot, _)| *boot).collect(), script(&boots)))
}

/// What of the tests `listed` belongs into `boot`.
fn runs<'a>(boot: Boot, listed: &[(&'a str, Vec<String>)]) -> Vec<Run<'a>> {
    let modules = BOOTS.iter().flat_map(|boot| boot.modules);
    let module_of = |test: &str| {
        let module = test.split_once("::").map_or("", |(module, _)| module);
        modules.clone().find(|known| **known == module).copied()
    };
    let left_out = LEFT_OUT.iter().filter(|left| left.of == Where::Anywhere || boot == BETWEEN);
    let left_out: Vec<_> = left_out.flat_map(|left| left.tests).collect();
    let is_left_out = |program: &str, test: &str| {
        let name = format!("{program}::{test}");
        left_out.iter().any(|beginning| name.starts_with(**beginning))
    };
    let mut runs = Vec::new();
    let anything = (boot.modules == USUAL.modules).then_some(None);
    for module in anything.into_iter().chain(boot.modules.iter().copied().map(Some)) {
        for (program, tests) in listed {
            let chosen = tests
                .iter()
                .filter(|test| module_of(test) == module && !is_left_out(program, test));
            let tests: Vec<_> = chosen.cloned().collect();
            if !tests.is_empty() {
                runs.push(Run { program, tests });
            }
        }
    }
    runs
}

/// Runs a program's tests.
///
/// An emulated CPU can be taken away at any moment, for as long as others want to run, and no bound on time holds then.
/// So where no more than two tests of a program fail they get a second attempt, each by itself: what is wrong fails
/// again. The closing lines tell of it.
const RUN: &str = r#"set -o pipefail
again() {
program=$1
failed=$(sed -n '/^failures:$/,/^test result:/ s/^    \([a-z_0-9:]*\)$/\1/p' /var/tmp/said | sort -u)
[ -n "$failed" ] && [ "$(echo "$failed" | wc -l)" -le 2 ] || return 1
echo "== $program again"
"/tests/$program" --test-threads=1 --exact $failed
}
run() {
program=$1; shift
echo "== $program"
"/tests/$program" --test-threads=1 --exact "$@" 2>&1 | tee /var/tmp/said || again "$program" || status=1
}"#;

/// One test that fails does not keep the others from running.
fn script(boots: &[(Boot, Vec<Run<'_>>)]) -> String {
    let mut lines = vec!["status=0".to_owned(), RUN.to_owned(), format!("case ${VARIABLE} in")];
    for (boot, runs) in boots {
        lines.push(format!("{})", boot.name));
        for Run { program, tests } in runs {
            let tests: Vec<_> = tests.iter().map(|test| process::quoted(test.as_ref())).collect();
            lines.push(format!("run {program} {}", tests.join(" ")));
        }
        lines.push(";;".to_owned());
    }
    lines.push(r#"*) echo "no tests for the boot '$MEMTRACE_GUEST'"; status=1;;"#.to_owned());
    lines.extend(["esac".to_owned(), "exit $status".to_owned()]);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_run_in_the_boot_that_they_are_for() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let listed = [
            ("degraded", names(&["bare::a", "locked_down::b", "usual::c", "v1::d"])),
            ("loss", names(&["bare::e", "f", "g::h"])),
        ];
        let run = |program, tests: &[&str]| Run { program, tests: names(tests) };
        assert_eq!(
            runs(USUAL, &listed),
            [run("loss", &["f", "g::h"]), run("degraded", &["usual::c"])]
        );
        let bare = [
            run("degraded", &["bare::a"]),
            run("loss", &["bare::e"]),
            run("degraded", &["locked_down::b"]),
        ];
        assert_eq!(runs(BOOTS[2], &listed), bare);
    }

    #[test]
    fn fewer_tests_run_between_kernels() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let listed = [
            ("ends", names(&["by_interrupt"])),
            ("filters", names(&["by_kind", "by_user_name", "together"])),
        ];
        let run = |tests: &[&str]| [Run { program: "filters", tests: names(tests) }];
        assert_eq!(runs(USUAL, &listed), run(&["by_kind", "together"]));
        assert_eq!(runs(BETWEEN, &listed), run(&["together"]));
    }

    #[test]
    fn the_script_chooses_by_boot() {
        let run = Run { program: "loss", tests: vec!["a".to_owned(), "b::c".to_owned()] };
        let expected = r#"case $MEMTRACE_GUEST in
usual)
run loss a b::c
;;
*) echo "no tests for the boot '$MEMTRACE_GUEST'"; status=1;;
esac
exit $status"#;
        let script = script(&[(USUAL, vec![run])]);
        let cases = script.strip_prefix("status=0\n").and_then(|rest| rest.strip_prefix(RUN));
        assert_eq!(cases.map(str::trim_start), Some(expected));
    }

    /// What the shell makes of it, with programs that pass, fail, and fail only once.
    #[test]
    fn failures_get_a_second_attempt() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str| dir.path().join(name).display().to_string();
        let program = |name: &str, body: &str| {
            let path = file(name);
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("room");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .expect("it is ours");
        };
        let failing = |names: &str| {
            format!(
                "printf 'failures:\\n\\n---- x stdout ----\\n\\nfailures:\\n{names}\\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\\n'; exit 101"
            )
        };
        program("good", "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'");
        program(
            "once",
            &format!("[ $3 = x::a_b1 ] && exec {}; {}", file("good"), failing("    x::a_b1")),
        );
        program("bad", &failing("    x::a_b1"));
        program("worse", &failing("    a\\n    b\\n    c"));
        let run = RUN.replace("/tests/", &file("")).replace("/var/tmp/said", &file("said"));
        let said = |program: &str| {
            let script = format!("status=0\n{run}\nrun {program} other\nexit $status");
            let output = std::process::Command::new("bash").args(["-c", &script]).output();
            let output = output.expect("there is a shell");
            let mut tally = crate::tally::Tally::default();
            String::from_utf8_lossy(&output.stdout).lines().for_each(|line| tally.line(line));
            (output.status.success(), tally.shown(std::time::Duration::ZERO).to_string())
        };
        let expected = |succeeds, told: &str| (succeeds, format!("{told} in 0 s"));
        assert_eq!(said("good"), expected(true, "1 tests passed, 0 failed"));
        assert_eq!(
            said("once"),
            expected(true, "1 tests passed (1 of them at the second attempt, in once), 0 failed")
        );
        assert_eq!(said("bad"), expected(false, "0 tests passed, 1 failed (in bad)"));
        assert_eq!(said("worse"), expected(false, "0 tests passed, 1 failed (in worse)"));
    }
}
