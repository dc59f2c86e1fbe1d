//! See `asd_server::fuzz::asd_operations`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| asd_server::fuzz::asd_operations(input));
