//! Replays the fuzz target's corpus, so that what fuzzing once found stays found. How: every file of `fuzz/corpus/parse_rewrite`
//! goes through the function that the target runs; it panics where something does not hold.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[test]
fn corpus_of_parse_rewrite() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/parse_rewrite");
    let entries = fs::read_dir(&folder).expect("the corpus is part of the repository");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    let failed: Vec<_> = files
        .iter()
        .filter(|file| {
            let bytes = fs::read(file).expect("a readable file");
            catch_unwind(|| uvs::forward::check::check(&bytes)).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "does not hold for {failed:#?}");
    assert!(files.len() > 100, "only {} files in {}", files.len(), folder.display());
}
