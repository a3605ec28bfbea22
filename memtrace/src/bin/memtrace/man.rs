//! The man pages: as clap makes them, but for the synopsis, which lacks the names of values there, and for what
//! comes after the options, which would be one paragraph.

use std::{fs, io, path::Path};

use clap::{Arg, Command};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};

use crate::examples::{self, Examples};

/// Writes those of the command and of all below it into a directory, which is made where it is missing.
pub fn write(mut command: Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    command = command.disable_help_subcommand(true);
    command.build();
    for (name, page) in pages(&command)? {
        fs::write(directory.join(name), page)?;
    }
    Ok(())
}

/// The names of the files, and what is in them.
fn pages(command: &Command) -> io::Result<Vec<(String, String)>> {
    let version = concat!("memtrace ", env!("CARGO_PKG_VERSION"));
    let of = |command: &Command| {
        let man = Man::new(command.clone()).source(version);
        let mut page = Vec::new();
        man.render(&mut page)?;
        let page = String::from_utf8(page).map_err(io::Error::other)?;
        Ok((man.get_filename(), mend(&page, command)))
    };
    let below = command.get_subcommands().filter(|command| !command.is_hide_set());
    std::iter::once(command).chain(below).map(of).collect()
}

/// Puts other sections in the place of those that are not as they should be.
fn mend(page: &str, command: &Command) -> String {
    const SECTION: &str = "\n.SH ";
    let examples = examples::of(command.get_name());
    let mended = page.split(SECTION).map(|section| match section.split_once('\n') {
        Some(("SYNOPSIS", _)) => text(&synopsis(command)),
        Some(("EXTRA", rest)) => match examples {
            Some(examples) => text(&shown(examples)),
            None => format!("NOTES\n{rest}"),
        },
        _ => section.to_owned(),
    });
    mended.collect::<Vec<_>>().join(SECTION)
}

/// A section, without the line end that belongs to the next one.
fn text(roff: &Roff) -> String {
    let beginning = Roff::new().render();
    let whole = roff.render();
    let section = whole.strip_prefix(&beginning).unwrap_or(&whole);
    section.trim_start_matches(".SH ").trim_end().to_owned()
}

fn synopsis(command: &Command) -> Roff {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut line = vec![bold(name)];
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let (positionals, options): (Vec<_>, Vec<_>) = shown.partition(|arg| arg.is_positional());
    for arg in options.into_iter().chain(positionals) {
        let word = word(arg);
        line.push(roman(" "));
        if arg.is_required_set() {
            line.extend(word);
        } else {
            line.push(roman("["));
            line.extend(word);
            line.push(roman("]"));
        }
    }
    if command.has_subcommands() {
        line.extend([roman(" "), italic("COMMAND")]);
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).text(line);
    roff
}

/// An option with the names of its values, or these alone.
fn word(arg: &Arg) -> Vec<Inline> {
    let option = match (arg.get_short(), arg.get_long()) {
        (Some(short), _) => Some(bold(format!("-{short}"))),
        (None, Some(long)) => Some(bold(format!("--{long}"))),
        (None, None) => None,
    };
    let takes = arg.get_num_args().filter(clap::builder::ValueRange::takes_values);
    let Some(takes) = takes else { return option.into_iter().collect() };
    let names = arg.get_value_names().unwrap_or_default();
    let mut values = names.iter().map(clap::builder::Str::as_str).collect::<Vec<_>>().join(" ");
    if takes.max_values() > names.len() {
        values.push_str("...");
    }
    let blank = option.is_some().then(|| roman(" "));
    option.into_iter().chain(blank).chain([italic(values)]).collect()
}

fn shown(examples: &Examples) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    for (command, what) in examples.commands() {
        let (first, rest) = what.split_at(what.chars().next().map_or(0, char::len_utf8));
        let what = format!("{}{rest}:", first.to_uppercase());
        roff.control("PP", []).text([roman(what)]);
        roff.control("PP", []).control("RS", ["4"]).control("nf", []);
        roff.text([bold(*command)]).control("fi", []).control("RE", []);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (status, what) in examples.exit_statuses() {
        roff.control("TP", []).text([bold(status)]).text([roman(format!("{what}."))]);
    }
    roff
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn all() -> Vec<(String, String)> {
        let directory = tempfile::tempdir().expect("a directory");
        write(Cli::command(), &directory.path().join("man")).expect("it can be written");
        let files = fs::read_dir(directory.path().join("man")).expect("it was made");
        let read = files.map(|file| {
            let path = file.expect("it can be read").path();
            let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).expect("it is text"))
        });
        read.collect()
    }

    fn page(name: &str) -> String {
        let found = all().into_iter().find(|(file, _)| file == name);
        found.unwrap_or_else(|| panic!("no {name}")).1
    }

    fn section<'a>(page: &'a str, name: &str) -> &'a str {
        let (_, rest) = page.split_once(&format!("\n.SH {name}\n")).expect("the section");
        rest.split("\n.SH ").next().unwrap_or(rest)
    }

    #[test]
    fn the_synopsis_names_values() {
        let record = page("memtrace-record.1");
        let synopsis = section(&record, "SYNOPSIS");
        let begins = r"\fBmemtrace record\fR \fB\-o\fR \fIFILE\fR [\fB\-\-max\-size\fR \fISIZE\fR] [\fB\-d\fR \fIDURATION\fR]";
        assert!(synopsis.starts_with(begins), "{synopsis}");
        assert!(synopsis.contains(r"[\fB\-K\fR]"), "{synopsis}");
        assert!(section(&page("memtrace-report.1"), "SYNOPSIS").ends_with(r" \fIFILE...\fR"));
        let root = page("memtrace.1");
        assert!(section(&root, "SYNOPSIS").ends_with(r" \fICOMMAND\fR"), "{root}");
    }

    #[test]
    fn each_example_is_a_line_of_its_own() {
        let record = page("memtrace-record.1");
        let examples = section(&record, "EXAMPLES");
        let first = "Every stall of one minute:\n.PP\n.RS 4\n.nf\n\\fBmemtrace record \\-o stalls.mtr \\-d 60\\fR\n.fi\n.RE\n";
        assert!(examples.contains(first), "{examples}");
        assert!(examples.contains(r"\*(Aqlatency>100ms or oom\*(Aq"), "{examples}");
        let exit = section(&record, "\"EXIT STATUS\"");
        assert!(exit.contains("\\fB1\\fR\nif it cannot be made or goes wrong.\n"), "{exit}");
    }

    #[test]
    fn every_command_has_a_page_in_which_nothing_is_extra() {
        let pages = all();
        for command in Cli::command().get_subcommands() {
            let name = format!("memtrace-{}.1", command.get_name());
            let (_, page) = pages.iter().find(|(file, _)| *file == name).expect("its page");
            assert_eq!(page.contains("\n.SH EXAMPLES\n"), command.get_after_help().is_some());
        }
        for (name, page) in pages {
            assert!(!page.contains(".SH EXTRA") && !page.contains("Exit status:"), "{name}");
            assert_eq!(page.matches(".ie ").count(), 1, "{name} begins once");
        }
    }
}
