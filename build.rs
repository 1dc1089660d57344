//! Links `uvs` statically, C library included: it runs beside any other C library, and a command such as `ipvsadm -e`, most of whose time
//! is the start of a process, takes two fifths less (perf/README.md, "What paid").
//!
//! `-C target-feature=+crt-static` would be the usual way. rustc refuses it where procedural macros are built for the same target, and no
//! Cargo.toml can ask for another. So, for the program alone, what rustc has the linker look for is put in front of what the machine has.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// They need one another.
const LIBC: &[&str] = &["libc.a", "libgcc_eh.a", "libgcc.a"];

/// What the linker finds for rustc's `-lc`, `-lgcc_s` and `-lm`, and the archives that stand for it.
const LIBRARIES: [(&str, &[&str]); 3] = [("libc.so", LIBC), ("libgcc_s.so", LIBC), ("libm.so", &["libm.a"])];

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
        // A linker script (ld's manual, "Commands Dealing with Files"): a text in the place of a library.
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
