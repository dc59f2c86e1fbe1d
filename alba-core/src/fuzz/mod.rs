//! The bodies of the fuzz targets of this crate: each takes any bytes and panics when something is wrong.
//!
//! A body is an ordinary function, so that two things run it: the `fuzz` package (`just fuzz NAME SECONDS`), which hunts
//! with coverage, and the tests below, which feed some thousands of seeded inputs to every body in each CI run. A new
//! target is a module here with its function in [`TARGETS`], and `fuzz/fuzz_targets/NAME.rs` of five lines; a body over
//! another crate's code lives in that crate and uses [`run_seeded`] in its tests.
//!
//! Only built for tests and with the feature `fuzzing`; nothing that ships has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a body fails by panicking")]

mod erasure;

pub use erasure::erasure;

/// A body: any bytes in, a panic on a fault.
pub type Body = fn(&[u8]);

/// Every target of this crate.
pub const TARGETS: &[(&str, Body)] = &[("erasure", erasure)];

/// Runs a body on `count` inputs of up to `longest` bytes. The same seed gives the same inputs; a failure names the one
/// that failed, and `fuzz/README.md` says how to run it alone.
pub fn run_seeded(name: &str, body: Body, count: u64, longest: usize) {
    for seed in 0..count {
        let input = seeded_input(name, seed, longest);
        let outcome = std::panic::catch_unwind(|| body(&input));
        if outcome.is_err() {
            panic!("fuzz target {name}, input {seed} (hex): {}", hex::encode(&input));
        }
    }
}

/// One input: random bytes, of every length up to `longest`, short ones as often as long ones.
fn seeded_input(name: &str, seed: u64, longest: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes()).update(&seed.to_le_bytes());
    let mut stream = hasher.finalize_xof();
    let mut draw = [0; 8];
    stream.fill(&mut draw);
    let [shift, draw @ ..] = draw;
    let draw = draw.iter().fold(0, |sum: usize, byte| sum.wrapping_mul(256).wrapping_add(usize::from(*byte)));
    let bound = (longest >> (shift % 8)).max(1);
    let mut input = vec![0; draw % (bound + 1)];
    stream.fill(&mut input);
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_holds_on_thousands_of_seeded_inputs() {
        for (name, body) in TARGETS {
            run_seeded(name, *body, 3000, 512);
        }
    }

    #[test]
    fn a_fault_names_its_input() {
        let body: Body = |input| assert!(input.len() < 20, "too long");
        let message = std::panic::catch_unwind(|| run_seeded("example", body, 1000, 64)).unwrap_err();
        let message = message.downcast_ref::<String>().unwrap();
        let (_, input) = message.split_once("(hex): ").unwrap();
        assert!(hex::decode(input).unwrap().len() >= 20, "{message}");
    }

    #[test]
    fn every_body_has_its_target() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz");
        let manifest = std::fs::read_to_string(format!("{folder}/Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            let target = std::fs::read_to_string(format!("{folder}/fuzz_targets/{name}.rs")).unwrap();
            assert!(target.contains(&format!("fuzz::{name}")), "{name} calls its body");
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is in fuzz/Cargo.toml");
        }
    }
}
