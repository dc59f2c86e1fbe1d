//! Objects to and from files of the proxy's host.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use alba_client::Consistency;
use alba_core::checksum::{Checksum, ChecksumAlgorithm};

use crate::harness::{Harness, Request, request};

fn download(object: &str, file: &Path, consistent: bool) -> Request {
    request(10).str("demo").str(object).str(file.to_str().unwrap()).bool(consistent).bool(false)
}

fn upload(command: i32, file: &Path, overwrite: bool, checksum: Option<Checksum>) -> Request {
    let request = request(command).str("demo").str("obj").str(file.to_str().unwrap()).bool(overwrite);
    match checksum {
        None => request.byte(0),
        Some(Checksum::None) => request.byte(1).byte(1),
        Some(Checksum::Sha1(digest)) => request.byte(1).byte(2).str(digest),
        Some(Checksum::Crc32c(crc)) => request.byte(1).byte(3).i32(crc.cast_signed()),
        Some(Checksum::Blake3(root)) => request.byte(1).byte(4).str(root),
    }
}

#[tokio::test]
async fn an_object_is_written_to_a_file() {
    let harness = Harness::new();
    harness.fake.put("obj", "the object's bytes");
    harness.fake.put("empty", "");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("output");
    std::fs::write(&file, "something longer than the object that was there before").unwrap();
    let mut raw = harness.connect().await;
    raw.ok(download("obj", &file, true)).await.end();
    assert_eq!(std::fs::read(&file).unwrap(), b"the object's bytes");
    assert_eq!(*harness.fake.last_consistency.lock().unwrap(), Some(Consistency::Consistent));

    let file = directory.path().join("empty");
    raw.ok(download("empty", &file, false)).await.end();
    let there = std::fs::metadata(&file).unwrap();
    assert_eq!(there.len(), 0);
    // Mode 0664, less the umask of the test.
    assert_eq!(there.permissions().mode() & 0o777 & !0o664, 0);
    assert_eq!(*harness.fake.last_consistency.lock().unwrap(), Some(Consistency::Cached));
}

#[tokio::test]
async fn without_the_object_no_file_is_created() {
    let harness = Harness::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("output");
    let mut raw = harness.connect().await;
    assert_eq!(raw.err(download("none", &file, true)).await.0, 3);
    let nowhere = request(10).str("nowhere").str("obj").str(file.to_str().unwrap()).bool(true).bool(true);
    assert_eq!(raw.err(nowhere).await.0, 5);
    assert!(!file.exists());
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_error_1() {
    let harness = Harness::new();
    harness.fake.put("obj", "data");
    let directory = tempfile::tempdir().unwrap();
    let mut raw = harness.connect().await;
    let (code, text) = raw.err(download("obj", &directory.path().join("no/such/directory"), true)).await;
    assert_eq!(code, 1);
    assert!(text.contains("no/such/directory"), "{text}");
    let (code, text) = raw.err(download("obj", directory.path(), true)).await;
    assert_eq!(code, 1);
    assert!(text.contains("not a regular file"), "{text}");
    raw.alive().await;
}

#[tokio::test]
async fn a_damaged_object_is_error_1() {
    let harness = Harness::new();
    harness.fake.put("obj", "data");
    let manifest = (*harness.fake.stored("obj").manifest).clone();
    harness.fake.plant(manifest, "dada");
    let directory = tempfile::tempdir().unwrap();
    let (code, text) = harness.connect().await.err(download("obj", &directory.path().join("o"), true)).await;
    assert_eq!(code, 1);
    assert!(text.contains("checksum"), "{text}");
}

#[tokio::test]
async fn a_file_is_stored() {
    let harness = Harness::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("input");
    std::fs::write(&file, "input").unwrap();
    let mut raw = harness.connect().await;
    raw.ok(upload(11, &file, false, None)).await.end();
    assert_eq!(harness.fake.get("demo", "obj").unwrap(), "input");
    assert_eq!(raw.err(upload(11, &file, false, None)).await.0, 2);

    std::fs::write(&file, "other input").unwrap();
    let mut reply = raw.ok(upload(21, &file, true, Some(ChecksumAlgorithm::Sha1.of(b"other input")))).await;
    let (ser, body, namespace) = reply.manifest();
    reply.end();
    assert_eq!((ser, namespace), (1, 7));
    assert_eq!(body[..7], *b"\x03\0\0\0obj");
    assert_eq!(harness.fake.get("demo", "obj").unwrap(), "other input");

    assert_eq!(raw.err(upload(11, &file, true, Some(Checksum::Crc32c(1)))).await.0, 7);
    assert_eq!(raw.err(upload(11, &file, true, Some(Checksum::None))).await.0, 8);
    assert_eq!(harness.fake.get("demo", "obj").unwrap(), "other input");
}

#[tokio::test]
async fn files_that_cannot_be_read_are_said_to_be_so() {
    let harness = Harness::new();
    let directory = tempfile::tempdir().unwrap();
    let mut raw = harness.connect().await;
    let (code, text) = raw.err(upload(11, &directory.path().join("missing"), true, None)).await;
    assert_eq!(code, 14);
    assert!(text.contains("missing"), "{text}");
    for special in [directory.path(), Path::new("/dev/zero")] {
        let (code, text) = raw.err(upload(11, special, true, None)).await;
        assert_eq!(code, 1);
        assert!(text.contains("not a regular file"), "{text}");
    }
    let nowhere = request(11).str("nowhere").str("obj").str("/no/such/file").bool(true).byte(0);
    assert_eq!(raw.err(nowhere).await.0, 5);
}
