//! What is recorded comes back, and what anyone else may have written does no harm.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use super::check::{comes_back, file, read_changed, read_file, read_raw, whole};
use super::file::{BLOCK_HEADER, block, header};
use super::made::{Made, Source, Step, nameless};
use super::sections::{Id, Writer};
use super::store::Store;
use super::{Block, Builder, Fired, Item, Meta, Missing, Note, ReadError, Recording};
use crate::kind::Kind;
use crate::live::Event;
use crate::scope::{Parts, Scope};
use crate::stall::{Comm, Detail, Reclaim, ReclaimKind, Stall};
use crate::symbols::{Frame, Symbols};
use crate::view::fixtures::reclaim;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_recorded_comes_back(bytes in vec(any::<u8>(), 0..6000)) {
        comes_back(&Made::of(&mut Source(&bytes), usize::MAX));
    }

    #[test]
    fn what_was_changed_can_be_read_or_not(bytes in vec(any::<u8>(), 0..4000)) {
        read_changed(&bytes);
    }
}

/// What the fuzzer has found to lead to different places.
#[test]
fn what_the_fuzzer_has_collected_can_be_read_or_not() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let each = |target: &str, read: &dyn Fn(&[u8])| {
        let files = fs::read_dir(corpus.join(target)).expect("there is a corpus");
        let files = files.map(|file| fs::read(file.expect("a file").path()).expect("a file"));
        let count = files.map(|bytes| read(&bytes)).count();
        assert!(count > 10, "{target}: {count}");
    };
    each("file", &|bytes| {
        let _read = read_file(bytes);
    });
    each("block", &|bytes| {
        let _read = read_raw(bytes);
    });
    each("changed", &read_changed);
}

/// Some small blocks with something of everything.
fn small() -> Vec<Vec<u8>> {
    let mut state: u64 = 1;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(1600)
    .collect();
    let mut made = Made::of(&mut Source(&bytes), usize::MAX);
    for at in [2, 5, 8, 11] {
        made.steps.insert(at, Step::Cut);
    }
    let blocks = comes_back(&made);
    assert!(blocks.len() >= 5 && blocks.iter().map(Vec::len).sum::<usize>() < 10_000);
    blocks
}

fn missing(bytes: &[u8]) -> (Vec<u64>, Missing) {
    let recording = Recording::open(file(bytes)).expect("a recording");
    (recording.places.iter().map(|place| place.number).collect(), recording.missing)
}

/// Where the header ends, and each block.
fn ends(bytes: &[u8]) -> Vec<usize> {
    let length =
        |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte])) as usize;
    let mut ends = vec![20 + length(12)];
    while let Some(&end) = ends.last().filter(|end| **end < bytes.len()) {
        ends.push(end + BLOCK_HEADER + length(end + 32));
    }
    ends
}

#[test]
fn what_is_compressed_is_said_to_be() {
    for (front, command) in [
        (&b"\x1f\x8b\x08"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh9", "bzip2"),
        (b"\x04\x22\x4d\x18\x64", "lz4"),
    ] {
        let error = Recording::open(file(front)).expect_err("it is none").to_string();
        let remedy = format!("`{command} -dc FILE | memtrace report -`");
        assert!(error.contains(&remedy), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_has_what_came_before() {
    let bytes = whole(&Meta::default(), &small());
    let ends = ends(&bytes);
    assert_eq!(ends.last(), Some(&bytes.len()));
    for len in 0..=bytes.len() {
        let recording = match Recording::open(file(&bytes[..len])) {
            Err(ReadError::NotARecording) => {
                assert!(len < 8, "{len}");
                continue;
            }
            Err(ReadError::Header("it is cut")) => {
                assert!(len < ends[0], "{len}");
                continue;
            }
            recording => recording.expect("the header is there"),
        };
        let complete = ends.iter().rposition(|end| *end <= len).expect("the header is");
        assert_eq!(recording.places.len(), complete, "{len}");
        assert_eq!(recording.missing.stray, (len - ends[complete]) as u64, "{len}");
        assert_eq!(recording.bytes(), (ends[complete] - ends[0]) as u64, "{len}");
        if len == ends[complete] {
            assert_eq!(read_file(&bytes[..len]).expect("it opens"), complete);
        }
    }
}

#[test]
fn a_byte_that_flips_takes_one_block() {
    let bytes = whole(&Meta::default(), &small());
    let ends = ends(&bytes);
    for at in 0..bytes.len() {
        for flip in [1 << (at % 8), 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            match read_file(&bytes) {
                Ok(read) => assert_eq!(read, ends.len() - 2, "{at}"),
                Err(_) => assert!(at < ends[0], "{at}"),
            }
        }
    }
}

#[test]
fn a_file_that_has_gone_round_is_read_in_order() {
    let blocks = small();
    let mut at: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for number in 0..10 {
        let raw = &blocks[usize::try_from(number).expect("small") % blocks.len()];
        block(raw, number, (0, 0), at.entry(number).or_default());
    }
    let file_of = |parts: &[&[u8]]| [&header(&Meta::default())[..], &parts.concat()].concat();
    let rest = &at[&4][at[&4].len() / 3..];
    let gone_round = file_of(&[&at[&7], &at[&8], rest, &at[&5], &at[&6]]);
    let expected = Missing { dropped: 5, ..Missing::default() };
    assert_eq!(missing(&gone_round), (vec![5, 6, 7, 8], expected));
    assert_eq!(read_file(&gone_round).expect("it opens"), 4);

    let lost = file_of(&[&at[&8], rest, &at[&3], &at[&5]]);
    let expected = Missing { dropped: 3, lost: 3, ..Missing::default() };
    assert_eq!(missing(&lost), (vec![3, 5, 8], expected));

    let twice = file_of(&[&at[&0], &at[&1], &at[&1], &at[&0]]);
    let stray = (at[&0].len() + at[&1].len()) as u64;
    assert_eq!(missing(&twice), (vec![0, 1], Missing { stray, ..Missing::default() }));

    let mut damaged = file_of(&[&at[&0], &at[&1]]);
    *damaged.last_mut().expect("it has bytes") ^= 1;
    assert_eq!(missing(&damaged), (vec![0, 1], Missing::default()));
    assert_eq!(read_file(&damaged).expect("it opens"), 1);

    let mut far = Vec::new();
    block(&blocks[0], u64::MAX, (0, 0), &mut far);
    let expected = Missing { lost: u64::MAX - 1, ..Missing::default() };
    assert_eq!(missing(&file_of(&[&at[&0], &far])), (vec![0, u64::MAX], expected));
}

#[test]
fn what_the_newest_block_was_written_over_is_no_damage_and_all_else_is() {
    let blocks = small();
    let block_of = |number: u64| {
        let raw = &blocks[usize::try_from(number).expect("small") % blocks.len()];
        let mut bytes = Vec::new();
        block(raw, number, (0, 0), &mut bytes);
        bytes
    };
    let at: BTreeMap<u64, Vec<u8>> = (0..10).map(|number| (number, block_of(number))).collect();
    let rest = &at[&4][at[&4].len() / 3..];
    let cut = &at[&9][..at[&9].len() / 2];
    let mut broken = at[&6].clone();
    broken[20] ^= 1;
    let len = |bytes: &[u8]| bytes.len() as u64;
    let fired = Meta { trigger: Some(Fired::default()), ..Meta::default() };
    let whole = Meta::default();
    let of_parts: [(&Meta, &[&[u8]], u64); 9] = [
        // Gone round, also up to the very end.
        (&whole, &[&at[&7], &at[&8], rest, &at[&5], &at[&6]], 0),
        (&whole, &[&at[&5], &at[&6], &at[&7], rest], 0),
        // A block that is damaged, and not written over.
        (&whole, &[&at[&7], &at[&8], &broken, rest, &at[&5]], len(&broken) + len(rest)),
        // Damaged somewhere else; where it begins; cut.
        (&whole, &[&at[&7], &at[&8], rest, &at[&5], &broken], len(&broken)),
        (&whole, &[b"xyz", &at[&7], &at[&8], rest, &at[&5], &at[&6]], 3),
        (&whole, &[&broken, &at[&7], &at[&8]], len(&broken)),
        (&whole, &[&at[&7], &at[&8], rest, &at[&5], cut], len(cut)),
        // Not gone round.
        (&whole, &[&at[&0], &at[&1], cut], len(cut)),
        (&fired, &[&at[&7], &at[&8], cut], len(cut)),
    ];
    for (case, (meta, parts, stray)) in of_parts.into_iter().enumerate() {
        let bytes = [&header(meta)[..], &parts.concat()].concat();
        assert_eq!(missing(&bytes).1.stray, stray, "{case}");
    }
}

#[test]
fn a_file_of_a_greatest_size_is_whole_whenever_it_is_looked_at() {
    let at = tempfile::tempfile().expect("a temporary directory");
    let clone = || at.try_clone().expect("a descriptor");
    let (raws, mut bytes) = (small(), Vec::new());
    let most = 3 * raws.iter().map(|raw| raw.len() as u64).max().expect("blocks");
    let mut store = Store::begin(clone(), &Meta::default(), most).expect("room");
    let mut have_remains = 0;
    for (number, raw) in (0..40).zip(raws.iter().cycle()) {
        block(raw, number, (number, number), &mut bytes);
        store.append(&bytes).expect("room");
        let (mut now, len) = (Vec::new(), at.metadata().expect("it is open").len());
        now.resize(usize::try_from(len).expect("small"), 0);
        at.read_exact_at(&mut now, 0).expect("its bytes");
        let (numbers, missing) = missing(&now);
        let dropped = numbers[0];
        assert_eq!(missing, Missing { dropped, ..Missing::default() }, "{number}");
        let header = header(&Meta::default()).len() as u64;
        let there = Recording::open(file(&now)).expect("a recording").bytes();
        have_remains += u64::from(header + there < len);
    }
    assert!(have_remains > 10, "{have_remains}: nothing was overwritten in part");
}

#[test]
fn what_is_no_recording_is_refused_in_a_line() {
    let refused = |bytes: &[u8]| Recording::open(file(bytes)).expect_err("refused").to_string();
    let mut newer = header(&Meta::default());
    newer[8] = 2;
    for (bytes, why) in [
        (&b""[..], "it is not a recording of memtrace"),
        (b"memtrac", "it is not a recording of memtrace"),
        (b"\x7fELF and more than what a header has", "it is not a recording of memtrace"),
        (b"memtrace", "its header is damaged, so nothing of it can be read: it is cut"),
        (
            &newer,
            "it has version 2 of the format, and this memtrace knows version 1: use the memtrace that made it, or a newer one",
        ),
    ] {
        assert_eq!(refused(bytes), why);
    }
    let mut longer = header(&Meta::default());
    longer[15] = 0xff;
    assert!(refused(&longer).ends_with("it is longer than it can be"));
}

/// A block with this head and notes, and columns of these numbers, all the same.
fn raw(head: &str, notes: &str, columns: &[(Id, usize, u64)]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.bytes(Id::Head, head.as_bytes());
    writer.bytes(Id::Notes, notes.as_bytes());
    for (id, count, value) in columns {
        writer.column(*id, std::iter::repeat_n(*value, *count));
    }
    writer.out
}

#[test]
fn a_block_has_an_end() {
    let most = 65536;
    let rows = |what: &str, count: usize| format!(r#"{{"rows":{{"{what}":{count}}}}}"#);
    let list = |what: &str, one: &str, count: usize| {
        format!(r#"{{"{what}":[{}]}}"#, vec![one; count].join(","))
    };
    let reads = |raw: &[u8]| assert!(read_raw(raw));
    let refuses = |raw: &[u8], why: &str| {
        let damaged = Block::decode(raw).expect_err(why);
        assert_eq!(damaged.to_string(), why);
    };
    for table in ["rounds", "scopes", "threads", "classes", "stacks", "user_stacks"] {
        refuses(&raw(&rows(table, most + 1), "", &[]), "a table has too many rows");
        refuses(&raw(&rows(table, usize::MAX), "", &[]), "a table has too many rows");
    }
    reads(&raw(&rows("threads", most), "", &[]));

    // Next to nothing in the file.
    for (table, length, values) in [
        ("stacks", Id::StackLength, Id::StackAddress),
        ("user_stacks", Id::UserStackLength, Id::UserStackAddress),
    ] {
        let stacks = |len: usize| {
            let lengths = (length, most, len as u64);
            raw(&rows(table, most), "", &[lengths, (values, most * len, 7)])
        };
        reads(&stacks(8));
        refuses(&stacks(9), "its stacks are longer than they can be");
        refuses(&raw(&rows(table, 1), "", &[(length, 1, 128)]), "a list is longer than it can be");
    }

    let (text, name) = ("its names make no sense", "a name is longer than it can be");
    let frame = |text: &str| format!(r#"{{"text":"{text}","name_len":1}}"#);
    reads(&raw(&list("user_frames", &frame("f"), most), "", &[]));
    refuses(&raw(&list("user_frames", &frame("f"), most + 1), "", &[]), text);
    refuses(&raw(&list("cgroups", "[0,null]", most + 1), "", &[]), text);
    refuses(&raw(&list("zones", "\"\"", 1025), "", &[]), text);
    refuses(&raw(&list("zones", &format!("\"{}\"", "z".repeat(65)), 1), "", &[]), name);
    refuses(&raw(&list("user_frames", &frame(&"f".repeat(1025)), 1), "", &[]), name);
    let long = list("no_one_knows", "0", 1 << 21);
    refuses(&raw(&long, "", &[]), "its names are longer than they can be");
    refuses(&raw(&"[".repeat(1 << 20), "", &[]), text);
    let deep = format!(r#"{{"no_one_knows":{}{}}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
    reads(&raw(&deep, "", &[]));

    let notes = |one: &str, count: usize| {
        raw("{}", &format!("[{}]", vec![one; count].join(",")), &[(Id::Order, count, 2)])
    };
    reads(&notes(r#"{"clock":0}"#, most));
    refuses(&notes("0", most + 1), "its notes make no sense");
    refuses(&notes(&" ".repeat(1 << 20), 5), "its notes are longer than they can be");
    reads(&notes(&format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20)), 1));
    refuses(&notes("[", 1), "its notes make no sense");
}

#[test]
fn notes_of_kinds_that_are_not_known_are_passed_over() {
    let notes = r#"[{"clock":1},{"tomorrow":[1,{"a":null}]},{"clock":2,"more":0},{"clock":3}]"#;
    let block = Block::decode(&raw("{}", notes, &[(Id::Order, 4, 2)])).expect("it can be read");
    let known = [Note::Clock(1), Note::Clock(3)];
    assert_eq!(block.notes(), known);
    let mut items = Vec::new();
    block.each(&mut nameless(Symbols::from_frames([])), |item, _| items.push(item));
    assert_eq!(items, known.map(Item::Note));
}

#[test]
fn sections_and_keys_that_are_not_known_are_passed_over() {
    let made = Made::of(&mut Source(&[2; 500]), 20);
    for raw in &mut comes_back(&made) {
        let before = format!("{:?}", Block::decode(raw).expect("it was just written"));
        let mut writer = Writer::default();
        writer.numbered(63, [1, 2, 3]);
        writer.numbered(255, [u64::MAX]);
        let longer = [&writer.out[..], raw].concat();
        let after = format!("{:?}", Block::decode(&longer).expect("it can be read"));
        assert_eq!(before, after);
    }
    assert!(read_raw(&raw(r#"{"epoch_ns":5,"rows":{"moons":2},"suns":[{}]}"#, "", &[])));
}

/// A reclaim of thread 1 with as many pages as it took nanoseconds.
fn round(kind: ReclaimKind, from_ns: u64, to_ns: u64) -> Stall {
    let detail = Detail::Reclaim(Reclaim {
        kind,
        limit: None,
        nr_scanned: None,
        nr_reclaimed: to_ns - from_ns,
        compaction_ready: false,
        priority: None,
        target_cgroup_id: None,
        free_pages: None,
        node: None,
    });
    Stall { start_ns: from_ns, duration_ns: to_ns - from_ns, tid: 1, detail, ..reclaim() }
}

#[test]
fn a_scope_tells_what_its_own_rounds_do() {
    use ReclaimKind::{Direct, Memcg, Node, Softlimit};
    let scope = |from_ns: u64, to_ns: u64| {
        let Stall { pid, uid, cpu, comm, cgroup_id, .. } = reclaim();
        let (start_ns, duration_ns, tid) = (from_ns, to_ns - from_ns, 1);
        let (parts, callers) = (Parts::default(), vec![0x1f]);
        Scope { start_ns, duration_ns, pid, tid, uid, cpu, comm, cgroup_id, parts, callers }
    };
    let told = |rounds: &[Stall], scope: Scope| {
        // Without a scope rounds are not held back: they stand here as if others had been lost.
        let mut builder = Builder::new(0, false);
        let mut names =
            nameless(Symbols::from_frames([(0x1f, Frame::of_function("read_pages", 1))]));
        for stall in rounds {
            builder.event(&Event::Stall(stall.clone()), &mut names);
        }
        builder.event(&Event::Scope(scope), &mut names);
        let block = Block::decode(builder.finish(0).0).expect("it was just written");
        let mut all = Vec::new();
        block.told(true, |told| all.push((told.kind, told.nr_reclaimed, told.stack)));
        assert_eq!(all.len(), 1);
        all[0]
    };
    let nested = [round(Softlimit, 10, 20), round(Direct, 5, 30), round(Memcg, 40, 50)];
    assert_eq!(told(&nested, scope(0, 60)), (Kind::Direct, 35, 1));
    let alone = [round(Softlimit, 10, 30), round(Direct, 30, 40)];
    assert_eq!(told(&alone, scope(0, 60)), (Kind::Softlimit, 30, 1));
    let both_soft = [round(Softlimit, 10, 20), round(Softlimit, 5, 30)];
    assert_eq!(told(&both_soft, scope(0, 60)), (Kind::Softlimit, 35, 1));
    let equal = [round(Direct, 10, 20), round(Node, 20, 30)];
    assert_eq!(told(&equal, scope(10, 30)), (Kind::Node, 20, 1));
    let none = (Kind::Refault, 0, 2);
    assert_eq!(told(&[round(Direct, 4, 20)], scope(5, 60)), none, "it began before");
    assert_eq!(told(&[round(Direct, 10, 61)], scope(5, 60)), none, "it ended after");
    let other = Stall { tid: 2, ..round(Direct, 10, 20) };
    assert_eq!(told(&[other], scope(5, 60)), none, "it is of another thread");
    let renamed = Stall { comm: Comm::new([b'x'; 16]), ..round(Direct, 10, 20) };
    assert_eq!(told(&[renamed], scope(5, 60)), (Kind::Direct, 10, 1));
}

/// All rounds that come of what is held, block by block.
fn recorded(stalls: impl Iterator<Item = Stall>, frames: &dyn Fn(u64) -> Frame) -> Vec<Stall> {
    let mut builder = Builder::new(0, true);
    let mut names = nameless(Symbols::from_frames([]));
    let mut found = Vec::new();
    let mut finish = |builder: &mut Builder| {
        let (raw, span_ns) = builder.finish(0);
        let mut out = Vec::new();
        block(raw, 0, span_ns, &mut out);
        let bytes = [&header(&Meta::default())[..], &out].concat();
        let recording = Recording::open(file(&bytes)).expect("a recording");
        let block = recording.block(&recording.places[0]).expect("it was just written");
        block.each(&mut nameless(Symbols::from_frames([])), |item, _| match item {
            Item::Event(Event::Stall(stall)) => found.push(stall),
            _ => panic!("nothing else was recorded"),
        });
    };
    for stall in stalls {
        let stack: Vec<_> = stall.user_stack.iter().map(|at| frames(*at).into()).collect();
        names.symbols.learn_user(stall.pid, &stall.user_stack, &stack);
        builder.event(&Event::Stall(stall), &mut names);
        if builder.is_full() {
            finish(&mut builder);
        }
    }
    builder.release(&mut names);
    finish(&mut builder);
    found
}

#[test]
fn rounds_whose_scopes_are_lost_come_all_the_same() {
    let nameless = |address| Frame::nameless(address);
    for threads in [1, 5000] {
        let stalls: Vec<_> = (0..10_000)
            .map(|n| Stall { tid: n % threads, duration_ns: n.into(), ..reclaim() })
            .collect();
        let found = recorded(stalls.iter().cloned(), &nameless);
        assert_eq!(found.len(), stalls.len());
        for tid in 0..threads {
            let of_thread = |stalls: &[Stall]| {
                let stalls = stalls.iter().filter(|stall| stall.tid == tid);
                stalls.map(|stall| stall.duration_ns).collect::<Vec<_>>()
            };
            assert_eq!(of_thread(&found), of_thread(&stalls));
            if threads > 100 && tid > 20 {
                break;
            }
        }
    }
}

#[test]
fn whatever_names_programs_choose_the_block_can_be_read() {
    let hostile = |address| Frame::of_function(&"\u{1}".repeat(256), address);
    let stalls = (0..9000_u32).map(|n| Stall {
        tid: n,
        user_stack: (0..100).map(|depth| u64::from(n) * 100 + depth).collect(),
        stack: (0..100).map(|depth| u64::from(n) * 100 + depth).collect(),
        ..reclaim()
    });
    let found = recorded(stalls, &hostile);
    assert_eq!(found.len(), 9000);
    assert!(found.iter().filter(|stall| !stall.user_stack.is_empty()).count() > 10);
}

#[test]
fn a_note_that_is_too_long_is_left_out() {
    let mut builder = Builder::new(0, false);
    let look = super::Look {
        files: [("/proc/vmstat".to_owned(), "x".repeat(3 << 20))].into(),
        ..super::Look::default()
    };
    builder.note(&Note::Look(look));
    builder.note(&Note::Clock(1));
    let block = Block::decode(builder.finish(0).0).expect("it can be read");
    assert_eq!(block.notes(), [Note::Clock(1)]);
}

#[test]
fn the_page_on_the_format_has_every_section() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/recording.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let number: u8 = cells.next()?.parse().ok()?;
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        Some((number, name.to_owned()))
    };
    let told: BTreeMap<_, _> = page.lines().filter_map(row).collect();
    let known = Id::ALL.iter().map(|id| (id.number(), format!("{id:?}")));
    assert_eq!(told, known.collect());
}
