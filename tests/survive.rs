//! memtrace survives what it observes: it stays small, makes no stall of its own, leaves nothing
//! behind, and does not mind another one beside it.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use memtrace_common::tally::bucket;
use rustix::{
    fs::Advice,
    process::{Resource, Rlimit, Signal, setrlimit},
};
use tests::{
    cgroup::{Cgroup, TEST},
    host::{TempDir, is_guest},
    load::{Churning, HITS, Load, THREAD_BYTES, limited_cgroup},
    rows::{Output, assert_same, tids},
    run::{Finished, Memtrace, command},
    wait::wait_until,
};

/// Most threads of one load.
const THREADS: usize = 250;
/// Page cache that is left to a thousand threads.
const CACHE_BYTES: u64 = 32 << 20;

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// A line of /proc/PID/status in KiB.
fn status_kib(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("memtrace is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    number.with_context(|| format!("no `{key}` in: {status}"))
}

/// The most memory that memtrace had at any time, start-up included.
#[track_caller]
fn assert_peak(memtrace: &Memtrace, what: &str, limit_mib: u64) -> Result<()> {
    let peak = status_kib(memtrace.id(), "VmHWM")?;
    println!("{what}: {peak} KiB at most, {} KiB now", status_kib(memtrace.id(), "VmRSS")?);
    assert!(peak <= limit_mib << 10, "{what}: {peak} KiB, more than {limit_mib} MiB");
    Ok(())
}

/// Loads of so many threads altogether, in one cgroup.
fn crowd(threads: usize) -> Result<(Cgroup, Vec<Load>, String)> {
    let limit = threads as u64 * THREAD_BYTES + CACHE_BYTES;
    let cgroup = Cgroup::limited(TEST, limit)?;
    let what = Churning { threads: THREADS, ..Churning::new(&cgroup) };
    let loads = (0..threads / THREADS).map(|_| Load::churn(memload(), &what));
    let loads = loads.collect::<Result<Vec<_>>>()?;
    let pids: Vec<_> = loads.iter().map(|load| load.id().to_string()).collect();
    Ok((cgroup, loads, pids.join(",")))
}

/// How many threads there are in JSON that is still being written.
fn threads(text: &str) -> usize {
    BTreeSet::from_iter(tids(text, None)).len()
}

/// Of code that a process has not locked, the KiB that are in memory; nothing where it has none.
fn unlocked_code_kib(pid: u32) -> Result<Option<u64>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("memtrace is gone")?;
    let mut unlocked: Option<u64> = None;
    let (mut is_code, mut resident_kib) = (false, 0);
    for line in smaps.lines() {
        if line.split(' ').nth(1).is_some_and(|access| access.len() == 4 && access.ends_with('p')) {
            is_code = line.contains(" r-xp ") && line.contains("/memtrace");
        } else if let Some(size) = line.strip_prefix("Rss:") {
            resident_kib = size.trim().trim_end_matches(" kB").parse().context("no size")?;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && is_code
            && !flags.split_whitespace().any(|flag| flag == "lo")
        {
            unlocked = Some(unlocked.unwrap_or_default() + resident_kib);
        }
    }
    Ok(unlocked)
}

#[test]
fn code_that_is_not_locked_is_not_called() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("survive.mtr");
    let path = path.to_str().context("paths of tests are UTF-8")?;
    for args in [
        &["drsnoop", "-e", "-T", "-K", "--user-stack"][..],
        &["drsnoop", "--json"],
        &["drsnoop", "-H", "1"],
        &["compactsnoop", "-e"],
        &["stalls", "--json", "-K", "--record", path],
        &["stalls", "-e", "-T", "-v"],
        &["record", "-K", "--user-stack", "-o", path],
        &["record", "-o", path, "--max-size", "64K"],
    ] {
        let cgroup = limited_cgroup()?;
        let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
        let memtrace = Memtrace::start(args);
        load.work(&cgroup, HITS / 8)?;
        // What is done once a second, too.
        thread::sleep(Duration::from_millis(2500));
        let unlocked = unlocked_code_kib(memtrace.id())?;
        load.stop()?;
        memtrace.stop().assert_success();
        assert_eq!(
            unlocked,
            Some(0),
            "{args:?}: KiB of code that has been called, of that which is not locked"
        );
    }
    Ok(())
}

#[test]
fn a_thousand_threads_take_ten_mib() -> Result<()> {
    let (cgroup, mut loads, pids) = crowd(1000)?;
    let rows = Memtrace::start(&["drsnoop", "-e", "-p", &pids]);
    let json = Memtrace::start(&["drsnoop", "--json", "-p", &pids]);
    let histograms = Memtrace::start(&["drsnoop", "-H", "--json", "-p", &pids, "1"]);
    for load in &mut loads {
        load.go()?;
    }
    // Each look takes long.
    let mut next_look = HITS;
    wait_until("900 of 1000 threads to stall and be shown", || {
        let hits = cgroup.limit_hits().unwrap_or_default();
        if hits < next_look {
            return false;
        }
        next_look = hits + HITS;
        [json.stdout(), histograms.stdout()].iter().all(|output| threads(output) >= 900)
    });
    assert_peak(&rows, "rows", 8)?;
    assert_peak(&json, "JSON", 8)?;
    assert_peak(&histograms, "histograms by thread", 10)?;
    drop(loads);
    for memtrace in [rows, json, histograms] {
        memtrace.stop().assert_success();
    }
    Ok(())
}

/// A shell that starts some thousand short processes one after the other, each of which reads a part
/// of a file that does not fit into the cgroup's limit. Killed when dropped.
struct Swarm(Child);

/// Processes of one swarm.
const EACH: u32 = 4500;

impl Swarm {
    /// `step` is how many parts each process is beyond the one before. Swarms of the same step would come to read what
    /// another has just read, which nobody has to wait for.
    fn start(cgroup: &Cgroup, file: &Path, step: u32) -> Result<Self> {
        const SCRIPT: &str = "read -r go; i=0; while [ $i -lt $3 ]; do \
            dd if=\"$1\" of=/dev/null bs=512k count=1 skip=$((i * $2 % 128)) 2>/dev/null; i=$((i + 1)); done";
        let mut shell = Command::new("sh");
        shell
            .args(["-c", SCRIPT, "sh"])
            .arg(file)
            .args([step, EACH].map(|number| number.to_string()));
        let child = shell.stdin(Stdio::piped()).spawn().context("cannot start a shell")?;
        let swarm = Self(child);
        cgroup.add(swarm.0.id())?;
        Ok(swarm)
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("cannot wait for the shell").is_some()
    }

    fn go(&mut self) -> Result<()> {
        let stdin = self.0.stdin.as_mut().context("no standard input")?;
        stdin.write_all(b"\n").context("the shell is gone")
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: io::Result<()> = self.0.kill();
        let _waited: io::Result<_> = self.0.wait();
    }
}

/// Makes a file whose pages no cgroup is charged for yet.
fn make_uncached(path: &Path, size: usize) -> Result<()> {
    fs::write(path, vec![0xa5; size]).context("cannot make a file")?;
    let file = fs::File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).context("cannot uncache a file")
}

/// One memtrace is stopped meanwhile: what it counts fills the kernel's table, and the rest has to go
/// through its buffer.
#[test]
fn ten_thousand_threads_that_came_and_went_take_sixteen_mib() -> Result<()> {
    let dir = TempDir::new()?;
    let file = dir.path().join("file");
    make_uncached(&file, 64 << 20)?;
    let cgroup = limited_cgroup()?;
    let swarms = [1, 37, 73, 101].map(|step| Swarm::start(&cgroup, &file, step));
    let mut swarms = swarms.into_iter().collect::<Result<Vec<_>>>()?;
    let path = cgroup.path().to_str().context("a path of the tests' own")?;
    let rows = Memtrace::start(&["drsnoop", "--json", "-c", path]);
    let histograms = Memtrace::start(&["drsnoop", "-H", "-c", path, "10"]);
    let args = ["drsnoop", "-H", "--json", "--buffer-size", "32M", "-c", path];
    let stopped = Memtrace::start(&args);
    stopped.signal(Signal::STOP);
    for swarm in &mut swarms {
        swarm.go()?;
    }
    for swarm in &mut swarms {
        wait_until("thousands of processes to come and go", || swarm.has_ended());
    }
    let seen = threads(&rows.stdout());
    assert!(seen >= 10_000, "only {seen} threads stalled");
    let shown = || histograms.stdout().contains("other = ");
    wait_until("more threads than are told apart", shown);
    stopped.signal(Signal::CONT);
    assert_peak(&rows, "rows", 8)?;
    assert_peak(&histograms, "histograms by thread", 16)?;
    histograms.stop().assert_success();
    let [stopped, rows] = [stopped, rows].map(|memtrace| {
        let finished = memtrace.stop();
        finished.assert_success();
        Output::parse(&finished.stdout)
    });
    let (stopped, rows) = (stopped?, rows?.rows);
    stopped.summary.assert_nothing_lost();
    assert_eq!(stopped.summary.stalls, rows.len() as u64);
    let counts = stopped.histograms.iter().filter_map(|histogram| histogram["count"].as_u64());
    assert_eq!(counts.sum::<u64>(), stopped.summary.stalls);
    let entries: BTreeSet<_> = rows.iter().map(|row| (row.tid, bucket(row.duration_ns))).collect();
    assert!(entries.len() > 16_384, "{} entries found room in the kernel's table", entries.len());
    Ok(())
}

/// Pages that a process asked for so far: minor and major faults, in /proc/PID/stat.
fn faults(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("memtrace is gone")?;
    let (_, after_comm) = stat.rsplit_once(") ").context("no comm")?;
    let fields: Vec<_> = after_comm.split(' ').collect();
    Ok(fields[7].parse::<u64>()? + fields[9].parse::<u64>()?)
}

/// A stall of its own begins with a page that it has to ask for: it asks for none. It is itself in the
/// cgroup whose limit is reached all the time, where each page would have to be reclaimed first.
#[test]
fn it_asks_for_no_page_and_makes_no_stall_of_its_own() -> Result<()> {
    let cgroup = Cgroup::limited(TEST, CACHE_BYTES)?;
    // Each thread that comes is one more histogram.
    let what = Churning { brief: true, ..Churning::new(&cgroup) };
    let mut load = Load::churn(memload(), &what)?;
    let observed = Memtrace::start(&["drsnoop", "-H", "-p", &load.id().to_string()]);
    let locked = status_kib(observed.id(), "VmLck")?;
    assert!(locked >= 4 << 10, "only {locked} KiB are locked");
    cgroup.add(observed.id())?;
    let beside = Memtrace::start(&["drsnoop", "--json", "-p", &observed.id().to_string()]);
    let before = faults(observed.id())?;
    load.work(&cgroup, if is_guest() { HITS / 4 } else { 4 * HITS })?;
    assert_eq!(faults(observed.id())? - before, 0, "pages asked for while tracing");
    let own = beside.stop();
    own.assert_success();
    let own = Output::parse(&own.stdout)?;
    assert!(own.rows.is_empty(), "memtrace stalled itself: {:?}", own.rows);
    load.stop()?;
    let finished = observed.stop();
    finished.assert_success();
    assert!(finished.summary().stalls >= 50, "there was nothing to see: {}", finished.stderr);
    Ok(())
}

/// Ids of what memtrace has in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Objects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Objects {
    /// What process `pid` holds, with the maps that only its programs hold.
    fn of(pid: u32) -> Result<Self> {
        let mut objects = Self::default();
        for info in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            let text = fs::read_to_string(info?.path())?;
            for line in text.lines() {
                let Some((key, value)) = line.split_once(':') else { continue };
                let ids = match key {
                    "prog_id" => &mut objects.programs,
                    "map_id" => &mut objects.maps,
                    "link_id" => &mut objects.links,
                    _ => continue,
                };
                ids.insert(value.trim().parse()?);
            }
        }
        for program in loaded_programs().filter_map(Result::ok) {
            if objects.programs.contains(&program.id()) {
                objects.maps.extend(program.map_ids()?.into_iter().flatten());
            }
        }
        ensure!(!objects.programs.is_empty(), "memtrace has no programs");
        ensure!(objects.maps.len() > 3, "memtrace has no maps: {objects:?}");
        ensure!(!objects.links.is_empty(), "memtrace has no links");
        Ok(objects)
    }

    /// Those of them that the kernel still has.
    fn left(&self) -> Self {
        let programs = loaded_programs().filter_map(|program| Some(program.ok()?.id()));
        let maps = loaded_maps().filter_map(|map| Some(map.ok()?.id()));
        let links = loaded_links().filter_map(|link| Some(link.ok()?.id()));
        Self {
            programs: programs.filter(|id| self.programs.contains(id)).collect(),
            maps: maps.filter(|id| self.maps.contains(id)).collect(),
            links: links.filter(|id| self.links.contains(id)).collect(),
        }
    }

    /// The kernel frees them a moment after the last descriptor is closed.
    #[track_caller]
    fn assert_gone(&self) {
        wait_until("the kernel to free what memtrace had", || self.left() == Self::default());
    }
}

#[test]
fn killed_while_tracing_it_leaves_nothing() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let memtrace = Memtrace::start(&["drsnoop", "-e", "-p", &load.id().to_string()]);
    load.work(&cgroup, HITS / 8)?;
    let objects = Objects::of(memtrace.id())?;
    assert_eq!(objects.left(), objects, "the kernel has all of it while memtrace runs");
    memtrace.signal(Signal::KILL);
    assert_eq!(memtrace.wait().status.code(), None, "killed");
    objects.assert_gone();
    load.stop()?;
    Ok(())
}

#[test]
fn many_runs_leave_nothing() -> Result<()> {
    // In a guest each takes seconds.
    let runs = if is_guest() { 20 } else { 200 };
    let mut all = Objects::default();
    for number in 0..runs {
        let subject = if number % 2 == 0 { "drsnoop" } else { "compactsnoop" };
        let memtrace = Memtrace::start(&[subject, "-e"]);
        let Objects { programs, maps, links } = Objects::of(memtrace.id())?;
        memtrace.stop().assert_success();
        all.programs.extend(programs);
        all.maps.extend(maps);
        all.links.extend(links);
    }
    all.assert_gone();
    Ok(())
}

#[test]
fn two_at_once_see_the_same() -> Result<()> {
    const ENOUGH: usize = 200;
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id().to_string();
    let pair = [(); 2].map(|()| Memtrace::start(&["drsnoop", "--json", "-p", &pid]));
    load.work_until_shown(&pair[0], ENOUGH, 1)?;
    load.stop()?;
    let [one, other] = pair.map(|memtrace| {
        let finished = memtrace.stop();
        finished.assert_success();
        Output::parse(&finished.stdout)
    });
    let (one, other) = (one?, other?);
    assert!(one.rows.len() >= ENOUGH, "only {} stalls", one.rows.len());
    assert_same(&one, &other);
    Ok(())
}

/// A change of a process.
type Change = fn() -> io::Result<()>;

/// memtrace after a change of its process, made between fork and exec.
fn after(change: Change, args: &[&str]) -> Finished {
    let mut command = command(args);
    // SAFETY: the changes below make one system call each, and allocate nothing.
    unsafe { command.pre_exec(change) };
    Finished::of(&mut command)
}

fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) })?)
}

#[test]
fn too_little_of_anything_is_said_in_one_line() {
    let flight = &["record", "--trigger", "oom", "-o", "/nonexistent", "-d", "100ms"];
    let limits: [(Change, &[&str], &str); 4] = [
        (|| limit(Resource::Nofile, 5, 5), &["drsnoop", "-d", "100ms"], "`ulimit -n`"),
        (|| limit(Resource::As, 12 << 20, 12 << 20), &["drsnoop", "-d", "100ms"], "`ulimit -v`"),
        (|| limit(Resource::As, 64 << 20, 64 << 20), flight, "`ulimit -v`"),
        (|| limit(Resource::Data, 1 << 20, 1 << 20), &["drsnoop", "-d", "100ms"], "`ulimit -d`"),
    ];
    for (limit, args, remedy) in limits {
        let finished = after(limit, args);
        assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert!(finished.stderr.contains(remedy), "{}", finished.stderr);
    }
}

#[test]
fn what_is_just_enough_is() -> Result<()> {
    let limits: [Change; 5] = [
        || limit(Resource::Nofile, 8, 1024),
        || limit(Resource::As, 32 << 20, 32 << 20),
        || limit(Resource::Data, 32 << 20, 32 << 20),
        || limit(Resource::Memlock, 0, 0),
        || limit(Resource::Stack, 512 << 10, 512 << 10),
    ];
    for limit in limits {
        after(limit, &["drsnoop", "-e", "-d", "100ms"]).assert_success();
        after(limit, &["compactsnoop", "-K", "-d", "100ms"]).assert_success();
    }
    let dir = TempDir::new()?;
    let path = dir.path().join("enough.mtr");
    let path = path.to_str().context("paths of tests are UTF-8")?;
    let limit = || limit(Resource::As, 39 << 20, 39 << 20);
    after(limit, &["record", "-K", "-o", path, "-d", "1200ms"]).assert_success();
    Ok(())
}

#[test]
fn closed_streams_are_no_matter() {
    fn close(fd: libc::c_int) -> io::Result<()> {
        // SAFETY: nothing of this process uses the descriptor before exec.
        if unsafe { libc::close(fd) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
    let streams: [Change; 4] =
        [|| close(0), || close(1), || close(2), || (0..=2).try_for_each(close)];
    for (number, close) in streams.into_iter().enumerate() {
        let finished = after(close, &["drsnoop", "-d", "100ms"]);
        finished.assert_success();
        let lines = if number < 2 { 2 } else { 0 };
        assert_eq!(finished.stderr.lines().count(), lines, "{}", finished.stderr);
    }
}
