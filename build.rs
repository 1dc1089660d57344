//! Links GCC's unwinder into the program where there is one: to load libgcc_s.so instead is a tenth of the time that a command like
//! `ipvsadm -e` takes (perf/README.md).

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "gnu");
    let is_native = env::var("TARGET") == env::var("HOST");
    if is_gnu && is_native && has_archive() {
        println!("cargo::rustc-link-lib=gcc_eh");
    }
}

/// The compiler that links knows where the archive is. One that has none says its name back.
fn has_archive() -> bool {
    let said = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output();
    said.is_ok_and(|said| said.stdout.contains(&b'/'))
}
