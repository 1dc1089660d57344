//! Memory for many frames.

use bytes::BytesMut;

/// `count` pieces of `len` zero bytes each, out of one allocation. When it is large, the kernel gives its pages as they are
/// written to; of many small allocations the C library writes to most, to have them zero.
pub fn pieces(count: usize, len: usize) -> impl Iterator<Item = BytesMut> {
    // All lie alike in their cache lines.
    let stride = len.next_multiple_of(64);
    let mut rest = BytesMut::zeroed(count * stride);
    (0..count).map(move |_| {
        let mut piece = rest.split_to(stride);
        piece.truncate(len);
        piece
    })
}
