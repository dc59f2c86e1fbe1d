//! A measurement, not a test: what clients and maintenance cost each other on the real program. Prints ratios of one run:
//! `cargo test --release -p asd-server --test process load -- --ignored --nocapture`.

use std::sync::atomic::AtomicU64;

use alba_core::checksum::Checksum;
use alba_core::env::osd::ValueSlice;

use super::*;

const VALUES: u64 = 64;
const MIB: usize = 1 << 20;

fn name(nth: u64) -> OsdKey {
    format!("v{nth}").into()
}

/// Reads whole values in a class for ever, and counts their bytes.
fn load(
    env: &Env,
    osd: &Arc<AsdClient>,
    readers: u64,
    priority: Priority,
    moved: &Arc<AtomicU64>,
) -> Vec<TaskHandle> {
    let start = |reader| {
        let (inner, osd, moved) = (env.clone(), osd.clone(), moved.clone());
        let task = async move {
            for nth in reader.. {
                let found = osd.multi_get(vec![name(nth % VALUES)], priority, inner.deadline_in(WAIT)).await;
                if found.is_ok() {
                    moved.fetch_add(MIB as u64, Ordering::Relaxed);
                }
            }
        };
        env.spawn.spawn("load", Box::pin(task))
    };
    (0..readers).map(start).collect()
}

/// The p99 of a client that reads `len` bytes again and again, in microseconds.
async fn p99(env: &Env, osd: &AsdClient, len: u32) -> u128 {
    let mut times = Vec::new();
    for nth in 0..2000_u64 {
        let offset = u32::try_from(nth % 200).unwrap() * 4096;
        let begun = env.clock.now();
        let slice = vec![ValueSlice { offset, len }];
        osd.partial_get(name(nth % VALUES), slice, Priority::High, env.deadline_in(WAIT)).await.unwrap();
        times.push(env.clock.now().since(begun).as_micros());
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn clients_beside_maintenance() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let env = real::env();
    let address = free_address();
    let _asd = start(&env, directory.path(), address, &[]).await;
    let (clients, maintenance) = (client(&env, address), client(&env, address));
    for nth in 0..VALUES {
        let value = StoredValue { value: vec![nth.to_le_bytes()[0]; MIB].into(), checksum: Checksum::None };
        let batch = OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Set(name(nth), value)] };
        clients.apply(batch, Priority::High, env.deadline_in(WAIT)).await.unwrap();
    }
    let moved = Arc::new(AtomicU64::new(0));
    let since = async |seconds: u64| {
        let before = moved.load(Ordering::Relaxed);
        env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(seconds))).await;
        (moved.load(Ordering::Relaxed) - before) / seconds
    };
    for len in [4096, 65_536] {
        let alone = p99(&env, &clients, len).await;
        for (class, priority) in [("low", Priority::Low), ("high", Priority::High)] {
            let tasks = load(&env, &maintenance, 10, priority, &moved);
            let beside = p99(&env, &clients, len).await;
            tasks.iter().for_each(TaskHandle::abort);
            println!(
                "{len} bytes: p99 {alone} us alone, {beside} us beside {class} load: {:.1} x",
                beside as f64 / alone as f64
            );
        }
    }
    let tasks = load(&env, &maintenance, 10, Priority::Low, &moved);
    let alone = since(3).await;
    let all_high = Arc::new(AtomicU64::new(0));
    let others = load(&env, &clients, 10, Priority::High, &all_high);
    let beside = since(3).await;
    tasks.iter().chain(&others).for_each(TaskHandle::abort);
    let high = all_high.load(Ordering::Relaxed) / 3;
    println!(
        "low: {} MB/s alone, {} MB/s beside {} MB/s of high: {:.1} %",
        alone / 1_000_000,
        beside / 1_000_000,
        high / 1_000_000,
        100.0 * beside as f64 / (beside + high) as f64
    );
}
