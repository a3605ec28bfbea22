//! Cgroups: from a path to the id by which the kernel knows it, and back.
//!
//! The id of a cgroup is the inode number of its directory. Two hierarchies matter: cgroup v2, and
//! the memory controller's own where it is still on cgroup v1.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, c_int, c_uint},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::MetadataExt as _,
        },
    },
    path::{Path, PathBuf},
};

use libc::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC};
use thiserror::Error;

/// Which hierarchy a cgroup is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// The unified one.
    V2,
    /// The memory controller's.
    V1Memory,
}

/// A cgroup that threads are looked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id in the hierarchy.
    pub id: u64,
    /// The hierarchy.
    pub hierarchy: Hierarchy,
}

/// Why a path names no cgroup that memtrace can look for.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// No directory of that name.
    #[error(
        "no cgroup `{0}`: give the path of its directory, or the path below the root of its hierarchy as in /proc/PID/cgroup"
    )]
    Unknown(PathBuf),
    /// A directory of something else.
    #[error(
        "`{0}` is not a cgroup: give a directory of cgroup v2, or of the memory controller of cgroup v1"
    )]
    NotACgroup(PathBuf),
    /// A cgroup v1 directory of another controller.
    #[error(
        "`{0}` is not in the memory controller's hierarchy of cgroup v1: give the directory below the mount with the option `memory`"
    )]
    OtherController(PathBuf),
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    hierarchy: Hierarchy,
    /// Where it is mounted.
    point: PathBuf,
    /// What of the hierarchy is mounted there; `/` unless it is a part.
    root: String,
}

impl Cgroup {
    /// Finds the cgroup that `path` names: a directory, or a path below the root of a hierarchy.
    pub fn find(path: &Path) -> Result<Self, CgroupError> {
        if path.as_os_str().is_empty() {
            return Err(CgroupError::Unknown(path.to_owned()));
        }
        let mounts = mounts();
        let relative = path.strip_prefix("/").unwrap_or(path);
        let below_mounts = mounts.iter().map(|mount| mount.point.join(relative));
        let candidates: Vec<_> = [path.to_owned()]
            .into_iter()
            .filter(|path| path.is_absolute())
            .chain(below_mounts)
            .filter(|candidate| candidate.is_dir())
            .collect();
        // A directory elsewhere may have the name of a cgroup, `/` for one.
        let found = candidates.iter().map(|directory| Self::at(directory, &mounts));
        let found: Vec<_> = found.collect();
        match found.iter().find_map(|found| found.as_ref().ok()) {
            Some(cgroup) => Ok(*cgroup),
            None => found.into_iter().next().unwrap_or(Err(CgroupError::Unknown(path.to_owned()))),
        }
    }

    fn at(directory: &Path, mounts: &[Mount]) -> Result<Self, CgroupError> {
        let not_a_cgroup = || CgroupError::NotACgroup(directory.to_owned());
        let id = fs::metadata(directory).map_err(|_| not_a_cgroup())?.ino();
        match rustix::fs::statfs(directory).map_err(|_| not_a_cgroup())?.f_type {
            CGROUP2_SUPER_MAGIC => Ok(Self { id, hierarchy: Hierarchy::V2 }),
            CGROUP_SUPER_MAGIC => {
                let real = fs::canonicalize(directory).map_err(|_| not_a_cgroup())?;
                let in_memory = mounts.iter().any(|mount| {
                    mount.hierarchy == Hierarchy::V1Memory && real.starts_with(&mount.point)
                });
                if !in_memory {
                    return Err(CgroupError::OtherController(directory.to_owned()));
                }
                Ok(Self { id, hierarchy: Hierarchy::V1Memory })
            }
            _ => Err(not_a_cgroup()),
        }
    }
}

/// The hierarchies that matter, that of the memory controller first.
fn mounts() -> Vec<Mount> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Reads mountinfo, proc_pid_mountinfo(5): `36 35 98:0 ROOT POINT OPTIONS [TAGS] - TYPE SOURCE
/// SUPER_OPTIONS`.
fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    let mut mounts: Vec<_> = mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(3);
            let (root, point) = (mount.next()?, mount.next()?);
            let mut file_system = file_system.split(' ');
            let (kind, options) = (file_system.next()?, file_system.nth(1)?);
            let hierarchy = match kind {
                "cgroup2" => Hierarchy::V2,
                "cgroup" if options.split(',').any(|option| option == "memory") => {
                    Hierarchy::V1Memory
                }
                _ => return None,
            };
            Some(Mount { hierarchy, point: PathBuf::from(unescape(point)), root: unescape(root) })
        })
        .collect();
    mounts.sort_by_key(|mount| mount.hierarchy == Hierarchy::V2);
    mounts
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |field, (escaped, plain)| field.replace(escaped, plain))
}

/// Paths of cgroups by id, looked up when first asked for and remembered, as a cgroup may be gone
/// the next time.
#[derive(Debug, Default)]
pub struct Cgroups {
    known: BTreeMap<u64, Option<Box<[u8]>>>,
    /// Memory that they take, roughly.
    bytes: usize,
    /// Where to look; the first is the one that ids come from.
    roots: Vec<Root>,
}

/// A place to look ids up.
#[derive(Debug)]
struct Root {
    mount: Mount,
    directory: OwnedFd,
}

/// Most memory for paths that are remembered, some thousands of the usual length. A host that makes
/// and removes cgroups for hours must not fill our memory.
const MOST_BYTES: usize = 256 << 10;
/// The same of what is learned from recordings, which are anyone's.
const MOST_LEARNED_BYTES: usize = 16 << 20;
/// What an entry takes beside its path.
const ENTRY_BYTES: usize = 48;

impl Cgroups {
    /// Looks up the cgroups of the running kernel.
    #[must_use]
    pub fn live() -> Self {
        let mounts = mounts();
        // Ids are those of the memory controller's hierarchy, and an id means something else in
        // another one.
        let first = mounts.first().map(|mount| mount.hierarchy);
        let roots = mounts.into_iter().filter(|mount| Some(mount.hierarchy) == first);
        let roots = roots.filter_map(|mount| {
            Some(Root { directory: File::open(&mount.point).ok()?.into(), mount })
        });
        Self { roots: roots.collect(), ..Self::default() }
    }

    /// A fixed set, for tests and recordings.
    #[must_use]
    pub fn from_paths(paths: impl IntoIterator<Item = (u64, String)>) -> Self {
        let known =
            paths.into_iter().map(|(id, path)| (id, Some(path.into_bytes().into_boxed_slice())));
        Self { known: known.collect(), ..Self::default() }
    }

    /// Has the cgroup `id` go by this path from now on; nothing where it was not found.
    pub fn learn(&mut self, id: u64, path: Option<Vec<u8>>) {
        if self.bytes >= MOST_LEARNED_BYTES && !self.known.contains_key(&id) {
            self.known.clear();
            self.bytes = 0;
        }
        let len = |path: &Option<Box<[u8]>>| path.as_ref().map_or(0, |path| path.len());
        let path = path.map(Vec::into_boxed_slice);
        self.bytes += ENTRY_BYTES + len(&path);
        if let Some(before) = self.known.insert(id, path) {
            self.bytes -= (ENTRY_BYTES + len(&before)).min(self.bytes);
        }
    }

    /// The path of cgroup `id` below the root of its hierarchy, such as `/system.slice/a.service`,
    /// in any bytes; nothing where it is gone or out of sight.
    pub fn path(&mut self, id: u64) -> Option<&[u8]> {
        if self.roots.is_empty() {
            return self.known.get(&id)?.as_deref();
        }
        if self.bytes >= MOST_BYTES && !self.known.contains_key(&id) {
            self.known.clear();
            self.bytes = 0;
        }
        let (roots, bytes) = (&self.roots, &mut self.bytes);
        let path = self.known.entry(id).or_insert_with(|| {
            let path = roots.iter().find_map(|root| root.look_up(id)).map(Vec::into_boxed_slice);
            *bytes += ENTRY_BYTES + path.as_ref().map_or(0, |path| path.len());
            path
        });
        path.as_deref()
    }
}

/// Where a cgroup's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its directory.
    pub directory: PathBuf,
    /// The directory of the uppermost cgroup that can be seen.
    pub root: PathBuf,
    /// Which files it has.
    pub hierarchy: Hierarchy,
}

impl Cgroups {
    /// Where the files of cgroup `id` are; nothing where it is gone or out of sight.
    pub fn directory(&mut self, id: u64) -> Option<Place> {
        let path = Path::new(OsStr::from_bytes(self.path(id)?)).to_owned();
        self.roots.iter().find_map(|Root { mount, .. }| {
            let below = path.strip_prefix(&mount.root).ok()?;
            let directory = mount.point.join(below);
            // The hierarchy can be mounted twice, with a part of it in one place.
            let is_it = fs::metadata(&directory).is_ok_and(|meta| meta.ino() == id);
            let root = mount.point.clone();
            is_it.then_some(Place { directory, root, hierarchy: mount.hierarchy })
        })
    }
}

impl Root {
    fn look_up(&self, id: u64) -> Option<Vec<u8>> {
        let directory = match self.open_by_id(id) {
            Ok(file) => fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?,
            // Without CAP_DAC_READ_SEARCH only a search finds it.
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                search(&self.mount.point, id)?
            }
            Err(_) => return None,
        };
        let below = directory.strip_prefix(&self.mount.point).ok()?;
        let root = self.mount.root.trim_end_matches('/');
        let path = Path::new("/").join(below);
        Some([root.as_bytes(), &path.into_os_string().into_vec()].concat())
    }

    /// Opens the directory of cgroup `id` by a file handle of kernfs, which is the id itself
    /// (`FILEID_KERNFS` in include/linux/exportfs.h, since 5.5).
    fn open_by_id(&self, id: u64) -> io::Result<OwnedFd> {
        const FILEID_KERNFS: c_int = 0xfe;
        #[repr(C)]
        struct Handle {
            bytes: c_uint,
            kind: c_int,
            id: [u8; 8],
        }
        let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
        // SAFETY: the handle is laid out as `struct file_handle` with `bytes` bytes behind its
        // two fields, and outlives the call, which only reads it.
        let fd = unsafe {
            libc::open_by_handle_at(
                self.directory.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call made the descriptor, and no one else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Searches `directory` and those below it for the one with the inode number `id`. Anyone may nest
/// them deep: neither the stack nor the open descriptors grow with it.
fn search(directory: &Path, id: u64) -> Option<PathBuf> {
    let mut unseen = vec![directory.to_owned()];
    while let Some(directory) = unseen.pop() {
        if fs::metadata(&directory).is_ok_and(|meta| meta.ino() == id) {
            return Some(directory);
        }
        // One that is gone by now has nothing to search.
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        unseen.extend(below.map(|entry| entry.path()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mounts_and_puts_the_memory_controllers_first() {
        let mountinfo = "\
25 1 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
26 1 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
27 1 0:24 /docker/a\\040b /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
28 1 0:25 / / rw - ext4 /dev/vda rw
garbage
";
        let mount = |hierarchy, point: &str, root: &str| Mount {
            hierarchy,
            point: PathBuf::from(point),
            root: root.to_owned(),
        };
        assert_eq!(
            parse_mounts(mountinfo),
            [
                mount(Hierarchy::V1Memory, "/sys/fs/cgroup/memory", "/docker/a b"),
                mount(Hierarchy::V2, "/sys/fs/cgroup/unified", "/"),
            ]
        );
    }

    #[test]
    fn an_id_leads_back_to_its_path() {
        let Some(mount) = mounts().into_iter().next() else { panic!("no cgroups on this host") };
        let root = Cgroup::find(&mount.point).expect("a root is a cgroup");
        assert_eq!(root.hierarchy, mount.hierarchy);
        let mut cgroups = Cgroups::live();
        assert_eq!(
            cgroups.path(root.id),
            Some(format!("{}/", mount.root.trim_end_matches('/')).as_bytes())
        );
        assert_eq!(cgroups.path(u64::MAX), None);
        let place = cgroups.directory(root.id).expect("its files are there");
        let found = fs::metadata(&place.directory).expect("a directory").ino();
        assert_eq!((found, place.hierarchy), (root.id, mount.hierarchy));
        assert_eq!(cgroups.directory(u64::MAX), None);
    }

    #[test]
    fn refuses_what_is_no_cgroup() {
        let find = |path: &str| Cgroup::find(Path::new(path));
        assert!(matches!(find(""), Err(CgroupError::Unknown(_))));
        assert!(matches!(find("/no/such/cgroup"), Err(CgroupError::Unknown(_))));
        assert!(matches!(find("/proc/self/fd"), Err(CgroupError::NotACgroup(_))));
    }

    #[test]
    fn a_fixed_set_is_all_there_is() {
        let mut cgroups = Cgroups::from_paths([(7, "/a".to_owned())]);
        assert_eq!(
            (cgroups.path(7).map(<[u8]>::to_vec), cgroups.path(8)),
            (Some(b"/a".to_vec()), None)
        );
    }
}
