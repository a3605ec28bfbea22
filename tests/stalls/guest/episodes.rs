//! Episodes: one for each allocation that a thread has to wait for.

use std::{
    sync::{atomic::AtomicBool, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use memmap2::{Advice, MmapMut};
use tests::{
    ballast::Ballast,
    episodes::{Episode, Stalls, assert_parts_add_up},
    fragment::{Fragments, HUGE},
    host::{monotonic_ns, require_guest},
    run::Memtrace,
    setting::Setting,
    until::Until,
    vmstat::Vmstat,
    wait::budget,
};

use crate::{episodes_of, stopped};

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";
/// Order of a huge page.
const ORDER: i64 = 9;
/// How many huge pages are asked for.
const ASKED: usize = 16;
/// Rounds of one of them are closer together than this,
const GAP: Duration = Duration::from_millis(50);
/// and those of two are not.
const PAUSE: Duration = Duration::from_millis(150);

/// Asks for huge pages, one after the other. Gives when each was asked for, from when to when.
fn ask(tell: &mpsc::Sender<u32>, go: &mpsc::Receiver<()>) -> Result<Vec<(u64, u64)>> {
    // The kernel puts huge pages at multiples of their size only.
    let mut memory = MmapMut::map_anon((ASKED + 1) * HUGE).context("cannot map memory")?;
    memory.advise(Advice::HugePage).context("no huge pages")?;
    let start = memory.as_ptr().align_offset(HUGE);
    tell.send(u32::try_from(rustix::thread::gettid().as_raw_nonzero().get())?)?;
    go.recv()?;
    let mut spans = Vec::new();
    for huge in memory[start..].chunks_exact_mut(HUGE).take(ASKED) {
        thread::sleep(PAUSE);
        let begin_ns = monotonic_ns();
        huge[0] = 1;
        spans.push((begin_ns, monotonic_ns()));
    }
    Ok(spans)
}

fn of_huge_pages(stalls: &Stalls) -> Vec<&Episode> {
    let mut of_huge: Vec<_> =
        stalls.episodes.iter().filter(|episode| episode.order == Some(ORDER)).collect();
    of_huge.sort_by_key(|episode| episode.start_ns);
    of_huge
}

/// Huge pages where memory is in pieces: the kernel tries to make each, and gives up. In how many rounds
/// it does is its own matter; that each that had to wait is one episode is not.
#[test]
fn one_for_each_huge_page() -> Result<()> {
    require_guest();
    let _enabled = Setting::set(format!("{HUGE_PAGES}/enabled"), "madvise")?;
    let _defrag = Setting::set(format!("{HUGE_PAGES}/defrag"), "madvise")?;
    let _ballast = Ballast::leaving(96 << 20)?;
    let never = AtomicBool::new(false);
    let fragments = Fragments::pin(72 << 20, &Until::new(budget(), &never))?;
    println!("{} pages pinned", fragments.pinned());

    let (tell, told) = mpsc::channel();
    let (let_go, go) = mpsc::channel();
    let asking = thread::spawn(move || ask(&tell, &go));
    let tid = told.recv().context("the thread did not start")?.to_string();
    let start =
        |args: &[&str]| Memtrace::start(&[&["stalls", "--json", "-t", &tid], args].concat());
    let gap = format!("{}ms", GAP.as_millis());
    let (merged, rounds, one) =
        (start(&["--gap", &gap]), start(&["--rounds"]), start(&["--gap", "10m"]));
    let before = Vmstat::read()?;
    let_go.send(())?;
    let spans = asking.join().expect("the thread panicked")?;
    let moved = Vmstat::moved_since(&before)?;
    let (merged, rounds, one) = (stopped(merged)?, stopped(rounds)?, stopped(one)?);
    for stalls in [&merged, &rounds, &one] {
        assert_parts_add_up(&stalls.episodes);
    }

    let count = |name| moved.get(name).unwrap_or(0);
    let (failed, got) = (count("thp_fault_fallback"), count("thp_fault_alloc"));
    println!("{failed} huge pages refused, {got} given");
    assert_eq!(failed + got, ASKED as u64, "huge pages refused and given");
    assert!(failed >= 5, "only {failed} huge pages were refused");
    let episodes = of_huge_pages(&merged);
    let singles = of_huge_pages(&rounds);
    let [mut stalled, mut known] = [0; 2];
    for (begin_ns, end_ns) in spans {
        let within = |episode: &&&Episode| begin_ns <= episode.start_ns && episode.end_ns <= end_ns;
        let episodes: Vec<_> = episodes.iter().filter(within).collect();
        let singles: Vec<_> = singles.iter().filter(within).collect();
        // The kernel may try on the own node first, with other flags.
        let mut flags: Vec<_> = singles.iter().map(|it| &it.value["gfp"]).collect();
        flags.dedup();
        assert_eq!(episodes.len(), flags.len(), "{episodes:#?} of {singles:#?}");
        stalled += usize::from(!episodes.is_empty());
        known += episodes.len();
        let rounds = |all: &[&&Episode], of: usize| all.iter().map(|it| it.rounds[of]).sum::<u64>();
        for of in [0, 1] {
            assert_eq!(
                rounds(&episodes, of),
                rounds(&singles, of),
                "{episodes:#?} of {singles:#?}"
            );
        }
    }
    assert_eq!(known, episodes.len(), "episodes that are of no huge page that was asked for");
    // Who is refused one has waited for it, who is given one need not have.
    assert!(
        (failed..=ASKED as u64).contains(&(stalled as u64)),
        "{stalled} huge pages waited for, and {failed} refused"
    );
    let retried = episodes.iter().filter(|episode| episode.rounds[0] + episode.rounds[1] > 1);
    println!(
        "{stalled} waited for in {known} episodes, {} of several rounds; {} rounds",
        retried.count(),
        singles.len()
    );
    for round in rounds.episodes.iter().filter(|round| round.order != Some(ORDER)) {
        println!("beside: {} of order {:?}, {:?}", round.kind, round.order, round.rounds);
    }
    // What comes between two of the same order and flags keeps them apart.
    assert_eq!(one.episodes.len(), episodes_of(&rounds), "episodes where no gap is too long");
    assert!(one.episodes.len() <= merged.episodes.len());
    Ok(())
}
