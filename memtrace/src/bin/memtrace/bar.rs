//! A bar on standard error for what takes long: how many blocks of recordings are done.

use std::{
    io::{self, IsTerminal as _},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// How long it takes until there is a bar to look at.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the bar is drawn.
const REDRAW: Duration = Duration::from_millis(100);

/// Does something that counts the blocks as they are done, of which there are so many. If that takes long, and standard
/// error is a terminal, a bar shows how far it is; none where that is nothing.
pub fn with_bar<T>(blocks: Option<u64>, work: impl FnOnce(&AtomicU64) -> T) -> T {
    let done = AtomicU64::new(0);
    let Some(all) = blocks.filter(|_| io::stderr().is_terminal()) else { return work(&done) };
    let (ended, end) = mpsc::channel::<()>();
    let counted = &done;
    thread::scope(|scope| {
        scope.spawn(move || show(all, counted, &end));
        let result = work(counted);
        drop(ended);
        result
    })
}

fn show(all: u64, done: &AtomicU64, end: &mpsc::Receiver<()>) {
    if end.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let bar = ProgressBar::new(all);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent} % of {len} blocks, {eta}") {
        bar.set_style(style);
    }
    while end.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
        bar.set_position(done.load(Ordering::Relaxed));
    }
    bar.finish_and_clear();
}
