//! What a switch from one thread to another costs where neither is held up: the run time of the program that tells
//! where the time of those that are goes, by the kernel's own count.

use std::{os::fd::AsFd as _, sync::mpsc::sync_channel, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    bpf,
    programs::{Floor, Runs},
    report::{Budget, Row},
    setting::{STALLS, Setting, measure_runs},
};

const UNIT: &str = "ns/switch";

/// memtrace's program, which has its tracepoint's name.
const PROGRAM: &str = "sched_switch";

/// How often two threads take turns in each round. Every turn is two switches.
const TURNS: u64 = 100_000;

/// It looks at two flags, and an empty program at none.
const TIMES: f64 = 3.0;

/// Measures it. All switches of the host count, of which the bench makes nearly all.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let _measuring = measure_runs()?;
    let turns = setting.count(TURNS);
    let empty = Floor::empty()?;
    let [mut floor, mut values] = [Vec::new(), Vec::new()];
    for _ in 0..setting.rounds {
        let attached = bpf::attach(empty.begin.as_fd(), c"sched_switch")?;
        values_of(setting, turns, &mut floor, || Runs::of(&empty.ids()?))?;
        drop(attached);
        let tracer = setting.start(STALLS)?;
        tracer.come_to_rest(Duration::ZERO)?;
        values_of(setting, turns, &mut values, || tracer.runs_of(PROGRAM))?;
        tracer.stop()?;
    }
    let name = "an empty program";
    Ok(vec![
        Row::new(format!("BPF time of a switch: {name}"), UNIT, floor.clone()),
        Row::new("BPF time of a switch: stalls, of threads that are in none", UNIT, values)
            .against(name, &floor)
            .within(Budget::MostTimes(TIMES)),
    ])
}

/// Adds what a switch costs while two threads take turns on one core.
fn values_of(
    setting: &Setting,
    turns: u64,
    values: &mut Vec<f64>,
    runs: impl Fn() -> Result<Runs>,
) -> Result<()> {
    let before = runs()?;
    setting.cores.flooding(|| take_turns(turns))?;
    let runs = runs()?.since(before);
    ensure!(runs.count >= turns, "only {} switches in {turns} turns of two threads", runs.count);
    values.push(runs.ns_per(runs.count));
    Ok(())
}

/// Two threads wait for each other, again and again; the second inherits the core of the first.
fn take_turns(turns: u64) -> Result<()> {
    let (go, gone) = sync_channel::<()>(0);
    let (back, came) = sync_channel::<()>(0);
    thread::scope(|scope| {
        // Ends when this end of its channel is dropped.
        scope.spawn(move || while gone.recv().is_ok() && back.send(()).is_ok() {});
        for _ in 0..turns {
            go.send(()).context("the other thread is gone")?;
            came.recv().context("the other thread is gone")?;
        }
        drop(go);
        Ok(())
    })
}
