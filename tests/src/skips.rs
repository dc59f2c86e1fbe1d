//! Tests that cannot run on every machine: they say so, with the reason, where people see it.
//!
//! The line goes to standard error past the test harness, which shows nothing of tests that pass, and to `target/skipped-tests`,
//! which `.ci/run` prints at its end. CONTRIBUTING.md lists who may skip; with `ALBA_TEST_NO_SKIPS` set nobody may.

use std::fs::File;
use std::io::Write;

use crate::repository::root;

/// Notes that a test does not run here.
///
/// # Panics
///
/// When the environment says that all tests must run.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("ALBA_TEST_NO_SKIPS").is_none(), "{test} would be skipped: {reason}");
    let line = format!("skipped: {test}: {}\n", reason.trim().replace('\n', "; "));
    drop(std::io::stderr().write_all(line.as_bytes()));
    let list = File::options().create(true).append(true).open(root().join("target/skipped-tests"));
    drop(list.and_then(|mut list| list.write_all(line.as_bytes())));
}
