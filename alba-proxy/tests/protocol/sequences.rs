//! ApplySequence (wire-protocol §2.6).

use alba_core::checksum::{Checksum, ChecksumAlgorithm};

use crate::harness::{Harness, Request, request};

#[derive(Clone, Copy)]
enum Assert<'a> {
    Exists(&'a str),
    DoesNotExist(&'a str),
    HasId(&'a str, &'a [u8]),
    HasCrc(&'a str, u32),
}

#[derive(Clone, Copy)]
enum Update<'a> {
    File(&'a str, &'a str),
    Data(&'a str, &'a [u8], Option<u32>),
    Delete(&'a str),
}

fn sequence(namespace: &str, asserts: &[Assert<'_>], updates: &[Update<'_>]) -> Request {
    request(24)
        .str(namespace)
        .bool(true)
        .list(asserts, |r, assert| match *assert {
            Assert::Exists(name) => r.byte(1).str(name),
            Assert::DoesNotExist(name) => r.byte(2).str(name),
            Assert::HasId(name, id) => r.byte(3).str(name).str(id),
            Assert::HasCrc(name, crc) => r.byte(4).str(name).byte(3).i32(crc.cast_signed()),
        })
        .list(updates, |r, update| match *update {
            Update::File(name, file) => r.byte(1).str(name).str(file).byte(0),
            Update::Data(name, data, None) => r.byte(2).str(name).str(data).byte(0),
            Update::Data(name, data, Some(crc)) => {
                r.byte(2).str(name).str(data).byte(1).byte(3).i32(crc.cast_signed())
            }
            Update::Delete(name) => r.byte(3).str(name),
        })
}

fn crc(data: &[u8]) -> u32 {
    match ChecksumAlgorithm::Crc32c.of(data) {
        Checksum::Crc32c(crc) => crc,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn uploads_and_deletes_happen_together() {
    let harness = Harness::new();
    harness.fake.put("old", "old");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("input");
    std::fs::write(&file, "from a file").unwrap();
    let mut raw = harness.connect().await;
    let updates = [
        Update::Data("n1", b"data!", Some(crc(b"data!"))),
        Update::File("n2", file.to_str().unwrap()),
        Update::Delete("old"),
        Update::Delete("never was"),
    ];
    let mut reply = raw.ok(sequence("demo", &[], &updates)).await;
    let mut names: Vec<_> = reply.list(|r| r.object_info()).into_iter().map(|(name, ..)| name).collect();
    reply.end();
    names.sort();
    assert_eq!(names, ["n1", "n2"]);
    assert_eq!(harness.fake.get("demo", "n1").unwrap(), "data!");
    assert_eq!(harness.fake.get("demo", "n2").unwrap(), "from a file");
    assert_eq!(harness.fake.get("demo", "old"), None);
}

#[tokio::test]
async fn nothing_to_do_succeeds() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let mut reply = raw.ok(sequence("demo", &[], &[])).await;
    assert!(reply.list(|r| r.object_info()).is_empty());
    assert_eq!(raw.err(sequence("nowhere", &[], &[Update::Delete("x")])).await.0, 5);
}

#[tokio::test]
async fn the_first_update_of_a_name_counts_and_all_manifests_return() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let updates = [
        Update::Data("a", b"first", None),
        Update::Data("a", b"second", None),
        Update::Delete("a"),
        Update::Delete("b"),
        Update::Data("b", b"dropped", None),
    ];
    let mut reply = raw.ok(sequence("demo", &[], &updates)).await;
    let mut names: Vec<_> = reply.list(|r| r.object_info()).into_iter().map(|(name, ..)| name).collect();
    names.sort();
    assert_eq!(names, ["a", "a", "b"]);
    assert_eq!(harness.fake.get("demo", "a").unwrap(), "first");
    assert_eq!(harness.fake.get("demo", "b"), None);
}

#[tokio::test]
async fn a_failed_assert_names_the_object_and_changes_nothing() {
    let harness = Harness::new();
    harness.fake.put("there", "there");
    let id = harness.fake.stored("there").manifest.object_id;
    let mut raw = harness.connect().await;
    let holding = [
        Assert::Exists("there"),
        Assert::DoesNotExist("absent"),
        Assert::HasId("there", id.as_bytes()),
        Assert::HasCrc("there", crc(b"there")),
    ];
    raw.ok(sequence("demo", &holding, &[Update::Data("new", b"1", None)])).await;
    let failing = [
        (Assert::Exists("absent"), "absent"),
        (Assert::DoesNotExist("there"), "there"),
        (Assert::HasId("there", &[9; 32]), "there"),
        (Assert::HasId("absent", id.as_bytes()), "absent"),
        // No object has such an id.
        (Assert::HasId("there", b"short"), "there"),
        (Assert::HasCrc("there", 1), "there"),
        (Assert::HasCrc("absent", 1), "absent"),
    ];
    for (assert, name) in failing {
        let with_last = [holding.as_slice(), &[assert]].concat();
        let answer = raw.err(sequence("demo", &with_last, &[Update::Data("new", b"2", None)])).await;
        assert_eq!(answer, (18, name.to_owned()));
        assert_eq!(harness.fake.get("demo", "new").unwrap(), "1");
    }
    let nowhere = sequence("nowhere", &[Assert::HasId("there", b"short")], &[]);
    assert_eq!(raw.err(nowhere).await.0, 5);
}

#[tokio::test]
async fn bad_uploads_have_their_codes() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let update = |checksum: &[u8]| {
        let mut request =
            request(24).str("demo").bool(false).i32(0).i32(1).byte(2).str("a").str("data").byte(1);
        request.0.extend(checksum);
        request
    };
    assert_eq!(raw.err(update(&[3, 1, 2, 3, 4])).await.0, 7);
    assert_eq!(raw.err(update(&[1])).await.0, 8);
    let (code, text) = raw.err(sequence("demo", &[], &[Update::File("a", "/no/such/file")])).await;
    assert_eq!(code, 14);
    assert!(text.contains("/no/such/file"), "{text}");
    // Without the namespace nobody looks at the file.
    assert_eq!(raw.err(sequence("nowhere", &[], &[Update::File("a", "/no/such/file")])).await.0, 5);
    assert_eq!(harness.fake.get("demo", "a"), None);
}

#[tokio::test]
async fn an_upload_by_value_may_be_large() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let data: Vec<u8> = (0_u32..2_000_000).flat_map(|i| i.to_le_bytes()).collect();
    raw.ok(sequence("demo", &[], &[Update::Data("large", &data, Some(crc(&data)))])).await;
    assert!(harness.fake.get("demo", "large").unwrap() == data);
    raw.alive().await;
}

#[tokio::test]
async fn a_sequence_of_very_many_updates_is_refused_before_it_takes_memory() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let many = vec![Update::Delete(""); 1_000_000];
    let (code, text) = raw.err(sequence("demo", &[], &many)).await;
    assert_eq!(code, 1);
    assert!(text.contains("updates"), "{text}");
    let many = vec![Assert::Exists(""); 1_000_000];
    let (code, text) = raw.err(sequence("demo", &many, &[])).await;
    assert_eq!(code, 1);
    assert!(text.contains("asserts"), "{text}");
    raw.alive().await;
}
