//! `memload anon`: anonymous memory, with swap or beside page cache.

use std::thread;

use anyhow::Result;
use tests::{
    anon::Anon,
    churn::{Passes, Scratch},
    swap::SwapFile,
    until::Until,
};

use crate::{
    churn,
    cli::{AnonArgs, MIB},
    place::Place,
    session::{Session, say},
};

/// Runs it.
pub fn run(args: &AnonArgs) -> Result<()> {
    let session = Session::begin()?;
    let place = Place::new(&args.place)?;
    let threads = usize::from(args.threads);
    // Without swap it fits, and it is the files beside it that do not.
    let fits = place.room / 2;
    let bytes = args.size.unwrap_or(match args.swap {
        Some(swap) => place.room + swap / 2,
        None => fits,
    });
    let anon = Anon { threads, bytes, keep: args.swap.is_some() };
    let swap = args.swap.map(|size| SwapFile::new(&args.dir, size)).transpose()?;
    let scratch = match swap {
        Some(_) => None,
        None => Some(Scratch::new(&args.dir, threads, 2 * place.room)?),
    };
    place.enter()?;
    let beside = match &swap {
        Some(swap) => format!("with swap to `{}`", swap.path().display()),
        None => format!("beside as many that write and read files in `{}`", args.dir.display()),
    };
    if args.time.hold {
        session.hold()?;
    } else {
        say(&format!(
            "memload: {} threads touch {} MiB of memory {beside}, {}, for {:?}; Ctrl-C stops",
            args.threads,
            bytes / MIB,
            place.name(),
            args.time.duration,
        ))?;
    }
    let until = Until::new(args.time.duration, &session.stop);
    let (pages, files) = thread::scope(|scope| {
        let beside = scratch.as_ref().map(|scratch| {
            scope.spawn(|| {
                churn::alongside(scratch, Passes::WriteAndRead, args.time.duration, &session.stop)
            })
        });
        let pages = anon.run(&until);
        let files = beside
            .map(|files| files.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Ok::<_, anyhow::Error>((pages?, files.transpose()?))
    })?;
    drop(swap);
    let touched =
        format!("touched {pages} pages of {} MiB with {} threads", bytes / MIB, args.threads);
    let beside = files.map(|files| format!("; {}", churn::told(&files))).unwrap_or_default();
    session.report(&format!("{touched}{beside}"), place.cgroup.as_ref())
}
