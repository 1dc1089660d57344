//! Links `uvs` statically, C library included: it runs on machines with any other, and a command such as `ipvsadm -e`, which is a process
//! and half its time the start of one, takes a third less (perf/README.md, "What paid").
//!
//! `-C target-feature=+crt-static` would be the usual way. It is refused where procedural macros are built, so it needs `--target`, which no
//! Cargo.toml can ask for. So, for the program alone, whatever rustc has the linker look for stands for its archive.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// For each name that rustc gives the linker after `-l`, the archives that it stands for. The first two need one another.
const LIBRARIES: [(&str, &[&str]); 3] = [
    ("libc.so", &["libc.a", "libgcc_eh.a", "libgcc.a"]),
    ("libgcc_s.so", &["libc.a", "libgcc_eh.a", "libgcc.a"]),
    ("libm.so", &["libm.a"]),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "gnu");
    let is_native = env::var("TARGET") == env::var("HOST");
    // libbpf, which this feature links, wants libelf, of which there is no whole archive.
    let is_afxdp = env::var("CARGO_FEATURE_AFXDP").is_ok();
    if is_gnu && is_native && !is_afxdp {
        link_statically();
    }
}

/// Leaves everything as it is where an archive is missing: Debian has them all beside the C library's headers, Fedora in glibc-static.
fn link_statically() {
    let out_dir = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    if path_of("rcrt1.o").is_none() {
        return;
    }
    for (library, archives) in LIBRARIES {
        let Some(paths) = archives
            .iter()
            .map(|archive| path_of(archive))
            .collect::<Option<Vec<_>>>()
        else {
            return;
        };
        for path in &paths {
            println!("cargo::rerun-if-changed={path}");
        }
        // A linker's script: "INPUT (AS_NEEDED …)" of ld's manual, section "File Commands".
        let script = format!("GROUP(\"{}\")\n", paths.join("\" \""));
        fs::write(Path::new(&out_dir).join(library), script).expect("OUT_DIR can be written");
    }
    println!("cargo::rustc-link-arg-bin=uvs=-L{out_dir}");
    println!("cargo::rustc-link-arg-bin=uvs=-static-pie");
}

/// The compiler that links knows where its libraries are. Of one that it has not it says the name back.
fn path_of(file: &str) -> Option<String> {
    let compiler = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned());
    let said = Command::new(compiler)
        .arg(format!("-print-file-name={file}"))
        .output()
        .ok()?;
    let path = String::from_utf8(said.stdout).ok()?;
    path.contains('/').then(|| path.trim_end().to_owned())
}
