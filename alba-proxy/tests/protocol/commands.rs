//! Each small command and each of its error codes.

use alba_client::{ClientError, Consistency};
use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::env::MetaError;
use alba_core::ids::{ChunkIndex, GroupId, NamespaceName, ObjectName};
use alba_core::wire::rpc::abm::NamespaceState;

use crate::harness::{Harness, hex, request};

/// The beginning of the texts of errors that have a name.
fn named(name: &str) -> String {
    format!("Proxy_protocol.Protocol.Error.{name}")
}

#[tokio::test]
async fn namespaces_are_created_listed_and_deleted() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    raw.ok(request(3).str("ns").byte(1).str("preset_rora")).await.end();
    let (code, text) = raw.err(request(3).str("ns").byte(0)).await;
    assert_eq!(code, 4);
    assert!(text.starts_with(&named("NamespaceAlreadyExists")) && text.contains("ns"), "{text}");
    let (code, text) = raw.err(request(3).str("other").byte(1).str("no such")).await;
    assert_eq!(code, 9);
    assert!(text.starts_with(&named("PresetDoesNotExist")) && text.contains("no such"), "{text}");
    // Not UTF-8: no preset can have that name.
    assert_eq!(raw.err(request(3).str("other").byte(1).str([0xff])).await.0, 9);

    assert!(raw.ok(request(2).str("ns")).await.bool());
    assert!(!raw.ok(request(2).str("nowhere")).await.bool());

    harness.fake.add_namespace("fading", 9, NamespaceState::Removing);
    let mut page = raw.ok(request(1).whole_range()).await;
    assert_eq!(page.list(|r| r.text()), ["demo", "fading", "ns"]);
    assert!(!page.bool());
    page.end();
    let mut page = raw.ok(request(30).whole_range()).await;
    let pairs = page.list(|r| (r.text(), r.text()));
    assert_eq!(pairs[2], ("ns".to_owned(), "preset_rora".to_owned()));
    assert!(!page.bool());
    page.end();

    raw.ok(request(4).str("ns")).await.end();
    let (code, text) = raw.err(request(4).str("ns")).await;
    assert_eq!(code, 5);
    assert!(text.starts_with(&named("NamespaceDoesNotExist")), "{text}");
}

#[tokio::test]
async fn listings_page_and_reverse() {
    let harness = Harness::new();
    for name in ["a", "b", "c", "d"] {
        harness.fake.put(name, name);
    }
    let mut raw = harness.connect().await;
    let list = |first: &str, max, reverse| {
        request(5).str("demo").str(first).bool(false).byte(1).str("c").bool(true).i32(max).bool(reverse)
    };
    let mut page = raw.ok(list("a", 1, false)).await;
    assert_eq!((page.list(|r| r.text()), page.bool()), (vec!["b".to_owned()], true));
    let mut page = raw.ok(list("a", -1, true)).await;
    assert_eq!((page.list(|r| r.text()), page.bool()), (vec!["c".to_owned(), "b".to_owned()], false));
    let mut page = raw.ok(list("a", 0, false)).await;
    assert_eq!((page.list(|r| r.text()), page.bool()), (vec![], true));
    assert_eq!(raw.err(request(5).str("nowhere").whole_range()).await.0, 5);
}

#[tokio::test]
async fn objects_are_deleted_and_described() {
    let harness = Harness::new();
    harness.fake.put("obj", "123456789");
    let mut raw = harness.connect().await;
    let info = |ns: &str, name: &str, consistent| request(9).str(ns).str(name).bool(consistent).bool(true);
    let mut reply = raw.ok(info("demo", "obj", true)).await;
    assert_eq!(reply.i64(), 9);
    assert_eq!(reply.0.as_ref(), hex("03839206e3"));
    assert_eq!(*harness.fake.last_consistency.lock().unwrap(), Some(Consistency::Consistent));
    raw.ok(info("demo", "obj", false)).await;
    assert_eq!(*harness.fake.last_consistency.lock().unwrap(), Some(Consistency::Cached));
    assert_eq!(raw.err(info("demo", "none", true)).await.0, 3);
    assert_eq!(raw.err(info("nowhere", "obj", true)).await.0, 5);

    let delete = |ns: &str, name: &str, may| request(8).str(ns).str(name).bool(may);
    raw.ok(delete("demo", "obj", false)).await.end();
    let (code, text) = raw.err(delete("demo", "obj", false)).await;
    assert_eq!(code, 3);
    assert!(text.starts_with(&named("ObjectDoesNotExist")) && text.contains("obj"), "{text}");
    raw.ok(delete("demo", "obj", true)).await.end();
    assert_eq!(raw.err(delete("nowhere", "obj", true)).await.0, 5);

    harness.fake.put("x", "x");
    let exists = |ns: &str| request(26).str(ns).list(&["no", "x"], |r, name| r.str(name));
    let mut reply = raw.ok(exists("demo")).await;
    assert_eq!(reply.list(|r| r.bool()), [false, true]);
    assert_eq!(raw.err(exists("nowhere")).await.0, 5);
}

#[tokio::test]
async fn a_checksum_that_old_clients_do_not_know_is_none() {
    let harness = Harness::new();
    harness.fake.put("obj", "data");
    let mut manifest = (*harness.fake.stored("obj").manifest).clone();
    manifest.checksum = ChecksumAlgorithm::Blake3.of(b"data");
    harness.fake.plant(manifest, "data");
    let mut reply = harness.connect().await.ok(request(9).str("demo").str("obj").bool(true).bool(true)).await;
    assert_eq!(reply.i64(), 4);
    assert_eq!(reply.0.as_ref(), [1]);
}

#[tokio::test]
async fn caches_are_invalidated() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    raw.ok(request(14).str("demo")).await.end();
    raw.ok(request(16).str("demo")).await.end();
    let demo = NamespaceName::new("demo").unwrap();
    assert_eq!(*harness.fake.invalidated.lock().unwrap(), [demo.clone(), demo]);
    assert_eq!(raw.err(request(14).str("nowhere")).await.0, 5);
    assert_eq!(raw.err(request(16).str("nowhere")).await.0, 5);
}

#[tokio::test]
async fn the_proxy_says_who_it_is() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let mut version = raw.ok(request(17)).await;
    let number = (version.u32(), version.u32(), version.u32());
    assert_eq!(format!("{}.{}.{}", number.0, number.1, number.2), env!("CARGO_PKG_VERSION"));
    assert!(!version.text().is_empty());
    version.end();
    assert_eq!(raw.ok(request(29)).await.text(), "the-backend");
}

#[tokio::test]
async fn a_session_is_updated() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let update = |value: u8| {
        let pairs: [(&str, Option<u8>); 3] =
            [("unknown", Some(7)), ("manifest_ser", Some(value)), ("manifest_ser", None)];
        request(32).list(&pairs, |r, (key, value)| match value {
            None => r.str(key).byte(0),
            Some(value) => r.str(key).byte(1).str([*value]),
        })
    };
    for (wanted, given) in [(1, 1), (2, 2), (200, 2)] {
        let mut reply = raw.ok(update(wanted)).await;
        assert_eq!(reply.list(|r| (r.text(), r.str())), [("manifest_ser".to_owned(), vec![given])]);
        reply.end();
    }
    // Values that mean nothing are left out.
    for wrong in ["", "22", "\0"] {
        let mut reply = raw.ok(request(32).i32(1).str("manifest_ser").byte(1).str(wrong)).await;
        assert!(reply.list(|r| (r.text(), r.str())).is_empty());
    }
}

#[tokio::test]
async fn commands_that_are_not_there_answer_13_and_keep_the_connection() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    for command in [0_i32, 6, 7, 12, 27, 34, 1000, -1] {
        let (code, text) = raw.err(request(command).str("whatever")).await;
        assert_eq!(code, 13, "command {command}");
        assert!(
            text.starts_with(&named("UnknownOperation"))
                && text.contains(&command.cast_unsigned().to_string()),
            "{text}"
        );
    }
    raw.alive().await;
}

#[tokio::test]
async fn undecodable_arguments_answer_1_and_keep_the_connection() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let hopeless = [
        request(2).i32(100).byte(b'x'),
        request(2).i32(-1),
        request(3).str("ns").byte(2),
        request(5).str("demo"),
        request(26).str("demo").i32(0x7fff_ffff),
        request(13).str("demo").i32(-1),
        request(24).str("demo").bool(false).i32(1).byte(9).str("x").i32(0),
        request(9).str("demo").str("obj").byte(7).byte(0),
        request(11).str("demo").str("obj").str("/tmp/x").bool(true).byte(1).byte(2).str("short"),
    ];
    for request in hopeless {
        let (code, text) = raw.err(request.clone()).await;
        assert_eq!((code, text.is_empty()), (1, false), "{:?}", request.0);
    }
    // No room for a command in it.
    for frame in ["00000000", "0100000001", "03000000010000"] {
        raw.send(&hex(frame)).await;
        assert_eq!(raw.error().await.0, 1);
    }
    raw.alive().await;
}

#[tokio::test]
async fn bytes_behind_the_arguments_are_ignored() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    assert!(raw.ok(request(2).str("demo").i32(12345)).await.bool());
}

#[tokio::test]
async fn names_that_no_format_carries_are_refused_in_words() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    harness.fake.put("obj", "data");
    let long = "x".repeat(65536);
    let wrong = [
        request(2).str(&long),
        request(3).str("").byte(0),
        request(3).str("ns").byte(1).str(&long),
        request(4).str(&long),
        request(8).str("demo").str(&long).bool(true),
        request(9).str("demo").str(&long).bool(true).bool(true),
        request(26).str("demo").i32(1).str(&long),
        request(13).str("demo").i32(1).str(&long).i32(0).bool(true),
        request(24).str("demo").bool(false).i32(0).i32(1).byte(3).str(&long),
        request(5).str("demo").str(&long).bool(true).bool(false).i32(-1).bool(false),
        request(10).str("demo").str("obj").str(&long).bool(true).bool(true),
        request(11).str("demo").str("obj").str(&long).bool(true).byte(0),
        request(11).str("demo").str("obj").str("").bool(true).byte(0),
        request(11).str("demo").str("obj").str("a\0b").bool(true).byte(0),
    ];
    for request in wrong {
        let (code, text) = raw.err(request.clone()).await;
        assert_eq!(code, 1, "{text}");
        assert!(text.starts_with(&named("Unknown")) && text.len() < 3000, "{text}");
        let says_what = ["long", "empty", "NUL", "nul"].iter().any(|word| text.contains(word));
        assert!(says_what, "{text}");
    }
    raw.alive().await;
}

/// Each error of the engine, and the code that a client is told.
#[tokio::test]
async fn errors_of_the_engine_have_their_codes() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let object = || ObjectName::new("obj").unwrap();
    let namespace = || NamespaceName::new("demo").unwrap();
    let cases = [
        (ClientError::NamespaceUnknown(namespace()), 5),
        (ClientError::NamespaceExists(namespace()), 4),
        (ClientError::ObjectUnknown(object()), 3),
        (ClientError::OverwriteNotAllowed(object()), 2),
        (ClientError::ChecksumNotAllowed(ChecksumAlgorithm::None), 8),
        (
            ClientError::ChecksumMismatch {
                object: object(),
                expected: Checksum::None,
                found: Checksum::Crc32c(1),
            },
            7,
        ),
        (ClientError::NoSatisfiablePolicy { reason: "2 OSDs".to_owned() }, 15),
        (ClientError::BadSliceLength, 10),
        (ClientError::OverlappingSlices, 11),
        (ClientError::SliceOutsideObject, 12),
        (ClientError::TooMuchAtOnce { asked: 2, limit: 1 }, 1),
        (
            ClientError::NotEnoughFragments {
                object: object(),
                chunk: ChunkIndex(0),
                needed: 5,
                found: 4,
                detail: "timeouts".to_owned(),
            },
            1,
        ),
        (ClientError::Source { kind: std::io::ErrorKind::NotFound, text: "gone".to_owned() }, 14),
        (ClientError::Source { kind: std::io::ErrorKind::Other, text: "I/O error".to_owned() }, 1),
        (
            ClientError::Meta(MetaError::Unreachable {
                group: GroupId::new("abm").unwrap(),
                reason: "refused".to_owned(),
            }),
            1,
        ),
        (ClientError::Deadline { waiting_for: "the ABM" }, 1),
        (ClientError::Busy("full".to_owned()), 1),
    ];
    for (error, expected) in cases {
        *harness.fake.trouble.lock().unwrap() = Some(error.clone());
        let (code, text) = raw.err(request(8).str("demo").str("obj").bool(true)).await;
        assert_eq!(code, expected, "{error}");
        assert!(text.contains(&error.to_string()), "{text}");
    }
    // The one whose text is read by programs.
    *harness.fake.trouble.lock().unwrap() = Some(ClientError::AssertFailed(object()));
    assert_eq!(raw.err(request(8).str("demo").str("obj").bool(true)).await, (18, "obj".to_owned()));
}
