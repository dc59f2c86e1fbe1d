//! The specification's own bytes: requests X… as clients send them, answers Y… as they expect them.

use std::path::Path;

use alba_core::checksum::Checksum;
use alba_core::encryption::FragmentKey;
use alba_core::ids::{ObjectId, ObjectName, ObjectVersion, OsdId};
use alba_core::manifest::{
    Chunk, CipherMode, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp,
};
use alba_core::policy::CodeShape;
use alba_core::preset::Compression;

use crate::harness::{Harness, Raw, Reply, hex, request, slices};
use crate::inspect;

const X02: &str = "0c000000020000000400000064656d6f";
const X03: &str = "1a00000003000000020000006e73010b0000007072657365745f726f7261";
const X04: &str = "0f00000001000000000000000100ffffffff00";
const X05: &str = "1e000000050000000400000064656d6f01000000610001010000007a016400000001";
const X06: &str = "14000000080000000400000064656d6f030000006f626a00";
const X07: &str = "15000000090000000400000064656d6f030000006f626a0101";
const X09: &str = "240000000b0000000400000064656d6f030000006f626a060000002f746d702f69000103839206e3";
const X10: &str = "49000000170000000400000064656d6f02000000020000006f3201000000f6ff0f000000000014000000020000006f310200000000100000000000000800000000000000000000001000000000";
const X11: &str = "55000000180000000400000064656d6f000200000004010000006203839206e30201000000610300000003020000006e3302020000006e320500000064617461210103839206e301020000006e31060000002f746d702f6900";
const X12: &str = "1e00000020000000010000000c0000006d616e69666573745f736572010100000002";
const X13: &str = "0c00000014000000000000000000f03f";
const X14: &str = "0400000011000000";
const X15: &str = "040000001c000000";
const X16: &str = "040000001f000000";
const X17: &str = "140000002100000004000000616c62610700000000000000";
const X18: &str = "0c0000000e0000000400000064656d6f";
const X19: &str = "0c000000100000000400000064656d6f";
const X20: &str = "0c000000040000000400000064656d6f";
const X21: &str = "1a0000001a0000000400000064656d6f0200000001000000620100000061";
const Y01: &str = "0400000000000000";
const Y02: &str = "38000000030000003000000050726f78795f70726f746f636f6c2e50726f746f636f6c2e4572726f722e4f626a656374446f65734e6f744578697374";
const Y03: &str = "09000000120000000100000061";
const Y04: &str = "050000000000000001";
const Y05: &str = "18000000000000000300000001000000630100000062010000006101";
const Y06: &str = "1100000000000000230000000000000003839206e3";
const Y07: &str = "1d00000000000000010000000c0000006d616e69666573745f7365720100000002";
const Y09: &str =
    "2b0000000000000001000000050000000d0000001700000068656164732f6d61737465722d302d6731323334353637";
const Y10: &str = "34000000110000002c00000070726f746f636f6c2076657273696f6e3a2028736572766572292031203c3e203636362028636c69656e7429";
const Y11: &str = "34000000000000002c000000000102030405060708090a0b0c0d0e0f4142434445464748000102030405060708090a0b0c0d0e0f10111213";
const Y12: &str =
    "290000000000000001200000004a1a10f1c78cb49da3f07c65cdd1f4c9cfd7612f99f809e4a7db00465925d857";
const C01: &str = "4a1a10f1c78cb49da3f07c65cdd1f4c9cfd7612f99f809e4a7db00465925d857";
const Y13: &str = "a20000000000000001000000030000008a000000038500000001020000000800000031302e302e302e31090000003132372e302e302e31401f00000000050000006173645f30060000006e6f64655f3000000000000010a5d4e800000000100000000000000000000001000000000000000000f83f020000000000000000000040000000000000084000000000000000000000000001000000000000f03f0200000001020101";
const Y14: &str = "49010000000000000200000005000000636163686501000000000000007e00000003790000000101000000090000003132372e302e302e31411f00000000050000006173645f31060000006e6f64655f3100000000000010a5d4e800000000100000000000000000000001000000000000000000f83f020000000000000000000040000000000000084000000000000000000000000001000000000000f03f0200000001020101040000006d61696e01000000030000008a000000038500000001020000000800000031302e302e302e31090000003132372e302e302e31401f00000000050000006173645f30060000006e6f64655f3000000000000010a5d4e800000000100000000000000000000001000000000000000000f83f020000000000000000000040000000000000084000000000000000000000000001000000000000f03f0200000001020101";
const Y20: &str = "0d00000000000000070000000100000000";
const S02: &str = "0e0000000f00000001010000000100000061";
const G01: &str =
    "2b00000000000000010300000061626d01000000020000006e3001000000090000003132372e302e302e31a00f0000";
const Y19: &str = "0a00000000000000020000000001";
const M04: &str = "0c0000006c617267655f6f626a65637420000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f0100000040000000010102000000010000000101020102010120000000fac84d1c81030bcf98cf5273dc3aa009bb5389259fc43b80a40c2babe55a7c1c03f1933ca6240000000000000001010000000300000001ffffff7fffffff7f00000000000000000000000000010300000000000000010100000003000000030467c96603664e873d03e34e53290101000000030000002000000020000000200000000000000002000000000010c00b5ad6410101000000030000000110000000c09d5619d72c28ec11e2d145cd769f5c0110000000c09d5619d72c28ec11e2d145cd769f5c0110000000c09d5619d72c28ec11e2d145cd769f5c";

/// The answer of a vector, without its length.
fn payload(vector: &str) -> Vec<u8> {
    hex(vector).split_off(4)
}

async fn exchange(raw: &mut Raw, sent: &str) -> Vec<u8> {
    raw.send(&hex(sent)).await;
    raw.answer().await
}

#[tokio::test(start_paused = true)]
async fn requests_are_understood_and_answers_are_as_expected() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    assert_eq!(exchange(&mut raw, X02).await, payload(Y04));
    assert_eq!(exchange(&mut raw, X03).await, payload(Y01));
    let mut names = Reply(exchange(&mut raw, X04).await.split_off(4).into());
    assert_eq!(names.list(|r| r.text()), ["demo", "ns"]);
    for name in ["a", "b", "c", "d"] {
        harness.fake.put(name, name);
    }
    let mut names = Reply(exchange(&mut raw, X05).await.split_off(4).into());
    assert_eq!(names.list(|r| r.text()), ["d", "c", "b"]);
    let first_three = request(5).str("demo").str("").bool(true).bool(false).i32(3).bool(false);
    assert_eq!(raw.ask(first_three).await, payload(Y05));
    assert_eq!(exchange(&mut raw, X12).await, payload(Y07));
    assert_eq!(exchange(&mut raw, X13).await.len(), 12);
    let version = exchange(&mut raw, X14).await;
    assert_eq!(version[..4], payload(Y09)[..4]);
    assert_eq!(exchange(&mut raw, X18).await, payload(Y01));
    assert_eq!(exchange(&mut raw, X19).await, payload(Y01));
    harness.fake.delete("b");
    assert_eq!(exchange(&mut raw, X21).await, payload(Y19));
    assert_eq!(exchange(&mut raw, X20).await, payload(Y01));
}

/// What direct readers ask, and what they are told.
#[tokio::test]
async fn direct_readers_get_what_they_ask_for() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    assert_eq!(exchange(&mut raw, X16).await, hex("0000000000"));
    // Of another backend ("alba") the proxy knows nothing.
    assert_eq!(exchange(&mut raw, X17).await, hex("0000000000"));
    harness.fake.keys.lock().unwrap().insert(7, FragmentKey::new(hex(C01).try_into().unwrap()));
    assert_eq!(exchange(&mut raw, X17).await, hex("0000000000"));
    let ours = request(33).str("the-backend").i64(7);
    assert_eq!(raw.ask(ours).await, payload(Y12));

    *harness.fake.osds.lock().unwrap() = vec![inspect::vector_osd()];
    // The vector has a second level, a cache, which comes first on the wire; our level is as the vector's "main".
    assert!(hex(Y14).ends_with(&hex(Y13)[8..]));
    let expected =
        [hex("00000000010000000b000000"), b"the-backend".to_vec(), hex(Y13)[8..].to_vec()].concat();
    assert_eq!(exchange(&mut raw, X15).await, expected);
    assert_eq!(raw.ask(request(22)).await, payload(Y13));
}

#[tokio::test]
async fn whole_objects_and_statistics_are_asked_for() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let told = exchange(&mut raw, S02).await;
    // Version 1, creation, period, no namespaces.
    assert_eq!((&told[..5], told.len()), (hex("0000000001").as_slice(), 4 + 1 + 8 + 8 + 4));
    let read = request(25).str("demo").list(&["missing"], |r, name| r.str(name)).bool(true).bool(true);
    assert_eq!(raw.ask(read).await, payload(Y20));
    let config = raw.ask(request(19)).await;
    assert_eq!(config[..5], payload(G01)[..5]);
}

#[tokio::test]
async fn errors_begin_with_the_text_that_operators_know() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let answer = exchange(&mut raw, X06).await;
    let expected = payload(Y02);
    assert_eq!(answer[..4], expected[..4]);
    assert_eq!(answer[8..][..expected.len() - 8], expected[8..]);
    // ApplySequence with the assert that "a" does not exist, and nothing else.
    harness.fake.put("a", "");
    let sequence = request(24).str("demo").bool(false).i32(1).byte(2).str("a").i32(0);
    assert_eq!(raw.ask(sequence).await, payload(Y03));
}

#[tokio::test]
async fn another_version_is_told_and_closed() {
    let harness = Harness::new();
    let mut raw = harness.raw();
    // The first request comes along, as clients may.
    raw.send(&[hex("1bde79449a020000"), hex(X02)].concat()).await;
    assert_eq!(raw.answer().await, payload(Y10));
    use tokio::io::AsyncWriteExt;
    raw.0.shutdown().await.unwrap();
    raw.closed().await;
}

#[tokio::test]
async fn sizes_and_slices_are_as_expected() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    harness.fake.put("obj", vec![0; 35]);
    let mut manifest = (*harness.fake.stored("obj").manifest).clone();
    manifest.checksum = Checksum::Crc32c(0xe306_9283);
    harness.fake.plant(manifest, vec![0; 35]);
    assert_eq!(exchange(&mut raw, X07).await, payload(Y06));

    let count = |n: u8| (0..n).collect::<Vec<u8>>();
    harness.fake.put("o1", [count(16), vec![0; 4080], b"ABCDEFGH".to_vec()].concat());
    harness.fake.put("o2", [vec![0; 1_048_566], count(20)].concat());
    let with_manifests = exchange(&mut raw, X10).await;
    assert_eq!(with_manifests[..payload(Y11).len()], payload(Y11));
    let mut without = hex(X10);
    without[4] = 13;
    raw.send(&without).await;
    assert_eq!(raw.answer().await, payload(Y11));
}

#[tokio::test]
async fn files_in_requests_are_those_of_the_proxy() {
    if Path::new("/tmp/i").exists() {
        // The vectors name this file; what somebody keeps there is not ours to upload.
        return;
    }
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    for vector in [X09, X11] {
        assert_eq!(exchange(&mut raw, vector).await[..4], [14, 0, 0, 0]);
    }
}

/// The object of the vectors M….
fn sample() -> Manifest {
    let key = hex("fac84d1c81030bcf98cf5273dc3aa009bb5389259fc43b80a40c2babe55a7c1c");
    let ctr = hex("c09d5619d72c28ec11e2d145cd769f5c");
    let fragment = |location: Option<u32>, crc| Fragment {
        location: location.map(OsdId::from_u32),
        version: ObjectVersion(0),
        checksum: Checksum::Crc32c(crc),
        packed_len: 32,
        ctr: Some(ctr.clone().try_into().unwrap()),
    };
    let id: Vec<u8> = (0..32).collect();
    Manifest {
        name: ObjectName::new("large_object").unwrap(),
        object_id: ObjectId::new(id.try_into().unwrap()),
        size: 36,
        checksum: Checksum::Crc32c(0xa63c_93f1),
        scheme: Scheme {
            shape: CodeShape::new(2, 1).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::None,
        },
        encryption: EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256: key.try_into().unwrap() },
        chunks: vec![Chunk {
            size: 64,
            fragments: vec![
                fragment(Some(3), 0x2953_4ee3),
                fragment(None, 0x3d87_4e66),
                fragment(Some(0x7fff_ffff), 0x66c9_6704),
            ],
        }],
        version: ObjectVersion(0),
        max_disks_per_node: 2,
        timestamp: Timestamp(1_500_000_000_250_000),
    }
}

#[tokio::test]
async fn manifests_are_as_expected() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    harness.fake.plant(sample(), "I'm a really large object (37 bytes)");
    let mut reply = raw.ok(slices(23, "demo", &[("large_object", &[(4, 6)])])).await;
    assert_eq!(reply.str(), b"a real");
    let (name, alba, manifest) = reply.list(|r| r.object_info()).remove(0);
    assert_eq!((name.as_str(), alba.as_str()), ("large_object", ""));
    assert_eq!(manifest, (1, hex(M04), 7));
}

/// The byte pictures of the format's description are the ones that are tested here.
#[test]
fn the_description_shows_these_bytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/formats/proxy-protocol.md");
    let text = std::fs::read_to_string(path).unwrap();
    let dense: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    // Of ReadObjects there is no request among the vectors; `alba_core::wire::proxy` has one of its own.
    const READ_OBJECTS: &str = "1c000000190000000400000064656d6f02000000010000006201000000610100";
    for vector in [X02, Y04, X14, Y05, Y03, READ_OBJECTS, Y20] {
        assert!(dense.contains(vector), "{vector}");
    }
}
