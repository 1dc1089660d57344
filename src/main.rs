//! The `uvs` program. Called as `ipvsadm`, `ipvsadm-save` or `ipvsadm-restore` it speaks that dialect.
#![no_main]
#![allow(unsafe_code, reason = "C's main, sooner than Rust's: io::start")]

use std::ffi::{c_char, c_int};

use uvs::io::start;

/// What the C library calls.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    start::prepare();
    // SAFETY: handed on as they came.
    let arguments = unsafe { start::arguments(argc, argv) };
    // Writes what standard output still holds.
    std::process::exit(uvs::cli::main(&arguments).into())
}
