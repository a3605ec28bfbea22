//! The thread that writes files: where much waits for the disk already, the kernel has whoever writes sleep, which the
//! one that takes what the probes deliver must not.

use std::{
    fs::File,
    hint::black_box,
    io::{self, Write as _},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
};

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// Bytes to hand over at once, for which there is memory from the beginning. More are so of a longer block only.
pub const AT_ONCE: usize = 1 << 20;
/// Stack of the thread in bytes.
const STACK: usize = 64 << 10;

/// Writes files, one part after the other, and takes no memory but what it has.
#[derive(Debug)]
pub struct Disk {
    /// What is going to be written next; nothing while the thread writes.
    room: Option<Vec<u8>>,
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
}

#[derive(Debug)]
struct Job {
    file: Arc<File>,
    bytes: Vec<u8>,
    /// Whether the disk has to have all of the file then.
    is_last: bool,
}

#[derive(Debug)]
struct Done {
    bytes: Vec<u8>,
    result: io::Result<()>,
}

impl Disk {
    /// Starts the thread, which gives up all capabilities at once: what it writes to is open.
    pub fn start() -> io::Result<Self> {
        let (jobs, to_do) = sync_channel::<Job>(1);
        let (tell, done) = sync_channel(1);
        let thread = thread::Builder::new().name("memtrace-disk".to_owned()).stack_size(STACK);
        thread.spawn(move || {
            let none = CapabilitySet::empty();
            let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
            // Who has none can give up none.
            let _given_up: rustix::io::Result<()> = set_capabilities(None, none);
            for Job { file, bytes, is_last } in to_do {
                let written = (&*file).write_all(&bytes);
                let result = written.and_then(|()| if is_last { file.sync_data() } else { Ok(()) });
                if tell.send(Done { bytes, result }).is_err() {
                    return;
                }
            }
        })?;
        // Not zeros, which are pages that have yet to be found.
        let mut room = black_box(vec![1; AT_ONCE]);
        room.clear();
        Ok(Self { room: Some(room), jobs, done })
    }

    /// What is going to be written next, to be added to; nothing while the part before is written. Fails once where that
    /// could not be.
    pub fn room(&mut self) -> io::Result<Option<&mut Vec<u8>>> {
        if self.room.is_none() {
            match self.done.try_recv() {
                Ok(Done { mut bytes, result }) => {
                    bytes.clear();
                    self.room = Some(bytes);
                    result?;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("the thread that writes is gone"));
                }
            }
        }
        Ok(self.room.as_mut())
    }

    /// Whether nothing is being written, as far as was seen.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.room.is_some()
    }

    /// Has what is there written, and with the last part of a file the disk take all of it.
    pub fn write(&mut self, file: &Arc<File>, is_last: bool) {
        if let Some(bytes) = self.room.take() {
            // Where the thread is gone, that is found out when room is asked for.
            let _sent = self.jobs.try_send(Job { file: file.clone(), bytes, is_last });
        }
    }
}
