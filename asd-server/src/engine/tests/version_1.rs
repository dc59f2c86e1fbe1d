//! A store of format version 1, as the release before wrote it: opened, read, made again from its segments, gone on with
//! in version 2, and compacted away.

use super::*;

/// The example of the format's description in version 1: lines of zeros, and of `aa`, are left out.
const GOLDEN: &str = "\
00000  41 4c 42 41 53 45 47 31 01 00 00 00 00 10 00 00
00010  73 74 6f 72 65 20 6f 66 20 61 20 74 65 73 74 21
00020  00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00
00030  00 00 01 00 00 00 00 00 00 00 00 00 00 00 00 00
00ff0  00 00 00 00 00 00 00 00 00 00 00 00 09 c8 a0 ca
01000  41 52 43 31 01 03 03 00 05 00 00 00 00 00 00 00
01010  01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
01020  00 00 00 00 00 00 00 00 63 03 e0 e1 00 00 00 00
01040  00 00 00 00 00 00 00 00 00 00 00 00 1a 2f 31 0f
01050  6b 65 79 71 b0 70 4f 76 61 6c 75 65 41 52 43 31
01060  03 00 00 00 00 00 00 00 01 00 00 00 01 00 00 00
01080  00 00 00 00 ac 00 00 00 00 00 00 00 f5 ad 3a 48
010a0  00 00 00 00 00 00 00 00 b3 a5 13 77 00 00 00 00
02000  41 52 43 31 02 00 03 00 00 00 00 00 00 00 00 00
02010  02 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00
02020  01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
02040  00 00 00 00 00 00 00 00 00 00 00 00 79 1b 29 5e
02050  6b 65 79 41 52 43 31 01 03 04 00 04 10 00 00 01
02060  00 00 00 02 00 00 00 00 00 00 00 01 00 00 00 00
02070  00 00 00 01 00 00 00 00 00 00 00 31 2a 4b ff 00
02090  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 90
020a0  8f ee 10 6c 6f 6e 67 1f 6d 53 7b 80 84 3c d7 aa
030b0  aa aa aa 41 52 43 31 03 00 00 00 00 00 00 00 02
030c0  00 00 00 02 00 00 00 00 00 00 00 01 00 00 00 00
030d0  00 00 00 01 00 00 00 00 00 00 00 03 11 00 00 00
030e0  00 00 00 bd c5 03 7a 00 00 00 00 00 00 00 00 00
030f0  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 7c
03100  c2 3c eb 00 00 00 00 00 00 00 00 00 00 00 00 00
";

fn crc(bytes: &[u8]) -> u32 {
    match ChecksumAlgorithm::Crc32c.of(bytes) {
        Checksum::Crc32c(crc) => crc,
        _ => unreachable!(),
    }
}

/// A segment of version 1 in the making.
struct Segment1 {
    number: u64,
    bytes: Vec<u8>,
    len: usize,
}

impl Segment1 {
    fn begin(number: u64, len: u64, previous: u64) -> Self {
        let mut bytes = b"ALBASEG1".to_vec();
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(4096_u32.to_le_bytes());
        bytes.extend(STORE.0);
        for field in [number, 1, len, previous] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.resize(4092, 0);
        bytes.extend(crc(&bytes).to_le_bytes());
        Self { number, bytes, len: usize::try_from(len).unwrap() }
    }

    fn seeded(&self, sequence: u64, block: u32, bytes: &[u8]) -> u32 {
        let mut all = STORE.0.to_vec();
        for field in [self.number, 1, sequence] {
            all.extend(field.to_le_bytes());
        }
        all.extend(block.to_le_bytes());
        all.extend_from_slice(bytes);
        crc(&all)
    }

    /// Appends a record; gives the CRC of its header.
    fn record(
        &mut self,
        (kind, tag, ordinal): (u8, u8, u32),
        chain: [u64; 3],
        body: &[u8],
        (key, value): (&[u8], &[u8]),
    ) -> u32 {
        let mut fixed = b"ARC1".to_vec();
        fixed.extend([kind, tag]);
        fixed.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
        fixed.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
        fixed.extend(ordinal.to_le_bytes());
        chain.iter().for_each(|number| fixed.extend(number.to_le_bytes()));
        fixed.extend_from_slice(body);
        fixed.resize(76, 0);
        let table =
            (0..).zip(value.chunks(4096)).flat_map(|(n, b)| self.seeded(chain[0], n, b).to_le_bytes());
        let table: Vec<u8> = table.collect();
        let header_crc = self.seeded(chain[0], u32::MAX, &[&fixed, key, &table].concat());
        for part in [&fixed, &header_crc.to_le_bytes()[..], key, &table, value] {
            self.bytes.extend_from_slice(part);
        }
        header_crc
    }

    /// Appends a batch: number, the one before, last synced.
    fn batch(&mut self, chain: [u64; 3], updates: &[OsdUpdate]) {
        let start = self.bytes.len();
        let mut crcs = Vec::new();
        for (ordinal, update) in (0..).zip(updates) {
            crcs.push(match update {
                OsdUpdate::Delete(key) => self.record((2, 0, ordinal), chain, &[], (key, &[])),
                OsdUpdate::Set(key, StoredValue { value, checksum }) => {
                    let (tag, body) = match checksum {
                        Checksum::Crc32c(crc) => (3, crc.to_le_bytes().to_vec()),
                        Checksum::Blake3(root) => (4, root.to_vec()),
                        _ => unreachable!(),
                    };
                    self.record((1, tag, ordinal), chain, &body, (key, value))
                }
                _ => unreachable!("version 1 has no ranges"),
            });
        }
        let len = self.bytes.len() - start + 80;
        let crcs: Vec<u8> = crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect();
        let body = [&offset(len).to_le_bytes()[..], &crc(&crcs).to_le_bytes()].concat();
        self.record((3, 0, u32::try_from(updates.len()).unwrap()), chain, &body, (&[], &[]));
        self.bytes.resize(self.bytes.len().next_multiple_of(4096), 0);
    }

    fn content(&self) -> Bytes {
        let mut bytes = self.bytes.clone();
        assert!(bytes.len() <= self.len, "it does not fit");
        bytes.resize(self.len, 0);
        bytes.into()
    }
}

#[test]
fn the_encoder_of_this_test_writes_what_version_1_was() {
    let mut segment = Segment1::begin(0, 64 << 10, 0);
    segment.batch([1, 0, 0], &[set("key", Bytes::from_static(b"value"))]);
    let long = set("long", Bytes::from(vec![0xaa; 4_100]));
    segment.batch([2, 1, 1], &[OsdUpdate::Delete(key("key")), long]);
    let found: Vec<String> = golden::dump(&segment.bytes, 0)
        .into_iter()
        .filter(|line| !line.ends_with(&" aa".repeat(16)))
        .collect();
    assert_eq!(found, GOLDEN.lines().collect::<Vec<_>>());
}

/// Three segments of version 1; what they hold.
fn store(hardware: &Hardware) -> Model {
    let mut model = Model::new();
    let (mut last, mut nth) = (0, 0);
    let disk = hardware.disk.open();
    let written = async {
        for number in 0..3 {
            let mut segment = Segment1::begin(number, hardware.config.segment_bytes, last);
            for _ in 0..4 {
                nth += 1;
                let value = pattern(9_000, nth);
                let checksum =
                    if nth % 2 == 0 { ChecksumAlgorithm::Blake3 } else { ChecksumAlgorithm::Crc32c };
                let stored_value = StoredValue { checksum: checksum.of(&value), value };
                let small = set(&format!("small{nth}"), pattern(200, nth));
                let mut updates = vec![OsdUpdate::Set(key(&format!("k{:02}", nth % 9)), stored_value), small];
                if nth % 4 == 0 {
                    updates.push(OsdUpdate::Delete(key(&format!("small{}", nth - 1))));
                }
                // One that is larger than a leaf of a tree.
                if nth % 5 == 0 {
                    let value = pattern(20_000, nth);
                    let checksum = ChecksumAlgorithm::Blake3.of(&value);
                    updates.push(OsdUpdate::Set(key("tree"), StoredValue { checksum, value }));
                }
                segment.batch([nth, nth - 1, nth - 1], &updates);
                play(&mut model, &batch(updates));
            }
            last = nth;
            let content = segment.content();
            let file = disk.create(&segment::file_name(number), offset(content.len())).await.unwrap();
            file.write_at(0, vec![content]).await.unwrap();
            file.sync().await.unwrap();
        }
        disk.sync_directory().await.unwrap();
    };
    Simulation::new(1).run(LIMIT, written).unwrap();
    model
}

#[test]
fn a_store_of_version_1_is_opened_read_and_made_again() {
    let hardware = Hardware::with_segments(1, 128 << 10);
    let model = store(&hardware);
    for _ in 0..2 {
        hardware.index.wipe();
        hardware.run(async |node, engine, opening| {
            assert!(opening.rebuilt);
            assert_eq!((opening.replayed, opening.damage), (12, vec![]));
            assert_eq!(content(node, &engine).await, model);
            let slice = ValueSlice { offset: 17_000, len: 100 };
            let part = engine.partial_get(key("tree"), vec![slice], Priority::High, deadline(node)).await;
            let value = &model[&key("tree")].value;
            assert_eq!(part.unwrap().unwrap(), [value.slice(17_000..17_100)]);
            // It has no tree beside its value: that is made.
            let proven = engine.proven_get(key("tree"), slice, Priority::High, deadline(node)).await;
            let Checksum::Blake3(root) = model[&key("tree")].checksum else { unreachable!() };
            let proven = proven.unwrap().unwrap();
            let verified = alba_core::blake3_tree::verify(root, 20_000, slice, &proven).unwrap();
            assert_eq!(*verified.as_bytes(), value.slice(17_000..17_100));
            engine.close(deadline(node)).await;
        });
    }
}

#[test]
fn a_torn_tail_and_rot_in_version_1_are_told_apart() {
    for (segment, told) in [(2, false), (0, true)] {
        let hardware = Hardware::with_segments(1, 128 << 10);
        let model = store(&hardware);
        let name = segment::file_name(segment);
        let content_before = hardware.disk.content(&name).unwrap();
        // The last batch of the segment: 24 zero bytes are never within a value here.
        let end = content_before.iter().rposition(|byte| *byte != 0).unwrap();
        assert!(hardware.disk.rot(&name, offset(end), 1));
        hardware.run(async |node, engine, opening| {
            assert_eq!(!opening.damage.is_empty(), told, "{:?}", opening.damage);
            let found = content(node, &engine).await;
            assert!(found.len() < model.len() || found != model);
        });
    }
}

#[test]
fn a_store_of_version_1_goes_on_in_version_2_and_is_compacted_away() {
    let hardware = Hardware::with_segments(1, 128 << 10);
    hardware.disk.set_capacity(12 * (128 << 10));
    let mut model = store(&hardware);
    let is_old = |name: &String| hardware.disk.content(name).unwrap()[8] == 1;
    let old = || hardware.disk.names().iter().filter(|name| is_old(name)).count();
    assert_eq!(old(), 3);
    let mut salt = 100;
    let mut rounds = 0;
    while old() > 0 {
        rounds += 1;
        assert!(rounds < 40, "segments of version 1 are left: {}", old());
        hardware.run(async |node, engine, opening| {
            assert_eq!(opening.damage, Vec::<String>::new());
            for nth in 0..12 {
                salt += 1;
                // Some of the old keys stay as they are.
                let one = batch(vec![set(&format!("k{:02}", nth % 5), pattern(9_000, salt))]);
                play(&mut model, &one);
                apply(node, &engine, one).await.unwrap();
            }
            // Others are deleted: they must stay so, whatever segment goes first.
            let gone = batch(vec![OsdUpdate::Delete(key(&format!("small{}", rounds + 1)))]);
            play(&mut model, &gone);
            apply(node, &engine, gone).await.unwrap();
            let clock = node.env().clock;
            clock.sleep_until(clock.now().plus(Duration::from_secs(5))).await;
            assert_eq!(content(node, &engine).await, model);
        });
        // At every stage also from the segments alone.
        hardware.index.wipe();
        let rebuilt = hardware.run(async |node, engine, opening| {
            assert_eq!(opening.damage, Vec::<String>::new());
            content(node, &engine).await
        });
        assert_eq!(rebuilt, model, "round {rounds}");
    }
    assert!(model.contains_key(&key("k08")), "what was only written in version 1 was moved");
}
