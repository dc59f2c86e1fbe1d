//! The same contestants under criterion: `cargo bench`. Ids: `erasure/<operation>/<kernel>/<k>+<m>/<fragment bytes>` and
//! `erasure/memcpy/<k>+<m>/<fragment bytes>`; throughput in bytes of user data. For ratios the interleaved
//! program (`cargo run --release`) is the better judge.

use std::time::Duration;

use alba_core::policy::CodeShape;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use erasure_peers::{Arena, Contestant, FRAGMENTS, Operation, SHAPES};

fn measure(criterion: &mut Criterion, what: &str, shape: CodeShape, len: usize, once: &mut dyn FnMut()) {
    let mut group = criterion.benchmark_group(format!("erasure/{what}"));
    group.throughput(Throughput::Bytes(u64::try_from(shape.k() * len).expect("small")));
    group.sampling_mode(SamplingMode::Flat).sample_size(15);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
    let id = BenchmarkId::new(format!("{}+{}", shape.k(), shape.m()), len);
    group.bench_function(id, |bencher| bencher.iter(&mut *once));
    group.finish();
}

fn peers(criterion: &mut Criterion) {
    for len in FRAGMENTS {
        for (k, m) in SHAPES {
            let shape = CodeShape::new(k, m).expect("a shape");
            let mut arena = Arena::new(shape, len);
            arena.memcpy(|once| measure(criterion, "memcpy", shape, len, once));
            for contestant in Contestant::all() {
                for operation in Operation::ALL {
                    let what = format!("{}/{}", operation.name(), contestant.name());
                    arena.run(operation, contestant, |once| measure(criterion, &what, shape, len, once));
                }
            }
        }
    }
}

criterion_group!(benches, peers);
criterion_main!(benches);
