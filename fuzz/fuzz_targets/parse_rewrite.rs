//! Any bytes as a frame through parsing and every forwarding method: `cargo +nightly fuzz run parse_rewrite`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| uvs::forward::check::check(bytes));
