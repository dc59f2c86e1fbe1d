//! A byte string as a history of one OSD, ranges, restarts, power cuts and losses of the index included, beside a map.

use std::collections::BTreeMap;

use alba_core::blake3_tree;
use alba_core::units::ByteCount;
use arbitrary::{Result, Unstructured};

use super::*;

type Model = BTreeMap<OsdKey, StoredValue>;

/// Most steps of one history.
const STEPS: usize = 80;

/// Segments of the disk: so few that they are compacted and reused.
const SEGMENTS: u64 = 14;

/// How a life ends.
enum End {
    /// The input is used up.
    Out,
    /// The process ends, having closed the engine or not.
    Stop { closed: bool },
    /// The power goes; so many unsynced commits of the index stay.
    Crash { kept: usize },
    /// The index is deleted after a stop.
    IndexLost,
}

fn key(u: &mut Unstructured<'_>) -> Result<OsdKey> {
    Ok(OsdKey::from(format!("k{}", u.int_in_range(0..=9)?)))
}

fn update(u: &mut Unstructured<'_>) -> Result<OsdUpdate> {
    Ok(match u.int_in_range(0..=7)? {
        0 | 1 => OsdUpdate::Delete(key(u)?),
        2 => {
            let (a, b) = (key(u)?, key(u)?);
            if a == b {
                OsdUpdate::Delete(a)
            } else {
                OsdUpdate::DeleteRange(a.clone().min(b.clone()), a.max(b))
            }
        }
        _ => {
            let len = *u.choose(&[0, 1, 100, 4096, 4097, 9000, 17_000])?;
            OsdUpdate::Set(key(u)?, stored(len, u.arbitrary::<u16>()?.into()))
        }
    })
}

fn play(model: &mut Model, updates: &[OsdUpdate]) {
    for update in updates {
        match update {
            OsdUpdate::Set(key, stored) => drop(model.insert(key.clone(), stored.clone())),
            OsdUpdate::Delete(key) => drop(model.remove(key)),
            OsdUpdate::DeleteRange(from, to) => model.retain(|key, _| key < from || key >= to),
            OsdUpdate::SetFromPeer(..) => unreachable!("the engine has no peers"),
        }
    }
}

/// Goes on until something ends the life. Running out of input is an end, too.
async fn life(
    u: &mut Unstructured<'_>,
    steps: &mut usize,
    (node, engine): (&SimNode, &Engine),
    model: &mut Model,
) -> Result<End> {
    while *steps < STEPS && !u.is_empty() {
        *steps += 1;
        match u.int_in_range(0..=15)? {
            0 => return Ok(End::Stop { closed: u.arbitrary()? }),
            1 => return Ok(End::Crash { kept: u.int_in_range(0..=9)? }),
            2 => return Ok(End::IndexLost),
            3 => read(u, node, engine, model).await?,
            4 => {
                engine.scrub_now();
                pause(node, u.int_in_range(0..=20)?).await;
            }
            5 => pause(node, u.int_in_range(0..=3)?).await,
            6 => {
                let (key, expected) = (key(u)?, stored(100, u.arbitrary::<u16>()?.into()));
                let batch = OsdBatch {
                    asserts: vec![OsdAssert::Absent(key.clone())],
                    updates: vec![OsdUpdate::Set(key.clone(), expected.clone())],
                };
                match engine.apply(batch, Priority::High, deadline(node)).await {
                    Ok(()) => assert!(model.insert(key, expected).is_none(), "the assert holds"),
                    Err(OsdError::AssertFailed(failed)) => {
                        assert!(failed == key && model.contains_key(&key), "the assert fails");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            _ => {
                let updates = (0..u.int_in_range(1..=2)?).map(|_| update(u)).collect::<Result<Vec<_>>>()?;
                apply(node, engine, updates.clone()).await.expect("there is room");
                play(model, &updates);
            }
        }
    }
    Ok(End::Out)
}

async fn pause(node: &SimNode, seconds: u64) {
    let clock = node.env().clock;
    clock.sleep_until(clock.now().plus(Duration::from_secs(seconds))).await;
}

/// One value, or a part of it, or a part with its proof.
async fn read(u: &mut Unstructured<'_>, node: &SimNode, engine: &Engine, model: &Model) -> Result<()> {
    let key = key(u)?;
    let len = model.get(&key).map_or(0, |stored| u32::try_from(stored.value.len()).unwrap());
    let offset = u.int_in_range(0..=len)?;
    let slice = ValueSlice { offset, len: u.int_in_range(0..=len - offset)? };
    let part = |stored: &StoredValue| {
        let from = usize::try_from(slice.offset).unwrap();
        stored.value.slice(from..from + usize::try_from(slice.len).unwrap())
    };
    let found = engine.partial_get(key.clone(), vec![slice], Priority::High, deadline(node)).await.unwrap();
    assert_eq!(found.map(|mut parts| parts.remove(0)), model.get(&key).map(part), "{key:?} {slice:?}");
    if let Some((stored, root)) = model.get(&key).and_then(|stored| match stored.checksum {
        Checksum::Blake3(root) => Some((stored, root)),
        _ => None,
    }) {
        let proven = engine.proven_get(key, slice, Priority::High, deadline(node)).await.unwrap().unwrap();
        let verified = blake3_tree::verify(root, len, slice, &proven).unwrap();
        assert_eq!(*verified.as_bytes(), part(stored));
    }
    Ok(())
}

async fn compare(node: &SimNode, engine: &Engine, opening: &Opening, model: &Model) {
    assert_eq!(opening.damage, Vec::<String>::new());
    let page = engine.range(RangeQuery::all(), Priority::High, deadline(node)).await.unwrap();
    assert!(page.items.iter().eq(model.keys()), "{:?} instead of {:?}", page.items, model.keys());
    let values = engine.multi_get(page.items.clone(), Priority::High, deadline(node)).await.unwrap();
    for (key, value) in page.items.iter().zip(values) {
        assert!(value.as_ref() == model.get(key), "another value of {key:?}");
    }
    // Rows of deleted ranges go in the background.
    while !engine.shared.index().unwrap().unswept().is_empty() {
        pause(node, 1).await;
    }
    let used: usize = model.values().map(|stored| stored.value.len()).sum();
    assert_eq!(engine.usage().used, ByteCount::from(used));
}

/// The target.
pub fn asd_operations(input: &[u8]) {
    let u = &mut Unstructured::new(input);
    let hardware = Hardware::new(SEGMENTS * SEGMENT_BYTES);
    let mut model = Model::new();
    let mut steps = 0;
    loop {
        let end = hardware.live(async |node, engine, opening| {
            compare(node, engine, opening, &model).await;
            let end = life(u, &mut steps, (node, engine), &mut model).await.unwrap_or(End::Out);
            if matches!(end, End::Stop { closed: true }) {
                engine.close(deadline(node)).await;
            }
            end
        });
        match end.unwrap() {
            End::Out => break,
            End::Stop { .. } => {}
            End::Crash { kept } => {
                hardware.disk.crash();
                hardware.index.crash(kept);
            }
            End::IndexLost => hardware.index.wipe(),
        }
    }
    for lost_index in [false, true] {
        if lost_index {
            hardware.index.wipe();
        }
        let compared =
            hardware.live(async |node, engine, opening| compare(node, engine, opening, &model).await);
        compared.unwrap();
    }
}
