//! A guest under qemu: starts it, passes its output on as it comes, and ends it.
//!
//! The guest has three serial ports, so that nothing that a test prints can be taken for something else: the kernel's
//! console, the command's output, and a line between the guest's init and xtask. Each is a socket.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::watch::{Ending, Event, Watch};
use crate::output::Output;
use crate::process;

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// All that can be emulated but
/// - cmpxchg16b: with that of qemu 7.2, kernels since 6.12, whose allocator uses it, had an oops in every second run, with
///   parts of an address in the flags register; without it they do not. They have another way for CPUs that lack it;
/// - what is quick in hardware only, and without which a guest needs a sixth less time: copying and clearing byte by byte
///   (erms, fsrm), and page tables of five levels (la57).
const CPU: &str = "max,-cx16,-erms,-fsrm,-la57";

/// The guest's serial ports, in their order.
const PORTS: [&str; 3] = ["console", "output", "control"];

/// How often the clock is looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// What a guest is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The kernel.
    pub vmlinuz: &'a Path,
    /// Its first file system.
    pub initramfs: &'a Path,
    /// Its disk, of which it gets a copy that nothing else sees.
    pub disk: &'a Path,
    /// As qemu wants it.
    pub memory: &'a str,
    /// More words for the kernel's command line.
    pub append: &'a str,
    /// How long it may run.
    pub time_limit: Duration,
}

/// The emulator, killed when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what is wanted.
        let _killed: std::io::Result<()> = self.0.kill();
        let _waited: std::io::Result<_> = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots it, and watches it to its end or until `stop` is set. Its sockets are put into `dir`.
    pub fn run(
        &self,
        dir: &Path,
        output: &Output,
        stop: &AtomicBool,
    ) -> Result<(Ending, Vec<String>)> {
        let sockets = PORTS.map(|port| dir.join(port));
        let listen = |path: &PathBuf| {
            UnixListener::bind(path)
                .with_context(|| format!("cannot listen at `{}`", path.display()))
        };
        let [console, stdout, control] =
            [listen(&sockets[0])?, listen(&sockets[1])?, listen(&sockets[2])?];
        let mut command = self.command(&sockets);
        let mut qemu = command
            .spawn()
            .map(Qemu)
            .with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
        let stderr = qemu.0.stderr.take().context("no standard error")?;

        let mut watch = Watch::new(Instant::now(), self.time_limit);
        let (events, received) = mpsc::channel();
        thread::scope(|scope| {
            let (of_console, of_control) = (events.clone(), events.clone());
            scope.spawn(move || pass_on(accepted(&console), &of_console, Event::Console));
            scope.spawn(move || pass_on(accepted(&control), &of_control, Event::Control));
            // It holds a sender, too: the guest has not ended while there is output of it.
            let of_output = events.clone();
            scope.spawn(move || {
                if let Some(mut stream) = accepted(&stdout) {
                    output.copy(&mut stream);
                }
                drop(of_output);
            });
            scope.spawn(move || {
                pass_on(Some(stderr), &events, |line| Event::Console(format!("{QEMU}: {line}")));
            });

            let mut is_closed = false;
            while !watch.is_over(Instant::now()) && !stop.load(Ordering::Relaxed) {
                match received.recv_timeout(PERIOD) {
                    Ok(event) => watch.note(event, Instant::now()),
                    Err(RecvTimeoutError::Timeout) => {
                        if !is_closed && matches!(qemu.0.try_wait(), Ok(Some(_))) {
                            is_closed = true;
                            release(&sockets);
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        // Of its own, whatever the guest does, it ends well.
                        let event = match qemu.0.wait() {
                            Ok(status) if !status.success() => {
                                Event::Broken(format!("{QEMU} failed: {status}"))
                            }
                            _ => Event::Closed,
                        };
                        watch.note(event, Instant::now());
                    }
                }
            }
            drop(qemu);
            release(&sockets);
            // What was under way when the guest was ended.
            for event in received {
                watch.note(event, Instant::now());
            }
        });
        if stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(watch.finish())
    }

    fn command(&self, sockets: &[PathBuf]) -> Command {
        // It must not outlive xtask, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU]);
        // One thread for all CPUs: the machine's CPUs are better used by running several guests.
        command.args(["-accel", "tcg,thread=single", "-cpu", CPU, "-smp", "2", "-m", self.memory]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(self.vmlinuz).arg("-initrd").arg(self.initramfs);
        let words = ["console=ttyS0 loglevel=5 panic=-1 oops=panic", self.append];
        command.arg("-append").arg(words.join(" ").trim_end());
        let disk = self.disk.display().to_string().replace(',', ",,");
        // The file is left as it is, and so serves other guests at the same time.
        command
            .arg("-drive")
            .arg(format!("file={disk},format=raw,if=virtio,snapshot=on,cache=unsafe"));
        for (port, socket) in PORTS.iter().zip(sockets) {
            let socket = socket.display().to_string().replace(',', ",,");
            command.arg("-chardev").arg(format!("socket,id={port},path={socket}"));
            command.arg("-serial").arg(format!("chardev:{port}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

fn accepted(listener: &UnixListener) -> Option<UnixStream> {
    Some(listener.accept().ok()?.0)
}

/// Wakes up those that wait for an emulator that has ended before it came to its sockets.
fn release(sockets: &[PathBuf]) {
    for socket in sockets {
        // It fails where the emulator was there first, and so nobody waits.
        let _none_waits: std::io::Result<UnixStream> = UnixStream::connect(socket);
    }
}

/// Sends all lines on. They are of the guest, and may be anything.
fn pass_on(from: Option<impl Read>, to: &Sender<Event>, event: impl Fn(String) -> Event) {
    let Some(from) = from else { return };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if to.send(event(text)).is_err() {
            return;
        }
        line.clear();
    }
}
