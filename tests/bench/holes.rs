//! A load without a disk: threads read files that have no contents, in a cgroup with less room than the files are long.
//! The kernel makes pages of zeros for them, and has to drop others for each.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use clap::Args;
use rustix::fs::{Advice, fadvise};

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// What to do.
#[derive(Args)]
pub struct Holes {
    /// Bytes of all files
    #[arg(long)]
    size: u64,
    /// Threads, each with a file of its own
    #[arg(long)]
    threads: u16,
    /// Where to put the files
    #[arg(long)]
    dir: PathBuf,
    /// Print `ready`, and begin when a line is read; the end of the input means to stop
    #[arg(long, required = true)]
    hold: bool,
}

/// Does it.
pub fn run(args: &Holes) -> Result<()> {
    let chunks = args.size / u64::from(args.threads) / CHUNK as u64;
    let file = |number| hole(&args.dir, number, chunks * CHUNK as u64);
    let files = (0..args.threads).map(file).collect::<Result<Vec<_>>>()?;
    let mut stdout = io::stdout();
    writeln!(stdout, "ready")
        .and_then(|()| stdout.flush())
        .context("cannot say that all is ready")?;
    let go = io::stdin().read(&mut [0]).context("cannot read the word to go")?;
    let stop = AtomicBool::new(go == 0);
    thread::scope(|scope| {
        let work = |file| {
            let stop = &stop;
            scope.spawn(move || read_over_and_over(file, chunks, stop))
        };
        let workers: Vec<_> = files.iter().map(work).collect();
        // Whatever comes, its end is what counts.
        let _read: io::Result<u64> = io::copy(&mut io::stdin(), &mut io::sink());
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().try_for_each(|worker| {
            let read = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            read.context("cannot read a file of holes")
        })
    })
}

fn hole(dir: &Path, number: u16, size: u64) -> Result<File> {
    let path = dir.join(format!("holes-{number}"));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.with_context(|| format!("cannot make `{}`", path.display()))?;
    file.set_len(size).with_context(|| format!("cannot make `{}` longer", path.display()))?;
    // Page by page, as the other load reads.
    fadvise(&file, 0, None, Advice::Random).context("cannot switch reading ahead off")?;
    Ok(file)
}

fn read_over_and_over(file: &File, chunks: u64, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    for chunk in (0..chunks).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        file.read_exact_at(&mut buffer, chunk * CHUNK as u64)?;
    }
    Ok(())
}
