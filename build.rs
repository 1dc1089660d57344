//! Links GCC's unwinder into the program. To load libgcc_s.so instead is a tenth of the time that a command like `ipvsadm -e`
//! takes (perf/README.md).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "gnu") {
        println!("cargo::rustc-link-lib=gcc_eh");
    }
}
