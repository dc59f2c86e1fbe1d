//! `docs/requirements.toml` tells the truth.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::fs;

use alba_tests::repository::{root, test_functions};
use alba_tests::requirements::{Lookup, Requirements, faults, without_row};

/// Everything that must have a row.
const ITEMS: [&str; 85] = [
    "2.1",
    "2.2",
    "2.3",
    "2.4",
    "2.5",
    "2.6",
    "2.7",
    "2.8",
    "2.bad-input",
    "2.shows.1",
    "2.shows.2",
    "2.shows.3",
    "2.shows.4",
    "3.1",
    "3.2",
    "3.3",
    "3.4",
    "3.5",
    "3.shows.1",
    "4.1",
    "4.2",
    "4.3",
    "4.4",
    "4.5",
    "4.6",
    "4.7",
    "4.8",
    "4.9",
    "4.10",
    "4.shows.1",
    "4.shows.2",
    "4.shows.3",
    "4.shows.4",
    "4.shows.5",
    "5.1",
    "5.2",
    "5.3",
    "5.4",
    "5.5",
    "5.6",
    "5.7",
    "5.8",
    "5.shows.1",
    "5.shows.2",
    "5.shows.3",
    "5.shows.4",
    "5.shows.5",
    "6.1",
    "6.2",
    "6.3",
    "6.4",
    "6.5",
    "6.6",
    "6.7",
    "6.8",
    "6.9",
    "6.shows.1",
    "6.shows.2",
    "6.shows.3",
    "6.shows.4",
    "6.shows.5",
    "7.1",
    "7.2",
    "7.3",
    "7.4",
    "7.5",
    "7.6",
    "7.7",
    "7.8",
    "7.shows.1",
    "7.shows.2",
    "7.shows.3",
    "7.shows.4",
    "7.shows.5",
    "7.shows.6",
    "8.1",
    "8.2",
    "8.3",
    "8.4",
    "8.5",
    "8.6",
    "8.shows.1",
    "8.shows.2",
    "8.shows.3",
    "8.shows.4",
];

fn requirements() -> Requirements {
    let text = fs::read_to_string(root().join("docs/requirements.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

fn look_up(file: &str, function: &str) -> Lookup {
    let Ok(source) = fs::read_to_string(root().join(file)) else { return Lookup::Missing };
    match test_functions(&source).get(function) {
        Some(test) if test.ignored => Lookup::Ignored,
        Some(_) => Lookup::Runs,
        None => Lookup::Missing,
    }
}

#[test]
fn every_row_names_living_tests() {
    let faults = faults(&requirements(), look_up);
    assert!(faults.is_empty(), "docs/requirements.toml:\n{}", faults.join("\n"));
}

#[test]
fn every_item_has_a_row() {
    assert_eq!(without_row(&requirements(), &ITEMS), Vec::<&str>::new());
}
