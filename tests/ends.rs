//! Every way to end: cleanly, with status 0, the last rows and the summary.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
    process, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;
use tests::{
    cgroup::{Cgroup, TEST},
    confined::deaf_to_hang_up,
    host::is_guest,
    load::{Churning, HITS, Load, THREAD_BYTES, limited_cgroup},
    rows::Output,
    run::{Finished, Memtrace, binary, command},
    wait::wait_until,
};

fn memload() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memload"))
}

/// This process, which has no stalls.
fn idle() -> String {
    process::id().to_string()
}

/// Ends memtrace by a signal while a load is at work.
fn end_by(signal: Signal) -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let memtrace = Memtrace::start(&["drsnoop", "--json", "-p", &load.id().to_string()]);
    load.work(&cgroup, HITS / 4)?;
    memtrace.signal(signal);
    let finished = memtrace.wait();
    load.stop()?;
    finished.assert_success();
    let output = Output::parse(&finished.stdout)?;
    output.summary.assert_nothing_lost();
    assert!(!output.rows.is_empty());
    assert_eq!(
        output.summary.stalls,
        output.rows.len() as u64,
        "rows that were still waiting are shown"
    );
    assert_eq!(
        finished.summary().stalls,
        output.summary.stalls,
        "one summary for people and one for programs"
    );
    assert_eq!(
        finished.stderr.lines().count(),
        2,
        "what is traced, and the summary: {}",
        finished.stderr
    );
    Ok(())
}

#[test]
fn by_interrupt() -> Result<()> {
    end_by(Signal::INT)
}

#[test]
fn by_terminate() -> Result<()> {
    end_by(Signal::TERM)
}

#[test]
fn by_hang_up() -> Result<()> {
    end_by(Signal::HUP)
}

/// On an idle host nothing wakes memtrace up but its own clock.
#[test]
fn by_duration_when_nothing_happens() {
    for (args, shortest, longest) in
        [(["-d", "1"], 1.0, 2.5), (["--duration", "1500ms"], 1.5, 3.0), (["-d", "0.2s"], 0.2, 1.7)]
    {
        let finished = Memtrace::start(&[&["drsnoop", "-p", &idle()], &args[..]].concat()).wait();
        finished.assert_success();
        // Attached is when this test noticed it, a little after memtrace's clock started.
        let took = finished.traced().as_secs_f64() + 0.1;
        assert!(took >= shortest && took < longest, "{args:?} took {took} s");
        let counts = finished.summary();
        assert_eq!(
            (counts.stalls, counts.lost, counts.missed_begin, counts.table_full),
            (0, 0, 0, 0)
        );
        assert!(
            finished.stderr.contains(&format!("0 stalls in {shortest:.1} s")),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn by_duration_of_compactsnoop() -> Result<()> {
    let finished =
        Memtrace::start(&["compactsnoop", "--json", "-p", &idle(), "-d", "300ms"]).wait();
    finished.assert_success();
    let Output { rows, histograms, summary } = Output::parse(&finished.stdout)?;
    assert!(rows.is_empty() && histograms.is_empty());
    let traced = Duration::from_nanos(summary.duration_ns);
    assert!(traced >= Duration::from_millis(300) && traced < Duration::from_secs(1), "{traced:?}");
    Ok(())
}

/// A histogram is printed at the end, and none where there was no stall.
#[test]
fn by_duration_with_a_histogram() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id().to_string();
    let memtrace =
        Memtrace::start(&["drsnoop", "-H", "--json", "--by", "process", "-p", &pid, "-d", "1"]);
    load.go()?;
    let finished = memtrace.wait();
    load.stop()?;
    finished.assert_success();
    let Output { rows, histograms, summary } = Output::parse(&finished.stdout)?;
    assert!(rows.is_empty());
    assert_eq!(histograms.len(), 1);
    assert_eq!(histograms[0]["count"].as_u64(), Some(summary.stalls));

    let finished = Memtrace::start(&["drsnoop", "-H", "-p", &idle(), "-d", "200ms"]).wait();
    finished.assert_success();
    assert_eq!(finished.stdout, "");
    Ok(())
}

/// As `memtrace drsnoop | head -2` does.
#[test]
fn by_a_closed_pipe_when_busy() -> Result<()> {
    for json in [false, true] {
        let cgroup = limited_cgroup()?;
        let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
        let pid = load.id().to_string();
        let format = if json { &["--json"][..] } else { &[] };
        let (memtrace, stdout) =
            Memtrace::start_piped(&[&["drsnoop", "-p", &pid], format].concat());
        load.go()?;
        let mut lines = BufReader::new(stdout).lines();
        for _ in 0..2 {
            assert!(
                lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())),
                "no two lines"
            );
        }
        drop(lines);
        assert_ended_by_itself(&memtrace.wait());
        load.stop()?;
    }
    Ok(())
}

/// The reader is gone and there is nothing to write, by which that is noticed otherwise.
#[test]
fn by_a_closed_pipe_when_nothing_happens() {
    for args in
        [&["drsnoop"][..], &["drsnoop", "--json"], &["compactsnoop", "-q"], &["drsnoop", "-H"]]
    {
        let quiet = args.contains(&"-q");
        let idle = idle();
        let args = [args, &["-p", &idle]].concat();
        if quiet {
            // Says nothing by which to know that it runs: closed before it does.
            let mut child = command(&args)
                .stdout(process::Stdio::piped())
                .stderr(process::Stdio::piped())
                .spawn()
                .expect("cannot start memtrace");
            drop(child.stdout.take());
            let mut status = None;
            wait_until("memtrace to notice that its reader is gone", || {
                status = child.try_wait().expect("cannot wait for memtrace");
                status.is_some()
            });
            assert!(status.is_some_and(|status| status.success()), "{status:?}");
            let output = child.wait_with_output().expect("cannot wait for memtrace");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "quiet");
        } else {
            let (memtrace, stdout) = Memtrace::start_piped(&args);
            drop(stdout);
            assert_ended_by_itself(&memtrace.wait());
        }
    }
}

#[track_caller]
fn assert_ended_by_itself(finished: &Finished) {
    finished.assert_success();
    let _counts = finished.summary();
    assert_eq!(
        finished.stderr.lines().count(),
        2,
        "what is traced, and the summary: {}",
        finished.stderr
    );
}

/// Rows do not wait for more of them: a reader sees each within moments of its end.
#[test]
fn rows_are_written_while_tracing() -> Result<()> {
    let memtrace = Memtrace::start(&["compactsnoop", "--cause", "manual"]);
    let mut load = Load::compact(memload(), 1)?;
    load.go()?;
    load.wait()?;
    wait_until("a row", || {
        memtrace.stdout().lines().any(|line| line.contains("memload") && line.contains("manual"))
    });
    let finished = memtrace.stop();
    finished.assert_success();
    assert!(finished.stdout.ends_with('\n'));
    for line in finished.stdout.lines() {
        assert!(line.chars().count() <= 80, "more than 80 columns: `{line}`");
    }
    Ok(())
}

#[test]
fn a_process_that_ends_is_no_error() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning { threads: 2, ..Churning::new(&cgroup) })?;
    let (pid, tid) = (load.id().to_string(), load.workers()[0].to_string());
    let by_process = Memtrace::start(&["drsnoop", "-p", &pid, "-d", "3"]);
    let by_thread = Memtrace::start(&["drsnoop", "-t", &tid, "-d", "3"]);
    load.work(&cgroup, HITS / 8)?;
    load.stop()?;
    for memtrace in [by_process, by_thread] {
        let finished = memtrace.wait();
        finished.assert_success();
        assert!(finished.summary().stalls > 0, "{}", finished.stderr);
        assert!(
            finished.traced() >= Duration::from_millis(2500),
            "ended early: {:?}",
            finished.traced()
        );
    }
    Ok(())
}

#[test]
fn quiet_means_rows_only() -> Result<()> {
    let finished = Finished::of(&mut command(&["drsnoop", "-q", "-p", &idle(), "-d", "100ms"]));
    finished.assert_success();
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("", ""));
    let finished =
        Finished::of(&mut command(&["drsnoop", "-q", "--json", "-p", &idle(), "-d", "100ms"]));
    finished.assert_success();
    assert_eq!(finished.stderr, "");
    assert_eq!(
        Output::parse(&finished.stdout)?.summary.stalls,
        0,
        "a program reads the summary even so"
    );
    Ok(())
}

/// Both streams into a pipe that is closed: nothing can be said about it, and nothing panics.
#[test]
fn by_a_closed_pipe_for_everything() -> Result<()> {
    let (reader, writer) = io::pipe()?;
    let mut memtrace = command(&["drsnoop", "-v", "-d", "1", "-p", &idle()]);
    let mut child = memtrace.stdout(writer.try_clone()?).stderr(writer).spawn()?;
    // It holds the other end, too.
    drop(memtrace);
    let said = BufReader::new(reader).lines().find(|line| {
        // Other lines with -v come first.
        line.as_ref().map_or(true, |line| line.starts_with("Tracing "))
    });
    assert!(matches!(said, Some(Ok(_))), "{said:?}");
    assert_eq!(child.wait()?.code(), Some(0));

    let full = File::options().write(true).open("/dev/full")?;
    let mut memtrace = command(&["drsnoop", "-d", "0.2", "-p", &idle()]);
    let status = memtrace.stdout(process::Stdio::null()).stderr(full).status()?;
    assert_eq!(status.code(), Some(0));

    let (reader, writer) = io::pipe()?;
    drop(reader);
    let mut completions = command(&["completions", "bash"]);
    let status = completions.stdout(writer).stderr(process::Stdio::null()).status()?;
    assert_eq!(status.code(), Some(0));
    Ok(())
}

/// Whether a process listens for SIGTERM.
fn listens(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (Signal::TERM.as_raw() - 1)) != 0)
}

/// A signal before the probes are attached, which takes a while, ends the run as one that comes
/// later.
#[test]
fn by_a_signal_that_comes_early() -> Result<()> {
    let child = process::Command::new(binary())
        .args(["drsnoop", "-p", &idle()])
        .stdout(process::Stdio::piped())
        .stderr(process::Stdio::piped())
        .spawn()?;
    wait_until("memtrace to listen", || listens(child.id()));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM)?;
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("memtrace: 0 stalls in 0.0 s"), "{stderr}");
    Ok(())
}

/// Under nohup the end of the terminal is no end.
#[test]
fn not_by_a_hang_up_that_is_ignored() {
    let mut nohup = command(&["drsnoop", "-d", "2", "-p", &idle()]);
    let memtrace = Memtrace::spawn(deaf_to_hang_up(&mut nohup));
    memtrace.signal(Signal::HUP);
    let finished = memtrace.wait();
    finished.assert_success();
    assert!(finished.stderr.contains("stalls in 2."), "{}", finished.stderr);
}

/// The line about what no one read: stalls that did not become rows, and bytes of output.
fn given_up(stderr: &str) -> Option<(u64, usize)> {
    let line = stderr.lines().last()?.strip_prefix("memtrace: ")?;
    let (stalls, rest) = line.split_once(" of the stalls and ")?;
    let (bytes, _) = rest.split_once(" bytes of output given up, as no one read them")?;
    Some((stalls.parse().ok()?, bytes.parse().ok()?))
}

/// While a reader does not read, histograms do not pile up: the interval goes on. Once it reads again it gets all.
#[test]
fn histograms_wait_for_a_reader_that_does_not_read() -> Result<()> {
    const THREADS: usize = 100;
    let cgroup = Cgroup::limited(TEST, THREADS as u64 * THREAD_BYTES + (32 << 20))?;
    let what = Churning { threads: THREADS, ..Churning::new(&cgroup) };
    let mut load = Load::churn(memload(), &what)?;
    let pid = load.id().to_string();
    let args = ["drsnoop", "-H", "--json", "-p", &pid, "1"];
    let (memtrace, mut unread) = Memtrace::start_piped(&args);
    let begun = Instant::now();
    load.work(&cgroup, HITS)?;
    // A pipe and memtrace together hold one or two of them.
    wait_until("some intervals", || begun.elapsed() > Duration::from_secs(8));
    let reader = thread::spawn(move || {
        let mut taken = String::new();
        unread.read_to_string(&mut taken).map(|_| taken)
    });
    load.work(&cgroup, HITS / 4)?;
    load.stop()?;
    let periods = begun.elapsed().as_secs();
    let finished = memtrace.stop();
    finished.assert_success();
    let taken = reader.join().expect("it does not panic")?;

    let Output { histograms, summary, .. } = Output::parse(&taken)?;
    summary.assert_nothing_lost();
    let counts = histograms.iter().filter_map(|it| it["count"].as_u64());
    assert_eq!(counts.sum::<u64>(), summary.stalls, "{}", finished.stderr);
    let spans: BTreeSet<_> =
        histograms.iter().map(|it| [&it["since"], &it["time"]].map(Value::to_string)).collect();
    for ([_, end], [begin, _]) in spans.iter().zip(spans.iter().skip(1)) {
        assert_eq!(end, begin, "{spans:#?}");
    }
    assert!(spans.len() as u64 + 1 < periods, "{} intervals in {periods} periods", spans.len());
    Ok(())
}

/// Tracing ends when it was to, and the last interval with it, however long the reader takes.
#[test]
fn in_time_whenever_histograms_are_read() -> Result<()> {
    const THREADS: usize = 100;
    let cgroup = Cgroup::limited(TEST, THREADS as u64 * THREAD_BYTES + (32 << 20))?;
    let what = Churning { threads: THREADS, ..Churning::new(&cgroup) };
    let mut load = Load::churn(memload(), &what)?;
    let pid = load.id().to_string();
    let args = ["drsnoop", "-H", "--json", "-p", &pid, "-d", "4", "1"];
    let (memtrace, mut unread) = Memtrace::start_piped(&args);
    let begun = Instant::now();
    load.work(&cgroup, HITS)?;
    wait_until("4 s and more", || begun.elapsed() > Duration::from_secs(9));
    load.stop()?;
    let mut taken = String::new();
    unread.read_to_string(&mut taken)?;
    let finished = memtrace.wait();
    finished.assert_success();

    let Output { histograms, summary, .. } = Output::parse(&taken)?;
    let counts = histograms.iter().filter_map(|it| it["count"].as_u64());
    assert_eq!(counts.sum::<u64>(), summary.stalls, "{}", finished.stderr);
    let time = |it: &Value, key: &str| -> Result<Timestamp> {
        Ok(it[key].as_str().context("no time")?.parse()?)
    };
    let (first, last) = (histograms.first().context("none")?, histograms.last().context("none")?);
    let lasted = time(last, "time")?.duration_since(time(first, "since")?);
    assert!(lasted.as_secs_f64() < 7.0, "{lasted:?} from the first interval to the last");
    Ok(())
}

/// A reader that does not read keeps memtrace neither from ending in time nor from hearing signals.
/// Every stall is accounted for: another memtrace, which is read, says how many there were.
#[test]
fn beside_a_reader_that_does_not_read() -> Result<()> {
    let cgroup = limited_cgroup()?;
    let mut load = Load::churn(memload(), &Churning::new(&cgroup))?;
    let pid = load.id().to_string();
    let args = ["drsnoop", "--json", "-p", &pid];
    let witness = Memtrace::start(&args);
    let (memtrace, mut unread) = Memtrace::start_piped(&args);
    // More than a pipe holds, and where time allows more than memtrace keeps for later as well.
    load.work(&cgroup, if is_guest() { HITS / 2 } else { 4 * HITS })?;
    // Nothing stalls any more when it is told to end, so both have seen the same.
    load.stop()?;
    let asked = Instant::now();
    memtrace.signal(Signal::TERM);
    let finished = memtrace.wait();
    let took = asked.elapsed();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert!(took < Duration::from_secs(5), "ended {took:?} after SIGTERM");

    let summary = finished.summary();
    let witness = witness.stop();
    witness.assert_success();
    let Output { rows, summary: all, histograms: _ } = Output::parse(&witness.stdout)?;
    all.assert_nothing_lost();
    assert_eq!(summary.stalls + summary.lost, all.stalls, "{}", finished.stderr);

    // What went into the pipe goes on, in the middle of a row as it may be, in what was given up.
    let mut taken = String::new();
    unread.read_to_string(&mut taken)?;
    let (given_up, bytes) = given_up(&finished.stderr).context(finished.stderr.clone())?;
    let (shown, part) = taken.rsplit_once('\n').context("not one row in the pipe")?;
    let shown = shown.lines().count();
    let waiting = rows.len().checked_sub(shown + usize::try_from(given_up + summary.lost)?);
    let waiting = waiting.with_context(|| format!("{shown} shown, and {}", finished.stderr))?;
    println!("{shown} stalls shown, {waiting} in {bytes} bytes, {given_up} more given up");
    // As long as the rows of the other one, but for a digit here and there: not by a row.
    let lens: Vec<_> = witness.stdout.lines().map(|line| line.len() + 1).collect();
    let (first, last) = (lens.first().context("no rows")?, lens.last().context("no summary")?);
    let expected = lens[shown..shown + waiting].iter().sum::<usize>() + last;
    assert!(
        expected.abs_diff(part.len() + bytes) < *first,
        "{waiting} rows and the summary have {expected} bytes, not {} and {bytes}: {}",
        part.len(),
        finished.stderr
    );
    assert!(is_guest() || given_up > 0, "memtrace kept all of it: {}", finished.stderr);
    Ok(())
}
