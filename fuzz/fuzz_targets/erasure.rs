//! See `alba_core::fuzz::erasure`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| alba_core::fuzz::erasure(input));
