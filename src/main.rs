//! The `uvs` program. Called as `ipvsadm`, `ipvsadm-save` or `ipvsadm-restore` it speaks that dialect.
#![cfg_attr(target_env = "gnu", no_main)]
#![allow(unsafe_code, reason = "C's main, sooner than Rust's: io::start")]

/// What the C library calls. GNU's has given the arguments to Rust's standard library before.
#[cfg(target_env = "gnu")]
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    uvs::io::start::prepare();
    run()
}

#[cfg(not(target_env = "gnu"))]
fn main() {
    run()
}

fn run() -> ! {
    let arguments: Vec<_> = std::env::args_os().collect();
    // Writes what standard output still holds.
    std::process::exit(uvs::cli::main(&arguments).into())
}
