//! The kernel boundary: the few calls of bpf(2) that aya does not make, on programs that are not its own.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};

/// Numbers of commands and types, from the kernel's interface.
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const RAW_TRACEPOINT: u32 = 17;

/// Arguments that a program is run with: as many words as any of memtrace's tracepoints has, and some more.
pub type Arguments = [u64; 8];

/// One eBPF instruction, as the kernel reads it.
pub type Instruction = u64;

/// Puts an instruction together: registers are numbers from 0 to 10.
#[must_use]
pub const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    Instruction::from_le_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

/// What a command reads, in the kernel's layout: plain numbers, all of them set.
///
/// # Safety
/// The pointers in it, as numbers, stay valid during the call, and the command writes nothing beyond it.
unsafe trait Attributes {
    const COMMAND: libc::c_long;
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

// SAFETY: `load` keeps instructions and license for the call; there is no log to be written.
unsafe impl Attributes for Load {
    const COMMAND: libc::c_long = PROG_LOAD;
}

/// Bytes of [`Arguments`].
const ARGUMENTS: u32 = 64;
const _: () = assert!(size_of::<Arguments>() == ARGUMENTS as usize);

#[repr(C)]
struct TestRun {
    program: u32,
    result: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
}

// SAFETY: `test_run` keeps the arguments for the call; there is room for the result in it, and no other output.
unsafe impl Attributes for TestRun {
    const COMMAND: libc::c_long = PROG_TEST_RUN;
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

// SAFETY: there is no pointer in it.
unsafe impl Attributes for ById {
    const COMMAND: libc::c_long = PROG_GET_FD_BY_ID;
}

#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    reserved: u32,
}

// SAFETY: `attach` keeps the name for the call, which only reads it.
unsafe impl Attributes for Open {
    const COMMAND: libc::c_long = RAW_TRACEPOINT_OPEN;
}

fn bpf<A: Attributes>(attributes: &mut A) -> io::Result<libc::c_long> {
    let at: *mut A = attributes;
    // SAFETY: the kernel reads and writes `size_of::<A>()` bytes there, and else what `Attributes` vouches for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, A::COMMAND, at, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`bpf`], of a command that gives a new file descriptor.
fn bpf_fd<A: Attributes>(attributes: &mut A) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(bpf(attributes)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for this call, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(of: &T) -> u64 {
    std::ptr::from_ref(of).cast::<u8>() as u64
}

/// Loads a raw tracepoint program.
pub fn load(name: &str, instructions: &[Instruction]) -> Result<OwnedFd> {
    let mut known = [0; 16];
    for (to, from) in known[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bpf_fd(&mut Load {
        kind: RAW_TRACEPOINT,
        count: instructions.len().try_into().context("too long a program")?,
        instructions: address(instructions),
        license: address(c"GPL".to_bytes_with_nul()),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: known,
    })
    .with_context(|| format!("cannot load the program `{name}`: root may"))
}

/// The program with this id.
pub fn by_id(id: u32) -> Result<OwnedFd> {
    bpf_fd(&mut ById { id, next: 0, flags: 0 })
        .with_context(|| format!("cannot get at the eBPF program with id {id}"))
}

/// Attaches a program to a tracepoint, for as long as the result lives.
pub fn attach(program: BorrowedFd<'_>, tracepoint: &CStr) -> Result<OwnedFd> {
    let name = address(tracepoint.to_bytes_with_nul());
    bpf_fd(&mut Open { name, program: number(program), reserved: 0 })
        .with_context(|| format!("cannot attach to {}", tracepoint.to_string_lossy()))
}

/// Runs a raw tracepoint program once, on this CPU, as this thread.
pub fn test_run(program: BorrowedFd<'_>, arguments: &Arguments) -> io::Result<()> {
    bpf(&mut TestRun {
        program: number(program),
        result: 0,
        data_in_size: 0,
        data_out_size: 0,
        data_in: 0,
        data_out: 0,
        repeat: 0,
        duration: 0,
        context_in_size: ARGUMENTS,
        context_out_size: 0,
        context_in: address(arguments),
        context_out: 0,
        flags: 0,
        cpu: 0,
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_as_the_kernel_reads_them() {
        // r2 = -128, as `llvm-mc -triple=bpfel -show-encoding` has it: b7 02 00 00 80 ff ff ff.
        assert_eq!(instruction(0xb7, 2, 0, 0, -128), 0xffff_ff80_0000_02b7);
        // *(u64 *)(r10 - 8) = 0: 7a 0a f8 ff 00 00 00 00.
        assert_eq!(instruction(0x7a, 10, 0, -8, 0), 0x0000_0000_fff8_0a7a);
    }
}
