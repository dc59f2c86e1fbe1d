//! The erasure code beside memcpy, in the same run: `cargo bench -p alba-core --bench erasure`.
//!
//! Ids: `erasure/<encode|reconstruct1|reconstruct_m>/<kernel>/<k>+<m>/<fragment bytes>` and
//! `erasure/memcpy/<k>+<m>/<fragment bytes>`. Throughput counts user data: k × fragment bytes, whatever is computed.
//! Kernels: those of `alba_core::erasure::kernel` that this CPU has (ALBA runs the first of them), and `crate`, which is
//! `reed-solomon-erasure` through its own interface, for comparison. `reconstruct1` loses one data fragment, `reconstruct_m`
//! m of them. memcpy copies the k data fragments: about what it costs to touch the data at all. Buffers lie as ALBA has
//! them: data fragments are slices of one chunk, outputs slices of one allocation. After the runs a table shows medians
//! and ratios to memcpy. `benches/erasure-peers` compares with other libraries, and on a noisy machine judges better.

// A bench is an edge: it measures real time and prints.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use alba_core::erasure;
use alba_core::erasure::Apart;
use alba_core::erasure::kernel::Kernel;
use alba_core::ids::FragmentIndex;
use alba_core::policy::CodeShape;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reed_solomon_erasure::galois_8::ReedSolomon;

const SHAPES: [(u8, u8); 6] = [(2, 1), (4, 2), (5, 4), (8, 4), (10, 4), (16, 4)];
const FRAGMENTS: [usize; 2] = [64 << 10, 1 << 20];

/// Time per iteration of every sample, by (shape, fragment bytes, operation/kernel).
type Samples = BTreeMap<(CodeShape, usize, String), Vec<Duration>>;

struct Bench<'a> {
    criterion: &'a mut Criterion,
    samples: RefCell<Samples>,
    /// Bytes of each fragment.
    fragment: usize,
}

impl Bench<'_> {
    fn run(&mut self, what: &str, shape: CodeShape, mut work: impl FnMut()) {
        // Once untimed: a filter may leave out the runs, but not what is compared after them.
        work();
        let mut group = self.criterion.benchmark_group(format!("erasure/{what}"));
        group.throughput(Throughput::Bytes(u64::try_from(shape.k() * self.fragment).unwrap()));
        group.sampling_mode(SamplingMode::Flat).sample_size(15);
        group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
        let (samples, fragment) = (&self.samples, self.fragment);
        let id = BenchmarkId::new(format!("{}+{}", shape.k(), shape.m()), self.fragment);
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    work();
                }
                let elapsed = start.elapsed();
                let each = elapsed / u32::try_from(iterations).unwrap();
                samples.borrow_mut().entry((shape, fragment, what.to_owned())).or_default().push(each);
                elapsed
            });
        });
        group.finish();
    }

    fn memcpy(&mut self, shape: CodeShape, data: &[&[u8]]) {
        let mut memory = vec![0; Apart::memory(shape.k(), self.fragment)];
        let mut copies = Apart::new(&memory, shape.k(), self.fragment, data[0]).split(&mut memory);
        self.run("memcpy", shape, || {
            for (copy, source) in copies.iter_mut().zip(data) {
                black_box(&mut **copy).copy_from_slice(black_box(source));
            }
        });
    }

    fn kernel(&mut self, kernel: Kernel, shape: CodeShape, data: &[&[u8]]) -> Vec<Vec<u8>> {
        let code = erasure::code_on(shape, kernel);
        let mut memory = vec![0; Apart::memory(shape.m(), self.fragment)];
        let mut parity = Apart::new(&memory, shape.m(), self.fragment, data[0]).split(&mut memory);
        self.run(&format!("encode/{}", code.kernel()), shape, || {
            code.encode(black_box(data), black_box(&mut parity)).unwrap();
        });
        let all: Vec<&[u8]> = data.iter().copied().chain(parity.iter().map(|parity| &**parity)).collect();
        for (operation, lost) in [("reconstruct1", 1), ("reconstruct_m", shape.m())] {
            let present: Vec<_> = (0..).map(FragmentIndex).zip(all.iter().copied()).skip(lost).collect();
            let mut memory = vec![0; Apart::memory(lost, self.fragment)];
            let buffers = Apart::new(&memory, lost, self.fragment, data[0]).split(&mut memory);
            let mut wanted: Vec<_> = (0..).map(FragmentIndex).zip(buffers).collect();
            self.run(&format!("{operation}/{}", code.kernel()), shape, || {
                code.reconstruct(black_box(&present), black_box(&mut wanted)).unwrap();
            });
            assert!(
                wanted.iter().zip(data).all(|((_, rebuilt), original)| rebuilt == original),
                "wrong bytes"
            );
        }
        parity.iter().map(|parity| parity.to_vec()).collect()
    }

    fn crate_itself(&mut self, shape: CodeShape, data: &[&[u8]]) -> Vec<Vec<u8>> {
        let code = ReedSolomon::new(shape.k(), shape.m()).unwrap();
        let mut parity = vec![vec![0; self.fragment]; shape.m()];
        self.run("encode/crate", shape, || {
            code.encode_sep(black_box(data), black_box(&mut parity)).unwrap();
        });
        for (operation, lost) in [("reconstruct1", 1), ("reconstruct_m", shape.m())] {
            // Present or not, with the buffer there in both cases: no allocation is measured.
            let mut shards: Vec<(Vec<u8>, bool)> = data
                .iter()
                .copied()
                .chain(parity.iter().map(Vec::as_slice))
                .map(|fragment| (fragment.to_vec(), true))
                .collect();
            self.run(&format!("{operation}/crate"), shape, || {
                shards.iter_mut().take(lost).for_each(|shard| shard.1 = false);
                code.reconstruct_data(black_box(&mut shards)).unwrap();
            });
            assert!(
                shards.iter().zip(data).all(|((rebuilt, _), original)| rebuilt == original),
                "wrong bytes"
            );
        }
        parity
    }
}

fn median(samples: &[Duration]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2].as_secs_f64()
}

fn print_table(samples: &Samples) {
    println!("\nGB/s of user data (medians), and the share of memcpy's speed in the same run");
    println!("| k+m | bytes | memcpy | operation | kernel | GB/s | of memcpy |\n|-|-|-|-|-|-|-|");
    for ((shape, fragment, what), times) in samples {
        let Some((operation, kernel)) = what.split_once('/') else { continue };
        #[allow(clippy::cast_precision_loss)]
        let rate = |times: &[Duration]| (shape.k() * fragment) as f64 / median(times) / 1e9;
        let key = (*shape, *fragment, "memcpy".to_owned());
        let Some(memcpy) = samples.get(&key).map(|times| rate(times)) else { continue };
        let speed = rate(times);
        let (k, m) = (shape.k(), shape.m());
        println!(
            "| {k}+{m} | {fragment} | {memcpy:.1} | {operation} | {kernel} | {speed:.2} | {:.3} |",
            speed / memcpy
        );
    }
}

fn erasure_code(criterion: &mut Criterion) {
    let mut bench = Bench { criterion, samples: RefCell::default(), fragment: 0 };
    for fragment in FRAGMENTS {
        bench.fragment = fragment;
        for (k, m) in SHAPES {
            let shape = CodeShape::new(k, m).unwrap();
            let mut rng = StdRng::seed_from_u64(u64::from(k));
            let mut chunk = vec![0; shape.k() * fragment];
            rng.fill_bytes(&mut chunk);
            let data: Vec<&[u8]> = chunk.chunks_exact(fragment).collect();
            bench.memcpy(shape, &data);
            let parity = bench.crate_itself(shape, &data);
            for kernel in Kernel::available() {
                assert!(parity == bench.kernel(kernel, shape, &data), "{kernel} disagrees on parity");
            }
        }
    }
    print_table(&bench.samples.borrow());
}

criterion_group!(benches, erasure_code);
criterion_main!(benches);
