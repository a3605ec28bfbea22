//! Builds BTF for tests: kernels that this host does not run.

/// A blob in the making. Types get their ids in the order in which they are added.
#[derive(Clone, Default)]
pub struct Builder {
    types: Vec<u32>,
    strings: Vec<u8>,
    count: u32,
}

impl Builder {
    /// The id that the next type gets.
    pub fn next_id(&self) -> u32 {
        self.count + 1
    }

    pub fn int(&mut self, name: &str, size: u32) -> u32 {
        self.add(name, 1, 0, size, &[size * 8])
    }

    pub fn pointer(&mut self, to: u32) -> u32 {
        self.add("", 2, 0, to, &[])
    }

    pub fn array(&mut self, of: u32, len: u32) -> u32 {
        self.add("", 3, 0, 0, &[of, of, len])
    }

    /// Members are names, types and offsets in bits.
    pub fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let tail: Vec<_> = members
            .iter()
            .flat_map(|(name, id, offset)| [self.string(name), *id, *offset])
            .collect();
        self.add(name, 4, members.len(), size, &tail)
    }

    /// Members are names, types, offsets and widths in bits.
    pub fn bit_fields(&mut self, name: &str, size: u32, members: &[(&str, u32, u32, u32)]) -> u32 {
        let tail: Vec<_> = members
            .iter()
            .flat_map(|(name, id, offset, bits)| [self.string(name), *id, bits << 24 | offset])
            .collect();
        let id = self.add(name, 4, members.len(), size, &tail);
        let info = self.types.len() - tail.len() - 2;
        self.types[info] |= 1 << 31;
        id
    }

    pub fn enumeration(&mut self, name: &str, values: &[(&str, u32)]) -> u32 {
        let tail: Vec<_> =
            values.iter().flat_map(|(name, value)| [self.string(name), *value]).collect();
        self.add(name, 6, values.len(), 4, &tail)
    }

    pub fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.add(name, 8, 0, of, &[])
    }

    /// A function without arguments.
    pub fn function(&mut self, name: &str) {
        self.add(name, 12, 0, 0, &[]);
    }

    /// A variable that is static to its file.
    pub fn variable(&mut self, name: &str, of: u32) {
        self.add(name, 14, 0, of, &[0]);
    }

    /// A raw tracepoint with arguments of these types, after the private one that all have.
    pub fn tracepoint(&mut self, event: &str, args: &[u32]) {
        let private = self.pointer(0);
        let tail: Vec<_> = [&private].into_iter().chain(args).flat_map(|id| [0, *id]).collect();
        let proto = self.add("", 13, args.len() + 1, 0, &tail);
        let pointer = self.pointer(proto);
        self.typedef(&format!("btf_trace_{event}"), pointer);
    }

    /// A type of a kind that does not exist.
    pub fn raw_kind(&mut self, kind: u32) {
        self.add("", kind, 0, 0, &[]);
    }

    pub fn blob(&self) -> Vec<u8> {
        let strings = [&[0], self.strings.as_slice()].concat();
        let len = |len: usize| u32::try_from(len).expect("small");
        let types = len(self.types.len() * 4);
        // Magic, version and flags in one word, then the header's own length.
        let magic =
            u32::from_ne_bytes([0xeb9f_u16.to_ne_bytes()[0], 0xeb9f_u16.to_ne_bytes()[1], 1, 0]);
        let header = [magic, 24, 0, types, types, len(strings.len())];
        let words = header.iter().chain(&self.types).flat_map(|word| word.to_ne_bytes());
        words.chain(strings).collect()
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        // Each string once, as in the kernel.
        let needle = [b"\0", text.as_bytes(), b"\0"].concat();
        let strings = [&[0], self.strings.as_slice()].concat();
        if let Some(place) = memchr::memmem::find(&strings, &needle) {
            return u32::try_from(place + 1).expect("small");
        }
        self.strings.extend(&needle[1..]);
        u32::try_from(strings.len()).expect("small")
    }

    fn add(&mut self, name: &str, kind: u32, len: usize, size_or_type: u32, tail: &[u32]) -> u32 {
        let name = self.string(name);
        let len = u32::try_from(len).expect("small");
        self.types.extend([name, kind << 24 | len, size_or_type]);
        self.types.extend(tail);
        self.count += 1;
        self.count
    }
}
