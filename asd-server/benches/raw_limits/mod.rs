//! What this machine can do at all, measured with nothing of ALBA in the way, so that a bench can say which part of it
//! ALBA reaches: positioned writes, appends, reads, loopback TCP. To be called in the same run as what is compared.
//!
//! Every function blocks its thread for about as long as it is told, and gives a rate. Nothing here may be cleverer than
//! a plain program would be, nor slower: `raw` compares the disk part with fio's.

// A bench measures real time, files and sockets, and prints. Not every bench that includes this needs all of it.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub(crate) mod disk;
pub(crate) mod fio;
pub(crate) mod net;
pub(crate) mod store;

use std::io;
use std::path::Path;
use std::time::Duration;

/// What bounds a measurement, in the same unit: another measurement's name and its value.
#[derive(Clone)]
pub(crate) struct Limit {
    pub(crate) name: String,
    pub(crate) value: f64,
}

/// One line of output.
pub(crate) struct Measurement {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) limit: Option<Limit>,
}

impl Measurement {
    /// One JSON object. `limit` is the bound's value and `ratio` value / limit; both null where there is none.
    pub(crate) fn json(&self) -> String {
        let value = serde_json::json!({
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "limit": self.limit.as_ref().map(|limit| rounded(limit.value)),
            "limit_name": self.limit.as_ref().map(|limit| &limit.name),
            "ratio": self.limit.as_ref().map(|limit| rounded(self.value / limit.value)),
        });
        value.to_string()
    }

    /// Prints it.
    pub(crate) fn print(&self) {
        println!("{}", self.json());
    }
}

/// Four digits after the point are more than is known.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// Middle value; of an even number of them the lower of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

/// Runs the candidates in turn, `rounds` times, so that all see the same weather; their medians.
pub(crate) fn interleaved<const N: usize>(
    rounds: usize,
    mut candidates: [&mut dyn FnMut() -> io::Result<f64>; N],
) -> io::Result<[f64; N]> {
    let mut values: [Vec<f64>; N] = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (candidate, values) in candidates.iter_mut().zip(&mut values) {
            values.push(candidate()?);
        }
    }
    Ok(values.map(median))
}

/// Seconds per measurement and rounds, from ALBA_BENCH_SECONDS (2) and ALBA_BENCH_ROUNDS (3).
pub(crate) fn settings() -> (Duration, usize) {
    settings_or(2, 3)
}

/// The same with other defaults.
pub(crate) fn settings_or(seconds: u64, rounds: u64) -> (Duration, usize) {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |value| value.parse().expect("a whole number"))
    };
    let rounds = usize::try_from(number("ALBA_BENCH_ROUNDS", rounds)).expect("a small number");
    (Duration::from_secs(number("ALBA_BENCH_SECONDS", seconds)), rounds.max(1))
}

/// A directory to measure in, on the file system of ALBA_BENCH_DIR or of the build. Never a RAM disk by accident, as
/// /tmp often is.
pub(crate) fn directory() -> io::Result<tempfile::TempDir> {
    let parent = std::env::var("ALBA_BENCH_DIR").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    std::fs::create_dir_all(Path::new(&parent))?;
    tempfile::tempdir_in(parent)
}
