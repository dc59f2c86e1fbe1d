//! Every operation and error of the protocol as bytes on a connection, written by hand from the specification: what
//! encodes them in the program is not used to check it.

use alba_core::checksum::ChecksumAlgorithm;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const LARGE: usize = 20_000;

fn int(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&int(u32::try_from(bytes.len()).unwrap())[..], bytes].concat()
}

/// A list as it is on the wire: the last element first.
fn list(items: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = int(u32::try_from(items.len()).unwrap());
    items.iter().rev().for_each(|item| bytes.extend_from_slice(item));
    bytes
}

fn texts(items: &[&str]) -> Vec<u8> {
    list(&items.iter().map(text).collect::<Vec<_>>())
}

fn crc(value: &[u8]) -> Vec<u8> {
    let Checksum::Crc32c(crc) = ChecksumAlgorithm::Crc32c.of(value) else { unreachable!() };
    [&[3][..], &int(crc)].concat()
}

fn large() -> Vec<u8> {
    (0..LARGE).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect()
}

/// `first` with its flag, no last, ascending, `max`.
fn range(first: &str, max: i32) -> Vec<u8> {
    [&text(first)[..], &[1, 0, 0], &max.to_le_bytes()].concat()
}

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// What must come back.
enum Answer {
    /// Status 0 and these bytes in the frame, then these behind it.
    Ok(Vec<u8>, Vec<u8>),
    /// Status 0 and a frame that begins so.
    Begins(Vec<u8>),
    /// Exactly this code and this data.
    Error(u32, Vec<u8>),
    /// This code with some text.
    Said(u32),
}

fn ok(frame: Vec<u8>) -> Answer {
    Answer::Ok(frame, Vec::new())
}

struct Row(&'static str, u32, Vec<u8>, Answer);

async fn check(stream: &mut Stream, Row(name, code, args, expected): Row) {
    let payload = [int(code), args].concat();
    stream.write_all(&text(payload)).await.unwrap();
    let len = stream.read_u32_le().await.unwrap_or_else(|error| panic!("{name}: no answer: {error}"));
    let mut frame = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut frame).await.unwrap();
    let status = u32::from_le_bytes(*frame.first_chunk().unwrap());
    let data = &frame[4..];
    match expected {
        Answer::Ok(inside, outside) => {
            assert_eq!((status, data), (0, &inside[..]), "{name}");
            let mut found = vec![0; outside.len()];
            stream.read_exact(&mut found).await.unwrap();
            assert!(found == outside, "{name}: behind the frame");
        }
        Answer::Begins(inside) => {
            assert_eq!((status, &data[..inside.len()]), (0, &inside[..]), "{name}");
        }
        Answer::Error(code, inside) => assert_eq!((status, data), (code, &inside[..]), "{name}"),
        Answer::Said(code) => {
            assert_eq!(status, code, "{name}");
            let len = u32::from_le_bytes(*data.first_chunk().unwrap());
            assert_eq!(usize::try_from(len).unwrap(), data.len() - 4, "{name}: a text follows the code");
            assert!(len > 5 && std::str::from_utf8(&data[4..]).is_ok(), "{name}");
        }
    }
}

fn set(key: &str, value: &[u8], checksum: &[u8]) -> Vec<u8> {
    bytes(&[&[1], &text(key), &[1], &text(value), checksum, &[0]])
}

fn delete(key: &str) -> Vec<u8> {
    bytes(&[&[1], &text(key), &[0]])
}

fn apply(asserts: &[Vec<u8>], updates: &[Vec<u8>]) -> Vec<u8> {
    bytes(&[&list(asserts), &list(updates), &[1]])
}

const NONE: &[u8] = &[1];
const BAD: u32 = 102;

fn writes() -> Vec<Row> {
    let absent = |key| bytes(&[&[1], &text(key), &[0]]);
    let holds = |key, value: &str| bytes(&[&[1], &text(key), &[1], &text(value)]);
    let big = large();
    vec![
        Row("an empty batch", 3, apply(&[], &[]), ok(int(0))),
        Row("a batch without its tail", 3, bytes(&[&list(&[]), &list(&[])]), ok(int(0))),
        Row("set", 3, apply(&[absent("a")], &[set("a", b"1", NONE)]), ok(int(0))),
        Row(
            "the last of a key counts",
            3,
            apply(&[], &[set("c", b"x", NONE), set("c", b"333", NONE)]),
            ok(int(0)),
        ),
        Row("a large value", 3, apply(&[], &[set("b", &big, &crc(&big))]), ok(int(0))),
        Row("present", 3, apply(&[absent("a")], &[delete("b")]), Answer::Error(2, text("a"))),
        Row("another value", 3, apply(&[holds("a", "2")], &[delete("b")]), Answer::Error(2, text("a"))),
        Row("no value", 3, apply(&[holds("nope", "2")], &[delete("b")]), Answer::Error(2, text("nope"))),
        Row(
            "the right value, before the updates",
            3,
            apply(&[holds("a", "1"), absent("d")], &[set("d", b"4", NONE)]),
            ok(int(0)),
        ),
        Row("deleting what is absent", 3, apply(&[], &[delete("nope"), delete("d")]), ok(int(0))),
        Row("set full", 6, vec![1], ok(vec![])),
        Row("full", 3, apply(&[], &[set("d", b"4", NONE)]), Answer::Error(6, vec![])),
        Row("full: deletes pass", 3, apply(&[], &[delete("d")]), ok(int(0))),
        Row(
            "full: with a set they do not",
            3,
            apply(&[], &[delete("a"), set("d", b"4", NONE)]),
            Answer::Error(6, vec![]),
        ),
        Row(
            "full: the counter of messages passes",
            3,
            apply(&[], &[set("p\0\0\0\0m", b"\x01\0\0\0", NONE)]),
            ok(int(0)),
        ),
        Row("and can be deleted", 3, apply(&[], &[delete("p\0\0\0\0m")]), ok(int(0))),
        Row("no longer full", 6, vec![0], ok(vec![])),
        Row("a flag that is none", 6, vec![2], Answer::Said(BAD)),
        Row(
            "an assert of another kind",
            3,
            apply(&[bytes(&[&[9], &text("a"), &[0]])], &[]),
            Answer::Said(BAD),
        ),
        Row(
            "an update of another kind",
            3,
            apply(&[], &[bytes(&[&[9], &text("a"), &[0]])]),
            Answer::Said(BAD),
        ),
        Row("a checksum of another kind", 3, apply(&[], &[set("e", b"5", &[77])]), Answer::Said(BAD)),
        Row("cut off", 3, apply(&[], &[set("e", b"5", NONE)])[..20].to_vec(), Answer::Said(BAD)),
        Row("more updates than there are bytes", 3, bytes(&[&int(0), &int(0x7fff_ffff)]), Answer::Said(BAD)),
        Row("a negative length", 3, bytes(&[&int(1), &[1], &int(0xffff_ffff)]), Answer::Said(BAD)),
    ]
}

fn ranges() -> Vec<Row> {
    let found = |keys: &[&str], more: u8| ok(bytes(&[&texts(keys), &[more]]));
    let bounded = |first: (&str, u8), last: (&str, u8), reverse: u8| {
        bytes(&[&text(first.0), &[first.1, 1], &text(last.0), &[last.1, reverse], &int(u32::MAX), &[1]])
    };
    let entry = |key: &str, value: &[u8], checksum: &[u8]| bytes(&[&text(key), &text(value), checksum]);
    let big = large();
    let validate = |max, verify: u8, all: u8| bytes(&[&range("", max), &[verify, all, 1]]);
    vec![
        Row("all", 1, bytes(&[&range("", -1), &[1]]), found(&["a", "b", "c"], 0)),
        Row("low", 1, bytes(&[&range("", -1), &[2]]), found(&["a", "b", "c"], 0)),
        Row("without its tail", 1, range("", 7), found(&["a", "b", "c"], 0)),
        Row("with bytes behind its tail", 1, bytes(&[&range("", 7), &[1, 9, 9]]), found(&["a", "b", "c"], 0)),
        Row("none wanted", 1, range("", 0), found(&[], 1)),
        Row("none wanted of none", 1, range("x", 0), found(&[], 0)),
        Row("two", 1, range("", 2), found(&["a", "b"], 1)),
        Row("exactly all", 1, range("", 3), found(&["a", "b", "c"], 0)),
        Row("reverse", 1, bounded(("a", 0), ("c", 1), 1), found(&["c", "b"], 0)),
        Row("bounds left out", 1, bounded(("a", 0), ("c", 0), 0), found(&["b"], 0)),
        Row("nothing between", 1, bounded(("a", 1), ("a", 0), 0), found(&[], 0)),
        Row("upside down", 1, bounded(("c", 1), ("a", 1), 0), found(&[], 0)),
        Row("another priority", 1, bytes(&[&range("", -1), &[3]]), Answer::Said(BAD)),
        Row("another flag", 1, bytes(&[&text(""), &[7, 0, 0], &int(1)]), Answer::Said(BAD)),
        Row(
            "entries",
            4,
            range("b", -1),
            ok(bytes(&[&list(&[entry("b", &big, &crc(&big)), entry("c", b"333", NONE)]), &[0]])),
        ),
        Row("one entry", 4, range("", 1), ok(bytes(&[&list(&[entry("a", b"1", NONE)]), &[1]]))),
        Row("nothing to say", 13, validate(-1, 1, 0), ok(bytes(&[&int(0), &[0]]))),
        Row(
            "all is well",
            13,
            validate(2, 1, 1),
            ok(bytes(&[
                &list(&[
                    bytes(&[&text("a"), &list(&[bytes(&[&text("none"), &[1]])])]),
                    bytes(&[&text("b"), &list(&[bytes(&[&text("crc-32c"), &[1]])])]),
                ]),
                &[1],
                &text("b"),
            ])),
        ),
        Row(
            "unread",
            13,
            validate(1, 0, 1),
            ok(bytes(&[&list(&[bytes(&[&text("a"), &int(0)])]), &[1], &text("a")])),
        ),
        Row("its priority is no tail", 13, bytes(&[&range("", -1), &[1, 0]]), Answer::Said(BAD)),
    ]
}

fn reads() -> Vec<Row> {
    let stored = |value: &[u8], checksum: &[u8]| bytes(&[&[1], &text(value), checksum]);
    let inline = |value: &[u8], checksum: &[u8]| bytes(&[&[1, 1], &text(value), checksum]);
    let big = large();
    let later = bytes(&[&[1, 2], &int(u32::try_from(LARGE).unwrap()), &crc(&big)]);
    let partial = |key, slices: &[(u32, u32)], tail: &[u8]| {
        let slices: Vec<_> = slices.iter().map(|(offset, len)| bytes(&[&int(*offset), &int(*len)])).collect();
        bytes(&[&text(key), &list(&slices), tail])
    };
    let there = |data: &[u8]| Answer::Ok(vec![1], data.to_vec());
    vec![
        Row(
            "values, absent and twice",
            2,
            bytes(&[&texts(&["a", "nope", "c", "a"]), &[1]]),
            ok(list(&[stored(b"1", NONE), vec![0], stored(b"333", NONE), stored(b"1", NONE)])),
        ),
        Row("a large one inside the frame", 2, texts(&["b"]), ok(list(&[stored(&big, &crc(&big))]))),
        Row("no keys", 2, texts(&[]), ok(int(0))),
        Row(
            "large ones behind the frame, in the order asked",
            8,
            bytes(&[&texts(&["b", "a", "nope", "b"]), &[2]]),
            Answer::Ok(
                list(&[later.clone(), inline(b"1", NONE), vec![0], later]),
                [big.clone(), big.clone()].concat(),
            ),
        ),
        Row("presence", 9, texts(&["a", "nope", "b"]), ok(list(&[vec![1], vec![0], vec![1]]))),
        Row("used and capacity", 10, vec![], {
            let used = u64::try_from(LARGE + 1 + 3).unwrap();
            ok(bytes(&[&used.to_le_bytes(), &(1_u64 << 40).to_le_bytes()]))
        }),
        Row("a slice", 11, partial("b", &[(16_000, 2_000)], &[1]), there(&big[16_000..18_000])),
        Row("of the C++ client", 11, partial("b", &[(5, 7)], &[1, 0, 0, 0]), there(&big[5..12])),
        Row(
            "slices in the order asked",
            11,
            partial("b", &[(4_095, 2), (0, 1), (19_999, 1)], &[2]),
            there(&[&big[4_095..4_097], &big[..1], &big[19_999..]].concat()),
        ),
        Row("slices of nothing", 11, partial("b", &[(20_000, 0), (3, 0)], &[1]), there(&[])),
        Row("no slices", 11, partial("b", &[], &[1]), there(&[])),
        Row("absent", 11, partial("nope", &[(0, 1)], &[1]), ok(vec![0])),
        Row("outside", 11, partial("b", &[(0, 1), (19_999, 2)], &[1]), Answer::Said(BAD)),
        Row("far outside", 11, partial("b", &[(u32::MAX, 10)], &[1]), Answer::Said(BAD)),
        Row("more than an answer may have", 11, partial("b", &[(0, u32::MAX)], &[1]), Answer::Said(BAD)),
        Row("its priority is no tail", 11, partial("b", &[(0, 1)], &[]), Answer::Said(BAD)),
    ]
}

fn others() -> Vec<Row> {
    let number = |text: &str| int(text.parse().unwrap());
    let mut rows = vec![
        Row(
            "the version",
            7,
            vec![],
            ok(bytes(&[
                &number(env!("CARGO_PKG_VERSION_MAJOR")),
                &number(env!("CARGO_PKG_VERSION_MINOR")),
                &number(env!("CARGO_PKG_VERSION_PATCH")),
                &text(""),
            ])),
        ),
        Row("with bytes behind it", 7, vec![1, 2, 3], Answer::Begins(vec![])),
        Row("statistics", 5, vec![1], Answer::Begins(vec![2])),
        Row("statistics without their flag", 5, vec![], Answer::Said(BAD)),
        Row("no slowness", 14, vec![0], ok(vec![])),
        Row("slowness cut off", 14, vec![1, 0, 0], Answer::Said(BAD)),
        Row("less than a code", 0, vec![], Answer::Error(4, vec![])),
    ];
    rows.extend(
        [0, 15, 63, 99, 1 << 20, u32::MAX]
            .map(|code| Row("unknown", code, vec![1, 2], Answer::Error(4, vec![]))),
    );
    rows
}

#[test]
fn every_operation_and_error_is_as_the_protocol_says_byte_by_byte() {
    run(ServerLimits::default(), async |asd| {
        let (mut stream, _) = asd.talk().await;
        for row in writes().into_iter().chain(ranges()).chain(reads()).chain(others()) {
            check(&mut stream, row).await;
        }
    });
}

#[test]
fn pages_have_200_items_whatever_is_asked() {
    run(ServerLimits::default(), async |asd| {
        let (mut stream, _) = asd.talk().await;
        let keys: Vec<_> = (0..250).map(|nth| format!("k{nth:03}")).collect();
        let updates: Vec<_> = keys.iter().map(|key| set(key, b"v", NONE)).collect();
        check(&mut stream, Row("250 keys", 3, apply(&[], &updates), ok(int(0)))).await;
        let page: Vec<_> = keys[..200].iter().map(text).collect();
        let entries: Vec<_> = keys[..200].iter().map(|key| bytes(&[&text(key), &text("v"), NONE])).collect();
        for max in [-1, 200, 201, i32::MAX, i32::MIN] {
            let expected = ok(bytes(&[&list(&page), &[1]]));
            check(&mut stream, Row("keys", 1, range("", max), expected)).await;
            let expected = ok(bytes(&[&list(&entries), &[1]]));
            check(&mut stream, Row("entries", 4, range("", max), expected)).await;
            let expected = ok(bytes(&[&int(0), &[1], &text("k199")]));
            check(&mut stream, Row("checks", 13, bytes(&[&range("", max), &[1, 0, 2]]), expected)).await;
        }
        let rest = ok(bytes(&[&int(0), &[0]]));
        check(&mut stream, Row("the rest", 13, bytes(&[&range("k200", -1), &[1, 0, 2]]), rest)).await;
    });
}

#[test]
fn statistics_count_by_code_and_are_cleared_after_the_snapshot() {
    run(ServerLimits::default(), async |asd| {
        let (mut stream, mut reader) = asd.talk().await;
        for _ in 0..3 {
            assert_eq!(status(&mut stream, &mut reader, &int(7)).await, 0);
        }
        let snapshot = async |stream: &mut Stream, reader: &mut FrameReader, clear: u8| {
            let frame = text(bytes(&[&int(5), &[clear]]));
            stream.write_all(&frame).await.unwrap();
            let answer = reader.frame(stream, 1 << 20).await.unwrap();
            assert_eq!(answer[..5], [0, 0, 0, 0, 2], "status 0, version 2");
            // Behind the two times: how many, then the code of each and its count first.
            (answer[21..25].to_vec(), answer[25..].to_vec())
        };
        let (count, rest) = snapshot(&mut stream, &mut reader, 1).await;
        assert_eq!((count, &rest[..4]), (int(1), &int(7)[..]));
        let (count, rest) = snapshot(&mut stream, &mut reader, 0).await;
        assert_eq!((count, &rest[..4]), (int(1), &int(5)[..]), "only the one that cleared");
    });
}

#[test]
fn without_a_store_data_is_refused_with_the_reason_and_the_rest_served() {
    run(ServerLimits::default(), async |asd| {
        asd.service.set_engine(Err("the disk is on fire".into()));
        let (mut stream, mut reader) = asd.talk().await;
        let refused = async |stream: &mut Stream, reader: &mut FrameReader, code: u32, args: Vec<u8>| {
            stream.write_all(&text(bytes(&[&int(code), &args]))).await.unwrap();
            let answer = reader.frame(stream, 1 << 20).await.unwrap();
            assert_eq!(answer[..4], int(1), "{code}");
            assert!(String::from_utf8_lossy(&answer).contains("the disk is on fire"), "{code}");
        };
        let keys = || bytes(&[&texts(&["a"]), &[1]]);
        for (code, args) in [
            (1, range("", -1)),
            (2, keys()),
            (3, apply(&[], &[])),
            (4, range("", -1)),
            (6, vec![1]),
            (8, keys()),
            (9, keys()),
            (10, vec![]),
            (11, bytes(&[&text("a"), &int(0), &[1]])),
            (13, bytes(&[&range("", -1), &[0, 0, 1]])),
        ] {
            refused(&mut stream, &mut reader, code, args).await;
        }
        for served in [7, 12] {
            assert_eq!(status(&mut stream, &mut reader, &int(served)).await, 0);
        }
    });
}

#[test]
fn nothing_keeps_the_memory_of_a_request_that_was_answered() {
    run(ServerLimits::default(), async |asd| {
        let osd = asd.osd();
        for (name, len) in [("large", 1 << 20), ("middling", 20_000), ("large", 2 << 20)] {
            osd.apply(put(name, len), Priority::High, asd.deadline()).await.unwrap();
        }
        let slices = vec![ValueSlice { offset: 0, len: 4096 }];
        osd.partial_get("large".into(), slices, Priority::High, asd.deadline()).await.unwrap();
        let clock = asd.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
        let (used, kept) = asd.server.requests.usage();
        assert_eq!(used, 0, "neither the engine nor its caches hold slices of requests");
        assert!(kept > 2 << 20, "it is there for the next ones");
    });
}
