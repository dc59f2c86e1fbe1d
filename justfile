# The list of commands. `just` alone shows it; each line can be copied into a shell without just.

_default:
    @just --list

# What continuous integration does.
ci:
    .ci/run

# Format, compile and lint.
check: fmt lint

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets -- -D warnings

# All tests, processes included.
test *args:
    cargo test --workspace {{args}}

# More seeds of the simulation than CI runs: just seeds 500
seeds count="200":
    ALBA_SIM_SEEDS={{count}} cargo test --release -p alba-tests --test simulation -- --nocapture

# Metadata under faults for so many seconds, with a seed; the history is checked for linearizability: just jepsen-like 3600 7
jepsen-like seconds="600" seed="1":
    ALBA_JEPSEN_SECONDS={{seconds}} ALBA_TEST_SEED={{seed}} cargo test --release -p alba-tests --test linearizability histories_under_faults -- --nocapture

# The tests that take long: an object of 1 GiB, more kills, agents that also stop at every step of their work (debug builds only).
test-long:
    ALBA_LONG_TESTS=1 cargo test --release -p alba-tests --test first_light --test kill_everything -- --nocapture
    ALBA_LONG_TESTS=1 cargo test -p alba-tests --test maintenance_kills --test rebalance_kills

# 64 uploads of 256 MiB at once: the proxy stays below 512 MiB. Takes 30 GiB of disk.
upload-memory:
    ALBA_LONG_TESTS=1 cargo test --release -p alba-tests --test upload_memory -- --nocapture

# Ten thousand power cuts of the storage engine, counted by what it was doing; ALBA_ASD_SEED repeats from a seed.
crash-asd count="10000":
    ALBA_ASD_CRASHES={{count}} cargo test --release -p asd-server --lib engine::tests::proof::power -- --nocapture

# Erasure code beside memcpy.
bench *args:
    cargo bench -p alba-core --bench erasure {{args}}

# Erasure code beside ISA-L and the crate's simd-accel build, all in turn: just bench-erasure-peers [ROUNDS [BYTES...]]
bench-erasure-peers *args:
    cd benches/erasure-peers && cargo run --release --locked -- {{args}}

# The storage daemon over TCP beside disk and loopback, in the same run: just bench-asd asd/put/1048576
bench-asd *args:
    cargo bench -p asd-server --bench asd -- {{args}}

# Memory of the storage daemon while it stores a hundredth of 1 TiB: 11 GiB below target, removed afterwards.
asd-memory:
    cargo test --release -p asd-server --test process memory -- --ignored --nocapture

# Metadata commits, listings and restarts beside the store alone, raw syncs and, where it is installed, etcd: just bench-metadata /256
bench-metadata *args:
    cargo bench -p alba-metadata --bench metadata -- {{args}}

# Puts, gets and slices through a proxy and twelve daemons, beside loopback TCP and the disk: just bench-proxy proxy/slice
bench-proxy *args:
    cargo bench -p alba-tests --bench proxy -- {{args}}

# A lost node rebuilt beside a raw copy, and what clients feel of it: ALBA_BENCH_MIB=8192 just bench-repair
bench-repair *args:
    cargo bench -p alba-tests --bench repair -- {{args}}

# Empty OSDs filled beside a raw copy, and what clients feel of it: ALBA_BENCH_CAPACITY_MIB=4096 just bench-rebalance
bench-rebalance *args:
    cargo bench -p alba-tests --bench rebalance -- {{args}}

# How long clients wait while a namespace of 100000 objects moves to another metadata group (ALBA_MOVE_OBJECTS: another number).
move-pause:
    cargo test --release -p alba-tests --test move_pause -- --ignored --nocapture

# How long slices take beside a slow disk, and beside a stopped one: lines of JSON.
slow-disk:
    cargo test --release -p alba-tests --test slow_disk -- --ignored --nocapture

# Coverage-guided fuzzing, see fuzz/README.md: just fuzz erasure 60
fuzz name seconds="60":
    RUSTC_BOOTSTRAP=1 cargo fuzz run {{name}} -- -max_total_time={{seconds}}

# A whole cluster on this machine.
up *args:
    cargo run --release -- up {{args}}

# Stores files, kills OSDs, reads back, tells.
demo *args:
    cargo run --release -- demo {{args}}

# Licences, advisories and sources of the dependencies (needs cargo-deny).
deny:
    cargo deny check
