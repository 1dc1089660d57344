//! Numbers that nobody can foresee.

use std::hash::{BuildHasher, RandomState};

/// 64 bits of such a number: a keyed hash of nothing, whose key the standard library has from getrandom(2) and changes each time.
pub fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How: on two threads, each with keys of its own. Goal: no number twice.
    #[test]
    fn each_is_another() {
        let draw = || (0..100).map(|_| random()).collect::<Vec<_>>();
        let other = std::thread::spawn(draw).join().unwrap();
        let drawn: std::collections::HashSet<u64> = draw().into_iter().chain(other).collect();
        assert_eq!(drawn.len(), 200);
    }
}
