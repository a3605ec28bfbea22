//! What runs in a guest where no command is given: the tests, over several boots that differ in what the kernel has.
//!
//! The name of a boot is a word on the kernel's command line, from where the kernel hands it on as a variable.

use anyhow::Result;

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

const BOOTS: [Boot; 3] = [
    USUAL,
    // Once locked down, a kernel stays so.
    Boot { name: "bare", append: "cgroup_disable=memory psi=0", modules: &["bare", "locked_down"] },
    // Cgroup v2 is not mounted, so that v1 can have the memory controller.
    Boot { name: "v1", append: "", modules: &["v1"] },
];

/// Tests that are not run in guests, by the beginning of `program::name`, and why.
const NOT_IN_GUESTS: [(&str, &str); 9] = [
    ("ends::", SAME_EVERYWHERE),
    ("errors::", SAME_EVERYWHERE),
    ("filters::by_path", SAME_EVERYWHERE),
    ("filters::by_several", SAME_EVERYWHERE),
    ("filters::by_user_name", SAME_EVERYWHERE),
    ("histogram::", SAME_EVERYWHERE),
    ("hostile::", SAME_EVERYWHERE),
    ("survive::a_thousand", TOO_LONG),
    ("survive::ten_thousand", TOO_LONG),
];
const SAME_EVERYWHERE: &str = "it is of user space, the same on every kernel";
const TOO_LONG: &str = "so many threads take an emulated machine too long";

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
    for (test, why) in NOT_IN_GUESTS {
        eprintln!("not run in guests: {test}: {why}");
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
    let is_left_out = |program: &str, test: &str| {
        NOT_IN_GUESTS.iter().any(|(out, _)| format!("{program}::{test}").starts_with(out))
    };
    let mut runs = Vec::new();
    let anything = (boot == USUAL).then_some(None);
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

/// One test that fails does not keep the others from running.
fn script(boots: &[(Boot, Vec<Run<'_>>)]) -> String {
    let mut lines = vec![
        "status=0".to_owned(),
        r#"run() { program=$1; shift; echo "== $program"; "/tests/$program" --test-threads=1 --exact "$@" || status=1; }"#.to_owned(),
        format!("case ${VARIABLE} in"),
    ];
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
        assert_eq!(runs(BOOTS[1], &listed), bare);
    }

    #[test]
    fn the_script_chooses_by_boot() {
        let run = Run { program: "loss", tests: vec!["a".to_owned(), "b::c".to_owned()] };
        let expected = r#"status=0
run() { program=$1; shift; echo "== $program"; "/tests/$program" --test-threads=1 --exact "$@" || status=1; }
case $MEMTRACE_GUEST in
usual)
run loss a b::c
;;
*) echo "no tests for the boot '$MEMTRACE_GUEST'"; status=1;;
esac
exit $status"#;
        assert_eq!(script(&[(USUAL, vec![run])]), expected);
    }
}
