//! Symbols of kernel addresses.

use std::{collections::BTreeMap, fmt, rc::Rc};

use blazesym::{
    MaybeDefault,
    symbolize::{
        Input, Symbolizer,
        source::{Kernel, Source},
    },
};

use super::Frame;

/// Functions that run between a tracepoint and our probe.
const TRACER: [&str; 6] = [
    "bpf_prog_",
    "___bpf_prog_run",
    "__bpf_prog_run",
    "bpf_trace_run",
    "__bpf_trace_",
    "__traceiter_",
];
/// Among so many innermost frames of a stack they stand, with others between that have no name.
const TRACER_DEPTH: usize = 8;

/// Most symbols that are remembered; a kernel has far fewer places that lead to a stall.
const MAX_KNOWN: usize = 4096;
/// The same of those from recordings, which are anyone's: more than one block can name.
const MAX_LEARNED: usize = 1 << 16;

/// Symbols of kernel addresses, looked up when first asked for and remembered.
#[derive(Debug, Default)]
pub(super) struct KernelSymbols {
    known: BTreeMap<u64, Rc<Frame>>,
    symbolizer: Option<Kallsyms>,
}

/// Looks symbols up in the running kernel's table.
struct Kallsyms(Symbolizer);

impl fmt::Debug for Kallsyms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kallsyms")
    }
}

impl KernelSymbols {
    /// Looks up the symbols of the running kernel; its table is read at the first look-up, and only
    /// then.
    pub(super) fn live() -> Self {
        let symbolizer = Symbolizer::builder().enable_auto_reload(false).build();
        Self { known: BTreeMap::new(), symbolizer: Some(Kallsyms(symbolizer)) }
    }

    /// Reads the kernel's table now.
    pub(super) fn read(&self) {
        if let Some(Kallsyms(symbolizer)) = &self.symbolizer {
            let _any: Option<Frame> = look_up(symbolizer, u64::MAX);
        }
    }

    /// A fixed set.
    pub(super) fn fixed(known: BTreeMap<u64, Rc<Frame>>) -> Self {
        Self { known, symbolizer: None }
    }

    /// The frames of a stack, innermost first, without the tracer's own.
    pub(super) fn resolve(&mut self, stack: &[u64]) -> Vec<Rc<Frame>> {
        let mut frames: Vec<_> = stack.iter().map(|&address| self.symbol(address)).collect();
        frames.drain(..tracers(frames.iter().map(|frame| frame.text())));
        frames
    }

    /// The function that an address is in, or the address where that is not known.
    pub(super) fn function(&mut self, address: u64) -> String {
        self.symbol(address).function().to_owned()
    }

    pub(super) fn learn(&mut self, address: u64, frame: Frame) {
        if self.known.len() >= MAX_LEARNED && !self.known.contains_key(&address) {
            self.known.clear();
        }
        if self.known.get(&address).is_none_or(|known| **known != frame) {
            self.known.insert(address, Rc::new(frame));
        }
    }

    pub(super) fn symbol(&mut self, address: u64) -> Rc<Frame> {
        let Some(Kallsyms(symbolizer)) = &self.symbolizer else {
            let known = self.known.get(&address).cloned();
            return known.unwrap_or_else(|| Rc::new(Frame::nameless(address)));
        };
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let symbol = self.known.entry(address).or_insert_with(|| {
            let found = look_up(symbolizer, address);
            Rc::new(found.unwrap_or_else(|| Frame::nameless(address)))
        });
        Rc::clone(symbol)
    }
}

/// How many of a stack's innermost frames, given by their texts, are the tracer's own.
pub(crate) fn tracers<'a>(frames: impl Iterator<Item = &'a str>) -> usize {
    let is_tracer = |frame: &str| TRACER.iter().any(|prefix| frame.starts_with(prefix));
    let numbered = (1..).zip(frames.take(TRACER_DEPTH));
    numbered.filter(|(_, frame)| is_tracer(frame)).last().map_or(0, |(count, _)| count)
}

/// Whether the kernel shows this process where its functions are.
pub(crate) fn are_visible() -> bool {
    use std::io::{BufRead as _, BufReader};
    let Ok(table) = std::fs::File::open("/proc/kallsyms") else { return false };
    let lines = BufReader::new(table).lines().take(16).map_while(Result::ok);
    // The first are offsets of per-CPU data, and may be zero.
    lines.into_iter().any(|line| !line.starts_with("0000000000000000"))
}

fn look_up(symbolizer: &Symbolizer, address: u64) -> Option<Frame> {
    // The table has all we print; the image with its debug information is large, and often absent.
    let kernel = Kernel { vmlinux: MaybeDefault::None, ..Kernel::default() };
    let found =
        symbolizer.symbolize_single(&Source::Kernel(kernel), Input::AbsAddr(address)).ok()?;
    let symbol = found.as_sym()?;
    Some(Frame::of_function(&symbol.name, symbol.offset as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_the_tracers_frames_out_and_unknown_ones_in() {
        let names = ["bpf_prog_1234_memcg_end", "bpf_trace_run1", "try_to_free"];
        let known = (1..).zip(names.map(|name| Rc::new(Frame::of_function(name, 2)))).collect();
        let mut symbols = KernelSymbols::fixed(known);
        let mut resolve = |stack: &[u64]| {
            let frames = symbols.resolve(stack);
            frames.iter().map(|frame| frame.text().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(resolve(&[1, 99, 2, 3, 4]), ["try_to_free+0x2", "0x4"]);
        assert_eq!(resolve(&[3, 4]), ["try_to_free+0x2", "0x4"]);
    }
}
