//! `memtrace now`: the threads that are stalled while it looks, and no others, as /proc has them.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use rustix::thread::CapabilitySet;
use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    confined::{as_nobody, public_copy, unlimit_locked_memory},
    load::{Churning, Load, limited_cgroup},
    run::{Finished, Memtrace, command},
    wait::wait_until,
};

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// What one run shows.
struct Shown {
    threads: Vec<Value>,
    looks: Vec<Value>,
}

impl Shown {
    fn parse(stdout: &str) -> Self {
        let (mut threads, mut looks) = (Vec::new(), Vec::new());
        for line in stdout.lines() {
            let object: Value = serde_json::from_str(line).expect("an object a line");
            match object["type"].as_str() {
                Some("stalled") => threads.push(object),
                Some("look") => looks.push(object),
                other => panic!("an object of type {other:?}"),
            }
        }
        Self { threads, looks }
    }
}

/// Runs it once, quickly, and adds `args`.
#[track_caller]
fn now(args: &[&str]) -> Shown {
    let args = [&["now", "--json", "-q", "-i", "1ms"], args].concat();
    let finished = Finished::of(&mut command(&args));
    finished.assert_success();
    let shown = Shown::parse(&finished.stdout);
    assert_eq!(shown.looks.len(), 1, "one look is shown: {}", finished.stdout);
    shown
}

/// A load that churns in a cgroup of its own.
fn churn(cgroup: &Cgroup) -> Result<Load> {
    let mut load = Load::churn(memload(), &Churning::new(cgroup))?;
    load.work(cgroup, 1)?;
    Ok(load)
}

/// Names of the functions of a stack, without offsets and what the compiler adds.
fn functions<'a>(frames: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let name = |frame: &'a str| frame.split(['+', '.']).next().unwrap_or_default().to_owned();
    frames.into_iter().map(name).collect()
}

/// The stack of a thread as /proc shows it: `[<0>] function+0x1/0x2`.
fn proc_stack(pid: u32, tid: u32) -> Vec<String> {
    let stack = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stack")).unwrap_or_default();
    functions(stack.lines().filter_map(|line| line.split_whitespace().nth(1)))
}

fn stack(thread: &Value) -> Vec<String> {
    let frames = thread["stack"].as_array().expect("a stack was asked for");
    functions(frames.iter().filter_map(Value::as_str))
}

fn number(thread: &Value, key: &str) -> u64 {
    thread[key].as_u64().unwrap_or_else(|| panic!("no `{key}` in {thread}"))
}

#[test]
fn a_thread_in_reclaim_is_shown_with_its_cgroup() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let load = churn(&cgroup)?;
    let pid = load.id().to_string();
    let mut seen = BTreeSet::new();
    wait_until("two threads of the load in reclaim", || {
        let shown = now(&["-p", &pid]);
        for thread in shown.threads.iter().filter(|thread| thread["kind"] == "memcg") {
            let tid = u32::try_from(number(thread, "tid")).expect("a thread id");
            assert!(load.tids().contains(&tid), "not a thread of the load: {thread}");
            assert_eq!(number(thread, "pid"), u64::from(load.id()));
            assert_eq!(thread["comm"], "memload");
            assert_eq!(thread["worker"], false);
            assert_eq!(number(thread, "target_cgroup_id"), cgroup.id().expect("it is there"));
            assert_eq!(thread["target_cgroup"], cgroup.name());
            assert_eq!(thread["cgroup"], cgroup.name());
            assert_eq!(thread["order"], 0);
            let gfp = thread["gfp"].as_array().expect("flags are known");
            assert!(gfp.iter().any(|flag| flag.as_str().is_some_and(|flag| flag.contains("GFP_"))));
            let priority = thread["priority"].as_i64().expect("a priority");
            assert!((-1..=12).contains(&priority), "{thread}");
            seen.insert(tid);
        }
        seen.len() >= 2
    });
    Ok(())
}

/// What all threads do is seen with the two capabilities that the snoops need as well.
#[test]
fn two_capabilities_show_it_too() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let load = churn(&cgroup)?;
    let (_dir, memtrace) = public_copy()?;
    let pid = load.id().to_string();
    wait_until("a thread of the load in reclaim", || {
        let mut command = Command::new(&memtrace);
        command.args(["now", "--json", "-q", "-i", "1ms", "-p", &pid]);
        unlimit_locked_memory(&mut command);
        let both = CapabilitySet::BPF | CapabilitySet::PERFMON;
        let finished = Finished::of(as_nobody(&mut command, both));
        finished.assert_success();
        let threads = Shown::parse(&finished.stdout).threads;
        threads.iter().any(|thread| thread["target_cgroup"] == cgroup.name())
    });
    Ok(())
}

#[test]
fn filters_leave_the_others_out() -> Result<()> {
    let (cgroup, other) = (limited_cgroup()?, limited_cgroup()?);
    let load = churn(&cgroup)?;
    let other_load = churn(&other)?;
    let path = cgroup.path().to_str().context("a path of the tests' own")?.to_owned();
    let worker = load.workers()[0];
    let pid = load.id().to_string();
    let tid = worker.to_string();
    for args in [["-c", &path], ["-p", &pid], ["-t", &tid]] {
        wait_until("a thread that passes the filter", || {
            let shown = now(&args).threads;
            for thread in &shown {
                assert_eq!(number(thread, "pid"), u64::from(load.id()), "{args:?}: {thread}");
                if args[0] == "-t" {
                    assert_eq!(number(thread, "tid"), u64::from(worker), "{thread}");
                }
            }
            !shown.is_empty()
        });
    }
    let own = std::process::id().to_string();
    for args in [["-p", &own], ["-n", "no such name"], ["-u", "4000000000"]] {
        let shown = now(&args);
        assert!(shown.threads.is_empty(), "{args:?}: {:?}", shown.threads);
        let all = load.tids().len() + other_load.tids().len();
        assert!(number(&shown.looks[0], "looked_at") > all as u64);
    }
    Ok(())
}

/// The threads run on, and /proc is read while memtrace looks again and again, until both have seen the
/// same.
#[test]
fn stacks_are_those_of_proc() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let load = churn(&cgroup)?;
    let pid = load.id();
    let id = pid.to_string();
    let args = ["now", "--watch", "--json", "-K", "-i", "1ms", "-p", &id];
    let memtrace = Memtrace::spawn_unattached(&mut command(&args));
    let reclaims = |stack: &Vec<String>| {
        stack.iter().any(|function| function == "try_to_free_mem_cgroup_pages")
    };
    let (mut theirs, mut lines) = (BTreeSet::new(), 0);
    wait_until("both to see the same stack of a thread", || {
        for tid in load.workers() {
            for _ in 0..100 {
                theirs.insert((u64::from(tid), proc_stack(pid, tid)));
            }
        }
        let threads = shown_since(&memtrace, &mut lines).threads.into_iter();
        let mut ours = threads.map(|thread| (number(&thread, "tid"), stack(&thread)));
        ours.any(|ours| reclaims(&ours.1) && theirs.contains(&ours))
    });
    memtrace.stop().assert_success();
    Ok(())
}

/// What it has shown after so many lines, which become more.
fn shown_since(memtrace: &Memtrace, lines: &mut usize) -> Shown {
    let stdout = memtrace.stdout();
    let whole = stdout.rfind('\n').map_or("", |end| &stdout[..end]);
    let new: Vec<_> = whole.lines().skip(*lines).collect();
    *lines += new.len();
    Shown::parse(&new.join("\n"))
}

#[test]
fn watching_goes_on_until_a_signal() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let load = churn(&cgroup)?;
    let pid = load.id().to_string();
    let args = ["now", "--watch", "--json", "-i", "5ms", "-p", &pid];
    let memtrace = Memtrace::spawn_unattached(&mut command(&args));
    let seen_twice = |thread: &Value| thread["seen"] == "both" && thread["seen_for_ns"].is_u64();
    let mut lines = 0;
    wait_until("a thread that is seen twice", || {
        shown_since(&memtrace, &mut lines).threads.iter().any(seen_twice)
    });
    let finished = memtrace.stop();
    finished.assert_success();
    let shown = Shown::parse(&finished.stdout);
    for thread in &shown.threads {
        assert_eq!(thread["seen"] != "both", thread["seen_for_ns"].is_null(), "{thread}");
    }
    assert!(shown.looks.len() > 1);
    for pair in shown.looks.windows(2) {
        assert_eq!(pair[0]["at_ns"], pair[1]["since_ns"], "a gap between looks: {pair:?}");
        assert!(number(&pair[1], "at_ns") > number(&pair[1], "since_ns"), "{pair:?}");
    }
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("memtrace: ") && last.contains(" threads; torn "), "{last}");
    Ok(())
}

#[test]
fn ten_thousand_threads_are_looked_at() -> Result<()> {
    const THREADS: u64 = 10_000;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sleeper = || {
            while !is_over.load(Ordering::Relaxed) {
                thread::park();
            }
        };
        let start = |_| thread::Builder::new().stack_size(16 << 10).spawn_scoped(scope, sleeper);
        let (sleepers, refused): (Vec<_>, Vec<_>) =
            (0..THREADS).map(start).partition(Result::is_ok);
        let shown = refused.is_empty().then(|| now(&["-p", &std::process::id().to_string()]));
        is_over.store(true, Ordering::Relaxed);
        for sleeper in sleepers.iter().flatten() {
            sleeper.thread().unpark();
        }
        let shown = shown.with_context(|| format!("{} threads cannot start", refused.len()))?;
        let look = &shown.looks[0];
        assert!(number(look, "looked_at") > THREADS, "{look}");
        assert_eq!((number(look, "stalled"), number(look, "left_out")), (0, 0), "{look}");
        Ok(())
    })
}

/// A process that asked for more than its memory.high, of which nothing can be reclaimed: the kernel has
/// it sleep on its way back to user space, for up to 2 s at a time.
#[cfg(feature = "guest")]
mod guest {
    use tests::wait::wait_for;

    use super::*;

    #[test]
    fn a_thread_asleep_for_memory_high_is_shown() -> Result<()> {
        tests::host::require_guest();
        let args = ["anon", "--high", "--limit", "16M", "--size", "96M", "--threads", "1"];
        let args = [&args[..], &["--duration", "600s"]].concat();
        let mut load = Load::of(memload(), &args)?;
        let pid = load.id();
        let tasks = || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the load runs");
            tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse::<u32>().ok())
        };
        let sleeps = |stack: &[String]| {
            stack.iter().any(|function| function.ends_with("mem_cgroup_handle_over_high"))
        };
        load.work_until("a thread asleep for memory.high", || {
            tasks().any(|tid| sleeps(&proc_stack(pid, tid)))
        })?;
        let id = pid.to_string();
        let shown = wait_for("that thread, with the stack that /proc has", || {
            let before: Vec<_> = tasks().map(|tid| (tid, proc_stack(pid, tid))).collect();
            let shown = now(&["-K", "-p", &id]).threads;
            let asleep = shown.into_iter().filter(|thread| thread["kind"] == "penalty");
            asleep.into_iter().find(|thread| {
                let tid = number(thread, "tid");
                let there = before.iter().find(|(known, _)| u64::from(*known) == tid);
                sleeps(&stack(thread)) && there.is_some_and(|(_, there)| *there == stack(thread))
            })
        });
        assert_eq!(shown["state"], "waiting", "{shown}");
        assert_eq!(shown["worker"], false, "{shown}");
        // Nothing of it can be reclaimed.
        assert_eq!(shown["verdict"], "hopeless", "{shown}");
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let cgroup = cgroup.trim_end().strip_prefix("0::").context("cgroup v2")?;
        assert_eq!(shown["cgroup"], cgroup, "{shown}");
        let path = format!("/sys/fs/cgroup{cgroup}");
        let is_shown =
            || now(&["-c", &path]).threads.iter().any(|thread| thread["kind"] == "penalty");
        wait_until("it below its cgroup", is_shown);
        Ok(())
    }

    /// Two looks half a second apart see the same sleep, or the next one.
    #[test]
    fn a_long_sleep_is_seen_twice() -> Result<()> {
        tests::host::require_guest();
        let args = ["anon", "--high", "--limit", "16M", "--size", "96M", "--threads", "1"];
        let mut load = Load::of(memload(), &[&args[..], &["--duration", "600s"]].concat())?;
        let pid = load.id().to_string();
        let args = ["now", "--json", "-q", "-p", &pid, "-i", "500ms"];
        load.work_until("a thread asleep at both looks", || {
            let finished = Finished::of(&mut command(&args));
            finished.assert_success();
            let shown = Shown::parse(&finished.stdout);
            let twice = |thread: &Value| thread["kind"] == "penalty" && thread["seen"] == "both";
            shown.threads.iter().any(twice)
        })
    }
}
