//! The recording that a run makes of itself: what it took, and once a second what the system looked like.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _},
    mem,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use memtrace::{
    coverage::Coverage,
    live::{Event, Live, Losses, Request, Subject},
    names::Names,
    recording::{Counts, End, Looker, Meta, Note, Recorder, Store, file, meta::since_1970_ns},
    stall::Detail,
    verdict::{States as _, live::Live as LiveStates},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::geteuid,
};

use crate::{ids::Ids, output::say};

/// How often to look at the system, in nanoseconds.
const LOOK_EVERY_NS: u64 = 1_000_000_000;
/// Most cgroups to look at each time.
const MOST_CGROUPS: usize = 64;

/// A recording in the making.
pub struct Tape<S> {
    recorder: Recorder,
    looker: Looker,
    looked_ns: u64,
    /// The cgroups that stalled since the last look, and those that were reclaimed from.
    cgroups: Ids<u64>,
    targets: Ids<u64>,
    /// Whether states of targets are taken with the looks, as nothing else asks for them.
    takes_states: bool,
    pub sink: S,
}

/// Where finished blocks go.
pub trait Sink {
    /// Takes a block that was finished at `now_ns`.
    fn block(&mut self, block: &[u8], now_ns: u64) -> Result<()>;
}

/// A file of its own.
pub struct TapeFile {
    path: PathBuf,
    store: Store,
    /// Whether a block was left out for its length, which has been said.
    is_lacking: bool,
}

impl TapeFile {
    /// Begins a recording, in place of the one that may be there. What is no recording stays as it is.
    pub fn create(path: &Path, meta: &Meta, most: u64) -> Result<Self> {
        let what = || format!("cannot record to `{}`", path.display());
        let file = open_new(path).with_context(what)?;
        let store = Store::begin(file, meta, most).with_context(what)?;
        Ok(Self { path: path.to_owned(), store, is_lacking: false })
    }

    /// Whether the oldest stalls have given way to newer ones.
    pub fn has_wrapped(&self) -> bool {
        self.store.has_wrapped()
    }
}

impl Sink for TapeFile {
    fn block(&mut self, block: &[u8], _now_ns: u64) -> Result<()> {
        let is_there = self.store.append(block).with_context(|| {
            format!(
                "cannot go on recording to `{}`, which has what came before",
                self.path.display()
            )
        })?;
        if !is_there && !mem::replace(&mut self.is_lacking, true) {
            let (path, len) = (self.path.display(), block.len());
            say(format_args!(
                "memtrace: a block of {len} bytes has no room in `{path}`, and is left out: give a greater --max-size"
            ));
        }
        Ok(())
    }
}

/// Opens a file that is new, or one's own and empty or a recording, and makes it empty. As long as it is open, no other
/// memtrace does.
fn open_new(path: &Path) -> Result<File> {
    if path.is_dir() {
        bail!(
            "it is a directory: give the name of a file; only `memtrace record --trigger` takes a directory"
        );
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    // A pipe would be waited for, and a link may be anyone's.
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW);
    let mut file = match options.open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            bail!("it is a symbolic link; give the name of what it leads to");
        }
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("it is not a regular file; give the name of one");
    }
    // Its owner could read what is recorded, whatever the mode, and change it.
    if metadata.uid() != geteuid().as_raw() {
        let uid = metadata.uid();
        bail!("it is there and belongs to user {uid}; give another name or remove it");
    }
    // On a file system that has no locks it goes without.
    if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        bail!("another memtrace records to it; give another name");
    }
    if metadata.len() != 0 {
        let mut magic = [0; file::MAGIC.len()];
        let is_recording = file.read_exact(&mut magic).is_ok() && magic == file::MAGIC;
        if !is_recording {
            bail!("it is there and not a recording of memtrace; give another name or remove it");
        }
        file.set_len(0)?;
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

impl<S: Sink> Tape<S> {
    /// Begins. With `takes_states` those of what pages are reclaimed from come with the looks.
    pub fn new(sink: S, recorder: Recorder, takes_states: bool) -> Self {
        Self {
            recorder,
            looker: Looker::open(),
            looked_ns: 0,
            cgroups: Ids::new(MOST_CGROUPS),
            targets: Ids::new(MOST_CGROUPS),
            takes_states,
            sink,
        }
    }

    /// Whether an event is to be taken, see [`Recorder::takes`].
    pub fn takes(&mut self, event: &Event, names: &mut Names) -> bool {
        self.recorder.takes(event, names)
    }

    /// Finds names for the event's stacks before anything shows it.
    pub fn name_stacks(&mut self, event: &Event, names: &mut Names) {
        self.recorder.name_stacks(event, names);
    }

    /// Takes an event.
    pub fn event(&mut self, event: &Event, names: &mut Names, now_ns: u64) -> Result<()> {
        let cgroup = match event {
            Event::Stall(stall) => {
                if let Detail::Reclaim(reclaim) = &stall.detail
                    && let Some(target) = reclaim.target_cgroup_id
                {
                    self.targets.insert(target);
                }
                stall.cgroup_id
            }
            Event::Scope(scope) => scope.cgroup_id,
            Event::Oom(oom) => oom.victim_cgroup_id,
        };
        if let Some(id) = cgroup {
            self.cgroups.insert(id);
        }
        self.recorder.event(event, names);
        self.finish_full_block(now_ns)
    }

    /// Takes a note.
    pub fn note(&mut self, note: &Note) {
        self.recorder.note(note);
    }

    /// Takes note of the clock.
    pub fn clock(&mut self, names: &Names) {
        self.recorder.clock(names);
    }

    /// Whether it is time to look at the system, for which it has to be known what was lost.
    pub fn must_look(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.looked_ns) >= LOOK_EVERY_NS
    }

    /// Ends the present block if that is due at `now_ns`.
    pub fn tick(&mut self, now_ns: u64) -> Result<()> {
        if self.recorder.is_due(now_ns) { self.finish_block(now_ns) } else { Ok(()) }
    }

    /// Looks at the system.
    pub fn look(&mut self, now_ns: u64, counts: Counts, names: &mut Names) {
        self.looked_ns = now_ns;
        let mut ids = self.cgroups.take();
        let targets = self.targets.take();
        ids.extend(targets.iter().filter(|id| **id != 0));
        let cgroups = &mut names.cgroups;
        let look = self.looker.look(now_ns, counts, ids, cgroups);
        self.recorder.note(&Note::Look(look));
        if self.takes_states {
            for target in targets {
                let state = LiveStates { cgroups }.read(target);
                self.recorder.note(&Note::State(target, state));
            }
        }
    }

    /// What /proc/pressure/memory says.
    pub fn pressure(&mut self) -> Option<&str> {
        self.looker.pressure()
    }

    fn finish_full_block(&mut self, now_ns: u64) -> Result<()> {
        if self.recorder.is_full() { self.finish_block(now_ns) } else { Ok(()) }
    }

    /// Ends the present block.
    pub fn finish_block(&mut self, now_ns: u64) -> Result<()> {
        match self.recorder.finish(now_ns) {
            Some(block) => self.sink.block(block, now_ns),
            None => Ok(()),
        }
    }

    /// The end of something that is recorded beside, see [`Recorder::end_alone`].
    pub fn end_alone(&self, end: End, now_ns: u64) -> Vec<u8> {
        self.recorder.end_alone(end, now_ns)
    }

    /// Ends with a last look.
    pub fn end(&mut self, end: End, names: &mut Names, now_ns: u64) -> Result<()> {
        self.recorder.release(names);
        // The end has a block of its own where others are long: it is the last that may be missing.
        self.finish_full_block(now_ns)?;
        self.look(now_ns, end.counts, names);
        self.finish_full_block(now_ns)?;
        self.recorder.note(&Note::End(end));
        self.finish_block(now_ns)
    }
}

/// What is known of a recording before its first stall.
pub fn describe(
    request: &Request,
    (what, filters): (&str, &[String]),
    live: &Live,
    names: &Names,
) -> Meta {
    let system = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let cpus = thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let began_ns = since_1970_ns(Timestamp::now());
    let mut meta = Meta {
        memtrace: env!("CARGO_PKG_VERSION").to_owned(),
        host: text(system.nodename()),
        kernel: text(system.release()),
        boot: boot.trim().to_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        page_size: names.page_size,
        what: what.to_owned(),
        processes: request.filter.processes.clone(),
        filters: filters.to_vec(),
        began_ns,
        run_ns: began_ns,
        scopes: matches!(&request.subject, Subject::Stalls(stalls) if stalls.parts),
        stacks: request.stacks,
        user_stacks: request.user_stacks,
        gfp: names.gfp.0.clone(),
        modes: names.modes.0.clone(),
        statuses: names.statuses.0.clone(),
        throttles: names.throttles.0.clone(),
        ..Meta::default()
    };
    match live.coverage() {
        known if known.is_empty() => meta.set_coverage(&Coverage::of(&request.subject.kinds())),
        known => meta.set_coverage(known),
    }
    meta
}

/// What was not delivered so far.
pub fn counts(losses: &Losses, unfinished: u64) -> Counts {
    let Losses { lost, missed_begin, table_full, skipped } = *losses;
    Counts { lost, missed_begin, table_full, skipped, unfinished }
}

/// The name of a process that runs.
pub fn comm_of(pid: u32) -> io::Result<memtrace::stall::Comm> {
    use memtrace::stall::Comm;
    let name = fs::read(format!("/proc/{pid}/comm"))?;
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    let mut comm = [0; Comm::LEN];
    let room = comm.get_mut(..name.len()).ok_or(io::ErrorKind::InvalidData)?;
    room.copy_from_slice(name);
    Ok(Comm::new(comm))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn refusal(path: &Path) -> String {
        TapeFile::create(path, &Meta::default(), 1 << 20)
            .err()
            .expect("it is refused")
            .root_cause()
            .to_string()
    }

    #[test]
    fn no_two_record_to_one_file() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("file.mtr");
        let first = TapeFile::create(&path, &Meta::default(), 1 << 20)?;
        let before = fs::read(&path)?;
        assert!(refusal(&path).contains("another memtrace records to it"));
        assert_eq!(fs::read(&path)?, before);
        drop(first);
        TapeFile::create(&path, &Meta::default(), 1 << 20)?;
        Ok(())
    }

    #[test]
    fn links_and_files_of_others_are_refused() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let (path, link) = (directory.path().join("file.mtr"), directory.path().join("link.mtr"));
        for is_there in [false, true] {
            if is_there {
                fs::write(&path, "")?;
            }
            symlink(&path, &link)?;
            assert!(refusal(&link).contains("symbolic link"));
            assert_eq!(path.exists(), is_there);
            fs::remove_file(&link)?;
        }
        if geteuid().is_root() {
            chown(&path, Some(65_534), None)?;
            assert!(refusal(&path).contains("belongs to user 65534"));
            let metadata = fs::metadata(&path)?;
            assert_eq!((metadata.len(), metadata.uid()), (0, 65_534));
        }
        Ok(())
    }
}
