//! Finds in the kernel's BTF what the iterator needs to know beside what all probes do.

use memtrace_common::{layout::ABSENT, now::ThreadLayout};

use crate::kernel::btf::Btf;

/// What only `memtrace now` needs of the kernel's types.
#[derive(Clone, Copy, Debug)]
pub struct Types {
    pub(super) layout: ThreadLayout,
    /// The function that an iterator over threads stands for; since 5.8.
    pub(super) function: Option<u32>,
}

impl Types {
    /// Looks them up.
    #[must_use]
    pub fn find(btf: &Btf<'_>) -> Self {
        let offset = |name, path| btf.member(name, path).map_or(ABSENT, |member| member.offset());
        let either = |first, second| if first == ABSENT { second } else { first };
        let memstall = btf.member("task_struct", "in_memstall").filter(|member| member.bits == 1);
        let layout = ThreadLayout {
            task_state: either(offset("task_struct", "__state"), offset("task_struct", "state")),
            task_stack: offset("task_struct", "stack"),
            task_flags: offset("task_struct", "flags"),
            task_real_cred: offset("task_struct", "real_cred"),
            cred_uid: offset("cred", "uid"),
            task_in_memstall: memstall.map_or(ABSENT, |member| member.offset()),
            task_in_memstall_mask: memstall.map_or(0, |member| 1 << (member.bit_offset % 8)),
            task_capture_control: offset("task_struct", "capture_control"),
            capture_control_cc: offset("capture_control", "cc"),
            scan_control_order: offset("scan_control", "order"),
            scan_control_gfp: offset("scan_control", "gfp_mask"),
        };
        Self { layout, function: btf.function("bpf_iter_task") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf_builder::Builder;

    #[test]
    fn finds_the_state_by_both_names() {
        for name in ["state", "__state"] {
            let mut builder = Builder::default();
            let int = builder.int("unsigned int", 4);
            let members =
                [("flags", int, 64, 0), (name, int, 128, 0), ("in_memstall", int, 203, 1)];
            builder.bit_fields("task_struct", 32, &members);
            builder.function("bpf_iter_task");
            let id = builder.next_id() - 1;
            let blob = builder.blob();
            let types = Types::find(&Btf::parse(&blob).expect("well-formed"));
            let layout = types.layout;
            assert_eq!((layout.task_flags, layout.task_state), (8, 16), "{name}");
            assert_eq!((layout.task_in_memstall, layout.task_in_memstall_mask), (25, 1 << 3));
            assert_eq!(layout.task_capture_control, ABSENT);
            assert_eq!(types.function, Some(id));
        }
    }
}
