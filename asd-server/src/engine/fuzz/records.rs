//! The parsers of what is on the disk: arbitrary bytes, records that are sealed and yet say nonsense, and whole stores
//! with some damage. Nothing may panic, and no value that was never written may come out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use alba_core::kv::{Durability, KvRead, WriteBatch};
use arbitrary::{Result, Unstructured};

use super::super::batch;
use super::super::format::{
    BLOCK, Chain, Closing, Kind, RecordHeader, Seed, SegmentHeader, Version, batch_crc,
};
use super::super::segment::{Window, file_name};
use super::*;

/// The target.
pub fn asd_records(input: &[u8]) {
    headers(input);
    let u = &mut Unstructured::new(input);
    // Out of input: what was tried until then counts.
    let _ = match u.int_in_range(0..=2) {
        Ok(0) => sealed(u),
        Ok(_) => damaged_store(u),
        Err(error) => Err(error),
    };
}

fn headers(input: &[u8]) {
    let mut block = input.to_vec();
    block.resize(block.len().max(BLOCK), 0);
    for bytes in [input, &block] {
        if let Ok(header) = SegmentHeader::decode(bytes).map_err(drop) {
            assert!(header.version == Version::V1 || SegmentHeader::decode(&header.encode()) == Ok(header));
        }
        if let Ok(closing) = Closing::decode(bytes) {
            assert_eq!(Closing::decode(&closing.encode()), Ok(closing));
        }
        if let Ok(header) = RecordHeader::decode(bytes) {
            let seed = Seed { store: STORE, segment: 0, generation: 1 };
            drop(header.verify(&seed, bytes));
        }
    }
}

/// Records whose checksums are right and whose fields are anything, in a segment of anything.
fn sealed(u: &mut Unstructured<'_>) -> Result<()> {
    let seed = Seed { store: STORE, segment: 0, generation: 1 };
    let chain = Chain {
        sequence: u.int_in_range(0..=3)?,
        previous: u.int_in_range(0..=3)?,
        last_synced: u.arbitrary()?,
    };
    let crc = seed.of_batch(chain.sequence);
    let (mut bytes, mut crcs) = (Vec::new(), Vec::new());
    let count = u.int_in_range(0..=4)?;
    for ordinal in 0..=count {
        let value = pattern(u.int_in_range(0..=5000)?, 1);
        // Mostly what it should be.
        let len = if u.ratio(1, 8)? { u.arbitrary()? } else { u32::try_from(value.len()).unwrap() };
        let block = if u.ratio(1, 4)? { u.arbitrary()? } else { u.int_in_range(0..=3)? };
        let kind = match u.int_in_range(0..=4)? {
            _ if ordinal == count => {
                let len = if u.arbitrary()? {
                    *u.choose(&[0, 172, 1 << 40, u64::MAX - 4096, u64::MAX])?
                } else {
                    u.int_in_range(0..=16_384)?
                };
                Kind::Commit { len, crc: if u.ratio(1, 8)? { u.arbitrary()? } else { batch_crc(&crcs) } }
            }
            0 => Kind::Tombstone,
            1 => Kind::RangeTombstone { len, until: u.arbitrary()? },
            2 => Kind::Value { len, checksum: Checksum::Blake3(u.arbitrary()?), block },
            _ => Kind::Value { len, checksum: Checksum::None, block },
        };
        let header = RecordHeader {
            kind,
            key_len: 2,
            ordinal: if u.ratio(1, 16)? { u.arbitrary()? } else { ordinal },
            chain,
        };
        let mut table = crc.table(&value);
        table.resize(header.table_len().min(1 << 16), 0);
        let tree = vec![7; header.tree_len(Version::V2).min(1 << 16)];
        let key = if ordinal == count { &b""[..] } else { b"ke" };
        let header = RecordHeader { key_len: u16::try_from(key.len()).unwrap(), ..header };
        crcs.push(header.encode(crc, key, &[&table, &tree], &mut bytes));
        if !matches!(header.kind, Kind::Value { block: 1.., .. } | Kind::Tombstone | Kind::Commit { .. }) {
            bytes.extend(value);
        }
    }
    let version = if u.arbitrary()? { Version::V1 } else { Version::V2 };
    let at = u.int_in_range(0..=2)? * BLOCK_BYTES;
    let disk = Hardware::new(1 << 30).disk.open();
    let read = async {
        let file = disk.create("any", SEGMENT_BYTES).await.unwrap();
        file.write_at(at, vec![bytes.into()]).await.unwrap();
        let len = file.len().await.unwrap();
        let mut window = Window::new(file.as_ref(), len);
        if let Ok(batch) = batch::read(&mut window, version, &seed, at).await {
            assert!(batch.end > at && batch.end.is_multiple_of(BLOCK_BYTES), "{batch:?}");
            drop(batch.values_are_whole(file.as_ref(), &seed).await);
        }
    };
    Simulation::new(1).run(LIMIT, read).unwrap();
    Ok(())
}

/// What a store has on its devices, and what was ever written to it.
#[derive(Default)]
struct Template {
    files: Vec<(String, Bytes)>,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// All values a key ever had; the last one counts, none means that it was deleted.
    written: BTreeMap<OsdKey, Vec<Option<StoredValue>>>,
    /// The segment that was appended to last. Without the index nothing but itself tells what its last batches were:
    /// damage there can look like a torn tail.
    head: String,
}

fn name(nth: u64) -> OsdKey {
    OsdKey::from(format!("k{}", nth % 12))
}

impl Template {
    /// Some segments, in the first life of each or (on a small disk) in later ones.
    fn new(capacity: u64, batches: u64) -> Self {
        let hardware = Hardware::new(capacity);
        let mut template = Self::default();
        let done = hardware.live(async |node, engine, _| {
            for nth in 0..batches {
                let (key, len) =
                    (name(nth * 5), [9000, 300, 20_000, 5000][usize::try_from(nth % 4).unwrap()]);
                let update = match nth % 11 {
                    7 => OsdUpdate::Delete(key.clone()),
                    9 => OsdUpdate::DeleteRange("k1".into(), "k3".into()),
                    _ => OsdUpdate::Set(key.clone(), stored(len, nth)),
                };
                apply(node, engine, vec![update.clone()]).await.unwrap();
                match update {
                    OsdUpdate::Set(key, stored) => {
                        template.written.entry(key).or_default().push(Some(stored))
                    }
                    OsdUpdate::DeleteRange(from, to) => {
                        template.written.range_mut(from..to).for_each(|(_, values)| values.push(None));
                    }
                    _ => template.written.entry(key).or_default().push(None),
                }
            }
            let head = engine.segments().into_iter().find(|segment| segment.state == SegmentState::Head);
            template.head = file_name(head.unwrap().number);
            engine.close(deadline(node)).await;
        });
        done.unwrap();
        let names = hardware.disk.names();
        template.files =
            names.into_iter().map(|name| (name.clone(), hardware.disk.content(&name).unwrap())).collect();
        let unbounded = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        template.rows = hardware.index.open().scan(unbounded.0, unbounded.1, false, usize::MAX).unwrap();
        template
    }

    fn put_on_devices(&self) -> Hardware {
        let hardware = Hardware::new(1 << 30);
        let disk = hardware.disk.open();
        let copied = async {
            for (name, content) in &self.files {
                let file = disk.create(name, content.len().try_into().unwrap()).await.unwrap();
                file.write_at(0, vec![content.clone()]).await.unwrap();
                file.sync().await.unwrap();
            }
            disk.sync_directory().await.unwrap();
        };
        Simulation::new(1).run(LIMIT, copied).unwrap();
        let mut batch = WriteBatch::default();
        self.rows.iter().for_each(|(key, value)| batch.put(key.clone(), value.clone()));
        let index = hardware.index.open();
        index.commit(batch, Durability::Eventual).unwrap();
        index.sync().unwrap();
        hardware
    }
}

fn templates() -> &'static [Template; 2] {
    static TEMPLATES: OnceLock<[Template; 2]> = OnceLock::new();
    TEMPLATES.get_or_init(|| [Template::new(1 << 30, 30), Template::new(14 * SEGMENT_BYTES, 130)])
}

fn place(u: &mut Unstructured<'_>, files: &[(String, Bytes)]) -> Result<(String, u64)> {
    let (name, content) = &files[u.choose_index(files.len())?];
    let blocks = u64::try_from(content.len()).unwrap() / BLOCK_BYTES;
    // The first blocks are the ones that decide most.
    let block = if u.arbitrary()? { u.int_in_range(0..=2)? } else { u.int_in_range(0..=blocks - 1)? };
    Ok((name.clone(), block * BLOCK_BYTES))
}

/// Does some damage to the disk; tells to which files.
fn damage(
    u: &mut Unstructured<'_>,
    disk: &SimDiskDevice,
    files: &[(String, Bytes)],
    touched: &mut BTreeSet<String>,
) -> Result<()> {
    let (name, at) = place(u, files)?;
    touched.insert(name.clone());
    match u.int_in_range(0..=8)? {
        0 => drop(disk.lose(&name)),
        1 => drop(disk.truncate(&name, at + u.int_in_range(0..=4095)?)),
        2 | 3 => {
            let (other, there) = place(u, files)?;
            let (len, sector) = if u.arbitrary()? { (4096, 0) } else { (512, u.int_in_range(0..=7)? * 512) };
            touched.insert(other.clone());
            disk.swap_sectors(&name, at + sector, &other, there + sector, len);
        }
        4 => {
            // A run of other bytes.
            let from = at + u.int_in_range(0..=4000)?;
            for nth in 0..u.int_in_range(1..=96)? {
                disk.rot(&name, from + nth, u.arbitrary()?);
            }
        }
        _ => {
            let within = if u.arbitrary()? { u.int_in_range(0..=255)? } else { u.int_in_range(0..=4095)? };
            disk.rot(&name, at + within, 1 << u.int_in_range(0..=7)?);
        }
    }
    Ok(())
}

fn damaged_store(u: &mut Unstructured<'_>) -> Result<()> {
    let template = &templates()[usize::from(u.arbitrary::<bool>()?)];
    let hardware = template.put_on_devices();
    let lost_index = u.arbitrary()?;
    let mut touched = BTreeSet::new();
    for _ in 0..u.int_in_range(1..=3)? {
        damage(u, &hardware.disk, &template.files, &mut touched)?;
    }
    let tail_may_go = touched.contains(&template.head);
    if lost_index {
        hardware.index.wipe();
    }
    let looked = hardware.live(async |node, engine, opening| {
        for (key, written) in &template.written {
            if look(node, engine, key, written).await {
                continue;
            }
            // Only a store that had to be made again from damaged segments may not know better; it says so.
            assert!(lost_index, "{key:?}: the index knows better; {touched:?} {:?}", opening.damage);
            let told = tail_may_go || !opening.damage.is_empty();
            assert!(told, "{key:?}: lost without a word; {touched:?}, the head is {}", template.head);
        }
        // It goes on.
        let new = stored(9000, 1001);
        apply(node, engine, vec![OsdUpdate::Set("new".into(), new.clone())]).await.unwrap();
        let found = engine.multi_get(vec!["new".into()], Priority::High, deadline(node)).await.unwrap();
        assert_eq!(found, [Some(new)]);
    });
    looked.unwrap();
    Ok(())
}

/// Reads a key of a damaged store: a value that it once had, or an error that says that it is damaged. False when it is
/// not what was written last.
async fn look(node: &SimNode, engine: &Engine, key: &OsdKey, written: &[Option<StoredValue>]) -> bool {
    let whole = match engine.multi_get(vec![key.clone()], Priority::High, deadline(node)).await {
        Ok(mut found) => found.remove(0),
        Err(OsdError::Damaged(_)) => return true,
        Err(other) => panic!("{key:?}: {other}"),
    };
    assert!(whole.is_none() || written.contains(&whole), "{key:?} was never that");
    let current = Some(&whole) == written.last();
    let Some(whole) = whole else { return current };
    let len = u32::try_from(whole.value.len()).unwrap();
    let slice = ValueSlice { offset: len / 3, len: len / 2 };
    match engine.partial_get(key.clone(), vec![slice], Priority::High, deadline(node)).await {
        Ok(found) => {
            let from = whole.value.len() / 3;
            assert_eq!(found.unwrap(), [whole.value.slice(from..from + whole.value.len() / 2)], "{key:?}");
        }
        Err(other) => panic!("{key:?} is whole: {other}"),
    }
    current
}
