//! Everything that a preset can say about how bytes are packed, with objects of every class of size: stored, read whole and in
//! slices, with all OSDs and with one away.

use alba_core::preset::Compression;

use super::backend::{Fixture, preset};
use super::sealed::{Sealed, sealed, slices};
use super::*;

/// Largest fragment of these presets.
const FRAGMENT: usize = 1024;

/// Replicas, one copy, parity, stripes without parity. All fragments are needed before a put ends.
const POLICIES: [[u32; 4]; 4] = [[1, 2, 3, 1], [1, 0, 1, 1], [3, 2, 5, 1], [3, 0, 3, 1]];

async fn check(fixture: &Fixture, sizes: &[usize], what: &str) {
    for size in sizes {
        let (object, bytes) = (size.to_string(), data(*size));
        assert_eq!(get(fixture, &object).await.unwrap(), bytes, "{what} {size}");
        // First, last, and across where fragments and chunks meet.
        let edges = [
            0,
            1,
            FRAGMENT - 1,
            FRAGMENT + 1,
            3 * FRAGMENT - 1,
            3 * FRAGMENT + 1,
            size - size.min(&1),
            *size,
        ];
        let mut cuts: Vec<usize> = edges.into_iter().filter(|edge| edge <= size).collect();
        cuts.sort_unstable();
        let asked: Vec<(i64, i32)> = cuts
            .chunks_exact(2)
            .map(|pair| (i64::try_from(pair[0]).unwrap(), i32::try_from(pair[1] - pair[0]).unwrap()))
            .collect();
        let expected: Vec<u8> =
            cuts.chunks_exact(2).flat_map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect();
        assert_eq!(slices(fixture, &object, &asked).await.unwrap(), expected, "{what} {size} {asked:?}");
    }
}

#[test]
fn every_compression_encryption_shape_and_size_comes_back() {
    for policy in POLICIES {
        let chunk = FRAGMENT * usize::try_from(policy[0]).unwrap();
        let mut sizes =
            vec![0, 1, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 5];
        sizes.sort_unstable();
        sizes.dedup();
        for compression in Compression::ALL {
            for encrypted in [false, true] {
                let what = format!("{policy:?} {} encrypted: {encrypted}", compression.name());
                let (fixture, _dir) = if encrypted {
                    let Sealed { fixture, dir } = sealed(policy, compression, 0);
                    (fixture, Some(dir))
                } else {
                    let osds = policy[0] + policy[1];
                    (Fixture::new(osds, 9, preset(&[policy], 1024, compression)), None)
                };
                fixture.run(async {
                    for size in &sizes {
                        let stored = put(&fixture, &size.to_string(), &data(*size)).await.unwrap();
                        assert_eq!(stored.manifest.scheme.compression, compression);
                    }
                    check(&fixture, &sizes, &what).await;
                    if policy[1] > 0 {
                        fixture.backend.osd(osd(0)).set(|faults| faults.dead = true);
                        check(&fixture, &sizes, &format!("{what}, one away")).await;
                    }
                });
            }
        }
    }
}
