//! The load that makes memcg reclaim happen: threads write and read a file larger than the memory
//! limit of the cgroup that they are in, so every new page makes the kernel drop an old one.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    num::NonZeroU64,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Advice, Mode, OFlags, fadvise};

/// Bytes read or written at once.
const CHUNK: usize = 256 << 10;

/// Chunks after which a thread of [`Lifetime::Brief`] ends: some milliseconds.
const BRIEF_CHUNKS: u64 = 16;

/// One pass in so many writes, the others read.
const WRITING_PASSES: u64 = 4;

/// What a thread does to its file, from the begin to the end again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Write it, and then read it three times.
    WriteAndRead,
    /// Write it once, and then read it.
    Read,
    /// Write it, and never wait for the disk.
    Write,
}

/// File systems that keep files in memory: there is nothing to reclaim in their pages without swap.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// How long the threads live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the load.
    Whole,
    /// Some milliseconds, then another one takes over.
    Brief,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Churn {
    /// What each of the threads does to its file.
    pub passes: Passes,
    /// How long each of them lives.
    pub lifetime: Lifetime,
    /// Their name, if not the program's.
    pub comm: Option<CString>,
    /// When to stop.
    pub duration: Duration,
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Bytes read and written.
    pub bytes: u64,
    /// Threads that took part.
    pub threads: u64,
    /// How long it took.
    pub took: Duration,
}

/// The files that are churned, one for each thread. They have no names, so they are gone when this
/// process is.
#[derive(Debug)]
pub struct Scratch {
    files: Vec<File>,
    chunks: u64,
}

impl Scratch {
    /// Makes `files` empty files in `dir`, to become `size` bytes long altogether.
    pub fn new(dir: &Path, files: usize, size: u64) -> Result<Self> {
        let kind = rustix::fs::statfs(dir)
            .with_context(|| format!("no directory `{}`", dir.display()))?
            .f_type;
        if [TMPFS_MAGIC, RAMFS_MAGIC].contains(&u64::try_from(kind).unwrap_or_default()) {
            bail!(
                "`{}` keeps its files in memory, which cannot be reclaimed: name a directory on a disk",
                dir.display()
            );
        }
        let chunks = (size / CHUNK as u64).div_ceil(files as u64).max(1);
        let files = (0..files).map(|_| nameless(dir)).collect::<Result<Vec<_>>>()?;
        for file in &files {
            // What is read ahead cannot be reclaimed yet, and where that is all that a small cgroup
            // has, the kernel kills.
            fadvise(file, 0, None, Advice::Random).context("cannot switch reading ahead off")?;
        }
        Ok(Self { files, chunks })
    }
}

fn nameless(dir: &Path) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(File::from(file)),
        // Some file systems have no nameless files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => unlinked(dir),
        Err(err) => Err(err).with_context(|| format!("cannot make a file in `{}`", dir.display())),
    }
}

fn unlinked(dir: &Path) -> Result<File> {
    let path = dir.join(format!("memload-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("cannot make `{}`", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    Ok(file)
}

impl Churn {
    /// Works on the `scratch` files, one for each thread, until the duration is over or `stop` is
    /// set.
    ///
    /// Calls `ready` when the threads are there, and lets them begin when it returns; those of
    /// [`Lifetime::Brief`] come after it.
    pub fn run(&self, scratch: &Scratch, stop: &AtomicBool, ready: impl FnOnce()) -> Result<Done> {
        let work = Work {
            churn: self,
            chunks: scratch.chunks,
            stop,
            bytes: AtomicU64::new(0),
            threads: AtomicU64::new(0),
        };
        let (all_here, go) =
            (Barrier::new(scratch.files.len() + 1), Barrier::new(scratch.files.len() + 1));
        thread::scope(|scope| {
            let start_worker = |file| {
                let (work, all_here, go) = (&work, &all_here, &go);
                thread::Builder::new().spawn_scoped(scope, move || {
                    let named = work.name();
                    all_here.wait();
                    go.wait();
                    named?;
                    let begin = Instant::now();
                    match work.churn.lifetime {
                        Lifetime::Whole => work.whole(begin, file),
                        Lifetime::Brief => work.brief(begin, file),
                    }
                })
            };
            let workers: Vec<_> = scratch
                .files
                .iter()
                .map(start_worker)
                .collect::<io::Result<_>>()
                .context("cannot start a thread")?;
            all_here.wait();
            ready();
            let start = Instant::now();
            go.wait();
            for worker in workers {
                let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result.context("cannot churn the file")?;
            }
            Ok(Done {
                bytes: work.bytes.load(Ordering::Relaxed),
                threads: work.threads.load(Ordering::Relaxed),
                took: start.elapsed(),
            })
        })
    }
}

/// What the threads share.
struct Work<'a> {
    churn: &'a Churn,
    chunks: u64,
    stop: &'a AtomicBool,
    bytes: AtomicU64,
    threads: AtomicU64,
}

impl Work<'_> {
    fn name(&self) -> io::Result<()> {
        let Some(comm) = &self.churn.comm else { return Ok(()) };
        rustix::thread::set_name(comm)?;
        Ok(())
    }

    fn over(&self, begin: Instant) -> bool {
        self.stop.load(Ordering::Relaxed) || begin.elapsed() >= self.churn.duration
    }

    /// One thread for the whole time.
    fn whole(&self, begin: Instant, file: &File) -> io::Result<()> {
        self.threads.fetch_add(1, Ordering::Relaxed);
        let mut buffer = vec![0xa5; CHUNK];
        for number in 0.. {
            if self.over(begin) {
                break;
            }
            self.chunk(number, file, &mut buffer)?;
        }
        Ok(())
    }

    /// One thread after the other.
    fn brief(&self, begin: Instant, file: &File) -> io::Result<()> {
        for round in 0.. {
            if self.over(begin) {
                break;
            }
            self.threads.fetch_add(1, Ordering::Relaxed);
            thread::scope(|scope| {
                let work = || {
                    self.name()?;
                    let mut buffer = vec![0xa5; CHUNK];
                    let first = round * BRIEF_CHUNKS;
                    (first..first + BRIEF_CHUNKS)
                        .try_for_each(|number| self.chunk(number, file, &mut buffer))
                };
                let worker = thread::Builder::new().spawn_scoped(scope, work)?;
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
        }
        Ok(())
    }

    /// Reads or writes chunk `number` of the file, which is gone through again and again.
    fn chunk(&self, number: u64, file: &File, buffer: &mut [u8]) -> io::Result<()> {
        let size = buffer.len() as u64;
        let (pass, at) = (number / self.chunks, number % self.chunks * size);
        let writes = match self.churn.passes {
            Passes::WriteAndRead => pass.is_multiple_of(WRITING_PASSES),
            Passes::Read => pass == 0,
            Passes::Write => true,
        };
        if writes {
            file.write_all_at(buffer, at)?;
        } else {
            file.read_exact_at(buffer, at)?;
        }
        if writes && self.churn.passes != Passes::Write {
            // Cgroup v1 lets a cgroup fill up with dirty pages, and then finds none to reclaim.
            file.sync_data()?;
        }
        if self.churn.passes == Passes::Read && writes {
            // Nothing is in memory when the reading begins.
            fadvise(file, at, NonZeroU64::new(size), Advice::DontNeed)?;
        }
        self.bytes.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }
}
