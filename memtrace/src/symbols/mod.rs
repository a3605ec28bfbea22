//! Names of the functions in stacks: the kernel's, and those of the programs that it runs.
//!
//! `kernel` looks the kernel's up in its own table. Programs are other people's files, in memory that
//! may have to be waited for: `helper` looks into them in a process of its own, and `user` asks it,
//! remembers what it said, and goes on without where it does not answer. `maps` says what is where in
//! a process.

pub mod helper;
mod kernel;
mod maps;
mod user;

use std::os::fd::OwnedFd;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use self::kernel::KernelSymbols;
use self::user::UserSymbols;

pub(crate) use self::kernel::{are_visible, tracers};
pub use self::user::{can_look, can_name_programs};

/// A function in a stack, or the address where nothing is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    text: Box<str>,
    /// How much of the text names the function, whichever part of it was running.
    name_len: usize,
}

/// Most bytes of a name: those of templates have no limit of their own.
const MOST_NAME: usize = 256;

impl Frame {
    /// `name+0xoffset`.
    #[must_use]
    pub fn of_function(name: &str, offset: u64) -> Self {
        let name = &name[..name.floor_char_boundary(MOST_NAME)];
        Self { text: format!("{name}+{offset:#x}").into(), name_len: name.len() }
    }

    /// `module+0xoffset`, of a function whose name is not known.
    #[must_use]
    pub fn of_module(module: &str, offset: u64) -> Self {
        Self { name_len: usize::MAX, ..Self::of_function(module, offset) }
    }

    /// `0xaddress`.
    #[must_use]
    pub fn nameless(address: u64) -> Self {
        Self { text: format!("{address:#x}").into(), name_len: usize::MAX }
    }

    /// All that is known of it. Names are any text that the program's author has chosen.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The function alone; where its name is not known, all that is.
    #[must_use]
    pub fn function(&self) -> &str {
        self.text.get(..self.name_len).unwrap_or(&self.text)
    }
}

/// Names of functions, looked up when first asked for and remembered.
#[derive(Debug)]
pub struct Symbols {
    kernel: KernelSymbols,
    user: UserSymbols,
}

impl Symbols {
    /// Looks up the symbols of the running kernel, whose table is read at the first look-up, and only
    /// then. Of programs there are addresses alone.
    #[must_use]
    pub fn live() -> Self {
        Self { kernel: KernelSymbols::live(), user: UserSymbols::default() }
    }

    /// Reads the kernel's table now.
    pub fn read(&self) {
        self.kernel.read();
    }

    /// Has the functions of programs looked up by a [`helper`] at the other end of this socket.
    pub fn ask(&mut self, helper: OwnedFd) {
        self.user = UserSymbols::asking(helper);
    }

    /// A fixed set of the kernel's, for tests and recordings.
    #[must_use]
    pub fn from_frames(frames: impl IntoIterator<Item = (u64, Frame)>) -> Self {
        let known = frames.into_iter().map(|(address, frame)| (address, Rc::new(frame)));
        Self { kernel: KernelSymbols::fixed(known.collect()), user: UserSymbols::default() }
    }

    /// The frames of a kernel stack, innermost first, without the tracer's own.
    pub fn kernel(&mut self, stack: &[u64]) -> Vec<Rc<Frame>> {
        self.kernel.resolve(stack)
    }

    /// The kernel's function at an address.
    pub fn at(&mut self, address: u64) -> Rc<Frame> {
        self.kernel.symbol(address)
    }

    /// Has a kernel's address go by this name from now on.
    pub fn learn(&mut self, address: u64, frame: Frame) {
        self.kernel.learn(address, frame);
    }

    /// Has a stack of process `pid` in user space go by these names from now on.
    pub fn learn_user(&mut self, pid: u32, stack: &[u64], frames: &[Rc<Frame>]) {
        self.user.learn(pid, stack, frames);
    }

    /// The kernel's function that an address is in, or the address where that is not known.
    pub fn function(&mut self, address: u64) -> String {
        self.kernel.function(address)
    }

    /// The same as [`Self::user`], whatever was learned of the stack before.
    pub fn look_up_user(&mut self, pid: u32, stack: &[u64]) -> Vec<Rc<Frame>> {
        self.user.look_up(pid, stack)
    }

    /// The frames of a stack of process `pid` in user space, innermost first. May take a moment.
    pub fn user(&mut self, pid: u32, stack: &[u64]) -> Vec<Rc<Frame>> {
        self.user.resolve(pid, stack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_a_function_and_where_it_was() {
        let texts = |frame: Frame| [frame.text().to_owned(), frame.function().to_owned()];
        assert_eq!(texts(Frame::of_function("read", 0x1f)), ["read+0x1f", "read"]);
        assert_eq!(texts(Frame::of_module("a.out", 16)), ["a.out+0x10", "a.out+0x10"]);
        assert_eq!(texts(Frame::nameless(0x7f00)), ["0x7f00", "0x7f00"]);
    }

    #[test]
    fn names_have_an_end() {
        let frame = Frame::of_function(&"é".repeat(1000), 1);
        assert_eq!(frame.function(), "é".repeat(MOST_NAME / 2));
        assert!(frame.text().ends_with("é+0x1"));
    }
}
