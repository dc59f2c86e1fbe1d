//! Objects of all sizes, stored through the proxy, are read back equal with storage daemons killed.
//!
//! `ALBA_LONG_TESTS=1` adds an object of 1 GiB.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::path::Path;

use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::{content, process};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const MIB: u64 = 1 << 20;

const SIZES: [u64; 10] = [0, 1, 15, 16, 80, 4095, MIB - 1, 4 * MIB, 5 * MIB + 1, 12_345_678];

/// What the proxy may hold of objects that are being read or written: the only part of its memory that could grow with
/// them.
const IN_FLIGHT: u64 = 32 * MIB;

/// What a proxy needs beside that: programs, threads' stacks, connections' buffers to 12 OSDs, and above all freed buffers
/// that the C library's allocator keeps per thread (98 MiB seen). Together with the above it is still
/// less than the coded object takes (160 MiB of data, 128 MiB of parity): a proxy that kept the object would be found out.
const BESIDE: u64 = 160 * MIB;

/// An object much larger than what the proxy may hold.
fn large() -> u64 {
    if std::env::var_os("ALBA_LONG_TESTS").is_some() { 1 << 30 } else { 160 * MIB }
}

fn options() -> Options {
    Options::new(env!("CARGO_BIN_EXE_alba-under-test"))
}

async fn store(user: &mut User, directory: &Path, name: &str, size: u64) {
    let file = directory.join("to-store");
    content::write_file(&file, name, size).unwrap();
    user.upload(name, &file, false).await.unwrap_or_else(|error| panic!("upload of {name}: {error}"));
}

/// Reads an object whole and in random pieces.
async fn check(user: &mut User, directory: &Path, name: &str, size: u64, rng: &mut StdRng) {
    assert_eq!(user.size(name).await.unwrap(), size);
    let file = directory.join("read-back");
    user.download(name, &file).await.unwrap_or_else(|error| panic!("download of {name}: {error}"));
    content::check_file(&file, name, size).unwrap();
    std::fs::remove_file(&file).unwrap();
    for _ in 0..12 {
        let slices = random_slices(size, rng);
        let expected: Vec<u8> = slices
            .iter()
            .flat_map(|&(offset, length)| {
                content::slice(name, u64::try_from(offset).unwrap(), usize::try_from(length).unwrap())
            })
            .collect();
        let found = user
            .slices(name, &slices)
            .await
            .unwrap_or_else(|error| panic!("{slices:?} of {name} ({size} bytes): {error}"));
        assert!(found == expected, "{slices:?} of {name} ({size} bytes) differ");
    }
}

/// Up to four slices that do not overlap, in order; often next to multiples of 1 MiB, where fragments meet.
fn random_slices(size: u64, rng: &mut StdRng) -> Vec<(i64, i32)> {
    let mut cuts: Vec<u64> = (0..2 * rng.random_range(1..=4))
        .map(|_| {
            if rng.random_bool(0.5) {
                let near = rng.random_range(0..=size / MIB) * MIB;
                (near + rng.random_range(0..64)).saturating_sub(32).min(size)
            } else {
                rng.random_range(0..=size)
            }
        })
        .collect();
    cuts.sort_unstable();
    cuts.chunks(2)
        .map(|pair| {
            let length = (pair[1] - pair[0]).min(3 * MIB);
            (i64::try_from(pair[0]).unwrap(), i32::try_from(length).unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_all_sizes_are_read_back_with_osds_killed() {
    let mut options = options();
    options.env.push(("ALBA_PROXY__CLIENT__MAX_BYTES_IN_FLIGHT".to_owned(), IN_FLIGHT.to_string()));
    let cluster = Cluster::start("first-light", options);
    let directory = cluster.scratch().to_owned();
    let mut user = User::new(cluster.proxy(), "first-light");
    let mut rng = StdRng::seed_from_u64(1);
    user.create_namespace().await.unwrap();

    let mut objects: Vec<(String, u64)> =
        SIZES.iter().map(|size| (format!("healthy {size}"), *size)).collect();
    objects.push(("healthy large".to_owned(), large()));
    for (name, size) in &objects {
        store(&mut user, &directory, name, *size).await;
    }

    // On two different nodes; every chunk uses 9 of the 12 OSDs.
    cluster.kill_osd(1);
    cluster.kill_osd(7);
    for (name, size) in &objects {
        check(&mut user, &directory, name, *size, &mut rng).await;
    }

    // Stored while they are dead.
    let later: Vec<(String, u64)> = SIZES.iter().map(|size| (format!("degraded {size}"), *size)).collect();
    for (name, size) in &later {
        store(&mut user, &directory, name, *size).await;
    }
    objects.extend(later);
    for (name, size) in &objects {
        check(&mut user, &directory, name, *size, &mut rng).await;
    }
    let mut expected: Vec<String> = objects.iter().map(|(name, _)| name.clone()).collect();
    expected.sort();
    assert_eq!(user.list().await.unwrap(), expected);

    let peak = process::memory(cluster.pid("proxy-0")).peak;
    println!("peak RSS of the proxy with an object of {} MiB: {} MiB", large() / MIB, peak / MIB);
    // Requests and answers each have the configured room.
    let bound = 2 * IN_FLIGHT + BESIDE;
    assert!(peak < bound, "the proxy had {} MiB, more than {} MiB", peak / MIB, bound / MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_read_back_with_as_many_osds_killed_as_the_policy_has_parity() {
    let cluster = Cluster::start("four-dead", options());
    let directory = cluster.scratch().to_owned();
    let mut user = User::new(cluster.proxy(), "demo");
    let mut rng = StdRng::seed_from_u64(2);
    for size in SIZES {
        store(&mut user, &directory, &format!("object {size}"), size).await;
    }
    // 5 + 4: any four, also three of one node.
    for index in [0, 1, 2, 9] {
        cluster.kill_osd(index);
    }
    for size in SIZES {
        check(&mut user, &directory, &format!("object {size}"), size, &mut rng).await;
    }
}
