//! `memload oom`: kills for lack of memory, of processes of its own.

use std::{
    env,
    io::{self, Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::atomic::AtomicBool,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tests::{
    until::Until,
    victim::{Victims, take, volunteer},
    vmstat::meminfo,
};

use crate::{
    cli::{OomArgs, VictimArgs},
    place::{Place, ensure_no_panic},
    session::{Session, say},
};

/// Runs it. The victims are in the cgroup, this process is not.
pub fn run(args: &OomArgs) -> Result<()> {
    let session = Session::begin()?;
    ensure_no_panic()?;
    let place = Place::new(&args.place)?;
    // More than there is.
    let bytes = match &place.cgroup {
        Some(_) => 2 * place.room + meminfo("SwapTotal")?,
        None => meminfo("MemTotal")? + meminfo("SwapTotal")?,
    };
    if args.time.hold {
        session.hold()?;
    } else {
        say(&format!(
            "memload: {} processes take memory {} until {} are killed, for {:?}; Ctrl-C stops",
            args.victims,
            place.name(),
            args.kills,
            args.time.duration,
        ))?;
    }
    let until = Until::new(args.time.duration, &session.stop);
    let victims = Victims { at_once: args.victims.into(), kills: args.kills.into() };
    let killed = victims.run(&until, || start_victim(&place, bytes, args))?;
    let names: Vec<_> = killed.iter().map(|pid| format!("memload ({pid})")).collect();
    let done = match killed.len() {
        0 => "the kernel killed none".to_owned(),
        number => format!("the kernel killed {number}: {}", names.join(", ")),
    };
    session.report(&done, place.cgroup.as_ref())
}

fn start_victim(place: &Place, bytes: u64, args: &OomArgs) -> Result<Child> {
    let program = env::current_exe().context("cannot find memload itself")?;
    let mut command = Command::new(program);
    command.args(["victim", "--size", &bytes.to_string()]);
    command.args(["--duration", &format!("{}ms", args.time.duration.as_millis())]);
    let mut victim = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let result = let_in(place, &mut victim);
    if result.is_err() {
        // Both fail where it has ended, which is what is wanted.
        let _killed: io::Result<()> = victim.kill();
        let _waited: io::Result<_> = victim.wait();
    }
    result.map(|()| victim)
}

/// Lets a victim begin once it has volunteered and is in its place.
fn let_in(place: &Place, victim: &mut Child) -> Result<()> {
    let stdout = victim.stdout.as_mut().context("no standard output")?;
    stdout.read_exact(&mut [0]).context("a victim did not get ready")?;
    if let Some(cgroup) = &place.cgroup {
        cgroup.add(victim.id())?;
    }
    let mut stdin = victim.stdin.take().context("no standard input")?;
    stdin.write_all(b"\n").context("a victim is gone")
}

/// Runs a victim.
pub fn run_victim(args: &VictimArgs) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot ask for the parent's death")?;
    volunteer()?;
    say("")?;
    let read = io::stdin().read(&mut [0]).context("cannot read the word to go")?;
    ensure!(read == 1, "the process that started this one is gone");
    let never = AtomicBool::new(false);
    take(args.size, &Until::new(args.duration, &never))
}
