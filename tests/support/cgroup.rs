//! Cgroups of our own, in the memory controller's hierarchy (v1 or v2) or in plain cgroup v2.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::wait::budget;

/// Beginning of the names of the tests' cgroups.
pub const TEST: &str = "memtrace-test";

/// A cgroup hierarchy of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Which version of the interface.
    pub version: Version,
    /// Whether the memory controller is in it.
    pub memory: bool,
}

/// Versions of the cgroup interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy for all.
    V2,
}

impl Hierarchy {
    /// The hierarchies among this host's mounts that are cgroup v2 or have the memory controller.
    pub fn all() -> Result<Vec<Self>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .context("cannot read /proc/self/mountinfo")?;
        Ok(mounts.lines().filter_map(Self::from_mount).collect())
    }

    /// The one with the memory controller.
    pub fn memory() -> Result<Self> {
        Self::all()?
            .into_iter()
            .find(|hierarchy| hierarchy.memory)
            .context("this host has no cgroup hierarchy with a memory controller: mount one")
    }

    /// The hierarchy of `version`, where the host has it.
    pub fn of(version: Version) -> Result<Option<Self>> {
        Ok(Self::all()?.into_iter().find(|hierarchy| hierarchy.version == version))
    }

    fn from_mount(line: &str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mount = PathBuf::from(mount.split(' ').nth(4)?);
        let mut kind = kind.split(' ');
        match kind.next()? {
            "cgroup2" => {
                let controllers = fs::read_to_string(mount.join("cgroup.controllers")).ok()?;
                let memory = controllers.split_whitespace().any(|name| name == "memory");
                Some(Self { mount, version: Version::V2, memory })
            }
            "cgroup" if kind.nth(1)?.split(',').any(|option| option == "memory") => {
                Some(Self { mount, version: Version::V1, memory: true })
            }
            _ => None,
        }
    }
}

/// A cgroup that is removed when dropped, after what is left in it was moved to the root.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    hierarchy: Hierarchy,
}

/// A limit on the memory of a cgroup, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Never exceeded: memory.max, or v1's memory.limit_in_bytes.
    Max(u64),
    /// Beyond which threads have to reclaim, and are slowed down: memory.high, which v1 lacks.
    High(u64),
}

impl Cgroup {
    /// Makes a cgroup below the root of the memory controller's hierarchy, with a limit in bytes
    /// that is never exceeded, under a name that begins with `name`.
    pub fn limited(name: &str, limit: u64) -> Result<Self> {
        Self::limited_by(name, Limit::Max(limit))
    }

    /// As [`Cgroup::limited`], with a limit of either kind.
    pub fn limited_by(name: &str, limit: Limit) -> Result<Self> {
        let hierarchy = Hierarchy::memory()?;
        if hierarchy.version == Version::V2 {
            delegate(&hierarchy.mount)?;
        }
        let cgroup = Self::create(hierarchy.mount.clone(), name, hierarchy)?;
        cgroup.set_limit(limit)?;
        Ok(cgroup)
    }

    /// Makes a cgroup without a limit below the root of `hierarchy`.
    pub fn plain(hierarchy: &Hierarchy) -> Result<Self> {
        Self::create(hierarchy.mount.clone(), TEST, hierarchy.clone())
    }

    /// Makes a cgroup below this one, which may have no processes of its own then.
    pub fn child(&self) -> Result<Self> {
        if self.hierarchy.version == Version::V2 && self.hierarchy.memory {
            delegate(&self.path)?;
        }
        Self::create(self.path.clone(), TEST, self.hierarchy.clone())
    }

    fn create(parent: PathBuf, name: &str, hierarchy: Hierarchy) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut path = parent;
        path.push(format!("{name}-{}-{number}", process::id()));
        fs::create_dir(&path).with_context(|| {
            format!("cannot create cgroup `{}`, for which one has to be root", path.display())
        })?;
        Ok(Self { path, hierarchy })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path below the root of its hierarchy, with a slash in front.
    #[must_use]
    pub fn name(&self) -> String {
        let below = self.path.strip_prefix(&self.hierarchy.mount).unwrap_or(&self.path);
        format!("/{}", below.display())
    }

    /// Its id: the inode number of its directory.
    pub fn id(&self) -> Result<u64> {
        let meta = fs::metadata(&self.path)
            .with_context(|| format!("no cgroup `{}`", self.path.display()))?;
        Ok(meta.ino())
    }

    /// Moves a process with all its threads into it.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// How often its limit was hit so far, by cgroup v1's count: some ten times for each time that
    /// the kernel reclaimed. Cgroup v2 counts those once.
    pub fn limit_hits(&self) -> Result<u64> {
        let (file, key, factor) = match self.hierarchy.version {
            Version::V1 => ("memory.failcnt", "", 1),
            Version::V2 => ("memory.events", "max ", 12),
        };
        let text = fs::read_to_string(self.path.join(file))
            .with_context(|| format!("cannot read `{file}`"))?;
        let number: Option<u64> =
            text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
        number
            .map(|number| number * factor)
            .with_context(|| format!("unknown form of `{file}`: `{text}`"))
    }

    /// What happened to it so far: the lines of memory.events, or what v1 has of them.
    pub fn events(&self) -> Result<Vec<(String, u64)>> {
        if self.hierarchy.version == Version::V1 {
            return Ok(vec![("failcnt".to_owned(), self.limit_hits()?)]);
        }
        let path = self.path.join("memory.events");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        let event = |line: &str| {
            let (name, count) = line.split_once(' ')?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        text.lines()
            .map(event)
            .collect::<Option<_>>()
            .with_context(|| format!("unknown form of `{}`: `{text}`", path.display()))
    }

    /// Whether the kernel offers proactive reclaim for it.
    #[must_use]
    pub fn has_reclaim_file(&self) -> bool {
        self.path.join("memory.reclaim").exists()
    }

    /// Has the kernel reclaim so many bytes of it now; it may find fewer.
    pub fn reclaim(&self, bytes: u64) -> Result<()> {
        match fs::write(self.path.join("memory.reclaim"), bytes.to_string()) {
            Err(err) if err.kind() != std::io::ErrorKind::WouldBlock => {
                Err(err).context("cannot write to memory.reclaim")
            }
            _ => Ok(()),
        }
    }

    /// Limits what its threads have written to the disk that the directory `dir` is on, to so many bytes a
    /// second. Gives false where that cannot be: without an io controller in cgroup v2, or on a file
    /// system without a disk of its own.
    pub fn limit_writing(&self, dir: &Path, bytes: u64) -> Result<bool> {
        let meta =
            fs::metadata(dir).with_context(|| format!("no directory `{}`", dir.display()))?;
        let root = &self.hierarchy.mount;
        let Some(disk) = disk(meta.dev()) else { return Ok(false) };
        let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if self.hierarchy.version == Version::V1
            || !offered.split_whitespace().any(|name| name == "io")
        {
            return Ok(false);
        }
        fs::write(root.join("cgroup.subtree_control"), "+io")
            .with_context(|| format!("cannot write `+io` to `{}`", root.display()))?;
        self.write("io.max", &format!("{disk} wbps={bytes}"))?;
        Ok(true)
    }

    fn set_limit(&self, limit: Limit) -> Result<()> {
        let (file, bytes) = match (limit, self.hierarchy.version) {
            (Limit::Max(bytes), Version::V1) => ("memory.limit_in_bytes", bytes),
            (Limit::Max(bytes), Version::V2) => ("memory.max", bytes),
            (Limit::High(bytes), Version::V2) => ("memory.high", bytes),
            (Limit::High(_), Version::V1) => {
                bail!("this host's memory controller is in cgroup v1, which has no memory.high")
            }
        };
        self.write(file, &bytes.to_string())
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value)
            .with_context(|| format!("cannot write `{value}` to `{}`", path.display()))
    }

    fn evict(&self) -> Result<()> {
        let root = self.hierarchy.mount.join("cgroup.procs");
        let procs = fs::read_to_string(self.path.join("cgroup.procs"))?;
        for pid in procs.lines() {
            // A process that is gone by now need not be moved.
            let _moved: std::io::Result<()> = fs::write(&root, pid);
        }
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            self.evict()?;
            // A process that has just ended keeps its cgroup busy for a moment.
            let Err(err) = fs::remove_dir(&self.path) else { return Ok(()) };
            if start.elapsed() > budget() {
                bail!("cannot remove cgroup `{}`: {err}", self.path.display());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(err) = self.remove() {
            eprintln!("{err:#}");
        }
    }
}

/// The disk of the device `dev`, which can be a part of it, as `MAJOR:MINOR`.
fn disk(dev: u64) -> Option<String> {
    let device = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let path = fs::canonicalize(Path::new("/sys/dev/block").join(&device)).ok()?;
    if !path.join("partition").exists() {
        return Some(device);
    }
    Some(fs::read_to_string(path.parent()?.join("dev")).ok()?.trim().to_owned())
}

/// Lets the cgroups below one of cgroup v2 have a memory controller.
fn delegate(above: &Path) -> Result<()> {
    let path = above.join("cgroup.subtree_control");
    let given =
        fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    if given.split_whitespace().any(|name| name == "memory") {
        return Ok(());
    }
    fs::write(&path, "+memory")
        .with_context(|| format!("cannot write `+memory` to `{}`", path.display()))
}
