//! Which call a template is of: the persistence engine `sip` has one for each client address and Call-ID.
//!
//! A template keeps a keyed digest of its Call-ID, which is part of its key. The text itself is for listings only: the last ones
//! are kept in a side table in private memory, a cell for each remainder of the digest. Workers write a cell without
//! asking who else does; a reader believes what has the right digest. So an overwritten or half-written text is no text.
//!
//! Limits: [`CELLS`] texts, made room for when the first service needs them. After a restart a text is known again when its call
//! begins its next connection.

use std::hash::Hasher;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::FlowKey;
use crate::packet::sip::CALL_ID_LEN_MAX;

/// Texts at most: 4.3 MB.
const CELLS: usize = 16_384;
/// A length byte and the text.
const TEXT_WORDS: usize = (CALL_ID_LEN_MAX + 1) / 8;

/// Digest of a Call-ID, under a key of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId(NonZeroU64);

impl CallId {
    /// As an entry has it; `None`: it has none.
    pub(super) fn from_word(word: u64) -> Option<CallId> {
        NonZeroU64::new(word).map(CallId)
    }

    pub(super) fn word(self) -> u64 {
        self.0.get()
    }
}

/// What names a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateKey {
    /// Source = masked client, destination = virtual address (or the mark), source port 0, destination port the service's or 0;
    /// protocol the service's or [`crate::packet::Protocol::IP`].
    pub flow: FlowKey,
    /// Of the persistence engine `sip`: which call.
    pub call_id: Option<CallId>,
}

impl From<FlowKey> for TemplateKey {
    fn from(flow: FlowKey) -> TemplateKey {
        TemplateKey { flow, call_id: None }
    }
}

#[derive(Debug, Default)]
struct Cell {
    digest: AtomicU64,
    text: [AtomicU64; TEXT_WORDS],
}

#[derive(Debug)]
pub(super) struct CallIds {
    key: u128,
    cells: OnceLock<Box<[Cell]>>,
}

impl CallIds {
    /// `key`: the same for every process that reads the same entries.
    pub fn new(key: u128) -> CallIds {
        CallIds {
            key,
            cells: OnceLock::new(),
        }
    }

    pub fn digest(&self, text: &[u8]) -> CallId {
        // SipHash under a key that is zero, but what it hashes first is ours: the same in each process.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&self.key.to_be_bytes());
        hasher.write(text);
        CallId(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN))
    }

    /// Makes room for texts.
    pub fn make_room(&self) {
        self.cells
            .get_or_init(|| std::iter::repeat_with(Cell::default).take(CELLS).collect());
    }

    fn cell(&self, id: CallId) -> Option<&Cell> {
        let cells = self.cells.get()?;
        cells.get(id.word() as usize % cells.len())
    }

    /// Writes the text down, unless it is there.
    pub fn note(&self, id: CallId, text: &[u8]) {
        let Some(cell) = self.cell(id) else { return };
        if cell.digest.load(Ordering::Relaxed) == id.word() {
            return;
        }
        let mut bytes = [0; TEXT_WORDS * 8];
        let length = text.len().min(CALL_ID_LEN_MAX);
        bytes[0] = length as u8;
        bytes[1..=length].copy_from_slice(&text[..length]);
        for (word, bytes) in cell.text.iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_be_bytes(*bytes), Ordering::Relaxed);
        }
        cell.digest.store(id.word(), Ordering::Release);
    }

    /// The text, if it is still there.
    pub fn text(&self, id: CallId) -> Option<Vec<u8>> {
        let cell = self.cell(id)?;
        // Whoever sees the digest sees the text that was written before it, or a later one, which has another digest.
        if cell.digest.load(Ordering::Acquire) != id.word() {
            return None;
        }
        let words = cell.text.iter().map(|word| word.load(Ordering::Relaxed));
        let bytes: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
        let text = bytes.get(1..=bytes[0] as usize)?;
        (self.digest(text) == id).then(|| text.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_until_another_takes_the_place() {
        let ids = CallIds::new(7);
        let (first, longest) = (b"a84b4c76e66710@pc33".to_vec(), vec![b'x'; CALL_ID_LEN_MAX]);
        let id = ids.digest(&first);
        ids.note(id, &first);
        assert_eq!(ids.text(id), None, "no room yet");
        ids.make_room();
        for text in [&first, &longest] {
            ids.note(ids.digest(text), text);
            assert_eq!(ids.text(ids.digest(text)).as_ref(), Some(text));
        }
        let same_cell = (0..).map(|n| format!("call {n}").into_bytes()).find(|text| {
            let cells = CELLS as u64;
            ids.digest(text).word() % cells == id.word() % cells
        });
        let other = same_cell.expect("one of many");
        ids.note(ids.digest(&other), &other);
        assert_eq!(ids.text(id), None);
        assert_eq!(ids.text(ids.digest(&other)), Some(other));
    }

    #[test]
    fn the_digest_is_that_of_the_key_and_every_byte() {
        let ids = CallIds::new(7);
        let id = ids.digest(b"a@b");
        assert_eq!(CallIds::new(7).digest(b"a@b"), id, "also in another process");
        assert_ne!(CallIds::new(8).digest(b"a@b"), id);
        assert_ne!(ids.digest(b"a@c"), id);
        assert_ne!(ids.digest(b"a@b "), id);
    }

    /// A text that another worker is writing over: what has not the digest is not shown.
    #[test]
    fn half_a_text_is_none() {
        let ids = CallIds::new(7);
        ids.make_room();
        let id = ids.digest(b"the first call of all");
        ids.note(id, b"the first call of all");
        let cell = ids.cell(id).expect("room");
        cell.text[1].store(0x2020_2020_2020_2020, Ordering::Relaxed);
        assert_eq!(ids.text(id), None);
    }
}
