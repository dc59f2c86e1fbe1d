//! The bodies of the fuzz targets of this crate, as `alba_core::fuzz` tells: each takes any bytes and panics when
//! something is wrong.
//!
//! Only built for tests and with the feature `fuzzing`; nothing that ships has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a body fails by panicking")]

mod frames;

use alba_core::fuzz::Body;

pub use crate::engine::fuzz::{asd_operations, asd_records};
pub use frames::asd_frames;

/// Every target of this crate.
pub const TARGETS: &[(&str, Body)] =
    &[("asd_frames", asd_frames), ("asd_records", asd_records), ("asd_operations", asd_operations)];

#[cfg(test)]
mod tests {
    use alba_core::fuzz::run_seeded;

    use super::*;

    #[test]
    fn frames_hold_on_thousands_of_seeded_inputs() {
        run_seeded("asd_frames", asd_frames, 20_000, 600);
    }

    #[test]
    fn records_hold_on_thousands_of_seeded_inputs() {
        run_seeded("asd_records", asd_records, 4_000, 400);
    }

    #[test]
    fn operations_hold_on_a_thousand_seeded_inputs() {
        run_seeded("asd_operations", asd_operations, 1_500, 600);
    }

    #[test]
    fn operations_notice_built_in_faults() {
        use crate::engine::fuzz::{Sabotage, with_fault};
        for fault in [Sabotage::NoSync, Sabotage::DropTombstones] {
            let run = || run_seeded("asd_operations", asd_operations, 20_000, 600);
            let noticed = with_fault(fault, || std::panic::catch_unwind(run).is_err());
            assert!(noticed, "{fault:?} was not noticed");
        }
    }

    #[test]
    fn every_body_has_its_target() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz");
        let manifest = std::fs::read_to_string(format!("{folder}/Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            let target = std::fs::read_to_string(format!("{folder}/fuzz_targets/{name}.rs")).unwrap();
            assert!(target.contains(&format!("asd_server::fuzz::{name}")), "{name} calls its body");
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is in fuzz/Cargo.toml");
        }
    }
}
