//! Stacks beneath a row: the kernel's, and the program's.

use std::io::{self, Write as _};

use super::ViewOptions;
use crate::names::Names;
use crate::text::Printable;

/// The stacks at the end of a stall of process `pid`, innermost frame first.
pub struct Stacks<'a> {
    pub pid: u32,
    pub kernel: &'a [u64],
    pub user: &'a [u64],
}

impl Stacks<'_> {
    /// Appends those that were asked for, and an empty line behind them.
    pub fn append(
        &self,
        options: &ViewOptions,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let ViewOptions { stacks, user_stacks, .. } = *options;
        if stacks {
            for frame in names.symbols.kernel(self.kernel) {
                writeln!(out, "\t{}", frame.text())?;
            }
        }
        if stacks && user_stacks {
            writeln!(out, "\t--")?;
        }
        if user_stacks {
            for frame in names.symbols.user(self.pid, self.user) {
                writeln!(out, "\t{}", Printable(frame.text().as_bytes()))?;
            }
        }
        if stacks || user_stacks {
            writeln!(out)?;
        }
        Ok(())
    }
}
