//! Loading and opening the iterator over threads.
//!
//! aya would do it, but looks the kernel's function that stands for the iterator up in a copy of all
//! kernel types, which takes 20 MiB and 0.1 s. So aya-obj reads the object, aya makes its maps, and the
//! few calls of bpf(2) that remain are made here.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use aya::{include_bytes_aligned, maps::MapData};
use aya_obj::{
    EbpfSectionKind, Object,
    generated::{bpf_attach_type, bpf_cmd, bpf_insn, bpf_prog_type},
};
use memtrace_common::{config::Config, now::ThreadLayout};
use rustix::process::{Resource, Rlimit, setrlimit};
use zerocopy::IntoBytes as _;

use super::super::{LiveError, load::telling_line};

/// The iterator, as it was built.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memtrace-now"));

/// The name of its program.
const PROGRAM: &str = "now";
/// Room for what the verifier has to say.
const LOG: usize = 256 << 10;

/// The iterator, loaded; gone when dropped.
#[derive(Debug)]
pub struct Iterator(OwnedFd);

impl Iterator {
    /// Has the kernel verify and compile the iterator, which stands for the kernel's function
    /// `function`, by its id in the kernel's types.
    pub fn load(config: &Config, layout: &ThreadLayout, function: u32) -> Result<Self, LiveError> {
        let program = program(config, layout, function)?;
        let mut link = Link {
            program: number(&program),
            target: 0,
            attach_type: bpf_attach_type::BPF_TRACE_ITER as u32,
            flags: 0,
        };
        // The link keeps the program, and that its maps.
        let link = bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut link);
        link.map(Self).map_err(|error| LiveError::Iterator { call: "link it", error })
    }

    /// Begins to look at all threads: what is read from the file.
    pub fn open(&self) -> io::Result<File> {
        let mut create = Create { link: number(&self.0), flags: 0 };
        bpf_fd(bpf_cmd::BPF_ITER_CREATE, &mut create).map(File::from)
    }
}

fn program(config: &Config, layout: &ThreadLayout, function: u32) -> Result<OwnedFd, LiveError> {
    // It is of this very build, and read by what it was tested with.
    let broken = |error: &dyn std::error::Error| LiveError::Iterator {
        call: "read its object",
        error: io::Error::other(error.to_string()),
    };
    let mut object = Object::parse(OBJECT).map_err(|error| broken(&error))?;
    let globals = [("CONFIG", config.as_bytes()), ("NOW", layout.as_bytes())];
    let globals = globals.map(|(name, value)| (name, (value, true)));
    object.patch_map_data(HashMap::from(globals)).map_err(|error| broken(&error))?;
    // The settings' maps are not used here.
    let is_used = |name: &str, map: &aya_obj::Map| {
        name == "RECORD" || map.section_kind() == EbpfSectionKind::Rodata
    };
    let mut maps = Vec::new();
    for (name, map) in object.maps.iter().filter(|(name, map)| is_used(name, map)) {
        maps.push((name.clone(), map.clone(), make_map(name, map.clone())?));
    }
    let maps_by_name =
        maps.iter().map(|(name, map, data)| (name.as_str(), raw(data.fd().as_fd()), map));
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(maps_by_name, &sections).map_err(|error| broken(&error))?;
    object.relocate_calls(&sections).map_err(|error| broken(&error))?;
    let function_of = object.programs.get(PROGRAM).map(aya_obj::Program::function_key);
    let code = function_of.and_then(|key| object.functions.get(&key));
    let code = code.ok_or_else(|| broken(&io::Error::other("it has no program")))?;
    load(&code.instructions, object.license.as_bytes_with_nul(), function)
}

fn make_map(name: &str, map: aya_obj::Map) -> Result<MapData, LiveError> {
    let is_constant = map.section_kind() == EbpfSectionKind::Rodata;
    let constants = map.data().to_vec();
    let map = MapData::create(map, name, None).map_err(|error| LiveError::map("RECORD", error))?;
    if is_constant {
        let fd = raw(map.fd().as_fd()).cast_unsigned();
        let key = 0_u32;
        let mut update = Update {
            map: fd,
            padding: 0,
            key: (&raw const key).addr() as u64,
            value: constants.as_ptr().addr() as u64,
            flags: 0,
        };
        let set = bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut update);
        // They are constants to the verifier once they cannot change any more.
        let set = set.and_then(|_| bpf(bpf_cmd::BPF_MAP_FREEZE, &mut Freeze { map: fd }));
        set.map_err(|error| LiveError::Iterator { call: "set its constants", error })?;
    }
    Ok(map)
}

fn load(code: &[bpf_insn], license: &[u8], function: u32) -> Result<OwnedFd, LiveError> {
    let mut load = Load {
        kind: bpf_prog_type::BPF_PROG_TYPE_TRACING as u32,
        count: u32::try_from(code.len()).unwrap_or(u32::MAX),
        code: code.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        name: *b"now\0\0\0\0\0\0\0\0\0\0\0\0\0",
        attach_type: bpf_attach_type::BPF_TRACE_ITER as u32,
        function,
        ..Load::default()
    };
    let mut program = bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut load);
    if program.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        // Before 5.11 the memory of programs counts as locked.
        let unlimited = Rlimit { current: None, maximum: None };
        if setrlimit(Resource::Memlock, unlimited).is_ok() {
            program = bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut load);
        }
    }
    program.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied if error.raw_os_error() == Some(libc::EPERM) => {
            LiveError::NotPermitted
        }
        _ => refused(load, error),
    })
}

/// Asks the verifier why.
fn refused(mut load: Load, error: io::Error) -> LiveError {
    let mut log = vec![0; LOG];
    load.log_level = 1;
    load.log_size = u32::try_from(LOG).unwrap_or(u32::MAX);
    load.log = log.as_mut_ptr().addr() as u64;
    let again = bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut load);
    debug_assert!(again.is_err(), "the verifier does not change its mind");
    log.truncate(memchr::memchr(0, &log).unwrap_or(LOG));
    let log = String::from_utf8_lossy(&log).into_owned();
    LiveError::Refused { probe: PROGRAM, error, reason: telling_line(&log).to_owned(), log }
}

/// What a command of bpf(2) reads, in the kernel's layout: plain numbers, all of them set.
///
/// # Safety
/// The pointers in it, as numbers, are valid during the call, and the command writes nowhere but there.
unsafe trait Attributes {}

#[derive(Default)]
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    types: u32,
    function_info_size: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    function: u32,
}

// SAFETY: `load` and `refused` keep code, license and log for the call; the log is as long as is said.
unsafe impl Attributes for Load {}

#[repr(C)]
struct Update {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

// SAFETY: `make_map` keeps key and value for the call, which only reads them.
unsafe impl Attributes for Update {}

#[repr(C)]
struct Freeze {
    map: u32,
}

// SAFETY: there is no pointer in it.
unsafe impl Attributes for Freeze {}

#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

// SAFETY: there is no pointer in it.
unsafe impl Attributes for Link {}

#[repr(C)]
struct Create {
    link: u32,
    flags: u32,
}

// SAFETY: there is no pointer in it.
unsafe impl Attributes for Create {}

fn bpf<A: Attributes>(command: bpf_cmd, attributes: &mut A) -> io::Result<libc::c_long> {
    let at: *mut A = attributes;
    // SAFETY: the kernel reads `size_of::<A>()` bytes there, and else what `Attributes` vouches for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, at, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`bpf`], of a command that gives a new file descriptor.
fn bpf_fd<A: Attributes>(command: bpf_cmd, attributes: &mut A) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(bpf(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for this call, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: std::os::fd::BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}
