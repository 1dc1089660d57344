//! Links `uvs` statically, C library included: it runs beside any other C library, and a command such as `ipvsadm -e`, most of whose time
//! is the start of a process, takes two fifths less (perf/README.md, "What paid"). The programs of `perf/` are linked as it is.
//!
//! `-C target-feature=+crt-static` would be the usual way. rustc refuses it where procedural macros are built for the same target, and no
//! Cargo.toml can ask for another. So what rustc has the linker look for (`-lc`, `-lgcc_s`, `-lm`) is put in front of what the machine has,
//! as long as nothing else with `-L` comes before; tests/cli.rs looks at the outcome, and knows by `cfg(linked_statically)` what to expect.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the linker finds, each a linker script (ld's manual, "Commands Dealing with Files") that names all archives.
const SCRIPTS: [&str; 3] = ["libc.so", "libgcc_s.so", "libm.so"];

/// They need one another.
const ARCHIVES: [&str; 4] = ["libc.a", "libgcc_eh.a", "libgcc.a", "libm.a"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    println!("cargo::rustc-check-cfg=cfg(linked_statically)");
    let is_gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "gnu");
    let is_native = env::var("TARGET") == env::var("HOST");
    // libbpf, which this feature links, wants libelf, of which there is no whole archive.
    let is_afxdp = env::var("CARGO_FEATURE_AFXDP").is_ok();
    let is_sanitized = env::var("CARGO_CFG_SANITIZE").is_ok();
    if !is_gnu || !is_native || is_afxdp || is_sanitized {
        return;
    }
    if let Err(why) = link_statically() {
        println!("cargo::warning=linked dynamically, so commands start later: {why}");
    }
}

/// Changes nothing unless all that is needed is there.
fn link_statically() -> Result<(), String> {
    let out_dir = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    path_of("rcrt1.o")?;
    // Until glibc 2.34 threads had a library of their own, and a program linked so would be of two halves.
    if path_of("libpthread.so").is_ok() {
        return Err("glibc is older than 2.34".to_owned());
    }
    let mut paths = Vec::new();
    for archive in ARCHIVES {
        paths.push(path_of(archive)?);
    }
    let script = format!("GROUP(\"{}\")\n", paths.join("\" \""));
    for name in SCRIPTS {
        fs::write(Path::new(&out_dir).join(name), &script).expect("OUT_DIR can be written");
    }
    for path in &paths {
        println!("cargo::rerun-if-changed={path}");
    }
    for targets in ["bin=uvs", "examples"] {
        println!("cargo::rustc-link-arg-{targets}=-L{out_dir}");
        println!("cargo::rustc-link-arg-{targets}=-static-pie");
    }
    println!("cargo::rustc-cfg=linked_statically");
    Ok(())
}

/// The compiler that links knows where its libraries are. Of one that it has not it says the name back.
fn path_of(file: &str) -> Result<String, String> {
    let compiler = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned());
    let said = Command::new(&compiler).arg(format!("-print-file-name={file}")).output();
    let said = said.map_err(|error| format!("`{compiler}`: {error}"))?;
    let path = String::from_utf8_lossy(&said.stdout).trim_end().to_owned();
    match path.contains('/') {
        true => Ok(path),
        false => Err(format!("`{compiler}` finds no {file} (Fedora: glibc-static)")),
    }
}
