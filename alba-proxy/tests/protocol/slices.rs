//! Reading parts of objects: order, checks, manifests (wire-protocol §2.4).

use alba_client::Consistency;

use crate::harness::{Harness, Raw, request, slices};

async fn with_objects() -> (Harness, Raw) {
    let harness = Harness::new();
    harness.fake.put("o1", (0..=255).collect::<Vec<u8>>());
    harness.fake.put("o2", "0123456789");
    let raw = harness.connect().await;
    (harness, raw)
}

#[tokio::test]
async fn data_comes_in_request_order_whatever_the_offsets() {
    let (harness, mut raw) = with_objects().await;
    let entries: [(&str, &[(i64, i32)]); 3] =
        [("o2", &[(8, 2), (0, 3)]), ("o1", &[(255, 1)]), ("o2", &[(1, 1)])];
    let mut reply = raw.ok(slices(13, "demo", &entries)).await;
    assert_eq!(reply.str(), b"89012\xff1");
    reply.end();
    assert_eq!(*harness.fake.last_consistency.lock().unwrap(), Some(Consistency::Consistent));

    let mut reply = raw.ok(slices(23, "demo", &entries)).await;
    assert_eq!(reply.str(), b"89012\xff1");
    let infos = reply.list(|r| r.object_info());
    reply.end();
    let names: Vec<_> = infos.iter().map(|(name, alba, _)| (name.as_str(), alba.as_str())).collect();
    assert_eq!(names, [("o2", ""), ("o1", ""), ("o2", "")]);
    for (name, _, (ser, body, namespace)) in infos {
        assert_eq!((ser, namespace), (1, 7));
        assert_eq!(body[4..6], *name.as_bytes(), "the manifest's name");
    }
}

#[tokio::test]
async fn nothing_asked_is_nothing_read() {
    let (_harness, mut raw) = with_objects().await;
    // No entries at all: success, even without the namespace.
    let mut reply = raw.ok(slices(13, "nowhere", &[])).await;
    assert_eq!(reply.str(), b"");
    reply.end();
    let mut reply = raw.ok(slices(23, "nowhere", &[])).await;
    assert_eq!(reply.str(), b"");
    assert!(reply.list(|r| r.object_info()).is_empty());
    reply.end();
    // No slices, and slices of no length beyond the end.
    let mut reply = raw.ok(slices(23, "demo", &[("o2", &[]), ("o1", &[(5000, 0)])])).await;
    assert_eq!(reply.str(), b"");
    assert_eq!(reply.list(|r| r.object_info()).len(), 2);
    reply.end();
}

/// Namespace, object, its slices, the code expected.
type Case<'a> = (&'a str, &'a str, &'a [(i64, i32)], u32);

#[tokio::test]
async fn wrong_slices_have_their_codes() {
    let (_harness, mut raw) = with_objects().await;
    let cases: [Case<'_>; 9] = [
        ("nowhere", "o1", &[(0, 1)], 5),
        ("demo", "none", &[], 3),
        ("demo", "o1", &[(0, 100), (50, -1)], 10),
        ("demo", "o1", &[(0, 10), (9, 10)], 11),
        ("demo", "o1", &[(0, 10), (0, 10)], 11),
        ("demo", "o1", &[(0, 10), (5, 0)], 11),
        ("demo", "o2", &[(9, 2)], 12),
        ("demo", "o2", &[(0, i32::MAX)], 12),
        // The sum is negative: the original stops before it looks at the slices one by one.
        ("demo", "o1", &[(0, 1), (50, -2)], 1),
    ];
    for (namespace, name, wanted, expected) in cases {
        for command in [13, 23] {
            let (code, text) = raw.err(slices(command, namespace, &[(name, wanted)])).await;
            assert_eq!(code, expected, "{wanted:?}: {text}");
        }
    }
    // Across entries of one object nothing is checked.
    let mut reply = raw.ok(slices(13, "demo", &[("o2", &[(0, 5)]), ("o2", &[(4, 2)])])).await;
    assert_eq!(reply.str(), b"0123445");
}

#[tokio::test]
async fn a_cached_read_may_be_asked_for() {
    let (harness, mut raw) = with_objects().await;
    let cached = request(13).str("demo").i32(1).str("o2").i32(1).i64(0).i32(1).bool(false);
    assert_eq!(raw.ok(cached).await.str(), b"0");
    assert_eq!(*harness.fake.last_consistency.lock().unwrap(), Some(Consistency::Cached));
}

#[tokio::test]
async fn the_session_says_how_manifests_look() {
    let (_harness, mut raw) = with_objects().await;
    raw.ok(request(32).i32(1).str("manifest_ser").byte(1).str([2])).await;
    let mut reply = raw.ok(slices(23, "demo", &[("o2", &[(0, 1)])])).await;
    reply.str();
    assert_eq!(reply.list(|r| r.object_info())[0].2.0, 2);
}

#[tokio::test]
async fn too_many_entries_are_refused() {
    let (_harness, mut raw) = with_objects().await;
    let many: Vec<(&str, &[(i64, i32)])> = vec![("o2", &[]); 5000];
    let (code, text) = raw.err(slices(23, "demo", &many)).await;
    assert_eq!(code, 1);
    assert!(text.contains("4096"), "{text}");
    raw.alive().await;
}
