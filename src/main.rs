//! The `uvs` program. Called as `ipvsadm`, `ipvsadm-save` or `ipvsadm-restore` it speaks that dialect.
fn main() {}
