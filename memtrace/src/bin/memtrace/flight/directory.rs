//! The directory that recordings are written into, which is open from the beginning: names of files are looked up
//! in it alone, and no link is followed.

use std::{
    fs::{self, File},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{self, Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use rustix::{
    fs::{
        AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Stat,
        flock, fstat, openat, renameat, renameat_with, seek, statat, unlinkat,
    },
    io::Errno,
    thread::CapabilitySet,
};

use crate::flame;

const PREFIX: &str = "memtrace-";
const SUFFIX: &str = ".mtr";
/// What files are called until they are complete.
pub const PART_PREFIX: &str = ".memtrace-";
pub const PART_SUFFIX: &str = ".part";
/// In the name of the file that tells whether one can be written.
const TEST: &str = "test";
/// Most files of the same second and cause.
const MOST_ALIKE: u32 = 1000;

/// Where recordings are written.
#[derive(Debug)]
pub struct Directory {
    /// As it was given, from the root: for those who look for a file.
    path: PathBuf,
    descriptor: OwnedFd,
}

/// What a file is called until it is complete, and what its name is going to have in it.
#[derive(Debug)]
pub struct Part {
    pub name: String,
    stem: String,
    /// Tells others that it is someone's: it is locked until this is closed.
    _lock: OwnedFd,
}

impl Directory {
    /// Makes it where it is missing, and finds out whether it can be written to.
    pub fn prepare(name: &Path) -> Result<Self> {
        let what = || format!("cannot write recordings into `{}`", name.display());
        if fs::metadata(name).is_ok_and(|metadata| !metadata.is_dir()) {
            bail!("{}: it is not a directory, as -o has to be with --trigger", what());
        }
        Self::open(name).with_context(what)
    }

    fn open(name: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).create(name)?;
        let path = path::absolute(name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = Self { descriptor: openat(CWD, &path, flags, Mode::empty())?, path };
        let (part, _) = directory.create(TEST)?;
        directory.remove(&part.name)?;
        Ok(directory)
    }

    /// For looking names up in it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The capabilities without which nothing can be written into it.
    pub fn needs(&self) -> CapabilitySet {
        flame::needs(&self.descriptor, Path::new("."))
    }

    /// Begins a file of this time and cause.
    pub fn begin(&self, at: Timestamp, slug: &str) -> io::Result<(Part, File)> {
        self.create(&format!("{}-{slug}", at.strftime("%Y%m%dT%H%M%SZ")))
    }

    fn create(&self, stem: &str) -> io::Result<(Part, File)> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        first_free(|number| {
            let name = format!("{PART_PREFIX}{stem}{number}{PART_SUFFIX}");
            let file = openat(&self.descriptor, &name, flags, Mode::RUSR | Mode::WUSR)?;
            let is_taken =
                flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK);
            // One that starts may have taken it for abandoned before it was locked.
            if is_taken || fstat(&file)?.st_nlink == 0 {
                return Err(Errno::EXIST);
            }
            let lock = rustix::io::fcntl_dupfd_cloexec(&file, 0)?;
            Ok((Part { name, stem: stem.to_owned(), _lock: lock }, file.into()))
        })
    }

    /// Gives a file its name, now that it is complete.
    pub fn complete(&self, part: &Part) -> io::Result<String> {
        self.complete_as(&part.name, &part.stem)
    }

    /// Gives the part of this name the one that has `stem` in it.
    pub fn complete_as(&self, part: &str, stem: &str) -> io::Result<String> {
        first_free(|number| {
            let name = format!("{PREFIX}{stem}{number}{SUFFIX}");
            self.rename(part, &name)?;
            Ok(name)
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        let at = &self.descriptor;
        match renameat_with(at, from, at, to, RenameFlags::NOREPLACE) {
            // A file system that cannot do it at once.
            Err(Errno::INVAL | Errno::NOSYS) => match self.stat(to) {
                Err(Errno::NOENT) => renameat(at, from, at, to),
                Err(error) => Err(error),
                Ok(_) => Err(Errno::EXIST),
            },
            done => done,
        }
    }

    fn stat(&self, name: &str) -> Result<Stat, Errno> {
        statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.descriptor, name, AtFlags::empty())?)
    }

    /// Removes the oldest recordings that triggers have made, until there are `most` with those that `stay` whatever
    /// their age.
    pub fn keep(&self, most: usize, stay: &[&str]) -> io::Result<()> {
        let mut others = Vec::new();
        self.each_file(|name| {
            if let Some(age) = Age::of(name).filter(|_| !stay.contains(&name)) {
                others.push((age, name.to_owned()));
            }
        })?;
        others.sort_unstable();
        let left = most.saturating_sub(stay.len());
        let too_many = others.len().saturating_sub(left);
        // All that can be, although one cannot.
        let removed = others.iter().take(too_many).map(|(_, name)| self.remove(name));
        removed.fold(Ok(()), Result::and)
    }

    /// Shows the names of all regular files in it that are UTF-8, as memtrace's are.
    pub fn each_file(&self, mut show: impl FnMut(&str)) -> io::Result<()> {
        seek(&self.descriptor, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&self.descriptor, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let is_file = match entry.file_type() {
                FileType::Unknown => self.stat(name).is_ok_and(|stat| {
                    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                }),
                known => known == FileType::RegularFile,
            };
            if is_file {
                show(name);
            }
        }
        Ok(())
    }
}

/// Whether memtrace gives files names with this in them, or tries with it whether it can.
pub fn is_stem(stem: &str) -> bool {
    stem == TEST || Age::of(&format!("{PREFIX}{stem}{SUFFIX}")).is_some()
}

/// Tries names until one is free: with no number, then from 2 on.
fn first_free<T>(mut attempt: impl FnMut(&str) -> Result<T, Errno>) -> io::Result<T> {
    let mut number = String::new();
    for next in 2..MOST_ALIKE {
        match attempt(&number) {
            Err(Errno::EXIST) => number = format!("-{next}"),
            done => return Ok(done?),
        }
    }
    Err(Errno::EXIST.into())
}

/// By which of two recordings that triggers made the older one comes first: the time in its name, and the number
/// after it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Age(String, u32);

impl Age {
    /// Nothing for files of other names.
    fn of(name: &str) -> Option<Self> {
        let (time, slug) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
        let is_time = time.len() == 16
            && time.bytes().enumerate().all(|(at, byte)| match at {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            });
        let is_slug =
            slug.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'));
        let number = slug.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
        (is_time && is_slug && !slug.is_empty()).then(|| Self(time.to_owned(), number.unwrap_or(1)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use rustix::process::geteuid;

    use super::*;

    fn at() -> Timestamp {
        "2026-11-23T15:17:02.9Z".parse().expect("a time")
    }

    fn names(of: &Path) -> Vec<String> {
        let entries = fs::read_dir(of).expect("it is there").map(|entry| entry.expect("readable"));
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_when_it_is_complete() -> Result<()> {
        let parent = tempfile::tempdir()?;
        let path = parent.path().join("a/b");
        let directory = Directory::prepare(&path)?;
        assert_eq!(names(&path), [""; 0], "the test is left");
        for expected in [
            "memtrace-20261123T151702Z-p99.9.mtr",
            "memtrace-20261123T151702Z-p99.9-2.mtr",
            "memtrace-20261123T151702Z-p99.9-3.mtr",
        ] {
            let (part, file) = directory.begin(at(), "p99.9")?;
            assert_eq!(part.name, ".memtrace-20261123T151702Z-p99.9.part");
            assert_eq!(file.metadata()?.permissions().mode() & 0o7777, 0o600);
            assert_eq!(directory.complete(&part)?, expected);
            assert!(Age::of(expected).is_some());
        }
        assert_eq!(names(&path).len(), 3);
        Ok(())
    }

    #[test]
    fn no_file_is_written_through_a_link_or_replaced() -> Result<()> {
        let parent = tempfile::tempdir()?;
        let directory = Directory::prepare(parent.path())?;
        let victim = parent.path().join("victim");
        fs::write(&victim, "mine")?;
        symlink(&victim, parent.path().join(".memtrace-20261123T151702Z-oom.part"))?;
        symlink(&victim, parent.path().join("memtrace-20261123T151702Z-oom.mtr"))?;
        let (part, _) = directory.begin(at(), "oom")?;
        assert_eq!(part.name, ".memtrace-20261123T151702Z-oom-2.part");
        assert_eq!(directory.complete(&part)?, "memtrace-20261123T151702Z-oom-2.mtr");
        assert_eq!(fs::read(&victim)?, b"mine");
        Ok(())
    }

    #[test]
    fn the_oldest_are_removed_and_nothing_else() -> Result<()> {
        let parent = tempfile::tempdir()?;
        let directory = Directory::prepare(parent.path())?;
        let others = [
            "memtrace-20250101T000000Z-.mtr",
            "memtrace-20250101T000000Z-oom.mtr.bak",
            "memtrace-20250101T000000-oom.mtr",
            "memtrace-before.mtr",
            "other-20250101T000000Z-oom.mtr",
        ];
        let recordings = [
            "memtrace-20260101T000000Z-psi-some-avg10.mtr",
            "memtrace-20260102T000000Z-oom.mtr",
            "memtrace-20260102T000000Z-oom-2.mtr",
            "memtrace-20260102T000000Z-oom-10.mtr",
        ];
        for name in others.iter().chain(&recordings) {
            fs::write(parent.path().join(name), "")?;
        }
        fs::create_dir(parent.path().join("memtrace-20250101T000000Z-rate.mtr"))?;
        symlink("victim", parent.path().join("memtrace-20250101T000000Z-latency.mtr"))?;
        let kept = |most, new| {
            directory.keep(most, &[new])?;
            let names = names(parent.path()).into_iter();
            anyhow::Ok(names.filter(|name| recordings.contains(&&**name)).collect::<Vec<_>>())
        };
        assert_eq!(kept(4, recordings[3])?.len(), 4);
        assert_eq!(kept(3, recordings[3])?, [recordings[3], recordings[2], recordings[1]]);
        // The clock was set back: the new one seems to be the oldest.
        assert_eq!(kept(2, recordings[1])?, [recordings[3], recordings[1]]);
        assert_eq!(kept(1, recordings[1])?, [recordings[1]]);
        // The one before is being read.
        fs::write(parent.path().join(recordings[0]), "")?;
        fs::write(parent.path().join(recordings[3]), "")?;
        directory.keep(1, &[recordings[3], recordings[0]])?;
        assert_eq!(kept(9, recordings[3])?, [recordings[0], recordings[3]]);
        directory.keep(1, &[])?;
        assert_eq!(kept(9, recordings[3])?, [recordings[3]]);
        assert_eq!(names(parent.path()).len(), others.len() + 3);
        Ok(())
    }

    #[test]
    fn what_cannot_be_written_to_is_refused() -> Result<()> {
        let parent = tempfile::tempdir()?;
        let file = parent.path().join("file");
        fs::write(&file, "")?;
        for name in [&file, &file.join("below"), Path::new("/proc/self")] {
            let error = Directory::prepare(name).expect_err("it cannot be");
            assert!(error.to_string().contains("cannot write recordings into `"), "{error}");
        }
        let error = Directory::prepare(&file).expect_err("it is a file").to_string();
        assert!(
            error.ends_with("it is not a directory, as -o has to be with --trigger"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn root_needs_a_capability_for_others_directories() -> Result<()> {
        let parent = tempfile::tempdir()?;
        let directory = Directory::prepare(parent.path())?;
        assert_eq!(directory.needs(), CapabilitySet::empty());
        if geteuid().is_root() {
            std::os::unix::fs::chown(parent.path(), Some(65_534), None)?;
            assert_eq!(directory.needs(), CapabilitySet::DAC_OVERRIDE);
        }
        Ok(())
    }
}
