//! Manifests in the cache that are no longer true, and streams: what a reader gets, in which order, and what it holds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::ids::ChunkIndex;
use alba_core::preset::Compression;
use async_trait::async_trait;

use super::backend::{Fixture, preset};
use super::*;
use crate::{ObjectSink, Slice};

async fn slice_by(
    fixture: &Fixture,
    client: &Client,
    object: &str,
    (offset, length): (i64, i32),
    consistency: Consistency,
) -> Result<Bytes, ClientError> {
    let requests = vec![(name(object), vec![Slice { offset, length }])];
    let read = client.read_slices(&ns(), requests, consistency, fixture.deadline()).await?;
    Ok(read.data.concat().into())
}

/// The kinds of codes: with parity, and copies.
const CODES: [[u32; 4]; 2] = [[2, 2, 3, 4], [1, 2, 2, 3]];

/// What became of an object that a client knows of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Became {
    Overwritten,
    Deleted,
    Recreated,
}

/// Lets a second client know the object as it was, and does something to it.
async fn after(fixture: &Fixture, became: Became) -> Client {
    let other = fixture.second_client();
    put(fixture, "o", &data(3000)).await.unwrap();
    settle(fixture).await;
    assert_eq!(get_by(fixture, &other, "o", Consistency::Cached).await.unwrap(), data(3000));
    let old = fixture.backend.stored(&name("o")).unwrap();
    if became != Became::Overwritten {
        fixture.client.delete_object(&ns(), &name("o"), true, fixture.deadline()).await.unwrap();
    }
    if became != Became::Deleted {
        put(fixture, "o", &data(7000)).await.unwrap();
        settle(fixture).await;
    }
    for osd in fixture.backend.all() {
        osd.remove_object(old.object_id).await;
    }
    other
}

#[test]
fn whatever_became_of_an_object_a_cached_manifest_is_asked_for_again_once() {
    for code in CODES {
        for became in [Became::Overwritten, Became::Deleted, Became::Recreated] {
            for whole in [false, true] {
                let fixture = Fixture::new(4, 4, preset(&[code], 1024, Compression::None));
                fixture.run(async {
                    let other = after(&fixture, became).await;
                    let queries = fixture.backend.group.lock().unwrap().queries;
                    let (read, expected) = if whole {
                        (get_by(&fixture, &other, "o", Consistency::Cached).await, data(7000))
                    } else {
                        let read = slice_by(&fixture, &other, "o", (10, 1500), Consistency::Cached).await;
                        (read, data(7000).slice(10..1510))
                    };
                    match became {
                        Became::Deleted => assert_eq!(read, Err(ClientError::ObjectUnknown(name("o")))),
                        _ => assert_eq!(read.unwrap(), expected, "{code:?} {became:?} whole: {whole}"),
                    }
                    assert_eq!(fixture.backend.group.lock().unwrap().queries, queries + 1);
                });
            }
        }
    }
}

#[test]
fn what_is_lost_by_the_newest_manifest_too_is_not_read_again_and_again() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(3000)).await.unwrap();
        settle(&fixture).await;
        let lost = fixture.backend.stored(&name("o")).unwrap().object_id;
        for osd in fixture.backend.all() {
            osd.remove_object(lost).await;
        }
        let queries = || fixture.backend.group.lock().unwrap().queries;
        let before = queries();
        let read = get_by(&fixture, &fixture.client, "o", Consistency::Cached).await;
        assert!(matches!(read, Err(ClientError::NotEnoughFragments { .. })), "{read:?}");
        assert_eq!(queries(), before + 1);
        let read = slice_by(&fixture, &fixture.client, "o", (0, 5), Consistency::Consistent).await;
        assert!(matches!(read, Err(ClientError::NotEnoughFragments { .. })), "{read:?}");
        assert_eq!(queries(), before + 2, "a manifest that was just read is not asked for again");
    });
}

#[test]
fn a_stale_manifest_is_replaced_once_and_the_read_repeated() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    fixture.run(async {
        let other = fixture.second_client();
        put(&fixture, "o", &data(3000)).await.unwrap();
        settle(&fixture).await;
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(), data(3000));
        // Another process replaces the object, and the old fragments are cleaned away.
        let old = fixture.backend.stored(&name("o")).unwrap();
        put(&fixture, "o", &data(7000)).await.unwrap();
        settle(&fixture).await;
        for osd in fixture.backend.all() {
            osd.remove_object(old.object_id).await;
        }
        let part = slice_by(&fixture, &other, "o", (10, 5), Consistency::Cached).await;
        assert_eq!(part.unwrap(), data(7000).slice(10..15));
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(), data(7000));
        // And once more for whole objects.
        let old = fixture.backend.stored(&name("o")).unwrap();
        put(&fixture, "o", &data(9000)).await.unwrap();
        settle(&fixture).await;
        for osd in fixture.backend.all() {
            osd.remove_object(old.object_id).await;
        }
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(), data(9000));
    });
}

#[test]
fn a_cached_manifest_saves_the_question_until_it_is_invalidated() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    fixture.run(async {
        let other = fixture.second_client();
        put(&fixture, "o", &data(10)).await.unwrap();
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(), data(10));
        let queries = fixture.backend.group.lock().unwrap().queries;
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(), data(10));
        assert_eq!(fixture.backend.group.lock().unwrap().queries, queries);
        put(&fixture, "o", &data(20)).await.unwrap();
        assert_eq!(
            get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(),
            data(10),
            "stale, as asked"
        );
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Consistent).await.unwrap(), data(20));
        put(&fixture, "o", &data(30)).await.unwrap();
        other.invalidate_cache(&ns(), fixture.deadline()).await.unwrap();
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(), data(30));
    });
}

/// Takes a while for each piece, and remembers how far reading had gone when it took one.
struct SlowSink {
    fixture: Arc<Fixture>,
    taken: u64,
    ahead: Arc<Mutex<Vec<usize>>>,
}

fn reads(fixture: &Fixture) -> usize {
    fixture.backend.all().iter().map(|osd| *osd.reads.lock().unwrap()).sum()
}

#[async_trait]
impl ObjectSink for SlowSink {
    async fn write_at(&mut self, offset: u64, data: Bytes) -> std::io::Result<()> {
        assert_eq!(offset, self.taken);
        self.taken += u64::try_from(data.len()).unwrap();
        let clock = self.fixture.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
        // A chunk is two reads of 1 KiB.
        let read = reads(&self.fixture) * 1024;
        self.ahead.lock().unwrap().push(read - usize::try_from(self.taken).unwrap());
        Ok(())
    }

    async fn finish(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_sink_holds_reading_back() {
    let fixture = Arc::new(Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None)));
    fixture.run(async {
        let bytes = data(20 * 2048);
        put(&fixture, "o", &bytes).await.unwrap();
        settle(&fixture).await;
        for osd in fixture.backend.all() {
            *osd.reads.lock().unwrap() = 0;
        }
        let ahead = Arc::<Mutex<Vec<usize>>>::default();
        let mut sink = SlowSink { fixture: fixture.clone(), taken: 0, ahead: ahead.clone() };
        let deadline = fixture.deadline();
        fixture.client.download(&ns(), &name("o"), Consistency::Cached, &mut sink, deadline).await.unwrap();
        let ahead = ahead.lock().unwrap();
        assert_eq!(ahead.len(), 40);
        // The rest of the chunk that is being given to the sink, and four chunks.
        assert!(ahead.iter().all(|bytes| *bytes <= 1024 + 4 * 2048), "{ahead:?}");
        assert!(ahead.iter().any(|bytes| *bytes >= 2048), "the next chunks are read meanwhile: {ahead:?}");
    });
}

#[test]
fn slices_beyond_4_gib_are_read() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    fixture.run(async {
        let bytes = data(2048);
        put(&fixture, "o", &bytes).await.unwrap();
        settle(&fixture).await;
        // Six chunks of 1 GiB that are stored nowhere, then the one that is.
        let gib = 1_u64 << 30;
        fixture.backend.change(&name("o"), |manifest| {
            let real = manifest.chunks[0].clone();
            let mut hole = real.clone();
            hole.size = 1 << 30;
            hole.fragments.iter_mut().for_each(|fragment| fragment.location = None);
            manifest.chunks = vec![hole; 6];
            manifest.chunks.push(real);
            manifest.size = 6 * gib + 2048;
        });
        for osd in fixture.backend.all() {
            osd.copy_chunk(ChunkIndex(6)).await;
        }
        let at = |offset: u64| i64::try_from(6 * gib + offset).unwrap();
        let read = async |offset, len| {
            slice_by(&fixture, &fixture.client, "o", (offset, len), Consistency::Consistent).await
        };
        assert_eq!(read(at(1000), 100).await.unwrap(), bytes.slice(1000..1100));
        assert_eq!(read(at(2048), 1).await, Err(ClientError::SliceOutsideObject));
        assert_eq!(read(i64::MAX, 1).await, Err(ClientError::SliceOutsideObject));
        let hole = read(at(0) - 5, 10).await;
        assert!(matches!(hole, Err(ClientError::NotEnoughFragments { .. })), "{hole:?}");
    });
}
