//! Downloads and slices with OSDs that are gone, damaged, slow, and manifests that are stale.

use std::time::Duration;

use alba_core::ids::FragmentIndex;
use alba_core::preset::Compression;
use proptest::prelude::*;

use super::backend::{Fixture, preset};
use super::*;
use crate::{ClientConfig, Slice};

async fn slices_by(
    fixture: &Fixture,
    client: &Client,
    object: &str,
    slices: &[(i64, i32)],
    consistency: Consistency,
) -> Result<Bytes, ClientError> {
    let slices = slices.iter().map(|(offset, length)| Slice { offset: *offset, length: *length }).collect();
    let requests = vec![(name(object), slices)];
    let read = client.read_slices(&ns(), requests, consistency, fixture.deadline()).await?;
    Ok(read.data.concat().into())
}

async fn slices(fixture: &Fixture, object: &str, wanted: &[(i64, i32)]) -> Result<Bytes, ClientError> {
    slices_by(fixture, &fixture.client, object, wanted, Consistency::Consistent).await
}

/// All subsets of at most `max` of `total`.
fn losses(total: u32, max: u32) -> impl Iterator<Item = Vec<u32>> {
    (0_u32..1 << total)
        .filter(move |set| set.count_ones() <= max)
        .map(move |set| (0..total).filter(|i| set & (1 << i) != 0).collect())
}

#[test]
fn any_m_osds_may_be_gone() {
    for (policy, total, compression) in [
        ([2, 2, 4, 1], 4, Compression::None),
        ([3, 2, 5, 1], 5, Compression::Zstd),
        ([1, 2, 3, 1], 3, Compression::None),
        ([1, 2, 3, 1], 3, Compression::Lz4),
    ] {
        let nodes = usize::try_from(total).unwrap();
        let fixture = Fixture::new(total, nodes, preset(&[policy], 512, compression));
        let bytes = data(3 * 1024 + 7);
        fixture.run(async { put(&fixture, "o", &bytes).await.unwrap() });
        for lost in losses(total, policy[1]) {
            for osd in fixture.backend.all() {
                let dead = lost.contains(&u32::try_from(osd.id.get()).unwrap());
                osd.set(|f| f.dead = dead);
            }
            fixture.run(async {
                // A process that knows nothing yet, and its second read, which does.
                let client = fixture.second_client();
                for _ in 0..2 {
                    let whole = get_by(&fixture, &client, "o", Consistency::Cached).await;
                    assert_eq!(whole.unwrap(), bytes, "{policy:?} without {lost:?}");
                    let wanted = [(2000, 900), (0, 1), (511, 3)];
                    let parts = slices_by(&fixture, &client, "o", &wanted, Consistency::Cached).await;
                    let expected = [&bytes[2000..2900], &bytes[0..1], &bytes[511..514]].concat();
                    assert_eq!(parts.unwrap(), expected, "{policy:?} without {lost:?}");
                }
            });
        }
    }
}

#[test]
fn damaged_fragments_are_erasures_and_are_counted() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(10_000);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        let mut damaged = 0;
        for osd in fixture.backend.all() {
            damaged += osd.corrupt(|at| at.fragment == FragmentIndex(0));
        }
        assert_eq!(damaged, 5);
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        assert_eq!(fixture.client.statistics().fragments_damaged, 5);
    });
}

#[test]
fn damage_never_reaches_a_reader_of_whole_fragments() {
    for compression in [Compression::None, Compression::Lz4] {
        let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, compression));
        let bytes = data(2048);
        fixture.run(async {
            put(&fixture, "o", &bytes).await.unwrap();
            for osd in fixture.backend.all() {
                osd.corrupt(|at| at.fragment == FragmentIndex(1));
            }
            assert_eq!(slices(&fixture, "o", &[(1024, 1024)]).await.unwrap(), bytes.slice(1024..2048));
        });
    }
}

#[test]
fn with_fewer_than_k_the_error_says_so_at_once() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(5000)).await.unwrap();
        for id in 0..3 {
            fixture.backend.osd(osd(id)).set(|f| f.dead = true);
        }
        let started = fixture.simulation.now();
        let whole = get(&fixture, "o").await.unwrap_err();
        let ClientError::NotEnoughFragments { needed, found, detail, .. } = &whole else { panic!("{whole}") };
        assert_eq!((*needed, *found), (2, 1));
        assert!(detail.contains("refused"), "{detail}");
        let part = slices(&fixture, "o", &[(0, 5000)]).await.unwrap_err();
        assert!(matches!(part, ClientError::NotEnoughFragments { .. }), "{part}");
        assert!(fixture.simulation.now().since(started) < Duration::from_secs(2));
    });
}

#[test]
fn a_slow_osd_does_not_show() {
    let fixture = Fixture::new(9, 3, preset(&[[5, 4, 9, 3]], 1024, Compression::None));
    let bytes = data(5 * 1024 * 4);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        for osd in fixture.backend.all() {
            osd.set(|f| f.delay = Duration::from_millis(2));
        }
        let read = async |limit: Duration| {
            let started = fixture.simulation.now();
            assert_eq!(slices(&fixture, "o", &[(100, 4096)]).await.unwrap(), bytes.slice(100..4196));
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
            let took = fixture.simulation.now().since(started);
            assert!(took <= limit, "{took:?}");
        };
        for _ in 0..20 {
            read(Duration::from_millis(50)).await;
        }
        for delay in [Duration::from_secs(1), Duration::from_secs(1000)] {
            for slow in [0, 4] {
                fixture.backend.osd(osd(slow)).set(|f| f.delay = delay);
                // The first one finds out.
                read(Duration::from_secs(2)).await;
                for _ in 0..20 {
                    read(Duration::from_millis(300)).await;
                }
                fixture.backend.osd(osd(slow)).set(|f| f.delay = Duration::from_millis(2));
            }
        }
    });
}

#[test]
fn only_the_bytes_asked_for_are_read() {
    let fixture = Fixture::new(9, 3, preset(&[[5, 4, 9, 3]], 1024, Compression::None));
    let bytes = data(5 * 1024 * 3);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        // Across the border of two fragments.
        assert_eq!(slices(&fixture, "o", &[(1000, 100)]).await.unwrap(), bytes.slice(1000..1100));
        let reads: usize = fixture.backend.all().iter().map(|osd| *osd.reads.lock().unwrap()).sum();
        assert_eq!(reads, 2);
    });
}

#[test]
fn slices_are_checked_in_the_order_of_the_protocol() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(100)).await.unwrap();
        let refused = async |wanted: &[(i64, i32)]| slices(&fixture, "o", wanted).await.unwrap_err();
        assert_eq!(refused(&[(0, -1)]).await, ClientError::BadSliceLength);
        assert_eq!(refused(&[(0, 10), (5, 10)]).await, ClientError::OverlappingSlices);
        assert_eq!(refused(&[(95, 10)]).await, ClientError::SliceOutsideObject);
        assert_eq!(refused(&[(0, i32::MAX)]).await, ClientError::SliceOutsideObject);
        assert_eq!(slices(&fixture, "o", &[]).await.unwrap(), Bytes::new());
        assert_eq!(slices(&fixture, "o", &[(1000, 0)]).await.unwrap(), Bytes::new());
        let missing = slices(&fixture, "p", &[(0, -1)]).await;
        assert_eq!(missing, Err(ClientError::ObjectUnknown(name("p"))));
        let elsewhere = NamespaceName::new("elsewhere").unwrap();
        let nothing = fixture
            .client
            .read_slices(&elsewhere, Vec::new(), Consistency::Consistent, fixture.deadline())
            .await
            .unwrap();
        assert!(nothing.data.is_empty() && nothing.objects.is_empty());
    });
}

#[test]
fn an_answer_larger_than_the_buffers_is_refused() {
    let config = ClientConfig { max_bytes_in_flight: 1 << 20, ..ClientConfig::default() };
    let preset = preset(&[[2, 2, 3, 4]], 64 << 10, Compression::None);
    let fixture = Fixture::with_config(4, 4, preset, config);
    let bytes = data((1 << 20) + 1);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        let error = slices(&fixture, "o", &[(0, (1 << 20) + 1)]).await.unwrap_err();
        assert_eq!(error, ClientError::TooMuchAtOnce { asked: (1 << 20) + 1, limit: 1 << 20 });
        assert_eq!(slices(&fixture, "o", &[(1, 1 << 20)]).await.unwrap(), bytes.slice(1..));
        // Answers hold their room until they are dropped.
        let request = vec![(name("o"), vec![Slice { offset: 0, length: 1 << 20 }])];
        let first =
            fixture.client.read_slices(&ns(), request.clone(), Consistency::Cached, fixture.deadline()).await;
        let soon = fixture.node.env().deadline_in(Duration::from_secs(1));
        let second = fixture.client.read_slices(&ns(), request.clone(), Consistency::Cached, soon).await;
        assert!(matches!(second, Err(ClientError::Busy(_) | ClientError::Deadline { .. })), "{second:?}");
        drop(first);
        let soon = fixture.node.env().deadline_in(Duration::from_secs(1));
        assert!(fixture.client.read_slices(&ns(), request, Consistency::Cached, soon).await.is_ok());
    });
}

#[test]
fn several_objects_are_read_at_once_and_come_in_order() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::Lz4));
    fixture.run(async {
        let mut requests = Vec::new();
        let mut expected = Vec::new();
        for i in 0..20 {
            let bytes = data(3000 + i);
            put(&fixture, &format!("o{i}"), &bytes).await.unwrap();
            requests.push((
                name(&format!("o{i}")),
                vec![Slice { offset: 2990, length: 10 }, Slice { offset: 5, length: 3 }],
            ));
            expected.extend_from_slice(&bytes[2990..3000]);
            expected.extend_from_slice(&bytes[5..8]);
        }
        let read =
            fixture.client.read_slices(&ns(), requests, Consistency::Consistent, fixture.deadline()).await;
        let read = read.unwrap();
        assert_eq!(read.data.concat(), expected);
        assert_eq!(read.objects.len(), 20);
    });
}

#[test]
fn reading_ends_by_its_deadline_whatever_hangs() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(3000)).await.unwrap();
        for osd in fixture.backend.all() {
            osd.set(|f| f.delay = Duration::from_secs(10_000));
        }
        let deadline = fixture.node.env().deadline_in(Duration::from_secs(3));
        let mut sink = MemorySink::new();
        let read =
            fixture.client.download(&ns(), &name("o"), Consistency::Consistent, &mut sink, deadline).await;
        read.unwrap_err();
        assert!(fixture.simulation.now() <= deadline.0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn slices_are_what_the_object_holds(
        size in 0_usize..20_000,
        cuts in prop::collection::vec(0_usize..20_000, 0..12),
        order in any::<u64>(),
        shape in 0_usize..4,
        lost in prop::collection::vec(0_u32..9, 0..2),
    ) {
        let (policy, osds) = [([5, 4, 9, 9], 9), ([2, 2, 4, 9], 4), ([1, 2, 3, 9], 3), ([3, 2, 5, 9], 5)][shape];
        let compression = if order % 3 == 0 { Compression::Lz4 } else { Compression::None };
        let fixture = Fixture::new(osds, 1, preset(&[policy], 512, compression));
        let bytes = data(size);
        // Cut the object at the given places and ask for some of the parts, in some order.
        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut % (size + 1)).collect();
        borders.sort_unstable();
        let mut parts: Vec<(usize, usize)> =
            borders.windows(2).map(|w| (w[0], w[1])).filter(|(from, to)| from < to).collect();
        let middle = usize::try_from(order % 7).unwrap().min(parts.len());
        parts.rotate_left(middle);
        if order % 2 == 0 {
            parts.reverse();
        }
        fixture.run(async {
            put(&fixture, "o", &bytes).await.unwrap();
            for id in &lost {
                if *id < osds {
                    fixture.backend.osd(osd(*id)).set(|f| f.dead = true);
                }
            }
            let wanted: Vec<(i64, i32)> = parts
                .iter()
                .map(|(from, to)| (i64::try_from(*from).unwrap(), i32::try_from(to - from).unwrap()))
                .collect();
            let expected: Vec<u8> = parts.iter().flat_map(|(from, to)| bytes[*from..*to].to_vec()).collect();
            let read = slices(&fixture, "o", &wanted).await.unwrap();
            assert_eq!(read, expected);
        });
    }
}
