//! The `uvs` program. Called as `ipvsadm`, `ipvsadm-save` or `ipvsadm-restore` it speaks that dialect.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    uvs::cli::main(&arguments)
}
