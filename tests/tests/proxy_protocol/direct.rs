//! Direct reads ("RORA"): right after an upload, by the answer to it, for every policy.

use std::collections::BTreeSet;

use alba_tests::bytes::asd::Reader;
use alba_tests::bytes::manifest::Manifest;
use alba_tests::bytes::{Connection, request, slices};
use alba_tests::content;

use crate::{World, crc32c, upload, use_ser_2};

/// Up to several chunks of 64 KiB fragments; also sizes that need padding.
const SIZES: [usize; 5] = [1, 1000, 65_536, 200_001, 700_000];

/// Stores an object through ApplySequence and takes what the answer tells.
fn stored(proxy: &mut Connection, namespace: &str, name: &str, data: &[u8]) -> (Manifest, i64) {
    let mut reply = proxy.ok(upload(namespace, &[(name, data)]));
    let mut objects = reply.list(Manifest::object_info);
    reply.end();
    let (found, alba_id, manifest, id) = objects.remove(0);
    assert_eq!((found.as_str(), alba_id.as_str(), manifest.ser), (name, "", 2));
    assert_eq!(manifest.size, i64::try_from(data.len()).unwrap());
    (manifest, id)
}

/// The whole object and parts of it, most of them across the edges of fragments.
fn check(reader: &mut Reader<'_>, manifest: &Manifest, namespace: i64, data: &[u8]) {
    assert!(reader.read(manifest, namespace, 0, data.len()) == data, "the whole of {}", manifest.name);
    for (offset, length) in [(0, 1), (17, 100), (65_530, 12), (65_536, 1), (131_071, 70_000), (327_000, 1000)]
    {
        let offset = offset.min(data.len());
        let length = length.min(data.len() - offset);
        let read = reader.read(manifest, namespace, offset, length);
        assert!(read == data[offset..offset + length], "{offset}+{length} of {}", manifest.name);
    }
}

/// Every fragment, parity too, is where the manifest says, and has the length and the checksum it says.
fn check_stored(reader: &Reader<'_>, manifest: &Manifest, namespace: i64) {
    let (k, m) = manifest.k_m;
    for (chunk, fragments) in manifest.fragments.iter().enumerate() {
        assert_eq!(fragments.len(), usize::try_from(k + m).unwrap());
        let places: BTreeSet<_> =
            fragments.iter().map(|fragment| fragment.osd.expect("a location")).collect();
        assert_eq!(places.len(), fragments.len(), "no OSD twice");
        for (index, fragment) in fragments.iter().enumerate() {
            let length = usize::try_from(fragment.packed_len).unwrap();
            let bytes = reader.stored(manifest, namespace, (chunk, index), 0, length);
            assert_eq!(fragment.checksum, (3, crc32c(&bytes).to_le_bytes().to_vec()));
        }
    }
}

/// Namespaces with these policies, one object of each size in each.
fn with_policies(world: &World, prefix: &str, policies: &[[u32; 4]], more: &str) {
    let mut proxy = world.connect();
    use_ser_2(&mut proxy);
    let mut reader = Reader::new(&mut proxy);
    for policy in policies {
        let [k, m, ..] = policy;
        let name = format!("{prefix}-{k}-{m}");
        world.create_preset(&name, *policy, more);
        reader.proxy().done(request(3).str(&name).byte(1).str(&name));
        for size in SIZES {
            let data = content::bytes(&name, size);
            let object = format!("object of {size}");
            let (manifest, namespace) = stored(reader.proxy(), &name, &object, &data);
            assert_eq!(manifest.k_m, (i32::try_from(*k).unwrap(), i32::try_from(*m).unwrap()));
            check(&mut reader, &manifest, namespace, &data);
            check_stored(&reader, &manifest, namespace);

            // The same by the answers to reading and, in the old form, to WriteObjectFs2.
            let mut reply = reader.proxy().ok(slices(23, &name, &[(&object, &[(0, 1)])]));
            assert_eq!(reply.str(), data[..1]);
            let (_, _, again, _) = reply.list(Manifest::object_info).remove(0);
            assert_eq!(again.fragments, manifest.fragments);
        }
    }
}

pub(crate) fn every_policy(world: &World) {
    let policies = [[1, 0, 1, 3], [1, 2, 3, 3], [2, 0, 2, 3], [2, 2, 4, 3], [3, 1, 4, 3], [5, 4, 9, 3]];
    with_policies(world, "plain", &policies, "{}");

    // The old form has everything but counter blocks where the C++ client finds them.
    let mut old = world.connect();
    let file = world.cluster.scratch().join("old");
    content::write_file(&file, "old", 200_001).unwrap();
    let write = request(21).str("plain-5-4").str("old").str(file.to_str().unwrap()).bool(false).byte(0);
    let mut reply = old.ok(write);
    let (manifest, namespace) = Manifest::located(&mut reply);
    reply.end();
    assert_eq!(manifest.ser, 1);
    let mut reader = Reader::new(&mut old);
    check(&mut reader, &manifest, namespace, &content::bytes("old", 200_001));
    check_stored(&reader, &manifest, namespace);
}

pub(crate) fn encrypted(world: &World) {
    let key = world.cluster.scratch().join("fragments.key");
    std::fs::write(&key, content::bytes("a key", 32)).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let encryption = format!(r#"{{"fragment_encryption": ["aes-ctr-256", {:?}]}}"#, key.to_str().unwrap());
    with_policies(world, "sealed", &[[1, 2, 3, 3], [3, 0, 3, 3], [5, 4, 9, 3]], &encryption);

    // Counter blocks are told, and none is used twice, not for the same bytes either.
    let mut proxy = world.connect();
    use_ser_2(&mut proxy);
    let mut counters = BTreeSet::new();
    let mut fragments = 0;
    for round in 0..3 {
        let (manifest, _) = stored(&mut proxy, "sealed-5-4", &format!("same {round}"), &[7; 400_000]);
        for fragment in manifest.fragments.iter().flatten() {
            counters.insert(fragment.ctr.clone().expect("a counter block"));
            fragments += 1;
        }
    }
    assert_eq!(counters.len(), fragments);
}

pub(crate) fn checksums_and_compressions_that_old_clients_do_not_know(world: &World) {
    let mut proxy = world.connect();
    use_ser_2(&mut proxy);
    for (name, more, compression, checksum) in [
        (
            "blake3",
            r#"{"fragment_checksum": ["blake3"], "object_checksum":
            {"allowed": [["blake3"]], "default": ["blake3"], "verify_upload": true}}"#,
            1,
            1,
        ),
        ("lz4", r#"{"compression": "lz4"}"#, 2, 3),
        ("zstd", r#"{"compression": "zstd", "fragment_checksum": ["sha-1"]}"#, 2, 2),
        ("snappy", r#"{"compression": "snappy"}"#, 2, 3),
    ] {
        world.create_preset(name, [2, 1, 3, 3], more);
        proxy.done(request(3).str(name).byte(1).str(name));
        let data = [7; 100_000];
        let (manifest, namespace) = stored(&mut proxy, name, "o", &data);
        assert_eq!(manifest.compression, compression, "{name}");
        assert!(
            manifest.fragments.iter().flatten().all(|fragment| fragment.checksum.0 == checksum),
            "{name}"
        );
        let mut info = proxy.ok(request(9).str(name).str("o").bool(true).bool(true));
        assert_eq!(info.i64(), 100_000);
        let expected = if name == "blake3" { 1 } else { 3 };
        assert_eq!((info.byte(), manifest.checksum.0), (expected, expected), "{name}");
        if compression == 1 {
            check(&mut Reader::new(&mut proxy), &manifest, namespace, &data);
        } else {
            // A direct reader leaves what is compressed to the proxy.
            assert_eq!(proxy.ok(slices(23, name, &[("o", &[(50_000, 10)])])).str(), [7; 10]);
        }
    }
}

/// With storage daemons dead, what could not be stored has no location, and all else is where it is told to be.
pub(crate) fn dead_osds(world: &World) {
    let mut proxy = world.connect();
    use_ser_2(&mut proxy);
    world.create_preset("holes", [5, 4, 8, 3], "{}");
    proxy.done(request(3).str("holes").byte(1).str("holes"));
    for index in [0, 4, 8, 11] {
        world.cluster.kill_osd(index);
    }
    let data = content::bytes("holes", 400_000);
    let mut reader = Reader::new(&mut proxy);
    let (manifest, namespace) = stored(reader.proxy(), "holes", "o", &data);
    for fragments in &manifest.fragments {
        let there = fragments.iter().filter(|fragment| fragment.osd.is_some()).count();
        assert!((8..9).contains(&there), "{there} of 9 fragments on 8 living storage daemons");
    }
    for (chunk, fragments) in manifest.fragments.iter().enumerate() {
        for (index, fragment) in fragments.iter().enumerate().filter(|(_, fragment)| fragment.osd.is_some()) {
            let length = usize::try_from(fragment.packed_len).unwrap();
            let bytes = reader.stored(&manifest, namespace, (chunk, index), 0, length);
            assert_eq!(fragment.checksum.1, crc32c(&bytes).to_le_bytes());
        }
    }
}
