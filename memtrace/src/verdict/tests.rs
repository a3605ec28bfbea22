use super::*;

const SECOND: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;

/// Rounds as they are where nothing is wrong: short, and all that is scanned is reclaimed.
const HEALTHY: Evidence = Evidence {
    rounds: 1000,
    stalled_ns: 130_000_000,
    scanned: 64_000,
    reclaimed: 64_000,
    priority: Some(8),
    throttled: Throttled { writeback_ns: 0, isolated_ns: 0, noprogress_ns: 0, congested_ns: 0 },
    refaults: None,
};

/// A full cgroup with nothing but anonymous memory.
fn anonymous() -> State {
    State {
        swap_free: Some(0),
        anon: Some(40 * MIB),
        file: Some(0),
        current: Some(41 * MIB),
        limit: Some(40 * MIB),
        ..State::default()
    }
}

/// A full cgroup with nothing but page cache.
fn page_cache() -> State {
    State { anon: Some(0), file: Some(40 * MIB), dirty: Some(0), writeback: Some(0), ..anonymous() }
}

fn verdict(evidence: &Evidence, state: &State) -> Option<Verdict> {
    evidence.judge_target(Some(state))
}

#[test]
fn nothing_is_said_of_a_healthy_target() {
    for state in [page_cache(), anonymous(), State::default()] {
        assert_eq!(verdict(&HEALTHY, &state), None);
    }
    assert_eq!(HEALTHY.judge_target(None), None);
    assert_eq!(verdict(&Evidence::default(), &anonymous()), None);
}

#[test]
fn hopeless_is_what_has_no_swap_and_hardly_any_file_pages() {
    let nothing =
        Evidence { scanned: 0, reclaimed: 0, stalled_ns: 3_000_000, rounds: 17, ..HEALTHY };
    let is_hopeless =
        |evidence: &Evidence, state: &State| verdict(evidence, state) == Some(Verdict::Hopeless);
    assert!(is_hopeless(&nothing, &anonymous()));
    let full = anonymous();
    for (state, expected) in [
        (State { swap_free: Some(1), ..full }, false),
        (State { swap_free: None, ..full }, false),
        (State { anon: None, ..full }, false),
        (State { anon: Some(0), ..full }, false),
        // File pages are 5 % at most.
        (State { anon: Some(38 * MIB), file: Some(2 * MIB), ..full }, true),
        (State { anon: Some(37 * MIB), file: Some(3 * MIB), ..full }, false),
        // It is full; where that is not known it can be.
        (State { current: Some(36 * MIB), ..full }, true),
        (State { current: Some(35 * MIB), ..full }, false),
        (State { current: None, limit: None, ..full }, true),
        // Most of it is not the kernel's own.
        (State { anon: Some(21 * MIB), ..full }, true),
        (State { anon: Some(20 * MIB), ..full }, false),
    ] {
        assert_eq!(is_hopeless(&nothing, &state), expected, "{state:?}");
    }
    // A tenth of what each round is to get is the border.
    let got = |reclaimed| Evidence { rounds: 100, reclaimed, scanned: reclaimed, ..nothing };
    assert!(is_hopeless(&got(319), &full));
    assert!(!is_hopeless(&got(320), &full));
    // The last file pages, read back again and again, are no hope.
    let refaults = Some(Refaults { refaulted: 1000, reclaimed: 1000 });
    assert!(is_hopeless(&Evidence { refaults, ..HEALTHY }, &full));
}

#[test]
fn thrash_is_when_half_of_the_pages_are_read_back() {
    for (refaulted, reclaimed, expected) in [
        (1000, 1000, true),
        (500, 1000, true),
        (499, 1000, false),
        (256, 0, true),
        (255, 255, false),
        (0, 1000, false),
    ] {
        let refaults = Some(Refaults { refaulted, reclaimed });
        let found = verdict(&Evidence { refaults, ..HEALTHY }, &page_cache());
        assert_eq!(found == Some(Verdict::Thrash), expected, "{refaults:?}");
    }
}

#[test]
fn writeback_bound_is_what_waits_for_a_disk() {
    let throttled = |writeback_ns| Throttled { writeback_ns, ..Throttled::default() };
    let waits = |writeback_ns| Evidence { throttled: throttled(writeback_ns), ..HEALTHY };
    assert_eq!(verdict(&waits(39_000_000), &page_cache()), Some(Verdict::WritebackBound));
    assert_eq!(verdict(&waits(38_999_999), &page_cache()), None);
    // Or finds pages that have to be written.
    let got = |reclaimed| Evidence { scanned: 128_000, reclaimed, ..HEALTHY };
    let unwritten = |dirty, writeback| State { dirty, writeback, ..page_cache() };
    for (reclaimed, state, expected) in [
        (95_000, unwritten(Some(10 * MIB), Some(10 * MIB)), true),
        (96_000, unwritten(Some(10 * MIB), Some(10 * MIB)), false),
        (95_000, unwritten(Some(9 * MIB), Some(10 * MIB)), false),
        (95_000, unwritten(None, Some(20 * MIB)), true),
        (95_000, State { file: Some(0), ..unwritten(Some(MIB), None) }, false),
    ] {
        let found = verdict(&got(reclaimed), &state);
        assert_eq!(found == Some(Verdict::WritebackBound), expected, "{reclaimed} {state:?}");
    }
    // Or gets all that it looks at, but at the pace of the disk.
    let paced = |stalled_ns| Evidence { rounds: 60, stalled_ns, ..HEALTHY };
    let half = unwritten(Some(10 * MIB), Some(10 * MIB));
    assert_eq!(verdict(&paced(120_000_000), &half), Some(Verdict::WritebackBound));
    assert_eq!(verdict(&paced(119_999_999), &half), None);
    assert_eq!(verdict(&paced(120_000_000), &page_cache()), None);
    // Where it costs next to nothing, nothing is said.
    let cheap = |stalled_ns| Evidence { stalled_ns, ..got(0) };
    assert_eq!(verdict(&cheap(100_000_000), &half), Some(Verdict::WritebackBound));
    assert_eq!(verdict(&cheap(99_999_999), &half), None);
}

#[test]
fn slow_is_what_gets_few_of_the_pages_it_looks_at() {
    let got = |reclaimed| Evidence { scanned: 256_000, reclaimed, ..HEALTHY };
    assert_eq!(verdict(&got(63_999), &page_cache()), Some(Verdict::Slow));
    assert_eq!(verdict(&got(64_000), &page_cache()), None);
    // Where it costs next to nothing, nothing is said.
    let cheap = Evidence { stalled_ns: 99_999_999, ..got(0) };
    assert_eq!(verdict(&cheap, &page_cache()), None);
    // Sleeping for lack of progress is slow as well, for whatever reasons.
    let slept = |isolated_ns, noprogress_ns, congested_ns| Evidence {
        throttled: Throttled { writeback_ns: 0, isolated_ns, noprogress_ns, congested_ns },
        ..HEALTHY
    };
    for evidence in [slept(13_000_000, 13_000_000, 13_000_000), slept(39_000_000, 0, 0)] {
        assert_eq!(verdict(&evidence, &page_cache()), Some(Verdict::Slow));
    }
    assert_eq!(verdict(&slept(38_999_999, 0, 0), &page_cache()), None);
}

#[test]
fn progressing_is_what_works_but_takes_long() {
    let long = |stalled_ns| Evidence { rounds: 20, stalled_ns, ..HEALTHY };
    assert_eq!(verdict(&long(200_000_000), &page_cache()), Some(Verdict::Progressing));
    assert_eq!(verdict(&long(199_999_999), &page_cache()), None);
}

#[test]
fn a_few_short_rounds_are_no_evidence() {
    let nothing = Evidence { scanned: 0, reclaimed: 0, stalled_ns: 1, rounds: 8, ..HEALTHY };
    assert_eq!(verdict(&nothing, &anonymous()), Some(Verdict::Hopeless));
    let fewer = Evidence { rounds: 7, ..nothing };
    assert_eq!(verdict(&fewer, &anonymous()), None);
    let longer = Evidence { stalled_ns: 100_000_000, ..fewer };
    assert_eq!(verdict(&longer, &anonymous()), Some(Verdict::Hopeless));
}

#[test]
fn the_first_rule_that_applies_counts() {
    let all = Evidence {
        reclaimed: 0,
        throttled: Throttled {
            writeback_ns: 130_000_000,
            isolated_ns: 130_000_000,
            ..Throttled::default()
        },
        refaults: Some(Refaults { refaulted: 1000, reclaimed: 1000 }),
        ..HEALTHY
    };
    assert_eq!(verdict(&all, &anonymous()), Some(Verdict::Hopeless));
    assert_eq!(verdict(&all, &page_cache()), Some(Verdict::WritebackBound));
    let all = Evidence { throttled: Throttled { writeback_ns: 0, ..all.throttled }, ..all };
    assert_eq!(verdict(&all, &page_cache()), Some(Verdict::Thrash));
    assert_eq!(verdict(&Evidence { refaults: None, ..all }, &page_cache()), Some(Verdict::Slow));
}

fn round(end_ns: u64) -> Round {
    Round {
        end_ns,
        duration_ns: 3_100_000,
        scanned: Some(512),
        reclaimed: 512,
        priority: Some(12),
        rounds: 1,
        ..Round::default()
    }
}

#[test]
fn one_stall_is_judged_by_itself() {
    let judge = |round: &Round, state: &State| Verdict::judge_one(round, Some(state));
    let fine = round(0);
    assert_eq!(judge(&fine, &page_cache()), Some(Verdict::Progressing));
    let nothing = Round { scanned: Some(0), reclaimed: 0, ..fine };
    assert_eq!(judge(&nothing, &anonymous()), Some(Verdict::Hopeless));
    assert_eq!(judge(&nothing, &page_cache()), Some(Verdict::Slow));
    assert_eq!(judge(&Round { is_compaction: true, ..fine }, &page_cache()), None);
    assert_eq!(judge(&Round { scanned: None, ..fine }, &page_cache()), None);
    assert_eq!(Verdict::judge_one(&nothing, None), Some(Verdict::Slow));
}

/// States that are counted, and with a counter that moves each time.
struct Counted {
    state: State,
    reads: u64,
}

impl States for Counted {
    fn read(&mut self, _: u64) -> Option<State> {
        self.reads += 1;
        Some(State { refaulted_file: Some(30_000 * self.reads), ..self.state })
    }
}

#[test]
fn a_target_is_judged_by_its_last_ten_seconds() {
    let mut verdicts = Verdicts::new();
    let mut states = Counted { state: anonymous(), reads: 0 };
    let nothing = |at| Round { scanned: Some(0), reclaimed: 0, ..round(at) };
    for number in 0..10 {
        verdicts.round(7, &nothing(100 * SECOND + number));
    }
    let mut judge = |verdicts: &mut Verdicts, at| verdicts.judge(7, at, &mut states);
    assert_eq!(judge(&mut verdicts, 100 * SECOND), Some(Verdict::Hopeless));
    assert_eq!(judge(&mut verdicts, 109 * SECOND), Some(Verdict::Hopeless));
    assert_eq!(judge(&mut verdicts, 110 * SECOND), None);
    assert_eq!(verdicts.judge(8, 100 * SECOND, &mut states), None);
    assert_eq!(states.reads, 2, "of a target without rounds no state is read");
    // What comes late is left out where its place is taken, and what is older than the window.
    verdicts.round(7, &nothing(120 * SECOND));
    verdicts.round(7, &nothing(110 * SECOND));
    assert_eq!(verdicts.evidence(7, 120 * SECOND).rounds, 1);
    assert_eq!(verdicts.targets(120 * SECOND).collect::<Vec<_>>(), [7]);
    assert_eq!(verdicts.targets(130 * SECOND).count(), 0);
}

#[test]
fn states_are_read_once_a_second_and_refaults_between_two_of_them() {
    let mut verdicts = Verdicts::new();
    let mut states = Counted { state: page_cache(), reads: 0 };
    for tenth in 0..30 {
        let now = 100 * SECOND + tenth * SECOND / 10;
        for _ in 0..10 {
            verdicts.round(7, &round(now));
        }
        let expected = (tenth >= 10).then_some(Verdict::Thrash);
        assert_eq!(verdicts.judge(7, now, &mut states), expected, "{tenth}");
        assert_eq!(verdicts.judge_one(7, &round(now), &mut states), Some(Verdict::Progressing));
    }
    assert_eq!(states.reads, 3);
    // Ten rounds of 512 pages each tenth of a second, and 30,000 refaults a second.
    let refaults = Refaults { refaulted: 60_000, reclaimed: 20 * 5120 };
    assert_eq!(verdicts.evidence(7, 102 * SECOND).refaults, Some(refaults));
}

#[test]
fn compaction_is_no_evidence() {
    let mut verdicts = Verdicts::new();
    verdicts.round(0, &Round { is_compaction: true, ..round(SECOND) });
    assert_eq!(verdicts.evidence(0, SECOND), Evidence::default());
    assert_eq!(verdicts.targets(SECOND).count(), 0);
}

#[test]
fn there_is_room_for_some_targets_only() {
    let mut verdicts = Verdicts::new();
    for target in 0..1000 {
        verdicts.round(target, &round(100 * SECOND + target));
    }
    assert!(verdicts.targets(100 * SECOND).eq(872..1000));
    assert_eq!(verdicts.forgotten(), 872);
    // What is out of the window is no loss.
    verdicts.round(0, &round(200 * SECOND));
    assert_eq!(verdicts.forgotten(), 872);
}

#[test]
fn no_numbers_bring_it_down() {
    let most = Round {
        end_ns: u64::MAX,
        duration_ns: u64::MAX,
        scanned: Some(u64::MAX),
        reclaimed: u64::MAX,
        priority: Some(i32::MIN),
        rounds: u64::MAX,
        throttled: Throttled {
            writeback_ns: u64::MAX,
            isolated_ns: u64::MAX,
            noprogress_ns: u64::MAX,
            congested_ns: u64::MAX,
        },
        is_compaction: false,
    };
    let mut verdicts = Verdicts::new();
    let mut states = Counted { state: anonymous(), reads: 0 };
    for at in [0, u64::MAX, 1, u64::MAX] {
        verdicts.round(1, &Round { end_ns: at, ..most });
        let _any: Option<Verdict> = verdicts.judge(1, at, &mut states);
        let _any: Option<Verdict> = verdicts.judge_one(1, &most, &mut states);
    }
}

#[test]
fn names_stay_the_same() {
    let shown = [
        (Verdict::Progressing, "progressing", "progressing"),
        (Verdict::Slow, "slow", "slow"),
        (Verdict::Hopeless, "hopeless", "hopeless: anonymous only, no swap"),
        (Verdict::Thrash, "thrash", "thrash: file pages refault"),
        (Verdict::WritebackBound, "writeback-bound", "writeback-bound"),
    ];
    for (verdict, name, words) in shown {
        assert_eq!((verdict.name(), verdict.to_string().as_str()), (name, words));
        assert_eq!(serde_json::to_value(verdict).ok(), Some(name.into()));
    }
    assert_eq!(format!("{:>6}|", Verdict::Slow), "  slow|");
}

macro_rules! fixture {
    ($name:literal) => {
        Stat(include_str!(concat!("fixtures/", $name)))
    };
}

#[test]
fn memory_stat_of_v2() {
    for (stat, expected) in [
        (fixture!("v2-5.10.stat"), (0, 41_418_752, 135_168, 0, 30_690, 35_935)),
        (fixture!("v2-6.1.stat"), (0, 41_029_632, 0, 0, 30_711, 36_057)),
        (fixture!("v2-6.12.stat"), (0, 40_779_776, 21_106_688, 0, 17_279, 22_686)),
        (fixture!("v2-7.stat"), (0, 40_595_456, 0, 0, 33_455, 38_907)),
    ] {
        let State { anon, file, dirty, writeback, refaulted_file, refaulted_anon, stolen, .. } =
            State::of_v2(stat);
        let (anon_, file_, dirty_, writeback_, refaulted_, stolen_) = expected;
        assert_eq!([anon, file, dirty], [anon_, file_, dirty_].map(Some));
        assert_eq!(
            [writeback, refaulted_file, stolen],
            [writeback_, refaulted_, stolen_].map(Some)
        );
        assert_eq!(refaulted_anon, Some(0));
    }
}

#[test]
fn memory_stat_of_v1() {
    let counted = |stat| {
        let State { anon, file, dirty, writeback, refaulted_file, stolen, .. } = State::of_v1(stat);
        assert_eq!(stolen, None);
        ([anon, file, dirty, writeback].map(Option::unwrap_or_default), refaulted_file)
    };
    assert_eq!(counted(fixture!("v1-5.10.stat")), ([0, 41_492_480, 0, 135_168], None));
    assert_eq!(counted(fixture!("v1-6.1.stat")), ([0, 41_644_032, 0, 0], Some(30_720)));
    // Of all below it as well.
    let below = ([24_829_952, 9_107_443_712, 9_527_296, 0], Some(777_096_656));
    assert_eq!(counted(fixture!("v1-6.18.stat")), below);
}

#[test]
fn meminfo_and_vmstat() {
    let old = State::of_host(fixture!("5.10.meminfo"), fixture!("5.10.vmstat"));
    let expected = State {
        swap_free: Some(0),
        anon: Some(204 << 10),
        file: Some((1948 + 40_560) << 10),
        dirty: Some(0),
        writeback: Some(0),
        refaulted_file: Some(30_695),
        refaulted_anon: Some(0),
        stolen: Some(35_959),
        current: None,
        limit: None,
    };
    assert_eq!(old, expected);
    let new = State::of_host(fixture!("7.meminfo"), fixture!("7.vmstat"));
    assert_eq!((new.stolen, new.refaulted_file), (Some(38_907), Some(33_455)));
}

#[test]
fn what_is_not_there_is_unknown() {
    for text in
        ["", "\n", "anon", "inactive_anon x", "inactive_anon 99999999999999999999999", "é 1"]
    {
        assert_eq!(State::of_v2(Stat(text)), State::default(), "{text}");
        assert_eq!(State::of_v1(Stat(text)), State::default(), "{text}");
        assert_eq!(State::of_host(Stat(text), Stat(text)), State::default(), "{text}");
    }
    let most = format!("a {}\nA: {} kB", u64::MAX, u64::MAX);
    assert_eq!((Stat(&most).get("a"), Stat(&most).get("A")), (Some(u64::MAX), None));
}
