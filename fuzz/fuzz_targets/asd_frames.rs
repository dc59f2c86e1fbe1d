//! See `asd_server::fuzz::asd_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| asd_server::fuzz::asd_frames(input));
