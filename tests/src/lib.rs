//! Fixtures for the tests across processes and crates.
