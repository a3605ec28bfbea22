//! `memtrace report`: reads recordings and shows what they come to.

use std::{
    cell::Cell,
    io::{self, BufWriter, Write},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use anyhow::{Context as _, Result, bail};
use jiff::tz::TimeZone;
use memtrace::{
    recording::{Missing, Recording},
    report::{self, Diff, Findings, LeftOut, csv, hlog, html, perfetto, stacks},
    view::{Folded, Sink},
};

use crate::{
    bar::with_bar,
    cli::Report,
    file::OutFile,
    flame::FlameFile,
    output::{self, say},
    replay,
};

/// Does what the arguments say.
pub fn run(args: &Report) -> Result<()> {
    let files = Files::prepare(args)?;
    let name = |file: &PathBuf| {
        if replay::is_stdin(file) {
            b"standard input".to_vec()
        } else {
            file.as_os_str().as_bytes().to_vec()
        }
    };
    let names: Vec<_> = args.files.iter().map(name).collect();
    let recordings = args.files.iter().map(|file| replay::open(file));
    let recordings = recordings.collect::<Result<Vec<_>, _>>()?;
    for (file, recording) in args.files.iter().zip(&recordings) {
        account(file, recording);
    }
    if !args.diff {
        let all: usize = recordings.iter().map(|recording| recording.places.len()).sum();
        let copies = all - report::blocks(&recordings).count();
        if copies != 0 {
            let s = if copies == 1 { "" } else { "s" };
            say(format_args!(
                "memtrace: {copies} block{s} in several of the files: each counts once"
            ));
        }
    }
    let has_none = |recording: &Recording| !recording.meta.stacks && !recording.meta.user_stacks;
    if (args.folded || args.flame.is_some()) && recordings.iter().all(has_none) {
        for (file, recording) in args.files.iter().zip(&recordings) {
            replay::say_no_stacks(replay::shown_name(file), &recording.meta, (true, false));
        }
    }
    let sources = Sources { files: &args.files, recordings, has_said: Cell::new(false) };
    files.write(&sources, &names)?;
    match args {
        Report { diff: true, .. } => diff(args, &sources, names),
        Report { csv: true, .. } => print_csv(&sources),
        Report { folded: true, .. } => print_folded(&sources),
        Report { json: false, .. } if files.are_any() => Ok(()),
        _ => findings(args, &sources, &names),
    }
}

/// Recordings, of which one output after the other is made.
struct Sources<'a> {
    /// What they go by.
    files: &'a [PathBuf],
    recordings: Vec<Recording>,
    /// Whether it was said which of them are damaged.
    has_said: Cell<bool>,
}

impl Sources<'_> {
    /// Makes something of the recordings, and says once what of them had to be left out. A bar shows how far it is, if
    /// there may be one.
    fn make<T>(
        &self,
        has_bar: bool,
        work: impl FnOnce(&[Recording], &AtomicU64) -> Result<(T, LeftOut)>,
    ) -> Result<T> {
        let blocks = self.recordings.iter().map(|recording| recording.places.len() as u64);
        let blocks = has_bar.then(|| blocks.sum());
        let (made, left_out) = with_bar(blocks, |done| work(&self.recordings, done))?;
        if !self.has_said.get() {
            for (file, blocks) in self.files.iter().zip(left_out) {
                replay::say_damaged(file, blocks);
                self.has_said.set(self.has_said.get() || blocks != 0);
            }
        }
        Ok(made)
    }
}

/// Text or JSON of all recordings together.
fn findings(args: &Report, sources: &Sources<'_>, names: &[Vec<u8>]) -> Result<()> {
    let most = args.top as usize;
    let findings = sources.make(true, |recordings, done| {
        let findings = Findings::gather(recordings, names, most, done);
        let left_out = findings.recordings.iter().map(|recorded| recorded.damaged_blocks).collect();
        Ok((findings, left_out))
    })?;
    let mut lines = Vec::new();
    if args.json {
        findings.json(&mut lines);
    } else {
        let zone = if args.utc { TimeZone::UTC } else { TimeZone::system() };
        findings.text(&zone, &mut lines);
    }
    print(|out| out.write_all(&lines))
}

/// Text or JSON of two recordings side by side.
fn diff(args: &Report, sources: &Sources<'_>, names: Vec<Vec<u8>>) -> Result<()> {
    let most = args.top as usize;
    let diff = sources.make(true, |recordings, done| {
        let (Ok(names), [before, after]) = (<[_; 2]>::try_from(names), recordings) else {
            bail!("--diff compares two recordings");
        };
        let diff = Diff::gather([before, after], &names, most, done);
        let left_out = [&diff.before, &diff.after].map(|recorded| recorded.damaged_blocks);
        Ok((diff, left_out.into()))
    })?;
    let mut lines = Vec::new();
    if args.json {
        diff.json(&mut lines);
    } else {
        diff.text(&mut lines);
    }
    print(|out| out.write_all(&lines))
}

/// Writes an export of recordings, and counts the blocks as they are done.
type WriteExport<'a> = dyn Fn(&[Recording], &AtomicU64, &mut dyn Write) -> io::Result<LeftOut> + 'a;

/// The files that are going to be written.
#[derive(Debug, Default)]
struct Files {
    html: Option<OutFile>,
    perfetto: Option<OutFile>,
    flame: Option<FlameFile>,
    hlog: Option<OutFile>,
}

impl Files {
    fn prepare(args: &Report) -> Result<Self> {
        let prepare = |name: &Option<PathBuf>, what| {
            name.as_ref().map(|name| OutFile::prepare(name, what)).transpose()
        };
        let title = "memtrace report".to_owned();
        let files = Self {
            html: prepare(&args.html, "a page")?,
            perfetto: prepare(&args.perfetto, "a trace")?,
            flame: args.flame.as_ref().map(|name| FlameFile::prepare(name, title)).transpose()?,
            hlog: prepare(&args.hlog, "a histogram log")?,
        };
        let Self { html, perfetto, flame, hlog } = &files;
        let flame = flame.as_ref().map(|flame| &flame.file);
        let all = [html.as_ref(), perfetto.as_ref(), flame, hlog.as_ref()];
        let all: Vec<_> = all.into_iter().flatten().collect();
        for (number, file) in all.iter().enumerate() {
            if all[..number].iter().any(|other| other.is_same(file)) {
                bail!(
                    "several outputs would be written to `{}`: give each a name of its own",
                    file.name.display()
                );
            }
        }
        Ok(files)
    }

    fn are_any(&self) -> bool {
        let Self { html, perfetto, flame, hlog } = self;
        html.is_some() || perfetto.is_some() || flame.is_some() || hlog.is_some()
    }

    fn write(&self, sources: &Sources<'_>, names: &[Vec<u8>]) -> Result<()> {
        let Self { html, perfetto, flame, hlog } = self;
        let page = |recordings: &[Recording], done: &AtomicU64, out: &mut dyn Write| {
            html::write(recordings, names, done, out)
        };
        let outputs: [(_, &WriteExport<'_>); 3] =
            [(html, &page), (perfetto, &perfetto::write), (hlog, &hlog::write)];
        for (file, write) in outputs {
            let Some(file) = file else { continue };
            sources.make(true, |recordings, done| {
                let mut left_out = LeftOut::new();
                file.write(|out| {
                    left_out = write(recordings, done, out)?;
                    Ok(())
                })?;
                Ok(((), left_out))
            })?;
        }
        if let Some(file) = flame {
            file.write(
                &sources.make(true, |recordings, done| Ok(stacks::fold(recordings, done)))?,
            )?;
        }
        Ok(())
    }
}

/// Says what of a recording is not there.
fn account(file: &Path, recording: &Recording) {
    // That it was bounded is in the report.
    let missing = Missing { dropped: 0, ..recording.missing };
    if let Some(line) = replay::missing(&missing) {
        say(format_args!("memtrace: {}: {line}", replay::shown_name(file)));
    }
}

/// Prints to standard output. Where nobody reads on, as behind `head`, that is an end like any other, and gives nothing.
fn print<T: Default>(content: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> Result<T> {
    let mut out = BufWriter::new(io::stdout().lock());
    match content(&mut out).and_then(|printed| out.flush().map(|()| printed)) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // Nothing is tried once more.
            let (_stdout, _rest) = out.into_parts();
            Ok(T::default())
        }
        printed => printed.context("cannot write to standard output"),
    }
}

/// Prints every stall, as they are read.
fn print_csv(sources: &Sources<'_>) -> Result<()> {
    // Lines that someone looks at show how far it is, and a bar would come in between.
    let has_bar = output::is_file();
    sources
        .make(has_bar, |recordings, done| Ok(((), print(|out| csv::write(recordings, done, out))?)))
}

/// Writes lines as they come.
struct Lines<'a> {
    waiting: Vec<u8>,
    out: &'a mut dyn Write,
    written: io::Result<()>,
}

/// Bytes that are written at once.
const AT_ONCE: usize = 64 << 10;

impl Sink for Lines<'_> {
    fn lines(&mut self) -> &mut Vec<u8> {
        &mut self.waiting
    }

    fn make_room(&mut self) -> bool {
        if self.waiting.len() >= AT_ONCE {
            if self.written.is_ok() {
                self.written = self.out.write_all(&self.waiting);
            }
            self.waiting.clear();
        }
        true
    }
}

/// Prints the time by stack.
fn print_folded(sources: &Sources<'_>) -> Result<()> {
    let folded = sources.make(true, |recordings, done| Ok(stacks::fold(recordings, done)))?;
    print(|out| write_folded(&folded, out))
}

fn write_folded(folded: &Folded, out: &mut dyn Write) -> io::Result<()> {
    let mut lines = Lines { waiting: Vec::new(), out, written: Ok(()) };
    folded.show(&mut lines);
    let Lines { waiting, out, written } = lines;
    written.and_then(|()| out.write_all(&waiting))
}
