//! Clocks that are set while something is recorded, and files that have the same in them.

use std::time::Duration;

use super::*;
use crate::recording::Flight;
use crate::recording::flight::LEAST_MEMORY;
use crate::recording::meta::timestamp;
use crate::recording::recorder::Recorder;

const HOUR_NS: i64 = 3_600_000_000_000;

/// One minute, in the midst of which the clock is set.
fn minute(step_ns: i64, ended: bool) -> Recording {
    let at = |second: u64| stall(1, second * SECOND_NS, SECOND_NS / 2);
    let duration_ns = 60 * SECOND_NS;
    let at_ns = NOON_NS + step_ns + duration_ns.cast_signed();
    let end = Put::Note(Note::End(End { at_ns, duration_ns, ..End::default() }));
    let mut last = vec![at(40), look(60 * SECOND_NS, 9)];
    last.extend(ended.then_some(end));
    let blocks = [
        (0, NOON_NS, vec![look(0, 5), at(10)]),
        (1, NOON_NS, vec![at(20)]),
        (2, NOON_NS + step_ns, last),
    ];
    opened(&written_by(&meta("a", false), blocks))
}

#[test]
fn who_sets_the_clock_makes_no_recording_longer_or_shorter() {
    for step_ns in [0, HOUR_NS, -HOUR_NS, -30_000_000_000] {
        for ended in [true, false] {
            let recordings = [minute(step_ns, ended)];
            let findings = findings(&recordings);
            assert_eq!(findings.duration_ns, 60 * SECOND_NS, "{step_ns}");
            assert_eq!(findings.stalls_per_s, Some(0.05));
            assert_eq!(findings.stalled_ns_per_s, Some(25_000_000.0));
            assert!(text(&findings).contains(", 60.00 s recorded"), "{}", text(&findings));
            // When it was, is what the host took it for.
            let end_ns = NOON_NS + step_ns + 60_000_000_000;
            assert_eq!((findings.since, findings.time), (Some(NOON_NS), Some(end_ns)));
            let mut times: Vec<_> =
                findings.longest.iter().map(|row| row.long.at_ns - NOON_NS).collect();
            times.sort_unstable();
            let mut expected = [10_000_000_000, 20_000_000_000, 40_000_000_000 + step_ns];
            expected.sort_unstable();
            assert_eq!(times, expected);
            // The same one twice, or a part of it, is no longer.
            let both = [minute(step_ns, ended), minute(step_ns, true)];
            assert_eq!(super::findings(&both).duration_ns, 60 * SECOND_NS);
            let [before, after] = &both;
            assert_eq!(diff(before, after).duration_ns, [60 * SECOND_NS; 2]);
        }
    }
}

#[test]
fn of_a_file_that_was_full_only_what_is_left_was_recorded() {
    let some = (4..9).map(|n| (n, vec![stall(1, n * SECOND_NS, SECOND_NS / 2)]));
    let last = (9, vec![look(10 * SECOND_NS, 1), end(10, Counts::default())]);
    let findings = findings(&[recording(&meta("a", false), some.chain([last]))]);
    assert_eq!(findings.recordings[0].dropped_blocks, 4);
    assert_eq!(findings.duration_ns, 6 * SECOND_NS);
    assert_eq!(findings.since, Some(NOON_NS + 4_000_000_000));
}

#[test]
fn however_long_an_end_says_that_it_was_nothing_overflows() {
    let long = End { at_ns: i64::MIN, duration_ns: u64::MAX, ..End::default() };
    let blocks = [(0, vec![stall(1, u64::MAX - 5, 5), Put::Note(Note::End(long))])];
    let findings = findings(&[recording(&meta("a", false), blocks)]);
    assert!(findings.duration_ns > 0 && !text(&findings).is_empty());
}

/// What a flight recorder writes: one stall, one look and one loss a second, kept for ten seconds. `until` has when
/// each file ends, in seconds.
fn flight(until: &[u64]) -> Vec<Recording> {
    let names = &mut names();
    let mut recorder = Recorder::new(names, false, 0, 0);
    let mut flight = Flight::new(LEAST_MEMORY, Duration::from_secs(10), 0);
    let mut files = Vec::new();
    let counts = |second: u64| Counts { lost: second, unfinished: second, ..Counts::default() };
    for second in 1..=until.iter().copied().max().unwrap_or_default() {
        let now_ns = second * SECOND_NS;
        let lasted_ns = SECOND_NS / 4;
        let stall = Stall { start_ns: now_ns - lasted_ns, duration_ns: lasted_ns, ..reclaim() };
        recorder.event(&Event::Stall(stall), names);
        let Put::Note(Note::Look(look)) = look(now_ns, second) else { unreachable!("a look") };
        recorder.note(&Note::Look(Look { counts: counts(second), ..look }));
        flight.push(recorder.finish(now_ns).expect("there is something in it"), now_ns);
        if !until.contains(&second) {
            continue;
        }
        let since_ns = flight.since_ns();
        let fired = Fired { trigger: "rate>1/m".to_owned(), ..Fired::default() };
        let began_ns = NOON_NS + since_ns.cast_signed();
        let meta = Meta { began_ns, run_ns: NOON_NS - 7, trigger: Some(fired), ..meta("a", false) };
        let (duration_ns, before) = (now_ns - since_ns, since_ns / SECOND_NS);
        let end = End {
            at_ns: NOON_NS + now_ns.cast_signed(),
            duration_ns,
            counts: Counts { lost: second - before, unfinished: second, ..Counts::default() },
            ..End::default()
        };
        let mut bytes = file::header(&meta);
        flight.from(0).for_each(|parts| bytes.extend(parts.concat()));
        bytes.extend(recorder.end_alone(end, now_ns));
        files.push(opened(&bytes));
    }
    files
}

#[test]
fn what_several_files_of_a_flight_recorder_have_counts_once() {
    for (until, duration, lost) in [
        (&[15][..], 11, 11),
        (&[15, 20], 16, 16),
        (&[15, 20, 40], 27, 27),
        (&[15, 16, 17, 18], 14, 14),
        (&[15, 15], 11, 11),
    ] {
        let mut recordings = flight(until);
        for _ in 0..2 {
            let findings = findings(&recordings);
            assert_eq!(findings.duration_ns, duration * SECOND_NS, "{until:?}");
            assert_eq!((findings.stats.count, findings.counts.lost), (duration, lost), "{until:?}");
            assert_eq!(findings.stalls_per_s, Some(1.0), "{until:?}");
            assert_eq!(Some(&findings.counts.unfinished), until.last());
            for recorded in &findings.recordings {
                assert!(recorded.ended && !recorded.is_damaged(), "{recorded:?}");
                assert_eq!(recorded.damaged_blocks, 0);
                let end = recorded.time - NOON_NS;
                assert!(until.contains(&(end / 1_000_000_000).cast_unsigned()), "{end}");
            }
            recordings.reverse();
        }
    }
}

#[test]
fn files_of_two_flight_recorders_are_not_taken_for_one() {
    let mut recordings = flight(&[15]);
    let mut other = flight(&[15]);
    other[0].meta.run_ns += 1;
    recordings.append(&mut other);
    let findings = findings(&recordings);
    // They have recorded the same time.
    assert_eq!((findings.stats.count, findings.duration_ns), (22, 11 * SECOND_NS));
    assert_eq!(findings.counts.lost, 22);
}

#[test]
fn a_file_without_its_end_has_not_ended_because_another_has() {
    let mut recordings = flight(&[15, 20]);
    recordings[1].places.pop();
    let findings = findings(&recordings);
    let ended: Vec<_> = findings.recordings.iter().map(|recorded| recorded.ended).collect();
    assert_eq!((ended, findings.counts.lost), (vec![true, false], 16));
    assert_eq!(findings.duration_ns, 16 * SECOND_NS);
    assert_eq!(
        timestamp(findings.time.expect("there is a time")),
        timestamp(NOON_NS + 20_000_000_000)
    );
}
