//! Look-ups in the kernel's own type information (BTF): where a member lies, what an enumerator is
//! worth, which types a tracepoint's arguments have.
//!
//! Reads the format in place: libraries that build all 100,000 types of a kernel take 60 MiB and
//! 0.2 s for it, and hosts that need memtrace are short of both. The names, two fifths of it, are left
//! where they are: they are read once, for an index of types by their names' hashes.
//! Format: Documentation/bpf/btf.rst in the kernel.

use std::{
    fmt,
    fs::File,
    hash::{DefaultHasher, Hasher as _},
    io,
    ops::Range,
    os::unix::fs::FileExt,
};

const MAGIC: u16 = 0xeb9f;
/// Longest chain of typedefs and qualifiers, or depth of anonymous nesting, that is followed.
const MAX_DEPTH: usize = 32;

/// What is wrong with a BTF blob.
#[derive(Debug, PartialEq, Eq)]
pub enum BtfError {
    /// It does not start with a BTF header of this machine's byte order.
    Header,
    /// A section or a type reaches beyond the end.
    Truncated,
    /// A type of a kind that this reader does not know, so that what follows cannot be found.
    UnknownKind(u32),
    /// It could not be read.
    Unreadable(io::ErrorKind),
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("no BTF header"),
            Self::Truncated => f.write_str("truncated"),
            Self::UnknownKind(kind) => write!(f, "unknown type kind {kind}"),
            Self::Unreadable(kind) => write!(f, "{kind}"),
        }
    }
}

impl std::error::Error for BtfError {}

/// Kinds of types that are looked for or have to be skipped with the right length.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Where a member lies in its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Distance from the start of the structure, in bits.
    pub bit_offset: u32,
    /// Width in bits where the member is a bit-field, otherwise 0.
    pub bits: u32,
    type_id: u32,
}

impl Member {
    /// Distance from the start of the structure, in bytes (rounded down for a bit-field).
    #[must_use]
    pub fn offset(&self) -> u32 {
        self.bit_offset / 8
    }
}

/// Type of a tracepoint's argument, as far as memtrace tells types apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgType {
    /// A type's own name: `int`, `gfp_t`, `long unsigned int`, `bool`.
    Named(String),
    /// A pointer to the structure of this name.
    Pointer(String),
    /// Anything else.
    Other,
}

/// Where BTF is read from, piece by piece.
pub trait Source: fmt::Debug {
    /// Reads into `buffer` what is at `offset`; how much, which is less at the end only.
    fn read_at(&self, buffer: &mut [u8], offset: usize) -> io::Result<usize>;
}

impl Source for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
        let rest = self.get(offset..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
        let mut len = 0;
        while len < buffer.len() {
            match FileExt::read_at(self, &mut buffer[len..], (offset + len) as u64) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(len)
    }
}

/// Parsed BTF.
#[derive(Debug)]
pub struct Btf<'a> {
    source: &'a dyn Source,
    /// Where the names are in the source, each with a zero behind it.
    strings: Range<usize>,
    types: Vec<u8>,
    /// Where each type starts in `types`; ids count from 1.
    starts: Vec<u32>,
    /// Types that are looked for by their names: the names' hashes and the ids, in this order.
    index: Vec<(u32, u32)>,
}

/// The three words that every type starts with.
#[derive(Clone, Copy)]
struct Header {
    name: u32,
    info: u32,
    /// Size or type id, by kind.
    size_or_type: u32,
    /// Where what follows them starts in the section of types.
    tail: usize,
}

impl Header {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn len(self) -> usize {
        (self.info & 0xffff) as usize
    }

    fn has_bit_fields(self) -> bool {
        self.info >> 31 == 1
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Names are read in pieces of this size, of which the longest of them is a small part.
const PIECE: usize = 16 << 10;
/// Longest name that is read, `KSYM_NAME_LEN` in the kernel.
const MAX_NAME: usize = 512;

impl<'a> Btf<'a> {
    /// Finds the types in `source`, the content of `/sys/kernel/btf/vmlinux`.
    pub fn parse(source: &'a dyn Source) -> Result<Self, BtfError> {
        let read = |buffer: &mut [u8], offset| {
            let read = source.read_at(buffer, offset);
            read.map_err(|error| BtfError::Unreadable(error.kind()))
        };
        let mut header = [0; 24];
        let header_len = read(&mut header, 0)?;
        let header = &header[..header_len];
        if header.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(BtfError::Header);
        }
        let field = |at| word(header, at).map(|word| word as usize).ok_or(BtfError::Header);
        let header_len = field(4)?;
        let section = |offset: usize, len: usize| {
            let start = header_len.checked_add(offset)?;
            Some(start..start.checked_add(len)?)
        };
        let types_at = section(field(8)?, field(12)?).ok_or(BtfError::Truncated)?;
        let strings = section(field(16)?, field(20)?).ok_or(BtfError::Truncated)?;
        if strings.is_empty() || read(&mut [0], strings.end - 1)? == 0 {
            return Err(BtfError::Truncated);
        }
        // What is there is looked for before memory is taken for it.
        if !types_at.is_empty() && read(&mut [0], types_at.end - 1)? == 0 {
            return Err(BtfError::Truncated);
        }
        let mut types = vec![0; types_at.len()];
        read(&mut types, types_at.start)?;

        let starts = Vec::with_capacity(types.len() / 32);
        let mut btf = Self { source, strings, types, starts, index: Vec::new() };
        let mut at = 0;
        while at < btf.types.len() {
            let start = u32::try_from(at).map_err(|_| BtfError::Truncated)?;
            let header = btf.header_at(at).ok_or(BtfError::Truncated)?;
            btf.starts.push(start);
            at = header.tail + tail_len(header)?;
        }
        if at > btf.types.len() {
            return Err(BtfError::Truncated);
        }
        btf.index = btf.hash_names().map_err(|error| BtfError::Unreadable(error.kind()))?;
        Ok(btf)
    }

    /// The hashes of names and the ids of the types that `find` looks for, in order.
    fn hash_names(&self) -> io::Result<Vec<(u32, u32)>> {
        let named = (1..).zip(self.headers()).filter(|(_, header)| {
            let kinds = [kind::STRUCT, kind::ENUM, kind::TYPEDEF, kind::VAR];
            header.name != 0 && kinds.contains(&header.kind())
        });
        let mut places: Vec<(u32, u32)> = named.map(|(id, header)| (header.name, id)).collect();
        places.sort_unstable();
        let mut index = Vec::with_capacity(places.len());
        let mut piece = vec![0; PIECE];
        let mut rest = places.as_slice();
        while let &[(first, _), ..] = rest {
            let Some(left) = self.strings.len().checked_sub(first as usize) else { break };
            let len = left.min(PIECE);
            let len =
                self.source.read_at(&mut piece[..len], self.strings.start + first as usize)?;
            let piece = &piece[..len];
            let in_piece = rest.iter().map_while(|(place, id)| {
                let name = piece.get((place - first) as usize..)?;
                Some((hash(&name[..memchr::memchr(0, name)?]), *id))
            });
            let before = index.len();
            index.extend(in_piece);
            // A name that does not end in the piece begins the next one; one longer than a piece is
            // none of a kernel's.
            rest = &rest[(index.len() - before).max(1)..];
        }
        index.sort_unstable();
        Ok(index)
    }

    /// Size in bytes of the structure `name`.
    #[must_use]
    pub fn size_of(&self, name: &str) -> Option<u32> {
        self.find(name, kind::STRUCT).map(|header| header.size_or_type)
    }

    /// Finds a member by its path below the structure `name`, for example `self.parent`; members
    /// of anonymous structures and unions are found as in C.
    #[must_use]
    pub fn member(&self, name: &str, path: &str) -> Option<Member> {
        let mut header = self.find(name, kind::STRUCT)?;
        let mut bit_offset = 0;
        let mut found = None;
        for part in path.split('.') {
            if let Some(Member { type_id, .. }) = found {
                header = self.stripped(type_id)?;
            }
            let member = self.member_of(header, part, 0)?;
            bit_offset += member.bit_offset;
            found = Some(member);
        }
        found.map(|member| Member { bit_offset, ..member })
    }

    /// Number of elements of a member that is an array.
    #[must_use]
    pub fn array_len(&self, member: Member) -> Option<u32> {
        let header = self.stripped(member.type_id)?;
        (header.kind() == kind::ARRAY).then(|| word(&self.types, header.tail + 8))?
    }

    /// The value of `enumerator` in the enumeration `name`.
    #[must_use]
    pub fn enumerator(&self, name: &str, enumerator: &str) -> Option<u32> {
        self.enumerators(name)
            .find(|(candidate, _)| candidate == enumerator)
            .map(|(_, value)| value)
    }

    /// All names and values of the enumeration `name`.
    pub fn enumerators(&self, name: &str) -> impl Iterator<Item = (String, u32)> {
        self.find(name, kind::ENUM).into_iter().flat_map(|header| self.enumerators_of(header))
    }

    /// All names and values of the anonymous enumeration that has an enumerator called `member`.
    pub fn enumerators_beside(&self, member: &str) -> impl Iterator<Item = (String, u32)> {
        self.headers()
            .filter(|header| header.kind() == kind::ENUM && header.name == 0)
            .find(|header| self.enumerators_of(*header).any(|(name, _)| name == member))
            .into_iter()
            .flat_map(|header| self.enumerators_of(header))
    }

    /// The id of the function `name`. Functions are half of all types and seldom looked for, so they are in
    /// no index: all names are read.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u32> {
        let place = self.place(name)?;
        let found = (1..).zip(self.headers());
        let mut found = found.filter(|(_, header)| header.kind() == kind::FUNC);
        found.find(|(_, header)| header.name == place).map(|(id, _)| id)
    }

    /// Where the names have `name`, which is there once as the kernel keeps each name.
    fn place(&self, name: &str) -> Option<u32> {
        let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
        let finder = memchr::memmem::Finder::new(&wanted);
        // What is in two pieces is in the overlap.
        let mut piece = vec![0; PIECE + wanted.len()];
        for start in self.strings.clone().step_by(PIECE) {
            let len = piece.len().min(self.strings.end - start);
            let read = self.source.read_at(&mut piece[..len], start).ok()?;
            if let Some(at) = finder.find(&piece[..read]) {
                return u32::try_from(start + at + 1 - self.strings.start).ok();
            }
        }
        None
    }

    /// Whether the kernel has the variable `name`; only those of which every CPU has its own are told
    /// of by all kernels.
    #[must_use]
    pub fn has_variable(&self, name: &str) -> bool {
        self.find(name, kind::VAR).is_some()
    }

    /// Types of the arguments of the raw tracepoint `event`, or nothing where the kernel does not
    /// have it. They come from the typedef `btf_trace_<event>`, a pointer to a function whose first
    /// argument is the tracepoint's private data and left out here.
    #[must_use]
    pub fn tracepoint_args(&self, event: &str) -> Option<Vec<ArgType>> {
        let typedef = self.find(&format!("btf_trace_{event}"), kind::TYPEDEF)?;
        let pointer = self.stripped(typedef.size_or_type)?;
        let proto = self.stripped(pointer.size_or_type)?;
        if pointer.kind() != kind::PTR || proto.kind() != kind::FUNC_PROTO {
            return None;
        }
        (1..proto.len())
            .map(|n| {
                word(&self.types, proto.tail + n * 8 + 4).map(|type_id| self.arg_type(type_id))
            })
            .collect()
    }

    fn arg_type(&self, type_id: u32) -> ArgType {
        let Some(header) = self.header(type_id) else { return ArgType::Other };
        let named = |header: Header| self.name(header.name);
        match header.kind() {
            kind::PTR => self
                .stripped(header.size_or_type)
                .and_then(named)
                .map_or(ArgType::Other, ArgType::Pointer),
            kind::CONST | kind::VOLATILE | kind::TYPE_TAG => self.arg_type(header.size_or_type),
            _ => named(header).map_or(ArgType::Other, ArgType::Named),
        }
    }

    fn member_of(&self, parent: Header, name: &str, depth: usize) -> Option<Member> {
        if !matches!(parent.kind(), kind::STRUCT | kind::UNION) || depth > MAX_DEPTH {
            return None;
        }
        (0..parent.len()).find_map(|n| {
            let at = parent.tail + n * 12;
            let (name_offset, type_id, place) =
                (word(&self.types, at)?, word(&self.types, at + 4)?, word(&self.types, at + 8)?);
            let (bit_offset, bits) = if parent.has_bit_fields() {
                (place & 0x00ff_ffff, place >> 24)
            } else {
                (place, 0)
            };
            if name_offset == 0 {
                let inner = self.member_of(self.stripped(type_id)?, name, depth + 1)?;
                return Some(Member { bit_offset: bit_offset + inner.bit_offset, ..inner });
            }
            self.is_name(name_offset, name).then_some(Member { bit_offset, bits, type_id })
        })
    }

    fn enumerators_of(&self, header: Header) -> impl Iterator<Item = (String, u32)> {
        (0..header.len()).filter_map(move |n| {
            let at = header.tail + n * 8;
            Some((self.name(word(&self.types, at)?)?, word(&self.types, at + 4)?))
        })
    }

    /// The type behind typedefs and qualifiers.
    fn stripped(&self, mut type_id: u32) -> Option<Header> {
        for _ in 0..MAX_DEPTH {
            let header = self.header(type_id)?;
            match header.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    type_id = header.size_or_type;
                }
                _ => return Some(header),
            }
        }
        None
    }

    fn find(&self, name: &str, kind: u32) -> Option<Header> {
        let hash = hash(name.as_bytes());
        let start = self.index.partition_point(|(candidate, _)| *candidate < hash);
        let same = self.index[start..].iter().take_while(|(candidate, _)| *candidate == hash);
        same.filter_map(|(_, id)| self.header(*id))
            .find(|header| header.kind() == kind && self.is_name(header.name, name))
    }

    fn headers(&self) -> impl Iterator<Item = Header> {
        self.starts.iter().filter_map(|&start| self.header_at(start as usize))
    }

    fn header(&self, type_id: u32) -> Option<Header> {
        let start = *self.starts.get(type_id.checked_sub(1)? as usize)?;
        self.header_at(start as usize)
    }

    fn header_at(&self, at: usize) -> Option<Header> {
        Some(Header {
            name: word(&self.types, at)?,
            info: word(&self.types, at + 4)?,
            size_or_type: word(&self.types, at + 8)?,
            tail: at + 12,
        })
    }

    /// Whether the name at `place` is `name`.
    fn is_name(&self, place: u32, name: &str) -> bool {
        let mut found = [0; MAX_NAME];
        let Some(found) = found.get_mut(..=name.len()) else { return false };
        let read = self.source.read_at(found, self.strings.start.saturating_add(place as usize));
        read.is_ok_and(|read| read == found.len())
            && found.strip_suffix(&[0]) == Some(name.as_bytes())
    }

    fn name(&self, place: u32) -> Option<String> {
        let mut name = [0; MAX_NAME];
        let at = self.strings.start.checked_add(place as usize)?;
        let len = MAX_NAME.min(self.strings.end.checked_sub(at)?);
        let read = self.source.read_at(&mut name[..len], at).ok()?;
        let end = memchr::memchr(0, &name[..read])?;
        std::str::from_utf8(&name[..end]).ok().map(str::to_owned)
    }
}

fn hash(name: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    (hasher.finish() >> 32) as u32
}

/// Length of what follows a type's first three words.
fn tail_len(header: Header) -> Result<usize, BtfError> {
    Ok(match header.kind() {
        kind::PTR
        | kind::FWD
        | kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::FUNC
        | kind::FLOAT
        | kind::TYPE_TAG => 0,
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::ENUM | kind::FUNC_PROTO => 8 * header.len(),
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * header.len(),
        other => return Err(BtfError::UnknownKind(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::btf_builder::Builder, *};

    #[test]
    fn finds_members_through_anonymous_ones_and_by_path() {
        let mut builder = Builder::default();
        let int = builder.int("int", 4);
        let inner = builder.structure("inner", 8, &[("a", int, 0), ("b", int, 32)]);
        let anonymous = builder.structure("", 12, &[("x", int, 0), ("y", inner, 32)]);
        let alias = builder.typedef("inner_t", inner);
        builder.structure("outer", 24, &[("first", alias, 0), ("", anonymous, 96)]);
        let blob = builder.blob();
        let btf = Btf::parse(&blob).expect("well-formed");

        let offset = |path| btf.member("outer", path).map(|member| member.offset());
        assert_eq!(offset("first"), Some(0));
        assert_eq!(offset("first.b"), Some(4));
        assert_eq!(offset("x"), Some(12));
        assert_eq!(offset("y.b"), Some(20));
        for absent in ["b", "first.c", "x.a", "", "first."] {
            assert_eq!(offset(absent), None, "{absent}");
        }
        assert_eq!(btf.size_of("outer"), Some(24));
        assert_eq!(btf.size_of("inner_t"), None, "a typedef is not a structure");
        assert_eq!(btf.member("no such structure", "a"), None);
    }

    #[test]
    fn knows_bit_fields_arrays_and_enumerations() {
        let mut builder = Builder::default();
        let int = builder.int("unsigned int", 4);
        let array = builder.array(int, 11);
        builder.bit_fields("flags", 8, &[("plain", int, 0, 0), ("bit", int, 33, 1)]);
        builder.structure("areas", 44, &[("free_area", array, 0)]);
        builder.enumeration("mode", &[("ASYNC", 0), ("SYNC", 2)]);
        builder.enumeration("", &[("OTHER", 7)]);
        let blob = builder.blob();
        let btf = Btf::parse(&blob).expect("well-formed");

        let bit = btf.member("flags", "bit").expect("a member");
        assert_eq!((bit.bit_offset, bit.bits, bit.offset()), (33, 1, 4));
        assert_eq!(btf.member("flags", "plain").map(|member| member.bits), Some(0));
        let areas = btf.member("areas", "free_area").expect("a member");
        assert_eq!(btf.array_len(areas), Some(11));
        assert_eq!(btf.array_len(bit), None);
        assert_eq!(btf.enumerator("mode", "SYNC"), Some(2));
        assert_eq!(btf.enumerator("mode", "OTHER"), None);
        assert_eq!(btf.enumerators_beside("OTHER").collect::<Vec<_>>(), [("OTHER".to_owned(), 7)]);
    }

    #[test]
    fn survives_every_cut() {
        let mut builder = Builder::default();
        let int = builder.int("int", 4);
        let array = builder.array(int, 3);
        builder.structure("s", 12, &[("a", array, 0)]);
        builder.enumeration("e", &[("A", 1)]);
        let blob = builder.blob();
        assert!(Btf::parse(&blob).is_ok());
        for len in 0..blob.len() {
            assert!(Btf::parse(&blob[..len].to_vec()).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn survives_types_that_lead_nowhere_and_in_circles() {
        let mut builder = Builder::default();
        let circle = builder.next_id();
        builder.typedef("circle", circle);
        let pointer = builder.pointer(999);
        builder.structure("s", 8, &[("round", circle, 0), ("lost", 999, 0), ("far", pointer, 0)]);
        let blob = builder.blob();
        let btf = Btf::parse(&blob).expect("well-formed");
        assert_eq!(btf.member("s", "round.x"), None);
        assert_eq!(btf.member("s", "lost.x"), None);
        assert_eq!(btf.member("s", "far.x"), None);
    }

    #[test]
    fn finds_names_wherever_pieces_part() {
        let names: Vec<_> = (0..2000).map(|number| format!("{number:0>21}")).collect();
        let mut builder = Builder::default();
        for name in &names {
            builder.structure(name, 1, &[]);
        }
        let blob = builder.blob();
        let btf = Btf::parse(&blob).expect("well-formed");
        assert!(btf.strings.len() > 2 * PIECE);
        for name in &names {
            assert_eq!(btf.size_of(name), Some(1), "{name}");
        }
        for len in [MAX_NAME - 1, MAX_NAME, PIECE] {
            assert_eq!(btf.size_of(&"1".repeat(len)), None);
        }
    }

    #[test]
    fn finds_functions_wherever_pieces_part() {
        let names: Vec<_> = (0..2000).map(|number| format!("{number:0>21}")).collect();
        let mut builder = Builder::default();
        builder.structure(&names[7], 1, &[]);
        let functions: Vec<_> =
            names.iter().map(|name| (name, builder.next_id(), builder.function(name))).collect();
        let blob = builder.blob();
        let btf = Btf::parse(&blob).expect("well-formed");
        for (name, id, ()) in functions {
            assert_eq!(btf.function(name), Some(id), "{name}");
        }
        assert_eq!(btf.function("1"), None, "the end of another's name");
        assert_eq!(btf.function(&"1".repeat(2 * PIECE)), None);
    }

    #[test]
    fn names_too_long_for_a_piece_hide_no_others() {
        let (long, longer) = ("1".repeat(PIECE), "2".repeat(3 * PIECE));
        let mut builder = Builder::default();
        for name in ["a", &long, "b", &longer, "c"] {
            builder.structure(name, 1, &[]);
        }
        let blob = builder.blob();
        let btf = Btf::parse(&blob).expect("well-formed");
        for name in ["a", "b", "c"] {
            assert_eq!(btf.size_of(name), Some(1), "{name}");
        }
        assert_eq!(btf.size_of(&long), None);
    }

    #[test]
    fn a_name_beyond_the_end_is_none() {
        let mut builder = Builder::default();
        builder.structure("a", 1, &[]);
        builder.structure("b", 1, &[]);
        let mut blob = builder.blob();
        // The name of the first type is the first word after the header.
        blob[24..28].copy_from_slice(&u32::MAX.to_ne_bytes());
        let btf = Btf::parse(&blob).expect("well-formed");
        assert_eq!((btf.size_of("a"), btf.size_of("b")), (None, Some(1)));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(Btf::parse(&Vec::new()).err(), Some(BtfError::Header));
        assert_eq!(
            Btf::parse(&b"not BTF at all, but long enough for a header".to_vec()).err(),
            Some(BtfError::Header)
        );
        let mut builder = Builder::default();
        builder.raw_kind(31);
        assert_eq!(Btf::parse(&builder.blob()).err(), Some(BtfError::UnknownKind(31)));
    }
}
