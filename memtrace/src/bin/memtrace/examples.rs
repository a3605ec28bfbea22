//! Examples of the commands and what their exit status means, as help and man pages show them.

use std::fmt::Write as _;

/// Columns of a terminal that help fits into.
const WIDTH: usize = 80;
/// The longest command that has what it does beside it; others have it below.
const LONGEST: usize = 43;

/// What is shown after the options of a command.
#[derive(Debug)]
pub struct Examples {
    /// Commands, each with what it does.
    commands: &'static [(&'static str, &'static str)],
    /// What the exit statuses 0 and 1 are for.
    exit: [&'static str; 2],
}

/// What exit status 2 is for, of every command.
const WRONG_USAGE: &str = "for wrong usage";
/// What 0 and 1 are for where a trace is made.
const TRACE: [&str; 2] = ["however the trace ends", "if it cannot be made"];

pub const DRSNOOP: Examples = Examples {
    commands: &[
        ("memtrace drsnoop", "every reclaim stall of this host"),
        ("memtrace drsnoop -p 1234 -T", "of process 1234, with the time of day"),
        ("memtrace drsnoop -m 10ms -K", "of at least 10 ms, with kernel stacks"),
        ("memtrace drsnoop -c /system.slice -e", "below a cgroup, with more columns"),
        ("memtrace drsnoop --kind memcg -H 5", "histograms by thread, every 5 s"),
        ("memtrace drsnoop -H --by process -d 60", "histograms by process of one minute"),
        ("memtrace drsnoop --json | jq .", "for programs"),
        (
            "memtrace drsnoop -K --user-stack --flame stalls.svg -d 60",
            "one minute as a flame graph",
        ),
    ],
    exit: TRACE,
};

pub const COMPACTSNOOP: Examples = Examples {
    commands: &[
        ("memtrace compactsnoop", "every compaction on this host"),
        ("memtrace compactsnoop --cause direct -K", "those of allocations, with stacks"),
        ("memtrace compactsnoop -e -d 60", "with watermarks, for one minute"),
        ("memtrace compactsnoop -H --by cause 10 6", "by cause, every 10 s, 6 times"),
        ("memtrace compactsnoop -H --by order --json", "for programs"),
    ],
    exit: TRACE,
};

pub const STALLS: Examples = Examples {
    commands: &[
        ("memtrace stalls", "every stall of this host"),
        ("memtrace stalls -p 1234 -d 60", "of process 1234, and the longest of them"),
        ("memtrace stalls -m 10ms -e", "of at least 10 ms, with more columns"),
        ("memtrace stalls --kind oom,penalty", "OOM kills, and sleeps for memory.high"),
        ("memtrace stalls --rounds -K", "each round by itself, with its stack"),
        ("memtrace stalls -H --by kind 10", "histograms by kind, every 10 s"),
        ("memtrace stalls --json | jq '.parts // empty'", "for programs"),
    ],
    exit: TRACE,
};

pub const NOW: Examples = Examples {
    commands: &[
        ("memtrace now", "who is stalled, by what, how far it gets"),
        ("memtrace now -K -n postgres", "threads of that name, with kernel stacks"),
        ("memtrace now --watch -i 1s", "again every second"),
        ("memtrace now -c /system.slice -q", "threads below a cgroup, without header"),
        ("memtrace now --json -q | jq .", "for programs"),
    ],
    exit: ["whether or not a thread is stalled", "if that cannot be told"],
};

pub const RECORD: Examples = Examples {
    commands: &[
        ("memtrace record -o stalls.mtr -d 60", "every stall of one minute"),
        ("memtrace record -o stalls.mtr -K -m 10ms", "10 ms and more, with kernel stacks"),
        ("memtrace record -o pg.mtr -p 1234", "of process 1234, until Ctrl-C"),
        ("memtrace stalls --from stalls.mtr -e", "shows them"),
        ("memtrace drsnoop --from stalls.mtr -H", "histograms of its reclaim, by thread"),
        (
            "memtrace record -o /var/lib/memtrace --trigger 'latency>100ms or oom' --keep 9",
            "a file whenever it gets bad",
        ),
    ],
    exit: ["however the recording ends", "if it cannot be made or goes wrong"],
};

pub const REPORT: Examples = Examples {
    commands: &[
        ("memtrace report stalls.mtr", "what was recorded, as text"),
        ("memtrace report --top 20 a.mtr b.mtr", "two as one, with longer lists"),
        ("memtrace report --html report.html *.mtr", "a page with charts, and no text"),
        ("memtrace report --diff before.mtr after.mtr", "what a change has brought"),
        ("memtrace report --json stalls.mtr | jq .worst_second", "for programs"),
        ("memtrace report --csv stalls.mtr > stalls.csv", "every stall, for spreadsheets"),
        ("zstdcat stalls.mtr.zst | memtrace report -", "from standard input"),
    ],
    exit: [
        "if every file could be read, at least in part",
        "if one could not, or an output could not be written",
    ],
};

/// Those of a command, by its name.
pub fn of(command: &str) -> Option<&'static Examples> {
    match command {
        "drsnoop" => Some(&DRSNOOP),
        "compactsnoop" => Some(&COMPACTSNOOP),
        "stalls" => Some(&STALLS),
        "now" => Some(&NOW),
        "record" => Some(&RECORD),
        "report" => Some(&REPORT),
        _ => None,
    }
}

impl Examples {
    /// Commands, each with what it does.
    pub fn commands(&self) -> &[(&'static str, &'static str)] {
        self.commands
    }

    /// What each exit status is for.
    pub fn exit_statuses(&self) -> [(&'static str, &'static str); 3] {
        let [done, failed] = self.exit;
        [("0", done), ("1", failed), ("2", WRONG_USAGE)]
    }

    /// All of it as help. The last paragraph is one line, which clap breaks to the width of the terminal.
    pub fn help(&self) -> String {
        let widths = self.commands.iter().map(|(command, _)| command.len());
        let width = widths.filter(|width| *width <= LONGEST).max().unwrap_or(0);
        let mut text = "Examples:\n".to_owned();
        for (command, what) in self.commands {
            let line = match command.len() {
                ..=LONGEST => format!("  {command:width$}  {what}"),
                _ => format!("  {command}\n  {:width$}  {what}", ""),
            };
            debug_assert!(line.lines().all(|line| line.len() <= WIDTH), "{line} is too long");
            let _written: std::fmt::Result = writeln!(text, "{line}");
        }
        let exit = self.exit_statuses().map(|(status, what)| format!("{status} {what}")).join(", ");
        let _written: std::fmt::Result = write!(text, "\nExit status: {exit}.");
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::Cli;

    /// The words of a command as a shell makes them, as far as examples need it.
    fn words(command: &str) -> Vec<String> {
        let memtrace = command.split(" | ").find(|part| part.starts_with("memtrace "));
        let memtrace = memtrace.expect("it is one of memtrace's");
        let mut words = Vec::new();
        for (number, part) in memtrace.split('\'').enumerate() {
            if number % 2 == 1 {
                words.push(part.to_owned());
            } else {
                let part = part.split(" > ").next().unwrap_or(part);
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        words
    }

    #[test]
    fn every_example_can_be_typed() {
        let commands = Cli::command();
        let all = commands.get_subcommands().filter_map(|command| of(command.get_name()));
        let all: Vec<_> = all.flat_map(Examples::commands).collect();
        assert!(all.len() > 30);
        for (command, _) in all {
            let cli = Cli::try_parse_from(words(command));
            let cli = cli.unwrap_or_else(|error| panic!("{command}: {error}"));
            assert_eq!(cli.command.contradiction(), None, "{command}");
        }
    }

    #[test]
    fn help_has_no_line_that_is_broken_by_hand_and_again_by_the_terminal() {
        for width in [80, 100] {
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                let Some(examples) = of(name) else { continue };
                let help = command.clone().term_width(width).render_long_help().to_string();
                let (_, after) = help.split_once("Examples:\n").expect("it has examples");
                let (shown, exit) = after.split_once("\nExit status: ").expect("it has statuses");
                let expected = examples.help();
                let (_, expected) = expected.split_once("Examples:\n").expect("likewise");
                let (expected, _) = expected.split_once("\nExit status: ").expect("likewise");
                assert_eq!(shown, expected, "{name} at {width}");
                let mut lines: Vec<_> = exit.trim_end().lines().collect();
                // All but the last have no room for the word that follows.
                lines.pop();
                assert!(lines.iter().all(|line| line.len() > width - 25), "{name}: {exit}");
            }
        }
    }
}
