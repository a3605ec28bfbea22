//! `memtrace report`: reads recordings and shows what they come to.

use std::{
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::tz::TimeZone;
use memtrace::{
    recording::{Missing, Recording},
    report::{self, Diff, Findings, csv, hlog, html, perfetto, stacks},
    text::Printable,
    view::{Folded, Sink},
};

use crate::{cli::Report, file::OutFile, flame::FlameFile, output::say, replay};

/// How long it takes until there is a bar to look at.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the bar is drawn.
const REDRAW: Duration = Duration::from_millis(100);

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
    files.write(&recordings)?;
    match args {
        Report { diff: true, .. } => diff(args, &recordings, names),
        Report { csv: true, .. } => print(|out| csv::write(&recordings, out)),
        Report { folded: true, .. } => print(|out| print_folded(&stacks::fold(&recordings), out)),
        Report { json: false, .. } if files.are_any() => Ok(()),
        _ => findings(args, &recordings, &names),
    }
}

/// Text or JSON of all recordings together.
fn findings(args: &Report, recordings: &[Recording], names: &[Vec<u8>]) -> Result<()> {
    let most = args.top as usize;
    let findings = with_bar(recordings, |done| Findings::gather(recordings, names, most, done));
    for recorded in &findings.recordings {
        damaged(&recorded.file, recorded.unreadable_blocks);
    }
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
fn diff(args: &Report, recordings: &[Recording], names: Vec<Vec<u8>>) -> Result<()> {
    let (Ok(names), [before, after]) = (<[_; 2]>::try_from(names), recordings) else {
        bail!("--diff compares two recordings");
    };
    let most = args.top as usize;
    let diff = with_bar(recordings, |done| Diff::gather([before, after], &names, most, done));
    for recorded in [&diff.before, &diff.after] {
        damaged(&recorded.file, recorded.unreadable_blocks);
    }
    let mut lines = Vec::new();
    if args.json {
        diff.json(&mut lines);
    } else {
        diff.text(&mut lines);
    }
    print(|out| out.write_all(&lines))
}

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
        Ok(Self {
            html: prepare(&args.html, "a page")?,
            perfetto: prepare(&args.perfetto, "a trace")?,
            flame: args.flame.as_ref().map(|name| FlameFile::prepare(name, title)).transpose()?,
            hlog: prepare(&args.hlog, "a histogram log")?,
        })
    }

    fn are_any(&self) -> bool {
        let Self { html, perfetto, flame, hlog } = self;
        html.is_some() || perfetto.is_some() || flame.is_some() || hlog.is_some()
    }

    fn write(&self, recordings: &[Recording]) -> Result<()> {
        let Self { html, perfetto, flame, hlog } = self;
        if let Some(file) = html {
            with_bar(recordings, |done| file.write(|out| html::write(recordings, done, out)))?;
        }
        if let Some(file) = perfetto {
            file.write(|out| perfetto::write(recordings, out))?;
        }
        if let Some(file) = flame {
            file.write(&stacks::fold(recordings))?;
        }
        if let Some(file) = hlog {
            file.write(|out| hlog::write(recordings, out))?;
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

/// Says how many blocks were found not to be readable.
fn damaged(name: &[u8], blocks: u64) {
    if blocks != 0 {
        let (name, s) = (Printable(name), if blocks == 1 { "" } else { "s" });
        say(format_args!("memtrace: `{name}` is damaged in part: {blocks} block{s} left out"));
    }
}

/// Does something that counts the blocks as they are done, with a bar that shows how far it is if that takes long.
fn with_bar<T>(recordings: &[Recording], work: impl FnOnce(&AtomicU64) -> T) -> T {
    let done = AtomicU64::new(0);
    if !io::stderr().is_terminal() {
        return work(&done);
    }
    let all = recordings.iter().map(|recording| recording.places.len() as u64).sum();
    let (ended, end) = mpsc::channel::<()>();
    let counted = &done;
    thread::scope(|scope| {
        scope.spawn(move || show_bar(all, counted, &end));
        let result = work(counted);
        drop(ended);
        result
    })
}

fn show_bar(all: u64, done: &AtomicU64, end: &mpsc::Receiver<()>) {
    if end.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let bar = ProgressBar::new(all);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent} % of {len} blocks, {eta}") {
        bar.set_style(style);
    }
    while end.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
        bar.set_position(done.load(Ordering::Relaxed));
    }
    bar.finish_and_clear();
}

/// Prints to standard output. Where nobody reads on, as behind `head`, that is an end like any other.
fn print(content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match content(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // Nothing is tried once more.
            let (_stdout, _rest) = out.into_parts();
            Ok(())
        }
        written => written.context("cannot write to standard output"),
    }
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

    fn pause(&mut self) {
        if self.waiting.len() >= AT_ONCE {
            if self.written.is_ok() {
                self.written = self.out.write_all(&self.waiting);
            }
            self.waiting.clear();
        }
    }
}

fn print_folded(folded: &Folded, out: &mut dyn Write) -> io::Result<()> {
    let mut lines = Lines { waiting: Vec::new(), out, written: Ok(()) };
    folded.show(&mut lines);
    let Lines { waiting, out, written } = lines;
    written.and_then(|()| out.write_all(&waiting))
}
