//! Files of firings, from the first block to the last.

use std::{fs, os::fd::OwnedFd, os::unix::fs::PermissionsExt as _, path::Path};

use memtrace::{
    recording::{
        Builder, Recording,
        flight::LEAST_MEMORY,
        meta::{End, Note, Settled},
    },
    scope::Oom,
    stall::Comm,
    trigger::{Trigger, Watch},
};
use tempfile::TempDir;

use super::*;

const SECOND: u64 = 1_000_000_000;
/// When CLOCK_MONOTONIC is 1000 s.
const AT: &str = "2026-11-23T15:17:02Z";

struct Recorder {
    directory: TempDir,
    flight: Flight,
    files: Files,
    watch: Watch,
    builder: Builder,
    number: u64,
}

impl Recorder {
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let trigger: Trigger = "latency>100ms".parse().expect("a trigger");
        let mut options = Options {
            directory: directory.path().to_owned(),
            trigger: trigger.to_string(),
            after: Duration::from_secs(10),
            cooldown: Duration::from_mins(1),
            keep: None,
            exec: None,
        };
        change(&mut options);
        Self {
            directory,
            flight: Flight::new(LEAST_MEMORY, Duration::from_secs(30), 900 * SECOND),
            files: Files::prepare(options).expect("it can be written to"),
            watch: Watch::new(&trigger),
            builder: Builder::new(0, false),
            number: 0,
        }
    }

    fn clock() -> WallClock {
        let at: jiff::Timestamp = AT.parse().expect("a time");
        WallClock::from_epoch(at - jiff::SignedDuration::from_secs(1000))
    }

    /// A block that has a note in it and begins and ends at a time.
    fn block(&mut self, note: &Note, at_ns: u64) -> Vec<u8> {
        self.builder.note(note);
        let (raw, _) = self.builder.finish(0);
        let mut block = Vec::new();
        file::block(raw, self.number, (at_ns, at_ns), &mut block);
        block
    }

    fn push(&mut self, second: u64) {
        let now_ns = second * SECOND;
        let note = Note::Settled(Settled { now_ns, held: Vec::new() });
        let block = self.block(&note, now_ns);
        self.number += 1;
        self.flight.push(&block, now_ns);
    }

    fn fire(&mut self, second: u64) -> bool {
        let now_ns = second * SECOND;
        let cause = self.watch.stall(now_ns, 200_000_000).expect("it is too long");
        let meta = Meta { host: "host".to_owned(), began_ns: 7, ..Meta::default() };
        self.files.fire(&cause, now_ns, &Self::clock(), &meta, &mut self.flight)
    }

    fn kill(&mut self, second: u64) -> bool {
        let mut watch = Watch::new(&"oom".parse().expect("a trigger"));
        let at_ns = second * SECOND;
        let cause = watch.oom(&killed(at_ns)).expect("asked for");
        let meta = Meta::default();
        self.files.fire(&cause, at_ns, &Self::clock(), &meta, &mut self.flight)
    }

    /// Has all that waits written.
    fn write(&mut self, second: u64) {
        loop {
            self.files.write(second * SECOND, &mut self.flight);
            if self.files.disk.is_idle() || !matches!(self.files.state, State::Writing(_)) {
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Ends the file, and waits for the disk.
    fn finish(&mut self, second: u64) {
        let last = self.block(&Note::End(End::default()), second * SECOND);
        self.files.finish(&last, &self.flight);
        self.write(second);
        while self.files.is_writing() {
            self.files.tick(second * SECOND);
            thread::sleep(LOOK_EVERY);
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).expect("it is there");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    fn open(&self, name: &str) -> Recording {
        let file = File::open(self.directory.path().join(name)).expect("it is there");
        Recording::open(file).expect("it is a recording")
    }
}

fn killed(at_ns: u64) -> Oom {
    let comm = Comm::new([0; Comm::LEN]);
    Oom {
        at_ns,
        pid: 1,
        tid: 1,
        uid: 0,
        comm,
        cgroup_id: None,
        victim_pid: 2,
        victim_comm: None,
        victim_cgroup_id: None,
        stack: Vec::new(),
        user_stack: Vec::new(),
    }
}

/// When its blocks were, in seconds.
fn seconds(recording: &Recording) -> Vec<u64> {
    recording.places.iter().map(|place| place.last_ns / SECOND).collect()
}

#[test]
fn what_comes_before_a_kill_does_not_hide_it() {
    let mut recorder = Recorder::new(|_| {});
    recorder.push(901);
    assert!(recorder.fire(901));
    assert!(!recorder.kill(905), "it has to wait for the file");
    recorder.finish(911);
    assert!(!recorder.fire(912));
    assert!(recorder.kill(913));
    recorder.finish(923);
    assert!(!recorder.fire(924) && !recorder.kill(982));
    assert!(recorder.kill(983));
    assert_eq!(recorder.names().len(), 3);
}

#[test]
fn a_file_has_what_was_before_and_after() {
    let mut recorder = Recorder::new(|_| {});
    assert_eq!(recorder.files.needs(), CapabilitySet::empty());
    for second in 901..=1000 {
        recorder.push(second);
    }
    assert!(recorder.fire(1000));
    for second in 1001..=1010 {
        assert!(recorder.files.is_writing() && !recorder.files.is_due(second * SECOND - 1));
        recorder.push(second);
        recorder.write(second);
    }
    assert!(recorder.files.is_due(1010 * SECOND));
    let [part] = &*recorder.names() else { panic!("{:?}", recorder.names()) };
    assert_eq!(part, ".memtrace-20261123T151702Z-latency.part");
    assert_eq!(recorder.open(part).places.len(), 41, "it can be read after a crash");
    recorder.finish(1010);
    assert!(!recorder.files.is_due(u64::MAX));
    // Belongs to no file.
    recorder.push(1011);
    recorder.write(1011);

    let name = "memtrace-20261123T151702Z-latency.mtr";
    assert_eq!(recorder.names(), [name]);
    let path = recorder.directory.path().join(name);
    let mode = fs::metadata(path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let recording = recorder.open(name);
    let fired = recording.meta.trigger.clone().expect("a trigger made it");
    assert_eq!(fired.trigger, "latency>100ms");
    assert_eq!(fired.cause, "a stall of 200.00 ms, longer than 100 ms");
    assert_eq!(fired.at_monotonic_ns, 1000 * SECOND);
    let at: jiff::Timestamp = AT.parse().expect("a time");
    assert_eq!(fired.at_ns, since_1970_ns(at));
    assert_eq!(recording.meta.host, "host");
    assert_eq!(recording.meta.began_ns, since_1970_ns(at) - 31 * 1_000_000_000);
    let expected: Vec<_> = (970..=1010).chain([1010]).collect();
    assert_eq!(seconds(&recording), expected);
    assert_eq!(recording.missing, memtrace::recording::Missing::default());
    for place in &recording.places {
        assert!(recording.block(place).is_ok());
    }
}

#[test]
fn firings_that_nothing_comes_of_are_counted() {
    let mut recorder = Recorder::new(|_| {});
    assert!(recorder.fire(1000));
    assert!(!recorder.fire(1005), "while it is written");
    recorder.finish(1010);
    assert!(!recorder.fire(1069), "in the cooldown");
    recorder.push(1070);
    assert!(recorder.fire(1070));
    recorder.finish(1080);
    let names = recorder.names();
    let cause = |name: &str| recorder.open(name).meta.trigger.expect("a trigger made it").cause;
    assert_eq!(cause(&names[0]), "a stall of 200.00 ms, longer than 100 ms");
    let more = "a stall of 200.00 ms, longer than 100 ms; firings since the file before: 2";
    assert_eq!(cause(&names[1]), more);
    let sum = recorder.files.end(1081 * SECOND, &mut recorder.flight);
    assert_eq!(sum, Sum { written: 2, failed: 0, missed: 2 });
}

#[test]
fn blocks_wait_for_the_file_whatever_their_age() {
    let mut recorder = Recorder::new(|_| {});
    for second in 971..=1000 {
        recorder.push(second);
    }
    assert!(recorder.fire(1000));
    recorder.push(1300);
    recorder.finish(1300);
    let recording = recorder.open(&recorder.names()[0]);
    assert_eq!(seconds(&recording).len(), 32);
    recorder.push(1301);
    assert_eq!(recorder.flight.numbers().count(), 2, "they do not wait any more");
}

#[test]
fn much_is_written_bit_by_bit() {
    let mut recorder = Recorder::new(|_| {});
    let blocks = 7;
    for _ in 0..blocks {
        recorder.flight.push(&vec![0; AT_ONCE / 2], 1000 * SECOND);
    }
    assert!(recorder.fire(1000));
    let mut before = 0;
    while before < blocks {
        recorder.files.write(1000 * SECOND, &mut recorder.flight);
        let State::Writing(Writing { next, .. }) = recorder.files.state else {
            panic!("it has no end")
        };
        assert!(next - before <= 2, "{next} after {before}");
        before = next;
        thread::sleep(LOOK_EVERY);
    }
    recorder.finish(1000);
    let len = fs::metadata(recorder.directory.path().join(&recorder.names()[0]));
    assert!(len.expect("it is there").len() > blocks * AT_ONCE as u64 / 2);
}

/// What takes the probes' stalls goes on while the one that writes sleeps.
#[test]
fn the_disk_is_not_waited_for() {
    let mut recorder = Recorder::new(|_| {});
    recorder.push(1000);
    assert!(recorder.fire(1000));
    let State::Writing(writing) = &mut recorder.files.state else { panic!("it is begun") };
    // No one reads from it.
    let (reader, pipe) = io::pipe().expect("there are pipes");
    writing.file = Arc::new(File::from(OwnedFd::from(pipe)));
    recorder.flight.push(&vec![0; AT_ONCE / 2], 1000 * SECOND);
    for second in 1001..1020 {
        recorder.files.write(second * SECOND, &mut recorder.flight);
        recorder.push(second);
    }
    assert!(!recorder.files.disk.is_idle() && recorder.files.is_writing());
    // Now it cannot be written at all.
    drop(reader);
    recorder.write(1020);
    assert_eq!((recorder.files.is_writing(), recorder.files.sum.failed), (false, 1));
}

#[test]
fn a_full_disk_does_not_end_it() {
    let mut recorder = Recorder::new(|_| {});
    recorder.push(1000);
    assert!(recorder.fire(1000));
    let State::Writing(writing) = &mut recorder.files.state else { panic!("it is begun") };
    let full = File::options().write(true).open("/dev/full").expect("it is there");
    writing.file = Arc::new(full);
    recorder.write(1001);
    assert!(!recorder.files.is_writing());
    assert_eq!(recorder.names(), [""; 0], "the part is left");
    assert!(!recorder.fire(1002), "in the cooldown");
    recorder.push(1100);
    assert!(recorder.fire(1100));
    recorder.finish(1110);
    assert_eq!(recorder.names().len(), 1);
    let sum = recorder.files.end(1111 * SECOND, &mut recorder.flight);
    assert_eq!(sum, Sum { written: 1, failed: 1, missed: 1 });
    assert_eq!(
        sum.to_string(),
        "recordings written: 1, failed: 1; firings while one was written or in the cooldown: 1"
    );
}

#[test]
fn a_directory_that_is_gone_does_not_end_it() {
    let mut recorder = Recorder::new(|_| {});
    fs::remove_dir(recorder.directory.path()).expect("it is empty");
    assert!(!recorder.fire(1000));
    assert_eq!(recorder.files.sum.failed, 1);
}

#[test]
fn so_many_are_kept_and_the_command_is_run_with_each() {
    let told = tempfile::tempdir().expect("a directory");
    let journal = told.path().join("list");
    let command = format!("echo \"$1: $MEMTRACE_CAUSE\" >>{}", journal.display());
    let mut recorder = Recorder::new(|options| {
        options.exec = Some(command.into());
        options.keep = NonZero::new(2);
        options.cooldown = Duration::ZERO;
    });
    for second in [1000, 2000, 3000] {
        assert!(recorder.fire(second));
        recorder.finish(second);
        recorder.files.exec.as_mut().expect("asked for").end(Instant::now() + PATIENCE);
    }
    let names = recorder.names();
    assert_eq!(
        names,
        ["memtrace-20261123T153342Z-latency.mtr", "memtrace-20261123T155022Z-latency.mtr"]
    );
    let told = fs::read_to_string(journal).expect("the command writes it");
    let last = recorder.directory.path().join(&names[1]);
    let line = format!("{}: a stall of 200.00 ms, longer than 100 ms", last.display());
    assert_eq!((told.lines().count(), told.lines().last()), (3, Some(&*line)));
}

#[test]
fn the_file_of_a_running_command_stays() {
    let told = tempfile::tempdir().expect("a directory");
    let go = told.path().join("go");
    let command =
        format!("until [ -e {} ]; do sleep 0.01; done; cat \"$1\" >/dev/null", go.display());
    let mut recorder = Recorder::new(|options| {
        options.exec = Some(command.into());
        options.keep = NonZero::new(1);
        options.cooldown = Duration::ZERO;
    });
    let mut record = |second| {
        assert!(recorder.fire(second));
        recorder.finish(second);
        recorder.names()
    };
    let first = record(1000);
    let second = record(2000);
    assert_eq!((second.len(), &second[0]), (2, &first[0]), "it is being read");
    let third = record(3000);
    assert_eq!((third.len(), &third[0]), (2, &first[0]));
    fs::write(go, "").expect("it can be written");
    recorder.files.exec.as_mut().expect("asked for").end(Instant::now() + PATIENCE);
    assert!(recorder.fire(4000));
    recorder.finish(4000);
    assert_eq!(recorder.names(), ["memtrace-20261123T160702Z-latency.mtr"]);
    recorder.files.exec.as_mut().expect("asked for").end(Instant::now() + PATIENCE);
}

#[test]
fn the_end_does_not_wait_for_a_slow_disk() {
    let mut recorder = Recorder::new(|_| {});
    for _ in 0..3 {
        recorder.flight.push(&vec![0; AT_ONCE], 1000 * SECOND);
    }
    assert!(recorder.fire(1000));
    let Recorder { directory, mut flight, files, .. } = recorder;
    let sum = files.end_by(Instant::now(), 1001 * SECOND, &mut flight);
    assert_eq!(sum, Sum { written: 1, ..Sum::default() });
    let path = directory.path().join("memtrace-20261123T151702Z-latency.mtr");
    let len = fs::metadata(path).expect("it has its name").len();
    assert!(len < 2 * AT_ONCE as u64, "{len}");
}

#[test]
fn what_was_left_half_written_is_completed_and_counts() {
    let mut recorder = Recorder::new(|_| {});
    for second in [1000, 2000] {
        recorder.push(second);
        assert!(recorder.fire(second));
        recorder.finish(second);
    }
    recorder.push(3000);
    assert!(recorder.fire(3000));
    recorder.write(3000);
    let names = || recorder.names();
    let options = Options { keep: NonZero::new(2), ..recorder.files.options.clone() };
    let part = ".memtrace-20261123T155022Z-latency.part";
    let _other = Files::prepare(options.clone()).expect("it can be written to");
    assert_eq!(names()[0], part, "it is written");
    assert_eq!(names().len(), 3);
    // As when it is killed.
    recorder.files.state = State::Idle;
    let _next = Files::prepare(options).expect("it can be written to");
    let left = ["memtrace-20261123T153342Z-latency.mtr", "memtrace-20261123T155022Z-latency.mtr"];
    assert_eq!(recorder.names(), left);
    let recording = recorder.open(left[1]);
    assert_eq!(seconds(&recording), [3000]);
    assert!(recording.meta.trigger.is_some());
}

#[test]
fn the_end_completes_what_is_begun() {
    let mut recorder = Recorder::new(|_| {});
    recorder.push(1000);
    assert!(recorder.fire(1000));
    let Recorder { directory, mut flight, files, .. } = recorder;
    let sum = files.end(1001 * SECOND, &mut flight);
    assert_eq!(sum, Sum { written: 1, ..Sum::default() });
    let path = directory.path().join("memtrace-20261123T151702Z-latency.mtr");
    assert!(Path::new(&path).exists());
}
