//! All contestants in turn, round after round on fresh buffers; medians and quartiles. A disturbance of the machine then
//! hits all alike, and the ratios mean something where absolute figures do not. Time is what the thread had of a CPU:
//! nothing here waits, so time that other processes took is nobody's.
//!
//! `cargo run --release -- [ROUNDS [FRAGMENT_BYTES…]]`: 11 rounds of 64 KiB and 1 MiB unless told.

use std::collections::BTreeMap;
use std::time::Duration;

use alba_core::erasure::kernel::Kernel;
use alba_core::policy::CodeShape;
use rustix::time::{ClockId, clock_gettime};

use erasure_peers::{Arena, Contestant, FRAGMENTS, Operation, SHAPES};

/// Time per contestant and round; the portable ones need a second for a few iterations.
const SLICE: Duration = Duration::from_millis(25);

/// CPU time of this thread.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().expect("after the start"),
        time.tv_nsec.try_into().expect("below a second"),
    )
}

fn rate(bytes: usize, once: &mut dyn FnMut()) -> f64 {
    let begin = used();
    let mut count = 0_u32;
    loop {
        once();
        count += 1;
        let elapsed = used() - begin;
        if elapsed >= SLICE {
            return bytes as f64 * f64::from(count) / elapsed.as_secs_f64() / 1e9;
        }
    }
}

fn quartiles(rates: &mut [f64]) -> (f64, f64, f64) {
    rates.sort_by(f64::total_cmp);
    (rates[rates.len() / 4], rates[rates.len() / 2], rates[3 * rates.len() / 4])
}

fn main() {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|arg| arg.parse().expect("a number of rounds or bytes")).collect();
    let rounds = numbers.first().copied().unwrap_or(11).max(1);
    let fragments = if numbers.len() > 1 { numbers[1..].to_vec() } else { FRAGMENTS.to_vec() };
    let contestants = Contestant::all();
    let names: Vec<&str> = contestants.iter().map(|contestant| contestant.name()).collect();
    let best = Kernel::available().next().map_or("portable", Kernel::name);
    println!("GB/s of user data, medians of {rounds} rounds; {best} and memcpy with their quartiles");
    println!(
        "| fragment | k+m | operation | memcpy | {} | {best} / memcpy | reconstruct_m / encode |",
        names.join(" | ")
    );
    println!("|{}", "---|".repeat(names.len() + 6));
    for len in fragments {
        for (k, m) in SHAPES {
            let shape = CodeShape::new(k, m).expect("a shape");
            let bytes = shape.k() * len;
            // Time by who and what; memcpy under no operation.
            let mut rates: BTreeMap<(Option<Operation>, usize), Vec<f64>> = BTreeMap::new();
            for round in 0..rounds {
                let mut arena = Arena::new(shape, len);
                // Another one begins each round.
                for turn in 0..=contestants.len() {
                    let who = (turn + round) % (contestants.len() + 1);
                    match contestants.get(who) {
                        None => {
                            let found = arena.memcpy(|once| rate(bytes, once));
                            rates.entry((None, 0)).or_default().push(found);
                        }
                        Some(contestant) => {
                            for operation in Operation::ALL {
                                let found = arena.run(operation, *contestant, |once| rate(bytes, once));
                                rates.entry((Some(operation), who)).or_default().push(found);
                            }
                        }
                    }
                }
            }
            let memcpy = quartiles(rates.get_mut(&(None, 0)).expect("measured"));
            let mut encode = f64::NAN;
            for operation in Operation::ALL {
                let cells: Vec<(f64, f64, f64)> = (0..contestants.len())
                    .map(|who| quartiles(rates.get_mut(&(Some(operation), who)).expect("measured")))
                    .collect();
                if operation == Operation::Encode {
                    encode = cells[0].1;
                }
                let others: Vec<String> = cells[1..].iter().map(|cell| format!("{:.1}", cell.1)).collect();
                let span = |cell: (f64, f64, f64)| format!("{:.1} ({:.1}–{:.1})", cell.1, cell.0, cell.2);
                let last = match operation {
                    Operation::ReconstructM => format!("{:.2}", cells[0].1 / encode),
                    _ => String::new(),
                };
                println!(
                    "| {} KiB | {k}+{m} | {} | {} | {} | {} | {:.2} | {last} |",
                    len >> 10,
                    operation.name(),
                    span(memcpy),
                    span(cells[0]),
                    others.join(" | "),
                    cells[0].1 / memcpy.1,
                );
            }
        }
    }
}
