//! What the fuzz targets share. Run one with `cargo +nightly fuzz run TARGET`.

pub mod guestless;

use xbzrle::PAGE_SIZE;

pub type Page = [u8; PAGE_SIZE];

/// A page at an address that every path reads by vectors, as guest memory is. Elsewhere the paths
/// read a live page as the scalar one does.
#[repr(align(64))]
pub struct Aligned(pub Page);

/// Two pages from fuzz bytes: the first byte fills the old page, and each four bytes after it
/// change a run of the new one (position, little-endian; length, where 255 stands for 2000 bytes;
/// what the bytes are exclusive-ored with, each third byte with one bit more, so that some of them
/// stay equal).
pub fn pages(data: &[u8]) -> (Box<Page>, Box<Page>) {
    let (&fill, edits) = data.split_first().unwrap_or((&0, &[]));
    let old: Box<Page> = Box::new(std::array::from_fn(|i| (i as u8).wrapping_mul(fill)));
    let mut new = old.clone();
    for edit in edits.as_chunks::<4>().0 {
        let first = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % PAGE_SIZE;
        let count = if edit[2] == 255 { 2000 } else { edit[2].into() };
        let end = PAGE_SIZE.min(first + count);
        for (i, byte) in new[first..end].iter_mut().enumerate() {
            *byte ^= edit[3] ^ u8::from(i % 3 == 2);
        }
    }
    (old, new)
}
