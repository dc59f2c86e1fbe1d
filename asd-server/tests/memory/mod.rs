//! Memory of the real program: bounded by its configuration, however much it stores. The long one stores a hundredth of
//! 1 TiB in values of 1 MiB with everything configured as it comes (`just asd-memory`):
//! `cargo test --release -p asd-server --test process memory -- --ignored --nocapture`.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "clients of the real program; the figures are shown"
)]

use alba_core::env::osd::ValueSlice;

use super::*;

const CLIENTS: u64 = 16;
const MIB: u64 = 1 << 20;

/// The bound for a disk of 1 TiB, as docs/performance.md adds it up.
const PROMISED: u64 = 256 * MIB;

/// A value of 1 MiB that no other has.
fn large(nth: u64) -> StoredValue {
    let value: Vec<u8> = (0..MIB / 8).flat_map(|word| (nth << 32 | word).to_le_bytes()).collect();
    StoredValue { checksum: ChecksumAlgorithm::Crc32c.of(&value), value: value.into() }
}

fn name(nth: u64) -> OsdKey {
    // About as long as the keys of fragments are.
    format!("namespace-0001/object-{nth:020}/fragment-00-00").into()
}

/// The most memory a process ever had resident, in bytes.
fn peak(asd: &fixture::Asd) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", asd.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// What the files below a directory take, in bytes.
fn size_of(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() { size_of(&entry.path()) } else { entry.metadata().map_or(0, |found| found.len()) }
    });
    sizes.sum()
}

/// All clients do their part of `0..values`, each one thing at a time.
async fn all<F: Future<Output = ()> + Send>(
    env: &Env,
    address: SocketAddr,
    values: u64,
    work: impl Fn(Arc<AsdClient>, u64) -> F + Copy + Send + 'static,
) {
    let tasks = (0..CLIENTS).map(|number| {
        let osd = client(env, address);
        tokio::spawn(async move {
            for nth in (number..values).step_by(usize::try_from(CLIENTS).unwrap()) {
                work(osd.clone(), nth).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// Stores so many values, replaces a tenth of them, reads all of them whole and in part, and starts again. The most
/// memory that the first and the second daemon had.
async fn store_and_read(values: u64, set: &[&str]) -> (u64, u64) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let env = real::env();
    let address = free_address();
    let first = start(&env, directory.path(), address, set).await;
    let long = || real::env().deadline_in(Duration::from_secs(120));
    let put = move |osd: Arc<AsdClient>, nth| async move {
        let batch = OsdBatch { asserts: Vec::new(), updates: vec![OsdUpdate::Set(name(nth), large(nth))] };
        osd.apply(batch, Priority::High, long()).await.unwrap();
    };
    let get = move |osd: Arc<AsdClient>, nth| async move {
        let found = osd.multi_get(vec![name(nth)], Priority::High, long()).await.unwrap();
        assert_eq!(found, [Some(large(nth))]);
        let slices = vec![ValueSlice { offset: 8192, len: 4096 }];
        let found = osd.partial_get(name(nth), slices, Priority::High, long()).await.unwrap().unwrap();
        assert_eq!(found, [large(nth).value.slice(8192..12_288)]);
    };
    all(&env, address, values, put).await;
    all(&env, address, values / 10, put).await;
    all(&env, address, values, get).await;
    let before = peak(&first);
    drop(first);
    // Killed: it finds again what its index had not got yet.
    let second = start(&env, directory.path(), address, set).await;
    all(&env, address, values / 10, get).await;
    let after = peak(&second);
    println!(
        "{values} values of 1 MiB: {} MiB at most, {} MiB after another start; index {} MiB on the disk",
        before / MIB,
        after / MIB,
        size_of(&directory.path().join("index")) / MIB
    );
    (before, after)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_by_the_configuration_not_by_what_is_stored() {
    let set = [
        "max_in_flight_bytes=8388608",
        "io_buffer_bytes=16777216",
        "block_cache_bytes=2097152",
        "entry_cache_bytes=1048576",
        "index_cache_bytes=2097152",
    ];
    // Requests and answers 9 and 8, the rest as configured, five memtables of 4, and 30 for the program, its threads and
    // what the allocator does not give back.
    let bound = (9 + 8 + 16 + 2 + 1 + 2 + 20 + 30) * MIB;
    let values = 320;
    let (before, after) = store_and_read(values, &set).await;
    assert!(values * MIB > 3 * bound, "else it would show nothing");
    assert!(before <= bound, "{before} bytes; {bound} were promised");
    assert!(after <= bound, "{after} bytes after another start; {bound} were promised");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes 11 GiB"]
async fn memory_for_a_hundredth_of_a_tebibyte() {
    let (before, after) = store_and_read(10_486, &["segment_bytes=67108864"]).await;
    assert!(before <= PROMISED, "{before} bytes; {PROMISED} were promised");
    assert!(after <= PROMISED, "{after} bytes after another start; {PROMISED} were promised");
}
