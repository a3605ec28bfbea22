//! Files that a memtrace which did not come to its end has left half written: what they have can be read, so they get the
//! names that they would have had.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use memtrace::recording::{ReadError, Recording, file::MAGIC};
use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, flock, fstat, openat, statat},
    process::geteuid,
};

use super::directory::{Directory, PART_PREFIX, PART_SUFFIX, is_stem};

/// What comes of a part that nobody writes any more.
enum Left {
    /// A recording, as far as it goes.
    Recording,
    /// Begun, and nothing written.
    Nothing,
    /// Nothing that memtrace knows.
    Other,
}

impl Directory {
    /// Completes the parts that nobody writes any more, and removes those with nothing in them; gives the names that they
    /// have now. What is not memtrace's own, or cannot be touched, stays.
    pub fn complete_abandoned(&self) -> io::Result<Vec<String>> {
        let mut parts = Vec::new();
        self.each_file(|name| {
            let stem = name.strip_prefix(PART_PREFIX).and_then(|it| it.strip_suffix(PART_SUFFIX));
            parts.extend(stem.filter(|stem| is_stem(stem)).map(str::to_owned));
        })?;
        // In their order, as numbers are given by it.
        parts.sort_unstable();
        Ok(parts.iter().filter_map(|stem| self.take_over(stem).ok().flatten()).collect())
    }

    fn take_over(&self, stem: &str) -> io::Result<Option<String>> {
        let name = format!("{PART_PREFIX}{stem}{PART_SUFFIX}");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(self.descriptor(), &name, flags, Mode::empty())?);
        let stat = fstat(&file)?;
        let is_own = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_uid == geteuid().as_raw();
        // Whoever writes it has it locked, and it is locked here until it has its name.
        if !is_own || flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        // It may have got its name before it was locked here, and another one this. From now on nobody renames it.
        let named = statat(self.descriptor(), &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (named.st_dev, named.st_ino) != (stat.st_dev, stat.st_ino) {
            return Ok(None);
        }
        match left(&file)? {
            Left::Recording => self.complete_as(&name, stem).map(Some),
            Left::Nothing => self.remove(&name).map(|()| None),
            Left::Other => Ok(None),
        }
    }
}

fn left(file: &File) -> io::Result<Left> {
    match Recording::open(file.try_clone()?) {
        Ok(_) => Ok(Left::Recording),
        Err(ReadError::Header(_)) => Ok(Left::Nothing),
        Err(ReadError::NotARecording) => {
            let mut front = [0; MAGIC.len()];
            let len = file.read_at(&mut front, 0)?;
            // After a power cut a file may have its length without what was written.
            let is_begun =
                MAGIC.starts_with(&front[..len]) || front[..len].iter().all(|it| *it == 0);
            Ok(if is_begun { Left::Nothing } else { Left::Other })
        }
        Err(ReadError::Newer(_) | ReadError::Compressed(_) | ReadError::Io(_)) => Ok(Left::Other),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use anyhow::Result;
    use memtrace::recording::{Meta, file::header};

    use super::*;

    fn names(of: &Path) -> Vec<String> {
        let entries = fs::read_dir(of).expect("it is there").map(|entry| entry.expect("readable"));
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    #[test]
    fn what_can_be_read_gets_its_name_and_nothing_is_lost() -> Result<()> {
        let parent = tempfile::tempdir()?;
        let write = |name: &str, bytes: &[u8]| fs::write(parent.path().join(name), bytes);
        let whole = header(&Meta::default());
        let newer = [&whole[..8], &[9], &whole[9..]].concat();
        write(".memtrace-20250101T000000Z-oom.part", &whole)?;
        write("memtrace-20250101T000000Z-oom.mtr", b"it has the name already")?;
        write(".memtrace-20250102T000000Z-p99.9.part", &[&whole[..], b"half a block"].concat())?;
        for (name, bytes) in [("empty", &b""[..]), ("cut", &whole[..30]), ("zeros", &[0; 4096])] {
            write(&format!(".memtrace-20250103T000000Z-{name}.part"), bytes)?;
        }
        let stay = [
            (".memtrace-20250104T000000Z-newer.part", &newer[..]),
            (".memtrace-20250104T000000Z-other.part", b"dear diary"),
            (".memtrace-notes.part", &whole),
            (".memtrace-20250104T000000Z-oom.parts", &whole),
        ];
        for (name, bytes) in stay {
            write(name, bytes)?;
        }
        fs::create_dir(parent.path().join(".memtrace-20250105T000000Z-oom.part"))?;
        let directory = Directory::prepare(parent.path())?;
        // That of a memtrace that runs.
        let (running, file) = directory.begin("2026-01-01T00:00:00Z".parse()?, "oom")?;
        file.write_all_at(&whole, 0)?;

        let completed = [
            "memtrace-20250101T000000Z-oom-2.mtr".to_owned(),
            "memtrace-20250102T000000Z-p99.9.mtr".to_owned(),
        ];
        let other = Directory::prepare(parent.path())?;
        assert_eq!(other.complete_abandoned()?, completed);
        assert_eq!(other.complete_abandoned()?, [""; 0]);
        let mut left: Vec<_> = stay.map(|(name, _)| name.to_owned()).into();
        left.extend(completed);
        left.push("memtrace-20250101T000000Z-oom.mtr".to_owned());
        left.push(".memtrace-20250105T000000Z-oom.part".to_owned());
        left.push(running.name.clone());
        left.sort();
        assert_eq!(names(parent.path()), left);
        assert!(Recording::open(File::open(parent.path().join(&left[left.len() - 1]))?).is_ok());

        // The descriptor that was written to is closed before the file has its name.
        drop(file);
        assert_eq!(other.complete_abandoned()?, [""; 0], "it is not complete yet");
        drop(running);
        assert_eq!(other.complete_abandoned()?, ["memtrace-20260101T000000Z-oom.mtr"]);
        Ok(())
    }
}
