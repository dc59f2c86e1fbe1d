//! Objects: files, sequences, slices, whole ones, listings.

use alba_tests::bytes::manifest::{self, Manifest};
use alba_tests::bytes::{Connection, Reply, Request, request, slices};

use crate::{World, crc32c, refused, upload, use_ser_2};

const NS: &str = "demo";

fn write(command: i32, object: &str, file: &str, overwrite: bool, checksum: Option<&[u8]>) -> Request {
    let mut request = request(command).str(NS).str(object).str(file).bool(overwrite).bool(checksum.is_some());
    request.0.extend(checksum.unwrap_or_default());
    request
}

fn crc(data: &[u8]) -> Vec<u8> {
    [&[3], crc32c(data).to_le_bytes().as_slice()].concat()
}

fn info(proxy: &mut Connection, object: &str) -> (i64, manifest::Checksum) {
    let mut reply = proxy.ok(request(9).str(NS).str(object).bool(true).bool(true));
    let found = (reply.i64(), manifest::checksum(&mut reply));
    reply.end();
    found
}

pub(crate) fn files(world: &World) {
    let mut proxy = world.connect();
    // By a path relative to the proxy's working directory, which is not that of this process.
    assert_ne!(std::env::current_dir().unwrap(), world.directory);
    let data = b"123456789";
    std::fs::write(world.directory.join("in"), data).unwrap();
    proxy.done(write(11, "file", "in", false, None));
    let sum = crc(data);
    assert_eq!(info(&mut proxy, "file"), (9, (3, sum[1..].to_vec())));
    refused(&mut proxy, write(11, "file", "in", false, None), 2, "OverwriteNotAllowed");
    refused(&mut proxy, write(21, "file", "in", false, None), 2, "OverwriteNotAllowed");
    refused(&mut proxy, write(11, "file", "not there", true, None), 14, "FileNotFound");
    refused(&mut proxy, write(11, "file", "in", true, Some(&crc(b"other"))), 7, "ChecksumMismatch");
    // A directory, and a name that cannot be one.
    for wrong in [".", "", "a\0b"] {
        refused(&mut proxy, write(11, "file", wrong, true, None), 1, "Unknown");
    }
    // The preset allows checksums of these algorithms only.
    world.create_preset(
        "strict",
        [1, 0, 1, 1],
        r#"{"object_checksum": {"allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true}}"#,
    );
    proxy.done(request(3).str("strict").byte(1).str("strict"));
    let sha = [[2, 20, 0, 0, 0].as_slice(), &[0; 20]].concat();
    for checksum in [&[1_u8] as &[u8], &sha] {
        let mut request = request(11).str("strict").str("o").str("in").bool(true).byte(1);
        request.0.extend(checksum);
        refused(&mut proxy, request, 8, "ChecksumAlgoNotAllowed");
    }
    // More fragments than there are storage daemons.
    world.create_preset("wide", [5, 4, 9, 1], "{}");
    proxy.done(request(3).str("wide").byte(1).str("wide"));
    let wide = request(11).str("wide").str("o").str("in").bool(true).byte(0);
    refused(&mut proxy, wide, 15, "NoSatisfiablePolicy");
    refused(&mut proxy, upload("wide", &[("o", b"x")]), 15, "NoSatisfiablePolicy");

    // With the manifest, in both forms.
    for ser in [1, 2] {
        if ser == 2 {
            use_ser_2(&mut proxy);
        }
        let mut reply = proxy.ok(write(21, "file", "in", true, Some(&crc(data))));
        let (manifest, _) = Manifest::located(&mut reply);
        reply.end();
        assert_eq!((manifest.ser, manifest.name.as_str(), manifest.size), (ser, "file", 9));
    }

    let read = |object: &str, to: &str| request(10).str(NS).str(object).str(to).bool(true).bool(false);
    proxy.done(read("file", "out"));
    assert_eq!(std::fs::read(world.directory.join("out")).unwrap(), data);
    refused(&mut proxy, read("none", "never"), 3, "ObjectDoesNotExist");
    assert!(!world.directory.join("never").exists());
    refused(&mut proxy, read("file", "no/such/directory"), 1, "Unknown");

    let delete = |object: &str, may: bool| request(8).str(NS).str(object).bool(may);
    proxy.done(delete("file", false));
    refused(&mut proxy, delete("file", false), 3, "ObjectDoesNotExist");
    proxy.done(delete("file", true));
    let gone = request(9).str(NS).str("file").bool(true).bool(true);
    refused(&mut proxy, gone, 3, "ObjectDoesNotExist");
}

/// Tag and the rest of an assert or update.
type Step<'a> = (u8, &'a str, Vec<u8>);

fn sequence(asserts: &[Step<'_>], updates: &[Step<'_>]) -> Request {
    let step = |request: Request, (tag, name, rest): &Step<'_>| {
        let mut request = request.byte(*tag).str(name);
        request.0.extend(rest);
        request
    };
    request(24).str(NS).bool(true).list(asserts, step).list(updates, step)
}

fn put<'a>(name: &'a str, data: &str) -> Step<'a> {
    (2, name, Request(Vec::new()).str(data).byte(0).0)
}

fn read(proxy: &mut Connection, name: &str, length: i32) -> Vec<u8> {
    let mut reply = proxy.ok(slices(13, NS, &[(name, &[(0, length)])]));
    let data = reply.str();
    reply.end();
    data
}

pub(crate) fn sequences(world: &World) {
    let mut proxy = world.connect();
    std::fs::write(world.directory.join("in"), "from a file").unwrap();
    let from_file = (1, "c", Request(Vec::new()).str("in").byte(1).0);
    let from_file = (from_file.0, from_file.1, [from_file.2, crc(b"from a file")].concat());
    let mut reply = proxy.ok(sequence(&[(2, "a", vec![])], &[put("a", "first"), put("b", "b"), from_file]));
    let mut objects = reply.list(Manifest::object_info);
    reply.end();
    objects.sort_by(|a, b| a.0.cmp(&b.0));
    let found: Vec<_> = objects
        .iter()
        .map(|(name, alba, manifest, _)| (name.as_str(), alba.as_str(), manifest.size))
        .collect();
    assert_eq!(found, [("a", "", 5), ("b", "", 1), ("c", "", 11)]);
    assert_eq!(read(&mut proxy, "c", 11), b"from a file");
    let id = Request(Vec::new()).str(&objects[0].2.object_id).0;

    // All asserts hold, against the state before the updates.
    let all = [(1, "a", vec![]), (2, "new", vec![]), (3, "a", id.clone()), (4, "a", crc(b"first"))];
    proxy.ok(sequence(&all, &[put("new", "n"), (3, "b", vec![]), (3, "never was", vec![])]));
    let mut exists = proxy.ok(request(26).str(NS).names(&["new", "b", "a", "never was"]));
    assert_eq!(exists.list(Reply::bool), [true, false, true, false]);
    exists.end();

    // Each that does not hold is told by the name of its object alone, and nothing has changed.
    let failing = [
        (1, "none", vec![]),
        (2, "a", vec![]),
        (3, "none", id),
        (3, "a", Request(Vec::new()).str([0; 32]).0),
        (3, "a", Request(Vec::new()).str("short").0),
        (4, "none", crc(b"first")),
        (4, "a", crc(b"other")),
        (4, "a", vec![1]),
    ];
    for assert in failing {
        let name = assert.1;
        let request = sequence(&[(1, "a", vec![]), assert], &[put("a", "second"), put("none", "")]);
        assert_eq!(proxy.err(request), (18, name.to_owned()));
    }
    assert_eq!(read(&mut proxy, "a", 5), b"first");
    refused(
        &mut proxy,
        sequence(&[], &[(1, "a", Request(Vec::new()).str("gone").byte(0).0)]),
        14,
        "FileNotFound",
    );
    let wrong = (2, "a", [Request(Vec::new()).str("data").byte(1).0, crc(b"other")].concat());
    refused(&mut proxy, sequence(&[], &[wrong]), 7, "ChecksumMismatch");
    assert_eq!(read(&mut proxy, "a", 5), b"first");

    // Of several updates of one name the first counts; the manifests of all uploads are told.
    let mut reply =
        proxy.ok(sequence(&[], &[put("twice", "one"), put("twice", "three"), (3, "twice", vec![])]));
    let mut sizes: Vec<i64> = reply.list(Manifest::object_info).iter().map(|(.., m, _)| m.size).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [3, 5]);
    assert_eq!(read(&mut proxy, "twice", 3), b"one");
    // Nothing at all.
    let mut nothing = proxy.ok(sequence(&[], &[]));
    assert_eq!(nothing.u32(), 0);
    nothing.end();
}

/// Slices, and code and name of the error that they are.
type WrongSlices = (&'static [(i64, i32)], u32, &'static str);

pub(crate) fn slices_and_their_errors(world: &World) {
    let mut proxy = world.connect();
    let data: Vec<u8> = (0..100).collect();
    proxy.ok(upload(NS, &[("s", &data), ("empty", b"")]));
    // In the order of the request, whatever the offsets.
    let entries: [(&str, &[(i64, i32)]); 3] =
        [("s", &[(90, 10), (0, 3), (50, 0)]), ("empty", &[]), ("s", &[(1, 1)])];
    let expected = [&data[90..], &data[..3], &data[1..2]].concat();
    for ser in [1, 2] {
        if ser == 2 {
            use_ser_2(&mut proxy);
        }
        assert_eq!(proxy.ok(slices(13, NS, &entries)).str(), expected);
        let mut reply = proxy.ok(slices(23, NS, &entries));
        assert_eq!(reply.str(), expected);
        let mut objects = reply.list(Manifest::object_info);
        reply.end();
        objects.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<_> =
            objects.iter().map(|(name, alba, m, _)| (name.as_str(), alba.as_str(), m.ser)).collect();
        assert_eq!(names, [("empty", "", ser), ("s", "", ser), ("s", "", ser)]);
    }
    let cases: [WrongSlices; 9] = [
        (&[(0, 10), (20, -1)], 10, "BadSliceLength"),
        (&[(0, 10), (9, 1)], 11, "OverlappingSlices"),
        (&[(0, 10), (0, 10)], 11, "OverlappingSlices"),
        (&[(0, 10), (5, 0)], 11, "OverlappingSlices"),
        (&[(99, 2)], 12, "SliceOutsideObject"),
        (&[(200, 1), (0, 1)], 12, "SliceOutsideObject"),
        (&[(i64::MAX, 1)], 12, "SliceOutsideObject"),
        // All lengths together are negative: told before anything else is looked at.
        (&[(0, -1)], 1, "Unknown"),
        (&[(0, i32::MIN)], 1, "Unknown"),
    ];
    for command in [13, 23] {
        for (wrong, code, name) in cases {
            refused(&mut proxy, slices(command, NS, &[("s", wrong)]), code, name);
        }
        refused(&mut proxy, slices(command, NS, &[("none", &[])]), 3, "ObjectDoesNotExist");
        // Nothing asked, even beyond the end; slices side by side, and one of no bytes at an edge.
        for fine in [vec![(1000, 0)], vec![(10, 10), (0, 10)], vec![(0, 10), (10, 0)]] {
            let length: i32 = fine.iter().map(|(_, length)| length).sum();
            let read = proxy.ok(slices(command, NS, &[("s", &fine)])).str();
            assert_eq!(read.len(), usize::try_from(length).unwrap());
        }
    }
}

pub(crate) fn whole_objects(world: &World) {
    let mut proxy = world.connect();
    let large: Vec<u8> = (0_u32..3_000_000).map(|at| u8::try_from(at % 251).unwrap()).collect();
    proxy.ok(upload(NS, &[("large", &large), ("none-at-all", b""), ("small", b"small")]));
    let names = ["small", "missing", "none-at-all", "large", "small"];
    for consistent in [true, false] {
        let mut reply = proxy.ok(request(25).str(NS).names(&names).bool(consistent).bool(true));
        assert!(reply.x_int64() >= 0, "namespace id");
        let objects = reply.list(|r| r.option(|r| (Manifest::read(r), r.str())));
        reply.end();
        let expected: [Option<&[u8]>; 5] = [Some(b"small"), None, Some(b""), Some(&large), Some(b"small")];
        assert_eq!(objects.len(), 5);
        for ((object, expected), name) in objects.iter().zip(expected).zip(names) {
            let found = object.as_ref().map(|(manifest, data)| {
                assert_eq!(
                    (manifest.name.as_str(), manifest.size),
                    (name, i64::try_from(data.len()).unwrap())
                );
                data.as_slice()
            });
            assert!(found == expected, "{name}");
        }
    }
}

pub(crate) fn listings(world: &World) {
    let mut proxy = world.connect();
    proxy.done(request(3).str("listed").byte(1).str("mirror"));
    let names = ["a", "b", "bb", "c"];
    let objects: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, b"".as_slice())).collect();
    proxy.ok(upload("listed", &objects));
    let bounds = ["", "a", "aa", "b", "c", "d"];
    let lasts = bounds.iter().flat_map(|bound| [Some((*bound, false)), Some((*bound, true))]);
    let lasts: Vec<Option<(&str, bool)>> = std::iter::once(None).chain(lasts).collect();
    for first in bounds.iter().flat_map(|bound| [(*bound, false), (*bound, true)]) {
        for last in &lasts {
            for (reverse, max) in [(false, -1), (true, -1), (false, 2), (true, 2), (true, 0), (false, 1000)] {
                let mut page = proxy.ok(request(5).str("listed").range(first, *last, max, reverse));
                let found = (page.list(Reply::text), page.bool());
                page.end();
                let above = |name: &str| name > first.0 || first.1 && name == first.0;
                let below = |name: &str| last.is_none_or(|last| name < last.0 || last.1 && name == last.0);
                let mut expected: Vec<String> = names
                    .iter()
                    .filter(|name| above(name) && below(name))
                    .map(|name| (*name).to_owned())
                    .collect();
                if reverse {
                    expected.reverse();
                }
                let limit = usize::try_from(max).unwrap_or(200).min(200);
                let more = expected.len() > limit;
                expected.truncate(limit);
                assert_eq!(found, (expected, more), "{first:?} {last:?} {max} {reverse}");
            }
        }
    }
    // The way volume drivers ask for one object.
    let mut page = proxy.ok(request(5).str("listed").range(("b", true), Some(("b", true)), 1, false));
    assert_eq!((page.list(Reply::text), page.bool()), (vec!["b".to_owned()], false));
}
