//! Filters: exactly the stalls that pass are shown, as the oracle has them.
//!
//! Two loads stall at the same time. One is what the filters look for, and differs from the other
//! in process, user, name and cgroup. The other one is at work when memtrace attaches, so that it
//! shows, too, that what is filtered out is not counted as missed.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use tests::{
    cgroup::{Cgroup, Hierarchy, Version},
    compare::match_up,
    host::{NOBODY, is_guest},
    load::{Churning, HITS, Load, limited_cgroup},
    oracle::Stall,
    rows::{Output, durations_ns},
    run::Memtrace,
    watch::{Watched, watch},
};

/// Hits of the limit that would make enough stalls to tell a filter by, did it show them.
const SOME_HITS: u64 = HITS / 8;

/// Name of the threads that are looked for, and a part of it.
const COMM: &str = "mt-wanted";
const PART_OF_COMM: &str = "t-wan";

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// The two loads in their cgroups. Fields are dropped in this order: loads before their cgroups,
/// and a cgroup before the one above.
struct Scene {
    wanted: Load,
    other: Load,
    /// Of cgroup v2, on a host where it does not control memory: has the wanted load in it, too.
    unified: Option<Cgroup>,
    /// Has the wanted load in it, and lies below `limited`.
    inner: Cgroup,
    limited: Cgroup,
    other_limited: Cgroup,
}

impl Scene {
    fn new() -> Result<Self> {
        let limited = limited_cgroup()?;
        let inner = limited.child()?;
        let other_limited = limited_cgroup()?;
        let wanted =
            Churning { comm: Some(COMM), uid: Some(NOBODY), threads: 3, ..Churning::new(&inner) };
        let wanted = Load::churn(memload(), &wanted)?;
        let other =
            Load::churn(memload(), &Churning { threads: 2, ..Churning::new(&other_limited) })?;
        let unified = match Hierarchy::of(Version::V2)? {
            Some(hierarchy) if !hierarchy.memory => Some(Cgroup::plain(&hierarchy)?),
            _ => None,
        };
        if let Some(unified) = &unified {
            unified.add(wanted.id())?;
        }
        Ok(Self { wanted, other, unified, inner, limited, other_limited })
    }

    fn pid(&self) -> String {
        self.wanted.id().to_string()
    }

    /// The threads of the wanted load that work.
    fn all(&self) -> Vec<u32> {
        self.wanted.workers()
    }

    /// Runs memtrace with a filter, and checks that it shows the stalls of the threads `tids` and
    /// no others: `enough` of them, or none.
    fn check(mut self, args: &[&str], tids: &[u32], enough: usize) -> Result<()> {
        self.other.work(&self.other_limited, 1)?;
        let main = self.wanted.id();
        let watched = watch("drsnoop", args, |memtrace| {
            match enough {
                0 => self.wanted.work(&self.limited, SOME_HITS)?,
                enough => self.wanted.work_until_shown(memtrace, 2 * enough, 1)?,
            }
            self.wanted.stop().map(drop)
        })?;
        self.other.stop()?;

        let Watched { memtrace, output, trace, .. } = watched;
        let Output { mut rows, summary, histograms: _ } = output;
        summary.assert_nothing_lost();
        assert_eq!(summary.missed_begin, 0, "missed begin, with {args:?}: {summary:?}");
        // The main thread, which has a name of its own, may stall as it ends the others.
        rows.retain(|row| row.tid != main);
        let stalls = trace.stalls.iter().filter(|stall| stall.tid != main);
        let (expected, excluded): (Vec<&Stall>, Vec<&Stall>) =
            stalls.partition(|stall| tids.contains(&stall.tid));
        assert!(excluded.len() >= 10, "only {} stalls to leave out, with {args:?}", excluded.len());
        assert!(rows.len() >= enough, "only {} stalls shown, with {args:?}", rows.len());
        assert!(enough > 0 || rows.is_empty(), "{} stalls shown, with {args:?}", rows.len());
        let expected_len = expected.len();
        match_up(expected, &rows).within(&memtrace).assert_same();
        println!("{args:?}: {expected_len} shown, {} left out", excluded.len());
        Ok(())
    }

    /// As [`Scene::check`], of a filter that something passes.
    fn check_some(self, args: &[&str], tids: &[u32]) -> Result<()> {
        self.check(args, tids, 10)
    }

    /// As [`Scene::check`], of a filter that nothing passes.
    fn check_none(self, args: &[&str]) -> Result<()> {
        self.check(args, &[], 0)
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// The name of user [`NOBODY`].
fn nobody() -> Result<String> {
    let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut names = fields
        .filter(|fields| fields.get(2) == Some(&NOBODY.to_string().as_str()))
        .map(|fields| fields[0]);
    Ok(names.next().context("/etc/passwd has no user 65534")?.to_owned())
}

#[test]
fn by_process() -> Result<()> {
    let scene = Scene::new()?;
    let (pid, all) = (scene.pid(), scene.all());
    scene.check_some(&["-p", &pid], &all)
}

#[test]
fn by_several_processes() -> Result<()> {
    let scene = Scene::new()?;
    // Of this process, which has no stalls.
    let pids = format!("{},{}", std::process::id(), scene.pid());
    let all = scene.all();
    scene.check_some(&["--pid", &pids], &all)
}

#[test]
fn by_thread() -> Result<()> {
    let scene = Scene::new()?;
    let tid = scene.all()[0];
    scene.check_some(&["-t", &tid.to_string()], &[tid])
}

#[test]
fn by_several_threads() -> Result<()> {
    let scene = Scene::new()?;
    let tids = [scene.all()[0], scene.all()[2]];
    scene.check_some(&["--tid", &format!("{},{}", tids[0], tids[1])], &tids)
}

#[test]
fn by_user_id() -> Result<()> {
    let scene = Scene::new()?;
    let all = scene.all();
    scene.check_some(&["-u", &NOBODY.to_string()], &all)
}

#[test]
fn by_user_name() -> Result<()> {
    let scene = Scene::new()?;
    let all = scene.all();
    scene.check_some(&["--uid", &nobody()?], &all)
}

#[test]
fn by_part_of_name() -> Result<()> {
    let scene = Scene::new()?;
    let all = scene.all();
    scene.check_some(&["-n", PART_OF_COMM], &all)
}

#[test]
fn by_end_of_name() -> Result<()> {
    let scene = Scene::new()?;
    let all = scene.all();
    scene.check_some(&["--comm", "ed"], &all)
}

#[test]
fn by_cgroup() -> Result<()> {
    let scene = Scene::new()?;
    let (path, all) = (scene.inner.path().to_owned(), scene.all());
    scene.check_some(&["-c", text(&path)?], &all)
}

#[test]
fn by_cgroup_above() -> Result<()> {
    let scene = Scene::new()?;
    let (path, all) = (scene.limited.path().to_owned(), scene.all());
    scene.check_some(&["--cgroup", text(&path)?], &all)
}

#[test]
fn by_path_below_the_root_of_the_hierarchy() -> Result<()> {
    let scene = Scene::new()?;
    let (name, all) = (scene.inner.name(), scene.all());
    scene.check_some(&["-c", &name], &all)
}

/// On hosts with a hybrid of both, the other tests are of cgroup v1, and this is of v2. Where v2
/// controls memory, they are of v2 themselves.
#[test]
fn by_cgroup_v2() -> Result<()> {
    let scene = Scene::new()?;
    let memory = Hierarchy::memory()?;
    let cgroup = scene.unified.as_ref().unwrap_or(&scene.inner);
    assert!(
        scene.unified.is_some() || memory.version == Version::V2,
        "this host has no cgroup v2: mount it"
    );
    let (path, all) = (cgroup.path().to_owned(), scene.all());
    scene.check_some(&["-c", text(&path)?], &all)
}

#[test]
fn together() -> Result<()> {
    let scene = Scene::new()?;
    let tid = scene.all()[1];
    let (pid, path) = (scene.pid(), scene.limited.path().to_owned());
    let uid = NOBODY.to_string();
    let args = [
        "-p",
        &pid,
        "-t",
        &tid.to_string(),
        "-u",
        &uid,
        "-n",
        COMM,
        "-c",
        text(&path)?,
        "-m",
        "1us",
    ];
    scene.check_some(&args, &[tid])
}

#[test]
fn contradicting_each_other() -> Result<()> {
    let scene = Scene::new()?;
    let pid = scene.pid();
    scene.check_none(&["-p", &pid, "-u", "0"])?;
    let scene = Scene::new()?;
    let (path, pid) = (scene.other_limited.path().to_owned(), scene.pid());
    scene.check_none(&["-p", &pid, "-c", text(&path)?])
}

#[test]
fn by_kind() -> Result<()> {
    let scene = Scene::new()?;
    let (pid, all) = (scene.pid(), scene.all());
    scene.check_some(&["-p", &pid, "--kind", "direct,memcg"], &all)?;
    let scene = Scene::new()?;
    scene.check_none(&["--kind", "direct,softlimit,node,proactive"])
}

#[test]
fn by_cause() -> Result<()> {
    for (causes, shown) in [("manual,direct", true), ("direct,kcompactd,proactive,other", false)] {
        let mut load = Load::compact(memload(), 2)?;
        let pid = load.id();
        let watched = watch("compactsnoop", &["--cause", causes], |_| {
            load.go()?;
            load.wait().map(drop)
        })?;
        let Watched { output: Output { rows, summary, histograms: _ }, trace, .. } = watched;
        let of_load: Vec<_> = trace.stalls.iter().filter(|stall| stall.tid == pid).collect();
        assert!(!of_load.is_empty(), "the oracle saw no compaction");
        let rows: Vec<_> = rows.iter().filter(|row| row.tid == pid).collect();
        if shown {
            match_up(of_load, rows).assert_same();
        } else {
            assert!(rows.is_empty(), "with --cause {causes}: {rows:?}");
        }
        assert_eq!(summary.missed_begin, 0, "missed begin, with --cause {causes}: {summary:?}");
    }
    Ok(())
}

/// Two memtraces at once, one with the filter. Each measures by itself, so a stall that lasted
/// about as long as the limit may pass one of them only; in a guest, so may one in twenty, whose
/// thread was preempted between the two.
#[test]
fn by_latency() -> Result<()> {
    const ENOUGH: usize = 10;
    // Each of the two takes its own time of a stall. Between them an emulated CPU may be taken away, now and then;
    // where the filter were wrong, half of the stalls would be.
    let (limit, limit_ns, about_ns, exceptions) = if is_guest() {
        ("1ms", 1_000_000, 500_000, 5)
    } else {
        ("100us", 100_000, 60_000, usize::MAX)
    };
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id().to_string();
    let unfiltered = Memtrace::start(&["drsnoop", "--json", "-p", &pid]);
    let filtered = Memtrace::start(&["drsnoop", "--json", "-p", &pid, "-m", limit]);
    let (longest_short_ns, shortest_long_ns) = (limit_ns - about_ns, limit_ns + about_ns);
    let mut next = 0;
    load.work_until("stalls that are longer and shorter", || {
        let lines = unfiltered.lines();
        if lines < next {
            return false;
        }
        next = lines + 50;
        let all = durations_ns(&unfiltered.stdout());
        let long = all.iter().filter(|&&ns| ns >= shortest_long_ns).count();
        let short = all.iter().filter(|&&ns| ns <= longest_short_ns).count();
        long >= ENOUGH && short >= ENOUGH
    })?;
    load.stop()?;
    let (unfiltered, filtered) = (unfiltered.stop(), filtered.stop());
    let unfiltered = Output::parse(&unfiltered.stdout)?;
    let filtered = Output::parse(&filtered.stdout)?;
    unfiltered.summary.assert_nothing_lost();
    filtered.summary.assert_nothing_lost();
    assert_eq!((unfiltered.summary.missed_begin, filtered.summary.missed_begin), (0, 0));

    assert!(filtered.rows.iter().all(|row| row.duration_ns >= limit_ns), "shorter than the limit");
    // One thread's stalls do not overlap, so those that do are the same one.
    let shown = |row: &tests::rows::Row| {
        let same = |other: &&tests::rows::Row| {
            other.tid == row.tid && other.start_ns < row.end_ns() && row.start_ns < other.end_ns()
        };
        filtered.rows.iter().filter(same).count()
    };
    let (mut long, mut short, mut wrong) = (0, 0, Vec::new());
    for row in &unfiltered.rows {
        let expected = if row.duration_ns >= shortest_long_ns {
            long += 1;
            1
        } else if row.duration_ns <= longest_short_ns {
            short += 1;
            0
        } else {
            continue;
        };
        if shown(row) != expected {
            wrong.push(row);
        }
    }
    assert!(long >= ENOUGH && short >= ENOUGH, "{long} long and {short} short stalls");
    assert!(wrong.len() <= (long + short) / exceptions, "{} wrong: {wrong:#?}", wrong.len());
    println!("{long} long and {short} short stalls");
    Ok(())
}
