//! Processes that are chosen to be killed for lack of memory.
//!
//! The tracepoint passes the victim's task, or before 6.8 only its number.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use memtrace_common::{
    config::wanted,
    record::{Oom, known, mechanism},
};

use crate::{
    kernel,
    settings::{layout, wanted},
    stall::{Thread, deliver, now},
};

#[raw_tracepoint(tracepoint = "mark_victim")]
fn mark_victim(ctx: RawTracePointContext) -> i32 {
    let thread = Thread::current();
    if !thread.passes() {
        return 0;
    }
    let mut oom = Oom { stall: thread.stall(now(), 0, mechanism::OOM), ..Oom::default() };
    if wanted(wanted::CGROUP)
        && let Some(id) = kernel::payer_id()
    {
        oom.cgroup_id = id;
        oom.stall.known |= known::CGROUP;
    }
    let mut victim = kernel::arg(&ctx, layout!(victim_task_arg)).unwrap_or(0);
    if victim == 0 {
        oom.victim_pid = kernel::arg(&ctx, layout!(victim_pid_arg)).unwrap_or(0) as u32;
        // It may be any of the process's threads.
        if oom.victim_pid == thread.pid || oom.victim_pid == thread.tid {
            victim = kernel::current();
        }
    }
    if victim != 0 {
        oom.victim_pid = kernel::read(victim, layout!(task_tgid)).unwrap_or(oom.victim_pid);
        if let Some(comm) = kernel::read(victim, layout!(task_comm))
            && let Some(cgroup_id) = kernel::payer_id_of(victim)
        {
            oom.victim_comm = comm;
            oom.victim_cgroup_id = cgroup_id;
            oom.stall.known |= known::VICTIM;
        }
    }
    deliver(&ctx, oom);
    0
}
