//! eBPF programs to compare with, and what the kernel counts of any program's runs.

use std::{
    ffi::CStr,
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Map, MapData, RingBuf},
    programs::loaded_programs,
};
use aya_obj::{
    EbpfSectionKind,
    generated::bpf_map_type,
    maps::{LegacyMap, bpf_map_def},
};

use crate::bpf::{self, Instruction, instruction};

/// The pair of tracepoints of a stall at a cgroup's limit.
pub const BEGIN: &CStr = c"mm_vmscan_memcg_reclaim_begin";
/// As [`BEGIN`].
pub const END: &CStr = c"mm_vmscan_memcg_reclaim_end";

/// Return 0.
const RETURN: [Instruction; 2] = [instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)];

/// What nothing that measures stalls can do without: a program for the begin and one for the end.
#[derive(Debug)]
pub struct Floor {
    /// For the begin of a stall.
    pub begin: OwnedFd,
    /// For its end.
    pub end: OwnedFd,
}

impl Floor {
    /// Two programs of two instructions each: what it costs to be called at all.
    pub fn empty() -> Result<Self> {
        Self::load(&RETURN)
    }

    /// Two programs that read the clock, `bpf_ktime_get_ns()`, and do nothing with it.
    pub fn clock() -> Result<Self> {
        Self::load(&[&[instruction(0x85, 0, 0, 0, 5)], &RETURN[..]].concat())
    }

    fn load(program: &[Instruction]) -> Result<Self> {
        Ok(Self {
            begin: bpf::load("bench_begin", program)?,
            end: bpf::load("bench_end", program)?,
        })
    }

    /// Has real stalls run them, for as long as the result lives.
    pub fn attach(&self) -> Result<[OwnedFd; 2]> {
        Ok([bpf::attach(self.begin.as_fd(), BEGIN)?, bpf::attach(self.end.as_fd(), END)?])
    }

    /// Their ids.
    pub fn ids(&self) -> Result<Vec<u32>> {
        [&self.begin, &self.end].into_iter().map(id).collect()
    }
}

/// The id of a program that this process holds.
fn id(program: &OwnedFd) -> Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
    field(&text, "prog_id:").with_context(|| format!("no program behind `{path}`"))
}

/// The number behind a key of /proc/PID/fdinfo.
pub fn field<T: std::str::FromStr>(text: &str, key: &str) -> Option<T> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// Bytes of a record that [`Writer`] writes: as many as memtrace's of a stall has, without the optional columns.
pub const RECORD: u8 = 64;

/// A program that does nothing but put a record of zeros into a ring buffer, and the ring buffer's reading end.
pub struct Writer {
    /// The program.
    pub program: OwnedFd,
    /// What it writes to.
    pub ring: RingBuf<MapData>,
}

impl Writer {
    /// Loads it, with a ring buffer of `size` bytes, a power of two.
    pub fn load(size: u32) -> Result<Self> {
        let map = aya_obj::Map::Legacy(LegacyMap {
            def: bpf_map_def {
                map_type: bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32,
                max_entries: size,
                ..bpf_map_def::default()
            },
            inner_def: None,
            section_index: 0,
            section_kind: EbpfSectionKind::Maps,
            symbol_index: None,
            data: Vec::new(),
        });
        let map = MapData::create(map, "bench_ring", None).context("cannot make a ring buffer")?;
        let program = bpf::load("bench_write", &write_to(map.fd().as_fd().as_raw_fd()))?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).context("cannot get at the ring buffer")?;
        Ok(Self { program, ring })
    }
}

/// `bpf_ringbuf_output(ring, zeros on the stack, RECORD, BPF_RB_NO_WAKEUP)`, return 0.
fn write_to(ring: i32) -> Vec<Instruction> {
    let size = i16::from(RECORD);
    let zero = |at| instruction(0x7a, 10, 0, at, 0);
    let mut program: Vec<_> = (-size..0).step_by(8).map(zero).collect();
    program.extend([
        instruction(0x18, 1, 1, 0, ring),
        0,
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -i32::from(RECORD)),
        instruction(0xb7, 3, 0, 0, i32::from(RECORD)),
        instruction(0xb7, 4, 0, 0, 1),
        instruction(0x85, 0, 0, 0, 130),
    ]);
    program.extend(RETURN);
    program
}

/// What the kernel counted of the runs of some programs, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Time in the programs.
    pub time: Duration,
    /// Number of runs.
    pub count: u64,
}

impl Runs {
    /// Those of the programs with these ids, since they were loaded, while [`aya::sys::enable_stats`] was on.
    pub fn of(ids: &[u32]) -> Result<Self> {
        let (mut runs, mut found) = (Self::default(), 0);
        for program in loaded_programs() {
            // One can be gone by the time that it is looked at.
            let Ok(program) = program else { continue };
            if ids.contains(&program.id()) {
                found += 1;
                runs.time += program.run_time();
                runs.count += program.run_count();
            }
        }
        ensure!(found == ids.len(), "of {} eBPF programs only {found} are loaded", ids.len());
        Ok(runs)
    }

    /// What came since.
    pub fn since(self, earlier: Self) -> Self {
        Self { time: self.time.saturating_sub(earlier.time), count: self.count - earlier.count }
    }

    /// Nanoseconds for each of `stalls`.
    pub fn ns_per(self, stalls: u64) -> f64 {
        self.time.as_nanos() as f64 / stalls as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_fdinfo() {
        let text = "pos:\t0\nprog_type:\t17\nprog_id:\t 42\nmemlock:\t4096\n";
        assert_eq!(field(text, "prog_id:"), Some(42));
        assert_eq!(field::<u64>(text, "memlock:"), Some(4096));
        assert_eq!(field::<u32>(text, "map_id:"), None);
    }

    #[test]
    fn the_writer_sets_all_that_it_writes() {
        let program = write_to(5);
        let stores = program.iter().filter(|&&instruction| instruction & 0xff == 0x7a).count();
        assert_eq!(stores * 8, usize::from(RECORD));
    }

    #[test]
    fn runs_are_told_apart_by_time() {
        let runs = |ns, count| Runs { time: Duration::from_nanos(ns), count };
        let since = runs(3500, 30).since(runs(500, 10));
        assert_eq!(since, runs(3000, 20));
        assert!((since.ns_per(10) - 300.0).abs() < f64::EPSILON);
    }
}
