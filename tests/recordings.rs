//! Recordings that are made up, as memtrace shows and reports on them: what is damaged it says, whatever it makes of them,
//! it ends when it was told to, and shows how far it is.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use memtrace::{
    live::Event,
    recording::{Builder, End, Meta, Note, file},
    stall::{Comm, Detail, Reclaim, ReclaimKind, Stall},
};
use nix::pty::openpty;
use serde_json::Value;
use tests::{
    host::TempDir,
    run::{Finished, command},
};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;
/// When the host was booted, in nanoseconds since 1970.
const EPOCH_NS: i64 = 1_770_000_000_000_000_000;
/// When the first stall of each recording ends, in nanoseconds since then.
const FIRST: u64 = 1000 * SECOND;

enum Put {
    /// A stall that ends so many nanoseconds after the first one.
    Stall(u64),
    Note(Note),
}

/// The data of a block, and its times.
type Raw = (Vec<u8>, (u64, u64));

fn raw(puts: impl IntoIterator<Item = Put>) -> Raw {
    let (mut builder, mut names) = (Builder::new(EPOCH_NS, false), Meta::default().names());
    for put in puts {
        match put {
            Put::Stall(after_ns) => builder.event(&Event::Stall(stall(after_ns)), &mut names),
            Put::Note(note) => builder.note(&note),
        }
    }
    let (raw, span) = builder.finish(EPOCH_NS);
    (raw.to_vec(), span)
}

fn stall(after_ns: u64) -> Stall {
    let mut comm = [0; Comm::LEN];
    comm[..5].copy_from_slice(b"waits");
    Stall {
        start_ns: FIRST + after_ns - MILLI,
        duration_ns: MILLI,
        pid: 7,
        tid: 7,
        uid: 0,
        cpu: 0,
        comm: Comm::new(comm),
        order: Some(0),
        gfp: None,
        cgroup_id: None,
        detail: Detail::Reclaim(Reclaim {
            kind: ReclaimKind::Direct,
            limit: None,
            nr_scanned: Some(64),
            nr_reclaimed: 32,
            compaction_ready: false,
            priority: Some(12),
            target_cgroup_id: Some(0),
            free_pages: None,
            node: None,
        }),
        stack: vec![0x1f],
        user_stack: Vec::new(),
    }
}

/// The end of a recording, so many nanoseconds after its first stall.
fn end(after_ns: u64) -> Put {
    let at_ns = EPOCH_NS.saturating_add_unsigned(FIRST + after_ns);
    Put::Note(Note::End(End { at_ns, duration_ns: after_ns, ..End::default() }))
}

fn meta() -> Meta {
    let began_ns = EPOCH_NS.saturating_add_unsigned(FIRST - SECOND);
    let (host, boot) = ("made".to_owned(), "up".to_owned());
    Meta { host, boot, began_ns, stacks: true, ..Meta::default() }
}

/// A block as it stands in a file.
fn block(number: u64, (raw, span): &Raw) -> Vec<u8> {
    let mut block = Vec::new();
    file::block(raw, number, *span, &mut block);
    block
}

/// Three blocks with a stall each, in order.
fn three() -> [Raw; 3] {
    [
        raw([Put::Stall(0)]),
        raw([Put::Stall(SECOND)]),
        raw([Put::Stall(2 * SECOND), end(3 * SECOND)]),
    ]
}

/// One of the data's bytes is another.
fn damaged(mut block: Vec<u8>) -> Vec<u8> {
    let last = block.last_mut().expect("it has data");
    *last ^= 1;
    block
}

fn written(dir: &TempDir, name: &str, parts: &[Vec<u8>]) -> Result<PathBuf> {
    let path = dir.path().join(name);
    fs::write(&path, [&file::header(&meta())[..], &parts.concat()].concat())?;
    Ok(path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

#[track_caller]
fn memtrace(args: &[&str]) -> Finished {
    let finished = Finished::of(&mut command(args));
    finished.assert_success();
    finished
}

/// All outputs of a report, each by itself and many at once.
fn outputs(dir: &TempDir) -> Vec<Vec<String>> {
    let file = |name: &str| text(&dir.path().join(name)).to_owned();
    let written = ["--html", "--perfetto", "--flame", "--hlog"];
    let written = written.map(|option| vec![option.to_owned(), file(&option[2..])]);
    let printed = ["--json", "--csv", "--folded"].map(|option| vec![option.to_owned()]);
    let all = [&written.concat()[..], &["--csv".to_owned()]].concat();
    [&[Vec::new(), all][..], &written, &printed].concat()
}

fn report(output: &[String], files: &[&Path]) -> Finished {
    let output = output.iter().map(String::as_str);
    let args = ["report"].into_iter().chain(output).chain(files.iter().map(|it| text(it)));
    memtrace(&args.collect::<Vec<_>>())
}

#[test]
fn what_is_damaged_is_said_whatever_is_made_of_it() -> Result<()> {
    let dir = TempDir::new()?;
    let three = three();
    let blocks = [0, 1, 2].map(|number: usize| block(number as u64, &three[number]));
    let [a, b, c] = blocks.clone();
    let good = written(&dir, "good.mtr", &blocks)?;
    let bad = written(&dir, "bad.mtr", &[a, damaged(b), c])?;
    let line = format!("memtrace: `{}` is damaged in part: 1 block left out\n", bad.display());
    for output in outputs(&dir) {
        assert_eq!(report(&output, &[&good]).stderr, "", "{output:?}");
        assert_eq!(report(&output, &[&bad]).stderr, line, "{output:?}");
        // What is damaged in the one is in the other.
        let both = report(&output, &[&bad, &good]).stderr;
        assert!(!both.contains("damaged"), "{output:?}: {both}");
        let twice = report(&output, &[&good, &good]).stderr;
        assert!(!twice.contains("damaged"), "{output:?}: {twice}");
    }
    let page = fs::read_to_string(dir.path().join("html"))?;
    assert!(!page.contains("damaged blocks"), "the last one was made of two that are good");
    report(&["--html".to_owned(), text(&dir.path().join("html")).to_owned()], &[&bad]);
    let page = fs::read_to_string(dir.path().join("html"))?;
    assert!(page.contains("1 damaged blocks, left out") && !page.contains("twice"));
    for json in [&[][..], &["--json"]] {
        let finished = memtrace(&[&["report", "--diff", text(&good), text(&bad)], json].concat());
        assert_eq!(finished.stderr, line);
    }
    let shown = memtrace(&["stalls", "--from", text(&bad), "-q"]);
    assert_eq!((shown.stdout.lines().count(), shown.stderr), (2, line));
    Ok(())
}

#[test]
fn a_file_that_has_gone_round_is_whole_unless_it_is_damaged() -> Result<()> {
    let dir = TempDir::new()?;
    let [older, newer, last] = three();
    let rest = block(3, &older)[30..].to_vec();
    let parts = |four: Vec<u8>| [block(5, &last), rest.clone(), four];
    let round = written(&dir, "round.mtr", &parts(block(4, &newer)))?;
    let bad = written(&dir, "bad.mtr", &parts(damaged(block(4, &newer))))?;
    for output in outputs(&dir) {
        assert_eq!(report(&output, &[&round]).stderr, "", "{output:?}");
        let said = report(&output, &[&bad]).stderr;
        assert!(said.contains("is damaged in part: 1 block left out"), "{output:?}: {said}");
    }
    let diff = |before: &Path| memtrace(&["report", "--diff", text(before), text(&round)]).stdout;
    assert!(diff(&round).contains("gave up its oldest stalls"), "{}", diff(&round));
    assert!(!diff(&round).contains("is damaged in part"), "{}", diff(&round));
    assert!(diff(&bad).contains("is damaged in part"), "{}", diff(&bad));
    let shown = memtrace(&["stalls", "--from", text(&round)]).stderr;
    assert!(shown.contains("4 of its oldest blocks gave way"), "{shown}");
    assert!(!shown.contains("belong to no whole block"), "{shown}");
    Ok(())
}

/// How many stalls each histogram has, and when the last one and the whole ended after the first stall.
fn histograms(path: &Path, args: &[&str]) -> Result<(Vec<u64>, f64, f64)> {
    let from = ["drsnoop", "--json", "--from", text(path), "-H"];
    let finished = memtrace(&[&from[..], args].concat());
    assert!(!finished.stderr.contains("it has no end"), "{}", finished.stderr);
    let mut all = finished.stdout.lines().map(serde_json::from_str::<Value>);
    let mut all = all.by_ref().collect::<Result<Vec<_>, _>>()?;
    let summary = all.pop().context("a summary")?;
    assert_eq!(summary["type"], "summary", "{summary}");
    let after = |value: &Value| -> Result<f64> {
        let at: jiff::Timestamp = value["time"].as_str().context("a time")?.parse()?;
        let first = i128::from(EPOCH_NS.saturating_add_unsigned(FIRST));
        Ok((at.as_nanosecond() - first) as f64 / SECOND as f64)
    };
    let counts = all.iter().filter_map(|histogram| histogram["count"].as_u64());
    let last = all.last().context("a histogram")?;
    Ok((counts.collect(), after(last)?, after(&summary)?))
}

#[test]
fn so_many_intervals_are_shown_and_no_more() -> Result<()> {
    let dir = TempDir::new()?;
    // Two a second for six seconds, then nothing, and one more.
    let stalls = || (0..12).map(|n| n * SECOND / 2).chain([20 * SECOND]).map(Put::Stall);
    let path = written(&dir, "a.mtr", &[block(0, &raw(stalls().chain([end(21 * SECOND)])))])?;
    let all = vec![2; 6];
    for (args, counts, last, over) in [
        (&["1"][..], [&all[..], &[1]].concat(), 21.0, 21.0),
        (&["1", "1"], vec![2], 1.0, 1.0),
        (&["1", "3"], vec![2; 3], 3.0, 3.0),
        // Intervals in which nothing happened count as well.
        (&["1", "9"], all.clone(), 6.0, 9.0),
        (&["1", "20"], all.clone(), 6.0, 20.0),
        (&["1", "22"], [&all[..], &[1]].concat(), 21.0, 21.0),
        (&["2", "2", "-d", "3"], vec![4, 3], 3.0, 3.0),
    ] {
        assert_eq!(histograms(&path, args)?, (counts, last, over), "{args:?}");
    }
    Ok(())
}

#[test]
fn intervals_end_when_they_did_live() -> Result<()> {
    let dir = TempDir::new()?;
    let puts = (0..6).flat_map(|second| {
        let at_ns = EPOCH_NS.saturating_add_unsigned(FIRST + second * SECOND + 700 * MILLI);
        let stalls = [0, 300, 600].map(|ms| Put::Stall(second * SECOND + ms * MILLI));
        stalls.into_iter().chain([Put::Note(Note::Interval(at_ns, SECOND))])
    });
    let mut meta = meta();
    meta.interval_ns = SECOND;
    let path = dir.path().join("live.mtr");
    let block = block(0, &raw(puts.chain([end(7 * SECOND)])));
    fs::write(&path, [file::header(&meta), block].concat())?;
    assert_eq!(histograms(&path, &["1"])?, (vec![3; 6], 5.7, 7.0));
    assert_eq!(histograms(&path, &["1", "2"])?, (vec![3; 2], 1.7, 1.7));
    assert_eq!(histograms(&path, &["1", "8"])?, (vec![3; 6], 5.7, 7.0));
    Ok(())
}

/// What a command says on a terminal, and how long it takes.
fn on_terminal(command: &mut Command) -> Result<(String, Duration)> {
    let terminal = openpty(None, None)?;
    let began = Instant::now();
    let mut child = command.stderr(terminal.slave).spawn()?;
    // It has the other end of the terminal, too.
    command.stderr(Stdio::null()).stdout(Stdio::null());
    let mut master = File::from(terminal.master);
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        // It ends with an error where nobody has the terminal any more.
        let _ended: std::io::Result<usize> = master.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    let status = child.wait()?;
    let took = began.elapsed();
    let said = reader.join().unwrap_or_default();
    anyhow::ensure!(status.success(), "{status}: {said}");
    Ok((said, took))
}

#[test]
fn a_bar_shows_how_far_it_is_where_it_takes_long() -> Result<()> {
    const LONG: Duration = Duration::from_secs(3);
    let dir = TempDir::new()?;
    let (path, out) = (dir.path().join("long.mtr"), dir.path().join("out"));
    let many = raw((0..8000).map(|n| Put::Stall(n * MILLI)));
    let to_log = ["report", "--hlog", text(&out), text(&path)];
    let to_file = ["drsnoop", "-H", "--from", text(&path)];
    for args in [&to_log[..], &to_file] {
        let mut blocks = 64;
        loop {
            let file = written(&dir, "long.mtr", &[])?;
            let mut file = File::options().append(true).open(file)?;
            for number in 0..blocks {
                std::io::Write::write_all(&mut file, &block(number, &many))?;
            }
            let (said, took) = on_terminal(command(args).stdout(File::create(&out)?))?;
            if took > LONG {
                assert!(said.contains(&format!("% of {blocks} blocks")), "{took:?}: {said:?}");
                break;
            }
            assert!(blocks < 1 << 16, "{blocks} blocks in {took:?}");
            blocks *= 2;
        }
    }
    // Lines that are looked at show it themselves, and who wants quiet has it.
    let piped = on_terminal(command(&to_file).stdout(Stdio::piped()))?.0;
    let quiet = [&to_file[..], &["-q"]].concat();
    let quiet = on_terminal(command(&quiet).stdout(File::create(&out)?))?.0;
    assert!(!piped.contains("% of") && !quiet.contains("% of"), "{piped:?}, {quiet:?}");
    Ok(())
}
