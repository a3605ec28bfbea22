//! `memload thp`: huge pages in fragmented memory.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tests::{
    ballast::Ballast, fragment::Fragments, thp::Thp, until::Until, victim::volunteer,
    vmstat::meminfo,
};

use crate::{
    cli::{MIB, ThpArgs},
    session::{Session, say},
};

/// Runs it.
pub fn run(args: &ThpArgs) -> Result<()> {
    let session = Session::begin()?;
    ensure_on()?;
    let _ballast = args.leave.map(Ballast::leaving).transpose()?;
    volunteer()?;
    let room = meminfo("MemAvailable")?;
    if args.time.hold {
        session.hold()?;
    }
    let until = Until::new(args.time.duration, &session.stop);
    let fragments = Fragments::pin(args.fragment.unwrap_or(room / 8), &until)?;
    // Small pages nearly everywhere, so that there are few huge ones at the beginning.
    let scatter = meminfo("MemAvailable")? / 8 * 7;
    let thp =
        Thp { threads: args.threads.into(), scatter, bytes: args.size.unwrap_or(room / 4 * 3) };
    if !args.time.hold {
        say(&format!(
            "memload: {} pages are pinned; {} threads ask for {} MiB in huge pages, for {:?}; Ctrl-C stops",
            fragments.pinned(),
            args.threads,
            thp.bytes / MIB,
            args.time.duration,
        ))?;
    }
    let asked = thp.run(&until)?;
    let done =
        format!("asked for a huge page {asked} times, with {} pages pinned", fragments.pinned());
    drop(fragments);
    session.report(&done, None)
}

/// Refuses to ask for what there is none of.
fn ensure_on() -> Result<()> {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let value = fs::read_to_string(SETTING)
        .context("this kernel has no huge pages (CONFIG_TRANSPARENT_HUGEPAGE)")?;
    ensure!(
        !value.contains("[never]"),
        "huge pages are switched off: write madvise to {SETTING} first"
    );
    Ok(())
}
